"""Test-time augmentation and ensembles: averages of log-probabilities."""

import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import log_softmax

from jaxmnist.augment import affine
from jaxmnist.config import ConfigError
from jaxmnist.inference.predict import Predict, check_digits, load_runs, make_predict

MAX_VIEWS = 1000


def load_ensemble(path: str | os.PathLike) -> Predict:
    """Return the prediction function of a network for digits, or of an ensemble of its seeds.

    Args:
        path: the folder of a run, or the name of a pretrained network.

    Raises:
        ConfigError: there is no finished run, or it was not trained on digits.
    """
    runs = load_runs(path)
    check_digits(runs)
    each = [make_predict(run) for run in runs]
    return lambda pixels: ensemble([predict(pixels) for predict in each])


def with_tta(predict: Predict, views: int) -> Predict:
    """Return a prediction function that averages over slightly transformed copies of each image.

    Args:
        predict: prediction function of a network.
        views: the number of copies, including the image itself.

    Raises:
        ConfigError: `views` is out of range.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise ConfigError(f"views is {views}; expected 1 to {MAX_VIEWS}")
    # A fixed seed makes the transformations equal for all images and evaluations.
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-1, 1, 5) for _ in range(views - 1)]
    moves: list[tuple[Any, ...]] = [(0.0, (0.0, 0.0), 1.0, 0.0), *map(_small_move, drawn)]
    move = jax.jit(affine)

    def predict_views(pixels: np.ndarray) -> np.ndarray:
        count = len(pixels)
        log_probs = []
        for parameters in moves:
            of_each = (np.broadcast_to(np.float32(p), (count, *np.shape(p))) for p in parameters)
            log_probs.append(predict(np.asarray(move(pixels, *of_each))))
        return ensemble(log_probs)

    return predict_views


def _small_move(drawn: np.ndarray) -> tuple[float, tuple[float, float], float, float]:
    """Return angle, shift, scale and shear for `affine`, at most half of the recipe's."""
    angle, x, y, scale, shear = drawn
    return 5 * angle, (round(1.4 * x), round(1.4 * y)), 1 + 0.08 * scale, 5 * shear


def ensemble(log_probs: Sequence[np.ndarray]) -> np.ndarray:
    """Average log-probabilities and renormalise them.

    Args:
        log_probs: log-probabilities, float32 `[N, 10]` each.

    Returns:
        float32 `[N, 10]`.
    """
    return log_softmax(np.mean(log_probs, axis=0), axis=1).astype(np.float32)
