"""Devices: which of them train, and how programs and arrays are laid over them.

A step written for one device knows the others by the name of an axis (`collectives.py`). Here that
name gets devices: a mesh under `jax.shard_map`, or `jax.pmap` (jit and shard_map inside), or none.
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
from jaxmnist.config import ConfigError, check_name
from jaxmnist.state import KEY_IMPL, is_key, wrap_key

# The forms of a program for many devices.
PARALLELS = ("jit", "pmap")
SEED, DATA = "seed", "data"
_FLAGS = {
    "enable_x64": False,
    "default_prng_impl": KEY_IMPL,
    "threefry_partitionable": True,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
}

# Of the compiled programs that are kept: those of `skeleton` take a few megabytes.
MAX_COMPILED_BYTES = 512 << 20
_CORES = "-cores"


@dataclasses.dataclass(frozen=True)
class Devices:
    """The devices that train: the first `count` of those that JAX has, in all processes.

    Args:
        count: how many.
        parallel: jit, which is `jax.jit` over `jax.shard_map`; or pmap, `jax.pmap`, with the same
            step and the same results: to be chosen for reading and comparing next to code that is
            written so. Since JAX 0.8 `jax.pmap` is jit and shard_map inside. Here it knows one
            process only, and no axis of seeds.
    """

    count: int = 1
    parallel: str = "jit"

    @property
    def all(self) -> list[Any]:
        """The devices themselves."""
        return jax.devices()[: self.count]

    def replicate(self, tree: Any) -> Any:
        """Puts the whole of every array on each device."""
        if self.count == 1:
            return jax.device_put(tree)
        mesh = jax.make_mesh((self.count,), (DATA,), axis_types=(AxisType.Auto,), devices=self.all)
        return lay(tree, NamedSharding(mesh, P()))

    def shape(self, seeds: int, batch_size: int) -> tuple[int, int]:
        """How many devices lie along the seeds, and along the batch of each.

        Devices with seeds of their own need not talk. So as many lie along the seeds as there are
        seeds, or a few more, which then stay without work.

        Args:
            seeds: how many train side by side.
            batch_size: images a step.
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
        """Accepts a batch that these devices can share in equal parts, if they have to.

        Args:
            batch_size: images a step.
            seeds: how many train side by side; several find a shape that fits.

        Raises:
            ConfigError: they cannot; the message has the nearest choices that can.
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
        if jax.process_count() == 1:  # several have to use all of theirs
            choices.insert(0, f"--devices {' or '.join(map(str, nearest))}")
        raise ConfigError(
            f"{batch_size} images cannot be shared out equally among {data} devices; use "
            f"{', or '.join(choices)}"
        )


# The default device.
ONE = Devices()


def fix_flags() -> None:
    """Set the flags of JAX that would change a result, whatever the environment sets."""
    for name, value in _FLAGS.items():
        jax.config.update(f"jax_{name}", value)


@contextlib.contextmanager
def fixed_flags() -> Iterator[None]:
    """Set these flags for a call from a program that has others; usable as a decorator."""
    with contextlib.ExitStack() as stack:
        for name, value in _FLAGS.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def check_platform() -> None:
    """Accept a platform that JAX can use.

    Raises:
        ConfigError: JAX_PLATFORMS names one that is not here, or its devices cannot be used.
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


def keep_compiled(folder: Path, number_of_cores: int) -> None:
    """Let JAX keep compiled programs on disk, the latest ones.

    Args:
        folder: where; XLA compiles for a number of cores, and the keys of JAX's cache leave it
            out, so each number has a folder of its own in it.
        number_of_cores: those that this process uses.
    """
    jax.config.update("jax_compilation_cache_dir", f"{folder}/{number_of_cores}{_CORES}")
    jax.config.update("jax_compilation_cache_max_size", MAX_COMPILED_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def kept_compiled() -> str | None:
    """Return the folder that JAX's cache is in, as `keep_compiled` takes it; None: no cache."""
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return str(Path(folder).parent) if folder and str(folder).endswith(_CORES) else folder


def choose_devices(wished: int | None, parallel: str, batch_size: int | None = None) -> Devices:
    """The devices that are wished for.

    Args:
        wished: how many; None: all, of all processes.
        parallel: one of `PARALLELS`.
        batch_size: images a step, if they have to be shared out equally; without a wish, as many
            devices are taken as divide it.

    Raises:
        ConfigError: there are not so many, there is no such form, or it is not one for the
            processes that there are.
    """
    check_name("parallel", parallel, PARALLELS)
    check_platform()
    available = jax.device_count()
    count = available if wished is None else wished
    if wished is None and batch_size is not None and jax.process_count() == 1:
        count = max(number for number in range(1, count + 1) if batch_size % number == 0)
    if not 1 <= count <= available:
        raise ConfigError(
            f"devices is {count}; expected a whole number from 1 to {available}, which is how many "
            f"there are here ({jax.default_backend()})"
        )
    if jax.process_count() > 1 and parallel == "pmap":
        # Arguments that are the same on all devices fail in JAX 0.10's pmap over processes.
        raise ConfigError(
            f"parallel is pmap, but there are {jax.process_count()} processes; use jit"
        )
    if jax.process_count() > 1 and count != available:
        raise ConfigError(
            f"devices is {count}, but the {jax.process_count()} processes have {available}, and "
            "none can be left without work; leave --devices out"
        )
    return Devices(count, parallel)


def remarks_on(devices: Devices, batch_size: int) -> list[str]:
    """Return a line that names the devices without work, if there are any."""
    available = jax.device_count()
    if devices.count == available:
        return []
    return [
        f"{devices.count} of {available} devices train: {batch_size} images cannot be shared out "
        f"equally among {available}"
    ]


def lay(tree: Any, sharding: NamedSharding) -> Any:
    """Puts arrays, of which every process has the whole, over devices of all processes."""

    def laid(leaf):
        if is_key(leaf):
            return wrap_key(laid(jax.random.key_data(leaf)))
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda part: whole[part])

    return jax.tree.map(laid, tree)


