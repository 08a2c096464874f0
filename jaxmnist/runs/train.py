"""Training of a network, once for each seed."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from jaxmnist.config import ConfigError, TrainConfig, check_seeds, format_seeds
from jaxmnist.models import model_of
from jaxmnist.models.layers import GhostNorm
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import Devices, choose_devices, fixed_flags, idle_devices
from jaxmnist.parallel.programs import Programs, compile_largest, compile_programs
from jaxmnist.parallel.seed_mapping import choose_mapping
from jaxmnist.runs import checkpoint, run_folder
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.loop import FAILURES, Outcomes, Stopped, TrainLoop, make_cadence
from jaxmnist.runs.processes import train_in_processes
from jaxmnist.runs.run import (
    Run,
    Snapshot,
    begun_config,
    first_snapshot,
    make_run,
    read_snapshot,
)
from jaxmnist.runs.setup import (
    Callbacks,
    EpochDone,
    Event,
    Failed,
    Progress,
    RunOptions,
    SeedDone,
    Setup,
    Started,
    make_setup,
)
from jaxmnist.runs.summary import Row


@fixed_flags()
def train(
    config: TrainConfig,
    out: str | os.PathLike | None = None,
    seeds: Sequence[int] | None = None,
    options: RunOptions = RunOptions(),
    callbacks: Callbacks = Callbacks(),
) -> Run:
    """Train one network for each seed, and write the run's folder.

    If a seed fails, the other seeds continue.

    Args:
        config: the config of the run.
        out: the run's folder; None for the next free of runs/<variant>-seed<seed>, ...-2, ...-3.
        seeds: distinct integers; None for the seed of the config.
        options: options of training and storage.
        callbacks: functions to call during the training.

    Returns:
        The run, with the trained states, the rows and the summary.

    Raises:
        ConfigError: the config cannot be trained on these images or devices, `out` is not empty,
            or it contains a run that this config cannot continue.
        DataError: the images are not available.
        HostError: another process failed.
        CheckpointError: a checkpoint could not be written, or none is complete (one seed only).
        TrainingError: the loss or a parameter is not finite (one seed only).
        Stopped: `callbacks.should_stop` returned True; the run has been saved.
        OSError: the run cannot be written to the disk.
    """
    seeds = check_seeds([config.seed] if seeds is None else seeds)
    config = dataclasses.replace(config, seed=seeds[0])
    check_options(config, seeds, out, options)  # before the images are downloaded
    devices, mapping = choose_parallelism(config, seeds, options)
    setup = make_setup(config, options, callbacks.data_progress, devices, mapping)
    with open_run(setup, seeds, out, callbacks) as run:
        run.start()
        remaining = run.remaining()
        if remaining and mapping == "processes":
            run.collect(train_in_processes(setup, remaining, run.path, run.callbacks))
        elif remaining:
            compile_for = functools.partial(
                compile_programs,
                setup.config,
                setup.model,
                setup.tx,
                setup.train_images,
                setup.test_images,
                devices=devices,
            )
            largest = max(map(len, run.groups(len(seeds)))) if mapping == "vmap" else 1
            programs = compile_for(1) if largest == 1 else compile_largest(compile_for, largest)
            run.collect(train_groups(run, programs))
        return run.finish()


def check_options(
    config: TrainConfig, seeds: Sequence[int], out: str | os.PathLike | None, options: RunOptions
) -> None:
    """Check the options and the folder before the images are loaded.

    Raises:
        ConfigError: an option is out of range, or the folder cannot be used for this run.
        CheckpointError: the folder contains a finished run without its checkpoints.
    """
    make_cadence(options.checkpoint_every)
    if options.keep < 1:
        raise ConfigError(f"keep is {options.keep}; expected a whole number of at least 1")
    if options.resume and options.overwrite:
        raise ConfigError("resume and overwrite exclude each other: drop one of them")
    if options.resume and out is None:
        raise ConfigError("resume needs the folder of the run; pass --out")

    def check_folder() -> None:
        if out is not None and not options.resume:
            run_folder.check_free(Path(out), options.overwrite)
        elif out is not None and Path(out).exists():
            run_folder.check_links(Path(out))
            _check_continues(config, seeds, Path(out))

    distributed.broadcast_from_main(check_folder)


def choose_parallelism(
    config: TrainConfig, seeds: Sequence[int], options: RunOptions
) -> tuple[Devices, str]:
    """Choose the devices and the seed mapping.

    Returns:
        The devices, and one of `seed_mapping.MAPPINGS`.

    Raises:
        ConfigError: the options are not possible on this machine.
    """
    if len(seeds) > 1 and jax.process_count() > 1:
        raise ConfigError(
            f"there are {jax.process_count()} processes that train one seed together; train "
            "several seeds in separate processes, with some of the --seeds each"
        )
    # Several seeds in one program do not need a batch that all devices share.
    alone = len(seeds) == 1 or options.seed_mapping == "loop" or options.parallel == "pmap"
    devices = choose_devices(
        options.devices, options.parallel, config.batch_size if alone else None
    )
    mapping = choose_mapping(options.seed_mapping, len(seeds), devices)
    together = len(seeds) if mapping == "vmap" else 1
    devices.check_divides(config.batch_size, together)
    _check_ghost_norms(config, devices, together)
    return devices, mapping


def _check_ghost_norms(config: TrainConfig, devices: Devices, seeds: int) -> None:
    """Check that each device has a part of each of the parts that ghost normalisation makes."""
    _, sharing = devices.shape(seeds, config.batch_size)
    share = config.batch_size // sharing
    for layer in model_of(config).layers():
        if isinstance(layer, GhostNorm) and share % layer.splits:
            raise ConfigError(
                f"each of {sharing} devices has {share} images of a batch, which do not divide "
                f"into the {layer.splits} parts of ghost normalisation; use fewer --devices or a "
                "larger --batch-size"
            )


def _check_continues(config: TrainConfig, seeds: Sequence[int], path: Path) -> None:
    """Check that a folder is empty or contains a run that this config can continue."""
    begun = begun_config(path)
    if begun is None:
        run_folder.check_is_run(path)
        return
    if begun.format == 1:
        raise ConfigError(
            f"the run in {path} is of an older version (format 1), which can be read but not "
            "resumed; pass another --out"
        )
    if len(begun.seeds) == len(seeds) == 1:
        config.check_continues(begun.config)
    missing = [seed for seed in begun.seeds if seed not in seeds]
    if missing:
        raise ConfigError(
            f"the run was started with the seeds {format_seeds(begun.seeds)}, but "
            f"--seeds lacks {format_seeds(missing)}; leave --seeds out, or include all of them"
        )
    dataclasses.replace(config, seed=begun.config.seed).check_continues(begun.config)
    if (path / run_folder.SUMMARY).exists() and not run_folder.seeds_with_checkpoints(path):
        raise CheckpointError(f"the run in {path} is finished, but its checkpoints are gone")


@contextlib.contextmanager
def open_run(
    setup: Setup, seeds: tuple[int, ...], out: str | os.PathLike | None, callbacks: Callbacks
) -> Iterator["OpenRun"]:
    """Start or continue a run in the main process; the other processes read its state.

    Yields:
        The run; its folder is locked until the context ends.

    Raises:
        ConfigError: `out` is not empty or contains another run, or the processes received different
            input.
        CheckpointError: no checkpoint is complete (one seed only).
        HostError: the main process could not open the run.
        OSError: the folder cannot be created or read.
    """
    content = run_folder.format_config(setup.config, seeds) + setup.images_digest
    distributed.assert_equal_across_processes(content)
    run = OpenRun(setup, seeds, callbacks)
    with contextlib.ExitStack() as stack:

        def begin() -> list[Any]:
            stack.enter_context(run.open(out))
            return [str(run.path.absolute()), str(run.requested), run.warnings]

        path, requested, warnings = distributed.broadcast_from_main(begin)
        if not distributed.is_main_process():
            if not Path(path).is_dir():
                raise ConfigError(
                    f"{path} does not exist for process {jax.process_index()}; processes "
                    "that train together need a shared file system"
                )
            run.path = Path(path)
            run.read()
            run.requested, run.warnings = Path(requested), warnings
        yield run


class OpenRun:
    """A run in training: collects the state of its seeds, writes its files, and reports events.

    Args:
        setup: the run's setup.
        seeds: all seeds of the run.
        callbacks: the caller's callbacks.
    """

    def __init__(self, setup: Setup, seeds: tuple[int, ...], callbacks: Callbacks):
        self.setup, self._seeds = setup, seeds
        self.callbacks = callbacks._replace(report=self._take)
        self._report = callbacks.report
        self.path = self.requested = Path()  # they differ if the requested one was not empty
        self.warnings: list[str] = []
        self._steps = dict.fromkeys(seeds, 0)
        self._rows: dict[int, list[Row]] = {seed: [] for seed in seeds}
        self._read: dict[int, Snapshot] = {}  # for the seeds that continue from a checkpoint
        self._outcomes: Outcomes = {}

    @contextlib.contextmanager
    def open(self, out: str | os.PathLike | None) -> Iterator[None]:
        """Lock the run's folder, and prepare it."""
        config, options = self.setup.config, self.setup.options
        if not options.resume or out is None:
            folder = run_folder.new_folder(config, self._seeds, out, options.overwrite)
            with folder as (self.requested, self.path):
                yield
            return
        self.path = self.requested = Path(out)
        self.path.mkdir(parents=True, exist_ok=True)
        with run_folder.locked(self.path):
            _check_continues(config, self._seeds, self.path)  # may have changed meanwhile
            self.read()
            self._prepare_folder()
            yield

    def read(self) -> None:
        """Read the newest checkpoint of every seed, before training starts."""
        for seed in self._seeds:
            if not checkpoint.steps(run_folder.checkpoint_folder(self.path, seed)):
                continue
            try:
                snapshot, warnings = read_snapshot(self.setup, self.path, seed)
            except FAILURES as error:
                self._outcomes[seed] = error
                continue
            self._steps[seed], self._rows[seed] = snapshot.step, list(snapshot.rows)
            self.warnings += [line for line in warnings if line not in self.warnings]
            target = self._read if snapshot.summary is None else self._outcomes
            target[seed] = snapshot

    def _prepare_folder(self) -> None:
        """Remove files that are no longer valid once training continues."""
        if run_folder.is_empty(self.path):
            self.warnings.append(f"there is no run in {self.path} yet; a new one starts")
        self._raise_only_failure()
        for seed in self.remaining():
            folder = run_folder.checkpoint_folder(self.path, seed)
            checkpoint.clean(folder, self._steps[seed])
        if self.remaining():
            run_folder.remove_derived(self.path)
        run_folder.write_config(self.path, self.setup.config, self._seeds)

    def _raise_only_failure(self) -> None:
        failure = self._outcomes.get(self._seeds[0])
        if len(self._seeds) == 1 and isinstance(failure, Exception):
            raise failure

    def remaining(self) -> list[int]:
        """Return the seeds to train."""
        return [seed for seed in self._seeds if seed not in self._outcomes]

    def groups(self, size: int) -> list[list[int]]:
        """Return the remaining seeds in groups of at most `size` that are at the same step."""
        remaining, found = self.remaining(), []
        for step in sorted({self._steps[seed] for seed in remaining}):
            same = [seed for seed in remaining if self._steps[seed] == step]
            found += [same[first : first + size] for first in range(0, len(same), size)]
        return found

    def snapshot(self, seed: int) -> Snapshot:
        """Return the snapshot from which a seed starts to train."""
        return self._read.pop(seed, None) or first_snapshot(self.setup, seed)

    def start(self) -> None:
        """Report the state of the run at its start."""
        setup = self.setup
        idle = []
        if setup.options.devices is None:
            idle = idle_devices(setup.devices, setup.config.batch_size)
        self._write_rows()
        self._report(
            Started(
                out=self.path,
                requested=self.requested,
                train_count=len(setup.train_images.pixels),
                steps=dict(self._steps),
                total_steps=setup.total_steps,
                mapping=setup.facts["seed_mapping"],
                warnings=[*self.warnings, *idle],
            )
        )
        for seed, outcome in self._outcomes.items():
            if isinstance(outcome, Exception):
                self._report(Failed(seed, str(outcome)))
            else:
                self._report_done(seed, outcome)

    def collect(self, outcomes: Iterable[tuple[int, Snapshot | Exception]]) -> None:
        """Collect the outcomes of seeds as they arrive; failures are already reported.

        Raises:
            Stopped: a stop was requested.
        """
        try:
            for seed, outcome in outcomes:
                self._outcomes[seed] = outcome
                if isinstance(outcome, Snapshot):
                    self._report_done(seed, outcome)
        except Stopped:
            raise Stopped(self.path, sum(self._steps.values())) from None

    def finish(self) -> Run:
        """Write the summary, and return the run.

        Raises:
            Exception: the failure of the only seed.
        """
        self._write_rows()
        self._raise_only_failure()
        ends = {seed: self._outcomes[seed] for seed in self._seeds}
        run = make_run(self.setup.config, ends, self.path, self.setup.facts)
        if distributed.is_main_process():
            run_folder.write_summary(self.path, run.summary)
        return run

    def _take(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._steps |= dict.fromkeys(event.seeds, event.step)
        if isinstance(event, EpochDone):
            for row in event.rows:
                self._rows[row["seed"]].append(row)
                if distributed.is_main_process():
                    run_folder.append_row(self.path, row)
        self._report(event)

    def _report_done(self, seed: int, snapshot: Snapshot) -> None:
        config = dataclasses.replace(self.setup.config, seed=seed)
        self._report(SeedDone(make_run(config, {seed: snapshot}, self.path)))

    def _write_rows(self) -> None:
        """Write all rows, ordered by seed."""
        if distributed.is_main_process():
            rows = [row for of_seed in self._rows.values() for row in of_seed]
            run_folder.write_rows(self.path, rows)


def train_groups(run: OpenRun, programs: Programs) -> Iterator[tuple[int, Snapshot | Exception]]:
    """Train the remaining seeds, group by group; yield each seed with its outcome."""
    for group in run.groups(programs.num_slots):
        snapshots = {seed: run.snapshot(seed) for seed in group}
        yield from TrainLoop(run.setup, snapshots, programs, run.path, run.callbacks).run().items()
