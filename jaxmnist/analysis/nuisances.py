"""Synthetic photos of digits on paper, with common disturbances.

A nuisance is a function `(rng, photo) -> photo` of a float image `[H, W]`, 0 to 255. The random
generator determines its strength, side and position.
"""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image
from scipy import ndimage

Nuisance = Callable[[np.random.Generator, np.ndarray], np.ndarray]


def photo_of(digit: np.ndarray, rng: np.random.Generator, nuisance: str = "clean") -> np.ndarray:
    """Return a photo of a digit on paper.

    Args:
        digit: uint8 `[28, 28]`, white on black.
        rng: the generator for the scale, the grey levels and the nuisance.
        nuisance: a name in `NUISANCES`.

    Returns:
        uint8 `[H, W]`, dark on light, after JPEG compression.
    """
    scale = int(rng.integers(8, 15))
    shape = Image.fromarray(digit).resize((28 * scale, 28 * scale), Image.Resampling.BICUBIC)
    ink = ndimage.gaussian_filter(np.asarray(shape, float) / 255, 0.15 * scale)
    ink = 1 / (1 + np.exp(-10 * (ink - 0.4)))
    ink = (ink - ink.min()) / max(float(np.ptp(ink)), 1e-9)
    paper, pen = rng.uniform(215, 245), rng.uniform(20, 70)
    texture = ndimage.gaussian_filter(rng.normal(0, 3, ink.shape), 1)
    photo = NUISANCES[nuisance](rng, (paper + texture) * (1 - ink) + pen * ink)
    return _jpeg(ndimage.gaussian_filter(photo, 0.5), int(rng.integers(70, 96)))


def _jpeg(photo: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(np.clip(photo, 0, 255).astype(np.uint8)).save(file, "jpeg", quality=quality)
    return np.asarray(Image.open(file))


def _falling_light(rng: np.random.Generator, photo: np.ndarray, least: float) -> np.ndarray:
    across = _distance_along(photo.shape, rng.uniform(0, 2 * np.pi))
    return photo * (1 - (1 - least) * across)


def _vignette(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    rows, columns = (np.linspace(-1, 1, length) for length in photo.shape)
    radius = (rows[:, None] ** 2 + columns**2) / 2
    return photo * (1 - rng.uniform(0.15, 0.4) * radius)


def _shadow(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    across = _distance_along(photo.shape, rng.uniform(0, 2 * np.pi))
    softness = rng.uniform(0.005, 0.05)
    edge = 1 / (1 + np.exp(-(across - rng.uniform(0.3, 0.7)) / softness))
    return photo * (1 - rng.uniform(0.2, 0.4) * edge)


def _distance_along(shape: tuple[int, ...], angle: float) -> np.ndarray:
    """Return the position of each pixel along a direction, from 0 to 1."""
    rows, columns = (np.linspace(-1, 1, length) for length in shape)
    along = np.sin(angle) * rows[:, None] + np.cos(angle) * columns
    return (along - along.min()) / np.ptp(along)


def _lines(rng: np.random.Generator, photo: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    period = rng.uniform(0.1, 0.25) * len(photo)
    width, grey = rng.integers(1, 4), rng.uniform(90, 190)
    lined = photo.copy()
    for axis in axes:
        for start in np.arange(rng.uniform(0, period), len(photo), period).astype(int):
            line = [slice(None), slice(None)]
            line[axis] = slice(start, start + width)
            lined[tuple(line)] = np.minimum(lined[tuple(line)], grey)
    return lined


def _dark_strip(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    turns = int(rng.integers(4))
    turned = np.rot90(photo, turns).copy()
    turned[: rng.integers(2, 9)] = rng.uniform(20, 110)
    return np.rot90(turned, -turns)


def _desk(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    widths = rng.integers(3, 40, (2, 2))
    sides = rng.permutation(np.arange(4) < rng.integers(1, 5)).reshape(2, 2)
    desk = np.pad(photo, widths * sides, constant_values=rng.uniform(30, 130))
    return ndimage.rotate(desk, rng.uniform(-1, 1), reshape=False, order=1, mode="nearest")


def _form_box(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    width, grey = int(rng.integers(1, 5)), rng.uniform(30, 150)
    margin = int(rng.uniform(0.02, 0.1) * len(photo))
    inside = slice(margin + width, -margin - width)
    box = np.zeros(photo.shape, bool)
    box[margin : len(box) - margin, margin : len(box) - margin] = True
    box[inside, inside] = False
    return np.where(box, np.minimum(photo, grey), photo)


def _next_digit(rng: np.random.Generator, photo: np.ndarray) -> np.ndarray:
    """Add part of a ring or a stroke, about as tall as the digit, at the left or right border."""
    size = len(photo)
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    half_height, half_width = rng.uniform(0.5, 0.7), rng.uniform(0.25, 0.45)
    thickness = rng.uniform(0.1, 0.2)
    centre = 1 + half_width - rng.uniform(0.1, 0.25)
    radius = np.hypot(rows / half_height, (columns - centre) / half_width)
    part = np.abs(radius - 1) < thickness / half_width / 1.5
    if rng.random() < 0.3:
        slant = rng.uniform(-0.2, 0.2)
        stroke = np.abs(columns - 0.97 - slant * rows) < thickness / 2
        part = stroke & (np.abs(rows) < half_height)
    part = part if rng.random() < 0.5 else part[:, ::-1]
    # Keep a gap, so that the digits do not touch.
    middle = (photo.min() + photo.max()) / 2
    near = ndimage.binary_dilation(photo < middle, iterations=size // 60)
    part &= np.logical_not(near)
    soft = ndimage.gaussian_filter(part.astype(float), 1)
    return photo * (1 - soft) + photo.min() * soft


# Same order as the table in docs/pictures.md.
NUISANCES: dict[str, Nuisance] = {
    "clean": lambda rng, photo: photo,
    "light falling to 0.7": functools.partial(_falling_light, least=0.7),
    "light falling to 0.6": functools.partial(_falling_light, least=0.6),
    "vignette": _vignette,
    "shadow": _shadow,
    "ruled lines": functools.partial(_lines, axes=(0,)),
    "squared lines": functools.partial(_lines, axes=(0, 1)),
    "grain": lambda rng, photo: photo + rng.normal(0, 18, photo.shape),
    "dark strip": _dark_strip,
    "desk": _desk,
    "form box": _form_box,
    "part of the next digit": _next_digit,
}
