"""The seven networks as plain data, for whoever builds them with other means."""

from typing import Any

import flax.linen as nn

from jaxmnist.models import create_model, layers

SIZE = 28

Layer = dict[str, Any]


def describe(variant: str) -> list[Layer]:
    """The layers in order, each with the channels and the side of what it takes and returns.

    Args:
        variant: one of `jaxmnist.VARIANTS`.

    Raises:
        ValueError: a network has a layer that is not known here.
    """
    channels, side = 1, SIZE
    described = []
    for layer in create_model(variant).layers():
        before = {"inputs": channels, "input_side": side}
        match layer:
            case layers.Conv():
                channels, side = layer.features, side + 2 * layer.padding - layer.kernel_size + 1
                kind = {
                    "kind": "conv",
                    "kernel_size": layer.kernel_size,
                    "padding": layer.padding,
                    "use_bias": layer.use_bias,
                }
            case layers.BatchNorm():
                kind = {"kind": "norm", "epsilon": layer.epsilon}
            case layers.Dropout():
                kind = {"kind": "dropout", "rate": layer.rate}
            case nn.relu:
                kind = {"kind": "relu"}
            case layers.max_pool:
                side //= 2
                kind = {"kind": "max_pool"}
            case layers.global_avg_pool:
                side = 1
                kind = {"kind": "mean"}
            case _:
                raise ValueError(f"{layer} is no layer that can be described")
        described.append(kind | before | {"features": channels, "side": side})
    return described
