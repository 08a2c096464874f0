"""The layers of the seven networks, in the layout in which each backend is fast.

Activations are `[channels, t, t, height, width, batch]` from the first layer to the last: pixels
come in tiles of t x t, and `x[c, i, j, row, column, n]` is the pixel `(t row + i, t column + j)` of
image n. A tile of one pixel is the plain image.

With the batch in the minor dimension a CPU reads and writes long contiguous runs whatever the
number of channels (here 4 to 18). A convolution becomes matrix products over shifted images; in
tiles of 2x2 it needs 16 of them for four pixels, in place of nine for each, and with many channels
Winograd's method makes do with a quarter of that arithmetic. GPU and TPU compilers choose the
physical layout themselves, so there all tiles are of one pixel, and the layout costs nothing.
`from_images` and `to_logits` are the only doors between this layout and the public one.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmnist import shards

# PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


# Inputs times outputs up to which a convolution works in tiles of 2x2: they halve what is copied,
# for 16/9 of the arithmetic, and in wider layers the arithmetic is what takes the time.
TILED_CHANNELS = 128
# Inputs from which on a convolution of 3x3 works by Winograd's method: arithmetic then takes longer
# than the copying that the method adds.
WINOGRAD_CHANNELS = 32


def from_images(images: jax.Array) -> jax.Array:
    """Public layout `[N, H, W, C]` to the layers' `[C, 1, 1, H, W, N]`."""
    return images.transpose(3, 1, 2, 0)[:, None, None]


def to_logits(x: jax.Array) -> jax.Array:
    """The last layer's `[classes, 1, 1, 1, 1, N]` to the public `[N, classes]`."""
    height, width = image_size(x)
    if (height, width) != (1, 1):
        raise ValueError(f"the last layer is {height}x{width} pixels; expected 1x1")
    return x.reshape(len(x), -1).T


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


def per_channel(values: jax.Array) -> jax.Array:
    """`[C]`, to be broadcast over activations."""
    return values.reshape(-1, 1, 1, 1, 1, 1)


class Conv(nn.Module):
    """Convolution of stride 1; its kernel is kept as `[kh, kw, I, O]`."""

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: shards.Axis = None) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[0], self.features)
        y = conv(x, self.param("kernel", torch_uniform, shape), self.padding)
        if self.use_bias:
            bound = 1 / math.sqrt(math.prod(shape[:3]))
            bias = self.param("bias", _uniform(bound), (self.features,))
            y = y + per_channel(bias)
        return y


def _uniform(bound: float):
    def init(key, shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's constants.

    Normalises with the biased variance of the batch; the running variance takes the unbiased one,
    as torch.nn.BatchNorm2d does and flax.linen.BatchNorm does not.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: shards.Axis = None) -> jax.Array:
        features = x.shape[0]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            count = x.size // features * shards.count(axis)
            mean = shards.mean(_mean_of_channels(x), axis)
            var = shards.mean(_mean_of_channels(jnp.square(x - per_channel(mean))), axis)
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = self._blend(running_mean.value, mean)
                running_var.value = self._blend(running_var.value, unbiased)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return x * per_channel(factor) + per_channel(offset)

    def _blend(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * batch


def _mean_of_channels(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3, 4, 5))


class Dropout(nn.Module):
    """Sets activations to zero with probability `rate` in training and scales up the rest.

    The rate is rounded to a multiple of 2**-16 (an error below 1e-5), so that one random word
    decides two activations. What is dropped is drawn for the whole batch, of which a device works
    out its own part.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: shards.Axis = None) -> jax.Array:
        if not train or self.rate == 0:
            return x
        images = x.shape[-1]
        rows = x.size // images
        # A pair of words for each image of the whole batch and each four rows.
        row = jnp.arange(-(-rows // 4), dtype=jnp.uint32)[:, None]
        image = jnp.arange(images, dtype=jnp.uint32) + jnp.uint32(shards.index(axis) * images)
        counters = row * (images * shards.count(axis)) + image
        words = jnp.concatenate(random_words(self.make_rng("dropout"), counters))
        halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:rows]
        keep = (halves >= round(self.rate * 2**16)).reshape(x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


def random_words(key: jax.Array, counters: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two random words, uint32, of each counter, by Threefry-2x32 with 20 rounds.

    The generator behind `jax.random.bits`, which on a CPU runs as a loop over whole arrays; written
    out it is one pass, and the programs compile in half the time. Source: Salmon, Moraes, Dror and
    Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    first, second = jax.random.key_data(key)
    keys = (first, second, first ^ second ^ 0x1BD11BDA)
    x = counters + first
    y = jnp.full_like(x, second)
    for group in range(5):
        for turn in ((13, 15, 26, 6), (17, 29, 16, 24))[group % 2]:
            x = x + y
            y = x ^ ((y << turn) | (y >> (32 - turn)))
        x = x + keys[(group + 1) % 3]
        y = y + keys[(group + 2) % 3] + (group + 1)
    return x, y


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 square; a last odd row or column is left out."""
    height, width = image_size(x)
    if height % 2 or width % 2:
        x = retile(x, 1)[:, :, :, : height // 2 * 2, : width // 2 * 2]
    squares = retile(x, 2)
    top = _larger(squares[:, 0, 0], squares[:, 0, 1])
    bottom = _larger(squares[:, 1, 0], squares[:, 1, 1])
    return _larger(top, bottom)[:, None, None]


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """The larger of each two. Between equals the gradient goes to the first, as in PyTorch.

    `jnp.maximum` shares it among them, and its gradient takes twice as long.
    """
    return jnp.where(b > a, b, a)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels, kept as a 1x1 image."""
    return x.mean(axis=(1, 2, 3, 4), keepdims=True)
