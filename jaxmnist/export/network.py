"""Trained networks for export: layers as data, with their arrays and their input."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.config import TrainConfig
from jaxmnist.models import model_of
from jaxmnist.models.description import describe
from jaxmnist.network_text import LayerSpec
from jaxmnist.runs.run import Run
from jaxmnist.state import jit_once
from jaxmnist.steps import normalise

# Arrays by name, as in the state; `kernel` is [kh, kw, I, O].
Arrays = dict[str, np.ndarray]


class ExportError(RuntimeError):
    """A failed export, or logits that differ from the network's."""


class TrainedNetwork(NamedTuple):
    """A trained network to export."""

    config: TrainConfig
    variables: dict[str, Any]  # params and batch_stats, as numpy arrays
    mean: np.ndarray  # float32 scalar, mean of the training pixels / 255
    std: np.ndarray
    normalised_input: bool  # input: float32 [N, 28, 28, 1], normalised, or uint8 [N, 28, 28]

    def layers(self) -> Iterator[tuple[LayerSpec, Arrays]]:
        """Yield each layer in order of use, with its arrays."""
        params, batch_stats = (self.variables.get(key, {}) for key in ("params", "batch_stats"))
        for layer in describe(model_of(self.config)):
            name = layer["name"]
            yield layer, params.get(name, {}) | batch_stats.get(name, {})

    def input_of(self, images: np.ndarray) -> np.ndarray:
        """Convert images uint8 `[N, 28, 28]` to the input of the export."""
        return self.normalise(images) if self.normalised_input else images

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """Normalise uint8 `[N, 28, 28]` to float32 `[N, 28, 28, 1]`."""
        return np.asarray(normalise(jnp.asarray(images), self.mean, self.std))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Compute the original logits, float32 `[N, 10]`, for images uint8 `[N, 28, 28]`."""
        model = model_of(self.config)
        return np.asarray(jit_once(model.apply)(self.variables, self.normalise(images)))


def trained_network(run: Run, normalised_input: bool = False) -> TrainedNetwork:
    """Return the network of a run, for export.

    Args:
        run: a finished run.
        normalised_input: whether the input is normalised images instead of bytes.

    Raises:
        ConfigError: the run does not contain the normalisation of its images.
    """
    variables = jax.tree.map(np.asarray, run.variables)
    mean, std = (np.asarray(value, np.float32) for value in run.normalisation)
    return TrainedNetwork(run.config, variables, mean, std, normalised_input)
