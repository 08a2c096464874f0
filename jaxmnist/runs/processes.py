"""Seeds in processes of their own, each with its share of the cores: the side that starts them.

`worker.py` is what such a process does. Both ends write lines of JSON. To a worker: first a task,
then seeds, one after another, and "stop". From it: events; `["done", seed, reason]`, the reason
null if the run is finished; `["stopped"]`. A worker ends when its input does, so that none outlives
this process, however that ends.
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
from jaxmnist.parallel.devices import kept_compiled
from jaxmnist.parallel.seed_mapping import shares_of_cores
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Job, Run, load_run
from jaxmnist.runs.training import (
    FAILURES,
    EpochDone,
    Event,
    Failed,
    Progress,
    Stopped,
    TrainingError,
    Watch,
)

# How long a signal waits at most for a worker to have something to say.
POLL_SECONDS = 0.2
# How long a worker that has nothing to do may take to end.
END_SECONDS = 10

_WORKER = ("-P", "-m", "jaxmnist.runs.worker")
_EVENTS = {kind.__name__: kind for kind in (Progress, EpochDone, Failed)}


def train_in_processes(
    job: Job,
    seeds: Iterable[int],
    path: Path,
    watch: Watch,
    data_dir: str | os.PathLike | None,
    idx_dir: str | os.PathLike | None,
) -> Iterator[tuple[int, Run | Exception]]:
    """Trains seeds side by side in processes; each takes the next one when it is done with one.

    The first process compiles; the others begin when it has, and find what it compiled.

    Args:
        job: what is run, whatever its seed.
        seeds: those to train.
        path: each goes on, or begins, in a folder of its own below this one.
        watch: how the trainings are watched over.
        data_dir: see `jaxmnist.data.load`.
        idx_dir: see `jaxmnist.data.load`.

    Yields:
        Each seed with its finished run, or with what ended it or kept it from beginning.

    Raises:
        Stopped: `watch.should_stop` returned True; everything is saved.
    """
    waiting = list(seeds)
    inbox: queue.SimpleQueue[tuple[_Worker, Any]] = queue.SimpleQueue()
    with contextlib.ExitStack() as stack:
        cache = kept_compiled() or stack.enter_context(
            tempfile.TemporaryDirectory(prefix="jaxmnist-compiled-")
        )
        task = {
            "config": job.config.to_json(),
            "data_dir": None if data_dir is None else str(Path(data_dir).expanduser().absolute()),
            "idx_dir": None if idx_dir is None else str(Path(idx_dir).expanduser().absolute()),
            "path": str(path.absolute()),
            "checkpoint_every": watch.checkpoint_every,
            "keep": watch.keep,
            "cache": str(cache),
        }
        team = [
            stack.enter_context(_Worker(task, cores, inbox))
            for cores in shares_of_cores(len(waiting))
        ]
        yield from _Lead(team, waiting, path, watch, inbox).train()


class _Lead:
    """Gives seeds to workers, until all seeds have come to an end."""

    def __init__(
        self,
        team: list["_Worker"],
        waiting: list[int],
        path: Path,
        watch: Watch,
        inbox: "queue.SimpleQueue[tuple[_Worker, Any]]",
    ):
        self._team, self._waiting, self._path = team, waiting, path
        self._watch, self._inbox = watch, inbox
        self._has_compiled = False
        self._is_stopping = self._has_stopped = False

    def train(self) -> Iterator[tuple[int, Run | Exception]]:
        """Yields each seed with its end, as it comes."""
        if self._watch.should_stop():
            raise Stopped(self._path, 0)
        self._give_all()
        while any(worker.seed is not None for worker in self._team):
            try:
                worker, message = self._inbox.get(timeout=POLL_SECONDS)
            except queue.Empty:
                worker = message = None
            if self._watch.should_stop() and not self._is_stopping:
                self._is_stopping = True
                for other in self._team:
                    other.send("stop")
            if worker is not None:
                yield from self._hear(worker, message)
        if self._has_stopped or (self._is_stopping and self._waiting):
            raise Stopped(self._path, 0)
        for seed in self._waiting:
            yield seed, self._failed(seed, "no process is left to train it")

    def _hear(self, worker: "_Worker", message: Any) -> Iterator[tuple[int, Run | Exception]]:
        """Takes one message of a worker; None says that it has ended."""
        seed = worker.seed
        if message is None:
            self._team.remove(worker)
            worker.seed = None
            if seed is not None:
                yield seed, self._failed(seed, worker.last_words())
        elif message[0] == "stopped":
            worker.seed, self._has_stopped = None, True
        elif message[0] == "done":
            _, seed, reason = message
            worker.seed = None
            yield seed, self._end_of(seed, reason)
        else:
            event = _event_of(message)
            self._has_compiled |= isinstance(event, Progress)
            self._watch.report(event)
        self._give_all()

    def _give_all(self) -> None:
        """Gives a seed to whoever has none: to the first alone, until it has compiled."""
        for worker in self._team if self._has_compiled else self._team[:1]:
            if worker.seed is None and self._waiting and not self._is_stopping:
                worker.train(self._waiting.pop(0))

    def _end_of(self, seed: int, reason: str | None) -> Run | Exception:
        if reason is not None:
            return TrainingError(reason)
        try:
            return load_run(run_folder.seed_folder(self._path, seed))
        except (ConfigError, *FAILURES) as error:
            return self._failed(seed, str(error))

    def _failed(self, seed: int, reason: str) -> Exception:
        self._watch.report(Failed(seed, reason))
        return TrainingError(reason)


class _Worker:
    """A process that trains one seed after another.

    Args:
        task: what it trains.
        cores: those that it may use.
        inbox: takes what it says.
    """

    def __init__(
        self,
        task: dict[str, Any],
        cores: list[int],
        inbox: "queue.SimpleQueue[tuple[_Worker, Any]]",
    ):
        self.seed: int | None = None  # that it is training
        self._task: dict[str, Any] | None = {**task, "cores": cores}
        self._inbox = inbox
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed with the process
        package = str(Path(__file__).parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            "JAX_PLATFORMS": "cpu",  # as here, be it by the environment or by jax.config
            "NPROC": str(len(cores)),  # the threads of XLA, where cores cannot be chosen
        }
        self._process = subprocess.Popen(
            # Not as a child by fork, which JAX's threads forbid, nor by multiprocessing, which
            # would run the user's own program again.
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
        self._end()
        self._errors.close()

    def _end(self) -> int:
        """Waits for its end, not for ever; returns its status."""
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
        """Gives it a seed, and before the first one its task."""
        self.seed = seed
        if self._task is not None:
            self.send(self._task)
            self._task = None
        self.send(seed)

    def send(self, message: Any) -> None:
        """Writes to it; that it has ended it says itself."""
        with contextlib.suppress(OSError):
            self._stdin.write(json.dumps(message) + "\n")
            self._stdin.flush()

    def last_words(self) -> str:
        """How it ended, and the last line that it printed."""
        status = self._end()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        said = f": {lines[-1]}" if lines else ""
        if status >= 0:
            return f"its process ended with status {status}{said}"
        return f"its process was ended by signal {-status} ({signal.strsignal(-status)}){said}"

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            with self._process.stdout as lines:
                for line in lines:
                    # What is no JSON is of a library, before it was told to be silent.
                    with contextlib.suppress(json.JSONDecodeError):
                        self._inbox.put((self, json.loads(line)))
        finally:
            self._inbox.put((self, None))


def _event_of(message: list[Any]) -> Event:
    kind, *values = message
    event = _EVENTS[kind](*values)
    return event._replace(seeds=tuple(event.seeds)) if isinstance(event, Progress) else event
