"""Devices for training, and the sharding of programs and arrays over them.

A step is written for one device and uses an axis name for the others (`collectives.py`). This
module binds that name to devices, by a mesh and `jax.shard_map` or by `jax.pmap`, or to none.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmnist.collectives import Axis
from jaxmnist.config import ConfigError, check_choice
from jaxmnist.state import KEY_IMPL, is_key, wrap_key

# Ways to compile a program for several devices.
PARALLELS = ("jit", "pmap")
SEED, DATA = "seed", "data"
_FLAGS = {
    "enable_x64": False,
    "default_prng_impl": KEY_IMPL,
    "threefry_partitionable": True,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
}

# Maximum size of the compilation cache; the programs of `skeleton` take a few megabytes.
MAX_COMPILED_BYTES = 512 << 20
_CORES = "-cores"


@dataclasses.dataclass(frozen=True)
class Devices:
    """Devices for training: the first `count` of `jax.devices()`, over all processes.

    Args:
        count: number of devices.
        parallel: jit (`jax.jit` of `jax.shard_map`) or pmap (`jax.pmap`), with the same step and
            the same results. pmap is for comparison with code that uses it: since JAX 0.8 it is
            implemented with jit and shard_map. It supports one process and does not shard seeds.
    """

    count: int = 1
    parallel: str = "jit"

    @property
    def all(self) -> list[Any]:
        """List of the devices."""
        return jax.devices()[: self.count]

    @property
    def platform(self) -> str:
        """Platform of the devices: cpu, gpu or tpu."""
        return self.all[0].platform

    def replicate(self, tree: Any) -> Any:
        """Copy every array to each device in full."""
        if self.count == 1:
            return jax.device_put(tree)
        mesh = jax.make_mesh((self.count,), (DATA,), axis_types=(AxisType.Auto,), devices=self.all)
        return lay(tree, NamedSharding(mesh, P()))

    def shape(self, seeds: int, batch_size: int) -> tuple[int, int]:
        """Return the shape of the mesh: the number of devices along seeds and along batches.

        Devices with different seeds do not communicate. The mesh therefore has one device along
        the seeds for each seed, or a few more, which stay idle.

        Args:
            seeds: number of seeds trained in parallel.
            batch_size: images per step.
        """
        if self.parallel == "pmap":
            return 1, self.count
        along = next(
            number
            for number in range(min(seeds, self.count), self.count + 1)
            if self.count % number == 0 and batch_size % (self.count // number) == 0
        )
        return along, self.count // along

    def check_divides(self, batch_size: int, seeds: int = 1) -> None:
        """Check that the batch divides equally among these devices if they share it.

        Args:
            batch_size: images per step.
            seeds: number of seeds trained in parallel; with several, `shape` finds a mesh.

        Raises:
            ConfigError: it does not divide; the message lists the nearest values that do.
        """
        data = self.count
        if batch_size % data == 0 or (seeds > 1 and self.parallel != "pmap"):
            return
        counts = [number for number in range(1, jax.device_count() + 1) if batch_size % number == 0]
        nearest = [
            max(number for number in counts if number < self.count),
            *[number for number in counts if number > self.count][:1],
        ]
        sizes = [size * data for size in (batch_size // data, batch_size // data + 1) if size]
        choices = [f"--batch-size {' or '.join(map(str, sizes))}"]
        if jax.process_count() == 1:  # several processes must use all devices
            choices.insert(0, f"--devices {' or '.join(map(str, nearest))}")
        raise ConfigError(
            f"{batch_size} images cannot be divided equally among {data} devices; use "
            f"{', or '.join(choices)}"
        )


# The default device.
ONE = Devices()


def fix_flags() -> None:
    """Set the JAX flags that affect results, overriding the environment."""
    for name, value in _FLAGS.items():
        jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def fixed_flags() -> Iterator[None]:
    """Set these flags during a call, since a program may use others; usable as a decorator."""
    with contextlib.ExitStack() as stack:
        for name, value in _FLAGS.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def check_platform() -> None:
    """Check that JAX can use the platform in JAX_PLATFORMS.

    Raises:
        ConfigError: JAX_PLATFORMS names a missing platform, or its devices cannot be used.
    """
    try:
        jax.local_devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"JAX_PLATFORMS is {platforms!r}, which JAX cannot use here: {reason[:200]}; unset "
            "it, or set it to cpu"
        ) from error


def enable_compilation_cache(folder: Path, number_of_cores: int) -> None:
    """Enable JAX's on-disk cache of the latest compiled programs.

    Args:
        folder: the parent folder. Each number of cores has its own subfolder, because XLA compiles
            for a number of cores and JAX's cache keys do not include it.
        number_of_cores: number of cores that this process uses.
    """
    jax.config.update("jax_compilation_cache_dir", f"{folder}/{number_of_cores}{_CORES}")
    jax.config.update("jax_compilation_cache_max_size", MAX_COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def compilation_cache() -> str | None:
    """Return the folder passed to `enable_compilation_cache`, or None without a cache."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return str(Path(folder).parent) if folder and str(folder).endswith(_CORES) else folder


