"""A whole run: images in, a trained network and its records out."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmnist import data, records
from jaxmnist.config import ConfigError, TrainConfig, steps_per_epoch
from jaxmnist.metrics import Metrics
from jaxmnist.models import create_model
from jaxmnist.optim import Schedules, make_optimizer
from jaxmnist.records import Row
from jaxmnist.state import TrainState, create_state, initial_state
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


class TrainingError(RuntimeError):
    """The run cannot go on."""


class Started(NamedTuple):
    """The run has its folder; what follows is compilation."""

    out: Path
    wished: Path  # the folder it would have, were that free
    train_count: int
    total_steps: int


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


class Run(NamedTuple):
    """A finished run."""

    config: TrainConfig
    state: TrainState
    rows: list[Row]  # one an epoch
    summary: dict[str, Any]
    path: Path


class Programs(NamedTuple):
    """The compiled programs of a run. `train_chunk` takes its state and metrics for itself."""

    order_of_epoch: OrderOfEpoch
    train_chunk: TrainChunk
    evaluate: Evaluate
    compile_seconds: float


def ignore(event: Event) -> None:
    """Shows nothing."""


def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    report: Report = ignore,
    data_progress: data.Progress = data.ignore_progress,
) -> Run:
    """Trains one network and writes its run folder.

    Args:
        config: what to train.
        out: the run folder; None: the next free of runs/<variant>-seed<seed>, ...-2, ...-3.
        data_dir: see `jaxmnist.data.load`.
        idx_dir: see `jaxmnist.data.load`.
        overwrite: whether a run that is already in `out` is replaced.
        report: told of every event, as it happens.
        data_progress: see `jaxmnist.data.load`.

    Returns:
        The trained state with the rows and the summary.

    Raises:
        ConfigError: the config cannot be trained on these images, or `out` is taken.
        DataError: the images cannot be had.
        TrainingError: the loss is not finite.
        OSError: the disk does not take the run.
    """
    if out is not None:
        records.check_free(Path(out), overwrite)  # before the images are fetched
    environment = records.environment()
    dataset = data.load(config.dataset, data_dir, idx_dir, data_progress)
    train_images, test_images = to_device(dataset, config.limit_train)
    train_count, test_count = len(train_images.pixels), len(test_images.pixels)
    steps = steps_per_epoch(train_count, config.batch_size)
    model = create_model(config.variant, config.dropout)
    tx, schedules = make_optimizer(config, config.epochs * steps)
    wished, path = records.claim_folder(config, out, overwrite)
    records.write(path / records.CONFIG, config.to_json())
    report(Started(path, wished, train_count, config.epochs * steps))

    state = initial_state(model, tx, config.seed)
    programs = compile_programs(config, model, tx, state, train_images, test_images)
    rows = []
    epochs = _epochs(config, programs, schedules, state, train_images, report)
    for epoch, (state, metrics, seconds) in enumerate(epochs, start=1):
        tested = programs.evaluate(state, test_images)
        step = int(state.step)
        row = records.make_row(config, schedules, epoch, step, metrics, tested, seconds)
        rows.append(row)
        records.append(path / records.METRICS, json.dumps(row))
        report(EpochDone(row))
        _check_finite("test", tested.loss, step, config)
    _save(path, state)
    parameters = count_parameters(state.params)
    summary = records.make_summary(
        config, parameters, rows, test_count, programs.compile_seconds, environment
    )
    records.write(path / records.SUMMARY, json.dumps(summary, indent=2) + "\n")
    return Run(config, state, rows, summary, path)


def _epochs(
    config: TrainConfig,
    programs: Programs,
    schedules: Schedules,
    state: TrainState,
    images: Images,
    report: Report,
) -> Iterator[tuple[TrainState, Metrics, float]]:
    """Trains epoch after epoch; yields the state, the running metrics and the seconds of each."""
    steps = steps_per_epoch(len(images.pixels), config.batch_size)
    step, chunk = 0, FIRST_CHUNK
    for epoch in range(1, config.epochs + 1):
        metrics, seconds = Metrics.zero(), 0.0
        order = programs.order_of_epoch(state, images)
        while step < epoch * steps:
            stop = min(step + chunk, epoch * steps)
            begin = time.perf_counter()
            state, metrics = programs.train_chunk(state, metrics, images, order, np.int32(stop))
            done, step = step, int(state.step)  # waits for the device
            elapsed = time.perf_counter() - begin
            seconds += elapsed
            _check_finite("training", metrics.loss, step, config)
            speed = (step - done) / elapsed
            chunk = max(1, round(CHUNK_SECONDS * speed))
            rate = float(schedules.learning_rate(step - 1))
            report(
                Progress(
                    epoch, step, metrics.loss, metrics.accuracy, rate, speed * config.batch_size
                )
            )
        yield state, metrics, seconds


def _check_finite(which: str, loss: float, step: int, config: TrainConfig) -> None:
    if not math.isfinite(loss):
        raise TrainingError(
            f"the {which} loss became {loss} at step {step} of seed {config.seed}; "
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


def to_device(dataset: data.Dataset, limit_train: int | None) -> tuple[Images, Images]:
    """Puts training and test images on the default device.

    Args:
        dataset: the arrays.
        limit_train: take only this many training images, the first ones.

    Raises:
        ConfigError: there are not so many.
    """
    count = count_images(len(dataset.train_images), limit_train)
    mean, std = np.asarray(dataset.mean, np.float32), np.asarray(dataset.std, np.float32)
    pixels, labels = dataset.train_images[:count], dataset.train_labels[:count]
    train_images = Images(pixels, labels, mean, std)
    test_images = Images(dataset.test_images, dataset.test_labels, mean, std)
    return jax.device_put((train_images, test_images))


def count_images(available: int, limit_train: int | None) -> int:
    """How many of the available images are trained on.

    Raises:
        ConfigError: the limit asks for more.
    """
    if limit_train is not None and limit_train > available:
        raise ConfigError(
            f"limit_train is {limit_train}, but there are {available} training images"
        )
    return limit_train or available


def count_parameters(params: Any) -> int:
    """How many numbers the optimiser trains."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _save(path: Path, state: TrainState) -> None:
    # Orbax takes two seconds to import; here they pass after the training, not before it.
    from jaxmnist import checkpoint

    checkpoint.save(path / records.CHECKPOINTS, state)


def load_run(path: str | os.PathLike) -> Run:
    """Reads a finished run back from its folder.

    Args:
        path: the run folder.

    Returns:
        What `train` returned.

    Raises:
        ConfigError: the folder is not that of a finished run.
        CheckpointError: there is no checkpoint of this network.
        OSError: a file of the run cannot be read.
    """
    from jaxmnist import checkpoint

    path = Path(path)
    for name in (records.CONFIG, records.METRICS, records.SUMMARY):
        if not (path / name).is_file():
            raise ConfigError(f"{path} has no {name}; expected the folder of a finished run")
    config = TrainConfig.from_json((path / records.CONFIG).read_text())
    rows = [json.loads(line) for line in (path / records.METRICS).read_text().splitlines()]
    summary = json.loads((path / records.SUMMARY).read_text())
    model = create_model(config.variant, config.dropout)
    tx, _ = make_optimizer(config, summary["steps"])
    template = jax.eval_shape(lambda: create_state(model, tx, config.seed))
    state = checkpoint.restore(path / records.CHECKPOINTS, template)
    return Run(config, state, rows, summary, path)
