import chex
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist.metrics import Metrics, compute_metrics, cross_entropy

# Three images, two classes: the losses are log 2, log(1 + e) and log(1 + 1/e).
LOGITS = jnp.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
LABELS = jnp.array([1, 1, 0], jnp.uint8)
LOSSES = np.array([np.log(2), np.log(1 + np.e), np.log(1 + 1 / np.e)])


def test_losses_worked_by_hand():
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS), LOSSES, rtol=1e-6)


def test_sums_worked_by_hand():
    metrics = compute_metrics(LOGITS, LABELS)
    assert (int(metrics.correct), int(metrics.count)) == (1, 3)
    assert metrics.loss == pytest.approx(LOSSES.mean(), rel=1e-6)
    assert metrics.accuracy == pytest.approx(100 / 3)


def test_what_is_not_valid_does_not_count():
    logits = LOGITS.at[2].set(jnp.nan)  # whose largest is the first, its label
    metrics = compute_metrics(logits, LABELS, jnp.array([True, True, False]))
    assert (int(metrics.correct), int(metrics.count)) == (0, 2)
    assert metrics.loss == pytest.approx(LOSSES[:2].mean(), rel=1e-6)


def test_merging_parts_is_measuring_the_whole():
    parts = [compute_metrics(LOGITS[:1], LABELS[:1]), compute_metrics(LOGITS[1:], LABELS[1:])]
    merged = Metrics.zero().merge(parts[0]).merge(parts[1])
    chex.assert_trees_all_close(merged, compute_metrics(LOGITS, LABELS))


def test_no_image_has_no_mean():
    assert np.isnan(Metrics.zero().loss)
    assert np.isnan(Metrics.zero().accuracy)


def test_counts_stay_exact():
    many = Metrics(np.float32(0), np.int32(2**24), np.int32(2**24))
    assert int(many.merge(compute_metrics(LOGITS, LABELS)).count) == 2**24 + 3
