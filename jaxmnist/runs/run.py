"""A run and its folder: how one begins, goes on from where it was stopped, and is read back."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxmnist import data
from jaxmnist.config import ConfigError, SeedsConfig, TrainConfig, steps_per_epoch
from jaxmnist.metrics import Metrics
from jaxmnist.models import create_model
from jaxmnist.optim import Schedules, make_optimizer
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import ONE, Devices, check_platform, fixed_flags
from jaxmnist.runs import checkpoint, run_folder
from jaxmnist.runs.checkpoint import MAX_EPOCHS, Checkpoint, CheckpointError
from jaxmnist.runs.summary import Row, environment, make_summary
from jaxmnist.state import TrainState, create_state, initial_state, wrap_key
from jaxmnist.steps import Images

# In the summary of a run whose network was trained elsewhere: the file it comes from.
IMPORTED = "imported_from"

_NOTES = {"config", "environment", "images", "seconds", "rows", "summary"}


class Run(NamedTuple):
    """A finished run."""

    config: TrainConfig
    state: TrainState
    rows: list[Row]  # one an epoch
    summary: dict[str, Any]
    path: Path

    @property
    def variables(self) -> dict[str, Any]:
        """What the network is applied with."""
        return self.state.variables

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and std, of pixels / 255, by which its images are normalised.

        Raises:
            ConfigError: it was trained by a version that did not keep them, and they are not known.
        """
        kept = self.summary.get("normalisation") or data.NORMALISATION.get(self.config.dataset)
        if kept is None:
            raise ConfigError(
                f"the run in {self.path} does not say how its images were normalised; "
                "train it again"
            )
        mean, std = kept
        return mean, std


class Job(NamedTuple):
    """All that a run needs and does not change."""

    config: TrainConfig
    model: nn.Module
    tx: optax.GradientTransformation
    schedules: Schedules
    train_images: Images
    test_images: Images
    images_digest: str
    normalisation: tuple[float, float]  # mean and std of the training pixels / 255
    steps: int  # an epoch
    environment: dict[str, Any]
    devices: Devices

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * self.steps

    def of(self, seed: int) -> "Job":
        """The same of another seed."""
        return self._replace(config=dataclasses.replace(self.config, seed=seed))


class Plan(NamedTuple):
    """What a run does with a data set of some size."""

    dataset: data.Dataset  # without the images held out, which are its test images
    train_count: int  # images
    steps: int  # an epoch
    tx: optax.GradientTransformation
    schedules: Schedules


class Position(NamedTuple):
    """How far a run is: all that its future depends on, and its past in rows."""

    state: TrainState
    metrics: Metrics  # running over the epoch that the state is in
    seconds: float  # trained in this epoch
    rows: list[Row]
    summary: dict[str, Any] | None = None  # of a finished run

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


class Begun(NamedTuple):
    """A run that has its folder for itself."""

    path: Path
    wished: Path  # the folder it would have, were that free
    position: Position
    remarks: list[str]  # which checkpoints could not be used, and what else to know


def make_job(
    config: TrainConfig,
    data_dir: str | os.PathLike | None,
    idx_dir: str | os.PathLike | None,
    progress: data.Progress,
    devices: Devices = ONE,
) -> Job:
    """Loads the images and makes everything that the run needs.

    Args:
        config: what to train.
        data_dir: see `jaxmnist.data.load`.
        idx_dir: see `jaxmnist.data.load`.
        progress: see `jaxmnist.data.load`.
        devices: those that train it.

    Raises:
        ConfigError: the config cannot be trained on these images.
        DataError: the images cannot be had.
    """
    found = environment(devices.count)
    dataset = data.load(config.dataset, data_dir, idx_dir, progress)
    plan = make_plan(config, dataset)
    train_images, test_images = to_devices(plan.dataset, config.limit_train, devices)
    return Job(
        config=config,
        model=create_model(config.variant, config.dropout),
        tx=plan.tx,
        schedules=plan.schedules,
        train_images=train_images,
        test_images=test_images,
        images_digest=digest_of_images(plan.dataset),
        normalisation=(plan.dataset.mean, plan.dataset.std),
        steps=plan.steps,
        environment=found,
        devices=devices,
    )


