"""Training: the loop over chunks and epochs, from the first step to the last."""

import json
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmnist import data, records
from jaxmnist.checkpoint import Checkpoints
from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.records import Row
from jaxmnist.runs import (
    Job,
    Position,
    Run,
    continued_run,
    finished,
    make_job,
    new_run,
    to_checkpoint,
)
from jaxmnist.state import TrainState
from jaxmnist.steps import (
    Evaluate,
    Images,
    OrderOfEpoch,
    TrainChunk,
    make_evaluate,
    make_order_of_epoch,
    make_train_chunk,
)

# A chunk of steps is one call: progress and interruptions have their place between two of them.
CHUNK_SECONDS = 1.0
FIRST_CHUNK = 4  # steps, before it is known how many make a second

CHECKPOINT_EVERY = "30s"
KEEP = 2  # checkpoints: should the newest be damaged, there is another


class TrainingError(RuntimeError):
    """The run cannot go on."""


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

    epoch: int  # from 1
    step: int  # steps done, of the whole run
    loss: float  # running over the epoch
    accuracy: float  # percent, running over the epoch
    learning_rate: float  # of the last step
    images_per_second: float


class EpochDone(NamedTuple):
    """An epoch is done and evaluated."""

    row: Row  # of metrics.jsonl


Event = Started | Progress | EpochDone
Report = Callable[[Event], None]


class Programs(NamedTuple):
    """The compiled programs of a run. `train_chunk` takes its state and metrics for itself."""

    order_of_epoch: OrderOfEpoch
    train_chunk: TrainChunk
    evaluate: Evaluate
    compile_seconds: float


def ignore(event: Event) -> None:
    """Shows nothing."""


def never() -> bool:
    """Lets a run go on to its end."""
    return False


