"""Layers of the networks, in a layout that is fast on each backend.

Activations are `[channels, t, t, height, width, batch]` from the first layer to the last. Pixels
are grouped in tiles of t x t: `x[c, i, j, row, column, n]` is the pixel
`(t row + i, t column + j)` of image n. A tile of one pixel is the plain image.

With the batch in the minor dimension, a CPU reads and writes long contiguous runs for any number
of channels (here 4 to 18). A convolution becomes matrix products over shifted images. With tiles
of 2x2, it needs 16 products for four pixels, instead of nine for each pixel. With many channels,
Winograd's method needs a quarter of that arithmetic. GPU and TPU compilers choose the physical
layout themselves, so there a tile is one pixel and the layout costs nothing. Only `from_images` and
`to_logits` convert between this layout and the public one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmnist.collectives import Axis, axis_index, axis_size, pmean
from jaxmnist.models.convolution import convolve, image_size, retile
from jaxmnist.models.random_bits import random_words

# PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def from_images(images: jax.Array) -> jax.Array:
    """Convert the public layout `[N, H, W, C]` to the layers' `[C, 1, 1, H, W, N]`."""
    return images.transpose(3, 1, 2, 0)[:, None, None]


def to_logits(x: jax.Array) -> jax.Array:
    """Convert the last layer's `[classes, 1, 1, 1, 1, N]` to the public `[N, classes]`."""
    height, width = image_size(x)
    if (height, width) != (1, 1):
        raise ValueError(f"the last layer is {height}x{width} pixels; expected 1x1")
    return x.reshape(len(x), -1).T


def per_channel(values: jax.Array) -> jax.Array:
    """Reshape `[C]` to broadcast over activations."""
    return values.reshape(-1, 1, 1, 1, 1, 1)


class Conv(nn.Module):
    """Convolution; the kernel is stored as `[kh, kw, I, O]`."""

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False
    stride: int = 1
    platform: str | None = None  # see `convolve`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[0], self.features)
        kernel = self.param("kernel", torch_uniform, shape)
        y = convolve(x, kernel, self.padding, self.stride, self.platform)
        return _with_bias(self, y, shape) if self.use_bias else y


class DepthwiseConv(nn.Module):
    """Convolution of each channel on its own; the kernel is stored as `[kh, kw, 1, C]`."""

    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False
    stride: int = 1
    platform: str | None = None  # see `convolve`

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, 1, x.shape[0])
        kernel = self.param("kernel", torch_uniform, shape)
        y = convolve(x, kernel, self.padding, self.stride, self.platform)
        return _with_bias(self, y, shape) if self.use_bias else y


