"""Networks as plain data, for other implementations and for tables."""

from collections.abc import Sequence
from typing import Any

from jaxmnist.models import layers
from jaxmnist.models.own import FUNCTIONS
from jaxmnist.models.variants import Layer, Network
from jaxmnist.network_text import SIZE, LayerSpec, with_shapes

FLOAT_BYTES = 4

_KINDS = {function: kind for kind, function in FUNCTIONS.items()}


def describe(model: Network) -> list[LayerSpec]:
    """Return the layers in order, each with its name and the shapes of its input and output.

    Args:
        model: a network of `jaxmnist.create_model`.

    Returns:
        The layers as `network_text.with_shapes` returns them, each with its `name`.

    Raises:
        ValueError: the network has a layer of an unknown kind.
    """
    return with_shapes([_spec_of(layer) | {"name": name} for name, layer in model.named_layers()])


def _spec_of(layer: Layer) -> LayerSpec:
    match layer:
        case layers.Conv() | layers.DepthwiseConv():
            depthwise = isinstance(layer, layers.DepthwiseConv)
            features = {} if depthwise else {"features": layer.features}
            names = ("kernel_size", "stride", "padding", "use_bias")
            values = {name: getattr(layer, name) for name in names}
            return {"kind": "conv", "depthwise": depthwise, **features, **values}
        case layers.BatchNorm():  # ghost normalisation too: it differs in training only
            return {"kind": "norm", "epsilon": layer.epsilon}
        case layers.GroupNorm():
            return {"kind": "group_norm", "groups": layer.groups, "epsilon": layer.epsilon}
        case layers.Dropout():
            return {"kind": "dropout", "rate": layer.rate}
        case _ if layer in _KINDS:
            return {"kind": _KINDS[layer]}
        case _:
            raise ValueError(f"{layer} is a layer of an unknown kind")


def parameters(layer: LayerSpec) -> int:
    """Return the number of trained parameters of a layer."""
    match layer["kind"]:
        case "conv":
            kernel = layer["kernel_size"] ** 2 * layer["inputs"] // layer["groups"]
            return layer["features"] * (kernel + layer["use_bias"])
        case "norm" | "group_norm":
            return 2 * layer["features"]
        case _:
            return 0


def forward_flop(layer: LayerSpec) -> int:
    """Return the FLOP of a layer's convolution in the forward pass, for one image."""
    if layer["kind"] != "conv":
        return 0
    products = layer["kernel_size"] ** 2 * layer["inputs"] // layer["groups"]
    return 2 * products * layer["features"] * layer["side"] ** 2


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


def mflop_per_image(model: Network) -> float:
    """Return the additions and multiplications of a forward pass for one image, in millions."""
    return sum(map(forward_flop, describe(model))) / 1e6


def receptive_fields(network: Sequence[LayerSpec]) -> list[tuple[int, int]]:
    """Return the receptive field and the jump of each layer's output, in pixels of the image.

    The receptive field is the side of the square of input pixels that an output pixel depends on,
    as if the image had no border; the jump is the distance between the squares of two neighbours.
    Source: Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks",
    Distill, 2019.

    Args:
        network: the layers, from `describe`.
    """
    fields = []
    field, jump = 1, 1
    for layer in network:
        size, stride, _ = window(layer)
        field, jump = field + (size - 1) * jump, jump * stride
        if layer["kind"] == "add" and layer["source"] >= 0:
            field = max(field, fields[layer["source"]][0])
        fields.append((field, jump))
    return fields


def seen(network: Sequence[LayerSpec], index: int, pixel: int) -> tuple[int, int]:
    """Return the range of image rows, or columns, that a pixel of a layer's output depends on.

    Args:
        network: the layers, from `describe`.
        index: the index of the layer.
        pixel: the row, or the column, of the pixel.

    Returns:
        The first row and the last one plus 1, within the image.
    """
    wanted = {index: (pixel, pixel + 1)}
    for place in range(index, -1, -1):
        if place not in wanted:
            continue
        layer, (first, end) = network[place], wanted[place]
        size, stride, padding = window(layer)
        below = (
            max(first * stride - padding, 0),
            min((end - 1) * stride - padding + size, layer["input_side"]),
        )
        sources = {place - 1: below}
        if layer["kind"] == "add":
            sources[layer["source"]] = below
        for source, (low, high) in sources.items():
            other = wanted.get(source, (low, high))
            wanted[source] = (min(low, other[0]), max(high, other[1]))
    return wanted[-1]


def window(layer: LayerSpec) -> tuple[int, int, int]:
    """Return the size, the stride and the padding of the input window of an output pixel."""
    match layer["kind"]:
        case "conv":
            return layer["kernel_size"], layer["stride"], layer["padding"]
        case "max_pool":
            return 2, 2, 0
        case "mean" | "max":
            return layer["input_side"], 1, 0
        case "group_norm":  # every pixel depends on all pixels
            return 2 * layer["input_side"] - 1, 1, layer["input_side"] - 1
        case _:
            return 1, 1, 0


def tabulate(network: Sequence[LayerSpec]) -> list[dict[str, Any]]:
    """Return a row for each layer: shapes, costs and what its output depends on.

    Args:
        network: the layers, from `describe`.

    Returns:
        Dicts with `layer`, `output` `[H, W, C]`, `kernel` `[kh, kw]` or None, `parameters`,
        `mflop` (forward, for one image), `receptive_field` and `jump` in pixels, and `seen`, the
        fraction of the image that the central pixel of the output depends on.
    """
    rows = []
    for index, (layer, (field, jump)) in enumerate(
        zip(network, receptive_fields(network), strict=True)
    ):
        first, end = seen(network, index, layer["side"] // 2)
        rows.append(
            {
                "layer": layer["name"],
                "output": [layer["side"], layer["side"], layer["features"]],
                "kernel": [layer["kernel_size"]] * 2 if layer["kind"] == "conv" else None,
                "parameters": parameters(layer),
                "mflop": forward_flop(layer) / 1e6,
                "receptive_field": field,
                "jump": jump,
                "seen": ((end - first) / SIZE) ** 2,
            }
        )
    return rows
