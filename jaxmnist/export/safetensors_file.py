"""Safetensors export: arrays by name, and the config in the metadata."""

import json
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import safe_open
from safetensors.numpy import save

from jaxmnist.config import TrainConfig
from jaxmnist.export.network import TrainedNetwork
from jaxmnist.models import model_of
from jaxmnist.state import jit_once


def write(network: TrainedNetwork, file: Path) -> None:
    """Write `params/conv0/kernel` and all other arrays, and `config` as JSON.

    Raises:
        OSError: the file cannot be written.
    """
    named = flatten_dict(network.variables, sep="/")
    arrays = {name: np.ascontiguousarray(value) for name, value in named.items()}
    file.write_bytes(save(arrays, metadata={"config": json.dumps(network.config.to_dict())}))


def logits_of(network: TrainedNetwork, file: Path, images: np.ndarray) -> np.ndarray:
    """Compute logits `[N, 10]` from the arrays and config in a file.

    Args:
        network: the exported network, for the normalisation of its images.
        file: the file of the arrays.
        images: uint8 `[N, 28, 28]`.
    """
    with safe_open(file, "numpy") as opened:
        config = TrainConfig.from_dict(json.loads(opened.metadata()["config"]))
        arrays = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    variables = unflatten_dict(arrays, sep="/")
    model = model_of(config)
    return np.asarray(jit_once(model.apply)(variables, network.normalise(images)))
