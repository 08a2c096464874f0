"""Results of a drill-down: every finished run, by name, in one JSON file.

The file holds exactly the finished runs. A later drill-down continues from it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from jaxmnist.config import ConfigError, TrainConfig, check_format, format_seeds, parse_experiment
from jaxmnist.recipes import NETWORKS, RECIPES, VARIANTS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

RESULTS_FORMAT = 1
# A thousand seeds of each network take a tenth of this.
MAX_RESULTS_BYTES = 256 << 20

# Stored per epoch, from the rows of metrics.jsonl.
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")
# Stored per run, from summary.json; lists there have one entry.
FIGURES = (
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
_RUN = {"seed", *FIGURES, "config", "curves"}
_VARIANT = {"parameters", "mflop_per_image", "runs"}

# Its runs take hours, so it may have only the first seeds of the others.
COSTLY = "skeleton"


class IncompleteError(ConfigError):
    """An error for a missing run that the report needs."""


class Published(NamedTuple):
    """Published figures of a network, one run, in percent (the original's README and notebooks)."""

    train: float
    headline: float  # test accuracy of the best epoch, except for skeleton
    best: float  # test accuracy of the best epoch in the notebook's log
    final: float  # test accuracy of the last epoch


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


class Rung(NamedTuple):
    """A network of the ladder, or one with another recipe, with all its runs."""

    name: str  # `TrainConfig.name`: the network, and its recipe if not the default
    parameters: int
    mflop_per_image: float  # of the forward pass
    runs: list[dict[str, Any]]  # sorted by seed, as in the file

    @property
    def epochs(self) -> int:
        """Number of passes over the training images."""
        return self.runs[0]["config"]["epochs"]

    @property
    def dataset(self) -> str:
        """Name of the training data set."""
        return self.runs[0]["config"]["dataset"]

    @property
    def published(self) -> Published | None:
        """The original's figures; None unless this is the original's recipe."""
        config = _config_of(self.runs[0])
        whole = TrainConfig(config.variant, seed=config.seed)
        return PUBLISHED.get(self.name) if config == whole else None

    @property
    def cores(self) -> int:
        """Cores per run, for the most frequent device and core count."""
        return self._most_frequent()[1]

    @property
    def seconds_per_epoch(self) -> float:
        """The median over epochs, of runs on the most frequent device and core count."""
        return median(
            seconds
            for run in self.runs
            if _place(run) == self._most_frequent()
            for seconds in run["curves"]["train_seconds"]
        )

    def _most_frequent(self) -> tuple[str, int]:
        return Counter(map(_place, self.runs)).most_common(1)[0][0]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the runs."""
        return [run["seed"] for run in self.runs]

    def by_seed(self, figure: str) -> dict[int, float]:
        """Return one of `FIGURES` by seed; `train_test_gap` is final train minus test in points."""
        if figure == "train_test_gap":
            return {
                run["seed"]: run["final_train_accuracy"] - run["final_test_accuracy"]
                for run in self.runs
            }
        return {run["seed"]: run[figure] for run in self.runs}


def read(path: Path) -> dict[str, Any]:
    """Read a results file; a missing file has no results.

    Raises:
        ConfigError: the file is damaged, or a run in it is incomplete; the message names it.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return {"format": RESULTS_FORMAT, "variants": {}}
    size = path.stat().st_size
    if size > MAX_RESULTS_BYTES:
        raise ConfigError(f"{path} has {size} bytes; expected results")
    try:
        results = json.loads(path.read_text())
        check_format(str(path), results["format"], (RESULTS_FORMAT,))
        for name, found in results["variants"].items():
            _check_named(name, found)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {error!r}; take back an older one") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return results


def add(path: Path, run: Run, mflop_per_image: float) -> None:
    """Add a finished run to the file, unless it already has a run of that seed.

    Args:
        path: the results file; created with the first run.
        run: the run returned by `train`.
        mflop_per_image: millions of additions and multiplications of the forward pass.

    Raises:
        ConfigError: `read` fails, or the file has runs of another config.
        OSError: the file cannot be written.
    """
    with _alone(path.parent):
        results = read(path)
        config = run.config
        check_same(results, config, "the new one")
        head = {"parameters": run.summary["parameters"], "mflop_per_image": mflop_per_image}
        runs = results["variants"].setdefault(config.name, {**head, "runs": []})["runs"]
        if config.seed not in [other["seed"] for other in runs]:
            runs.append(_record(run))
            runs.sort(key=lambda other: other["seed"])
            run_folder.write(path, _to_json(results))


def digest(results: dict[str, Any]) -> str:
    """Return the SHA-256 of a file with only the seven networks; their figures contain it."""
    seven = {name: found for name, found in results["variants"].items() if name in VARIANTS}
    return hashlib.sha256(_to_json({**results, "variants": seven}).encode()).hexdigest()


def missing(results: dict[str, Any], name: str, seeds: Sequence[int]) -> list[int]:
    """Return the seeds without a finished run under a name."""
    runs = results["variants"].get(name, {"runs": []})["runs"]
    finished = {run["seed"] for run in runs}
    return [seed for seed in seeds if seed not in finished]


def check_same(results: dict[str, Any], config: TrainConfig, whose: str) -> None:
    """Check that a config is compatible with all finished runs.

    Runs of the same name must have the same config, except for the seed. Runs of other names must
    use the same images, and either all or none may deviate from their recipes.

    Args:
        results: the results returned by `read`.
        config: the config of a run.
        whose: the description of the config in the message.

    Raises:
        ConfigError: the config differs; the message names a run and the fields.
    """
    for name, found in results["variants"].items():
        for run in found["runs"]:
            compared = dataclasses.asdict if name == config.name else _shared
            before = compared(_config_of(run))
            now = compared(dataclasses.replace(config, seed=run["seed"]))
            differing = [
                f"{field} is {before[field]!r}, not {now[field]!r}"
                for field in before
                if before[field] != now[field]
            ]
            if differing:
                raise ConfigError(
                    f"in the finished run of {name}, seed {run['seed']}, "
                    f"{', '.join(differing)} as in {whose}; such runs do not mix: pass another "
                    "--out"
                )


def rungs_of(results: dict[str, Any], names: Sequence[str]) -> list[Rung]:
    """Return the networks of the given names, each with all its runs.

    Args:
        results: the results returned by `read`.
        names: the names of the networks.

    Raises:
        IncompleteError: a network has no run; the message names each.
        ConfigError: a run has another config.
    """
    found = results["variants"]
    _refuse_without([f"run of {name}" for name in names if name not in found])
    rungs = [Rung(name, **found[name]) for name in names]
    for rung in rungs:
        check_same(results, _config_of(rung.runs[0]), f"that of {rung.name}, seed {rung.seeds[0]}")
    return rungs


def ladder(results: dict[str, Any], names: Sequence[str] = VARIANTS) -> list[Rung]:
    """Return the networks of the ladder in order, if no run is missing.

    Args:
        results: the results returned by `read`.
        names: the names of the networks.

    Returns:
        The networks with runs of the same seeds; `COSTLY` may have only the first seeds.

    Raises:
        IncompleteError: a network or seed has no run; the message names each.
        ConfigError: a run has another config.
    """
    rungs = rungs_of(results, names)
    seeds = sorted({seed for rung in rungs for seed in rung.seeds})
    gone = []
    for rung in rungs:
        wanted = seeds[: len(rung.seeds)] if rung.name == COSTLY else seeds
        if lacking := missing(results, rung.name, wanted):
            gone.append(f"seed {format_seeds(lacking)} of {rung.name}")
    _refuse_without(gone)
    return rungs


def other_recipes(results: dict[str, Any]) -> list[Rung]:
    """Return those of the seven networks that have runs with a recipe of our own.

    Args:
        results: the results returned by `read`.

    Raises:
        ConfigError: a run has another config.
    """
    names = [
        TrainConfig(variant, recipe=recipe).name
        for recipe in RECIPES
        for variant in RECIPES[recipe]
        if recipe != TrainConfig.recipe and variant in VARIANTS
    ]
    return rungs_of(results, [name for name in names if name in results["variants"]])


def _refuse_without(gone: Sequence[str]) -> None:
    if gone:
        raise IncompleteError(
            f"there is no finished {', no finished '.join(gone)}; scripts/drilldown.py trains what "
            "is missing"
        )


def _check_named(name: str, found: dict[str, Any]) -> None:
    if set(found) != _VARIANT or not found["runs"]:
        raise ValueError(f"{name} has {sorted(found)}; expected {sorted(_VARIANT)}")
    seeds = [run["seed"] for run in found["runs"]]
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"{name} has a seed more than once: {format_seeds(seeds)}")
    for run in found["runs"]:
        try:
            _check_run(name, run)
        except (ConfigError, KeyError, TypeError) as error:
            raise ConfigError(f"the run of {name}, seed {run['seed']}: {error}") from error


