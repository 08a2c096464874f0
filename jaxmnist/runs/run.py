"""Runs: snapshots of their seeds, and loading from a folder."""

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmnist import data
from jaxmnist.config import FORMAT, ConfigError, TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.models import model_of
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import check_platform, fixed_flags
from jaxmnist.runs import checkpoint, run_folder
from jaxmnist.runs.checkpoint import Checkpoint, CheckpointError
from jaxmnist.runs.run_folder import RunConfig
from jaxmnist.runs.setup import Setup, state_shapes
from jaxmnist.runs.summary import IMPORTED, Row, facts_of, make_summary, summarize_seed
from jaxmnist.state import TrainState, initial_state

_METADATA = {"config", "environment", "images", "seconds", "rows", "summary"}
_ENVIRONMENT = ("device", "versions", "git_commit")


class Snapshot(NamedTuple):
    """A snapshot of a seed's training: everything needed to continue, and its rows so far."""

    state: TrainState
    metrics: Metrics  # metrics of the epoch so far
    seconds: float  # training time of the epoch so far
    rows: list[Row]
    summary: dict[str, Any] | None = None  # result of `summarize_seed` for a finished seed

    @property
    def step(self) -> int:
        """Number of steps done."""
        return int(self.state.step)


class Run(NamedTuple):
    """A finished run: a trained network for each seed, or the reason of its failure."""

    config: TrainConfig  # config of the first seed
    snapshots: dict[int, Snapshot]  # last snapshots by seed, for finished seeds
    failures: dict[int, str]  # reasons by seed, for failed seeds
    summary: dict[str, Any]  # the content of summary.json
    path: Path
    is_part: bool = False  # True for one seed of several; see `split`

    @property
    def name(self) -> str:
        """The folder, and the seed if it is one of several."""
        return f"{self.path} seed {self.config.seed}" if self.is_part else str(self.path)

    @property
    def seed_folder(self) -> str:
        """The name of the seed's subfolder in output folders; "" for a run of one seed."""
        return f"seed{self.config.seed}" if self.is_part else ""

    @property
    def state(self) -> TrainState:
        """The trained state of the first seed."""
        return self.snapshots[self.config.seed].state

    @property
    def variables(self) -> dict[str, Any]:
        """The variables of the first seed's network."""
        return self.state.variables

    @property
    def rows(self) -> list[Row]:
        """The rows of metrics.jsonl, ordered by seed."""
        return [row for snapshot in self.snapshots.values() for row in snapshot.rows]

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation of pixels / 255, which normalise the images.

        Raises:
            ConfigError: an older version wrote the run without them, and they are not known.
        """
        kept = self.summary.get("normalisation") or data.NORMALISATION.get(self.config.dataset)
        if kept is None:
            raise ConfigError(
                f"the run in {self.path} has no normalisation of its images; train it again"
            )
        mean, std = kept
        return mean, std

    def split(self) -> list["Run"]:
        """Return a run of one seed for each finished seed."""
        if len(self.snapshots) == 1 and not self.failures:
            return [self]
        return [
            make_run(
                dataclasses.replace(self.config, seed=seed), {seed: snapshot}, self.path
            )._replace(is_part=True)
            for seed, snapshot in self.snapshots.items()
        ]


@fixed_flags()
def load_run(path: str | os.PathLike) -> Run:
    """Load a finished run from its folder, without executing any code in it.

    Args:
        path: the run's folder, of format 1 or 2.

    Returns:
        The run, as returned by `train`.

    Raises:
        ConfigError: the folder does not contain a finished run.
        CheckpointError: the last checkpoint of a seed is damaged.
        OSError: a file of the run cannot be read.
    """
    path = Path(path)
    check_platform()
    run_folder.check_links(path)
    config, seeds, _ = run_folder.read_config(path)
    # Failures are only in summary.json, which a failed run of one seed does not have.
    failures = run_folder.read_summary(path)["failures"] if len(seeds) > 1 else {}
    ends = {}
    for seed in seeds:
        one = dataclasses.replace(config, seed=seed)
        is_failed = str(seed) in failures
        ends[seed] = failures[str(seed)] if is_failed else _load_finished(path, one)
    return make_run(config, ends, path)


def make_run(
    config: TrainConfig,
    ends: Mapping[int, Snapshot | Exception | str],
    path: Path,
    facts: dict[str, Any] | None = None,
) -> Run:
    """Return a finished run.

    Args:
        config: the config of the first seed.
        ends: the last snapshot of each seed, or the reason of its failure.
        path: the run's folder.
        facts: the facts for the summary if no seed is finished.
    """
    snapshots = {seed: end for seed, end in ends.items() if isinstance(end, Snapshot)}
    failures = {seed: str(end) for seed, end in ends.items() if seed not in snapshots}
    summaries = {seed: snapshot.summary or {} for seed, snapshot in snapshots.items()}
    facts = next(map(facts_of, summaries.values()), facts or {})
    steps = next((each.step for each in snapshots.values()), 0)
    summary = make_summary(config, list(ends), steps, summaries, failures, facts)
    return Run(config, snapshots, failures, summary, path)


def _load_finished(path: Path, config: TrainConfig) -> Snapshot:
    """Read the last snapshot of a seed, with the state on the device."""
    folder = run_folder.find_checkpoints(path, config.seed)
    found, skipped = checkpoint.newest_whole(folder, template_of)
    if skipped:
        raise CheckpointError(f"{skipped[0]}; --resume trains the end of the run again")
    if config_of(found.metadata) != config:
        raise CheckpointError(f"{path / run_folder.CONFIG} is not the config of {folder}")
    if found.metadata["summary"] is None:
        raise ConfigError(f"the run in {path} is not finished; use --resume to continue it")
    return _to_snapshot(found)


def begun_config(path: Path) -> RunConfig | None:
    """Return the config with which the run in a folder was started; None if there is no run.

    If config.json is missing or damaged, the config comes from the checkpoints.

    Raises:
        ConfigError: config.json is damaged and there is no checkpoint, or it has another format.
        OSError: a file cannot be read.
    """
    with contextlib.suppress(ConfigError):
        return run_folder.read_config(path)
    seeds = run_folder.seeds_with_checkpoints(path)
    for seed in seeds:
        metadata = checkpoint.newest_metadata(run_folder.checkpoint_folder(path, seed))
        if metadata is not None:
            config = dataclasses.replace(config_of(metadata), seed=seeds[0])
            return RunConfig(config, tuple(seeds), FORMAT)
    return run_folder.read_config(path) if run_folder.has_config(path) else None


def first_snapshot(setup: Setup, seed: int) -> Snapshot:
    """Return the snapshot of a seed before the first step."""
    state = initial_state(setup.model, setup.tx, seed, setup.config.ema_decay > 0)
    return Snapshot(state, Metrics.zero(), 0.0, [])


def read_snapshot(setup: Setup, path: Path, seed: int) -> tuple[Snapshot, list[str]]:
    """Return the snapshot in a seed's newest checkpoint, and warnings.

    Args:
        setup: the run's setup.
        path: the run's folder.
        seed: the seed.

    Raises:
        ConfigError: the checkpoints belong to another config or to other images.
        CheckpointError: no checkpoint is complete.
    """
    config = dataclasses.replace(setup.config, seed=seed)

    def accept(metadata: dict[str, Any]) -> TrainState:
        config.check_continues(config_of(metadata))
        if metadata["images"] != setup.images_digest:
            raise ConfigError(
                "the run was started with other images; pass its --data-dir or --idx-dir"
            )
        return setup.state_shapes

    folder = run_folder.checkpoint_folder(path, seed)
    found, warnings = checkpoint.newest_whole(folder, accept)
    snapshot = _to_snapshot(found)
    if snapshot.step != setup.total_steps:
        before = snapshot.summary or {}
        if IMPORTED in before:
            raise ConfigError(
                f"the network comes from {before[IMPORTED]}; it cannot be trained further, "
                "because it has no optimiser state"
            )
        # A finished run that continues with more epochs is no longer finished.
        snapshot = snapshot._replace(summary=None)
    before, now = found.metadata["environment"], setup.facts
    warnings += [
        f"{name} was {before.get(name)} and is {now[name]}: the result may differ in rounding"
        for name in _ENVIRONMENT
        if before.get(name) != now[name]
    ]
    return snapshot, warnings


def finish(setup: Setup, snapshot: Snapshot, compile_seconds: float) -> Snapshot:
    """Return the last snapshot of a seed, with the seed's summary."""
    return snapshot._replace(summary=summarize_seed(snapshot.rows, compile_seconds, setup.facts))


