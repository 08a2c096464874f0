"""Evaluation of predictions: accuracy, calibration and mistakes."""

import dataclasses
from typing import Any

import numpy as np
from scipy.stats import binomtest

from jaxmnist.data.dataset import CLASSES

BINS = 15
MISTAKES = 36


@dataclasses.dataclass(frozen=True)
class Bin:
    """Predictions of similar confidence."""

    low: float  # lowest probability
    high: float  # highest probability
    count: int
    confidence: float | None  # mean probability of the predictions; None if empty
    accuracy: float | None  # in percent
    low_accuracy: float | None  # lower end of its 95 % interval
    high_accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A misclassified image."""

    index: int
    label: int
    said: int  # the prediction
    confidence: float  # probability of the prediction


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Metrics of a network on a data set; accuracies in percent."""

    count: int
    correct: int
    accuracy: float
    low: float  # lower end of the 95 % interval, by Wilson's method
    high: float
    loss: float  # nats per image
    precision: list[float | None]  # per predicted digit; None if never predicted
    recall: list[float | None]  # per true digit; None if there are no images of it
    confusion: np.ndarray  # int [10, 10]: rows are labels, columns predictions
    calibration_error: float
    bins: list[Bin]
    mistakes: list[Mistake]  # the most confident mistakes, in decreasing order

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as JSON-serialisable values."""
        return {**dataclasses.asdict(self), "confusion": self.confusion.tolist()}


def evaluate(log_probs: np.ndarray, labels: np.ndarray) -> Evaluation:
    """Compare predictions with labels.

    Args:
        log_probs: float32 `[N, 10]`, N at least 1.
        labels: integers `[N]`.
    """
    count, labels = len(labels), labels.astype(int)
    predictions = log_probs.argmax(axis=1)
    confidence = np.exp(log_probs.max(axis=1).astype(float))
    right = predictions == labels
    correct = int(right.sum())
    low, high = interval(correct, count)
    confusion = np.zeros((CLASSES, CLASSES), int)
    np.add.at(confusion, (labels, predictions), 1)
    bins = calibration(confidence, right)
    return Evaluation(
        count=count,
        correct=correct,
        accuracy=100 * correct / count,
        low=low,
        high=high,
        loss=float(-log_probs[np.arange(count), labels].astype(float).mean()),
        precision=_shares(confusion.diagonal(), confusion.sum(axis=0)),
        recall=_shares(confusion.diagonal(), confusion.sum(axis=1)),
        confusion=confusion,
        calibration_error=calibration_error(bins),
        bins=bins,
        mistakes=[
            Mistake(int(i), int(labels[i]), int(predictions[i]), float(confidence[i]))
            for i in np.argsort(-confidence, kind="stable")
            if not right[i]
        ][:MISTAKES],
    )


def calibration(confidence: np.ndarray, right: np.ndarray) -> list[Bin]:
    """Group predictions by confidence, in bins of equal width from 0 to 1.

    Args:
        confidence: probabilities of the predictions, `[N]`.
        right: correctness of the predictions, bool `[N]`.
    """
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    bins = []
    for place in range(BINS):
        inside = right[places == place]
        metrics: tuple[float | None, ...] = (None, None, None, None)
        if len(inside):
            mean = float(confidence[places == place].mean())
            metrics = (mean, 100 * float(inside.mean()), *interval(int(inside.sum()), len(inside)))
        bins.append(Bin(float(edges[place]), float(edges[place + 1]), len(inside), *metrics))
    return bins


def interval(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of an accuracy, in percent, by Wilson's method.

    Args:
        correct: the number of correct predictions.
        count: the number of predictions, at least one.
    """
    ends = binomtest(correct, count).proportion_ci(method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def calibration_error(bins: list[Bin]) -> float:
    """Return the expected calibration error, in percentage points.

    This is the mean distance between confidence and accuracy over bins, weighted by the number of
    predictions in each. Source: Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural
    networks", ICML 2017, equation 3.
    """
    total = sum(one.count for one in bins)
    return sum(
        one.count / total * abs(100 * one.confidence - one.accuracy)
        for one in bins
        if one.confidence is not None and one.accuracy is not None
    )


def compare(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> tuple[int, int, float]:
    """Compare two networks on the same images by McNemar's exact test.

    Args:
        first: log-probabilities of one network, float32 `[N, 10]`.
        second: log-probabilities of the other.
        labels: integers `[N]`.

    Returns:
        The number of images that only the second network classifies correctly, the number that
        only the first classifies correctly, and the two-sided p-value.
    """
    one, other = (log_probs.argmax(axis=1) == labels for log_probs in (first, second))
    gains, losses = int((other & ~one).sum()), int((one & ~other).sum())
    p = binomtest(gains, gains + losses).pvalue if gains + losses else 1.0
    return gains, losses, float(p)


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    """Return each part as a percentage of its whole; None if the whole is 0."""
    return [
        100 * float(part / whole) if whole else None
        for part, whole in zip(parts, wholes, strict=True)
    ]
