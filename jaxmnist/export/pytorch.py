"""PyTorch export and import: state dicts in the layer order of the original's networks."""
# pyright: reportMissingImports=false

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.config import ConfigError
from jaxmnist.export.network import TrainedNetwork
from jaxmnist.export.state_dict import TORCH_NAMES, variables_of
from jaxmnist.models import model_of
from jaxmnist.models.description import describe
from jaxmnist.network_text import LayerSpec

COUNTER = "num_batches_tracked"
WEIGHTS_ALONE = "expected what torch.save(model.state_dict(), FILE) writes"


def write(network: TrainedNetwork, file: Path) -> None:
    """Write the state dict of `make_network(describe(model))`.

    Raises:
        OSError: the file cannot be written.
    """
    import torch

    state = {}
    for place, (layer, arrays) in enumerate(network.layers()):
        for ours, theirs in TORCH_NAMES.get(layer["kind"], {}).items():
            if ours in arrays:
                value = arrays[ours].transpose(3, 2, 0, 1) if ours == "kernel" else arrays[ours]
                state[f"{place}.{theirs}"] = torch.tensor(value)
        if layer["kind"] == "norm":
            state[f"{place}.{COUNTER}"] = torch.tensor(0)
    torch.save(state, file)


def logits_of(network: TrainedNetwork, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits `[N, 10]` with PyTorch from the arrays in a file.

    Args:
        network: the exported network.
        file: the state dict.
        images: uint8 `[N, 28, 28]`.
    """
    import torch

    module = make_network(describe(model_of(network.config)))
    module.load_state_dict(torch.load(file, weights_only=True))
    pixels = torch.tensor(network.normalise(images).transpose(0, 3, 1, 2))
    with torch.inference_mode():
        return module.eval()(pixels).numpy()


def make_network(layers: list[LayerSpec]) -> Any:
    """Build the network as a `torch.nn.Sequential`, one module per layer."""
    from torch import nn

    class Network(nn.Sequential):
        def forward(self, x):
            outputs = [x]
            for layer, module in zip(layers, self, strict=True):
                y = module(outputs[-1])
                outputs.append(y + outputs[layer["source"] + 1] if layer["kind"] == "add" else y)
            return outputs[-1].flatten(1)

    return Network(*map(_make_module, layers))


def _make_module(layer: LayerSpec) -> Any:
    from torch import nn

    features = layer["features"]
    match layer["kind"]:
        case "conv":
            return nn.Conv2d(
                layer["inputs"],
                features,
                layer["kernel_size"],
                stride=layer["stride"],
                padding=layer["padding"],
                groups=layer["groups"],
                bias=layer["use_bias"],
            )
        case "norm":
            return nn.BatchNorm2d(features, layer["epsilon"])
        case "group_norm":
            return nn.GroupNorm(layer["groups"], features, layer["epsilon"])
        case "dropout":
            return nn.Dropout(layer["rate"])
        case "relu":
            return nn.ReLU()
        case "max_pool":
            return nn.MaxPool2d(2)
        case "mean":
            return nn.AvgPool2d(layer["input_side"])
        case "max":
            return nn.MaxPool2d(layer["input_side"])
        case _:
            return nn.Identity()


def read(file: Path, variant: str) -> dict[str, Any]:
    """Read the variables of a network from a state dict, without executing code in the file.

    Args:
        file: a file from `torch.save(model.state_dict(), file)`, or a checkpoint that contains one
            state dict.
        variant: variant of the network.

    Returns:
        `params` and `batch_stats`, float32.

    Raises:
        ConfigError: the file is not a state dict, or belongs to another network.
        OSError: the file cannot be opened.
    """
    if not file.is_file():
        raise ConfigError(f"{file} is no file; expected a PyTorch state dict")
    try:
        tensors = _state_of(_load(file))
        # PyTorch stores the order of the modules separately from the order of the tensors.
        modules = getattr(tensors, "_metadata", None)
        arrays = {name: _array_of(name, tensor) for name, tensor in tensors.items()}
        return variables_of(arrays, variant, list(modules) if modules else None)
    except ConfigError as error:
        # Names come from the file and could contain terminal control codes.
        words = "".join(c if c.isprintable() else "?" for c in str(error))
        raise ConfigError(f"{file}: {words}") from error


def _load(file: Path) -> Any:
    """Load a file with PyTorch, without executing code in it."""
    import torch

    content = io.BytesIO(file.read_bytes())
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise ConfigError(f"it is a TorchScript program; {WEIGHTS_ALONE}")
    content.seek(0)
    try:
        return torch.load(content, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # PyTorch's readers raise many types
        # PyTorch's own message is long, and advises executing the code in the file.
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "it cannot be read as a file of torch.save"
        if named is not None:
            reason = f"it holds a Python object ({named[1]}), as a whole model does"
        raise ConfigError(f"{reason}; {WEIGHTS_ALONE}") from error


def _state_of(found: Any) -> Any:
    """Return the only dict of tensors in the content of a file."""
    if not isinstance(found, dict) or not found:
        empty = "an empty " if isinstance(found, dict) else "a "
        raise ConfigError(f"it holds {empty}{type(found).__name__}; {WEIGHTS_ALONE}")
    if _is_state(found):
        return found
    inside = [key for key, value in found.items() if _is_state(value)]
    if len(inside) == 1:
        return found[inside[0]]
    what = f"it is a checkpoint with the keys {', '.join(map(str, found))}"
    if inside:
        choices = " or ".join(f"[{key!r}]" for key in inside)
        raise ConfigError(f"{what}; save one of them alone: torch.save(checkpoint{choices}, FILE)")
    # List only the keys that are not tensors, which many tensor names would hide.
    others = {
        str(key): type(value).__name__ for key, value in found.items() if not _is_tensor(value)
    }
    names = ", ".join(f"{key} ({kind})" for key, kind in others.items())
    raise ConfigError(f"it holds more than tensors: {names}; {WEIGHTS_ALONE}")


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(key, str) and _is_tensor(tensor) for key, tensor in value.items())
    )


def _array_of(name: str, tensor: Any) -> np.ndarray:
    try:
        if tensor.is_complex():
            raise TypeError("the imaginary part would be lost")
        return tensor.detach().float().numpy()
    except Exception as error:  # sparse tensors, tensors without data, and others
        raise ConfigError(
            f"{name} is a tensor of {tensor.dtype}, {tensor.layout}; expected dense real numbers"
        ) from error
