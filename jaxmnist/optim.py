"""The optimiser: SGD with momentum, with the schedules of its learning rate and momentum."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.recipes import DEFAULTS

Schedule = Callable[[Any], Any]


class Schedules(NamedTuple):
    """Functions of the step count, from 0; used by the optimiser and for logging."""

    learning_rate: Schedule
    momentum: Schedule


def one_cycle(
    peak: float,
    total_steps: int,
    *,
    base_momentum: float = DEFAULTS["base_momentum"],
    max_momentum: float = DEFAULTS["max_momentum"],
    pct_start: float = DEFAULTS["pct_start"],
    div_factor: float = DEFAULTS["div_factor"],
    final_div_factor: float = DEFAULTS["final_div_factor"],
) -> Schedules:
    """Return the schedules of torch.optim.lr_scheduler.OneCycleLR.

    The learning rate rises from peak / div_factor to `peak` and falls to
    peak / div_factor / final_div_factor, along cosines. The momentum falls from `max_momentum` to
    `base_momentum` and rises back. (`optax.cosine_onecycle_schedule` has other boundaries and no
    momentum.)

    Args:
        peak: the largest learning rate.
        total_steps: the total number of training steps.
        base_momentum: the smallest momentum.
        max_momentum: the largest momentum.
        pct_start: the fraction of the steps in which the learning rate rises.
        div_factor: the ratio of the peak to the initial learning rate.
        final_div_factor: the ratio of the initial to the final learning rate.

    Returns:
        `(learning_rate_fn, momentum_fn)`, functions of the step count from 0 to total_steps - 1.

    Raises:
        ConfigError: there are too few steps for the learning rate to rise.
    """
    start = peak / div_factor
    end = start / final_div_factor
    climb_end, fall_end = pct_start * total_steps - 1, total_steps - 1
    if climb_end <= 0:
        raise ConfigError(
            f"the one-cycle schedule needs at least {math.floor(1 / pct_start) + 1} steps, but "
            f"training has {total_steps}; use more epochs or a smaller --batch-size"
        )

    def blend(step, first, middle, last):
        climb = step / climb_end
        fall = (step - climb_end) / (fall_end - climb_end)
        return jnp.where(
            step <= climb_end, _cosine(first, middle, climb), _cosine(middle, last, fall)
        )

    return Schedules(
        learning_rate=lambda step: blend(step, start, peak, end),
        momentum=lambda step: blend(step, max_momentum, base_momentum, max_momentum),
    )


def _cosine(first: float, last: float, fraction: jax.Array) -> jax.Array:
    return last + (first - last) / 2 * (1 + jnp.cos(jnp.pi * fraction))


def constant(value: float) -> Schedule:
    """Return the schedule of a constant value."""
    # Depends on the step, so that each seed's value is on the devices that train the seed.
    return lambda step: value + 0.0 * step


def make_optimizer(config: TrainConfig, total_steps: int) -> optax.GradientTransformation:
    """Return the optimiser of a run.

    Args:
        config: the config of the run.
        total_steps: the total number of training steps.

    Raises:
        ConfigError: there are too few steps for the config's schedule.
    """
    tx = sgd(config, make_schedules(config, total_steps))
    if config.schedule == "plateau":
        steps = total_steps // config.epochs
        tx = optax.chain(tx, reduce_on_plateau(config.gamma, config.patience, steps))
    return tx


def make_schedules(config: TrainConfig, total_steps: int) -> Schedules:
    """Return the schedules of a run; for Args and Raises see `make_optimizer`.

    With the plateau schedule, the learning rate is constant, and the optimiser lowers it.
    """
    learning_rate, momentum = constant(config.learning_rate), constant(config.momentum)
    if config.schedule == "one_cycle":
        names = ("base_momentum", "max_momentum", "pct_start", "div_factor", "final_div_factor")
        constants = {name: getattr(config, name) for name in names}
        learning_rate, cycled = one_cycle(config.learning_rate, total_steps, **constants)
        momentum = cycled if config.cycle_momentum else momentum
    elif config.schedule == "step":
        period = config.step_size * (total_steps // config.epochs)
        # As torch.optim.lr_scheduler.StepLR.
        learning_rate = optax.exponential_decay(
            config.learning_rate, period, config.gamma, staircase=True
        )
    return Schedules(learning_rate, momentum)


def sgd(config: TrainConfig, schedules: Schedules) -> optax.GradientTransformation:
    """Return SGD with the schedules, and with the config's penalties and kind of momentum."""
    learning_rate, momentum = schedules
    tx = optax.inject_hyperparams(optax.sgd)(
        learning_rate=learning_rate, momentum=momentum, nesterov=config.nesterov
    )
    if config.weight_decay:
        # Like PyTorch's SGD, add the decay to the gradients of all parameters.
        tx = optax.chain(optax.add_decayed_weights(config.weight_decay), tx)
    if config.l1:
        tx = optax.chain(_add_l1(config.l1), tx)
    return tx


