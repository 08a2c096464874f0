"""Training of one network by several processes, on one or several hosts.

JAX's distributed runtime connects the processes. Each runs the same program on its own devices.
This module exchanges the values on which they must agree. With one process, it does nothing.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import requests
from jax.experimental import multihost_utils

from jaxmnist.config import ConfigError

# Time without a heartbeat after which a process counts as dead and all others exit.
HEARTBEAT_SECONDS = 30
# Time-outs for waiting for the other processes at start-up and at shutdown.
JOIN_SECONDS = 300
LEAVE_SECONDS = 30


class HostError(RuntimeError):
    """A failure or loss of another process."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Connect to the other processes; call this before any use of JAX.

    Args:
        coordinator: host and port of the first process, such as "10.0.0.1:1234". If all three are
            None, JAX detects the cluster (TPU pod, SLURM, Open MPI); without one, there is a single
            process.
        processes: number of processes; 1 without the others for a single process in a cluster.
        process: index of this process, from 0.

    Raises:
        ConfigError: only some of the three are given, or a value is invalid.
        HostError: the other processes cannot be reached.
    """
    given = (coordinator, processes, process)
    if given == (None, 1, None) or (given == (None, None, None) and not _has_cluster()):
        return
    if given != (None, None, None):
        _check(*given)
    # The preemption service would replace our SIGTERM handler.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            # Explicit arguments take precedence: under SLURM, detection would also leave each
            # process only one device.
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, requests.ConnectionError):
        # A single TPU that is not in a pod, as on Colab, has no cluster metadata.
        if coordinator is not None:
            raise
    except RuntimeError as error:
        raise HostError(f"the other processes cannot be reached: {error}") from error


def _has_cluster() -> bool:
    """Return whether to use JAX's cluster detection, which fails in some containers."""
    tasks = [os.environ.get("OMPI_COMM_WORLD_SIZE", "1")]
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        tasks.append(os.environ.get("SLURM_NTASKS", "1"))
    # When JAX is imported where there are TPU chips, it sets this variable.
    return any(number != "1" for number in tasks) or "TPU_ML_PLATFORM" in os.environ


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id belong together: pass all three, or, "
            "on a TPU pod or under SLURM, none"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(
            f"coordinator is {coordinator!r}; expected HOST:PORT, such as 10.0.0.1:1234"
        )
    if processes < 1:
        raise ConfigError(f"num_processes is {processes}; expected at least 1")
    if not 0 <= process < processes:
        raise ConfigError(
            f"process_id is {process}; expected a whole number from 0 to {processes - 1}"
        )


def is_main_process() -> bool:
    """Return whether this process reads, writes and prints for all processes."""
    return jax.process_index() == 0


@contextlib.contextmanager
def as_host_error() -> Iterator[None]:
    """Convert a JAX runtime error to HostError: with several processes, one has usually failed.

    Raises:
        HostError: JAX raised a runtime error, and there are several processes.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        line = next(iter(str(error).splitlines()), "")
        raise HostError(
            f"another process failed or is gone ({line}); run all of them with --resume to "
            "continue from the newest checkpoint"
        ) from error


def sync_decision(steps: int, stops: bool, is_due: bool) -> tuple[int, bool, bool]:
    """Return a common decision for all processes, whose clocks and signals differ.

    Args:
        steps: the number of steps that this process would train next.
        stops: whether this process received a request to stop.
        is_due: whether a checkpoint is due in this process.

    Returns:
        `steps` of the first process, whether `stops` is true in any, and `is_due` of the first.
    """
    if jax.process_count() == 1:
        return steps, stops, is_due
    with as_host_error():
        wishes = np.array([steps, stops, is_due], np.int32)
        all_of = multihost_utils.process_allgather(wishes)
    return int(all_of[0, 0]), bool(all_of[:, 1].any()), bool(all_of[0, 2])


def assert_equal_across_processes(job: str) -> None:
    """Check that all processes received the same input.

    Args:
        job: the input, as text.

    Raises:
        ConfigError: the input of one process differs; raised in all processes.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(job.encode()).digest(), np.uint8)
    with as_host_error():
        digests = multihost_utils.process_allgather(digest)
    if (digests != digest).any():
        raise ConfigError(
            f"the {jax.process_count()} processes that train together received different "
            "options, configs or images; pass the same to all, or --num-processes 1 to train "
            "separately"
        )


def broadcast_from_main(action: Callable[[], Any]) -> Any:
    """Run an action in the first process and return its result in all processes.

    Args:
        action: the function, which returns a JSON value; only the first process calls it.

    Raises:
        ConfigError: the action raised a ConfigError; raised in all processes.
        HostError: the action raised another error; raised in the other processes.
        Exception: the error of the action; raised in the first process.
    """
    if jax.process_count() == 1:
        return action()
    if not is_main_process():
        kind, value = _broadcast(None)
        if kind == "config error":
            raise ConfigError(value)
        if kind == "other error":
            raise HostError(f"the first process failed: {value}")
        return value
    try:
        value = action()
    except Exception as error:
        kind = "config error" if isinstance(error, ConfigError) else "other error"
        with contextlib.suppress(Exception):  # the original error matters more
            _broadcast([kind, str(error)])
        raise
    _broadcast(["value", value])
    return value


def _broadcast(message: list[Any] | None) -> list[Any]:
    """Return the first process's message in all processes."""
    own = np.frombuffer(json.dumps(message).encode(), np.uint8)
    with as_host_error():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(own))))
        own = own if is_main_process() else np.zeros(size, np.uint8)
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes())
