"""Runs that differ in their seed alone: in one folder, trained in the way that is fast here."""

import contextlib
import functools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxmnist import data
from jaxmnist.config import ConfigError, SeedsConfig, TrainConfig
from jaxmnist.parallel.devices import Devices, choose_devices, fixed_flags, remarks_on
from jaxmnist.parallel.programs import compile_block
from jaxmnist.parallel.seed_mapping import choose_mapping
from jaxmnist.runs import run_folder
from jaxmnist.runs.processes import train_in_processes
from jaxmnist.runs.run import Job, Run, count_parameters, finished_run, load_run, make_job, shapes
from jaxmnist.runs.summary import Row, join_summaries
from jaxmnist.runs.training import (
    CHECKPOINT_EVERY,
    KEEP,
    EpochDone,
    Event,
    Failed,
    Progress,
    Stopped,
    Watch,
    check_arguments,
    compile_for,
    enter_seed,
    ignore,
    never,
    train_block,
    train_each,
)


class SeedRuns(NamedTuple):
    """Runs of several seeds that have come to an end."""

    config: SeedsConfig
    runs: dict[int, Run]  # by seed: those that are finished
    failures: dict[int, str]  # by seed: what ended the others
    summary: dict[str, Any]
    path: Path


class SeedsStarted(NamedTuple):
    """The runs have their folder; what follows is compilation, if anything is left to train."""

    out: Path
    wished: Path  # the folder they would have, were that free
    train_count: int
    steps: dict[int, int]  # where each seed goes on; 0: from the beginning
    total_steps: int  # of each seed
    mapping: str  # one of mesh.MAPPINGS
    remarks: list[str]  # which checkpoints could not be used, and what else to know


class SeedDone(NamedTuple):
    """A seed's run is finished; of those that were finished before, this is said at the start."""

    run: Run


Ends = dict[int, Run | Exception]  # by seed
Report = Callable[[Event | SeedsStarted | SeedDone], None]


@fixed_flags()
def train_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    out: str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    overwrite: bool = False,
    resume: bool = False,
    seed_mapping: str = "auto",
    checkpoint_every: str = CHECKPOINT_EVERY,
    keep: int = KEEP,
    devices: int | None = None,
    parallel: str = "jit",
    report: Report = ignore,
    data_progress: data.Progress = data.ignore_progress,
    should_stop: Callable[[], bool] = never,
) -> SeedRuns:
    """Trains one network once for each seed. A seed that fails takes no other down.

    Args:
        config: what to train; its own seed is not used.
        seeds: whole numbers, each once.
        out: the folder, in which every seed has a run folder of its own; None: the next free of
            runs/<variant>-<number>seeds-seed<first>, ...-2, ...-3.
        data_dir: see `jaxmnist.data.load`.
        idx_dir: see `jaxmnist.data.load`.
        overwrite: as in `train`.
        resume: whether the runs that are in `out` go on, or begin where there are none; those that
            are finished are not trained again, and there may be more seeds than before.
        seed_mapping: vmap (all in one program), loop (one after another), processes (a process
            for each core), or auto: the fastest here.
        checkpoint_every: as in `train`.
        keep: as in `train`.
        devices: as in `train`; under vmap they share the seeds first, and then every batch.
        parallel: as in `train`.
        report: told of every event, as it happens.
        data_progress: see `jaxmnist.data.load`.
        should_stop: asked about once a second.

    Returns:
        The finished runs, and why the others failed.

    Raises:
        ConfigError: the config cannot be trained on these images or devices, `out` is taken, or
            it does not hold runs that this config goes on with.
        DataError: the images cannot be had.
        Stopped: `should_stop` returned True; everything is saved.
        OSError: the disk does not take the runs.
    """
    watch = Watch(checkpoint_every, keep, report, should_stop)
    check_arguments(out, overwrite, resume, watch)
    many, mapping, chosen = choose(config, seeds, seed_mapping, devices, parallel)
    job = make_job(many.config, data_dir, idx_dir, data_progress, chosen)
    train_with = {
        "loop": train_each,
        "vmap": train_vmapped,
        "processes": functools.partial(train_in_processes, data_dir=data_dir, idx_dir=idx_dir),
    }[mapping]
    with _begun(many, out, overwrite, resume) as (wished, path, remarks):
        found = look_up(job, many.seeds, path)
        kept = _kept_summary(many, found, path)
        run_folder.begin_seeds(path, many, kept)  # not before nothing refuses any more
        if set(found.steps) != set(found.ends):
            run_folder.remove_derived(path)
        count, steps = len(job.train_images.pixels), found.steps
        remarks += found.remarks
        remarks += remarks_on(chosen, many.config.batch_size) if devices is None else []
        report(SeedsStarted(path, wished, count, steps, job.total_steps, mapping, remarks))
        ends = _train_rest(train_with, job, found, path, watch, report)
        if kept is None:
            return _finish(job, many, mapping, path, ends)
        finished = {seed: end for seed, end in ends.items() if isinstance(end, Run)}
        return SeedRuns(many, finished, {}, kept, path)


