"""The seven networks as plain data, for other implementations."""

from typing import Any

import flax.linen as nn

from jaxmnist.models import create_model, layers

SIZE = 28
FLOAT_BYTES = 4

LayerSpec = dict[str, Any]


def describe(variant: str) -> list[LayerSpec]:
    """Return the layers in order, each with its name and the shapes of its input and output.

    Args:
        variant: one of `jaxmnist.VARIANTS`.

    Raises:
        ValueError: the network has a layer of an unknown kind.
    """
    channels, side = 1, SIZE
    described = []
    for name, layer in create_model(variant).named_layers():
        before = {"name": name, "inputs": channels, "input_side": side}
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
                raise ValueError(f"{layer} is a layer of an unknown kind")
        described.append(kind | before | {"features": channels, "side": side})
    return described


def forward_flop(layer: LayerSpec) -> int:
    """Return the FLOP of a layer's convolution in the forward pass, for one image."""
    if layer["kind"] != "conv":
        return 0
    return 2 * layer["kernel_size"] ** 2 * layer["inputs"] * layer["features"] * layer["side"] ** 2


def step_flop(network: list[LayerSpec]) -> int:
    """Return the FLOP of the convolutions in a training step, for one image.

    The forward pass, the kernel gradient and the input gradient cost the same. The first layer
    needs no input gradient.
    """
    flop = [forward_flop(layer) for layer in network]
    return 3 * sum(flop) - flop[0]


def forward_bytes(layer: LayerSpec) -> int:
    """Return the minimum number of bytes that a layer reads and writes, forward, for one image."""
    taken = layer["inputs"] * layer["input_side"] ** 2
    returned = layer["features"] * layer["side"] ** 2
    return FLOAT_BYTES * (taken + returned)


def mflop_per_image(variant: str) -> float:
    """Return the additions and multiplications of a forward pass for one image, in millions."""
    return sum(map(forward_flop, describe(variant))) / 1e6
