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

from jaxmnist.config import (
    FORMAT,
    SeedsConfig,
    TrainConfig,
)
from jaxmnist.metrics import Metrics
from jaxmnist.optim import Schedules
from jaxmnist.parallel.limits import cores

_PACKAGES = ("jaxmnist", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")

# Of a summary: lists with an entry for each seed.
_FIGURES = (
    "final_test_accuracy",
    "best_test_accuracy",
    "final_test_loss",
    "final_train_accuracy",
)

Row = dict[str, Any]


def make_row(
    config: TrainConfig,
    schedules: Schedules,
    epoch: int,
    step: int,
    trained: Metrics,
    tested: Metrics,
    train_seconds: float,
) -> Row:
    """What metrics.jsonl says of one epoch; learning rate and momentum are the last step's."""
    return {
        "epoch": epoch,
        "step": step,
        "seed": config.seed,
        "train_loss": _finite(trained.loss),
        "train_accuracy": trained.accuracy,
        "test_loss": _finite(tested.loss),
        "test_accuracy": tested.accuracy,
        "learning_rate": float(schedules.learning_rate(step - 1)),
        "momentum": float(schedules.momentum(step - 1)),
        "train_seconds": round(train_seconds, 6),
        "images_per_second": round(int(trained.count) / train_seconds, 1),
    }


def row_of_test(config: TrainConfig, step: int, tested: Metrics) -> Row:
    """The row of a network whose training is not known: only what it came to is."""
    return {
        "epoch": config.epochs,
        "step": step,
        "seed": config.seed,
        "train_loss": None,
        "train_accuracy": None,
        "test_loss": _finite(tested.loss),
        "test_accuracy": tested.accuracy,
        "learning_rate": None,
        "momentum": None,
        "train_seconds": None,
        "images_per_second": None,
    }


def make_summary(
    config: TrainConfig,
    parameters: int,
    rows: Sequence[Row],
    test_count: int,
    compile_seconds: float,
    environment: dict[str, Any],
) -> dict[str, Any]:
    """What summary.json says of a finished run; accuracies in percent, one entry a seed."""
    last = rows[-1]
    train_seconds = sum(row["train_seconds"] or 0 for row in rows)
    images = last["step"] * config.batch_size
    return {
        **_head(config, [config.seed], parameters, last["step"], test_count),
        "final_test_accuracy": [last["test_accuracy"]],
        "best_test_accuracy": [max(row["test_accuracy"] for row in rows)],
        "final_test_loss": [last["test_loss"]],
        "final_train_accuracy": [last["train_accuracy"]],
        "compile_seconds": round(compile_seconds, 3),
        "train_seconds": round(train_seconds, 3),
        "images_per_second": round(images / train_seconds, 1) if train_seconds else None,
        "cores": len(cores()),
        **environment,
    }


def join_summaries(
    config: SeedsConfig,
    parameters: int,
    steps: int,
    test_count: int,
    summaries: Mapping[int, dict[str, Any]],
    failures: Mapping[int, str],
) -> dict[str, Any]:
    """What summary.json says of the runs of several seeds, but for what they run on.

    Args:
        config: what they train.
        parameters: of the network.
        steps: of each run.
        test_count: how many images each is tested on.
        summaries: what the summary.json of each finished run says.
        failures: why the others are not finished; their figures are null.

    Returns:
        Lists with an entry for each seed. `train_seconds` is the sum over the finished ones,
        however many were trained at a time; `images_per_second` is the speed of one.
    """
    done = [summaries[seed] for seed in config.seeds if seed in summaries]
    train_seconds = sum(summary["train_seconds"] for summary in done)
    images = len(done) * steps * config.config.batch_size

    def listed(name):
        return [summaries[seed][name][0] if seed in summaries else None for seed in config.seeds]

    return {
        **_head(config.config, config.seeds, parameters, steps, test_count),
        **{name: listed(name) for name in _FIGURES},
        "failures": {str(seed): reason for seed, reason in failures.items()},
        "compile_seconds": max((summary["compile_seconds"] for summary in done), default=None),
        "train_seconds": round(train_seconds, 3),
        "images_per_second": round(images / train_seconds, 1) if done else None,
    }


def _head(
    config: TrainConfig, seeds: Sequence[int], parameters: int, steps: int, test_count: int
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "variant": config.variant,
        "recipe": config.recipe,
        "dataset": config.dataset,
        "parameters": parameters,
        "seeds": list(seeds),
        "epochs": config.epochs,
        "steps": steps,
        "test_count": test_count,
    }


def environment(devices: int = 1) -> dict[str, Any]:
    """What a run runs on: devices, versions and commit. To be asked before it starts.

    Args:
        devices: how many train it.
    """
    return {
        "device": device(devices),
        "versions": {"python": platform.python_version(), **dict(map(_version, _PACKAGES))},
        "git_commit": git_commit(),
    }


def _version(package: str) -> tuple[str, str | None]:
    try:
        return package, importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return package, None


def device(count: int = 1) -> str:
    """So many of the devices in words."""
    first, number = jax.devices()[0], "" if count == 1 else f"{count} x "
    if first.platform == "cpu":
        return f"{number}cpu, {os.cpu_count()} cores, {platform.machine()}"
    return f"{number}{first.platform}, {first.device_kind}"


def git_commit() -> str | None:
    """The commit that this package runs from, `-dirty` if changed; None outside a checkout."""
    here = Path(__file__)
    git = ["git", "-C", str(here.parent.parent)]
    try:
        # Without this, an installed copy would report whatever repository it happens to lie in.
        subprocess.run([*git, "ls-files", "--error-unmatch", here], check=True, **_SILENT)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, **_SILENT)
        # The package alone: results that are committed beside it are no change of it.
        changed = ["status", "--porcelain", "--untracked-files=no", "."]
        status = subprocess.run([*git, *changed], check=True, **_SILENT)
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.decode().strip() + ("-dirty" if status.stdout else "")


_SILENT: dict[str, Any] = {"capture_output": True, "timeout": 10}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