def choose(
    config: TrainConfig,
    seeds: Sequence[int],
    seed_mapping: str,
    devices: int | None,
    parallel: str,
) -> tuple[SeedsConfig, str, Devices]:
    """Choose how several seeds are trained; Args and Raises as `train_seeds`.

    Returns:
        The config of all seeds, one of `mesh.MAPPINGS`, and the devices.
    """
    many = SeedsConfig(config, tuple(seeds))
    _check_one_process()
    # In one program several seeds need no batch that all devices share.
    alone = len(many.seeds) == 1 or seed_mapping == "loop" or parallel == "pmap"
    chosen = choose_devices(devices, parallel, many.config.batch_size if alone else None)
    mapping = choose_mapping(seed_mapping, len(many.seeds), chosen)
    chosen.check_divides(many.config.batch_size, len(many.seeds) if mapping == "vmap" else 1)
    return many, mapping, chosen


def _check_one_process() -> None:
    """Seeds have nothing to tell each other: several processes would only wait for each other."""
    if jax.process_count() > 1:
        raise ConfigError(
            f"there are {jax.process_count()} processes that train one seed together; train "
            "several seeds in processes that know nothing of each other, some --seeds in each"
        )


class Found(NamedTuple):
    """What there is of the runs of several seeds."""

    ends: Ends  # of those that are not to be trained: finished, or nothing of them is whole
    steps: dict[int, int]  # by seed, in order
    rows: dict[int, list[Row]]
    remarks: list[str]


def _train_rest(
    train_with: Callable[..., Iterator[tuple[int, Run | Exception]]],
    job: Job,
    found: Found,
    path: Path,
    watch: Watch,
    report: Report,
) -> Ends:
    """Trains the seeds that have not come to an end; returns the ends of all."""
    log = _Log(path / run_folder.METRICS, found, report)
    for seed, end in found.ends.items():
        report(Failed(seed, str(end)) if isinstance(end, Exception) else SeedDone(end))
    left = {seed: step for seed, step in found.steps.items() if seed not in found.ends}
    ends = dict(found.ends)
    try:
        for seed, end in (
            train_with(job, left, path, watch._replace(report=log.take)) if left else ()
        ):
            ends[seed] = end
            if isinstance(end, Run):
                report(SeedDone(end))
    except Stopped:
        raise Stopped(path, sum(log.steps.values())) from None
    log.rewrite()
    return ends


def look_up(job: Job, seeds: Sequence[int], path: Path) -> Found:
    """Looks at what there is of every seed, before any is trained.

    Raises:
        ConfigError: a folder has another run.
    """
    found = Found({}, dict.fromkeys(seeds, 0), {seed: [] for seed in seeds}, [])
    remarks: dict[str, None] = {}  # the same one but once
    for seed in seeds:
        if not run_folder.seed_folder(path, seed).exists():
            continue
        with contextlib.ExitStack() as stack:
            begun = enter_seed(stack, job, path, seed)
        if isinstance(begun, ConfigError):
            raise begun
        if isinstance(begun, Exception):
            found.ends[seed] = begun
            continue
        position = begun.position
        found.steps[seed], found.rows[seed] = position.step, position.rows
        remarks |= dict.fromkeys(begun.remarks)
        if position.summary is not None:
            found.ends[seed] = finished_run(job.of(seed), position, begun.path)
    return found._replace(remarks=list(remarks))


def train_vmapped(
    job: Job, steps: Mapping[int, int], path: Path, watch: Watch
) -> Iterator[tuple[int, Run | Exception]]:
    """Trains seeds side by side in one program, in as few blocks as fit into the memory.

    Args:
        job: what is run, whatever its seed.
        steps: the seeds to train, and how far each is: only those that are equally far share a
            block.
        path: each goes on, or begins, in a folder of its own below this one.
        watch: how the trainings are watched over.

    Yields:
        Each seed with its finished run, or with what ended it.

    Raises:
        Stopped: `watch.should_stop` returned True; everything is saved.
    """
    groups = [
        [seed for seed in steps if steps[seed] == step] for step in sorted(set(steps.values()))
    ]
    programs = compile_block(
        functools.partial(compile_for, job), max(len(group) for group in groups)
    )
    blocks = [
        group[first : first + programs.places]
        for group in groups
        for first in range(0, len(group), programs.places)
    ]
    for block in blocks:
        with contextlib.ExitStack() as stack:
            begun = {seed: enter_seed(stack, job, path, seed) for seed in block}
            failed = {seed: run for seed, run in begun.items() if isinstance(run, Exception)}
            ready = {seed: run for seed, run in begun.items() if not isinstance(run, Exception)}
            for seed, error in failed.items():
                watch.report(Failed(seed, str(error)))
                yield seed, error
            jobs = [job.of(seed) for seed in ready]
            ends = train_block(jobs, list(ready.values()), programs, watch) if jobs else []
        yield from zip(ready, ends, strict=True)


