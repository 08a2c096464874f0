"""Scheduling of seeds over worker processes, each with its share of the cores.

`worker.py` is the worker process. A pipe connects it to this process, which sends a task, then one
seed after another, and STOP. The worker sends events and, when a seed ends, `Finished`, `Failed` or
STOPPED. A worker exits when its pipe is closed, so that none outlives this process.
"""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.parallel.devices import compilation_cache
from jaxmnist.parallel.seed_mapping import shares_of_cores
from jaxmnist.runs.loop import FAILURES, Stopped, TrainingError
from jaxmnist.runs.run import Snapshot, read_snapshot
from jaxmnist.runs.setup import Callbacks, Event, Failed, Progress, RunOptions, Setup

# Interval at which a request to stop is checked.
POLL_SECONDS = 0.2
# Time allowed for an idle worker to exit.
END_SECONDS = 10
STOP, STOPPED = "stop", "stopped"

_WORKER = ("-P", "-m", "jaxmnist.runs.worker")


class Task(NamedTuple):
    """The first message to a worker."""

    config: TrainConfig
    options: RunOptions
    path: Path  # absolute
    cores: list[int]  # the worker's cores
    cache: str  # folder of compiled programs


class Finished(NamedTuple):
    """The message that a seed is finished."""

    seed: int
    reason: None = None  # as in `Failed`: no failure


def train_in_processes(
    setup: Setup, seeds: Sequence[int], path: Path, callbacks: Callbacks
) -> Iterator[tuple[int, Snapshot | Exception]]:
    """Train seeds in worker processes; yield each seed with its last snapshot or its error.

    The first worker compiles. The others start afterwards, and load its programs from the cache.
    """
    with contextlib.ExitStack() as stack:
        cache = compilation_cache() or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="jaxmnist-compiled-")
        )
        team = [
            stack.enter_context(
                _Worker(Task(setup.config, setup.options, path.absolute(), cores, cache))
            )
            for cores in shares_of_cores(len(seeds))
        ]
        for seed, reason in _schedule(team, seeds, path, callbacks):
            try:
                yield seed, TrainingError(reason) if reason else read_snapshot(setup, path, seed)[0]
            except (ConfigError, *FAILURES) as error:
                callbacks.report(Failed(seed, str(error)))
                yield seed, error


def _schedule(
    workers: Sequence["_Worker"], seeds: Sequence[int], path: Path, callbacks: Callbacks
) -> Iterator[tuple[int, str | None]]:
    """Assign seeds to workers until all have ended; yield each with the reason of a failure."""
    team: dict[Any, _Worker] = {worker.pipe: worker for worker in workers}
    waiting, has_compiled, has_stopped = list(seeds), False, False
    is_stopping = callbacks.should_stop()
    while True:
        # Until the first worker has compiled, the others wait.
        for worker in list(team.values())[: None if has_compiled else 1]:
            if worker.seed is None and waiting and not is_stopping:
                worker.train(waiting.pop(0))
        if all(worker.seed is None for worker in team.values()):
            break
        for pipe in wait(list(team), POLL_SECONDS):
            worker = team[pipe]
            message = worker.receive()
            if worker.has_ended:
                del team[pipe]
            if isinstance(message, Event):
                callbacks.report(message)
            has_compiled |= isinstance(message, Progress)
            has_stopped |= message == STOPPED
            if message == STOPPED or isinstance(message, Finished | Failed):
                worker.seed = None
            if isinstance(message, Finished | Failed):
                yield message.seed, message.reason
        if not is_stopping and callbacks.should_stop():
            is_stopping = True
            for worker in team.values():
                worker.send(STOP)
    if has_stopped or (is_stopping and waiting):
        raise Stopped(path, 0)
    for seed in waiting:
        reason = "no process is left to train it"
        callbacks.report(Failed(seed, reason))
        yield seed, reason


class _Worker:
    """A worker process, which trains one seed after another."""

    def __init__(self, task: Task):
        self.seed: int | None = None  # in training
        self.has_ended = False
        self._task: Task | None = task
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        self.pipe, theirs = multiprocessing.Pipe()
        package = str(Path(__file__).parent.parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        with theirs:
            self._process = subprocess.Popen(
                # JAX's threads do not allow a fork, and `multiprocessing.Process` would run the
                # user's program again.
                [sys.executable, *_WORKER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "JAX_PLATFORMS": "cpu",  # this process's platform
                    "NPROC": str(len(task.cores)),  # XLA's threads, if affinity is unsupported
                },
                process_group=0,  # Ctrl-C reaches only this process, which stops workers
            )

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        self.pipe.close()
        self._wait()
        self._errors.close()

    def receive(self) -> Any:
        """Return the next message; None if an idle process has ended."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.has_ended = True
            return None if self.seed is None else Failed(self.seed, self._exit_reason())

    def train(self, seed: int) -> None:
        """Send a seed; send the task before the first seed."""
        self.seed = seed
        if self._task is not None:
            self.send(self._task)
            self._task = None
        self.send(seed)

    def send(self, message: Any) -> None:
        """Send a message; ignore a closed pipe, since `receive` reports the end."""
        with contextlib.suppress(OSError):
            self.pipe.send(message)

    def _exit_reason(self) -> str:
        """Describe how the process ended, with its last line of output."""
        status = self._wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        if status >= 0:
            return f"its process ended with status {status}{last}"
        return f"its process was ended by signal {-status} ({signal.strsignal(-status)}){last}"

    def _wait(self) -> int:
        """Wait for the process, kill it after `END_SECONDS`, and return its status."""
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
