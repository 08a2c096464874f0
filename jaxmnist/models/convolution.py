"""Convolution, as matrix products on the CPU and as the compiler's operator elsewhere."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Largest product of input and output channels for tiles of 2x2. Tiles halve the copying but need
# 16/9 of the arithmetic, which dominates in wider layers.
TILED_CHANNELS = 128
# Smallest number of input channels for Winograd's method. With fewer, the copying that it adds
# outweighs the arithmetic that it saves.
WINOGRAD_CHANNELS = 32
# By default, JAX rounds factors to 11 bits on a GPU (TF32) and to 8 bits on a TPU (bfloat16). On a
# GPU, this keeps all 24 bits, as on a CPU. On a TPU, that multiplies the time of compilation;
# docs/performance.md describes how to request it.
PRECISION = {"gpu": jax.lax.Precision.HIGHEST}


def image_size(x: jax.Array) -> tuple[int, int]:
    """Return the height and width in pixels."""
    _, tile, _, rows, columns, _ = x.shape
    return tile * rows, tile * columns


def retile(x: jax.Array, tile: int) -> jax.Array:
    """Rearrange images into tiles of `tile` x `tile` pixels."""
    if x.shape[1] == tile:
        return x
    height, width = image_size(x)
    plain = x.transpose(0, 3, 1, 4, 2, 5)
    tiled = plain.reshape(len(x), height // tile, tile, width // tile, tile, x.shape[-1])
    return tiled.transpose(0, 2, 4, 1, 3, 5)


def pad(x: jax.Array, padding: int) -> jax.Array:
    """Pad images with zeros on every side, `padding` pixels wide."""
    if padding == 0:
        return x
    margin = (padding, padding)
    return jnp.pad(retile(x, 1), ((0, 0), (0, 0), (0, 0), margin, margin, (0, 0)))


def matmul_conv(x: jax.Array, kernel: jax.Array, padding: int = 0, stride: int = 1) -> jax.Array:
    """Convolve, as matrix products over shifted images.

    XLA's CPU convolution is an order of magnitude slower inside a compiled loop than outside. Its
    matrix product is not.

    Args:
        x: activations `[I, t, t, H / t, W / t, N]`.
        kernel: weights `[k, k, I, O]`.
        padding: the width of the zero padding on every side, in pixels.
        stride: the distance between the windows of two output pixels, in pixels.

    Returns:
        Activations `[O, u, u, H' / u, W' / u, N]` with H' = (H + 2 padding - k) // stride + 1. The
        tile size u may differ from t.
    """
    size, _, channels, features = kernel.shape
    x = pad(x, padding)
    if stride > 1:
        x, window = _strided(x, size, stride)
        y = _product(x, kernel.reshape(-1, channels, features), window)
        return y.reshape(features, 1, 1, window.rows, window.columns, -1)
    if size == 1:
        y = kernel.reshape(channels, features).T @ x.reshape(channels, -1)
        return y.reshape(features, *x.shape[1:])
    height, width = (pixels - size + 1 for pixels in image_size(x))
    even = all(pixels % 2 == 0 for pixels in (*image_size(x), height, width))
    if even and size == 3 and channels >= WINOGRAD_CHANNELS:
        return _winograd(retile(x, 2), kernel)
    tile = 2 if even and channels * features <= TILED_CHANNELS else 1
    x, kernel = retile(x, tile), _kernel_of_tiles(kernel, tile)
    window = _Window(size + tile - 1, height // tile, width // tile, 0, len(kernel))
    # A CPU copies the two halves on two cores in parallel.
    middle = len(kernel) // 2
    y = _product(x, kernel[:middle], window._replace(last=middle))
    y += _product(x, kernel[middle:], window._replace(first=middle))
    return y.reshape(features, tile, tile, window.rows, window.columns, -1)


def _strided(x: jax.Array, size: int, stride: int) -> tuple[jax.Array, "_Window"]:
    """Return the input in tiles of the stride, and the window of an output pixel.

    In such tiles, the pixels at one place of all windows lie side by side.
    """
    height, width = image_size(x)
    rows, columns = ((pixels - size) // stride + 1 for pixels in (height, width))
    margins = [(0, -pixels % stride) for pixels in (height, width)]
    x = jnp.pad(retile(x, 1), ((0, 0), (0, 0), (0, 0), *margins, (0, 0)))
    return retile(x, stride), _Window(size, rows, columns, 0, size * size)


class _Window(NamedTuple):
    """The square input window of an output tile, or a range of its places."""

    side: int  # pixels
    rows: int  # of tiles in the output
    columns: int
    first: int  # first place of the range, counted row by row
    last: int  # end of the range, exclusive


def _kernel_of_tiles(kernel: jax.Array, tile: int) -> jax.Array:
    """Return the weights from window places to tile pixels: `[places, I, O * tile * tile]`."""
    _, _, channels, features = kernel.shape
    pixels = [
        jnp.pad(kernel, ((i, tile - 1 - i), (j, tile - 1 - j), (0, 0), (0, 0)))
        for i in range(tile)
        for j in range(tile)
    ]
    return jnp.stack(pixels, axis=-1).reshape(-1, channels, features * tile * tile)


def _product(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """Return the contribution of the places: `[O * tile * tile, rows * columns * N]`."""
    patches: Any = _patches(x, window)
    places, channels, outputs = kernel.shape
    return kernel.reshape(-1, outputs).T @ patches.reshape(places * channels, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _patches(x: jax.Array, window: _Window) -> jax.Array:
    """Return the pixels at each place of the window: `[places * channels, rows, columns, N]`.

    With a gradient of its own: of concatenated `_places`, XLA would copy each gradient once more.
    """
    return jnp.concatenate([x[shift] for shift in _shifts(window, x.shape[1])])


def _shifts(window: _Window, tile: int):
    """Yield the index of each place of the window in `[channels, tile, tile, height, width, N]`."""
    for place in range(window.first, window.last):
        i, j = divmod(place, window.side)
        rows = slice(i // tile, i // tile + window.rows)
        columns = slice(j // tile, j // tile + window.columns)
        yield slice(None), i % tile, j % tile, rows, columns


def _patches_forward(x, window):
    return _patches(x, window), x


def _patches_backward(window, x, gradient):
    return _added_up(window, x, gradient.reshape(-1, len(x), *gradient.shape[1:]))


def _added_up(window, x, parts):
    """Sum the gradients of all window places for each pixel, in place.

    JAX's own rule pads every shifted gradient to full size before adding, which is twice as slow on
    a CPU.
    """
    total = jnp.zeros_like(x)
    for shift, part in zip(_shifts(window, x.shape[1]), parts, strict=True):
        total = total.at[shift].add(part)
    return (total,)


_patches.defvjp(_patches_forward, _patches_backward)


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve with a 3x3 kernel, with 16 products per tile of four pixels instead of 36.

    Winograd's F(2x2, 3x3) in Lavin and Gray, Fast Algorithms for Convolutional Neural Networks
    (2016), section 4.1: `A'[(G g G') * (B' d B)]A`. The matrices have only the entries 0,
    ±1 and ±1/2, so rounding errors grow little.

    Args:
        x: activations `[I, 2, 2, H / 2, W / 2, N]`.
        kernel: weights `[3, 3, I, O]`.
    """
    _, _, channels, features = kernel.shape
    rows, columns = x.shape[3] - 1, x.shape[4] - 1
    places: Any = _places(x, _Window(4, rows, columns, 0, 16))
    images = _both_ways(_of_images, [places[row : row + 4] for row in range(0, 16, 4)])
    kernels = _both_ways(_of_kernel, list(map(list, kernel)))
    products = [
        [k.T @ image.reshape(channels, -1) for k, image in zip(*pair, strict=True)]
        for pair in zip(kernels, images, strict=True)
    ]
    tiles = jnp.stack([jnp.stack(row, 1) for row in _both_ways(_to_pixels, products)], 1)
    return tiles.reshape(features, 2, 2, rows, columns, -1)