@fixed_flags()
def load_seeds(path: str | os.PathLike) -> SeedRuns:
    """Reads the runs of several seeds back from their folder; nothing in it is executed.

    Args:
        path: the folder.

    Returns:
        What `train_seeds` returned.

    Raises:
        ConfigError: the folder is not that of runs that have come to an end.
        CheckpointError: the last checkpoint of one is not whole.
        OSError: a file cannot be read.
    """
    path = Path(path)
    run_folder.check_own(path)
    many = run_folder.read_config_of_seeds(path)
    summary = run_folder.read_summary(path)
    failures = {int(seed): reason for seed, reason in summary["failures"].items()}
    found = {
        seed: load_run(run_folder.seed_folder(path, seed))
        for seed in many.seeds
        if seed not in failures
    }
    return SeedRuns(many, found, failures, summary, path)


class _Log:
    """Writes what happens to all seeds into one metrics.jsonl, and passes it on.

    Args:
        file: the metrics.jsonl.
        found: what was there before.
        report: told of every event.
    """

    def __init__(self, file: Path, found: Found, report: Callable[[Event], None]):
        self.steps = dict(found.steps)
        self._rows = {seed: list(rows) for seed, rows in found.rows.items()}
        self._file, self._report = file, report
        self.rewrite()

    def take(self, event: Event) -> None:
        """Takes an event of any seed."""
        if isinstance(event, Progress):
            self.steps |= dict.fromkeys(event.seeds, event.step)
        if isinstance(event, EpochDone):
            for row in event.rows:
                self._rows[row["seed"]].append(row)
                # It is written anew at the end: until then it is no reason to end any seed.
                with contextlib.suppress(OSError):
                    run_folder.append(self._file, json.dumps(row))
        self._report(event)

    def rewrite(self) -> None:
        """Writes all rows in order: seed by seed."""
        run_folder.write_rows(self._file, [row for rows in self._rows.values() for row in rows])


@contextlib.contextmanager
def _begun(
    many: SeedsConfig, out: str | os.PathLike | None, overwrite: bool, resume: bool
) -> Iterator[tuple[Path, Path, list[str]]]:
    """Holds the folder; yields the folder wished for, the one made, and what to remark on it."""
    if resume and out is not None:
        path = Path(out)
        with run_folder.claimed(path) as begins:
            check_continues(many, path)
            yield path, path, begins
    else:
        with run_folder.new_folder(many, out, overwrite) as (wished, path):
            yield wished, path, []


def _kept_summary(many: SeedsConfig, found: Found, path: Path) -> dict[str, Any] | None:
    """The summary.json of runs that have nothing left to train; None if it must be written."""
    finished = [end for seed in many.seeds if isinstance(end := found.ends.get(seed), Run)]
    if len(finished) < len(many.seeds):
        return None
    try:
        summary = run_folder.read_summary(path)
    except ConfigError:
        return None
    accuracies = [run.summary["final_test_accuracy"][0] for run in finished]
    is_theirs = summary.get("seeds") == list(many.seeds)
    return summary if is_theirs and summary.get("final_test_accuracy") == accuracies else None


def check_continues(many: SeedsConfig, path: Path) -> None:
    """Accepts a folder with nothing, or with runs that this config goes on with.

    Raises:
        ConfigError: it has other runs, or something else.
    """
    begun: TrainConfig | SeedsConfig | None = None
    if not run_folder.seed_folders(path):
        run_folder.check_is_run(path)
    # Should it be missing or damaged, every seed has its own, which is compared later.
    with contextlib.suppress(ConfigError):
        begun = run_folder.read_config(path)
    if isinstance(begun, TrainConfig) or (path / run_folder.CHECKPOINTS).exists():
        raise ConfigError(f"{path} has one run; leave --seeds out")
    if begun is not None:
        many.check_continues(begun)
    names = {run_folder.seed_folder(path, seed).name for seed in many.seeds}
    others = [folder.name for folder in run_folder.seed_folders(path) if folder.name not in names]
    if others:
        raise ConfigError(
            f"{path} has {', '.join(others)}, which are not among the seeds asked for: add them"
        )


def _finish(job: Job, many: SeedsConfig, mapping: str, path: Path, ends: Ends) -> SeedRuns:
    """Writes the summary of all seeds."""
    done = {seed: ends[seed] for seed in many.seeds}
    finished = {seed: end for seed, end in done.items() if isinstance(end, Run)}
    failures = {seed: str(end) for seed, end in done.items() if isinstance(end, Exception)}
    state = shapes(job.config, job.model, job.tx)
    joined = join_summaries(
        many,
        count_parameters(state.params),
        job.total_steps,
        len(job.test_images.pixels),
        {seed: run.summary for seed, run in finished.items()},
        failures,
    )
    summary = {**joined, "seed_mapping": mapping, **job.environment}
    run_folder.write_summary(path / run_folder.SUMMARY, summary)
    return SeedRuns(many, finished, failures, summary, path)
