"""A trained network as what is exported: its layers as data, their arrays, its input."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmnist.config import TrainConfig
from jaxmnist.models import create_model
from jaxmnist.models.description import Layer, describe
from jaxmnist.runs.run import Run
from jaxmnist.steps import normalise

# Named as in the state; `kernel` is [kh, kw, I, O].
Arrays = dict[str, np.ndarray]


class ExportError(RuntimeError):
    """An export cannot be used, or does not say what the network says."""


class Network(NamedTuple):
    """What is exported."""

    config: TrainConfig
    variables: dict[str, Any]  # params and batch_stats, as numpy arrays
    mean: np.ndarray  # float32 scalar, of the pixels / 255 that it was trained on
    std: np.ndarray
    normalised_input: bool  # float32 [N, 28, 28, 1], normalised, in place of uint8 [N, 28, 28]

    def layers(self) -> Iterator[tuple[str, Layer, Arrays]]:
        """Each layer in order of use: its name, what it is, and its arrays."""
        numbers = Counter()
        for layer in describe(self.config.variant):
            kind = layer["kind"]
            name = f"{kind}{numbers[kind]}"
            numbers[kind] += 1
            parts = (collection.get(name, {}) for collection in self.variables.values())
            yield name, layer, {key: value for part in parts for key, value in part.items()}

    def input_of(self, images: np.ndarray) -> np.ndarray:
        """What the export takes in place of images uint8 `[N, 28, 28]`."""
        return self.normalise(images) if self.normalised_input else images

    def normalise(self, images: np.ndarray) -> np.ndarray:
        """uint8 `[N, 28, 28]` to float32 `[N, 28, 28, 1]`."""
        return np.asarray(normalise(jnp.asarray(images), self.mean, self.std))

    def logits(self, images: np.ndarray) -> np.ndarray:
        """What the original says of images uint8 `[N, 28, 28]`: float32 `[N, 10]`."""
        model = create_model(self.config.variant, self.config.dropout)
        return np.asarray(model.apply(self.variables, self.normalise(images)))


def network_of(run: Run, normalised_input: bool = False) -> Network:
    """What is exported of a run.

    Args:
        run: a finished run.
        normalised_input: whether the export takes normalised images, rather than bytes.

    Raises:
        ConfigError: the run does not say how its images were normalised.
    """
    variables = jax.tree.map(np.asarray, run.variables)
    mean, std = (np.asarray(value, np.float32) for value in run.normalisation)
    return Network(run.config, variables, mean, std, normalised_input)