def choose_devices(requested: int | None, parallel: str, batch_size: int | None = None) -> Devices:
    """Return the devices for training.

    Args:
        requested: number of devices; None for all devices of all processes.
        parallel: one of `PARALLELS`.
        batch_size: images per step, if the devices share a batch. If `requested` is None, the
            largest number of devices that divides it is used.

    Raises:
        ConfigError: there are not enough devices, `parallel` is unknown, or the choice is not
            possible with several processes.
    """
    check_choice("parallel", parallel, PARALLELS)
    check_platform()
    available = jax.device_count()
    count = available if requested is None else requested
    if requested is None and batch_size is not None and jax.process_count() == 1:
        count = max(number for number in range(1, count + 1) if batch_size % number == 0)
    if not 1 <= count <= available:
        raise ConfigError(
            f"devices is {count}; expected a whole number from 1 to {available}, which is how many "
            f"there are here ({jax.default_backend()})"
        )
    if jax.process_count() > 1 and parallel == "pmap":
        # In JAX 0.10, pmap over several processes fails with replicated arguments.
        raise ConfigError(
            f"parallel is pmap, but there are {jax.process_count()} processes; use jit"
        )
    if jax.process_count() > 1 and count != available:
        raise ConfigError(
            f"devices is {count}, but the {jax.process_count()} processes have {available}, "
            "which must all be used; leave --devices out"
        )
    return Devices(count, parallel)


def idle_devices(devices: Devices, batch_size: int) -> list[str]:
    """Return a warning about idle devices, if there are any."""
    available = jax.device_count()
    if devices.count == available:
        return []
    return [
        f"{devices.count} of {available} devices train: {batch_size} images cannot be divided "
        f"equally among {available}"
    ]