def make_plan(config: TrainConfig, dataset: data.Dataset) -> Plan:
    """Work out what a run does with a data set.

    Args:
        config: what to train.
        dataset: the images; only their number matters.

    Raises:
        ConfigError: the config cannot be trained on this number of images.
    """
    if config.epochs > MAX_EPOCHS:
        raise ConfigError(
            f"epochs is {config.epochs}; expected at most {MAX_EPOCHS}: the rows of more do not "
            "fit into a checkpoint"
        )
    if config.holdout is not None:
        dataset = data.hold_out(dataset, config.holdout, config.fold)
    count = count_images(len(dataset.train_images), config.limit_train)
    steps = steps_per_epoch(count, config.batch_size)
    tx, schedules = make_optimizer(config, config.epochs * steps)
    return Plan(dataset, count, steps, tx, schedules)


def to_devices(
    dataset: data.Dataset,
    limit_train: int | None,
    devices: Devices = ONE,
) -> tuple[Images, Images]:
    """Puts training and test images on each of the devices.

    Args:
        dataset: the arrays.
        limit_train: take only this many training images, the first ones.
        devices: those that train.

    Raises:
        ConfigError: there are not so many.
    """
    count = count_images(len(dataset.train_images), limit_train)
    mean, std = np.asarray(dataset.mean, np.float32), np.asarray(dataset.std, np.float32)
    pixels, labels = dataset.train_images[:count], dataset.train_labels[:count]
    train_images = Images(pixels, labels, mean, std)
    test_images = Images(dataset.test_images, dataset.test_labels, mean, std)
    return devices.replicate((train_images, test_images))


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


def digest_of_images(dataset: data.Dataset) -> str:
    """The SHA-256 of all images and labels."""
    digest = hashlib.sha256()
    for array in dataset[:4]:
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def new_run(job: Job, out: str | os.PathLike | None, overwrite: bool) -> Iterator[Begun]:
    """Makes the folder of a run that starts at its first step.

    Args:
        job: what is run.
        out: the folder; None: the next free default one.
        overwrite: whether a run that is there is replaced.

    Yields:
        The run; its folder is this process's until the context ends.

    Raises:
        ConfigError: `out` is taken.
        OSError: the folder cannot be made.
    """
    with run_folder.new_folder(job.config, out, overwrite) as (wished, path):
        run_folder.write(path / run_folder.CONFIG, job.config.to_json())
        run_folder.write_rows(path / run_folder.METRICS, [])
        yield Begun(path, wished, _first_position(job), [])


@contextlib.contextmanager
def continued_run(job: Job, path: Path) -> Iterator[Begun]:
    """Finds where the run in a folder stopped, or begins one where there is none.

    Args:
        job: what is run; it must go on with what is there.
        path: the run's folder; made if it is missing.

    Yields:
        The run, at its newest checkpoint that is whole, or at its first step if it was stopped
        before it made one.

    Raises:
        ConfigError: the run is another one, or another process is at it.
        CheckpointError: there are checkpoints, and none is whole.
    """
    folder = path / run_folder.CHECKPOINTS
    with run_folder.claimed(path) as begins:
        if checkpoint.steps(folder):
            found, skipped = checkpoint.newest_whole(folder, lambda notes: _accept(job, notes))
            checkpoint.clean(folder, int(found.state.step))
            position = _from_checkpoint(found, job.total_steps)
            if position.summary is None:
                run_folder.remove_derived(path)
            remarks = [*skipped, *_changes(found.notes["environment"], job.environment)]
        else:
            _check_not_begun(job.config, path)
            checkpoint.clean(folder, 0)
            position, remarks = _first_position(job), begins
        _write_files(path, job.config, position)
        yield Begun(path, path, position, remarks)


