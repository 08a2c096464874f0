"""Several seeds: which of vmap, loop and processes is fastest on this machine."""

import jax

from jaxmnist.config import ConfigError, check_name
from jaxmnist.parallel.devices import ONE, Devices
from jaxmnist.parallel.limits import available_bytes, cores

# How many seeds are trained: in one program, one after another, or in processes of their own.
MAPPINGS = ("vmap", "loop", "processes")

# More than a process that trains ever took: `skeleton`, which compiles, takes 1.4 GB.
PROCESS_BYTES = 3 << 29


def choose_mapping(wished: str, seeds: int, devices: Devices = ONE) -> str:
    """How so many seeds are trained here.

    docs/performance.md has what each costs: on a CPU, processes with a core each are the fastest;
    an accelerator, or several devices, are filled by many seeds in one program.

    Args:
        wished: one of `MAPPINGS`, or auto.
        seeds: how many.
        devices: those that train.

    Raises:
        ConfigError: there is no such mapping, or not on this device.
    """
    check_name("seed_mapping", wished, ("auto", *MAPPINGS))
    backend = jax.default_backend()
    if wished == "processes" and backend != "cpu":
        raise ConfigError(
            f"seed_mapping is processes, which divide the cores of a CPU, but the device is a "
            f"{backend}; use vmap, or loop"
        )
    if wished == "processes" and devices.count > 1:
        raise ConfigError(
            f"seed_mapping is processes, each of which has one device, but there are "
            f"{devices.count}; use --devices 1, or vmap, or loop"
        )
    if wished != "auto":
        return wished
    if backend != "cpu" or devices.count > 1:
        return "vmap"
    return "processes" if len(shares_of_cores(seeds)) > 1 else "loop"


def shares_of_cores(seeds: int) -> list[list[int]]:
    """The cores that this process may use, dealt out to processes that train seeds.

    Args:
        seeds: how many there are; there are not more processes than that, nor more than fit into
            the memory.

    Returns:
        The cores of each process: one, if there are enough seeds.
    """
    mine = cores()
    fitting = available_bytes() // PROCESS_BYTES
    processes = max(1, min(seeds, len(mine), fitting))
    return [mine[first::processes] for first in range(processes)]
