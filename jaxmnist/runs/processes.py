"""Seeds in processes of their own, each with its share of the cores: the scheduling side.

`worker.py` is the process. Both ends write lines of JSON. To a worker: first a task, then seeds,
one after another, and "stop". From it: events; `["done", seed, reason]`, the reason null if the
seed is finished; `["stopped"]`. A worker ends when its input does, so that none outlives this
process, however that ends.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jaxmnist.config import ConfigError
from jaxmnist.parallel.devices import compilation_cache
from jaxmnist.parallel.seed_mapping import shares_of_cores
from jaxmnist.runs.loop import FAILURES, Stopped, TrainingError
from jaxmnist.runs.run import Snapshot, read_snapshot
from jaxmnist.runs.setup import Callbacks, EpochDone, Event, Failed, Progress, RunOptions, Setup

# The longest time from a signal to the workers' notice of it.
POLL_SECONDS = 0.2
# The time that a worker without work may take to end.
END_SECONDS = 10

_WORKER = ("-P", "-m", "jaxmnist.runs.worker")
_EVENTS = {kind.__name__: kind for kind in (Progress, EpochDone, Failed)}


def train_in_processes(
    setup: Setup, seeds: Iterable[int], path: Path, options: RunOptions, callbacks: Callbacks
) -> Iterator[tuple[int, Snapshot | Exception]]:
    """Train seeds in processes; each takes the next seed when it is done with one.

    The first process compiles; the others start when it has, and find its programs in the cache.

    Args:
        setup: of the run.
        seeds: those to train.
        path: the run's folder.
        options: the source of the images, and which checkpoints to write.
        callbacks: called on the way.

    Yields:
        Each seed with its last snapshot, or with the error that failed it.

    Raises:
        Stopped: `callbacks.should_stop` returned True; everything is saved.
    """
    waiting = list(seeds)
    inbox: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        cache = compilation_cache() or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="jaxmnist-compiled-")
        )
        task = {
            "config": setup.config.to_json(),
            "data_dir": _absolute(options.data_dir),
            "idx_dir": _absolute(options.idx_dir),
            "path": str(path.absolute()),
            "checkpoint_every": options.checkpoint_every,
            "keep": options.keep,
            "cache": str(cache),
        }
        team = [
            stack.enter_context(_Worker(task, cores, inbox))
            for cores in shares_of_cores(len(waiting))
        ]
        yield from _Scheduler(setup, team, waiting, path, callbacks, inbox).run()


def _absolute(folder: str | os.PathLike | None) -> str | None:
    return None if folder is None else str(Path(folder).expanduser().absolute())


class _Scheduler:
    """Hands seeds to workers until all seeds have ended."""

    def __init__(
        self,
        setup: Setup,
        team: list["_Worker"],
        waiting: list[int],
        path: Path,
        callbacks: Callbacks,
        inbox: "queue.SimpleQueue[tuple[_Worker, Any]]",
    ):
        self._setup, self._team, self._waiting, self._path = setup, team, waiting, path
        self._callbacks, self._inbox = callbacks, inbox
        self._has_compiled = False
        self._is_stopping = self._has_stopped = False

    def run(self) -> Iterator[tuple[int, Snapshot | Exception]]:
        """Yield each seed with its outcome, as it comes."""
        if self._callbacks.should_stop():
            raise Stopped(self._path, 0)
        self._hand_out()
        while any(worker.seed is not None for worker in self._team):
            try:
                worker, message = self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                worker = message = None
            if self._callbacks.should_stop() and not self._is_stopping:
                self._is_stopping = True
                for other in self._team:
                    other.send("stop")
            if worker is not None:
                yield from self._handle(worker, message)
        if self._has_stopped or (self._is_stopping and self._waiting):
            raise Stopped(self._path, 0)
        for seed in self._waiting:
            yield seed, self._failed(seed, "no process is left to train it")

    def _handle(
        self, worker: "_Worker", message: Any
    ) -> Iterator[tuple[int, Snapshot | Exception]]:
        """Handle one message of a worker; None: its process has ended."""
        seed = worker.seed
        if message is None:
            self._team.remove(worker)
            worker.seed = None
            if seed is not None:
                yield seed, self._failed(seed, worker.exit_reason())
        elif message[0] == "stopped":
            worker.seed, self._has_stopped = None, True
        elif message[0] == "done":
            _, seed, reason = message
            worker.seed = None
            yield seed, self._outcome(seed, reason)
        else:
            event = _to_event(message)
            self._has_compiled |= isinstance(event, Progress)
            self._callbacks.report(event)
        self._hand_out()

    def _hand_out(self) -> None:
        """Give a seed to every idle worker; to the first alone, until it has compiled."""
        for worker in self._team if self._has_compiled else self._team[:1]:
            if worker.seed is None and self._waiting and not self._is_stopping:
                worker.train(self._waiting.pop(0))

    def _outcome(self, seed: int, reason: str | None) -> Snapshot | Exception:
        if reason is not None:
            return TrainingError(reason)
        try:
            snapshot, _ = read_snapshot(self._setup, self._path, seed)
        except (ConfigError, *FAILURES) as error:
            return self._failed(seed, str(error))
        return snapshot

    def _failed(self, seed: int, reason: str) -> Exception:
        self._callbacks.report(Failed(seed, reason))
        return TrainingError(reason)


class _Worker:
    """A process that trains one seed after another.

    Args:
        task: what it trains.
        cores: those that it may use.
        inbox: takes its messages.
    """

    def __init__(
        self,
        task: dict[str, Any],
        cores: list[int],
        inbox: "queue.SimpleQueue[tuple[_Worker, Any]]",
    ):
        self.seed: int | None = None  # in training
        self._task: dict[str, Any] | None = {**task, "cores": cores}
        self._inbox = inbox
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        package = str(Path(__file__).parent.parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "JAX_PLATFORMS": "cpu",  # as here, be it by the environment or by jax.config
            "NPROC": str(len(cores)),  # the threads of XLA, where cores cannot be chosen
        }
        self._process = subprocess.Popen(
            # Not a fork, which JAX's threads forbid, nor multiprocessing, which would run the
            # user's own program again.
            [sys.executable, *_WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env=environment,
            process_group=0,  # Ctrl-C is for this process, which tells the others
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(OSError):
            self._stdin.close()
        self._wait()
        self._errors.close()

    def _wait(self) -> int:
        """Wait for the process to end, and kill it after a while; return its status."""
        try:
            return self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    @property
    def _stdin(self):
        assert self._process.stdin is not None
        return self._process.stdin

    def train(self, seed: int) -> None:
        """Send a seed, and before the first one the task."""
        self.seed = seed
        if self._task is not None:
            self.send(self._task)
            self._task = None
        self.send(seed)

    def send(self, message: Any) -> None:
        """Send a message; ignore a closed pipe, since the reading thread reports the exit."""
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(message) + "\n")
            self._stdin.flush()

    def exit_reason(self) -> str:
        """Return how the process ended, and the last line that it printed."""
        status = self._wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        if status >= 0:
            return f"its process ended with status {status}{last}"
        return f"its process was ended by signal {-status} ({signal.strsignal(-status)}){last}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as lines:
                for line in lines:
                    # Libraries may print before the worker redirects its output: no JSON.
                    with contextlib.suppress(json.JSONDecodeError):
                        self._inbox.put((self, json.loads(line)))
        finally:
            self._inbox.put((self, None))


def _to_event(message: list[Any]) -> Event:
    kind, *values = message
    event = _EVENTS[kind](*values)
    return event._replace(seeds=tuple(event.seeds)) if isinstance(event, Progress) else event