@contextlib.contextmanager
def begun_by_first(job: Job, run: contextlib.AbstractContextManager[Begun]) -> Iterator[Begun]:
    """Begins a run in the first process; the others take over what it found.

    Args:
        job: what is run.
        run: `new_run` or `continued_run`, not yet entered.

    Raises:
        ConfigError: the processes have different configs or images, or one does not see the run.
        HostError: the first process could not begin.
        Exception: what `run` raises.
    """
    if jax.process_count() == 1:
        with run as begun:
            yield begun
        return
    distributed.check_same(job.config.to_json() + job.images_digest)
    with contextlib.ExitStack() as stack:
        begun = None

        def begin() -> bytes:
            nonlocal begun
            begun = stack.enter_context(run)
            return _to_bytes(begun)

        content = distributed.from_first(begin)
        begun = begun or _from_bytes(job, content)
        if not begun.path.is_dir():
            raise ConfigError(
                f"{begun.path} is not there for process {jax.process_index()}; processes that "
                "train together need one file system"
            )
        yield begun


def _to_bytes(begun: Begun) -> bytes:
    """A run that has begun, for another process."""
    position = begun.position
    state = position.state.replace(key=jax.random.key_data(position.state.key))
    notes = {
        "paths": [str(begun.path.absolute()), str(begun.wished)],
        "position": [position.seconds, position.rows, position.summary],
        "remarks": begun.remarks,
    }
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves((state, position.metrics))]
    file = io.BytesIO()
    np.savez(file, np.frombuffer(json.dumps(notes).encode(), np.uint8), *arrays)
    return file.getvalue()


def _from_bytes(job: Job, content: bytes) -> Begun:
    with np.load(io.BytesIO(content)) as file:
        notes, *arrays = (file[name] for name in file.files)
    said = json.loads(notes.tobytes())
    state_shapes = shapes(job.config, job.model, job.tx)
    tree = jax.tree.structure((state_shapes, Metrics.zero()))
    state, metrics = jax.tree.unflatten(tree, arrays)
    state = state.replace(key=wrap_key(state.key))
    path, wished = map(Path, said["paths"])
    return Begun(path, wished, Position(state, metrics, *said["position"]), said["remarks"])


def to_checkpoint(job: Job, position: Position) -> Checkpoint:
    """What is kept of a position on disk."""
    notes = {
        "config": json.loads(job.config.to_json()),
        "environment": job.environment,
        "images": job.images_digest,
        "seconds": position.seconds,
        "rows": position.rows,
        "summary": position.summary,
    }
    return Checkpoint(position.state, position.metrics, notes)


def finished(job: Job, position: Position, compile_seconds: float) -> Position:
    """The last position of a run, with its summary."""
    summary = make_summary(
        job.config,
        count_parameters(position.state.params),
        position.rows,
        len(job.test_images.pixels),
        compile_seconds,
        job.environment,
    )
    return position._replace(summary={**summary, "normalisation": list(job.normalisation)})


def finished_run(job: Job, position: Position, path: Path) -> Run:
    """A run whose last position this is; its state on the device."""
    assert position.summary is not None
    state = jax.device_put(position.state)
    return Run(job.config, state, position.rows, position.summary, path)


def begun_config(path: Path) -> TrainConfig | SeedsConfig:
    """What a run was begun with: by its newest checkpoint, or by config.json if it has none.

    Args:
        path: the run folder.

    Raises:
        ConfigError: neither is there, or it is of another format.
        OSError: it cannot be read.
    """
    notes = checkpoint.newest_notes(path / run_folder.CHECKPOINTS)
    return run_folder.read_config(path) if notes is None else _config_of(notes)


@fixed_flags()
def load_run(path: str | os.PathLike) -> Run:
    """Reads a finished run back from its folder; nothing in the folder is executed.

    Args:
        path: the run folder.

    Returns:
        What `train` returned.

    Raises:
        ConfigError: the folder is not that of a finished run.
        CheckpointError: its last checkpoint is not whole.
        OSError: a file of the run cannot be read.
    """
    path = Path(path)
    check_platform()
    run_folder.check_own(path)
    config = run_folder.read_config_of_run(path)
    folder = path / run_folder.CHECKPOINTS
    found, skipped = checkpoint.newest_whole(folder, _template)
    if skipped:
        raise CheckpointError(f"{skipped[0]}; --resume trains the end of the run again")
    if _config_of(found.notes) != config:
        raise CheckpointError(f"{path / run_folder.CONFIG} is not the config of {folder}")
    summary = found.notes["summary"]
    if summary is None:
        raise ConfigError(f"the run in {path} is not finished; --resume goes on with it")
    return Run(config, jax.device_put(found.state), found.notes["rows"], summary, path)


