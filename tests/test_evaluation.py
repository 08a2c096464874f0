"""Evaluations worked by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmnist.analysis import evaluation


def predicted(*choices):
    """Log-probabilities of (digit, probability) each; the other digits share the rest equally."""
    rows = []
    for digit, probability in choices:
        row = np.full(10, (1 - probability) / 9)
        row[digit] = probability
        rows.append(np.log(row))
    return np.array(rows, np.float32)


def test_an_evaluation_worked_by_hand():
    log_probs = predicted((3, 0.9), (3, 0.8), (5, 0.7), (8, 0.95))
    one = evaluation.evaluate(log_probs, np.array([3, 5, 5, 3], np.uint8))
    assert (one.count, one.correct, one.accuracy) == (4, 2, 50.0)
    # Wilson: centre (2 + 1.9208) / (4 + 3.8415) = 0.5; half its width 0.35 (Newcombe 1998).
    assert (one.low, one.high) == (pytest.approx(15.0, abs=0.05), pytest.approx(85.0, abs=0.05))
    nats = [-np.log(p) for p in (0.9, 0.2 / 9, 0.7, 0.05 / 9)]
    assert one.loss == pytest.approx(np.mean(nats), rel=1e-6)
    assert one.confusion.sum() == 4
    assert list(one.confusion[[3, 5, 5, 3], [3, 3, 5, 8]]) == [1] * 4
    assert [one.precision[digit] for digit in (3, 5, 8, 0)] == [50.0, 100.0, 0.0, None]
    assert [one.recall[digit] for digit in (3, 5, 8, 0)] == [50.0, 50.0, None, None]
    assert [(m.index, m.label, m.said) for m in one.mistakes] == [(3, 3, 8), (1, 5, 3)]
    assert [m.confidence for m in one.mistakes] == pytest.approx([0.95, 0.8])


def test_calibration_worked_by_hand():
    bins = evaluation.calibration(
        np.array([0.70, 0.72, 0.99, 1.0, 0.2]), np.array([True, False, True, True, False])
    )
    filled = [(round(15 * b.high), b.count, b.confidence, b.accuracy) for b in bins if b.count]
    # Bins are (2/15, 3/15], (10/15, 11/15], (14/15, 1]: the upper end is in.
    assert filled == [
        (3, 1, pytest.approx(0.2), 0.0),
        (11, 2, pytest.approx(0.71), 50.0),
        (15, 2, pytest.approx(0.995), 100.0),
    ]
    assert bins[14].low_accuracy == pytest.approx(34.24, abs=0.01)  # Wilson of 2 in 2
    assert bins[14].high_accuracy == pytest.approx(100)
    assert evaluation.calibration_error(bins) == pytest.approx((20 + 2 * 21 + 2 * 0.5) / 5)


def test_only_the_most_confident_mistakes_are_kept():
    confidences = np.linspace(0.3, 0.9, 50)
    log_probs = predicted(*((1, p) for p in confidences))
    mistakes = evaluation.evaluate(log_probs, np.zeros(50, np.uint8)).mistakes
    assert [m.index for m in mistakes] == list(range(49, 13, -1))


def test_networks_are_compared_on_the_images_where_they_differ():
    labels = np.zeros(8, np.uint8)
    first = predicted(*[(0, 0.9)] * 2, *[(1, 0.9)] * 6)
    second = predicted((1, 0.9), *[(0, 0.9)] * 6, (1, 0.9))
    # One lost, five gained: two-sided, 2 (1 + 6) / 64.
    assert evaluation.compare(first, second, labels) == (5, 1, pytest.approx(14 / 64))
    assert evaluation.compare(first, first, labels) == (0, 0, 1.0)


@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_every_image_is_counted_once(count, seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, 10)).astype(np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    one = evaluation.evaluate(log_probs, rng.integers(0, 10, count))
    assert one.confusion.sum() == sum(b.count for b in one.bins) == count
    assert one.confusion.trace() == one.correct
    assert one.low <= one.accuracy <= one.high
    assert 0 <= one.calibration_error <= 100
