"""The results of a drill-down: every finished run, by what was trained, in one JSON file.

What is in the file is finished, and nothing else is: whoever has the file goes on from it.
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

from jaxmnist.config import ConfigError, TrainConfig, by_name, check_format, spoken
from jaxmnist.recipes import NETWORKS, RECIPES, VARIANTS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

RESULTS_FORMAT = 1
# A thousand seeds of each network are a tenth of this.
MAX_RESULTS_BYTES = 256 << 20

# Of each epoch, from the rows of metrics.jsonl.
CURVES = ("train_loss", "train_accuracy", "test_loss", "test_accuracy", "train_seconds")
# Of each run, from its summary.json; where it has lists, there is one entry.
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

# Its runs take hours: it may have fewer seeds than the others, the first ones.
COSTLY = "skeleton"


class IncompleteError(ConfigError):
    """A run that the report needs is not in the results."""


class Published(NamedTuple):
    """What the original says of a network, one run each, in percent (its README and notebooks)."""

    train: float
    headline: float  # test accuracy; of the best epoch, except for skeleton
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
    """One network of the ladder, or one trained otherwise, with all its runs."""

    name: str  # as `TrainConfig.name`: the network, with its recipe if that is another
    parameters: int
    mflop_per_image: float  # of the forward pass
    runs: list[dict[str, Any]]  # by seed, as they are in the file

    @property
    def epochs(self) -> int:
        """Passes over the training images."""
        return self.runs[0]["config"]["epochs"]

    @property
    def dataset(self) -> str:
        """What it was trained on."""
        return self.runs[0]["config"]["dataset"]

    @property
    def published(self) -> Published | None:
        """The original's figures, if this is the original's recipe."""
        config = _config_of(self.runs[0])
        whole = TrainConfig(config.variant, seed=config.seed)
        return PUBLISHED.get(self.name) if config == whole else None

    @property
    def cores(self) -> int:
        """How many most of the runs could use, each."""
        return self._most_frequent()[1]

    @property
    def seconds_per_epoch(self) -> float:
        """The median over all epochs of the runs on the most frequent device and core count."""
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
        """Theirs."""
        return [run["seed"] for run in self.runs]

    def by_seed(self, figure: str) -> dict[int, float]:
        """One of `FIGURES` of every run, or `train_test_gap`, in points: final train less test."""
        if figure == "train_test_gap":
            return {
                run["seed"]: run["final_train_accuracy"] - run["final_test_accuracy"]
                for run in self.runs
            }
        return {run["seed"]: run[figure] for run in self.runs}


def read(path: Path) -> dict[str, Any]:
    """Reads the file; one that is not there has no results.

    Raises:
        ConfigError: it is damaged, or a run in it is not whole; the message names it.
        OSError: it cannot be read.
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
    """Puts a finished run into the file; a seed that is there already stays as it is.

    Args:
        path: the file; made with the first run.
        run: as `train` returned it.
        mflop_per_image: millions of additions and multiplications of its network's forward pass.

    Raises:
        ConfigError: as `read`, or there are runs of another config.
        OSError: the disk does not take it.
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
    """The SHA-256 of a file with the seven networks alone; figures made from them carry it."""
    seven = {name: found for name, found in results["variants"].items() if name in VARIANTS}
    return hashlib.sha256(_to_json({**results, "variants": seven}).encode()).hexdigest()


def missing(results: dict[str, Any], name: str, seeds: Sequence[int]) -> list[int]:
    """Those of the seeds that have no finished run under a name."""
    runs = results["variants"].get(name, {"runs": []})["runs"]
    finished = {run["seed"] for run in runs}
    return [seed for seed in seeds if seed not in finished]


def check_same(results: dict[str, Any], config: TrainConfig, whose: str) -> None:
    """Accepts a config that goes with all finished runs.

    Those of its own name have the same but for the seed; all others the same images, and their
    recipes as they are, or all of them changed.

    Args:
        results: what `read` returned.
        config: of a run.
        whose: of which, in words.

    Raises:
        ConfigError: it differs; the message names a run and the fields.
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
    """What was trained under these names, each with all the runs that it has.

    Args:
        results: what `read` returned.
        names: of those that are wanted.

    Raises:
        IncompleteError: there is no run of one; the message names each.
        ConfigError: a run is of another config.
    """
    found = results["variants"]
    _refuse_without([f"run of {name}" for name in names if name not in found])
    rungs = [Rung(name, **found[name]) for name in names]
    for rung in rungs:
        check_same(results, _config_of(rung.runs[0]), f"that of {rung.name}, seed {rung.seeds[0]}")
    return rungs


