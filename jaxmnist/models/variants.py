"""The drill-down: seven networks for 28x28 digits, each built on the one before.

A network is a list of layers. Read from top to bottom, the seven lists are the course.
`python scripts/train.py --variant gap` trains the last one; docs/results.md has the results of all.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import flax.linen as nn
import jax

from jaxmnist.collectives import Axis
from jaxmnist.models.layers import (
    BatchNorm,
    Conv,
    DepthwiseConv,
    Dropout,
    GhostNorm,
    GroupNorm,
    add,
    from_images,
    global_avg_pool,
    max_pool,
    save,
    to_logits,
)

Layer = nn.Module | Callable[..., jax.Array]

_KINDS = {
    **dict.fromkeys((Conv, DepthwiseConv), "conv"),
    **dict.fromkeys((BatchNorm, GhostNorm, GroupNorm), "norm"),
    Dropout: "dropout",
}


# Building blocks. With `parent=None`, a layer is bound and named when the network is called.


def conv(features: int, kernel_size: int = 3, padding: int = 0, use_bias: bool = False) -> Layer:
    """Return a convolution."""
    return Conv(features, kernel_size, padding, use_bias, parent=None)


def norm() -> Layer:
    """Return a batch normalisation."""
    return BatchNorm(parent=None)


def conv_relu(features: int, kernel_size: int = 3) -> list[Layer]:
    """Return convolution and ReLU."""
    return [conv(features, kernel_size), nn.relu]


def conv_relu_norm(features: int, kernel_size: int = 3) -> list[Layer]:
    """Return convolution, ReLU and batch normalisation."""
    return [*conv_relu(features, kernel_size), norm()]


def conv_relu_norm_drop(features: int, rate: float, kernel_size: int = 3) -> list[Layer]:
    """Return convolution, ReLU, batch normalisation and dropout."""
    return [*conv_relu_norm(features, kernel_size), Dropout(rate, parent=None)]


class Network(nn.Module):
    """A network made of a list of layers, numbered by kind: conv0, conv1, norm0, ...

    Args:
        dropout_rate: the probability that an activation is dropped in training.
        axis: the device axis over which the batch is split; None if `images` is the whole batch.
        platform: the platform that the network is compiled for, such as cpu, gpu or tpu, which
            decides how it convolves; None for JAX's default one.

    Args of a call:
        images: float32 `[N, 28, 28, 1]`, normalised.
        train: whether BatchNorm uses batch statistics and Dropout is active; requires the random
            stream `dropout` and the mutable collection `batch_stats`.

    Returns of a call: float32 logits `[N, 10]`.
    """

    dropout_rate: float = 0.0
    axis: Axis = None
    platform: str | None = None

    def layers(self) -> Sequence[Layer]:
        """Return the layers in order of use."""
        raise NotImplementedError

    def named_layers(self) -> Iterator[tuple[str, Layer]]:
        """Yield the layers in order of use, each with its name."""
        numbers = Counter()
        for layer in self.layers():
            kind = _KINDS[type(layer)] if isinstance(layer, nn.Module) else layer.__name__
            yield f"{kind}{numbers[kind]}", layer
            numbers[kind] += 1

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x, saved = from_images(images), []
        for name, layer in self.named_layers():
            if isinstance(layer, nn.Module):
                if isinstance(layer, (Conv, DepthwiseConv)):
                    layer = layer.clone(platform=self.platform)
                x = layer.clone(parent=self, name=name)(x, train, self.axis)
            elif layer is save:
                saved.append(x)
            elif layer is add:
                x = add(x, saved.pop())
            else:
                x = layer(x)
        return to_logits(x)


class SkeletonNet(Network):
    """The first network that works: 3x3 convolutions, two poolings, 6,379,786 parameters."""

    def layers(self) -> Sequence[Layer]:
        return [
            conv(32, padding=1, use_bias=True),  # 28x28
            nn.relu,
            conv(64, padding=1, use_bias=True),
            nn.relu,
            max_pool,  # 14x14
            conv(128, padding=1, use_bias=True),
            nn.relu,
            conv(256, padding=1, use_bias=True),
            nn.relu,
            max_pool,  # 7x7
            conv(512, use_bias=True),  # 5x5
            nn.relu,
            conv(1024, use_bias=True),  # 3x3
            nn.relu,
            conv(10, use_bias=True),  # 1x1
        ]


class LessParamsNet(Network):
    """Fewer parameters: narrow layers, a 1x1 transition, an average instead of the 7x7 end.

    4,572 parameters, no biases.
    """

    def layers(self) -> Sequence[Layer]:
        return [
            *conv_relu(8),  # 26x26
            *conv_relu(16),  # 24x24
            max_pool,  # 12x12
            *conv_relu(8, kernel_size=1),
            *conv_relu(10),  # 10x10
            *conv_relu(10),  # 8x8
            *conv_relu(16),  # 6x6
            conv(10, kernel_size=1),
            global_avg_pool,
        ]


class BatchNormNet(Network):
    """Batch normalisation, once per block: 4,652 parameters.

    Normalisation comes before the ReLU in the transition block and after it elsewhere, as in the
    notebook.
    """

    def layers(self) -> Sequence[Layer]:
        return [
            *conv_relu(8),  # 26x26
            *conv_relu_norm(16),  # 24x24
            max_pool,  # 12x12
            conv(8, kernel_size=1),
            norm(),
            nn.relu,
            *conv_relu(10),  # 10x10
            *conv_relu(10),  # 8x8
            *conv_relu_norm(16),  # 6x6
            conv(10, kernel_size=1),
            global_avg_pool,
        ]


class DropoutNet(Network):
    """Dropout, and batch normalisation after every convolution: 4,708 parameters."""

    def layers(self) -> Sequence[Layer]:
        rate = self.dropout_rate
        return [
            *conv_relu_norm_drop(8, rate),  # 26x26
            *conv_relu_norm_drop(16, rate),  # 24x24
            max_pool,  # 12x12
            *conv_relu_norm_drop(8, rate, kernel_size=1),
            *conv_relu_norm_drop(10, rate),  # 10x10
            *conv_relu_norm_drop(10, rate),  # 8x8
            *conv_relu_norm_drop(16, rate),  # 6x6
            conv(10, kernel_size=1),
            global_avg_pool,
        ]


class FcLayerNet(Network):
    """More capacity: a wider block, and a fully connected layer after the average.

    6,124 parameters.
    """

    def layers(self) -> Sequence[Layer]:
        rate = self.dropout_rate
        return [
            *conv_relu_norm_drop(8, rate),  # 26x26
            *conv_relu_norm_drop(16, rate),  # 24x24
            max_pool,  # 12x12
            *conv_relu_norm_drop(8, rate, kernel_size=1),
            *conv_relu_norm_drop(10, rate),  # 10x10
            *conv_relu_norm_drop(16, rate),  # 8x8
            *conv_relu_norm_drop(16, rate),  # 6x6
            global_avg_pool,
            conv(10, kernel_size=1),
        ]


class AugmentationNet(FcLayerNet):
    """The fc_layer network, trained on augmented images: 6,124 parameters."""


class GapNet(Network):
    """More width in late layers, a layer after the average, and the one-cycle schedule.

    7,364 parameters.
    """

    def layers(self) -> Sequence[Layer]:
        rate = self.dropout_rate
        return [
            *conv_relu_norm(4),  # 26x26
            *conv_relu_norm_drop(8, rate),  # 24x24
            max_pool,  # 12x12
            *conv_relu_norm_drop(10, rate, kernel_size=1),
            *conv_relu_norm_drop(16, rate),  # 10x10
            *conv_relu_norm_drop(16, rate),  # 8x8
            *conv_relu_norm_drop(18, rate),  # 6x6
            global_avg_pool,
            *conv_relu_norm_drop(16, rate, kernel_size=1),
            conv(10, kernel_size=1),
        ]
