"""A run: where each of its seeds stands, and how a finished one is read back."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmnist import data
from jaxmnist.config import FORMAT, ConfigError, TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.models import create_model
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
    """A moment of a seed's training: everything needed to continue, plus its rows so far."""

    state: TrainState
    metrics: Metrics  # running over the epoch of the state
    seconds: float  # trained in this epoch
    rows: list[Row]
    summary: dict[str, Any] | None = None  # `summarize_seed`, of a finished seed

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.state.step)


class Run(NamedTuple):
    """A run that has ended: a network for each seed, or the reason why there is none."""

    config: TrainConfig  # of the first seed
    snapshots: dict[int, Snapshot]  # by seed, of those that are finished
    failures: dict[int, str]  # by seed, of the others
    summary: dict[str, Any]  # the content of summary.json
    path: Path
    is_part: bool = False  # one seed of a run of several, see `split`

    @property
    def name(self) -> str:
        """The folder, and the seed if there are others in it."""
        return f"{self.path} seed {self.config.seed}" if self.is_part else str(self.path)

    @property
    def seed_folder(self) -> str:
        """The name of the seed's folder below what is made of a run; "" if there is one seed."""
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
        """The content of metrics.jsonl, seed by seed."""
        return [row for snapshot in self.snapshots.values() for row in snapshot.rows]

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation of pixels / 255 by which the images are normalised.

        Raises:
            ConfigError: the run is of a version that did not keep them, and they are not known.
        """
        kept = self.summary.get("normalisation") or data.NORMALISATION.get(self.config.dataset)
        if kept is None:
            raise ConfigError(
                f"the run in {self.path} has no normalisation of its images; train it again"
            )
        mean, std = kept
        return mean, std

    def split(self) -> list["Run"]:
        """Return a run of one seed for each that is finished."""
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
    """Read a finished run from its folder; nothing in the folder is executed.

    Args:
        path: the run's folder, of format 1 or 2.

    Returns:
        The result of `train`.

    Raises:
        ConfigError: the folder is not that of a finished run.
        CheckpointError: the last checkpoint of a seed is not whole.
        OSError: a file of the run cannot be read.
    """
    path = Path(path)
    check_platform()
    run_folder.check_links(path)
    config, seeds, _ = run_folder.read_config(path)
    # Only summary.json has the failures, and a run of one seed that failed has none.
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
    """Return a run that has ended.

    Args:
        config: of the first seed.
        ends: the last snapshot of each seed, or the reason why there is none.
        path: the run's folder.
        facts: of the run, if no seed is finished.
    """
    snapshots = {seed: end for seed, end in ends.items() if isinstance(end, Snapshot)}
    failures = {seed: str(end) for seed, end in ends.items() if seed not in snapshots}
    summaries = {seed: snapshot.summary or {} for seed, snapshot in snapshots.items()}
    facts = next(map(facts_of, summaries.values()), facts or {})
    steps = next((each.step for each in snapshots.values()), 0)
    summary = make_summary(config, list(ends), steps, summaries, failures, facts)
    return Run(config, snapshots, failures, summary, path)


def _load_finished(path: Path, config: TrainConfig) -> Snapshot:
    """Read the last snapshot of a seed, its state on the device."""
    folder = _find_checkpoints(path, config.seed)
    found, skipped = checkpoint.newest_whole(folder, template_of)
    if skipped:
        raise CheckpointError(f"{skipped[0]}; --resume trains the end of the run again")
    if config_of(found.metadata) != config:
        raise CheckpointError(f"{path / run_folder.CONFIG} is not the config of {folder}")
    if found.metadata["summary"] is None:
        raise ConfigError(f"the run in {path} is not finished; --resume goes on with it")
    return _to_snapshot(found)


def _find_checkpoints(path: Path, seed: int) -> Path:
    """Return the folder of a seed's checkpoints, in format 2 or where format 1 had it."""
    folder = run_folder.checkpoint_folder(path, seed)
    format_1 = (path / f"seed{seed}" / run_folder.CHECKPOINTS, path / run_folder.CHECKPOINTS)
    return next((each for each in (folder, format_1[0]) if each.is_dir()), format_1[1])


