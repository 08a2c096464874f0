"""Everything fixed before the first step: options of a run, its network, optimiser and images."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmnist import data
from jaxmnist.config import ConfigError, TrainConfig, steps_per_epoch
from jaxmnist.models import create_model
from jaxmnist.optim import Schedules, make_optimizer
from jaxmnist.parallel.devices import ONE, Devices
from jaxmnist.runs.checkpoint import MAX_EPOCHS
from jaxmnist.runs.summary import Row, core_count, environment
from jaxmnist.state import TrainState, create_state
from jaxmnist.steps import Images


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of training and storage; none decides the result, except for rounding.

    Args:
        data_dir: the folder of TFDS's data sets; by default $TFDS_DATA_DIR, else
            ~/tensorflow_datasets.
        idx_dir: a folder with the four IDX files (raw or .gz), used in place of all other sources.
        overwrite: replace the run in the folder.
        resume: continue the run in the folder from its newest checkpoints, or begin it if there is
            none.
        checkpoint_every: epochs, as 2, or seconds, as 90s, between two checkpoints.
        keep: the number of checkpoints to keep, the newest ones.
        devices: the number of devices that share every batch in equal parts; by default all, or
            as many as divide the batch.
        parallel: the form of their program: jit (with shard_map), or pmap, which is jit and
            shard_map inside since JAX 0.8.
        seed_mapping: the way to train several seeds: vmap (in one program), loop (one after
            another), processes (one for each core), or auto: the fastest of them here.
    """

    data_dir: str | os.PathLike | None = None
    idx_dir: str | os.PathLike | None = None
    overwrite: bool = False
    resume: bool = False
    checkpoint_every: str = "30s"
    keep: int = 2
    devices: int | None = None
    parallel: str = "jit"
    seed_mapping: str = "auto"


class Started(NamedTuple):
    """The run has its folder; compilation is next, if anything is left to train."""

    out: Path
    requested: Path  # differs from `out` where that was taken
    train_count: int  # images
    steps: dict[int, int]  # by seed, those already done
    total_steps: int  # of each seed
    mapping: str  # one of seed_mapping.MAPPINGS
    warnings: list[str]


class Progress(NamedTuple):
    """A chunk of steps is done."""

    seeds: tuple[int, ...]  # trained side by side; the metrics are their means
    epoch: int  # from 1
    step: int  # steps done, of each seed
    loss: float  # running over the epoch
    accuracy: float  # percent, running over the epoch
    learning_rate: float  # of the last step
    images_per_second: float  # of all seeds together


class EpochDone(NamedTuple):
    """An epoch is trained and evaluated."""

    rows: list[Row]  # one for each seed trained side by side


class Failed(NamedTuple):
    """A seed cannot continue; the others do."""

    seed: int
    reason: str


class SeedDone(NamedTuple):
    """A seed is finished, now or before the start."""

    run: Any  # a `Run` of this seed alone


Event = Started | Progress | EpochDone | Failed | SeedDone


class Callbacks(NamedTuple):
    """Functions that a training calls."""

    report: Callable[[Event], None] = lambda event: None
    data_progress: data.Progress = data.ignore_progress
    should_stop: Callable[[], bool] = lambda: False  # called about once a second


class Setup(NamedTuple):
    """Everything that a run needs and does not change; the config's seed is one of its seeds."""

    config: TrainConfig
    options: RunOptions
    model: nn.Module
    tx: optax.GradientTransformation
    schedules: Schedules
    state_shapes: TrainState
    train_images: Images
    test_images: Images
    images_digest: str
    steps: int  # an epoch
    facts: dict[str, Any]  # of the summary, the same for all seeds
    devices: Devices

    @property
    def total_steps(self) -> int:
        """Steps of a seed's whole training."""
        return self.config.epochs * self.steps


def make_setup(
    config: TrainConfig,
    options: RunOptions = RunOptions(),
    progress: data.Progress = data.ignore_progress,
    devices: Devices = ONE,
    mapping: str = "loop",
) -> Setup:
    """Load the images and make everything that a run needs.

    Args:
        config: what to train.
        options: the source of the images, and the checkpoints to write.
        progress: see `jaxmnist.data.load`.
        devices: those that train.
        mapping: one of `seed_mapping.MAPPINGS`.

    Raises:
        ConfigError: the config cannot be trained on these images.
        DataError: the images are not available.
    """
    facts = {"cores": core_count(), "seed_mapping": mapping, **environment(devices.count)}
    dataset = data.load(config.dataset, options.data_dir, options.idx_dir, progress)
    return set_up(config, dataset, options, devices, facts)


def set_up(
    config: TrainConfig,
    dataset: data.Dataset,
    options: RunOptions,
    devices: Devices,
    facts: dict[str, Any],
) -> Setup:
    """Make everything that a run on these images needs; Args and Raises as `make_setup`."""
    if config.epochs > MAX_EPOCHS:
        raise ConfigError(
            f"epochs is {config.epochs}; expected at most {MAX_EPOCHS}: the rows of more do not "
            "fit into a checkpoint"
        )
    if config.holdout is not None:
        dataset = data.hold_out(dataset, config.holdout, config.fold)
    train_images, test_images = to_devices(dataset, config.limit_train, devices)
    steps = steps_per_epoch(len(train_images.pixels), config.batch_size)
    tx, schedules = make_optimizer(config, config.epochs * steps)
    model = create_model(config.variant, config.dropout)
    shapes = state_shapes(config, model, tx)
    facts = {
        **facts,
        "parameters": count_parameters(shapes.params),
        "test_count": len(dataset.test_images),
        "normalisation": [dataset.mean, dataset.std],
    }
    return Setup(
        config=config,
        options=options,
        model=model,
        tx=tx,
        schedules=schedules,
        state_shapes=shapes,
        train_images=train_images,
        test_images=test_images,
        images_digest=_digest(dataset),
        steps=steps,
        facts=facts,
        devices=devices,
    )


def to_devices(
    dataset: data.Dataset, limit_train: int | None, devices: Devices = ONE
) -> tuple[Images, Images]:
    """Put training and test images on each of the devices.

    Args:
        dataset: the arrays.
        limit_train: the number of training images to take, the first ones; None: all.
        devices: those that train.

    Raises:
        ConfigError: there are fewer training images.
    """
    available = len(dataset.train_images)
    if limit_train is not None and limit_train > available:
        raise ConfigError(
            f"limit_train is {limit_train}, but there are {available} training images"
        )
    mean, std = np.asarray(dataset.mean, np.float32), np.asarray(dataset.std, np.float32)
    pixels, labels = dataset.train_images[:limit_train], dataset.train_labels[:limit_train]
    train_images = Images(pixels, labels, mean, std)
    test_images = Images(dataset.test_images, dataset.test_labels, mean, std)
    return devices.replicate((train_images, test_images))


def count_parameters(params: Any) -> int:
    """Return the number of trained parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _digest(dataset: data.Dataset) -> str:
    """Return the SHA-256 of all images and labels."""
    digest = hashlib.sha256()
    for array in dataset[:4]:
        digest.update(array.tobytes())
    return digest.hexdigest()


def state_shapes(
    config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation
) -> TrainState:
    """Return the shapes and dtypes of a run's state."""
    with_ema = config.ema_decay > 0
    return jax.eval_shape(lambda: create_state(model, tx, config.seed, with_ema))
