"""Runs tested on images held out of the training set, for choices between recipes.

Each finished run is a line of JSON with its config and metrics.
"""

import contextlib
import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from scipy.stats import ttest_1samp

from jaxmnist.config import TrainConfig
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

METRICS = ("final_test_loss", "final_test_accuracy", "best_test_accuracy", "train_seconds")

ByRun = Mapping[tuple[int, int], float]  # by fold and seed


def read(file: Path) -> list[dict[str, Any]]:
    """Return the finished runs; skip incomplete lines, which a killed process may leave."""
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def add(file: Path, run: Run) -> None:
    """Append a finished run of one seed."""
    metrics = {name: run.summary[name] for name in METRICS}
    line = {
        **dataclasses.asdict(run.config),
        **{name: value[0] if isinstance(value, list) else value for name, value in metrics.items()},
    }
    file.touch()
    run_folder.append(file, json.dumps(line))


def missing(file: Path, config: TrainConfig, seeds: Sequence[int]) -> list[int]:
    """Return the seeds without a finished run of a config (and its fold)."""
    finished = by_run(file, config)
    return [seed for seed in seeds if (config.fold, seed) not in finished]


def by_run(file: Path, config: TrainConfig, metric: str = "final_test_loss") -> ByRun:
    """Return a metric of the finished runs of a config with any fold and seed."""
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    found = {}
    for line in read(file):
        fold, seed = line["fold"], line["seed"]
        # Lines of earlier versions lack fields, which have the recipe's values.
        values = {name: line[name] for name in fields if name in line}
        if values["recipe"] != config.recipe:
            continue
        if TrainConfig(**values) == dataclasses.replace(config, fold=fold, seed=seed):
            found[fold, seed] = line[metric]
    return found


def over_folds(values: ByRun) -> list[float]:
    """Return the mean over the seeds of each fold.

    The runs of a fold share their training and held-out images, so they are not independent.
    """
    of_fold = defaultdict(list)
    for (fold, _), value in values.items():
        of_fold[fold].append(value)
    return [fmean(of_seeds) for of_seeds in of_fold.values()]


def compare(first: ByRun, other: ByRun) -> tuple[float, float | None]:
    """Return the mean difference over folds, and the p-value of a paired t-test.

    Unlike the sign-flip test, the t-test can reach any p-value with two folds, because it assumes
    normally distributed differences.

    Args:
        first: the losses of the baseline.
        other: the losses of another config, for some of the same runs.
    """
    differences = over_folds({run: other[run] - first[run] for run in other})
    if len(set(differences)) == 1:  # the test needs a standard deviation
        return differences[0], None
    test: Any = ttest_1samp(differences, 0)
    return fmean(differences), float(test.pvalue)