def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    checkpoint_every: str = CHECKPOINT_EVERY,
    keep: int = KEEP,
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
        resume: whether the run that is already in `out` goes on from its newest checkpoint.
        checkpoint_every: what lies between two checkpoints, in epochs (as "2") or seconds (as
            "90s"); there is always one at the end.
        keep: how many checkpoints are kept, the newest ones.
        report: told of every event, as it happens.
        data_progress: see `jaxmnist.data.load`.
        should_stop: asked after every chunk, about once a second.

    Returns:
        The trained state with the rows and the summary.

    Raises:
        ConfigError: the config cannot be trained on these images, `out` is taken, or it does not
            hold a run that this config goes on with.
        DataError: the images cannot be had.
        CheckpointError: a checkpoint could not be written, or no checkpoint is whole.
        TrainingError: the loss or a parameter is not finite.
        Stopped: `should_stop` returned True; everything is saved.
        OSError: the disk does not take the run.
    """
    _check_arguments(out, overwrite, resume, keep)  # before the images are fetched
    is_due = make_cadence(checkpoint_every)
    job = make_job(config, data_dir, idx_dir, data_progress)
    run = continued_run(job, Path(out)) if resume and out else new_run(job, out, overwrite)
    with run as begun, Checkpoints(begun.path / records.CHECKPOINTS, keep) as checkpoints:
        path, position = begun.path, begun.position
        count = len(job.train_images.pixels)
        report(Started(path, begun.wished, count, position.step, job.total_steps, begun.remarks))
        for position in _positions(job, begun.position, path, report):
            is_last = position.summary is not None
            stops = should_stop() and not is_last
            if is_last or stops or is_due(position):
                _check_sound(position, config)
                checkpoints.save(to_checkpoint(job, position))
            if stops:
                checkpoints.wait()
                raise Stopped(path, position.step)
        checkpoints.wait()
        assert position.summary is not None
        records.write_summary(path / records.SUMMARY, position.summary)
    return Run(config, position.state, position.rows, position.summary, path)


def _check_arguments(
    out: str | os.PathLike | None, overwrite: bool, resume: bool, keep: int
) -> None:
    """Refuses a folder that cannot be had, and keeping nothing."""
    if keep < 1:
        raise ConfigError(f"keep is {keep}; expected a whole number of at least 1")
    if resume and overwrite:
        raise ConfigError("resume and overwrite exclude each other: drop one of them")
    if resume and out is None:
        raise ConfigError("resume needs to know the folder of the run: pass --out")
    if out is not None:
        records.check_own(Path(out)) if resume else records.check_free(Path(out), overwrite)


def make_cadence(every: str) -> Callable[[Position], bool]:
    """Says of a position, asked for one after another, whether a checkpoint is due.

    Args:
        every: so many epochs, as "2", or seconds, as "90s".

    Raises:
        ConfigError: it is neither.
    """
    parts = re.fullmatch(r"([1-9][0-9]{0,8})(s?)", every)
    if parts is None:
        raise ConfigError(
            f"checkpoint_every is {every!r}; expected epochs, as 2, or seconds, as 90s"
        )
    number, last = int(parts[1]), time.monotonic()

    def after_epochs(position: Position) -> bool:
        at_the_end_of_one = int(position.metrics.count) == 0
        return at_the_end_of_one and len(position.rows) % number == 0

    def after_seconds(position: Position) -> bool:
        nonlocal last
        is_due = time.monotonic() - last >= number
        last = time.monotonic() if is_due else last
        return is_due

    return after_seconds if parts[2] else after_epochs


def _positions(job: Job, position: Position, path: Path, report: Report) -> Iterator[Position]:
    """Trains from a position on; yields every one that follows, the last with the summary."""
    if position.summary is not None:
        return
    programs = compile_programs(
        job.config, job.model, job.tx, position.state, job.train_images, job.test_images
    )
    while position.step < job.total_steps:
        start = position
        for position in _epoch(job, programs, start, report):
            if position.step % job.steps:
                yield position
        position = _evaluated(job, programs, position, path)
        report(EpochDone(position.rows[-1]))
        if position.step < job.total_steps:
            yield position
    yield finished(job, position, programs.compile_seconds)


def _epoch(job: Job, programs: Programs, position: Position, report: Report) -> Iterator[Position]:
    """Trains to the end of the epoch; yields the position after each chunk."""
    state, metrics, seconds, rows, _ = position
    step, chunk = position.step, FIRST_CHUNK
    epoch = step // job.steps + 1
    order = programs.order_of_epoch(state, job.train_images)
    while step < epoch * job.steps:
        stop = np.int32(min(step + chunk, epoch * job.steps))
        begin = time.perf_counter()
        state, metrics = programs.train_chunk(state, metrics, job.train_images, order, stop)
        done, step = step, int(state.step)  # waits for the device
        elapsed = time.perf_counter() - begin
        seconds += elapsed
        _check_finite("training", metrics.loss, step, job.config)
        speed = (step - done) / elapsed
        chunk = max(1, round(CHUNK_SECONDS * speed))
        rate = float(job.schedules.learning_rate(step - 1))
        images_per_second = speed * job.config.batch_size
        report(Progress(epoch, step, metrics.loss, metrics.accuracy, rate, images_per_second))
        yield Position(state, metrics, seconds, rows)


def _evaluated(job: Job, programs: Programs, position: Position, path: Path) -> Position:
    """Evaluates the end of an epoch and writes its row."""
    tested = programs.evaluate(position.state, job.test_images)
    row = records.make_row(
        job.config,
        job.schedules,
        position.step // job.steps,
        position.step,
        position.metrics,
        tested,
        position.seconds,
    )
    records.append(path / records.METRICS, json.dumps(row))
    _check_finite("test", tested.loss, position.step, job.config)
    return Position(position.state, Metrics.zero(), 0.0, [*position.rows, row])


def _check_finite(which: str, loss: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {which} loss became {loss} at step {step} of seed {config.seed}; "
            f"try a smaller --learning-rate than {config.learning_rate}"
        )


def _check_sound(position: Position, config: TrainConfig) -> None:
    """Keeps a state from being saved that its last step has broken."""
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


def compile_programs(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    state: TrainState,
    train_images: Images,
    test_images: Images,
) -> Programs:
    """Compiles training and evaluation for these shapes, once for the whole run."""
    begin = time.perf_counter()
    order_of_epoch = jax.jit(make_order_of_epoch(config)).lower(state, train_images)
    train_chunk = jax.jit(make_train_chunk(config, model, tx), donate_argnums=(0, 1)).lower(
        state, Metrics.zero(), train_images, order_of_epoch.out_info, np.int32(0)
    )
    evaluate = jax.jit(make_evaluate(model)).lower(state, test_images)
    order_of_epoch, train_chunk, evaluate = (
        program.compile() for program in (order_of_epoch, train_chunk, evaluate)
    )
    return Programs(order_of_epoch, train_chunk, evaluate, time.perf_counter() - begin)
