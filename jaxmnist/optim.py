"""The optimiser: SGD with momentum, at a constant rate or by PyTorch's one-cycle schedule."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmnist.config import ConfigError, TrainConfig

MOMENTUM = 0.9
Schedule = Callable[[int | jax.Array], float | jax.Array]


class Schedules(NamedTuple):
    """Functions of the step count, from 0: what the optimiser uses is what gets logged."""

    learning_rate: Schedule
    momentum: Schedule


def one_cycle(peak: float, total_steps: int) -> Schedules:
    """Learning rate and momentum of torch.optim.lr_scheduler.OneCycleLR, with its defaults.

    The rate climbs from peak/25 to `peak` over the first 30 % of the steps and falls to peak/25e4
    over the rest, both along a cosine, while the momentum falls from 0.95 to 0.85 and climbs back.
    (`optax.cosine_onecycle_schedule` has other boundaries, and no momentum.)

    Args:
        peak: the largest learning rate.
        total_steps: steps of the whole training.

    Returns:
        `(learning_rate_fn, momentum_fn)`, each from a step count 0 ... total_steps - 1 to a value.

    Raises:
        ConfigError: so few steps that there is no climb.
    """
    start, end = peak / 25, peak / 25 / 1e4
    climb_end, fall_end = 0.3 * total_steps - 1, total_steps - 1
    if climb_end <= 0:
        raise ConfigError(
            f"the one-cycle schedule needs at least 4 steps, but training has {total_steps}; "
            "use more epochs or a smaller --batch-size"
        )

    def blend(step, first, middle, last):
        climb = step / climb_end
        fall = (step - climb_end) / (fall_end - climb_end)
        return jnp.where(
            step <= climb_end, _cosine(first, middle, climb), _cosine(middle, last, fall)
        )

    return Schedules(
        learning_rate=lambda step: blend(step, start, peak, end),
        momentum=lambda step: blend(step, 0.95, 0.85, 0.95),
    )


def _cosine(first: float, last: float, fraction: jax.Array) -> jax.Array:
    return last + (first - last) / 2 * (1 + jnp.cos(jnp.pi * fraction))


def _constant(value: float) -> Schedule:
    # A function of the step all the same: each seed's belongs to the devices that train that seed.
    return lambda step: value + 0.0 * step


def make_optimizer(
    config: TrainConfig, total_steps: int
) -> tuple[optax.GradientTransformation, Schedules]:
    """The optimiser of a run.

    Args:
        config: what to train.
        total_steps: steps of the whole training.

    Returns:
        The optax transformation, and the schedules that it follows.

    Raises:
        ConfigError: the config's schedule is not defined for so few steps.
    """
    recipe = config.recipe_of_variant
    schedules = Schedules(_constant(config.learning_rate), _constant(MOMENTUM))
    if recipe.schedule == "one_cycle":
        cycle = one_cycle(config.learning_rate, total_steps)
        schedules = cycle if recipe.cycle_momentum else schedules._replace(learning_rate=cycle[0])
    tx = optax.inject_hyperparams(optax.sgd)(
        learning_rate=schedules.learning_rate,
        momentum=schedules.momentum,
        nesterov=recipe.nesterov,
    )
    if recipe.weight_decay:
        # As PyTorch's SGD: added to the gradients, of all parameters.
        tx = optax.chain(optax.add_decayed_weights(recipe.weight_decay), tx)
    return tx, schedules
