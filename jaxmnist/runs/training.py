"""Training: the loop over chunks and epochs, from the first step to the last.

What is trained is a block: one seed, or several side by side. A seed that cannot go on
stays in its place, where nobody looks at it any more, and the others go on.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import jax
import numpy as np

from jaxmnist import data
from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import choose_devices, fixed_flags, remarks_on
from jaxmnist.parallel.programs import Programs, compile_programs, stack, unstack
from jaxmnist.runs import run_folder
from jaxmnist.runs.checkpoint import CheckpointError, Checkpoints
from jaxmnist.runs.run import (
    Begun,
    Job,
    Position,
    Run,
    begun_by_first,
    continued_run,
    finished,
    finished_run,
    make_job,
    new_run,
    to_checkpoint,
)
from jaxmnist.runs.summary import Row, make_row

# A chunk of steps is one call: progress and interruptions have their place between two of them.
CHUNK_SECONDS = 1.0
FIRST_CHUNK = 4  # steps, before it is known how many make a second

CHECKPOINT_EVERY = "30s"
KEEP = 2  # checkpoints: should the newest be damaged, there is another


class TrainingError(RuntimeError):
    """The run cannot go on."""


# What ends the run of one seed, and not those of others.
FAILURES = (TrainingError, CheckpointError, OSError)


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """The run stopped because it was asked to, and can go on from there."""

    def __init__(self, path: Path, step: int):
        super().__init__(f"the run in {path} stopped at step {step}; --resume goes on with it")
        self.path, self.step = path, step


class Started(NamedTuple):
    """The run has its folder; what follows is compilation, if there is anything left to train."""

    out: Path
    wished: Path  # the folder it would have, were that free
    train_count: int
    step: int  # where it goes on; 0: from the beginning
    total_steps: int
    remarks: list[str]  # which checkpoints could not be used, and what else to know


class Progress(NamedTuple):
    """A chunk is done."""

    seeds: tuple[int, ...]  # that did it side by side; the figures are their means
    epoch: int  # from 1
    step: int  # steps done, of each one's whole run
    loss: float  # running over the epoch
    accuracy: float  # percent, running over the epoch
    learning_rate: float  # of the last step
    images_per_second: float  # of all together


class EpochDone(NamedTuple):
    """An epoch is done and evaluated."""

    rows: list[Row]  # of metrics.jsonl: one for each seed that trains side by side


class Failed(NamedTuple):
    """A seed cannot go on."""

    seed: int
    reason: str


Event = Started | Progress | EpochDone | Failed
Report = Callable[[Event], None]


def ignore(event: object) -> None:
    """Shows nothing."""


def never() -> bool:
    """Lets a run go on to its end."""
    return False


class Watch(NamedTuple):
    """How a training is watched over; none of it changes what comes of it. As in `train`."""

    checkpoint_every: str = CHECKPOINT_EVERY
    keep: int = KEEP
    report: Report = ignore
    should_stop: Callable[[], bool] = never


@fixed_flags()
def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: str = CHECKPOINT_EVERY,
    keep: int = KEEP,
    devices: int | None = None,
    parallel: str = "jit",
    report: Report = ignore,
    data_progress: data.Progress = data.ignore_progress,
    should_stop: Callable[[], bool] = never,
) -> Run:
    """Trains one network and writes its run folder.

    Args:
        config: what to train.
        out: the run folder; None: the next free of runs/<variant>-seed<seed>, ...-2, ...-3.
        data_dir: see `jaxmnist.data.load`.
        idx_dir: see `jaxmnist.data.load`.
        overwrite: whether a run that is already in `out` is replaced.
        resume: whether the run that is already in `out` goes on from its newest checkpoint; where
            there is none, it begins.
        checkpoint_every: what lies between two checkpoints, in epochs (as "2") or seconds (as
            "90s"); there is always one at the end.
        keep: how many checkpoints are kept, the newest ones.
        devices: how many share every batch, in equal parts; None: all, of all processes. The run
            is the same but for rounding.
        parallel: the form of their program: see `jaxmnist.parallel.devices.Devices`.
        report: told of every event, as it happens.
        data_progress: see `jaxmnist.data.load`.
        should_stop: asked after every chunk, about once a second.

    Returns:
        The trained state with the rows and the summary.

    Raises:
        ConfigError: the config cannot be trained on these images or devices, `out` is taken, or
            it does not hold a run that this config goes on with.
        DataError: the images cannot be had.
        HostError: another process failed, or is gone.
        CheckpointError: a checkpoint could not be written, or no checkpoint is whole.
        TrainingError: the loss or a parameter is not finite.
        Stopped: `should_stop` returned True; everything is saved.
        OSError: the disk does not take the run.
    """
    watch = Watch(checkpoint_every, keep, report, should_stop)
    check_arguments(out, overwrite, resume, watch)  # before the images are fetched
    chosen = choose_devices(devices, parallel, config.batch_size)
    chosen.check_divides(config.batch_size)
    job = make_job(config, data_dir, idx_dir, data_progress, chosen)
    run = continued_run(job, Path(out)) if resume and out else new_run(job, out, overwrite)
    with begun_by_first(job, run) as begun:
        count, step = len(job.train_images.pixels), begun.position.step
        remarks = [*begun.remarks, *(remarks_on(chosen, config.batch_size) if not devices else ())]
        report(Started(begun.path, begun.wished, count, step, job.total_steps, remarks))
        if begun.position.summary is not None:
            return finished_run(job, begun.position, begun.path)
        (end,) = train_block([job], [begun], compile_for(job), watch)
    if isinstance(end, Exception):
        raise end
    return end


def check_arguments(
    out: str | os.PathLike | None, overwrite: bool, resume: bool, watch: Watch
) -> None:
    """Accepts a folder that can be had, and a cadence and a number of checkpoints that can be kept.

    Raises:
        ConfigError: one is not.
    """
    make_cadence(watch.checkpoint_every)
    if watch.keep < 1:
        raise ConfigError(f"keep is {watch.keep}; expected a whole number of at least 1")
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: drop one of them")
    if resume and out is None:
        raise ConfigError("resume needs to know the folder of the run: pass --out")

    def check_folder() -> bytes:
        if out is not None and not resume:
            run_folder.check_free(Path(out), overwrite)
        elif out is not None and Path(out).exists():
            run_folder.check_own(Path(out))
        return b""

    distributed.from_first(check_folder)


def make_cadence(every: str) -> Callable[[float], bool]:
    """Says of moments of a run, asked for one after another, whether a checkpoint is due.

    Args:
        every: so many epochs, as "2", or seconds, as "90s".

    Returns:
        A function of the epochs done, whole or not.

    Raises:
        ConfigError: it is neither.
    """
    parts = re.fullmatch(r"([1-9][0-9]{0,8})(s?)", every)
    if parts is None:
        raise ConfigError(
            f"checkpoint_every is {every!r}; expected epochs, as 2, or seconds, as 90s"
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


def compile_for(job: Job, seeds: int = 1) -> Programs:
    """Compiles what a block of so many seeds needs; Args and Returns of `compile_programs`."""
    return compile_programs(
        job.config,
        job.model,
        job.tx,
        job.train_images,
        job.test_images,
        seeds=seeds,
        devices=job.devices,
    )


def train_each(
    job: Job, seeds: Iterable[int], path: Path, watch: Watch
) -> Iterator[tuple[int, Run | Exception]]:
    """Trains seeds one after another, with one compilation.

    Args:
        job: what is run, whatever its seed.
        seeds: those to train; each is asked for when the one before is done.
        path: each goes on, or begins, in a folder of its own below this one.
        watch: how the trainings are watched over.

    Yields:
        Each seed with its finished run, or with what ended it or kept it from beginning.

    Raises:
        Stopped: `watch.should_stop` returned True; everything is saved.
    """
    programs = None
    for seed in seeds:
        with contextlib.ExitStack() as stack:
            begun = enter_seed(stack, job, path, seed)
            if isinstance(begun, Exception):
                watch.report(Failed(seed, str(begun)))
                yield seed, begun
                continue
            programs = programs or compile_for(job)
            (end,) = train_block([job.of(seed)], [begun], programs, watch)
        yield seed, end


def enter_seed(stack: contextlib.ExitStack, job: Job, path: Path, seed: int) -> Begun | Exception:
    """Begins or continues the run of one of several seeds; its folder is held by the stack.

    Args:
        stack: what holds the folder.
        job: what is run, whatever its seed.
        path: the folder of all seeds.
        seed: which one.

    Returns:
        The run; or what keeps it from beginning: one of `FAILURES`, or a ConfigError.
    """
    folder = run_folder.seed_folder(path, seed)
    try:
        folder.mkdir(exist_ok=True)
        run_folder.check_own(folder)
        return stack.enter_context(continued_run(job.of(seed), folder))
    except (ConfigError, *FAILURES) as error:
        return error


def train_block(
    jobs: Sequence[Job], begun: Sequence[Begun], programs: Programs, watch: Watch
) -> list[Run | Exception]:
    """Trains seeds side by side to the end.

    Args:
        jobs: theirs; alike but for the seed.
        begun: their runs, all at the same step.
        programs: compiled for a block with a place for each; places may be left over.
        watch: how the training is watched over.

    Returns:
        For each seed its finished run, or what ended it: one of `FAILURES`.

    Raises:
        Stopped: `watch.should_stop` returned True; everything is saved.
    """
    return _Block(jobs, begun, programs, watch).train()


@dataclasses.dataclass
class _Place:
    """A seed in a block."""

    number: int  # along the leading axis
    job: Job
    path: Path
    checkpoints: Checkpoints
    rows: list[Row]
    seconds: float  # trained in this epoch
    end: Run | Exception | None = None

    def of(self, metrics: Metrics) -> Metrics:
        """Its part of the block's metrics."""
        return jax.tree.map(lambda leaf: leaf[self.number], metrics)


