"""Results of a drill-down: all finished runs, by name, in one JSON file.

A later drill-down continues from this file.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jaxmnist.analysis import stats
from jaxmnist.config import ConfigError, TrainConfig, check_format, format_seeds
from jaxmnist.models import model_of
from jaxmnist.models.description import mflop_per_image
from jaxmnist.recipes import NETWORKS, RECIPES, VARIANTS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

RESULTS_FORMAT = 1

# Values stored per epoch, from the rows of metrics.jsonl.
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")
# Values stored per run, from summary.json, where lists have one entry.
METRICS = (
    "final_test_accuracy",
    "best_test_accuracy",
    "final_test_loss",
    "final_train_accuracy",
    "compile_seconds",
    "train_seconds",
    "steps",
    "test_count",
    "cores",
    "device",
    "git_commit",
    "versions",
)

# The variant that may have fewer seeds than the others, since its runs take hours.
COSTLY = "skeleton"


class IncompleteError(ConfigError):
    """A missing run that the report needs."""


class Published(NamedTuple):
    """Published accuracies of one run, in percent (the original's README and notebooks)."""

    train: float
    headline: float  # test accuracy of the best epoch, except for skeleton
    best: float  # test accuracy of the best epoch in the notebook's log
    final: float  # test accuracy of the last epoch

    @property
    def gap(self) -> float:
        """Train accuracy minus test accuracy after the last epoch."""
        return self.train - self.final


PUBLISHED = {
    # The headline is epoch 14 of 19; the best is epoch 11.
    "skeleton": Published(99.93, 99.28, 99.35, 99.26),
    "less_params": Published(98.14, 98.23, 98.23, 97.91),
    "batch_norm": Published(99.20, 98.80, 98.80, 98.56),
    "dropout": Published(97.83, 98.52, 98.52, 98.52),
    "fc_layer": Published(99.08, 99.21, 99.21, 99.21),
    "augmentation": Published(97.67, 99.39, 99.39, 99.39),
    "gap": Published(98.31, 99.42, 99.42, 99.40),
}


class VariantResults(NamedTuple):
    """A network, trained with one recipe, and all its finished runs."""

    name: str  # `TrainConfig.name`: the variant, and its recipe if not the default
    parameters: int
    mflop_per_image: float  # forward pass
    runs: list[dict[str, Any]]  # entries of the file, sorted by seed

    @property
    def config(self) -> TrainConfig:
        """Config of the first run; the others differ in the seed."""
        return TrainConfig.from_dict(self.runs[0]["config"])

    @property
    def published(self) -> Published | None:
        """The original's accuracies; None unless this is the original's recipe."""
        return None if _changes(self.config) else PUBLISHED.get(self.name)

    @property
    def place(self) -> tuple[str, int]:
        """Most frequent device and number of cores of a run."""
        return Counter(map(_place_of, self.runs)).most_common(1)[0][0]

    @property
    def seconds_per_epoch(self) -> float:
        """Median over the epochs of the runs at `place`."""
        runs = [run for run in self.runs if _place_of(run) == self.place]
        return median(seconds for run in runs for seconds in run["curves"]["train_seconds"])

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run["seed"] for run in self.runs]

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return one of `METRICS` by seed, or `train_test_gap`, final train minus test accuracy."""
        if metric == "train_test_gap":
            train, test = map(self.by_seed, ("final_train_accuracy", "final_test_accuracy"))
            return {seed: train[seed] - test[seed] for seed in train}
        return {run["seed"]: run[metric] for run in self.runs}

    def summary(self, metric: str) -> stats.Summary:
        """Return mean, standard deviation and interval over seeds of a metric as in `by_seed`."""
        return stats.summarize(list(self.by_seed(metric).values()))


Results = dict[str, VariantResults]  # by name


def read(path: Path) -> Results:
    """Read a results file; a missing file has no results.

    Raises:
        ConfigError: the file is damaged, or a run in it is incomplete; the message names it.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
        check_format("the file", content["format"], RESULTS_FORMAT)
        variants = content["variants"].items()
        results = {name: VariantResults(name, **found) for name, found in variants}
        for network in results.values():
            _check_finished(network)
        check_mix(results)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}; restore an older one") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return results


