"""Networks next to gap, with one thing changed, for ablations."""

from collections.abc import Sequence

from jaxmnist.models.layers import (
    BatchNorm,
    global_avg_pool,
    max_pool,
)
from jaxmnist.models.variants import Gap, Layer, conv, conv_relu_norm, conv_relu_norm_drop


class GapWithoutNorm(Gap):
    """Takes batch normalisation away from gap: 7,188 parameters."""

    def layers(self) -> Sequence[Layer]:
        return [layer for layer in super().layers() if not isinstance(layer, BatchNorm)]


class GapLatePool(Gap):
    """Averages one layer later than gap, right before the last one: 7,364 parameters.

    (After the last one it would be the same: the mean of a linear layer is that of the mean.)
    """

    def layers(self) -> Sequence[Layer]:
        *before, last = (layer for layer in super().layers() if layer is not global_avg_pool)
        return [*before, global_avg_pool, last]


class GapWide(Gap):
    """Spends what gap's 1x1 convolutions cost on wider ones of 3x3: 7,082 parameters."""

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


class GapTwoPools(Gap):
    """Pools a second time, so that the last 3x3 layer sees the whole image: 7,364 parameters.

    What it gives is one pixel, and needs no average.
    """

    def layers(self) -> Sequence[Layer]:
        rate = self.dropout_rate
        return [
            *conv_relu_norm(4),  # 26x26
            *conv_relu_norm_drop(8, rate),  # 24x24
            max_pool,  # 12x12
            *conv_relu_norm_drop(10, rate, kernel_size=1),
            *conv_relu_norm_drop(16, rate),  # 10x10
            max_pool,  # 5x5
            *conv_relu_norm_drop(16, rate),  # 3x3
            *conv_relu_norm_drop(18, rate),  # 1x1
            *conv_relu_norm_drop(16, rate, kernel_size=1),
            conv(10, kernel_size=1),
        ]