class _Block:
    """Seeds that train side by side; Args as `train_block`."""

    def __init__(
        self,
        jobs: Sequence[Job],
        begun: Sequence[Begun],
        programs: Programs,
        watch: Watch,
    ):
        self._job = jobs[0]  # for all that does not depend on the seed
        self._programs, self._watch = programs, watch
        positions = [run.position for run in begun]
        self._places = [
            _Place(
                *(
                    number,
                    job,
                    run.path,
                    Checkpoints(run.path / run_folder.CHECKPOINTS, watch.keep),
                ),
                *(run.position.rows, run.position.seconds),
            )
            for number, (job, run) in enumerate(zip(jobs, begun, strict=True))
        ]
        filled = [*positions, *[positions[0]] * (programs.places - len(positions))]
        self._state = programs.put(stack([position.state for position in filled]))
        self._metrics = stack([position.metrics for position in filled])
        self._step = positions[0].step
        self._begin_epoch()

    def train(self) -> list[Run | Exception]:
        """Trains to the end, whatever that is for each seed."""
        is_due = make_cadence(self._watch.checkpoint_every)
        try:
            with distributed.missing_the_others():
                self._train_all(is_due)
        except distributed.HostError:
            raise  # without a wait for checkpoints: it would be one for the others
        except BaseException as error:
            for place in self._places:
                place.checkpoints.abandon(error)
            raise
        return [place.end for place in self._places if place.end is not None]

    def _train_all(self, is_due: Callable[[float], bool]) -> None:
        job = self._job
        while self._training():
            self._train_chunk()
            if self._step % job.steps == 0 and self._training():
                self._evaluate()
            if self._step == job.total_steps:
                self._finish()
                continue
            wishes = (self._watch.should_stop(), is_due(self._step / job.steps))
            self._chunk, stops, saves = distributed.agree(self._chunk, *wishes)
            if stops:
                self._stop()
            elif saves:
                self._save()

    def _training(self) -> list[_Place]:
        """The seeds that have not come to an end."""
        return [place for place in self._places if place.end is None]

    @contextlib.contextmanager
    def _failing_alone(self, place: _Place) -> Iterator[None]:
        """Makes a failure the end of this seed, and of no other."""
        try:
            yield
        except FAILURES as error:
            place.checkpoints.abandon(error)
            place.end = error
            self._watch.report(Failed(place.job.config.seed, str(error)))

    def _begin_epoch(self) -> None:
        self._order = None
        self._chunk = FIRST_CHUNK

    def _train_chunk(self) -> None:
        """Trains for about a second, or to the end of the epoch."""
        job, images, places = self._job, self._job.train_images, self._training()
        if self._order is None:
            self._order = self._programs.epoch_permutation(self._state, images)
        epoch = self._step // job.steps + 1
        stop = min(self._step + self._chunk, epoch * job.steps)
        begin = time.perf_counter()
        self._state, metrics = self._programs.train_chunk(
            *(self._state, self._programs.put(self._metrics), images, self._order, np.int32(stop))
        )
        self._metrics = self._programs.get(metrics)  # waits for the device
        elapsed = time.perf_counter() - begin
        speed = (stop - self._step) / elapsed
        self._chunk = max(1, round(CHUNK_SECONDS * speed))
        self._step = stop
        steps_done = self._programs.get(self._state.step)
        for place in places:
            place.seconds += elapsed / len(places)
            with self._failing_alone(place):
                loss = place.of(self._metrics).loss
                check_finite("training", loss, steps_done[place.number], place.job.config)
        if self._training():
            self._report_progress(epoch, speed)

    def _report_progress(self, epoch: int, speed: float) -> None:
        places = self._training()
        metrics = [place.of(self._metrics) for place in places]
        self._watch.report(
            Progress(
                tuple(place.job.config.seed for place in places),
                epoch,
                self._step,
                fmean(of_seed.loss for of_seed in metrics),
                fmean(of_seed.accuracy for of_seed in metrics),
                float(self._job.schedules.learning_rate(self._step - 1)),
                speed * self._job.config.batch_size * len(places),
            )
        )

    def _evaluate(self) -> None:
        """Evaluates the end of an epoch and writes a row for each seed."""
        places, epoch = self._training(), self._step // self._job.steps
        tested = self._programs.evaluate(self._state, self._job.test_images)
        tested = self._programs.get(tested)
        for place in places:
            config, schedules = place.job.config, self._job.schedules
            figures = (place.of(self._metrics), place.of(tested), place.seconds)
            row = make_row(config, schedules, epoch, self._step, *figures)
            place.rows, place.seconds = [*place.rows, row], 0.0
            with self._failing_alone(place):
                if distributed.is_first():
                    run_folder.append(place.path / run_folder.METRICS, json.dumps(row))
                check_finite("test", place.of(tested).loss, self._step, config)
        self._metrics = stack([Metrics.zero()] * self._programs.places)
        self._begin_epoch()
        self._watch.report(EpochDone([place.rows[-1] for place in places]))

    def _positions(self) -> Iterator[tuple[_Place, Position]]:
        """Where each seed is, in the host's memory."""
        states = unstack(self._programs.get(self._state), len(self._places))
        for place in self._training():
            metrics = place.of(self._metrics)
            yield place, Position(states[place.number], metrics, place.seconds, place.rows)

    def _save(self) -> None:
        """Begins to write a checkpoint of each seed."""
        for place, position in self._positions():
            with self._failing_alone(place):
                save(place.job, position, place.checkpoints)

    def _stop(self) -> None:
        """Saves where each seed is, and ends, unless that showed that none can go on."""
        self._save()
        for place in self._training():
            with self._failing_alone(place):
                place.checkpoints.close()
        if self._training():
            raise Stopped(self._places[0].path, self._step)

    def _finish(self) -> None:
        """Saves the end of each seed, and waits for the disk."""
        for place, position in self._positions():
            with self._failing_alone(place):
                last = finished(place.job, position, self._programs.compile_seconds)
                save(place.job, last, place.checkpoints)
                place.checkpoints.close()
                end = finished_run(place.job, last, place.path)
                if distributed.is_first():
                    run_folder.write_summary(place.path / run_folder.SUMMARY, end.summary)
                place.end = end


