"""Safetensors export: arrays by name, and the config in the metadata."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from jaxmnist.config import TrainConfig
from jaxmnist.export.network import Network
from jaxmnist.inference.pretrained import to_arrays, to_variables
from jaxmnist.models import create_model


def write(network: Network, file: Path) -> None:
    """Write `params/conv0/kernel` and all other arrays, and `config` as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = to_arrays(network.variables)
    file.write_bytes(save(arrays, metadata={"config": network.config.to_json()}))


def answer(network: Network, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits `[N, 10]` of images with the arrays and config of a file.

    Args:
        network: the exported network, for the normalisation of its images.
        file: the file of the arrays.
        images: uint8 `[N, 28, 28]`.
    """
    with safe_open(file, "numpy") as opened:
        config = TrainConfig.from_json(opened.metadata()["config"])
        variables = to_variables({key: opened.get_tensor(key) for key in opened.offset_keys()})
    model = create_model(config.variant, config.dropout)
    return np.asarray(model.apply(variables, network.normalise(images)))