def _with_bias(layer: nn.Module, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Add a convolution's bias, which starts as PyTorch's does."""
    bound = 1 / math.sqrt(math.prod(shape[:3]))
    return y + per_channel(layer.param("bias", _uniform(bound), shape[3:]))


def _uniform(bound: float):
    def init(key, shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


class BatchNorm(nn.Module):
    """Batch normalisation with PyTorch's constants.

    The batch is normalised with its biased variance. The running variance uses the unbiased one, as
    in torch.nn.BatchNorm2d, unlike flax.linen.BatchNorm.
    """

    epsilon: float = 1e-5
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        features = x.shape[0]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            count = x.size // features * axis_size(axis)
            mean = pmean(_mean_of_channels(x), axis)
            var = pmean(_mean_of_channels(jnp.square(x - per_channel(mean))), axis)
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


class GhostNorm(BatchNorm):
    """Batch normalisation over parts of the batch: image n is in part n mod `splits`.

    The running statistics are the means over the parts. Source: Hoffer, Hubara and Soudry, "Train
    longer, generalize better", 2017, algorithm 1; parts as in David Page's "How to train your
    ResNet" (2018).
    """

    splits: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        if not train or self.is_initializing():
            return super().__call__(x, train, axis)
        features = x.shape[0]
        parts = x.reshape(*x.shape[:-1], -1, self.splits)
        count = parts.size // features // self.splits * axis_size(axis)
        mean = pmean(parts.mean(axis=(1, 2, 3, 4, 5), keepdims=True), axis)
        squares = jnp.square(parts - mean)
        var = pmean(squares.mean(axis=(1, 2, 3, 4, 5), keepdims=True), axis)
        normalised = ((parts - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        mean, var = (each.reshape(features, -1).mean(axis=1) for each in (mean, var))
        running_mean.value = self._blend(running_mean.value, mean)
        running_var.value = self._blend(running_var.value, var * (count / (count - 1)))
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        return normalised * per_channel(scale) + per_channel(bias)


class GroupNorm(nn.Module):
    """Normalisation of each image over groups of channels; with one group, layer normalisation.

    Source: Wu and He, "Group normalization", 2018, section 3.1; constants of torch.nn.GroupNorm.
    """

    groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        grouped = x.reshape(self.groups, -1, *x.shape[1:])
        mean = grouped.mean(axis=(1, 2, 3, 4, 5), keepdims=True)
        var = jnp.square(grouped - mean).mean(axis=(1, 2, 3, 4, 5), keepdims=True)
        normalised = ((grouped - mean) * jax.lax.rsqrt(var + self.epsilon)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, x.shape[:1])
        bias = self.param("bias", nn.initializers.zeros, x.shape[:1])
        return normalised * per_channel(scale) + per_channel(bias)


def _mean_of_channels(x: jax.Array) -> jax.Array:
    return jnp.mean(x, axis=(1, 2, 3, 4, 5))


class Dropout(nn.Module):
    """Dropout: in training, zeroes activations with probability `rate` and scales up the rest.

    The rate is rounded to a multiple of 2**-16 (an error below 1e-5), so that one random word
    decides two activations. The mask is defined for the whole batch; each device computes its own
    part.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, axis: Axis = None) -> jax.Array:
        if not train or self.rate == 0:
            return x
        images = x.shape[-1]
        rows = x.size // images
        # One pair of words for every four rows of each image in the whole batch.
        row = jnp.arange(-(-rows // 4), dtype=jnp.uint32)[:, None]
        image = jnp.arange(images, dtype=jnp.uint32) + jnp.uint32(axis_index(axis) * images)
        counters = row * (images * axis_size(axis)) + image
        words = jnp.concatenate(random_words(self.make_rng("dropout"), counters))
        halves = jnp.concatenate([words & 0xFFFF, words >> 16])[:rows]
        keep = (halves >= round(self.rate * 2**16)).reshape(x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


def max_pool(x: jax.Array) -> jax.Array:
    """Return the maximum of each 2x2 square; drop an odd last row or column."""
    height, width = image_size(x)
    if height % 2 or width % 2:
        x = retile(x, 1)[:, :, :, : height // 2 * 2, : width // 2 * 2]
    squares = retile(x, 2)
    top = _larger(squares[:, 0, 0], squares[:, 0, 1])
    bottom = _larger(squares[:, 1, 0], squares[:, 1, 1])
    return _larger(top, bottom)[:, None, None]


def _larger(a: jax.Array, b: jax.Array) -> jax.Array:
    """Return the elementwise maximum; for equal values the gradient goes to `a`, as in PyTorch.

    `jnp.maximum` splits the gradient between them, and computing it takes twice as long.
    """
    return jnp.where(b > a, b, a)


def global_avg_pool(x: jax.Array) -> jax.Array:
    """Return the mean over all pixels, as a 1x1 image."""
    return x.mean(axis=(1, 2, 3, 4), keepdims=True)


def global_max_pool(x: jax.Array) -> jax.Array:
    """Return the maximum over all pixels, as a 1x1 image; its gradient goes to one pixel."""
    plain = retile(x, 1)
    pixels = plain.reshape(len(x), -1, x.shape[-1])
    largest = jnp.take_along_axis(pixels, pixels.argmax(axis=1, keepdims=True), axis=1)
    return largest[:, :, None, None, None]


def save(x: jax.Array) -> jax.Array:
    """Return the input, to which a network's next `add` adds its own."""
    return x


def add(x: jax.Array, saved: jax.Array) -> jax.Array:
    """Return the sum with a saved input, the residual connection of ResNets."""
    return retile(x, 1) + retile(saved, 1)
