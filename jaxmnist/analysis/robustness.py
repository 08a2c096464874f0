"""Accuracy under shifts of the test images: the measurement, and the file of all measurements.

The file has one line per network and seed, without weights. A later command trains and measures
only what is missing.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from jaxmnist.analysis import evaluation, results, stats
from jaxmnist.analysis.results import IncompleteError
from jaxmnist.analysis.shifts import SHIFTS, shifted
from jaxmnist.analysis.stats import Difference
from jaxmnist.config import ConfigError, TrainConfig, check_format, format_seeds
from jaxmnist.recipes import VARIANTS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

FORMAT = 1
# The networks that are measured by default: `skeleton` takes hours to train.
DEFAULT = (*VARIANTS[1:], "gap/record")
# Values of summary.json that are stored with a measurement.
CONDITIONS = ("steps", "test_count", "device", "git_commit", "versions")
STRENGTHS = {name: list(shift.strengths) for name, shift in SHIFTS.items()}
# The metrics besides the shifts: test images as they are, and digits by other people.
PLAIN, DIGITS = "accuracy", "digits"

Predict = Callable[[np.ndarray], np.ndarray]  # uint8 [N, 28, 28] to log-probabilities [N, 10]


class Digits(NamedTuple):
    """Digits of another data set, prepared like MNIST's."""

    images: np.ndarray  # uint8 [N, 28, 28]
    labels: np.ndarray  # [N]
    pictures: int  # those without exactly one digit are not among the images


class Measured(NamedTuple):
    """A network, trained with one recipe, and the measurements of its seeds."""

    name: str  # `TrainConfig.name`
    runs: list[dict[str, Any]]  # entries of the file, sorted by seed

    @property
    def seeds(self) -> list[int]:
        """Seeds of the measurements."""
        return [run["seed"] for run in self.runs]

    def accuracies(self, shift: str) -> np.ndarray:
        """Return the accuracies in percent under a shift, `[seeds, strengths]`."""
        return np.array([run["shifts"][shift] for run in self.runs])

    def at(self, shift: str, strength: float) -> dict[int, float]:
        """Return the accuracy at one strength, by seed."""
        place = SHIFTS[shift].strengths.index(strength)
        return {run["seed"]: run["shifts"][shift][place] for run in self.runs}

    def by_seed(self, metric: str) -> dict[int, float]:
        """Return a metric by seed.

        Args:
            metric: a shift, for the mean accuracy over all strengths that change the images;
                `PLAIN`; or `DIGITS`, for the seeds that were measured on them.
        """
        if metric in (PLAIN, DIGITS):
            return {run["seed"]: run[metric] for run in self.runs if run[metric] is not None}
        strengths, neutral, *_ = SHIFTS[metric]
        beyond = [place for place, strength in enumerate(strengths) if strength != neutral]
        return {
            run["seed"]: fmean(run["shifts"][metric][place] for place in beyond)
            for run in self.runs
        }


class Step(NamedTuple):
    """A comparison of two networks; the difference is the second minus the first."""

    first: Measured
    second: Measured
    difference: Difference  # of the metric's `by_seed`
    p: float | None  # corrected for all steps of the same metric

    @property
    def is_shown(self) -> bool:
        """True if the seeds show a difference."""
        return self.p is not None and self.p < stats.LEVEL


def measure(
    predict: Predict, images: np.ndarray, labels: np.ndarray, digits: Digits | None
) -> dict[str, Any]:
    """Measure a network on shifted test images and on other digits.

    Args:
        predict: the network.
        images: the test images, uint8 `[N, 28, 28]`.
        labels: their labels `[N]`.
        digits: digits by other people, if there are any.

    Returns:
        The accuracy in percent and calibration error in points of the images as they are; by shift,
        the accuracy at each strength, and the calibration error at the moderate one; and the
        accuracy on `digits` or None.
    """
    plain = _measure_images(predict, images, labels)
    shifts, calibration = {}, {}
    for name, shift in SHIFTS.items():
        found = {
            strength: plain
            if strength == shift.neutral
            else _measure_images(predict, shifted(name, images, strength), labels)
            for strength in shift.strengths
        }
        shifts[name] = [accuracy for accuracy, _ in found.values()]
        calibration[name] = found[shift.moderate][1]
    accuracy, error = plain
    return {
        PLAIN: accuracy,
        "calibration_error": error,
        "shifts": shifts,
        "moderate_calibration_error": calibration,
        DIGITS: None if digits is None else _measure_digits(predict, digits),
    }


def _measure_images(
    predict: Predict, images: np.ndarray, labels: np.ndarray
) -> tuple[float, float]:
    """Return the accuracy in percent, and the calibration error in points."""
    found = evaluation.evaluate(predict(images), labels)
    return round(found.accuracy, 4), round(found.calibration_error, 4)


