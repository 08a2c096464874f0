"""Several processes, be they on one host or on many, that train one network together.

JAX's distributed runtime joins them. Each runs the same program on devices of its own; what they
must agree on is said here. With one process, nothing here does anything.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
import requests
from jax.experimental import multihost_utils

from jaxmnist.config import ConfigError

# After so long without a sign of life a process counts as dead, and ends all others.
HEARTBEAT_SECONDS = 30
# How long processes wait for each other at the beginning, and at the end.
JOIN_SECONDS = 300
LEAVE_SECONDS = 30


class HostError(RuntimeError):
    """Another process failed, or is gone."""


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Joins the other processes; to be called before anything of JAX is used.

    Args:
        coordinator: host and port of the first one, as "10.0.0.1:1234"; None, with the others:
            what the cluster says (a TPU pod, SLURM, Open MPI), and outside of one, no others.
        processes: how many there are; 1: no others, whatever SLURM or Open MPI say.
        process: which of them this is, from 0.

    Raises:
        ConfigError: only some of the three are given, or they cannot be.
        HostError: the others cannot be reached.
    """
    given = (coordinator, processes, process)
    if given == (None, 1, None) or (given == (None, None, None) and not _has_cluster()):
        return
    if given != (None, None, None):
        _check(*given)
    # It would take SIGTERM for itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *given,
            # Who says it all means it: SLURM would also take all devices but one away.
            cluster_detection_method=None if coordinator is None else "deactivate",
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, requests.ConnectionError):
        # One TPU and no pod, as on Colab: there is nobody to ask.
        if coordinator is not None:
            raise
    except RuntimeError as error:
        raise HostError(f"the other processes cannot be reached: {error}") from error


def _has_cluster() -> bool:
    """Whether it is worth asking JAX, whose own search warns and fails in some containers."""
    tasks = [os.environ.get("OMPI_COMM_WORLD_SIZE", "1")]
    if "SLURM_PROCID" in os.environ and "SLURM_STEP_NODELIST" in os.environ:
        tasks.append(os.environ.get("SLURM_NTASKS", "1"))
    return any(number != "1" for number in tasks) or bool(importlib.util.find_spec("libtpu"))


def _check(coordinator: str | None, processes: int | None, process: int | None) -> None:
    if coordinator is None or processes is None or process is None:
        raise ConfigError(
            "--coordinator, --num-processes and --process-id belong together: pass all three, or, "
            "on a TPU pod or under SLURM, none"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise ConfigError(f"coordinator is {coordinator!r}; expected HOST:PORT, as 10.0.0.1:1234")
    if processes < 1:
        raise ConfigError(f"num_processes is {processes}; expected at least 1")
    if not 0 <= process < processes:
        raise ConfigError(
            f"process_id is {process}; expected a whole number from 0 to {processes - 1}"
        )


def is_first() -> bool:
    """Whether this process is the one that writes, reads and speaks for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def missing_the_others() -> Iterator[None]:
    """Says of an error in what several processes compute together what it nearly always means.

    Raises:
        HostError: such an error.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        line = next(iter(str(error).splitlines()), "")
        raise HostError(
            f"another process failed or is gone ({line}); --resume, in all of them, goes on from "
            "the newest checkpoint"
        ) from error


def agree(steps: int, stops: bool, is_due: bool) -> tuple[int, bool, bool]:
    """What all processes do next; each has its own clock, and its own signals.

    Args:
        steps: how many this one would train.
        stops: whether this one was asked to stop.
        is_due: whether this one would save.

    Returns:
        The first one's steps; whether any was asked to stop; whether the first one would save.
    """
    if jax.process_count() == 1:
        return steps, stops, is_due
    with missing_the_others():
        wishes = np.array([steps, stops, is_due], np.int32)
        all_of = multihost_utils.process_allgather(wishes)
    return int(all_of[0, 0]), bool(all_of[:, 1].any()), bool(all_of[0, 2])


def check_same(job: str) -> None:
    """Accepts what all processes were given alike.

    Args:
        job: all of it, in words.

    Raises:
        ConfigError: in all of them, if one was given something else.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(job.encode()).digest(), np.uint8)
    with missing_the_others():
        digests = multihost_utils.process_allgather(digest)
    if (digests != digest).any():
        raise ConfigError(
            f"the {jax.process_count()} processes that train together were given different "
            "options, configs or images; give all the same, or let each train alone: "
            "--num-processes 1"
        )


def from_first(action: Callable[[], bytes]) -> bytes:
    """Lets the first process do something: what comes of it, in all of them.

    Args:
        action: makes bytes; only called in the first process.

    Raises:
        ConfigError: it raised one.
        HostError: it raised something else, in another process.
        Exception: it raised that, in this process.
    """
    if jax.process_count() == 1:
        return action()
    if not is_first():
        return _unpacked(_broadcast(b""))
    try:
        content = b"+" + action()
    except Exception as error:
        kind = "config" if isinstance(error, ConfigError) else "other"
        with contextlib.suppress(Exception):  # the error matters more
            _broadcast(b"-" + json.dumps([kind, str(error)]).encode())
        raise
    return _unpacked(_broadcast(content))


def _unpacked(content: bytes) -> bytes:
    if content[:1] == b"+":
        return content[1:]
    kind, words = json.loads(content[1:])
    if kind == "config":
        raise ConfigError(words)
    raise HostError(f"the first process failed: {words}")


def _broadcast(content: bytes) -> bytes:
    """The first process's bytes."""
    with missing_the_others():
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        own = np.frombuffer(content, np.uint8) if is_first() else np.zeros(size, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(own)).tobytes()
