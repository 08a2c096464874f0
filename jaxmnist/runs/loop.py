"""The training loop over chunks and epochs, for seeds that train in parallel.

A seed that has failed keeps its slot in the compiled programs, and its results are ignored.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import numpy as np

from jaxmnist.config import ConfigError
from jaxmnist.metrics import Metrics
from jaxmnist.optim import latest_hyperparams
from jaxmnist.parallel import distributed
from jaxmnist.parallel.programs import Programs, stack, unstack
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.run import Snapshot, finish, save
from jaxmnist.runs.setup import Callbacks, EpochDone, Failed, Progress, Setup
from jaxmnist.runs.summary import Row, make_row

# Duration of a chunk, one compiled call. Progress and signals are handled between chunks.
CHUNK_SECONDS = 1.0
FIRST_CHUNK = 4  # steps, while the speed is unknown


class TrainingError(RuntimeError):
    """A loss or parameter of a seed that is not finite, or the failure of its process."""


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A requested stop of a run, which can be resumed."""

    def __init__(self, path: Path, step: int):
        super().__init__(f"the run in {path} stopped at step {step}; use --resume to continue it")
        self.path, self.step = path, step


# Errors that affect a single seed; the others continue.
FAILURES = (TrainingError, CheckpointError, OSError)
Outcomes = dict[int, Snapshot | Exception]  # by seed


def make_cadence(every: str) -> Callable[[float], bool]:
    """Return a function of the epochs done, which returns whether a checkpoint is due.

    Args:
        every: a number of epochs, such as "2", or of seconds, such as "90s".

    Raises:
        ConfigError: `every` is neither.
    """
    parts = re.fullmatch(r"([1-9][0-9]{0,8})(s?)", every)
    if parts is None:
        raise ConfigError(
            f"checkpoint_every is {every!r}; expected epochs, such as 2, or seconds, such as 90s"
        )
    number, last = int(parts[1]), time.monotonic()

    def after_epochs(epochs: float) -> bool:
        return epochs % number == 0

    def after_seconds(epochs: float) -> bool:
        nonlocal last
        is_due = time.monotonic() - last >= number
        last = time.monotonic() if is_due else last
        return is_due

    return after_seconds if parts[2] else after_epochs


@dataclasses.dataclass
class _Slot:
    """A seed in the compiled programs."""

    index: int  # index along the leading axis
    seed: int
    rows: list[Row]
    seconds: float  # training time of this epoch so far
    outcome: Snapshot | Exception | None = None


