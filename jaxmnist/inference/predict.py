"""Loading of finished runs, and prediction of log-probabilities for images."""

import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmnist.config import ConfigError, format_seeds
from jaxmnist.data.dataset import CLASSES
from jaxmnist.inference import pretrained
from jaxmnist.models import model_of
from jaxmnist.models.variants import Network
from jaxmnist.parallel.devices import fixed_flags
from jaxmnist.runs.run import Run, load_run
from jaxmnist.steps import EVAL_BLOCK, normalise

# From uint8 [N, 28, 28] to log-probabilities float32 [N, 10], natural logarithm.
Predict = Callable[[np.ndarray], np.ndarray]
# Data set of the networks that can read drawings and photos.
DIGITS = "mnist"


def load_runs(path: str | os.PathLike) -> list[Run]:
    """Load a finished run, and split it into runs of one seed each.

    Args:
        path: the run's folder, or the name of a pretrained network.

    Raises:
        ConfigError: the folder is not a finished run, or a seed has failed.
        CheckpointError: a checkpoint is incomplete.
        OSError: a file cannot be read.
    """
    run = _load(path)
    if run.failures:
        raise ConfigError(
            f"{path} has seeds that failed: {format_seeds(list(run.failures))}; --resume trains "
            "them again"
        )
    return run.split()


def load_seed(path: str | os.PathLike, seed: int | None = None) -> Run:
    """Load the finished run of one seed.

    Args:
        path: the run's folder, or the name of a pretrained network.
        seed: one of the run's seeds; None for a run of one seed.

    Raises:
        ConfigError: the seed does not exist, there are several and none is given, or the folder is
            not a finished run.
    """
    run = _load(path)
    if seed is None and len(run.snapshots) == 1:
        seed = next(iter(run.snapshots))
    if seed not in run.snapshots:
        which = "are several" if seed is None else f"is no finished seed {seed}"
        raise ConfigError(
            f"there {which} in {path}; pass --seed with one of {format_seeds(list(run.snapshots))}"
        )
    return next(each for each in run.split() if each.config.seed == seed)


def _load(path: str | os.PathLike) -> Run:
    """Load a run from its folder, or a pretrained network by its name."""
    if pretrained.is_pretrained(path):
        return pretrained.load_pretrained(os.fspath(path))
    if not os.path.exists(path):
        names = ", ".join([*pretrained.NAMES, *pretrained.SHORT_NAMES])
        raise ConfigError(
            f"{path} does not exist; expected the folder of a run, or a pretrained network: {names}"
        )
    return load_run(path)


def check_digits(runs: Sequence[Run]) -> None:
    """Check that all runs were trained on digits.

    Raises:
        ConfigError: a run was trained on another data set.
    """
    for run in runs:
        if run.config.dataset != DIGITS:
            raise ConfigError(
                f"{run.path} was trained on {run.config.dataset}; expected a run of {DIGITS}, "
                "since pictures and drawings are read as digits"
            )


def make_predict(run: Run) -> Predict:
    """Return a run's prediction function, `predict(pixels) -> log-probabilities`.

    Args:
        run: a finished run.

    Raises:
        ConfigError: the run does not contain the normalisation of its images.
    """
    model = model_of(run.config)
    mean, std = map(np.float32, run.normalisation)

    @fixed_flags()
    def predict(pixels: np.ndarray) -> np.ndarray:
        # Use blocks of one size, so that one program handles any number of images.
        size = min(EVAL_BLOCK, max(len(pixels), 1))
        padded = np.pad(pixels, ((0, -len(pixels) % size), (0, 0), (0, 0)))
        blocks = padded.reshape(-1, size, *pixels.shape[1:])
        log_probs = [
            np.asarray(_of_block(model, run.variables, block, mean, std)) for block in blocks
        ]
        return np.concatenate([np.empty((0, CLASSES), np.float32), *log_probs])[: len(pixels)]

    return predict


@functools.partial(jax.jit, static_argnums=0)
def _of_block(
    model: Network, variables: Any, pixels: jax.Array, mean: jax.Array, std: jax.Array
) -> jax.Array:
    logits: Any = model.apply(variables, normalise(pixels, mean, std))
    return jax.nn.log_softmax(logits)
