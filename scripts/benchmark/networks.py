"""The seven networks as plain data, so that every contender builds the same ones; their costs."""

from typing import Any

import flax.linen as nn

from jaxmnist import layers
from jaxmnist.models import create_model

SIZE = 28
FLOAT_BYTES = 4

Layer = dict[str, Any]


def describe(variant: str) -> list[Layer]:
    """The layers in order, each with the channels and the side of what it takes and returns."""
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
                kind = {"kind": "norm"}
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
                raise ValueError(f"the benchmark does not know the layer {layer}")
        described.append(kind | before | {"features": channels, "side": side})
    return described


def forward_flop(layer: Layer) -> int:
    """Multiplications and additions of a convolution's forward pass, for one image."""
    if layer["kind"] != "conv":
        return 0
    return 2 * layer["kernel_size"] ** 2 * layer["inputs"] * layer["features"] * layer["side"] ** 2


def step_flop(network: list[Layer]) -> int:
    """The convolutions' arithmetic in a training step, for one image.

    The forward pass, the gradient of the kernel and the gradient of the input are as much work
    each; only the images need no gradient.
    """
    flop = [forward_flop(layer) for layer in network]
    return 3 * sum(flop) - flop[0]


def forward_bytes(layer: Layer) -> int:
    """What a layer's forward pass must at least read and write, for one image."""
    taken = layer["inputs"] * layer["input_side"] ** 2
    returned = layer["features"] * layer["side"] ** 2
    return FLOAT_BYTES * (taken + returned)
