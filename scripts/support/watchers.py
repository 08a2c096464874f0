"""Watchers of a training besides the display: TensorBoard and the profiler."""
# pyright: reportMissingImports=false

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from jaxmnist.runs import run_folder
from jaxmnist.runs.setup import EpochDone, Progress, Started
from jaxmnist.runs.summary import Row

# Fields of a row of metrics.jsonl.
SCALARS = (
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
    "learning_rate",
    "momentum",
    "images_per_second",
)


@contextlib.contextmanager
def guarded(watcher: Any) -> Iterator[Callable[[Any], None]]:
    """Enter a watcher or display whose errors must not end the training.

    Args:
        watcher: an object with a method `show`, which receives the events of a training.

    Yields:
        A function like `show`. After an error, which is printed once, it does nothing.
    """
    failed = False

    def attempt(method: Callable[..., Any], *arguments: Any) -> None:
        nonlocal failed
        try:
            method(*arguments)
        except Exception as error:
            if not failed:
                print(
                    f"note: {type(watcher).__name__} is off after an error: {error}",
                    file=sys.stderr,
                )
            failed = True

    def show(event: Any) -> None:
        if not failed:
            attempt(watcher.show, event)

    attempt(watcher.__enter__)
    try:
        yield show
    finally:
        attempt(watcher.__exit__, *sys.exc_info())


class TensorBoard:
    """Writer of each epoch's metrics for TensorBoard, with a curve for each seed.

    Raises:
        ModuleNotFoundError: tensorboardX is not installed.
    """

    def __init__(self):
        # tensorboardX's own SummaryWriter writes in a thread. On a full disk, the thread and the
        # training would hang.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        proto: Any = event_pb2  # its classes are made at import
        self._writer_of, self._scalar = event_file_writer.EventsWriter, summary.scalar
        self._event, self._log = proto.Event, proto.SessionLog
        self._folder, self._writers = Path(), {}

    def __enter__(self) -> "TensorBoard":
        return self

    def __exit__(self, *exception: object) -> None:
        for writer in self._writers.values():
            writer.close()

    def show(self, event: Any) -> None:
        """Store the run's folder, and write the metrics of an epoch."""
        if isinstance(event, Started):
            self._folder = event.out / run_folder.TENSORBOARD
        if isinstance(event, EpochDone):
            for row in event.rows:
                self._write(row)

    def _write(self, row: Row) -> None:
        seed, step = row["seed"], row["epoch"]
        if seed not in self._writers:
            folder = self._folder / f"seed{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[seed] = self._writer_of(str(folder / "events"))
            # In a resumed run, metrics from after the checkpoint are no longer valid.
            start = self._log(status=self._log.START)
            event = self._event(wall_time=time.time(), step=step, session_log=start)
            self._writers[seed].write_event(event)
        for name in SCALARS:
            if row[name] is not None:
                summary = self._scalar(name, row[name])
                event = self._event(wall_time=time.time(), step=step, summary=summary)
                self._writers[seed].write_event(event)
        self._writers[seed].flush()


class Profile:
    """Profiler of the steps between the first two progress events, about a second."""

    def __init__(self):
        self._folder, self._tracing, self._done = Path(), False, False

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if self._tracing:
            jax.profiler.stop_trace()
        elif not self._done and kind is None:
            print("note: too few steps were left for a profile", file=sys.stderr)

    def show(self, event: Any) -> None:
        """Start the trace after the first chunk; stop it after the second."""
        if isinstance(event, Started):
            self._folder = event.out / run_folder.PROFILE
        if isinstance(event, Progress) and self._tracing:
            jax.profiler.stop_trace()
            self._tracing, self._done = False, True
        elif isinstance(event, Progress) and not self._done:
            jax.profiler.start_trace(self._folder)
            self._tracing = True
