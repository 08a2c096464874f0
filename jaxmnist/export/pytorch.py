"""PyTorch: a state dict in the layer order of the original's networks, and back."""
# pyright: reportMissingImports=false

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.config import ConfigError
from jaxmnist.description import Layer, describe
from jaxmnist.export.network import Network

# Ours and PyTorch's names of a layer's arrays, in PyTorch's order.
CONV = {"kernel": "weight", "bias": "bias"}
NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
COUNTER = "num_batches_tracked"


def write(network: Network, file: Path) -> None:
    """Writes the state dict of `make_network(describe(variant))`.

    Raises:
        OSError: the disk does not take it.
    """
    import torch

    state = {}
    for place, (_, layer, arrays) in enumerate(network.layers()):
        names = {"conv": CONV, "norm": NORM}.get(layer["kind"], {})
        for ours, theirs in names.items():
            if ours in arrays:
                value = arrays[ours].transpose(3, 2, 0, 1) if ours == "kernel" else arrays[ours]
                state[f"{place}.{theirs}"] = torch.tensor(value)
        if layer["kind"] == "norm":
            state[f"{place}.{COUNTER}"] = torch.tensor(0)
    torch.save(state, file)


def answer(network: Network, file: Path, images: np.ndarray) -> np.ndarray:
    """What PyTorch makes of images with the arrays of a file: logits `[N, 10]`.

    Args:
        network: what was written.
        file: the state dict.
        images: uint8 `[N, 28, 28]`.
    """
    import torch

    module = make_network(describe(network.config.variant))
    module.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.tensor(network.normalise(images).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        return module.eval()(pixels).numpy()


def make_network(layers: list[Layer]) -> Any:
    """The network as a `torch.nn.Sequential`, each layer in its place."""
    from torch import nn

    def make(layer: Layer) -> nn.Module:
        features, inputs, side = layer["features"], layer["inputs"], layer.get("kernel_size")
        match layer["kind"]:
            case "conv":
                padding, bias = layer["padding"], layer["use_bias"]
                return nn.Conv2d(inputs, features, side, padding=padding, bias=bias)
            case "norm":
                return nn.BatchNorm2d(features, layer["epsilon"])
            case "dropout":
                return nn.Dropout(layer["rate"])
            case "relu":
                return nn.ReLU()
            case "max_pool":
                return nn.MaxPool2d(2)
            case _:
                return nn.AvgPool2d(layer["input_side"])

    return nn.Sequential(*map(make, layers), nn.Flatten())


def read(file: Path, variant: str) -> dict[str, Any]:
    """The variables of a network from its state dict; nothing in the file is executed.

    Names do not matter: the arrays must come in the order in which their layers are used.

    Args:
        file: what `torch.save(model.state_dict(), file)` wrote.
        variant: which network it is.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        ConfigError: the file holds something else, or another network.
        OSError: it cannot be opened.
    """
    import torch

    if not file.is_file():
        raise ConfigError(f"{file} is no file; expected a PyTorch state dict")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        found = [
            (name, value.detach().float().numpy())
            for name, value in state.items()
            if not name.endswith(COUNTER)
        ]
    except OSError:
        raise
    except Exception as error:  # PyTorch's readers raise of all kinds
        raise ConfigError(
            f"{file} holds no weights alone: {' '.join(str(error).split())[:200]}; "
            "expected what torch.save(model.state_dict(), FILE) writes"
        ) from error
    return _variables(found, variant, file)


def _variables(found: list[tuple[str, np.ndarray]], variant: str, file: Path) -> dict[str, Any]:
    """Gives each array its place in the network, and refuses one that does not fit."""
    expected = list(_expected(variant))
    if len(found) != len(expected):
        raise ConfigError(
            f"{file} has {len(found)} arrays; {variant} has {len(expected)}: is it another variant?"
        )
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for (name, value), (layer, key, shape) in zip(found, expected, strict=True):
        if value.shape != shape:
            raise ConfigError(
                f"{name} in {file} is {list(value.shape)}; expected {list(shape)} for the {key} "
                f"of {layer} of {variant}: is it another variant?"
            )
        if not np.isfinite(value).all() or (key == "var" and (value < 0).any()):
            raise ConfigError(f"{name} in {file} has numbers that no {key} has")
        collection = variables["batch_stats" if key in ("mean", "var") else "params"]
        ours = value.transpose(2, 3, 1, 0) if key == "kernel" else value
        collection.setdefault(layer, {})[key] = ours
    return variables


def _expected(variant: str) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Layer, our key and PyTorch's shape of each array, in PyTorch's order."""
    convs = norms = 0
    for layer in describe(variant):
        features = layer["features"]
        if layer["kind"] == "conv":
            side = layer["kernel_size"]
            yield f"conv{convs}", "kernel", (features, layer["inputs"], side, side)
            if layer["use_bias"]:
                yield f"conv{convs}", "bias", (features,)
            convs += 1
        elif layer["kind"] == "norm":
            for key in NORM:
                yield f"norm{norms}", key, (features,)
            norms += 1
