"""What trained networks say of images: log-probabilities, of one network or of several together."""

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxmnist.config import ConfigError, spoken
from jaxmnist.data.dataset import CLASSES
from jaxmnist.models import create_model
from jaxmnist.models.variants import Network
from jaxmnist.parallel.devices import fixed_flags
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run, load_run
from jaxmnist.runs.seeds import load_seeds
from jaxmnist.steps import EVAL_BLOCK, normalise

# uint8 [N, 28, 28] to float32 [N, 10], natural logarithms.
Predict = Callable[[np.ndarray], np.ndarray]
# The data set whose networks read drawings and photos.
DIGITS = "mnist"


def load_runs(path: str | os.PathLike) -> list[Run]:
    """The finished runs in a folder: that of one, or those of several seeds.

    Raises:
        ConfigError: there is none, or a seed has failed.
        CheckpointError: a checkpoint is not whole.
        OSError: a file cannot be read.
    """
    path = Path(path)
    if not (path.is_dir() and run_folder.seed_folders(path)):
        return [load_run(path)]
    seeds = load_seeds(path)
    if seeds.failures:
        raise ConfigError(
            f"{path} has seeds that failed: {spoken(list(seeds.failures))}; --resume trains them "
            "again, or name the folders of the others"
        )
    return list(seeds.runs.values())


def check_digits(runs: Sequence[Run]) -> None:
    """Refuse runs that were not trained on digits.

    Raises:
        ConfigError: there is one.
    """
    for run in runs:
        if run.config.dataset != DIGITS:
            raise ConfigError(
                f"{run.path} was trained on {run.config.dataset}; expected a run of {DIGITS}, "
                "since pictures and drawings are read as digits"
            )


def make_predict(run: Run) -> Predict:
    """What a network says of images: `predict(pixels) -> log-probabilities`.

    Args:
        run: a finished run.

    Raises:
        ConfigError: the run does not say how its images were normalised.
    """
    model = create_model(run.config.variant, run.config.dropout)
    mean, std = map(np.float32, run.normalisation)

    @fixed_flags()
    def predict(pixels: np.ndarray) -> np.ndarray:
        # Blocks of one size, so that one program serves any number of images.
        size = min(EVAL_BLOCK, max(len(pixels), 1))
        padded = np.pad(pixels, ((0, -len(pixels) % size), (0, 0), (0, 0)))
        blocks = padded.reshape(-1, size, *pixels.shape[1:])
        said = [np.asarray(_of_block(model, run.variables, block, mean, std)) for block in blocks]
        return np.concatenate([np.empty((0, CLASSES), np.float32), *said])[: len(pixels)]

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _of_block(
    model: Network, variables: Any, pixels: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
    logits: Any = model.apply(variables, normalise(pixels, mean, std))
    return jax.nn.log_softmax(logits)