def begun_config(path: Path) -> RunConfig | None:
    """Return what the run in a folder was begun with; None: there is no run.

    Where config.json is missing or damaged, the checkpoints have it.

    Raises:
        ConfigError: it is damaged, and there is no checkpoint; or it is of another format.
        OSError: it cannot be read.
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
    """Return where a seed begins."""
    state = initial_state(setup.model, setup.tx, seed, setup.config.ema_decay > 0)
    return Snapshot(state, Metrics.zero(), 0.0, [])


def read_snapshot(setup: Setup, path: Path, seed: int) -> tuple[Snapshot, list[str]]:
    """Return where a seed stands at its newest checkpoint, and warnings about its checkpoints.

    Args:
        setup: of the run.
        path: the run's folder.
        seed: the seed.

    Raises:
        ConfigError: the checkpoints are of another config, or of other images.
        CheckpointError: none is whole.
    """
    config = dataclasses.replace(setup.config, seed=seed)

    def accept(metadata: dict[str, Any]) -> TrainState:
        config.check_continues(config_of(metadata))
        if metadata["images"] != setup.images_digest:
            raise ConfigError(
                "the run was begun with other images; pass the --data-dir or --idx-dir it had"
            )
        return setup.state_shapes

    folder = run_folder.checkpoint_folder(path, seed)
    found, warnings = checkpoint.newest_whole(folder, accept)
    snapshot = _to_snapshot(found)
    if snapshot.step != setup.total_steps:
        before = snapshot.summary or {}
        if IMPORTED in before:
            raise ConfigError(
                f"the network comes from {before[IMPORTED]}; it cannot go on training without the "
                "state of an optimiser"
            )
        # A finished run that goes on with more epochs is no longer finished.
        snapshot = snapshot._replace(summary=None)
    before, now = found.metadata["environment"], setup.facts
    warnings += [
        f"{name} was {before.get(name)} and is {now[name]}: the result may differ in rounding"
        for name in _ENVIRONMENT
        if before.get(name) != now[name]
    ]
    return snapshot, warnings


def finish(setup: Setup, snapshot: Snapshot, compile_seconds: float) -> Snapshot:
    """Return the last snapshot of a seed, with its part of the summary."""
    return snapshot._replace(summary=summarize_seed(snapshot.rows, compile_seconds, setup.facts))


def save(setup: Setup, seed: int, snapshot: Snapshot, path: Path) -> None:
    """Write a checkpoint, in the main process.

    Args:
        setup: of the run.
        seed: the seed.
        snapshot: where it stands, in host memory.
        path: the run's folder.

    Raises:
        CheckpointError: it could not be written.
        OSError: the disk has no room for it, or the run's folder was removed.
    """
    metadata = {
        "config": json.loads(dataclasses.replace(setup.config, seed=seed).to_json()),
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
    # As the first state is, so that no program is compiled twice.
    state, metrics = jax.device_put((found.state, found.metrics))
    kept = found.metadata
    return Snapshot(state, metrics, kept["seconds"], kept["rows"], kept["summary"])


def template_of(metadata: dict[str, Any]) -> TrainState:
    """Return the shapes of the state in a checkpoint of any run."""
    config = config_of(metadata)
    # Only the values of a schedule depend on the number of steps: any that it accepts will do.
    tx, _ = make_optimizer(config, total_steps=10**6)
    return state_shapes(config, create_model(config.variant, config.dropout), tx)


def config_of(metadata: Any) -> TrainConfig:
    """Return the config of the seed that a checkpoint is of.

    Raises:
        ConfigError: the metadata is not a run's.
    """
    if not isinstance(metadata, dict) or set(metadata) != _METADATA:
        raise ConfigError(
            f"a checkpoint has metadata on {list(metadata)}; expected {sorted(_METADATA)}"
        )
    return TrainConfig.from_json(json.dumps(metadata["config"]))
