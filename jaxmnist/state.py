"""All that training changes, in one tree."""

import zlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax


class TrainState(flax.struct.PyTreeNode):
    """The state of one seed's training after `step` steps."""

    step: jax.Array  # int32 scalar
    key: jax.Array  # the seed's key; it never changes
    params: Any
    batch_stats: Any
    opt_state: optax.OptState


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of a named random stream, so that no two uses of randomness share one."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def create_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: jax.typing.ArrayLike
) -> TrainState:
    """The state before the first step.

    Args:
        model: a network of `jaxmnist.create_model`.
        tx: the optimiser.
        seed: a whole number; decides the weights and everything random after them.
    """
    key = jax.random.key(seed)
    variables = model.init(stream(key, "init"), jnp.zeros((1, 28, 28, 1)))
    params = variables["params"]
    return TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
    )


def initial_state(
    model: nn.Module, tx: optax.GradientTransformation, seed: jax.typing.ArrayLike
) -> TrainState:
    """What `create_state` returns, in one compiled call; Args as there."""
    # It runs once: on a CPU, optimising the program would take ten times longer than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    create = jax.jit(create_state, static_argnums=(0, 1), compiler_options=options)
    return create(model, tx, seed)
