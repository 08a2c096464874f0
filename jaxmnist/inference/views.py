"""Test-time augmentation and ensembles: several log-probabilities as one."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from scipy.special import log_softmax

from jaxmnist.augment import affine
from jaxmnist.config import ConfigError
from jaxmnist.inference.predict import Predict

MAX_VIEWS = 1000


def with_views(predict: Predict, views: int) -> Predict:
    """The same network's word on several slightly moved copies of each image, taken together.

    Args:
        predict: the network.
        views: how many; the first is the image itself.

    Raises:
        ConfigError: there is no such number.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise ConfigError(f"views is {views}; expected 1 to {MAX_VIEWS}")
    # Whatever is drawn, it is the same for all images and from one evaluation to the next.
    rng = np.random.default_rng(0)
    drawn = [rng.uniform(-1, 1, 5) for _ in range(views - 1)]
    moves: list[tuple[Any, ...]] = [(0.0, (0.0, 0.0), 1.0, 0.0), *map(_small_move, drawn)]
    move = jax.jit(affine)

    def predict_views(pixels: np.ndarray) -> np.ndarray:
        count = len(pixels)
        said = []
        for parameters in moves:
            of_each = (np.broadcast_to(np.float32(p), (count, *np.shape(p))) for p in parameters)
            said.append(predict(np.asarray(move(pixels, *of_each))))
        return together(said)

    return predict_views


def _small_move(drawn: np.ndarray) -> tuple[float, tuple[float, float], float, float]:
    """Angle, shift, scale and shear of `augment.affine`: half of what the recipe draws or less."""
    angle, x, y, scale, shear = drawn
    return 5 * angle, (round(1.4 * x), round(1.4 * y)), 1 + 0.08 * scale, 5 * shear


def together(said: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several log-probabilities, made log-probabilities again.

    Args:
        said: float32 `[N, 10]` each.

    Returns:
        float32 `[N, 10]`.
    """
    return log_softmax(np.mean(said, axis=0), axis=1).astype(np.float32)