def add(path: Path, run: Run) -> None:
    """Add a finished run of one seed to the file, unless it already has a run of that seed.

    Args:
        path: the results file; created with the first run.
        run: the run returned by `train`.

    Raises:
        ConfigError: `read` fails, or the file has runs of another config.
        OSError: the file cannot be written.
    """
    with alone(path.parent):
        results, config = read(path), run.config
        check_mix(results, [config])
        flop = mflop_per_image(model_of(config))
        network = VariantResults(config.name, run.summary["parameters"], flop, [])
        network = results.setdefault(config.name, network)
        if config.seed not in network.seeds:
            network.runs.append(_record(run))
            network.runs.sort(key=lambda other: other["seed"])
            run_folder.write(path, _to_json(results))


def missing(path: Path, config: TrainConfig, seeds: Sequence[int]) -> list[int]:
    """Return the seeds without a finished run of a config in the file.

    Raises:
        ConfigError, OSError: as `read`.
    """
    results = read(path)
    finished = results[config.name].seeds if config.name in results else []
    return [seed for seed in seeds if seed not in finished]


def digest(results: Results) -> str:
    """Return the SHA-256 of the seven networks' results, which their plots contain."""
    seven = {name: network for name, network in results.items() if name in VARIANTS}
    return hashlib.sha256(_to_json(seven).encode()).hexdigest()


def check_mix(results: Results, configs: Iterable[TrainConfig] = ()) -> None:
    """Check that all runs of a file, and runs to add, deviate from their recipes in the same way.

    Runs of one name then have the same config, except for the seed, and all use the same images.

    Args:
        results: the results returned by `read`.
        configs: the configs of runs to add.

    Raises:
        ConfigError: two configs deviate differently; the message names both.
    """
    runs = [run for network in results.values() for run in network.runs]
    check_same_changes([*(TrainConfig.from_dict(run["config"]) for run in runs), *configs])


def check_same_changes(configs: Sequence[TrainConfig]) -> None:
    """Check that configs deviate from their recipes in the same way, as in `check_mix`.

    Raises:
        ConfigError: two configs deviate differently, or have one name and different networks.
    """
    for name, both in _networks_by_name(configs).items():
        if len(both) > 1:
            raise ConfigError(
                f"{name} names two networks: {'; '.join(map(str, both))}; give one another name, "
                "or pass another --out"
            )
    changes = [_changes(config) or "its recipe" for config in configs]
    for config, change in zip(configs, changes, strict=True):
        if change != changes[0]:
            raise ConfigError(
                f"{config.name} with {change} does not mix with {configs[0].name}, seed "
                f"{configs[0].seed}, with {changes[0]}: pass another --out"
            )


def select(results: Results, names: Sequence[str]) -> list[VariantResults]:
    """Return the networks of the given names, each with all its runs.

    Raises:
        IncompleteError: a network has no run; the message names each.
    """
    _refuse_without([f"run of {name}" for name in names if name not in results])
    return [results[name] for name in names]


def seven_variants(results: Results) -> list[VariantResults]:
    """Return the seven networks in order, if no run is missing.

    Returns:
        The networks with runs of the same seeds; `COSTLY` may have only the first seeds.

    Raises:
        IncompleteError: a network or seed has no run; the message names each.
    """
    networks = select(results, VARIANTS)
    seeds = sorted({seed for network in networks for seed in network.seeds})
    gone = []
    for network in networks:
        wanted = seeds[: len(network.seeds)] if network.name == COSTLY else seeds
        if lacking := [seed for seed in wanted if seed not in network.seeds]:
            gone.append(f"seed {format_seeds(lacking)} of {network.name}")
    _refuse_without(gone)
    return networks


