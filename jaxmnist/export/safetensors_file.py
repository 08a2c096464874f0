"""Safetensors export: arrays by name, and the config in the metadata."""
# pyright: reportMissingImports=false

from pathlib import Path
from typing import Any

import numpy as np

from jaxmnist.config import TrainConfig
from jaxmnist.export.network import TrainedNetwork
from jaxmnist.models import create_model


def write(network: TrainedNetwork, file: Path) -> None:
    """Write `params/conv0/kernel` and all other arrays, and `config` as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    from safetensors.numpy import save

    arrays = {
        f"{collection}/{layer}/{key}": np.ascontiguousarray(value)
        for collection, layers in network.variables.items()
        for layer, leaves in layers.items()
        for key, value in leaves.items()
    }
    file.write_bytes(save(arrays, metadata={"config": network.config.to_json()}))


def logits_of(network: TrainedNetwork, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits `[N, 10]` of images with the arrays and config of a file.

    Args:
        network: the exported network, for the normalisation of its images.
        file: the file of the arrays.
        images: uint8 `[N, 28, 28]`.
    """
    from safetensors import safe_open

    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    with safe_open(file, "numpy") as opened:
        config = TrainConfig.from_json(opened.metadata()["config"])
        for name in opened.keys():  # noqa: SIM118 - not a dictionary
            collection, layer, key = name.split("/")
            variables[collection].setdefault(layer, {})[key] = opened.get_tensor(name)
    model = create_model(config.variant, config.dropout)
    return np.asarray(model.apply(variables, network.normalise(images)))