class TrainLoop:
    """Training of several seeds in parallel, to the end.

    Args:
        setup: the run's setup.
        snapshots: the snapshot of each seed; all are at the same step.
        programs: programs compiled for at least this number of seeds.
        path: the run's folder.
        callbacks: functions to call during the training.
    """

    def __init__(
        self,
        setup: Setup,
        snapshots: Mapping[int, Snapshot],
        programs: Programs,
        path: Path,
        callbacks: Callbacks,
    ):
        self._setup, self._programs = setup, programs
        self._path, self._callbacks = path, callbacks
        self._slots = [
            _Slot(index, seed, snapshot.rows, snapshot.seconds)
            for index, (seed, snapshot) in enumerate(snapshots.items())
        ]
        filled = list(snapshots.values())
        filled += [filled[0]] * (programs.num_slots - len(filled))
        self._state = programs.put(stack([snapshot.state for snapshot in filled]))
        self._metrics = stack([snapshot.metrics for snapshot in filled])
        self._step = filled[0].step
        self._begin_epoch()

    def run(self) -> Outcomes:
        """Train to the end.

        Returns:
            The last snapshot of each seed, or its error, one of `FAILURES`.

        Raises:
            Stopped: `callbacks.should_stop` returned True; the run has been saved.
            HostError: another process failed.
        """
        setup, is_due = self._setup, make_cadence(self._setup.options.checkpoint_every)
        while self._active():
            with distributed.as_host_error():
                self._train_chunk()
                if self._step % setup.steps == 0 and self._active():
                    self._evaluate()
            if self._step == setup.total_steps:
                self._save(is_last=True)
                continue
            requests = (self._callbacks.should_stop(), is_due(self._step / setup.steps))
            self._chunk, stops, saves = distributed.sync_decision(self._chunk, *requests)
            if stops or saves:
                self._save()
            if stops and self._active():
                raise Stopped(self._path, self._step)
        return {slot.seed: slot.outcome for slot in self._slots if slot.outcome is not None}

    def _active(self) -> list[_Slot]:
        """Return the slots of seeds that are neither finished nor failed."""
        return [slot for slot in self._slots if slot.outcome is None]

    @contextlib.contextmanager
    def _failing_alone(self, slot: _Slot) -> Iterator[None]:
        """Catch an error of one seed, and report it as the seed's failure."""
        try:
            yield
        except FAILURES as error:
            slot.outcome = error
            self._callbacks.report(Failed(slot.seed, str(error)))

    def _begin_epoch(self) -> None:
        self._order = None
        self._chunk = FIRST_CHUNK

    def _train_chunk(self) -> None:
        """Train for about a second, or to the end of the epoch."""
        setup, programs, slots = self._setup, self._programs, self._active()
        if self._order is None:
            self._order = programs.epoch_permutation(self._state, setup.train_images)
        stop = min(self._step + self._chunk, (self._step // setup.steps + 1) * setup.steps)
        begin = time.perf_counter()
        self._state, metrics = programs.train_chunk(
            self._state,
            programs.put(self._metrics),
            setup.train_images,
            self._order,
            np.int32(stop),
        )
        self._metrics = programs.get(metrics)  # waits for the device
        elapsed = time.perf_counter() - begin
        speed = (stop - self._step) / elapsed
        self._chunk = max(1, round(CHUNK_SECONDS * speed))
        self._step = stop
        steps_done = programs.get(self._state.step)
        for slot in slots:
            slot.seconds += elapsed / len(slots)
            with self._failing_alone(slot):
                loss = _of_slot(self._metrics, slot).loss
                check_finite("training", loss, steps_done[slot.index], slot.seed, setup)
        if self._active():
            self._report_progress(speed)

    def _report_progress(self, speed: float) -> None:
        setup, slots = self._setup, self._active()
        metrics = [_of_slot(self._metrics, slot) for slot in slots]
        rates, _ = self._programs.get(latest_hyperparams(self._state.opt_state))
        self._callbacks.report(
            Progress(
                seeds=tuple(slot.seed for slot in slots),
                epoch=(self._step - 1) // setup.steps + 1,
                step=self._step,
                loss=fmean(each.loss for each in metrics),
                accuracy=fmean(each.accuracy for each in metrics),
                learning_rate=fmean(float(rates[slot.index]) for slot in slots),
                images_per_second=speed * setup.config.batch_size * len(slots),
            )
        )

    def _evaluate(self) -> None:
        """Evaluate after an epoch, and report a row for each seed."""
        setup, slots, epoch = self._setup, self._active(), self._step // self._setup.steps
        tested = self._programs.get(self._programs.evaluate(self._state, setup.test_images))
        rates, momenta = self._programs.get(latest_hyperparams(self._state.opt_state))
        for slot in slots:
            row = make_row(
                seed=slot.seed,
                learning_rate=float(rates[slot.index]),
                momentum=float(momenta[slot.index]),
                epoch=epoch,
                step=self._step,
                trained=_of_slot(self._metrics, slot),
                tested=_of_slot(tested, slot),
                train_seconds=slot.seconds,
            )
            slot.rows, slot.seconds = [*slot.rows, row], 0.0
        self._metrics = stack([Metrics.zero()] * self._programs.num_slots)
        self._begin_epoch()
        self._callbacks.report(EpochDone([slot.rows[-1] for slot in slots]))
        for slot in slots:
            with self._failing_alone(slot):
                check_finite("test", _of_slot(tested, slot).loss, self._step, slot.seed, setup)

    def _save(self, is_last: bool = False) -> None:
        """Write a checkpoint of each seed; the last one becomes its outcome."""
        setup = self._setup
        states = unstack(self._programs.get(self._state), len(self._slots))
        for slot in self._active():
            metrics, state = _of_slot(self._metrics, slot), states[slot.index]
            snapshot = Snapshot(state, metrics, slot.seconds, slot.rows)
            with self._failing_alone(slot):
                check_sound(snapshot, slot.seed, setup)
                if is_last:
                    snapshot = finish(setup, snapshot, self._programs.compile_seconds)
                save(setup, slot.seed, snapshot, self._path)
                if is_last:
                    slot.outcome = snapshot._replace(state=jax.device_put(state))


def _of_slot(metrics: Metrics, slot: _Slot) -> Metrics:
    return jax.tree.map(lambda leaf: leaf[slot.index], metrics)


def check_finite(which: str, loss: float, step: int, seed: int, setup: Setup) -> None:
    """Check that a loss is finite.

    Raises:
        TrainingError: the loss is not finite; the message names the step and the seed.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {which} loss became {loss} at step {step} of seed {seed}; "
            f"try a smaller --learning-rate than {setup.config.learning_rate}"
        )


def check_sound(snapshot: Snapshot, seed: int, setup: Setup) -> None:
    """Check that a state is finite before it is saved.

    Raises:
        TrainingError: a value is not finite; the message names the array, step and seed.
    """
    state = snapshot.state
    numbers: dict[str, Any] = {**state.latest, "opt_state": state.opt_state}
    for path, leaf in jax.tree.leaves_with_path(numbers):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TrainingError(
                f"{name} is not finite after step {snapshot.step} of seed {seed}; "
                f"try a smaller --learning-rate than {setup.config.learning_rate}"
            )
