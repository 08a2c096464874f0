"""Learning rate range test: the loss while the learning rate grows, to find a good peak.

Source: Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.optim import Schedules, constant, sgd
from jaxmnist.parallel.devices import ONE, fixed_flags
from jaxmnist.runs.setup import RunOptions, make_setup
from jaxmnist.state import create_state
from jaxmnist.steps import Images, batch_at, epoch_permutation, train_step

# Learning rates of the first and the last step.
LOW, HIGH = 1e-4, 10.0
# Width of the moving average of the losses, as a factor of the learning rate.
SMOOTHING = 1.5
# Ratio of the two ends of the suggested interval. Its upper end is where the loss is lowest, which
# is often too high for a whole training.
DECADE = 10.0


class RangeTest(NamedTuple):
    """The result of a range test."""

    rates: np.ndarray  # float [steps]
    losses: np.ndarray  # float [seeds, steps], of the batch before each step
    smooth: np.ndarray  # float [seeds, steps], moving averages of the losses
    low: float  # suggested interval for the peak
    high: float


@fixed_flags()
def measure(
    config: TrainConfig, seeds: Sequence[int], options: RunOptions = RunOptions()
) -> RangeTest:
    """Train for one epoch while the learning rate grows exponentially.

    The momentum is the one that the recipe has at the peak of the learning rate.

    Args:
        config: the config; its epochs, schedule and learning rate are not used.
        seeds: the seeds, which train in one program.
        options: the folders of the images.

    Raises:
        ConfigError: there are too few steps.
        DataError: the images are not available.
    """
    setup = make_setup(config, options)
    schedules = make_schedules(config, setup.steps)
    rates = schedules.learning_rate(np.arange(setup.steps))
    tx = sgd(config, schedules)
    train = functools.partial(train_epoch, config=config, model=setup.model, tx=tx)
    every_seed = jax.jit(functools.partial(train_seeds, train))
    losses = np.asarray(every_seed(np.array(seeds, np.uint32), setup.train_images), np.float64)
    smooth = np.stack([smoothed(rates, each) for each in losses])
    low, high = suggest(rates, smooth)
    return RangeTest(rates, losses, smooth, low, high)


def train_seeds(
    train: Callable[[jax.Array, Images], jax.Array], seeds: jax.Array, images: Images
) -> jax.Array:
    """Return the losses of all seeds, float32 `[seeds, steps]`, by the function of one seed."""
    if ONE.platform == "cpu":  # several seeds side by side would exceed its caches
        return jax.lax.map(lambda seed: train(seed, images), seeds)
    return jax.vmap(train, in_axes=(0, None))(seeds, images)


def make_schedules(config: TrainConfig, steps: int) -> Schedules:
    """Return the schedules of a range test of a number of steps."""
    cycles = config.schedule == "one_cycle" and config.cycle_momentum
    momentum = config.base_momentum if cycles else config.momentum
    return Schedules(
        learning_rate=lambda step: LOW * (HIGH / LOW) ** (step / max(steps - 1, 1)),
        momentum=constant(momentum),
    )


def train_epoch(
    seed: jax.Array,
    images: Images,
    *,
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
) -> jax.Array:
    """Train for an epoch, and return the loss of each batch, float32 `[steps]`.

    Args:
        seed: uint32 scalar.
        images: the training images.
        config: the config, for the batches.
        model: the network.
        tx: the optimiser.
    """
    state = create_state(model, tx, seed)
    order = epoch_permutation(state, images, batch_size=config.batch_size)

    def step(state: Any, position: jax.Array):
        batch = batch_at(state, images, order, position, config=config)
        state, metrics = train_step(state, batch, model=model, tx=tx)
        return state, metrics.loss_sum / config.batch_size

    steps = len(images.pixels) // config.batch_size
    _, losses = jax.lax.scan(step, state, jnp.arange(steps))
    return jnp.asarray(losses)


def smoothed(rates: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Return the mean loss in a window around each rate; not finite if a loss there is not.

    Args:
        rates: increasing learning rates `[steps]`.
        losses: the losses `[steps]`.
    """
    first = np.searchsorted(rates, rates / SMOOTHING)
    end = np.searchsorted(rates, rates * SMOOTHING, side="right")
    return np.array([losses[a:b].mean() for a, b in zip(first, end, strict=True)])


def suggest(rates: np.ndarray, smooth: np.ndarray) -> tuple[float, float]:
    """Return an interval for the peak: from a tenth of the rate of the lowest loss to that rate.

    Args:
        rates: learning rates `[steps]`.
        smooth: smoothed losses `[seeds, steps]`; a loss that is not finite counts as infinite.

    Raises:
        ConfigError: no loss is finite.
    """
    middle = np.median(np.where(np.isfinite(smooth), smooth, np.inf), axis=0)
    if not np.isfinite(middle).any():
        raise ConfigError("no loss is finite; expected a network that trains at a rate of 1e-4")
    best = float(rates[middle.argmin()])
    return best / DECADE, best
