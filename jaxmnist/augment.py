"""Augmentation on the device, identical to torchvision's on 28x28 grey images, pixel for pixel.

The order is the notebooks': a rotation, an affine map, then brightness and contrast in random
order. Sampling is nearest-neighbour. (The notebooks' saturation and hue do not change grey images.)
Images are uint8 `[N, 28, 28]`, with one parameter per image.

Sources: torchvision.transforms.functional (`_get_inverse_affine_matrix`, `affine`, `rotate`) for
the maps, Pillow's Geometry.c (`affine_fixed`) for the sampling and Blend.c for the jitter.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

SIZE = 28
ROTATE_FILL = 1
AFFINE_FILL = 0


class Affine(NamedTuple):
    """Affine maps, one per image; float32 `[N]` unless noted. The arguments of `affine`."""

    angle: jax.Array  # degrees, clockwise
    translate: jax.Array  # [N, 2], pixels, x then y
    scale: jax.Array
    shear: jax.Array  # degrees, along x


class Light(NamedTuple):
    """Brightness and contrast of each image; float32 `[N]` unless noted."""

    brightness: jax.Array
    contrast: jax.Array
    brightness_first: jax.Array  # bool [N]


class Parameters(NamedTuple):
    """Parameters of the notebooks' augmentation."""

    rotation: jax.Array  # degrees, counter-clockwise, float32 [N]
    affine: Affine
    light: Light


def draw_parameters(key: jax.Array, count: int) -> Parameters:
    """Draw augmentation parameters for `count` images from the notebooks' ranges."""
    # One draw is faster than nine.
    uniform = iter(jax.random.uniform(key, (9, count), jnp.float32))

    def between(low, high):
        return low + (high - low) * next(uniform)

    return Parameters(
        between(-6, 6),
        Affine(
            angle=between(-7, 7),
            translate=jnp.round(jnp.stack([between(-2.8, 2.8), between(-2.8, 2.8)], axis=1)),
            scale=between(0.8, 1.2),
            shear=between(-10, 10),
        ),
        Light(between(0.6, 1.4), between(0.6, 1.4), brightness_first=between(-1, 1) < 0),
    )


def draw_affine(key: jax.Array, count: int, strength: float = 1.0) -> Affine:
    """Draw `count` affine maps; strength 1 spans the notebooks' rotation plus affine map."""
    drawn = jax.random.uniform(key, (5, count), jnp.float32, minval=-strength, maxval=strength)
    angle, x, y, scale, shear = drawn
    return Affine(13 * angle, 2.8 * jnp.stack([x, y], axis=1), 1 + 0.2 * scale, 10 * shear)


def draw_affine_and_light(key: jax.Array, count: int) -> tuple[Affine, Light]:
    """Draw affine maps, brightness and contrast for `count` images from the notebooks' ranges."""
    affine_key, light_key = jax.random.split(key)
    return draw_affine(affine_key, count), draw_parameters(light_key, count).light


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Augment every image as the notebooks do, with its own random parameters.

    Args:
        key: the random key for the whole batch.
        images: uint8 `[N, 28, 28]`.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    return apply_parameters(images, draw_parameters(key, len(images)))


def apply_parameters(images: jax.Array, p: Parameters) -> jax.Array:
    """Augment images, uint8 `[N, 28, 28]`, with given parameters."""
    # The affine map selects pixels of the rotated image, and the rotation pixels of the original.
    # Composing the maps gives the same pixels with one look-up per pixel instead of two.
    places = _source(_affine_map(*p.affine), _grid())
    rotated = _sample(images, _source(_rotation_map(p.rotation), places), ROTATE_FILL)
    inside = _inside(places).reshape(images.shape)
    images = jnp.where(inside, rotated, AFFINE_FILL).astype(jnp.uint8)
    return _jitter(images, p.light)