def _add_l1(penalty: float) -> optax.GradientTransformation:
    """Return a transformation that adds the gradient of `penalty` times the sum of |parameter|."""

    def add(updates, params):
        return jax.tree.map(lambda grad, param: grad + penalty * jnp.sign(param), updates, params)

    return optax.stateless(add)


class PlateauState(NamedTuple):
    """The state of the plateau schedule; scalars."""

    scale: jax.Array  # float32, the factor of the learning rate
    best: jax.Array  # float32, the smallest mean loss of an epoch
    bad_epochs: jax.Array  # int32, the number of epochs since then, or since the last decay
    loss_sum: jax.Array  # float32, over the steps of this epoch
    steps: jax.Array  # int32, number of these steps


def reduce_on_plateau(
    factor: float, patience: int, steps: int, threshold: float = 1e-4
) -> optax.GradientTransformationExtraArgs:
    """Return torch's ReduceLROnPlateau of the training loss: the test set must not influence it.

    `update` takes the loss of a step as `value`. (`optax.contrib.reduce_on_plateau` lowers the rate
    one step earlier, and cannot be compiled for several devices by `jax.shard_map`.)

    Args:
        factor: the factor by which to multiply the learning rate.
        patience: the number of bad epochs in a row before the one that lowers the rate.
        steps: the number of steps of an epoch.
        threshold: the relative decrease of the loss that makes an epoch good.
    """

    def init(params):
        del params
        # Finite, since a checkpoint refuses infinite values.
        largest = jnp.float32(jnp.finfo(jnp.float32).max)
        return PlateauState(jnp.float32(1), largest, jnp.int32(0), jnp.float32(0), jnp.int32(0))

    def update(updates, state, params=None, *, value, **extra):
        del params, extra
        ends = state.steps == steps  # the epoch before this step
        mean = state.loss_sum / steps
        is_good = mean < state.best * (1 - threshold)
        bad_epochs = jnp.where(is_good, 0, state.bad_epochs + 1)
        lowers = bad_epochs > patience
        state = PlateauState(
            scale=jnp.where(ends & lowers, factor, 1) * state.scale,
            best=jnp.where(ends & is_good, mean, state.best),
            bad_epochs=jnp.where(ends, jnp.where(lowers, 0, bad_epochs), state.bad_epochs),
            loss_sum=jnp.where(ends, 0, state.loss_sum) + value,
            steps=jnp.where(ends, 0, state.steps) + 1,
        )
        return jax.tree.map(lambda update: state.scale * update, updates), state

    typed: Any = update  # optax's type has no `value`
    return optax.GradientTransformationExtraArgs(init, typed)


def latest_hyperparams(opt_state: optax.OptState) -> tuple[jax.Array, jax.Array]:
    """Return the learning rate and the momentum of the last step.

    Args:
        opt_state: the state of an optimiser of `make_optimizer`.
    """
    values = optax.tree.get(opt_state, "hyperparams")
    plateau = optax.tree.get(opt_state, "PlateauState")
    rate = values["learning_rate"]
    return rate if plateau is None else rate * plateau.scale, values["momentum"]