def other_recipes(results: Results) -> list[VariantResults]:
    """Return the results of the seven networks with this project's own recipes."""
    ours = set(RECIPES) - {TrainConfig.recipe}
    return [
        network
        for network in results.values()
        if network.config.variant in VARIANTS and network.config.recipe in ours
    ]


def _refuse_without(gone: Sequence[str]) -> None:
    if gone:
        raise IncompleteError(
            f"there is no finished {', no finished '.join(gone)}; scripts/drilldown.py trains what "
            "is missing"
        )


def _check_finished(network: VariantResults) -> None:
    """Check that each run is complete and consistent, and no seed is repeated."""
    if len(set(network.seeds)) < len(network.runs):
        raise ConfigError(
            f"{network.name} has a seed more than once: {format_seeds(network.seeds)}"
        )
    for run in network.runs:
        config, curves = TrainConfig.from_dict(run["config"]), run["curves"]
        ends = {
            "final_test_accuracy": curves["test_accuracy"][-1],
            "best_test_accuracy": max(curves["test_accuracy"]),
            "final_test_loss": curves["test_loss"][-1],
            "final_train_accuracy": curves["train_accuracy"][-1],
        }
        if not (
            run.keys() == {"seed", *METRICS, "config", "curves"}
            and (network.name, run["seed"]) == (config.name, config.seed)
            and all(len(curves[name]) == config.epochs for name in CURVES)
            and run == {**run, **ends}
        ):
            raise ConfigError(
                f"the run of {network.name}, seed {run['seed']}, is not finished, or its config, "
                "metrics and curves differ; restore an older file"
            )


def _changes(config: TrainConfig) -> str:
    """Return the fields that differ from those of the recipe, with their values."""
    plain = dataclasses.asdict(
        TrainConfig(config.variant, recipe=config.recipe, seed=config.seed, network=config.network)
    )
    values = dataclasses.asdict(config)
    return ", ".join(f"{name} {values[name]!r}" for name in values if values[name] != plain[name])


def _networks_by_name(configs: Iterable[TrainConfig]) -> dict[str, set[str | None]]:
    """Return the texts of the user's networks, None for the others, by the name of the config."""
    networks: dict[str, set[str | None]] = {}
    for config in configs:
        networks.setdefault(config.name, set()).add(config.network)
    return networks


def _place_of(run: dict[str, Any]) -> tuple[str, int]:
    return run["device"], run["cores"]


def _record(run: Run) -> dict[str, Any]:
    """Return the entry of a run in the file."""
    metrics = {name: run.summary[name] for name in METRICS}
    curves = {name: [_rounded(row[name]) for row in run.rows] for name in CURVES}
    return {
        "seed": run.config.seed,
        **{name: _rounded(v[0] if isinstance(v, list) else v) for name, v in metrics.items()},
        "config": run.config.to_dict(),
        "curves": curves,
    }


def _rounded(value: Any) -> Any:
    """Round floats to six decimals, far finer than the spread over seeds."""
    return round(value, 6) if isinstance(value, float) else value


def _to_json(results: Results) -> str:
    """Return the file's content, one line per run, so that a diff shows the added runs."""
    variants = []
    for name, parameters, flop, runs in sorted(results.values(), key=_place):
        lines = ",\n".join(f"   {json.dumps(run)}" for run in runs)
        head = f'"parameters": {parameters}, "mflop_per_image": {flop}'
        variants.append(f'  "{name}": {{{head}, "runs": [\n{lines}\n  ]}}')
    joined = ",\n".join(variants)
    return f'{{\n "format": {RESULTS_FORMAT},\n "variants": {{\n{joined}\n }}\n}}\n'


def _place(network: VariantResults) -> tuple[int, str]:
    return place_in_file(network.config.variant, network.name)


def place_in_file(variant: str, name: str) -> tuple[int, str]:
    """Return a sort key: the course's networks in order, then the user's by name."""
    return NETWORKS.index(variant) if variant in NETWORKS else len(NETWORKS), name


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Lock a folder, so that several drill-downs add to one file in turn."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
