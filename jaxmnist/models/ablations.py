"""Networks for ablations: gap with one change each, and gap in other shapes."""

from collections.abc import Sequence

from jaxmnist.models.layers import BatchNorm, GhostNorm, GroupNorm, global_avg_pool, max_pool
from jaxmnist.models.variants import GapNet, Layer, conv, conv_relu_norm, conv_relu_norm_drop


class GapWithoutNormNet(GapNet):
    """The gap network without batch normalisation: 7,188 parameters."""

    def layers(self) -> Sequence[Layer]:
        return [layer for layer in super().layers() if not isinstance(layer, BatchNorm)]


class GapGroupNormNet(GapNet):
    """The gap network with group normalisation, two groups of channels: 7,364 parameters."""

    def layers(self) -> Sequence[Layer]:
        return _with_norm(super().layers(), GroupNorm(groups=2, parent=None))


class GapLayerNormNet(GapNet):
    """The gap network with layer normalisation, one group of channels: 7,364 parameters."""

    def layers(self) -> Sequence[Layer]:
        return _with_norm(super().layers(), GroupNorm(groups=1, parent=None))


class GapGhostNormNet(GapNet):
    """The gap network with batch normalisation of each quarter of the batch: 7,364 parameters."""

    def layers(self) -> Sequence[Layer]:
        return _with_norm(super().layers(), GhostNorm(splits=4, parent=None))


def _with_norm(layers: Sequence[Layer], norm: Layer) -> list[Layer]:
    """Return the layers with another normalisation in place of each batch normalisation."""
    return [norm if isinstance(layer, BatchNorm) else layer for layer in layers]


class GapLatePoolNet(GapNet):
    """The gap network with the average one layer later, before the last layer: 7,364 parameters.

    An average after the last layer would be equivalent, because the last layer is linear.
    """

    def layers(self) -> Sequence[Layer]:
        *before, last = (layer for layer in super().layers() if layer is not global_avg_pool)
        return [*before, global_avg_pool, last]


class GapWideNet(GapNet):
    """The gap network with wider 3x3 convolutions and fewer 1x1 ones: 7,082 parameters."""

    def layers(self) -> Sequence[Layer]:
        rate = self.dropout_rate
        return [
            *conv_relu_norm(6),  # 26x26
            *conv_relu_norm_drop(10, rate),  # 24x24
            max_pool,  # 12x12
            *conv_relu_norm_drop(14, rate),  # 10x10
            *conv_relu_norm_drop(16, rate),  # 8x8
            *conv_relu_norm_drop(20, rate),  # 6x6
            global_avg_pool,
            conv(10, kernel_size=1),
        ]


class GapTwoPoolsNet(GapNet):
    """The gap network with a second pooling: 7,364 parameters.

    The last 3x3 layer covers the whole image. Its output is one pixel and needs no average.
    """

    def layers(self) -> Sequence[Layer]:
        layers = [layer for layer in super().layers() if layer is not global_avg_pool]
        # Two blocks of four layers after the first pooling; images are 10x10 there.
        layers.insert(layers.index(max_pool) + 9, max_pool)
        return layers
