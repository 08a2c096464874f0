"""Shifts of test images: moved, dimmed, noisy, blurred or partly hidden digits.

A shift has several strengths, of which one changes nothing. Random signs, directions, places and
noise have a fixed seed, and do not depend on the strength: every network sees the same images, and
from one strength to the next an image changes further in the same way.

Moves interpolate bilinearly. The nearest pixel, which the notebooks' augmentation takes, would give
jagged strokes, and with them an advantage to networks that were trained on such strokes.
"""

import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from jaxmnist.augment import SIZE, Affine, adjust_brightness, adjust_contrast, bilinear

Images = np.ndarray  # uint8 [N, 28, 28]


class Shift(NamedTuple):
    """A shift of images, with the strengths at which it is measured."""

    strengths: tuple[float, ...]  # in increasing order
    neutral: float  # the strength that changes nothing
    moderate: float  # the strength that the text describes
    unit: str  # description of a strength, for axes and tables
    moved: str  # description of the images at a strength, with {} in place of the number
    apply: Callable[[Images, float, np.random.Generator], Images]


def shifted(name: str, images: np.ndarray, strength: float) -> np.ndarray:
    """Apply a shift to images; the same arguments give the same images.

    Args:
        name: the name of a shift in `SHIFTS`.
        images: uint8 `[N, 28, 28]`.
        strength: the strength, in the unit of the shift.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return SHIFTS[name].apply(images, strength, rng)


def _rotation(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return _move(images, angle=strength * _signs(rng, len(images)))


def _shift(images: Images, strength: float, rng: np.random.Generator) -> Images:
    # Along an axis, so that the digit moves by whole pixels and stays sharp.
    directions = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]])
    return _move(images, translate=strength * rng.choice(directions, len(images)))


def _scale(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return _move(images, scale=np.full(len(images), strength))


def _shear(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return _move(images, shear=strength * _signs(rng, len(images)))


def _brightness(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return np.asarray(_with_brightness(images, np.full(len(images), strength, np.float32)))


def _contrast(images: Images, strength: float, rng: np.random.Generator) -> Images:
    return np.asarray(_with_contrast(images, np.full(len(images), strength, np.float32)))


def _noise(images: Images, strength: float, rng: np.random.Generator) -> Images:
    noise = rng.standard_normal(images.shape, np.float32)
    return _to_bytes(images + np.float32(strength) * noise)


def _blur(images: Images, strength: float, rng: np.random.Generator) -> Images:
    sigmas = (0, strength, strength)
    return _to_bytes(ndimage.gaussian_filter(images.astype(np.float32), sigmas, mode="constant"))


def _occlusion(images: Images, strength: float, rng: np.random.Generator) -> Images:
    side = int(strength)
    corners = (rng.random((2, len(images), 1)) * (SIZE - side + 1)).astype(int)
    rows, columns = ((np.arange(SIZE) >= at) & (np.arange(SIZE) < at + side) for at in corners)
    return np.where(rows[:, :, None] & columns[:, None, :], 0, images).astype(np.uint8)


def _signs(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], count)


def _move(images: Images, **parameters: np.ndarray) -> Images:
    """Apply affine maps, one per image; the parameters left out change nothing."""
    count = len(images)
    still = {
        "angle": np.zeros(count),
        "translate": np.zeros((count, 2)),
        "scale": np.ones(count),
        "shear": np.zeros(count),
    }
    maps = {name: value.astype(np.float32) for name, value in {**still, **parameters}.items()}
    return np.asarray(_bilinear(images, Affine(**maps)))


@jax.jit
def _bilinear(images: jax.Array, maps: Affine) -> jax.Array:
    return jnp.round(bilinear(images, maps)).astype(jnp.uint8)


_with_brightness, _with_contrast = jax.jit(adjust_brightness), jax.jit(adjust_contrast)


def _to_bytes(values: np.ndarray) -> Images:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


SHIFTS = {
    "rotation": Shift(
        (0, 10, 20, 30, 40, 50, 60), 0, 30, "degrees", "rotated by {} degrees", _rotation
    ),
    "shift": Shift((0, 1, 2, 3, 4, 6, 8), 0, 4, "pixels", "shifted by {} pixels", _shift),
    "scale": Shift(
        (0.5, 0.6, 0.8, 1, 1.2, 1.4, 1.6), 1, 0.6, "factor", "scaled to {} of the size", _scale
    ),
    "shear": Shift((0, 10, 20, 30, 40, 50), 0, 30, "degrees", "sheared by {} degrees", _shear),
    "brightness": Shift(
        (0.1, 0.2, 0.3, 0.5, 1, 2, 4), 1, 0.3, "factor", "at {} of the brightness", _brightness
    ),
    "contrast": Shift(
        (0.1, 0.2, 0.3, 0.5, 1, 2, 4), 1, 0.3, "factor", "at {} of the contrast", _contrast
    ),
    "noise": Shift(
        (0, 20, 40, 60, 80, 100, 120),
        0,
        60,
        "standard deviation, grey levels",
        "with noise of {} grey levels",
        _noise,
    ),
    "blur": Shift(
        (0, 0.5, 1, 1.5, 2, 2.5, 3),
        0,
        1.5,
        "standard deviation, pixels",
        "blurred by {} pixels",
        _blur,
    ),
    "occlusion": Shift(
        (0, 4, 6, 8, 10, 12, 14),
        0,
        8,
        "side, pixels",
        "behind a black square of side {}",
        _occlusion,
    ),
}
