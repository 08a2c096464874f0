"""Setup of a run, fixed before the first step: options, network, optimiser and images."""

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
from jaxmnist.models import model_of
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel.devices import ONE, Devices
from jaxmnist.parallel.limits import cores
from jaxmnist.runs.checkpoint import MAX_EPOCHS
from jaxmnist.runs.summary import Row, environment
from jaxmnist.state import TrainState, create_state
from jaxmnist.steps import Images


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Options of training and storage, which change the result by rounding at most.

    Args:
        data_dir: the folder of the TFDS data sets; by default $TFDS_DATA_DIR, else
            ~/tensorflow_datasets.
        idx_dir: a folder with the four IDX files (raw or .gz), used instead of all other sources.
        overwrite: replace the run in the output folder.
        resume: continue the run in the output folder from its newest checkpoints, or start it if
            there is none.
        checkpoint_every: the time between two checkpoints, in epochs (2) or in seconds (90s).
        keep: the number of newest checkpoints to keep.
        devices: the number of devices that share each batch equally; by default all devices, or as
            many of them as divide the batch size.
        parallel: the transformation for several devices: jit (with shard_map), or pmap, which uses
            jit and shard_map since JAX 0.8.
        seed_mapping: the way to train several seeds: vmap (in one program), loop (one after
            another), processes (one per core), or auto (the fastest on this machine).
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
    """Start of a run: its folder exists, and compilation follows if there is something to train."""

    out: Path
    requested: Path  # differs from `out` if it was not empty
    train_count: int  # number of training images
    steps: dict[int, int]  # steps already done, by seed
    total_steps: int  # per seed
    mapping: str  # one of seed_mapping.MAPPINGS
    warnings: list[str]


class Progress(NamedTuple):
    """End of a chunk of steps."""

    seeds: tuple[int, ...]  # seeds in parallel; the metrics are their means
    epoch: int  # from 1
    step: int  # steps done per seed
    loss: float  # mean over the epoch so far
    accuracy: float  # percent, over the epoch so far
    learning_rate: float  # at the last step
    images_per_second: float  # total over seeds


class EpochDone(NamedTuple):
    """End of an epoch, after evaluation."""

    rows: list[Row]  # one for each seed trained in parallel


class Failed(NamedTuple):
    """Failure of a seed; the others continue."""

    seed: int
    reason: str


class SeedDone(NamedTuple):
    """Completion of a seed, now or before the start."""

    run: Any  # a `Run` of this seed alone


Event = Started | Progress | EpochDone | Failed | SeedDone


class Callbacks(NamedTuple):
    """Functions that the training calls."""

    report: Callable[[Event], None] = lambda event: None
    data_progress: data.Progress = data.ignore_progress
    should_stop: Callable[[], bool] = lambda: False  # called about once a second


class Setup(NamedTuple):
    """The constant parts of a run; the config's seed is one of its seeds."""

    config: TrainConfig
    options: RunOptions
    model: nn.Module
    tx: optax.GradientTransformation
    state_shapes: TrainState
    train_images: Images
    test_images: Images
    images_digest: str
    steps: int  # steps per epoch
    facts: dict[str, Any]  # entries of the summary that are the same for all seeds
    devices: Devices

    @property
    def total_steps(self) -> int:
        """Total number of steps per seed."""
        return self.config.epochs * self.steps


def make_setup(
    config: TrainConfig,
    options: RunOptions = RunOptions(),
    progress: data.Progress = data.ignore_progress,
    devices: Devices = ONE,
    mapping: str = "loop",
) -> Setup:
    """Load the images and return the setup of a run.

    Args:
        config: the config of the run.
        options: options of training and storage.
        progress: callback for downloads; see `jaxmnist.data.load`.
        devices: the devices for training.
        mapping: one of `seed_mapping.MAPPINGS`.

    Raises:
        ConfigError: the config cannot be trained on these images.
        DataError: the images are not available.
    """
    facts = {"cores": len(cores()), "seed_mapping": mapping, **environment(devices.count)}
    dataset = data.load(config.dataset, options.data_dir, options.idx_dir, progress)
    return set_up(config, dataset, options, devices, facts)


def set_up(
    config: TrainConfig,
    dataset: data.Dataset,
    options: RunOptions,
    devices: Devices,
    facts: dict[str, Any],
) -> Setup:
    """Return the setup of a run on these images; for Args and Raises see `make_setup`."""
    if config.epochs > MAX_EPOCHS:
        raise ConfigError(
            f"epochs is {config.epochs}; expected at most {MAX_EPOCHS}: the rows of more do not "
            "fit into a checkpoint"
        )
    if config.holdout is not None:
        dataset = data.hold_out(dataset, config.holdout, config.fold)
    train_images, test_images = to_devices(dataset, config.limit_train, devices)
    steps = steps_per_epoch(len(train_images.pixels), config.batch_size)
    tx = make_optimizer(config, config.epochs * steps)
    model = model_of(config)
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
    """Copy training and test images to each device.

    Args:
        dataset: the images and labels.
        limit_train: the number of training images to use, the first ones; None for all.
        devices: the devices for training.

    Raises:
        ConfigError: there are fewer than `limit_train` training images.
    """
    available = len(dataset.train_images)
    if limit_train is not None and limit_train > available:
        raise ConfigError(
            f"limit_train is {limit_train}, but there are {available} training images; use at "
            f"most {available}"
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
    """Return the SHA-256 digest of all images and labels."""
    digest = hashlib.sha256()
    for array in dataset[:4]:
        digest.update(array.tobytes())
    return digest.hexdigest()


def state_shapes(
    config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation
) -> TrainState:
    """Return the shapes and dtypes of the state of one seed."""
    with_ema = config.ema_decay > 0
    return jax.eval_shape(lambda: create_state(model, tx, config.seed, with_ema))