def _check_run(name: str, run: dict[str, Any]) -> None:
    """Check that a run is complete and consistent."""
    if set(run) != _RUN:
        raise ConfigError(f"it has {sorted(run)}; expected {sorted(_RUN)}")
    config, curves = _config_of(run), run["curves"]
    if (config.name, config.seed) != (name, run["seed"]):
        raise ConfigError(f"it has the config of {config.name}, seed {config.seed}")
    for curve in CURVES:
        if len(curves[curve]) != config.epochs:
            raise ConfigError(
                f"it is not finished: {curve} has {len(curves[curve])} of {config.epochs} epochs"
            )
    ends = {
        "final_test_accuracy": curves["test_accuracy"][-1],
        "best_test_accuracy": max(curves["test_accuracy"]),
        "final_test_loss": curves["test_loss"][-1],
        "final_train_accuracy": curves["train_accuracy"][-1],
    }
    for figure, end in ends.items():
        if run[figure] != end:
            raise ConfigError(f"{figure} is {run[figure]}, but by its curve {end}")


def check_together(configs: Sequence[TrainConfig]) -> None:
    """Check that the runs of several configs may share one file.

    Raises:
        ConfigError: the images differ, or only some configs follow their recipes.
    """
    for config in configs[1:]:
        if _shared(config) != _shared(configs[0]):
            raise ConfigError(
                f"{configs[0].name} would be {_shared(configs[0])} and {config.name} "
                f"{_shared(config)}; such runs do not mix: train them into one --out each"
            )


