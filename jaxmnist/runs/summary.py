"""Rows of metrics.jsonl and the content of summary.json."""

import importlib.metadata
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmnist.config import FORMAT, TrainConfig
from jaxmnist.metrics import Metrics

Row = dict[str, Any]
ROW_METRICS = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
# Entries of summary.json that are lists over seeds.
SEED_METRICS = (
    "final_test_accuracy",
    "best_test_accuracy",
    "final_test_loss",
    "final_train_accuracy",
)
# Entry of summary.json for an imported network: the name of its file.
IMPORTED = "imported_from"
_FACTS = (
    "parameters",
    "test_count",
    "cores",
    "seed_mapping",
    "device",
    "versions",
    "git_commit",
    "normalisation",
    IMPORTED,
)
_PACKAGES = ("jaxmnist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def make_row(
    seed: int,
    learning_rate: float,
    momentum: float,
    epoch: int,
    step: int,
    trained: Metrics,
    tested: Metrics,
    train_seconds: float,
) -> Row:
    """Return the row of an epoch; learning rate and momentum are those of its last step."""
    return {
        "epoch": epoch,
        "step": step,
        "seed": seed,
        "train_loss": _finite(trained.loss),
        "train_accuracy": trained.accuracy,
        "test_loss": _finite(tested.loss),
        "test_accuracy": tested.accuracy,
        # The digits of a float32, so that 0.01 stays 0.01.
        "learning_rate": float(f"{learning_rate:.7g}"),
        "momentum": float(f"{momentum:.7g}"),
        "train_seconds": round(train_seconds, 6),
        "images_per_second": round(int(trained.count) / train_seconds, 1),
    }


def row_of_test(config: TrainConfig, step: int, tested: Metrics) -> Row:
    """Return the row of an imported network, whose training is unknown."""
    unknown = ("train_loss", "train_accuracy", "learning_rate", "momentum", "train_seconds")
    return {
        "epoch": config.epochs,
        "step": step,
        "seed": config.seed,
        "test_loss": _finite(tested.loss),
        "test_accuracy": tested.accuracy,
        **dict.fromkeys((*unknown, "images_per_second")),
    }


def summarize_seed(
    rows: Sequence[Row], compile_seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    """Return the summary of a finished seed.

    Args:
        rows: the rows of all epochs.
        compile_seconds: the compilation time of the programs, in seconds.
        facts: entries that are the same for all seeds of the run.
    """
    last = rows[-1]
    return {
        "final_test_accuracy": [last["test_accuracy"]],
        "best_test_accuracy": [max(row["test_accuracy"] for row in rows)],
        "final_test_loss": [last["test_loss"]],
        "final_train_accuracy": [last["train_accuracy"]],
        "compile_seconds": round(compile_seconds, 3),
        "train_seconds": round(sum(row["train_seconds"] or 0 for row in rows), 3),
        **facts,
    }


def make_summary(
    config: TrainConfig,
    seeds: Sequence[int],
    steps: int,
    finished: Mapping[int, dict[str, Any]],
    failures: Mapping[int, str],
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Return the content of summary.json; accuracies in percent.

    Args:
        config: the config of the run.
        seeds: all seeds of the run.
        steps: the number of steps per seed.
        finished: the result of `summarize_seed` for each finished seed.
        failures: the reasons for the failed seeds, whose entries are null.
        facts: entries that are the same for all seeds.

    Returns:
        The summary. Metrics are lists over seeds. `train_seconds` is the sum over finished seeds,
        also of seeds trained in parallel, and `images_per_second` is the speed of one seed.
    """
    done = [finished[seed] for seed in seeds if seed in finished]
    train_seconds = sum(each["train_seconds"] for each in done)
    images = len(done) * steps * config.batch_size

    def listed(name):
        return [finished[seed][name][0] if seed in finished else None for seed in seeds]

    return {
        "format": FORMAT,
        "variant": config.variant,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "seeds": list(seeds),
        "epochs": config.epochs,
        "steps": steps,
        **{name: listed(name) for name in SEED_METRICS},
        "failures": {str(seed): reason for seed, reason in failures.items()},
        "compile_seconds": max((each["compile_seconds"] for each in done), default=None),
        "train_seconds": round(train_seconds, 3),
        "images_per_second": round(images / train_seconds, 1) if train_seconds else None,
        **facts,
    }


def facts_of(seed_summary: dict[str, Any]) -> dict[str, Any]:
    """Return the facts in the summary of a seed."""
    return {name: seed_summary[name] for name in _FACTS if name in seed_summary}


def environment(devices: int = 1) -> dict[str, Any]:
    """Return the device, the package versions and the git commit.

    Call this before training, since the commit may change meanwhile.

    Args:
        devices: the number of devices for training.
    """
    return {
        "device": device(devices),
        "versions": {"python": platform.python_version(), **dict(map(_version, _PACKAGES))},
        "git_commit": git_commit(),
    }


def _version(package: str) -> tuple[str, str | None]:
    try:
        return package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return package, None


def device(count: int = 1) -> str:
    """Return a readable name of `count` devices."""
    first, number = jax.devices()[0], "" if count == 1 else f"{count} x "
    if first.platform == "cpu":
        return f"{number}cpu, {os.cpu_count()} cores, {platform.machine()}"
    return f"{number}{first.platform}, {first.device_kind}"


def git_commit() -> str | None:
    """Return the commit of this package, with `-dirty` if modified; None outside a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent.parent)]
    silent: dict[str, Any] = {"capture_output": True, "timeout": 10}
    try:
        # Otherwise, an installed copy would report the commit of a repository that contains it.
        subprocess.run([*git, "ls-files", "--error-unmatch", here], check=True, **silent)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, **silent)
        # Check only the package: changed results do not make it dirty.
        changed = ["status", "--porcelain", "--untracked-files=no", "."]
        status = subprocess.run([*git, *changed], check=True, **silent)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.decode().strip() + ("-dirty" if status.stdout else "")


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