def save(setup: Setup, seed: int, snapshot: Snapshot, path: Path) -> None:
    """Write a checkpoint, in the main process.

    Args:
        setup: the run's setup.
        seed: the seed.
        snapshot: the snapshot, in host memory.
        path: the run's folder.

    Raises:
        CheckpointError: the checkpoint could not be written.
        OSError: there is not enough disk space, or the run's folder was removed.
    """
    metadata = {
        "config": dataclasses.replace(setup.config, seed=seed).to_dict(),
        "environment": {name: setup.facts[name] for name in _ENVIRONMENT},
        "images": setup.images_digest,
        "seconds": snapshot.seconds,
        "rows": snapshot.rows,
        "summary": snapshot.summary,
    }
    content = Checkpoint(snapshot.state, snapshot.metrics, metadata)
    folder = run_folder.checkpoint_folder(path, seed)

    keep = setup.options.keep
    distributed.broadcast_from_main(lambda: checkpoint.save(folder, content, keep))


def _to_snapshot(found: Checkpoint) -> Snapshot:
    # Like the initial state, on the device: otherwise programs would be compiled again.
    state, metrics = jax.device_put((found.state, found.metrics))
    kept = found.metadata
    return Snapshot(state, metrics, kept["seconds"], kept["rows"], kept["summary"])


def template_of(metadata: dict[str, Any]) -> TrainState:
    """Return the shapes of the state in a checkpoint, from its metadata."""
    config = config_of(metadata)
    # The number of steps affects a schedule's values but not the shapes, so any number will do.
    tx = make_optimizer(config, total_steps=10**6)
    return state_shapes(config, model_of(config), tx)


def config_of(metadata: Any) -> TrainConfig:
    """Return the config in a checkpoint's metadata.

    Raises:
        ConfigError: the metadata has other entries than a run's.
    """
    if not isinstance(metadata, dict) or set(metadata) != _METADATA:
        raise ConfigError(
            f"a checkpoint has metadata on {list(metadata)}; expected {sorted(_METADATA)}"
        )
    return TrainConfig.from_dict(metadata["config"])
