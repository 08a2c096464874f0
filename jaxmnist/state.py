"""All that training changes, in one tree."""

import zlib
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

# JAX's kind of random keys.
KEY_IMPL = "threefry2x32"


class TrainState(flax.struct.PyTreeNode):
    """The state of one seed's training after `step` steps."""

    step: jax.Array  # int32 scalar
    key: jax.Array  # the seed's key; it never changes
    params: Any
    batch_stats: Any
    opt_state: optax.OptState

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is evaluated with."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    def averaged(self) -> "TrainState":
        """The state itself: nothing is averaged."""
        return self


class AveragedState(TrainState):
    """A state that is evaluated by an exponential average of its weights and statistics.

    Source: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2.
    """

    average: Any  # params and batch_stats
    keep: float = flax.struct.field(pytree_node=False)  # of the average, a step

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is evaluated with."""
        return self.average

    def averaged(self) -> "AveragedState":
        """Takes what the last step came to into the average."""
        # The first steps are far from where it ends: until there are many, all count the same.
        keep = jnp.minimum(self.keep, 1 - 1 / (self.step + 1).astype(jnp.float32))
        latest = {"params": self.params, "batch_stats": self.batch_stats}
        average = jax.tree.map(lambda a, x: keep * a + (1 - keep) * x, self.average, latest)
        return self.replace(average=average)


def stream(key: jax.Array, name: str) -> jax.Array:
    """The key of a named random stream, so that no two uses of randomness share one."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()))


def create_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike,
    average: float | None = None,
) -> TrainState:
    """The state before the first step.

    Args:
        model: a network of `jaxmnist.create_model`.
        tx: the optimiser.
        seed: a whole number; decides the weights and everything random after them.
        average: what an average of the weights keeps a step; None: there is none.
    """
    key = jax.random.key(seed, impl=KEY_IMPL)
    variables = model.init(stream(key, "init"), jnp.zeros((1, 28, 28, 1)))
    params = variables["params"]
    parts = {
        "step": jnp.int32(0),
        "key": key,
        "params": params,
        "batch_stats": variables.get("batch_stats", {}),
        "opt_state": tx.init(params),
    }
    state = TrainState(**parts)
    if average is None:
        return state
    return AveragedState(**parts, average=state.variables, keep=average)


def initial_state(
    model: nn.Module,
    tx: optax.GradientTransformation,
    seed: jax.typing.ArrayLike,
    average: float | None = None,
) -> TrainState:
    """What `create_state` returns, in one compiled call; Args as there."""
    # It runs once: on a CPU, optimising the program would take ten times longer than it saves.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    create = jax.jit(create_state, static_argnums=(0, 1, 3), compiler_options=options)
    return create(model, tx, seed, average)


def wrap_key(words: Any) -> jax.Array:
    """Return the random keys of these words, uint32 `[..., 2]`."""
    return jax.random.wrap_key_data(words, impl=KEY_IMPL)


def is_key(leaf: Any) -> bool:
    """Whether an array is of random keys."""
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
