"""Choice of the fastest way to train several seeds on this machine."""

import jax

from jaxmnist.config import ConfigError, check_choice
from jaxmnist.parallel.devices import ONE, Devices
from jaxmnist.parallel.limits import available_bytes, cores

# Ways to train several seeds: in one program, one after another, or in parallel processes.
MAPPINGS = ("vmap", "loop", "processes")

# Upper bound of the memory of a training process: compiling `skeleton` takes 1.4 GB.
PROCESS_BYTES = 3 << 29


def choose_mapping(requested: str, seeds: int, devices: Devices = ONE) -> str:
    """Choose how to train a number of seeds on this machine.

    On a CPU, processes with one core each are the fastest. An accelerator or several devices are
    fully used only by many seeds in one program. docs/performance.md lists the timings.

    Args:
        requested: one of `MAPPINGS`, or auto.
        seeds: number of seeds.
        devices: devices for training.

    Raises:
        ConfigError: the mapping is unknown or not possible on this device.
    """
    check_choice("seed_mapping", requested, ("auto", *MAPPINGS))
    backend = jax.default_backend()
    if requested == "processes" and backend != "cpu":
        raise ConfigError(
            f"seed_mapping is processes, which divide the cores of a CPU, but the device is a "
            f"{backend}; use vmap, or loop"
        )
    if requested == "processes" and devices.count > 1:
        raise ConfigError(
            f"seed_mapping is processes, each of which has one device, but there are "
            f"{devices.count}; use --devices 1, or vmap, or loop"
        )
    if requested != "auto":
        return requested
    if seeds == 1:
        return "loop"
    if backend != "cpu" or devices.count > 1:
        return "vmap"
    return "processes" if len(shares_of_cores(seeds)) > 1 else "loop"


def shares_of_cores(seeds: int) -> list[list[int]]:
    """Divide the cores of this process among processes that train seeds.

    Args:
        seeds: number of seeds. It limits the number of processes, as do the cores and the memory.

    Returns:
        The cores of each process; one core each if there are enough seeds.
    """
    mine = cores()
    fitting = available_bytes() // PROCESS_BYTES
    processes = max(1, min(seeds, len(mine), fitting))
    return [mine[first::processes] for first in range(processes)]