def _measure_digits(predict: Predict, digits: Digits) -> float:
    right = predict(digits.images).argmax(axis=1) == digits.labels
    return round(100 * float(right.sum()) / digits.pictures, 4)


def read(file: Path) -> dict[str, Measured]:
    """Read the measurements by name, in the order of the course; a missing file has none.

    Raises:
        ConfigError: the file is damaged, of other shifts, or its networks do not match each other.
        OSError: the file cannot be read.
    """
    networks: dict[str, Measured] = {}
    for run in _read_runs(file):
        networks.setdefault(run["name"], Measured(run["name"], [])).runs.append(run)
    return networks


def _read_runs(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    try:
        content = json.loads(file.read_text())
        check_format("the file", content["format"], FORMAT)
        if content["strengths"] != STRENGTHS:
            raise ConfigError("it has other shifts than this version; pass another --out")
        runs = sorted(content["runs"], key=_place)
        results.check_same_changes([TrainConfig.from_dict(run["config"]) for run in runs])
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{file} is damaged: {error!r}; restore an older one") from error
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return runs


def digest(file: Path) -> str:
    """Return the SHA-256 of the file, which its plot contains."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_mix(file: Path, configs: Sequence[TrainConfig]) -> None:
    """Check that networks to measure have the same images and epochs as those in the file.

    Raises:
        ConfigError: two deviate differently from their recipes, or `read` fails.
        OSError: the file cannot be read.
    """
    measured = [TrainConfig.from_dict(run["config"]) for run in _read_runs(file)]
    results.check_same_changes([*measured, *configs])


def missing(file: Path, config: TrainConfig, seeds: Sequence[int]) -> list[int]:
    """Return the seeds of a config without a measurement.

    Raises:
        ConfigError, OSError: as `read`.
    """
    found = {run["seed"] for run in _read_runs(file) if run["name"] == config.name}
    return [seed for seed in seeds if seed not in found]


def add(file: Path, run: Run, measured: dict[str, Any]) -> None:
    """Add the measurement of a run of one seed to the file, unless there is one already.

    Args:
        file: the file; created with the first measurement.
        run: the trained network.
        measured: the result of `measure`.

    Raises:
        ConfigError: `read` fails, or the file has networks that do not match.
        OSError: the file cannot be written.
    """
    config = run.config
    with results.alone(file.parent):
        if not missing(file, config, [config.seed]):
            return
        check_mix(file, [config])
        entry = {
            "name": config.name,
            "seed": config.seed,
            **measured,
            **{name: run.summary[name] for name in CONDITIONS},
            "config": config.to_dict(),
        }
        run_folder.write(file, _to_json([*_read_runs(file), entry]))


def _place(run: dict[str, Any]) -> tuple[tuple[int, str], int]:
    """Return a sort key: the order of the course, then the seed."""
    return results.place_in_file(run["config"]["variant"], run["name"]), run["seed"]


def _to_json(runs: Sequence[dict[str, Any]]) -> str:
    """Return the file's content, one line per run, so that a diff shows the added runs."""
    lines = ",\n".join(f"  {json.dumps(run)}" for run in sorted(runs, key=_place))
    strengths = json.dumps(STRENGTHS)
    return f'{{\n "format": {FORMAT},\n "strengths": {strengths},\n "runs": [\n{lines}\n ]\n}}\n'


def steps(networks: Sequence[Measured], metric: str) -> list[Step]:
    """Compare each network with the one before it in the course, seed by seed.

    A network with another recipe, such as gap/record, is compared with the variant before it.

    Args:
        networks: the networks in the order of the course.
        metric: a metric of `Measured.by_seed`.

    Raises:
        IncompleteError: two networks to compare have no seed in common.
    """
    pairs, rung = [], None
    for network in networks:
        if rung is not None:
            pairs.append((rung, network))
        if network.name in VARIANTS:
            rung = network
    found = [_compare(first, second, metric) for first, second in pairs]
    corrected = stats.holm([difference.p for difference in found])
    return [
        Step(first, second, difference, p)
        for (first, second), difference, p in zip(pairs, found, corrected, strict=True)
    ]


def _compare(first: Measured, second: Measured, metric: str) -> Difference:
    values = [network.by_seed(metric) for network in (first, second)]
    if not values[0].keys() & values[1].keys():
        have = " and ".join(
            f"{network.name} ({format_seeds(list(found)) or 'none'})"
            for network, found in zip((first, second), values, strict=True)
        )
        raise IncompleteError(f"{metric} has no seed in common of {have}; measure the missing ones")
    return stats.compare(*values)
