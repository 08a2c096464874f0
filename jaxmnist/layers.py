"""The layers of the seven networks, in the layout in which each backend is fast.

Activations are `[channels, height, width, batch]` from the first layer to the last. With the batch
in the minor dimension a CPU reads and writes long contiguous runs whatever the number of channels
(here 4 to 18), and a convolution becomes one matrix product over the shifted images. GPU and TPU
compilers choose the physical layout themselves, so there the same logical layout costs nothing.
`from_images` and `to_logits` are the only doors between this layout and the public one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

# PyTorch's default for weights and biases: U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
torch_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def from_images(images: jax.Array) -> jax.Array:
    """Public layout `[N, H, W, C]` to the layers' `[C, H, W, N]`."""
    return images.transpose(3, 1, 2, 0)


def to_logits(x: jax.Array) -> jax.Array:
    """The last layer's `[classes, 1, 1, N]` to the public `[N, classes]`."""
    classes, height, width, batch = x.shape
    if (height, width) != (1, 1):
        raise ValueError(f"the last layer is {height}x{width} pixels; expected 1x1")
    return x.reshape(classes, batch).T


def matmul_conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """Convolution of stride 1 as one matrix product over the shifted images.

    XLA's CPU convolution is an order of magnitude slower inside a compiled loop than outside; its
    matrix product is not.

    Args:
        x: `[I, H, W, N]`.
        kernel: `[kh, kw, I, O]`.
        padding: zeros on every side, in pixels.

    Returns:
        `[O, H + 2 padding - kh + 1, W + 2 padding - kw + 1, N]`.
    """
    kernel_height, kernel_width, channels, features = kernel.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    height, width = x.shape[1] - kernel_height + 1, x.shape[2] - kernel_width + 1
    patches = jnp.concatenate(
        [
            x[:, row : row + height, column : column + width]
            for row in range(kernel_height)
            for column in range(kernel_width)
        ]
    )
    rows = kernel_height * kernel_width * channels
    y = kernel.reshape(rows, features).T @ patches.reshape(rows, -1)
    return y.reshape(features, height, width, -1)


def native_conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """The same convolution by the compiler's own operator; Args and Returns of `matmul_conv`."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("CHWN", "HWIO", "CHWN"),
    )


def conv(x: jax.Array, kernel: jax.Array, padding: int = 0) -> jax.Array:
    """The convolution that is fast on the default backend; Args and Returns of `matmul_conv`."""
    fast = matmul_conv if jax.default_backend() == "cpu" else native_conv
    return fast(x, kernel, padding)


class Conv(nn.Module):
    """Convolution of stride 1; its kernel is kept as `[kh, kw, I, O]`."""

    features: int
    kernel_size: int = 3
    padding: int = 0
    use_bias: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        shape = (self.kernel_size, self.kernel_size, x.shape[0], self.features)
        y = conv(x, self.param("kernel", torch_uniform, shape), self.padding)
        if self.use_bias:
            bound = 1 / math.sqrt(math.prod(shape[:3]))
            bias = self.param("bias", _uniform(bound), (self.features,))
            y = y + bias[:, None, None, None]
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
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        features = x.shape[0]
        scale = self.param("scale", nn.initializers.ones, (features,))
        bias = self.param("bias", nn.initializers.zeros, (features,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (features,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (features,))
        if train:
            count = x.size // features
            mean = jnp.mean(x, axis=(1, 2, 3))
            var = jnp.mean(jnp.square(x - mean[:, None, None, None]), axis=(1, 2, 3))
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                running_mean.value = self._blend(running_mean.value, mean)
                running_var.value = self._blend(running_var.value, unbiased)
        else:
            mean, var = running_mean.value, running_var.value
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        offset = bias - mean * factor
        return x * factor[:, None, None, None] + offset[:, None, None, None]

    def _blend(self, running: jax.Array, batch: jax.Array) -> jax.Array:
        return self.momentum * running + (1 - self.momentum) * batch


class Dropout(nn.Module):
    """Sets activations to zero with probability `rate` in training and scales up the rest.

    The rate is rounded to a multiple of 2**-16 (an error below 1e-5), so that one random word
    decides two activations.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        if not train or self.rate == 0:
            return x
        keep = _keep_mask(self.make_rng("dropout"), self.rate, x.shape)
        return jnp.where(keep, x / (1 - self.rate), 0)


def _keep_mask(key: jax.Array, rate: float, shape: tuple[int, ...]) -> jax.Array:
    """Boolean mask of `shape`, True with probability 1 - `rate` to within 2**-17."""
    half = -(-shape[0] // 2)
    words = jax.random.bits(key, (half, *shape[1:]), jnp.uint32)
    halves = jnp.concatenate([words & 0xFFFF, words >> 16])[: shape[0]]
    return halves >= round(rate * 2**16)


def max_pool(x: jax.Array) -> jax.Array:
    """The largest of each 2x2 square; a last odd row or column is left out."""
    channels, height, width, batch = x.shape
    height, width = height // 2, width // 2
    x = x[:, : 2 * height, : 2 * width]
    # Two maxima of two rather than one reduction over four: twice as fast on a CPU.
    rows = x.reshape(channels, height, 2, 2 * width, batch)
    x = jnp.maximum(rows[:, :, 0], rows[:, :, 1])
    columns = x.reshape(channels, height, width, 2, batch)
    return jnp.maximum(columns[:, :, :, 0], columns[:, :, :, 1])


def global_avg_pool(x: jax.Array) -> jax.Array:
    """The mean over all pixels, kept as a 1x1 image."""
    return x.mean(axis=(1, 2), keepdims=True)