def rotate(images: jax.Array, degrees: jax.Array) -> jax.Array:
    """Rotate images counter-clockwise about the centre; pixels from outside are 1.

    Args:
        images: uint8 `[N, 28, 28]`.
        degrees: angles, float32 `[N]`.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    return _sample(images, _source(_rotation_map(degrees), _grid()), ROTATE_FILL)


def affine(
    images: jax.Array, angle: jax.Array, translate: jax.Array, scale: jax.Array, shear: jax.Array
) -> jax.Array:
    """Rotate, shear, scale and shift images about the centre; pixels from outside are 0.

    Args:
        images: uint8 `[N, 28, 28]`.
        angle: angles in degrees, clockwise, `[N]`.
        translate: shifts along x and y in pixels, `[N, 2]`.
        scale: scale factors `[N]`.
        shear: shear angles along x in degrees, `[N]`.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    places = _source(_affine_map(angle, translate, scale, shear), _grid())
    return _sample(images, places, AFFINE_FILL)


def bilinear(images: jax.Array, maps: Affine) -> jax.Array:
    """Apply affine maps with bilinear interpolation; shifts need not be whole pixels.

    Args:
        images: uint8 `[N, 28, 28]`.
        maps: the affine maps.

    Returns:
        float32 `[N, 28, 28]`, 0 to 255.
    """
    # Pixel values belong to pixel centres, so subtract half a pixel.
    places = _affine_map(*maps) @ _with_ones(_grid()) - 32768
    row, column = (places >> 16).transpose(1, 0, 2)
    # Integer weights in 256 steps make the images independent of how they are compiled.
    down, right = ((places >> 8) & 0xFF).transpose(1, 0, 2)
    # Pack each square of four neighbours into one word, so that one look-up reads all four. The
    # first square begins one pixel outside the image.
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1))).astype(jnp.uint32)
    rows = padded[:, :-1] | padded[:, 1:] << 16
    squares = (rows[:, :, :-1] | rows[:, :, 1:] << 8).reshape(len(images), -1)
    inside = (row >= -1) & (row < SIZE) & (column >= -1) & (column < SIZE)
    index = jnp.where(inside, (row + 1) * (SIZE + 1) + column + 1, 0)
    square = jnp.take_along_axis(squares, index, axis=1, mode="clip")
    corners = (((square >> shift) & 0xFF).astype(jnp.int32) for shift in (0, 8, 16, 24))
    upper_left, upper_right, lower_left, lower_right = corners
    upper = 256 * upper_left + right * (upper_right - upper_left)
    lower = 256 * lower_left + right * (lower_right - lower_left)
    blended = jnp.where(inside, 256 * upper + down * (lower - upper), 0)
    return blended.reshape(images.shape).astype(jnp.float32) / 65536


def bilinear_and_light(images: jax.Array, p: tuple[Affine, Light]) -> jax.Array:
    """Apply `bilinear`, then brightness and contrast, to images, uint8 `[N, 28, 28]`."""
    maps, light = p
    return _jitter(jnp.round(bilinear(images, maps)).astype(jnp.uint8), light)


def adjust_brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend images with black: `clip(factor * x)`, truncated.

    Args:
        images: uint8 `[N, 28, 28]`.
        factor: factors `[N]`; 0 gives black, 1 the image itself.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    return _blend(images, jnp.zeros(len(images), jnp.float32), factor)


def adjust_contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Blend images with their mean grey g: `clip(g + factor * (x - g))`, truncated.

    Args:
        images: uint8 `[N, 28, 28]`.
        factor: factors `[N]`; 0 gives the mean grey, 1 the image itself.

    Returns:
        uint8 `[N, 28, 28]`.
    """
    return _blend(images, _mean_grey(images), factor)


def _jitter(images: jax.Array, light: Light) -> jax.Array:
    """Adjust brightness and contrast as two blends, in each image's own order."""
    brightness, contrast, first = light
    mean = _mean_grey(images)
    images = _blend(images, jnp.where(first, 0, mean), jnp.where(first, brightness, contrast))
    mean = _mean_grey(images)
    return _blend(images, jnp.where(first, mean, 0), jnp.where(first, contrast, brightness))


def _blend(images, grey, factor):
    grey, factor = (t.astype(jnp.float32)[:, None, None] for t in (grey, factor))
    blended = grey + factor * (images.astype(jnp.float32) - grey)
    return jnp.clip(blended, 0, 255).astype(jnp.uint8)