def ladder(results: dict[str, Any], names: Sequence[str] = VARIANTS) -> list[Rung]:
    """The networks, from the first to the last, if no run is missing.

    Args:
        results: what `read` returned.
        names: of those that are wanted.

    Returns:
        Each with its runs: of the same seeds, but that `COSTLY` may have the first of them only.

    Raises:
        IncompleteError: as `rungs_of`, or a seed is missing; the message names each.
        ConfigError: as `rungs_of`.
    """
    rungs = rungs_of(results, names)
    seeds = sorted({seed for rung in rungs for seed in rung.seeds})
    gone = []
    for rung in rungs:
        wanted = seeds[: len(rung.seeds)] if rung.name == COSTLY else seeds
        if lacking := missing(results, rung.name, wanted):
            gone.append(f"seed {spoken(lacking)} of {rung.name}")
    _refuse_without(gone)
    return rungs


def other_recipes(results: dict[str, Any]) -> list[Rung]:
    """Those of the seven that were trained by a recipe of our own, as far as there are runs.

    Args:
        results: what `read` returned.

    Raises:
        ConfigError: as `rungs_of`.
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
        raise ConfigError(f"{name} has a seed more than once: {spoken(seeds)}")
    for run in found["runs"]:
        try:
            _check_run(name, run)
        except (ConfigError, KeyError, TypeError) as error:
            raise ConfigError(f"the run of {name}, seed {run['seed']}: {error}") from error


def _check_run(name: str, run: dict[str, Any]) -> None:
    """Accepts a run that is whole and says the same everywhere."""
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
    """Accepts configs whose runs may be in one file.

    Raises:
        ConfigError: they are not of the same images, or only some are as in their recipes.
    """
    for config in configs[1:]:
        if _shared(config) != _shared(configs[0]):
            raise ConfigError(
                f"{configs[0].name} would be {_shared(configs[0])} and {config.name} "
                f"{_shared(config)}; such runs do not mix: train them into one --out each"
            )


def _shared(config: TrainConfig) -> dict[str, Any]:
    """What all runs of a file have in common."""
    shared = {name: getattr(config, name) for name in ("dataset", "limit_train", "holdout", "fold")}
    plain = by_name(config.name, seed=config.seed, **shared)
    return {**shared, "as in the recipe": config == plain}


def _place(run: dict[str, Any]) -> tuple[str, int]:
    return run["device"], run["cores"]


def _config_of(run: dict[str, Any]) -> TrainConfig:
    return TrainConfig.from_json(json.dumps(run["config"]))


def _record(run: Run) -> dict[str, Any]:
    """What the file says of a run."""
    figures = {name: run.summary[name] for name in FIGURES}
    curves = {name: [_rounded(row[name]) for row in run.rows] for name in CURVES}
    return {
        "seed": run.config.seed,
        **{name: _rounded(v[0] if isinstance(v, list) else v) for name, v in figures.items()},
        "config": json.loads(run.config.to_json()),
        "curves": curves,
    }


def _rounded(value: Any) -> Any:
    """Six digits after the point: far beyond what seeds have in common."""
    return round(value, 6) if isinstance(value, float) else value


def _to_json(results: dict[str, Any]) -> str:
    """The file's content: a line for each run, so that a difference shows what was added."""
    variants = []
    for name in sorted(results["variants"], key=_place_in_file):
        found = dict(results["variants"][name])
        runs = ",\n".join(f"   {json.dumps(run)}" for run in found.pop("runs"))
        head = json.dumps(found)[1:-1]
        variants.append(f'  "{name}": {{{head}, "runs": [\n{runs}\n  ]}}')
    joined = ",\n".join(variants)
    return f'{{\n "format": {json.dumps(results["format"])},\n "variants": {{\n{joined}\n }}\n}}\n'


def _place_in_file(name: str) -> tuple[int, str]:
    return NETWORKS.index(by_name(name).variant), name


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lets several drill-downs add to one file, one after another."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
