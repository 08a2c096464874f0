"""Compiled programs for seeds that train in parallel.

Arrays passed to `put` and returned by `get` have a leading axis of slots, one per seed.
`devices.py` shards them over the devices.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmnist.config import TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.parallel.devices import ONE, Devices, make_layout, map_on_host
from jaxmnist.parallel.limits import available_bytes
from jaxmnist.state import TrainState, create_state, is_key, wrap_key
from jaxmnist.steps import Images, epoch_permutation, evaluate, train_chunk

# Maximum number of seeds in one program; each seed has open files.
MAX_SLOTS = 128
# Usable fraction of the free memory: a program's reported memory omits fragmentation.
MEMORY_SHARE = 0.8


class Programs(NamedTuple):
    """Functions of `steps.py`, compiled for a number of seeds.

    States and metrics must be on the devices, as `put` returns them. `train_chunk` donates both.
    """

    num_slots: int  # number of slots for seeds; some may stay empty
    epoch_permutation: Callable[[TrainState, Images], jax.Array]
    train_chunk: Callable[
        [TrainState, Metrics, Images, jax.Array, np.int32], tuple[TrainState, Metrics]
    ]
    evaluate: Callable[[TrainState, Images], Metrics]
    put: Callable[[Any], Any]  # trees with a leading axis of slots, host to devices
    get: Callable[[Any], Any]  # the reverse
    compile_seconds: float
    memory_bytes: int  # memory of the largest program, per device


def compile_programs(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    train_images: Images,
    test_images: Images,
    seeds: int = 1,
    devices: Devices = ONE,
) -> Programs:
    """Compile the programs for training and evaluation, once per run.

    Args:
        config: the config of the run; its seed is ignored.
        model: the network.
        tx: the optimiser.
        train_images: the training images, on all devices.
        test_images: the test images, on all devices.
        seeds: the number of seeds that train in parallel.
        devices: the devices for training.
    """
    begin = time.perf_counter()
    layout = make_layout(devices, seeds, config.batch_size)
    model = model.clone(platform=devices.platform)
    permute = functools.partial(epoch_permutation, batch_size=config.batch_size)
    train = functools.partial(train_chunk, config=config, model=model, tx=tx, axis=layout.axis)
    test = functools.partial(evaluate, model=model, axis=layout.axis)
    create = functools.partial(create_state, model, tx, with_ema=config.ema_decay > 0)
    one = jax.eval_shape(create, np.uint32(0))
    state, metrics, order = map(
        layout.abstract,
        (one, jax.eval_shape(Metrics.zero), jax.eval_shape(permute, one, train_images)),
    )
    permuting = layout.jit(permute, (0, None), ()).lower(state, train_images)
    training = layout.jit(train, (0, 0, None, 0, None), (0, 1)).lower(
        state, metrics, train_images, order, np.int32(0)
    )
    testing = layout.jit(test, (0, None), ()).lower(state, test_images)
    compiled = [lowered.compile() for lowered in (permuting, training, testing)]
    return Programs(
        layout.num_slots,
        *compiled,
        put=layout.put,
        get=layout.get,
        compile_seconds=time.perf_counter() - begin,
        memory_bytes=max(map(_memory_bytes, compiled)),
    )


def _memory_bytes(program: Any) -> int:
    needs = program.memory_analysis()
    if needs is None:  # some backends do not report it
        return 0
    return (
        needs.argument_size_in_bytes
        + needs.output_size_in_bytes
        - needs.alias_size_in_bytes
        + needs.temp_size_in_bytes
    )


def free_bytes() -> int:
    """Return the device memory that programs may use, in bytes."""
    stats = jax.local_devices()[0].memory_stats()
    free = available_bytes() // jax.local_device_count()
    if stats and "bytes_limit" in stats:
        free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return int(MEMORY_SHARE * free)


def compile_largest(compile_for: Callable[[int], Programs], seeds: int) -> Programs:
    """Compile for the largest number of seeds that fits into the device's memory.

    Args:
        compile_for: compiles the programs for a number of seeds that train in parallel.
        seeds: the total number of seeds.

    Returns:
        Programs for groups of equal size; the last group may leave slots empty.
    """
    size, limit = equal_groups(seeds, MAX_SLOTS), free_bytes()
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
        size = equal_groups(seeds, max(1, min(most, size - 1)))


def equal_groups(seeds: int, most: int) -> int:
    """Return the group size for the fewest groups of equal size.

    Args:
        seeds: total number of seeds.
        most: largest size of a group.
    """
    groups = -(-seeds // most)
    return -(-seeds // groups)


def stack(trees: Sequence[Any]) -> Any:
    """Stack trees along a new leading axis, in host memory.

    Args:
        trees: one tree per seed, with the same structure and shapes.
    """

    def stacked(*leaves):
        if is_key(leaves[0]):
            return wrap_key(np.stack([jax.random.key_data(key) for key in leaves]))
        return np.stack(leaves)

    return jax.tree.map(stacked, *trees)


def unstack(tree: Any, seeds: int) -> list[Any]:
    """Return the trees of the first seeds.

    Args:
        tree: tree with a leading axis, in host memory.
        seeds: number of seeds.
    """
    return [map_on_host(lambda leaf, seed=seed: leaf[seed], tree) for seed in range(seeds)]