def _shared(config: TrainConfig) -> dict[str, Any]:
    """Return the properties that all runs of a file must share."""
    shared = {name: getattr(config, name) for name in ("dataset", "limit_train", "holdout", "fold")}
    plain = parse_experiment(config.name, seed=config.seed, **shared)
    return {**shared, "as in the recipe": config == plain}


def _place(run: dict[str, Any]) -> tuple[str, int]:
    return run["device"], run["cores"]


def _config_of(run: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_json(json.dumps(run["config"]))


def _record(run: Run) -> dict[str, Any]:
    """Return the entry of a run in the file."""
    figures = {name: run.summary[name] for name in FIGURES}
    curves = {name: [_rounded(row[name]) for row in run.rows] for name in CURVES}
    return {
        "seed": run.config.seed,
        **{name: _rounded(v[0] if isinstance(v, list) else v) for name, v in figures.items()},
        "config": json.loads(run.config.to_json()),
        "curves": curves,
    }


def _rounded(value: Any) -> Any:
    """Round floats to six decimals, far finer than the spread over seeds."""
    return round(value, 6) if isinstance(value, float) else value


def _to_json(results: dict[str, Any]) -> str:
    """Return the file's content, one line per run, so that a diff shows the added runs."""
    variants = []
    for name in sorted(results["variants"], key=_place_in_file):
        found = dict(results["variants"][name])
        runs = ",\n".join(f"   {json.dumps(run)}" for run in found.pop("runs"))
        head = json.dumps(found)[1:-1]
        variants.append(f'  "{name}": {{{head}, "runs": [\n{runs}\n  ]}}')
    joined = ",\n".join(variants)
    return f'{{\n "format": {json.dumps(results["format"])},\n "variants": {{\n{joined}\n }}\n}}\n'


def _place_in_file(name: str) -> tuple[int, str]:
    return NETWORKS.index(parse_experiment(name).variant), name


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock a folder, so that several drill-downs add to one file in turn."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