def _first_position(job: Job) -> Position:
    with_ema = job.config.ema_decay > 0
    state = initial_state(job.model, job.tx, job.config.seed, with_ema)
    return Position(state, Metrics.zero(), 0.0, [])


def _from_checkpoint(found: Checkpoint, total_steps: int) -> Position:
    before = found.notes["summary"]
    if before is not None and IMPORTED in before and int(found.state.step) != total_steps:
        raise ConfigError(
            f"the network comes from {before[IMPORTED]}; it cannot go on with an optimiser that "
            "nobody has kept"
        )
    state, metrics = jax.device_put((found.state, found.metrics))
    # A finished run may go on with more epochs; then it is finished no longer.
    summary = found.notes["summary"] if int(state.step) == total_steps else None
    return Position(state, metrics, found.notes["seconds"], found.notes["rows"], summary)


def check_continues(config: TrainConfig, path: Path) -> None:
    """Accepts a folder whose run, if it has one, was begun with this config.

    Raises:
        ConfigError: it has another run, or something else.
        CheckpointError: it has a finished run without its checkpoints.
    """
    notes = checkpoint.newest_notes(path / run_folder.CHECKPOINTS)
    if notes is not None:
        config.check_continues(_config_of(notes))
    elif path.is_dir() and not checkpoint.steps(path / run_folder.CHECKPOINTS):
        _check_not_begun(config, path)


def _check_not_begun(config: TrainConfig, path: Path) -> None:
    """Accepts a run that was stopped before its first checkpoint."""
    if run_folder.seed_folders(path):
        raise ConfigError(f"{path} has the runs of several seeds; pass their --seeds")
    run_folder.check_is_run(path)
    if (path / run_folder.SUMMARY).exists():
        raise CheckpointError(f"the run in {path} is finished, but its checkpoints are gone")
    if run_folder.has_config(path):
        config.check_continues(run_folder.read_config_of_run(path))


def _accept(job: Job, notes: dict[str, Any]) -> TrainState:
    """The shapes of the state in a checkpoint, if the job goes on with its run."""
    job.config.check_continues(_config_of(notes))
    if notes["images"] != job.images_digest:
        raise ConfigError(
            "the run was begun with other images; pass the --data-dir or --idx-dir it had"
        )
    return shapes(job.config, job.model, job.tx)


def _template(notes: dict[str, Any]) -> TrainState:
    """The shapes of the state in a checkpoint, whosever run it is of."""
    config = _config_of(notes)
    # Only a schedule's values depend on the number of steps: any that it accepts will do.
    tx, _ = make_optimizer(config, total_steps=4)
    return shapes(config, create_model(config.variant, config.dropout), tx)


def shapes(config: TrainConfig, model: nn.Module, tx: optax.GradientTransformation) -> TrainState:
    """A run's state without its numbers."""
    with_ema = config.ema_decay > 0
    return jax.eval_shape(lambda: create_state(model, tx, config.seed, with_ema))


def _config_of(notes: dict[str, Any]) -> TrainConfig:
    if not isinstance(notes, dict) or set(notes) != _NOTES:
        raise ConfigError(f"a checkpoint has notes on {list(notes)}; expected {sorted(_NOTES)}")
    return TrainConfig.from_json(json.dumps(notes["config"]))


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is another machine or program than before: there, the last bits may differ."""
    return [
        f"{name} was {before.get(name)} and is {value}: the result may differ in rounding"
        for name, value in now.items()
        if before.get(name) != value
    ]


def _write_files(path: Path, config: TrainConfig, position: Position) -> None:
    """Makes the files for people say what the checkpoint says."""
    run_folder.write(path / run_folder.CONFIG, config.to_json())
    run_folder.write_rows(path / run_folder.METRICS, position.rows)
    if position.summary is None:
        (path / run_folder.SUMMARY).unlink(missing_ok=True)
    else:
        run_folder.write_summary(path / run_folder.SUMMARY, position.summary)