def _both_ways(transform, grid):
    """Transform the columns of a grid of arrays, then the rows of the result."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _of_images(d0, d1, d2, d3):
    """Return `B' d`."""
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _of_kernel(g0, g1, g2):
    """Return `G g`."""
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _to_pixels(m0, m1, m2, m3):
    """Return `A' m`."""
    return [m0 + m1 + m2, m1 - m2 - m3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _places(x: jax.Array, window: _Window) -> list[jax.Array]:
    """Return the pixels at each place of the window: `[channels, rows, columns, N]` each."""
    return [x[shift] for shift in _shifts(window, x.shape[1])]


def _places_forward(x, window):
    return _places(x, window), x


_places.defvjp(_places_forward, _added_up)


def shifted_depthwise_conv(
    x: jax.Array, kernel: jax.Array, padding: int = 0, stride: int = 1
) -> jax.Array:
    """Convolve each channel on its own, as a weighted sum of shifted images.

    Args:
        x: activations `[C, t, t, H / t, W / t, N]`.
        kernel: weights `[k, k, 1, C]`.
        padding: the width of the zero padding on every side, in pixels.
        stride: the distance between the windows of two output pixels, in pixels.

    Returns:
        Activations `[C, 1, 1, H', W', N]`, of the size that `matmul_conv` returns.
    """
    size = len(kernel)
    x, window = _strided(pad(x, padding), size, stride)
    weights = kernel.reshape(size * size, -1)[:, :, None, None, None]
    places: Any = _places(x, window)
    y = jnp.zeros_like(places[0])
    for weight, place in zip(weights, places, strict=True):
        y += weight * place
    return y[:, None, None]


def native_conv(
    x: jax.Array,
    kernel: jax.Array,
    padding: int = 0,
    stride: int = 1,
    precision: jax.lax.Precision | None = None,
) -> jax.Array:
    """Convolve with the compiler's operator, with this precision of products; see `convolve`."""
    y = jax.lax.conv_general_dilated(
        retile(x, 1)[:, 0, 0],
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
        feature_group_count=_groups(x, kernel),
        precision=precision,
    )
    return y[:, None, None]


def convolve(
    x: jax.Array,
    kernel: jax.Array,
    padding: int = 0,
    stride: int = 1,
    platform: str | None = None,
) -> jax.Array:
    """Convolve with the faster method on a platform; see `matmul_conv`.

    Args:
        x: activations.
        kernel: weights `[k, k, I, O]`; or `[k, k, 1, I]` to convolve each channel on its own.
        padding: the width of the zero padding on every side, in pixels.
        stride: the distance between the windows of two output pixels, in pixels.
        platform: the platform that the program is compiled for, such as cpu, gpu or tpu; None for
            JAX's default one.
    """
    platform = platform or jax.default_backend()
    if platform != "cpu":
        return native_conv(x, kernel, padding, stride, PRECISION.get(platform))
    method = matmul_conv if _groups(x, kernel) == 1 else shifted_depthwise_conv
    return method(x, kernel, padding, stride)


def _groups(x: jax.Array, kernel: jax.Array) -> int:
    """Return the number of groups of channels that are convolved separately."""
    return len(x) // kernel.shape[2]
