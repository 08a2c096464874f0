"""Safetensors: the arrays by their names, and the config in the metadata."""
# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.config import TrainConfig
from jaxmnist.export.network import Network
from jaxmnist.models import create_model


def write(network: Network, file: Path) -> None:
    """Writes `params/conv0/kernel` and all other arrays, and `config` as JSON.

    Raises:
        OSError: the disk does not take it.
    """
    from safetensors.numpy import save

    arrays = {
        f"{collection}/{layer}/{key}": np.ascontiguousarray(value)
        for collection, layers in network.variables.items()
        for layer, leaves in layers.items()
        for key, value in leaves.items()
    }
    file.write_bytes(save(arrays, metadata={"config": network.config.to_json()}))


def answer(network: Network, file: Path, images: np.ndarray) -> np.ndarray:
    """What the network makes of images with the arrays and config of a file: logits `[N, 10]`.

    Args:
        network: what was written, for how its images are normalised.
        file: the arrays.
        images: uint8 `[N, 28, 28]`.
    """
    from safetensors import safe_open

    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    with safe_open(file, "numpy") as opened:
        config = TrainConfig.from_json(opened.metadata()["config"])
        for name in opened.keys():  # noqa: SIM118 - it is no dictionary
            collection, layer, key = name.split("/")
            variables[collection].setdefault(layer, {})[key] = opened.get_tensor(name)
    model = create_model(config.variant, config.dropout)
    return np.asarray(model.apply(variables, network.normalise(images)))