def fetch(tree: Any) -> Any:
    """Brings arrays, of which this process has the whole, into the host's memory."""

    def fetched(leaf):
        if is_key(leaf):
            return wrap_key(fetched(jax.random.key_data(leaf)))
        return np.asarray(leaf)

    return jax.tree.map(fetched, tree)


class Layout(NamedTuple):
    """How the programs of a block of seeds lie over devices.

    Args of the functions of a program have a leading axis for the seeds, or none: `axes` says of
    each argument which, with 0 or None, as for `jax.vmap`. All results have one.
    """

    axis: Axis  # of the devices that share a batch
    block: int  # places for seeds in all, at least as many as there are seeds
    seeds: int  # of these, those of a device
    lower: Callable[..., Any]  # (function, axes, shapes of the arguments, donated ones)
    put: Callable[[Any], Any]  # what has a leading axis, from the host to the devices
    get: Callable[[Any], Any]  # and back


def make_layout(devices: Devices, seeds: int, batch_size: int) -> Layout:
    """How so many seeds lie over these devices; Args as `Devices.shape`."""
    if devices.count == 1:
        return Layout(None, seeds, seeds, _lower_alone, jax.device_put, fetch)
    if devices.parallel == "pmap":
        return _pmapped(devices, seeds)
    return _sharded(devices, seeds, *devices.shape(seeds, batch_size))


def _lower_alone(
    function: Callable, axes: Sequence[int | None], arguments: Sequence[Any], donate: Sequence[int]
) -> Any:
    return jax.jit(function, donate_argnums=donate).lower(*arguments)


def _sharded(devices: Devices, seeds: int, along_seeds: int, along_batch: int) -> Layout:
    """One program for all devices, each of which knows which it is: `jax.shard_map`.

    Automatic sharding would not do: it gathers the images that a convolution in matrix form merges
    with its pixels, so that every device does all the work.
    """
    mesh = jax.make_mesh(
        (along_seeds, along_batch),
        (SEED, DATA),
        axis_types=(AxisType.Auto, AxisType.Auto),
        devices=devices.all,
    )

    def lower(function, axes, arguments, donate):
        specs = tuple(P() if axis is None else P(SEED) for axis in axes)
        shardings = tuple(NamedSharding(mesh, spec) for spec in specs)
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=P(SEED))
        jitted = jax.jit(mapped, donate_argnums=donate, in_shardings=shardings)
        return jitted.lower(*arguments)

    def put(tree):
        return lay(tree, NamedSharding(mesh, P(SEED)))

    of_a_device = -(-seeds // along_seeds)
    return Layout(DATA, of_a_device * along_seeds, of_a_device, lower, put, fetch)


def _pmapped(devices: Devices, seeds: int) -> Layout:
    """The same function, mapped over a further leading axis, one entry a device: `jax.pmap`."""
    mesh = Mesh(devices.all, (DATA,))

    def lower(function, axes, arguments, donate):
        mapped = jax.pmap(
            function, DATA, in_axes=tuple(axes), devices=devices.all, donate_argnums=donate
        )
        return mapped.lower(
            *(
                argument if axis is None else jax.tree.map(repeated, argument)
                for argument, axis in zip(arguments, axes, strict=True)
            )
        )

    def repeated(leaf):
        return jax.ShapeDtypeStruct((devices.count, *leaf.shape), leaf.dtype)

    def put(tree):
        copies = jax.tree.map(lambda leaf: jnp.stack([leaf] * devices.count), tree)
        return lay(copies, NamedSharding(mesh, P(DATA)))

    def get(tree):
        return fetch(jax.tree.map(lambda leaf: leaf.addressable_shards[0].data[0], tree))

    return Layout(DATA, seeds, seeds, lower, put, get)
