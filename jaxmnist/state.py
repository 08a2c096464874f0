"""The training state as one tree, and the named random streams of a seed."""

import zlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

# The implementation of random keys, independent of `jax_default_prng_impl`.
KEY_IMPL = "threefry2x32"


class TrainState(flax.struct.PyTreeNode):
    """The state of one seed after `step` steps."""

    step: jax.Array  # int32 scalar
    key: jax.Array  # the seed's key; constant
    params: Any
    batch_stats: Any
    opt_state: optax.OptState
    ema: Any = None  # moving average of {"params", "batch_stats"}, if any

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for evaluation: the moving average, or the latest ones without it."""
        return self.latest if self.ema is None else self.ema

    @property
    def latest(self) -> dict[str, Any]:
        """The variables after the last step."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def stream(key: jax.Array, name: str) -> jax.Array:
    """Return the key of a named random stream; each use of randomness has its own."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike,
    with_ema: bool = False,
) -> TrainState:
    """Return the state before the first step.

    Args:
        model: a network of `jaxmnist.create_model`.
        tx: the optimiser.
        seed: an integer that determines the initial weights and all later randomness.
        with_ema: whether to include the moving average of the variables.
    """
    key = jax.random.key(seed, impl=KEY_IMPL)
    variables = model.init(stream(key, "init"), jnp.zeros((1, 28, 28, 1)))
    params = variables["params"]
    state = TrainState(
        step=jnp.int32(0),
        key=key,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
    )
    return state.replace(ema=state.latest) if with_ema else state


def initial_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike,
    with_ema: bool = False,
) -> TrainState:
    """Call `create_state` in one compiled program."""
    return jit_once(create_state, static_argnums=(0, 1, 3))(model, tx, seed, with_ema)


def jit_once(function: Callable, **options: Any) -> Callable:
    """Return `jax.jit` of a function that is called once, without optimisation on a CPU.

    Optimising the program would take ten times as long as it saves.
    """
    level = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    return jax.jit(function, compiler_options=level, **options)


def update_ema(state: TrainState, decay: float) -> TrainState:
    """Return the state with the latest variables added to the moving average.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.

    Args:
        state: the state after a step.
        decay: the weight of the average so far.
    """
    # The first states are far from the last ones, so the first average is a plain mean.
    keep = jnp.minimum(decay, 1 - 1 / (state.step + 1).astype(jnp.float32))
    ema = jax.tree.map(lambda a, x: keep * a + (1 - keep) * x, state.ema, state.latest)
    return state.replace(ema=ema)


def wrap_key(words: Any) -> jax.Array:
    """Return the random keys for key data, uint32 `[..., 2]`."""
    return jax.random.wrap_key_data(words, impl=KEY_IMPL)


def is_key(leaf: Any) -> bool:
    """Return whether an array holds random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