def lay(tree: Any, sharding: NamedSharding) -> Any:
    """Shard arrays, which every process holds in full, over the devices of all processes."""

    def laid(leaf):
        if is_key(leaf):
            return wrap_key(laid(jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(laid, tree)


def fetch(tree: Any) -> Any:
    """Copy arrays, which this process holds in full, to host memory."""
    return map_on_host(lambda leaf: leaf, tree)


def map_on_host(change: Callable[[np.ndarray], np.ndarray], tree: Any) -> Any:
    """Apply a function to arrays in host memory, and to the key data of random keys.

    Indexing an array of keys would compile a program.
    """

    def changed(leaf):
        if is_key(leaf):
            return wrap_key(changed(jax.random.key_data(leaf)))
        return change(np.asarray(leaf))

    return jax.tree.map(changed, tree)


class Layout(NamedTuple):
    """Placement of the programs of several seeds on devices.

    A program is compiled from a function of one seed on one device. As for `jax.vmap`, `axes` is 0
    for each argument with a leading axis of seeds, and None for each that all seeds share. All
    results have a leading axis of seeds.
    """

    axis: Axis  # the devices that share a batch
    leading: tuple[int, ...]  # leading axes of a program's arguments with an axis of seeds
    num_slots: int  # number of slots for seeds; some may stay empty
    jit: Callable[[Callable, Sequence[int | None], Sequence[int]], Any]  # function, axes, donated
    put: Callable[[Any], Any]  # trees with a leading axis of slots, host to devices
    get: Callable[[Any], Any]  # the reverse

    def abstract(self, shapes: Any) -> Any:
        """Return the shapes of a program's argument for the shapes of one seed."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*self.leading, *leaf.shape), leaf.dtype), shapes
        )


def make_layout(devices: Devices, seeds: int, batch_size: int) -> Layout:
    """Return the layout for seeds that train in parallel; for the Args see `Devices.shape`."""
    if devices.count > 1:
        lay_out = _pmapped if devices.parallel == "pmap" else _sharded
        return lay_out(devices, seeds, batch_size)
    return _alone() if seeds == 1 else _vmapped(seeds)


def _alone() -> Layout:
    """Lay one seed out on one device, without an axis of slots.

    `jax.vmap` over one seed would multiply matrices in batches of one, which takes twice as long on
    a CPU.
    """

    def jit(function, axes, donate):
        return jax.jit(function, donate_argnums=donate)

    def put(tree):
        return jax.device_put(map_on_host(lambda leaf: leaf[0], tree))

    def get(tree):
        return map_on_host(lambda leaf: leaf[None], tree)

    return Layout(None, (), 1, jit, put, get)


def _vmapped(seeds: int) -> Layout:
    def jit(function, axes, donate):
        return jax.jit(_over_seeds(function, axes, seeds), donate_argnums=donate)

    return Layout(None, (seeds,), seeds, jit, jax.device_put, fetch)


def _sharded(devices: Devices, seeds: int, batch_size: int) -> Layout:
    """Lay seeds and batches out over a mesh, with `jax.shard_map`.

    A convolution in matrix form merges images and pixels into one axis. Automatic sharding would
    gather that axis, so that every device would do all the work.
    """
    along_seeds, along_batch = devices.shape(seeds, batch_size)
    mesh = jax.make_mesh(
        (along_seeds, along_batch),
        (SEED, DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices.all,
    )
    of_a_device = -(-seeds // along_seeds)
    slots = of_a_device * along_seeds

    def jit(function, axes, donate):
        specs = tuple(P() if axis is None else P(SEED) for axis in axes)
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        function = _over_seeds(function, axes, of_a_device)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(SEED))
        return jax.jit(mapped, donate_argnums=donate, in_shardings=shardings)

    def put(tree):
        return lay(tree, NamedSharding(mesh, P(SEED)))

    return Layout(DATA, (slots,), slots, jit, put, fetch)


def _pmapped(devices: Devices, seeds: int, batch_size: int) -> Layout:
    """Lay batches out with `jax.pmap`, for comparison with code that uses it.

    Arrays of seeds have one more leading axis, with an entry per device.
    """
    mesh = Mesh(devices.all, (DATA,))

    def jit(function, axes, donate):
        function = _over_seeds(function, axes, seeds)
        return jax.pmap(
            function, DATA, in_axes=tuple(axes), devices=devices.all, donate_argnums=donate
        )

    def put(tree):
        copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices.count), tree)
        return lay(copies, NamedSharding(mesh, P(DATA)))

    def get(tree):
        return fetch(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree))

    return Layout(DATA, (devices.count, seeds), seeds, jit, put, get)


def _over_seeds(function: Callable, axes: Sequence[int | None], seeds: int) -> Callable:
    """Map a function of one seed over seeds, without `jax.vmap` for one seed; see `_alone`."""
    if seeds > 1:
        return jax.vmap(function, in_axes=tuple(axes))

    def mapped(*arguments):
        own = (
            argument if axis is None else jax.tree.map(lambda leaf: leaf[0], argument)
            for argument, axis in zip(arguments, axes, strict=True)
        )
        return jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), function(*own))

    return mapped