def _mean_grey(images):
    """Return the mean rounded half up, in exact integer arithmetic."""
    total = images.astype(jnp.int32).sum(axis=(1, 2))
    return (2 * total + SIZE * SIZE) // (2 * SIZE * SIZE)


def _rotation_map(degrees: jax.Array) -> jax.Array:
    zero = jnp.zeros_like(degrees)
    return _affine_map(-degrees, jnp.stack([zero, zero], axis=1), jnp.ones_like(degrees), zero)


def _affine_map(angle, translate, scale, shear) -> jax.Array:
    """Return maps `[N, 2, 3]` from (row, column, 1) to the source pixel, in 16.16 fixed point."""
    r, s = jnp.deg2rad(angle), jnp.deg2rad(shear)
    a, b = jnp.cos(r), -jnp.cos(r) * jnp.tan(s) - jnp.sin(r)
    c, d = jnp.sin(r), -jnp.sin(r) * jnp.tan(s) + jnp.cos(r)
    m0, m1, m3, m4 = d / scale, -b / scale, -c / scale, a / scale
    centre = SIZE / 2
    x, y = centre + translate[:, 0], centre + translate[:, 1]
    m2 = centre - m0 * x - m1 * y
    m5 = centre - m3 * x - m4 * y
    # The map applies to pixel centres, which have an offset of half a pixel.
    to_row = jnp.stack([m4, m3, m5 + m3 / 2 + m4 / 2], axis=-1)
    to_column = jnp.stack([m1, m0, m2 + m0 / 2 + m1 / 2], axis=-1)
    return jnp.floor(jnp.stack([to_row, to_column], axis=1) * 65536 + 0.5).astype(jnp.int32)


def _grid() -> jax.Array:
    """Return the row and column of every output pixel, int32 `[2, 784]`."""
    return jnp.indices((SIZE, SIZE), dtype=jnp.int32).reshape(2, -1)


def _source(maps: jax.Array, places: jax.Array) -> jax.Array:
    """Return the source row and column of each place, int32 `[N, 2, 784]`.

    With an integer matrix product, the compiler computes each map once per image. Written as sums,
    the maps were computed for every pixel, which was three times slower.
    """
    return (maps @ _with_ones(places)) >> 16


def _with_ones(places: jax.Array) -> jax.Array:
    """Return homogeneous coordinates."""
    return jnp.concatenate([places, jnp.ones_like(places[..., :1, :])], axis=-2)


def _inside(places: jax.Array) -> jax.Array:
    return ((places >= 0) & (places < SIZE)).all(axis=1)


def _sample(images: jax.Array, places: jax.Array, fill: int) -> jax.Array:
    """Return the pixels at places `[N, 2, 784]`, and `fill` for places outside."""
    inside = _inside(places)
    index = jnp.where(inside, places[:, 0] * SIZE + places[:, 1], 0)
    flat = images.reshape(-1, SIZE * SIZE)
    pixels = jnp.take_along_axis(flat, index, axis=1, mode="clip")
    return jnp.where(inside, pixels, fill).astype(jnp.uint8).reshape(images.shape)


class Augmentation(NamedTuple):
    """An augmentation of training images: `apply(images, draw(key, count))`."""

    draw: Callable[[jax.Array, int], Any]
    apply: Callable[[jax.Array, Any], jax.Array]


AUGMENTATIONS = {
    "notebook": Augmentation(draw_parameters, apply_parameters),
    # Each of the notebooks' three parts on its own.
    "rotation": Augmentation(draw_parameters, lambda images, p: rotate(images, p.rotation)),
    "affine": Augmentation(draw_parameters, lambda images, p: affine(images, *p.affine)),
    "jitter": Augmentation(draw_parameters, lambda images, p: _jitter(images, p.light)),
    "bilinear": Augmentation(draw_affine, bilinear),
    "bilinear_and_light": Augmentation(draw_affine_and_light, bilinear_and_light),
    "weak_bilinear": Augmentation(functools.partial(draw_affine, strength=0.7), bilinear),
    "strong_bilinear": Augmentation(functools.partial(draw_affine, strength=1.3), bilinear),
}
