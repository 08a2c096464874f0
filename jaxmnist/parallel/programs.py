"""Programs: how functions written for one seed and one device are compiled for blocks of seeds.

A block is seeds that train side by side. Its arrays have a leading axis, one entry a seed; a single
seed is a block of one, and its program is the one that it would have without that axis. Where the
devices come in, `devices.py` says.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.config import TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.parallel.devices import ONE, Devices, Layout, make_layout
from jaxmnist.parallel.limits import available_bytes
from jaxmnist.state import TrainState, create_state, is_key, wrap_key
from jaxmnist.steps import Images, epoch_permutation, evaluate, train_chunk

# Seeds of a block: every one has files open.
MAX_BLOCK = 128
# Of the free memory: what is compiled says what it needs, but not how well that can be laid out.
MEMORY_SHARE = 0.8


class Programs(NamedTuple):
    """The compiled programs of a block of seeds.

    They are the functions of `steps.py`, with a leading axis for the seeds wherever something
    belongs to a seed: all but the images and `stop`. `train_chunk` takes its state and metrics
    for itself. States and metrics are those that `put` laid on the devices.
    """

    places: int  # for seeds; some may be left over
    epoch_permutation: Callable[[TrainState, Images], jax.Array]
    train_chunk: Callable[
        [TrainState, Metrics, Images, jax.Array, np.int32], tuple[TrainState, Metrics]
    ]
    evaluate: Callable[[TrainState, Images], Metrics]
    put: Callable[[Any], Any]  # states or metrics of a block, from the host to the devices
    get: Callable[[Any], Any]  # and back
    compile_seconds: float
    memory_bytes: int  # that the largest of them needs on a device


def compile_programs(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    train_images: Images,
    test_images: Images,
    seeds: int = 1,
    devices: Devices = ONE,
) -> Programs:
    """Compiles training and evaluation for these shapes, once for the whole run.

    Args:
        config: what to train; its own seed is of no importance.
        model: its network.
        tx: its optimiser.
        train_images: on all of the devices.
        test_images: on all of the devices.
        seeds: how many there are in a block.
        devices: those that train it.

    Returns:
        The compiled programs.
    """
    begin = time.perf_counter()
    layout = make_layout(devices, seeds, config.batch_size)
    lowered = lower_programs(config, model, tx, train_images, test_images, layout)
    compiled = Lowered(*(program.compile() for program in lowered))
    seconds = time.perf_counter() - begin
    return Programs(
        places=layout.block,
        **compiled._asdict(),
        put=layout.put,
        get=layout.get,
        compile_seconds=seconds,
        memory_bytes=max(map(_memory_bytes, compiled)),
    )


class Lowered(NamedTuple):
    """The programs of a block, traced and not yet compiled: `jax.stages.Lowered`."""

    epoch_permutation: Any
    train_chunk: Any
    evaluate: Any


def lower_programs(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    train_images: Images,
    test_images: Images,
    layout: Layout,
) -> Lowered:
    """Traces training and evaluation; Args as `compile_programs`, and how they lie over devices."""
    axis, with_ema = layout.axis, config.ema_decay > 0
    create = functools.partial(create_state, model, tx, with_ema=with_ema)
    permute = functools.partial(epoch_permutation, batch_size=config.batch_size)
    train = functools.partial(train_chunk, config=config, model=model, tx=tx, axis=axis)
    test = functools.partial(evaluate, model=model, axis=axis)
    states = jax.eval_shape(jax.vmap(create), np.zeros(layout.block, np.uint32))
    metrics = jax.eval_shape(lambda: stack([Metrics.zero()] * layout.block))
    order = jax.eval_shape(jax.vmap(permute, (0, None)), states, train_images)

    def lower(function, axes, *arguments, donate=()):
        return layout.lower(_over_seeds(function, axes, layout.seeds), axes, arguments, donate)

    return Lowered(
        lower(permute, (0, None), states, train_images),
        lower(
            train,
            (0, 0, None, 0, None),
            *(states, metrics, train_images, order, np.int32(0)),
            donate=(0, 1),
        ),
        lower(test, (0, None), states, test_images),
    )


def _over_seeds(function: functools.partial, axes: Sequence[int | None], seeds: int) -> Callable:
    """A function written for one seed, for a block of them.

    Args:
        function: of one seed.
        axes: for each argument, 0 if it belongs to a seed and gets a leading axis, None if all
            seeds share it.
        seeds: how many. One is not left to `jax.vmap`, whose products of matrices in batches of
            one take nearly twice as long on a CPU.
    """
    if seeds > 1:
        mapped = jax.vmap(function, in_axes=tuple(axes))
    else:

        def mapped(*arguments):
            own = (
                argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
                for argument, axis in zip(arguments, axes, strict=True)
            )
            return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), function(*own))

    return functools.wraps(function.func)(mapped)


def _memory_bytes(program: Any) -> int:
    needs = program.memory_analysis()
    if needs is None:  # not every backend tells
        return 0
    return (
        needs.argument_size_in_bytes
        + needs.output_size_in_bytes
        - needs.alias_size_in_bytes
        + needs.temp_size_in_bytes
    )


def free_bytes() -> int:
    """The memory of the device that programs may take."""
    stats = jax.local_devices()[0].memory_stats()
    free = available_bytes() // jax.local_device_count()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int(MEMORY_SHARE * free)


def compile_block(compile_for: Callable[[int], Programs], seeds: int) -> Programs:
    """Compiles for the largest block that fits into the device's memory.

    Args:
        compile_for: from a number of seeds in a block to its programs.
        seeds: how many there are in all.

    Returns:
        Its programs. All blocks have the same size, so that these are the only ones: the last
        block may have places left over.
    """
    size, limit = equal_blocks(seeds, MAX_BLOCK), free_bytes()
    while True:
        try:
            programs = compile_for(size)
            if programs.memory_bytes <= limit or size == 1:
                return programs
            most = size * limit // programs.memory_bytes
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or size == 1:
                raise
            most = size // 2
        size = equal_blocks(seeds, max(1, min(most, size - 1)))


def equal_blocks(seeds: int, most: int) -> int:
    """How large blocks are, if there are as few as can be.

    Args:
        seeds: how many there are in all.
        most: how many a block can have.
    """
    blocks = -(-seeds // most)
    return -(-seeds // blocks)


def stack(trees: Sequence[Any]) -> Any:
    """Puts seeds side by side.

    Args:
        trees: of one seed each, alike but for the values.

    Returns:
        One such tree, its leaves with a leading axis, in the host's memory.
    """

    def stacked(*leaves):
        if is_key(leaves[0]):
            keys = np.stack([jax.random.key_data(key) for key in leaves])
            return wrap_key(jnp.asarray(keys))
        return np.stack(leaves)

    return jax.tree.map(stacked, *trees)


def unstack(tree: Any, seeds: int) -> list[Any]:
    """Takes seeds apart.

    Args:
        tree: leaves with a leading axis, in the host's memory.
        seeds: how many of them are wanted, the first ones.

    Returns:
        A tree for each.
    """
    return [jax.tree.map(lambda leaf, seed=seed: leaf[seed], tree) for seed in range(seeds)]
