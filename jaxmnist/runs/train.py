"""Train a network, once for each seed: `train`."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from jaxmnist.config import ConfigError, TrainConfig, check_seeds, format_seeds
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
    make_run,
    read_snapshot,
    seed_run,
)
from jaxmnist.runs.run_folder import RunConfig
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
    """Train one network for each seed and write the run's folder.

    A seed that fails takes no other down.

    Args:
        config: what to train.
        out: the run's folder; None: the next free of runs/<variant>-seed<seed>, ...-2, ...-3.
        seeds: whole numbers, each once; None: the config's own.
        options: how to train and what to keep.
        callbacks: called on the way.

    Returns:
        The trained states, with the rows and the summary.

    Raises:
        ConfigError: the config cannot be trained on these images or devices, `out` is taken, or
            it does not hold a run that this config can continue.
        DataError: the images are not available.
        HostError: another process failed.
        CheckpointError: of a run of one seed a checkpoint could not be written, or none is whole.
        TrainingError: of a run of one seed the loss or a parameter is not finite.
        Stopped: `callbacks.should_stop` returned True; everything is saved.
        OSError: the disk does not take the run.
    """
    seeds = check_seeds([config.seed] if seeds is None else seeds)
    config = dataclasses.replace(config, seed=seeds[0])
    check_options(out, options)  # before the images are fetched
    devices, mapping = choose_parallelism(config, seeds, options)
    setup = make_setup(config, options, callbacks.data_progress, devices, mapping)
    with open_run(setup, seeds, out, options) as opened:
        log = RunLog(opened, callbacks)
        log.start(setup, mapping, devices, options)
        remaining = opened.remaining()
        if remaining and mapping == "processes":
            log.collect(train_in_processes(setup, remaining, opened.path, options, log.callbacks))
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
            largest = opened.largest_group() if mapping == "vmap" else 1
            programs = compile_for(1) if largest == 1 else compile_largest(compile_for, largest)
            groups = opened.groups(programs.num_slots)
            log.collect(train_groups(setup, groups, programs, opened.path, options, log.callbacks))
        return log.finish(setup)


def check_options(out: str | os.PathLike | None, options: RunOptions) -> None:
    """Check the options that need no images.

    Raises:
        ConfigError: the folder is not available, or an option is out of range.
    """
    make_cadence(options.checkpoint_every)
    if options.keep < 1:
        raise ConfigError(f"keep is {options.keep}; expected a whole number of at least 1")
    if options.resume and options.overwrite:
        raise ConfigError("resume and overwrite exclude each other: drop one of them")
    if options.resume and out is None:
        raise ConfigError("resume needs to know the folder of the run: pass --out")

    def check_folder() -> bytes:
        if out is not None and not options.resume:
            run_folder.check_free(Path(out), options.overwrite)
        elif out is not None and Path(out).exists():
            run_folder.check_links(Path(out))
        return b""

    distributed.broadcast_from_main(check_folder)


def choose_parallelism(
    config: TrainConfig, seeds: Sequence[int], options: RunOptions
) -> tuple[Devices, str]:
    """Choose the devices, and how several seeds are mapped to them.

    Returns:
        The devices, and one of `seed_mapping.MAPPINGS`.

    Raises:
        ConfigError: the options cannot be followed here.
    """
    if len(seeds) > 1 and jax.process_count() > 1:
        raise ConfigError(
            f"there are {jax.process_count()} processes that train one seed together; train "
            "several seeds in processes that know nothing of each other, some --seeds in each"
        )
    if len(seeds) == 1 and options.seed_mapping == "auto":
        devices = choose_devices(options.devices, options.parallel, config.batch_size)
        devices.check_divides(config.batch_size)
        return devices, "loop"
    # In one program several seeds need no batch that all devices share.
    alone = len(seeds) == 1 or options.seed_mapping == "loop" or options.parallel == "pmap"
    devices = choose_devices(
        options.devices, options.parallel, config.batch_size if alone else None
    )
    mapping = choose_mapping(options.seed_mapping, len(seeds), devices)
    devices.check_divides(config.batch_size, len(seeds) if mapping == "vmap" else 1)
    return devices, mapping


class OpenRun(NamedTuple):
    """A run whose folder this process has locked."""

    path: Path
    requested: Path  # differs from `path` where that was taken
    seeds: tuple[int, ...]
    steps: dict[int, int]  # by seed, those already done
    rows: dict[int, list[Row]]  # by seed
    outcomes: Outcomes  # of the seeds that are not to be trained
    warnings: list[str]

    def remaining(self) -> list[int]:
        """Return the seeds to train."""
        return [seed for seed in self.seeds if seed not in self.outcomes]

    def groups(self, size: int) -> list[list[int]]:
        """Return the remaining seeds in groups of at most `size` that are at the same step."""
        remaining, found = self.remaining(), []
        for step in sorted({self.steps[seed] for seed in remaining}):
            same = [seed for seed in remaining if self.steps[seed] == step]
            found += [same[first : first + size] for first in range(0, len(same), size)]
        return found

    def largest_group(self) -> int:
        """Return the largest number of remaining seeds that are at the same step."""
        return max(len(group) for group in self.groups(len(self.seeds)))


@contextlib.contextmanager
def open_run(
    setup: Setup, seeds: tuple[int, ...], out: str | os.PathLike | None, options: RunOptions
) -> Iterator[OpenRun]:
    """Begin or continue a run, in the main process; the other processes read what it found.

    Yields:
        The run; its folder is locked until the context ends.

    Raises:
        ConfigError: `out` is taken or holds another run, or the processes differ in what they
            were given.
        CheckpointError: of a run of one seed no checkpoint is whole.
        HostError: the main process could not open the run.
        OSError: the folder cannot be made or read.
    """
    content = run_folder.format_config(setup.config, seeds) + setup.images_digest
    distributed.assert_equal_across_processes(content)
    with contextlib.ExitStack() as stack:
        opened = None

        def begin() -> bytes:
            nonlocal opened
            if options.resume and out is not None:
                opened = stack.enter_context(_continued(setup, seeds, Path(out)))
            else:
                opened = stack.enter_context(_new(setup, seeds, out, options.overwrite))
            facts = [str(opened.path.absolute()), str(opened.requested), opened.warnings]
            return json.dumps(facts).encode()

        path, requested, warnings = json.loads(distributed.broadcast_from_main(begin))
        if opened is None:
            if not Path(path).is_dir():
                raise ConfigError(
                    f"{path} is not there for process {jax.process_index()}; processes that "
                    "train together need one file system"
                )
            opened = inspect_existing(setup, seeds, Path(path))
            opened = opened._replace(requested=Path(requested), warnings=warnings)
        yield opened


@contextlib.contextmanager
def _new(
    setup: Setup, seeds: tuple[int, ...], out: str | os.PathLike | None, overwrite: bool
) -> Iterator[OpenRun]:
    with run_folder.new_folder(setup.config, seeds, out, overwrite) as (requested, path):
        steps, rows = dict.fromkeys(seeds, 0), {seed: [] for seed in seeds}
        yield OpenRun(path, requested, seeds, steps, rows, {}, [])


@contextlib.contextmanager
def _continued(setup: Setup, seeds: tuple[int, ...], path: Path) -> Iterator[OpenRun]:
    path.mkdir(parents=True, exist_ok=True)
    with run_folder.locked(path):
        check_continues(setup.config, seeds, path)
        opened = inspect_existing(setup, seeds, path)
        if run_folder.is_empty(path):
            opened.warnings.append(f"there is no run in {path} yet: this begins one")
        only = opened.outcomes.get(seeds[0])
        if len(seeds) == 1 and isinstance(only, Exception):
            raise only
        for seed in opened.remaining():
            checkpoint.clean(run_folder.checkpoint_folder(path, seed), opened.steps[seed])
        if opened.remaining():
            run_folder.remove_derived(path)
            run_folder.write_summary(path, None)
        run_folder.write_config(path, setup.config, seeds)
        yield opened


def check_continues(config: TrainConfig, seeds: Sequence[int], path: Path) -> None:
    """Check that a folder is empty, or holds a run that this config can continue.

    Raises:
        ConfigError: it holds another run, or something else.
        CheckpointError: it holds a finished run without its checkpoints.
    """
    begun = begun_config(path)
    if begun is None:
        run_folder.check_is_run(path)
        return
    if begun.format == 1:
        raise ConfigError(
            f"the run in {path} is of an older version (format 1), which can be read but not "
            "resumed; pass another --out"
        )
    _check_same_config(config, seeds, begun)
    if (path / run_folder.SUMMARY).exists() and not run_folder.seeds_with_checkpoints(path):
        raise CheckpointError(f"the run in {path} is finished, but its checkpoints are gone")


def _check_same_config(config: TrainConfig, seeds: Sequence[int], begun: RunConfig) -> None:
    if len(begun.seeds) == len(seeds) == 1:
        config.check_continues(begun.config)
    missing = [seed for seed in begun.seeds if seed not in seeds]
    if missing:
        raise ConfigError(
            f"the run was begun with the seeds {format_seeds(begun.seeds)}, and "
            f"{format_seeds(missing)} are not among those asked for; leave --seeds out, or add to "
            "them"
        )
    dataclasses.replace(config, seed=begun.config.seed).check_continues(begun.config)


def inspect_existing(setup: Setup, seeds: tuple[int, ...], path: Path) -> OpenRun:
    """Return where every seed stands in a folder, before any is trained.

    Raises:
        ConfigError: the checkpoints are of another config, or of other images.
    """
    opened = OpenRun(path, path, seeds, {}, {}, {}, [])
    for seed in seeds:
        folder = run_folder.checkpoint_folder(path, seed)
        opened.steps[seed], opened.rows[seed] = 0, []
        if not checkpoint.steps(folder):
            continue
        try:
            snapshot, warnings = read_snapshot(setup, path, seed)
        except FAILURES as error:
            opened.outcomes[seed] = error
            continue
        opened.steps[seed], opened.rows[seed] = snapshot.step, snapshot.rows
        opened.warnings.extend(line for line in warnings if line not in opened.warnings)
        if snapshot.summary is not None:
            opened.outcomes[seed] = snapshot
    return opened


def train_groups(
    setup: Setup,
    groups: Iterable[Sequence[int]],
    programs: Programs,
    path: Path,
    options: RunOptions,
    callbacks: Callbacks,
) -> Iterator[tuple[int, Snapshot | Exception]]:
    """Train groups of seeds, one group after another.

    Args:
        setup: of the run.
        groups: seeds that train side by side, each at the same step.
        programs: with a slot for each seed of a group.
        path: the run's folder.
        options: how often to write checkpoints, and how many to keep.
        callbacks: called on the way.

    Yields:
        Each seed with its last snapshot, or with the error that failed it.

    Raises:
        Stopped: `callbacks.should_stop` returned True; everything is saved.
    """
    for group in groups:
        snapshots = {}
        for seed in group:
            try:
                snapshots[seed], _ = read_snapshot(setup, path, seed)
            except FAILURES as error:
                callbacks.report(Failed(seed, str(error)))
                yield seed, error
        if snapshots:
            loop = TrainLoop(setup, snapshots, programs, path, options, callbacks)
            yield from loop.run().items()


class RunLog:
    """Writes the files of a run as its seeds train, and passes the events on.

    Args:
        opened: the run.
        callbacks: of the caller.
    """

    def __init__(self, opened: OpenRun, callbacks: Callbacks):
        self.callbacks = callbacks._replace(report=self._take)
        self._opened, self._report = opened, callbacks.report
        self._outcomes = dict(opened.outcomes)

    def start(self, setup: Setup, mapping: str, devices: Devices, options: RunOptions) -> None:
        """Report where the run stands."""
        opened = self._opened
        idle = idle_devices(devices, setup.config.batch_size) if options.devices is None else []
        self._write_rows()
        self._report(
            Started(
                out=opened.path,
                requested=opened.requested,
                train_count=len(setup.train_images.pixels),
                steps=dict(opened.steps),
                total_steps=setup.total_steps,
                mapping=mapping,
                warnings=[*opened.warnings, *idle],
            )
        )
        for seed, outcome in opened.outcomes.items():
            self._report_outcome(setup, seed, outcome)
        self._setup = setup

    def collect(self, outcomes: Iterable[tuple[int, Snapshot | Exception]]) -> None:
        """Take the outcome of each seed as it comes.

        Raises:
            Stopped: the run was asked to stop.
        """
        try:
            for seed, outcome in outcomes:
                self._outcomes[seed] = outcome
                if isinstance(outcome, Snapshot):
                    self._report_outcome(self._setup, seed, outcome)
        except Stopped:
            raise Stopped(self._opened.path, sum(self._opened.steps.values())) from None

    def finish(self, setup: Setup) -> Run:
        """Write the summary, and return the run.

        Raises:
            Exception: the failure of the only seed.
        """
        opened, outcomes = self._opened, self._outcomes
        self._write_rows()
        first = outcomes[opened.seeds[0]]
        if len(opened.seeds) == 1 and isinstance(first, Exception):
            raise first
        ends = {seed: outcomes[seed] for seed in opened.seeds}
        snapshots = {seed: end for seed, end in ends.items() if isinstance(end, Snapshot)}
        failures = {seed: str(end) for seed, end in ends.items() if isinstance(end, Exception)}
        config, path = setup.config, opened.path
        run = make_run(config, opened.seeds, snapshots, failures, path, setup.facts)
        if distributed.is_main_process():
            run_folder.write_summary(path, run.summary)
        return run

    def _take(self, event: Event) -> None:
        opened = self._opened
        if isinstance(event, Progress):
            opened.steps.update(dict.fromkeys(event.seeds, event.step))
        if isinstance(event, EpochDone):
            for row in event.rows:
                opened.rows[row["seed"]].append(row)
                if distributed.is_main_process():
                    run_folder.append_row(opened.path, row)
        self._report(event)

    def _report_outcome(self, setup: Setup, seed: int, outcome: Snapshot | Exception) -> None:
        if isinstance(outcome, Exception):
            self._report(Failed(seed, str(outcome)))
            return
        config = dataclasses.replace(setup.config, seed=seed)
        self._report(SeedDone(seed_run(config, outcome, self._opened.path)))

    def _write_rows(self) -> None:
        """Write all rows in order: seed by seed."""
        if distributed.is_main_process():
            rows = [row for of_seed in self._opened.rows.values() for row in of_seed]
            run_folder.write_rows(self._opened.path, rows)