def save(job: Job, position: Position, checkpoints: Checkpoints) -> None:
    """Begins to write a checkpoint.

    Raises:
        CheckpointError: this one or the one before could not be written.
        OSError: the disk has no room for it, or the run's folder is gone.
        TrainingError: the position is not sound.
    """
    check_sound(position, job.config)
    checkpoints.save(to_checkpoint(job, position))


def check_finite(which: str, loss: float, step: int, config: TrainConfig) -> None:
    """Accepts a finite loss.

    Raises:
        TrainingError: it is not; names step and seed.
    """
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {which} loss became {loss} at step {step} of seed {config.seed}; "
            f"try a smaller --learning-rate than {config.learning_rate}"
        )


def check_sound(position: Position, config: TrainConfig) -> None:
    """Keeps a state from being saved that its last step has broken.

    Raises:
        TrainingError: something in it is not finite; names it, step and seed.
    """
    state = position.state
    numbers = {
        "params": state.params,
        "batch_stats": state.batch_stats,
        "opt_state": state.opt_state,
    }
    for path, leaf in jax.tree.leaves_with_path(numbers):
        if not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TrainingError(
                f"{name} is not finite after step {position.step} of seed {config.seed}; "
                f"try a smaller --learning-rate than {config.learning_rate}"
            )
