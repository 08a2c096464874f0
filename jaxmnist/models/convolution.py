"""Convolution as matrix products, for the CPU, and as the compiler's own operator elsewhere."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

# Inputs times outputs up to which a convolution works in tiles of 2x2: they halve what is copied,
# for 16/9 of the arithmetic, and in wider layers the arithmetic is what takes the time.
TILED_CHANNELS = 128
# Inputs from which on a convolution of 3x3 works by Winograd's method: arithmetic then takes longer
# than the copying that the method adds.
WINOGRAD_CHANNELS = 32


def image_size(x: jax.Array) -> tuple[int, int]:
    """Height and width in pixels."""
    _, tile, _, rows, columns, _ = x.shape
    return tile * rows, tile * columns


def retile(x: jax.Array, tile: int) -> jax.Array:
    """The same images in tiles of `tile` x `tile` pixels."""
    if x.shape[1] == tile:
        return x
    height, width = image_size(x)
    plain = x.transpose(0, 3, 1, 4, 2, 5)
    tiled = plain.reshape(len(x), height // tile, tile, width // tile, tile, x.shape[-1])
    return tiled.transpose(0, 2, 4, 1, 3, 5)


def pad(x: jax.Array, padding: int) -> jax.Array:
    """Puts so many pixels of zero on every side."""
    if padding == 0:
        return x
    margin = (padding, padding)
    return jnp.pad(retile(x, 1), ((0, 0), (0, 0), (0, 0), margin, margin, (0, 0)))


def matmul_conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """Convolution of stride 1 as matrix products over the shifted images.

    XLA's CPU convolution is an order of magnitude slower inside a compiled loop than outside; its
    matrix product is not.

    Args:
        x: `[I, t, t, H / t, W / t, N]`.
        kernel: `[k, k, I, O]`.
        padding: zeros on every side, in pixels.

    Returns:
        `[O, u, u, H' / u, W' / u, N]` with H' = H + 2 padding - k + 1, in tiles of its own choice.
    """
    size, _, channels, features = kernel.shape
    x = pad(x, padding)
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
    # In two halves, each of which a CPU copies on a core of its own.
    middle = len(kernel) // 2
    y = _product(x, kernel[:middle], window._replace(last=middle))
    y += _product(x, kernel[middle:], window._replace(first=middle))
    return y.reshape(features, tile, tile, window.rows, window.columns, -1)


class _Window(NamedTuple):
    """The square of pixels that a tile of the output is made from, or some of its places."""

    side: int  # pixels
    rows: int  # of tiles in the output
    columns: int
    first: int  # the places meant, counted row by row
    last: int  # the first place no longer meant


def _kernel_of_tiles(kernel: jax.Array, tile: int) -> jax.Array:
    """`[places, I, O * tile * tile]`: from the places of a window to the pixels of a tile."""
    _, _, channels, features = kernel.shape
    pixels = [
        jnp.pad(kernel, ((i, tile - 1 - i), (j, tile - 1 - j), (0, 0), (0, 0)))
        for i in range(tile)
        for j in range(tile)
    ]
    return jnp.stack(pixels, axis=-1).reshape(-1, channels, features * tile * tile)


def _product(x: jax.Array, kernel: jax.Array, window: _Window) -> jax.Array:
    """What these places of the window give: `[O * tile * tile, rows * columns * N]`."""
    patches: Any = _patches(x, window)
    places, channels, outputs = kernel.shape
    return kernel.reshape(-1, outputs).T @ patches.reshape(places * channels, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _patches(x: jax.Array, window: _Window) -> jax.Array:
    """The images as each place of the window sees them: `[places * channels, rows, columns, N]`."""
    return jnp.concatenate([x[shift] for shift in _shifts(window, x.shape[1])])


def _shifts(window: _Window, tile: int):
    """Where each place of the window lies in `[channels, tile, tile, height, width, N]`."""
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
    """Adds up what each pixel got from each place of the window, in place.

    JAX's own rule pads every shifted gradient to full size and adds: twice as slow on a CPU.
    """
    total = jnp.zeros_like(x)
    for shift, part in zip(_shifts(window, x.shape[1]), parts, strict=True):
        total = total.at[shift].add(part)
    return (total,)


_patches.defvjp(_patches_forward, _patches_backward)


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A convolution of 3x3 with 16 products for a tile of four pixels, in place of 36.

    Winograd's F(2x2, 3x3) in Lavin and Gray, Fast Algorithms for Convolutional Neural Networks
    (2016), section 4.1: `A'[(G g G') * (B' d B)]A`. Their matrices have entries of 0, 1 and 1/2
    alone, so that rounding errors grow little.

    Args:
        x: `[I, 2, 2, H / 2, W / 2, N]`.
        kernel: `[3, 3, I, O]`.
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
    """Transforms the columns of a grid of arrays, and then the rows of what this gives."""
    columns = [transform(*column) for column in zip(*grid, strict=True)]
    return [transform(*row) for row in zip(*columns, strict=True)]


def _of_images(d0, d1, d2, d3):
    """`B' d`."""
    return [d0 - d2, d1 + d2, d2 - d1, d1 - d3]


def _of_kernel(g0, g1, g2):
    """`G g`."""
    return [g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2]


def _to_pixels(m0, m1, m2, m3):
    """`A' m`."""
    return [m0 + m1 + m2, m1 - m2 - m3]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _places(x: jax.Array, window: _Window) -> list[jax.Array]:
    """The images as each place of the window sees them: `[channels, rows, columns, N]` each."""
    return [x[shift] for shift in _shifts(window, x.shape[1])]


def _places_forward(x, window):
    return _places(x, window), x


_places.defvjp(_places_forward, _added_up)


def native_conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """The same convolution by the compiler's own operator; Args and Returns of `matmul_conv`."""
    y = jax.lax.conv_general_dilated(
        retile(x, 1)[:, 0, 0],
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
    )
    return y[:, None, None]


def conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """The convolution that is fast on the default backend; Args and Returns of `matmul_conv`."""
    fast = matmul_conv if jax.default_backend() == "cpu" else native_conv
    return fast(x, kernel, padding)
