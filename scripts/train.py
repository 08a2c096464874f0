"""Trains one of the seven networks: `python scripts/train.py --variant gap`."""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Neither `python -m scripts.train` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # What follows takes a second to import, in which Ctrl-C should not print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import jax
import numpy as np
import tyro
from rich.console import Console
from support.command import Signals, failed, needing, remember_compiled, run_main, user_path
from support.display import Tally, make_display
from support.output import make_console, print_line, print_table
from support.tables import epochs_table, evaluated_images, parameters_table, seeds_table, spread
from support.watchers import Profile, TensorBoard, guarded

from jaxmnist import TrainConfig, create_model, data
from jaxmnist.config import ConfigError, parse_config, parse_seeds, spoken
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import check_platform, choose_devices, remarks_on
from jaxmnist.runs import run as runs
from jaxmnist.runs import seeds, training
from jaxmnist.runs.run import Run, make_plan, shapes
from jaxmnist.runs.seeds import SeedRuns
from jaxmnist.runs.training import Stopped


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Trains one of the seven networks of the MNIST drill-down.

    The defaults below are those of the variant's recipe.

    Args:
        config: what to train.
        seeds: train several: how many, as 8, from --seed on, or which, as 3,7,11.
        seed_mapping: how several seeds are trained: auto, vmap (in one program), loop (one after
            another), processes (one for each core).
        out: the run's folder; by default the next free runs/VARIANT-seedSEED.
        data_dir: where TFDS keeps its data sets; by default $TFDS_DATA_DIR, else
            ~/tensorflow_datasets.
        idx_dir: a folder with the four IDX files (raw or .gz), used in place of all other sources.
        overwrite: replace the run in --out.
        resume: go on with the run in --out from its newest checkpoint, or begin it if there is
            none; what it was begun with need not be said again.
        checkpoint_every: epochs, as 2, or seconds, as 90s, from one checkpoint to the next.
        keep: how many checkpoints to keep, the newest ones.
        devices: how many share every batch, in equal parts; by default all there are, or
            as many of them as divide the batch.
        parallel: the form of their program: jit (with shard_map), or pmap, which is jit and
            shard_map inside since JAX 0.8.
        coordinator: where several processes train together: HOST:PORT of the first one. On a TPU
            pod and under SLURM this is found without a word.
        num_processes: how many there are; 1: this one trains alone, whatever JAX would find.
        process_id: which of them this one is, from 0.
        dry_run: print the resolved config, the parameters and the steps, and train nothing.
        quiet: print the result only.
        debug: print a traceback with an error.
        compilation_cache: keep compiled programs in the user's cache folder, for the next start.
        tensorboard: write every epoch's figures for TensorBoard, too, in tensorboard/.
        profile: write a jax.profiler trace of some steps of one seed, in profile/.
    """

    config: tyro.conf.OmitArgPrefixes[TrainConfig]
    seeds: str | None = None
    seed_mapping: str = "auto"
    out: Path | None = None
    data_dir: Path | None = None
    idx_dir: Path | None = None
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    resume: tyro.conf.FlagCreatePairsOff[bool] = False
    checkpoint_every: str = training.CHECKPOINT_EVERY
    keep: int = training.KEEP
    devices: int | None = None
    parallel: str = "jit"
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    quiet: tyro.conf.FlagCreatePairsOff[bool] = False
    debug: tyro.conf.FlagCreatePairsOff[bool] = False
    compilation_cache: bool = True
    tensorboard: tyro.conf.FlagCreatePairsOff[bool] = False
    profile: tyro.conf.FlagCreatePairsOff[bool] = False


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    debug = "--debug" in argv
    try:
        join(argv)  # not yet with signals of our own: what waits in it does not hear them
    except Exception as error:
        return failed(error, debug)
    with Signals() as signals:
        try:
            return run(parse(argv), signals)
        except Stopped as stopped:
            go_on = shlex.join(["python", sys.argv[0], *words_to_resume(argv, stopped.path)])
            print(f"stopped at step {stopped.step}; to go on: {go_on}", file=sys.stderr)
            return signals.status
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return signals.status
        except Exception as error:
            return failed(error, debug)


def join(argv: Sequence[str]) -> None:
    """Joins the processes that the command line names, before anything of JAX is used."""
    known = first_look(argv)
    if not known.help:
        distributed.join(known.coordinator, known.num_processes, known.process_id)
        check_platform()
        same = (known.variant, known.seed, known.seeds, known.resume, str(known.out))
        distributed.check_same(str(same))


def first_look(argv: Sequence[str]) -> argparse.Namespace:
    """What must be known of the command line before the rest can be read."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--variant", default=None)
    first.add_argument("--recipe", default=TrainConfig.recipe)
    first.add_argument("--seed", default=None)
    first.add_argument("--seeds", default="")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--out", type=user_path, default=None)
    first.add_argument("--coordinator", default=None)
    first.add_argument("--num-processes", "--num_processes", type=int, default=None)
    first.add_argument("--process-id", "--process_id", type=int, default=None)
    first.add_argument("--help", "-h", action="store_true")
    try:
        return first.parse_known_args(argv)[0]
    except argparse.ArgumentError:
        # `parse` names what is wrong, and nothing is begun before that.
        return first.parse_args(["--help"])


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line.

    What it leaves open comes from the run that is to go on, or from the recipe of its --variant.
    """
    known = first_look(argv)
    if known.seed is not None and "," in known.seeds:
        raise ConfigError(f"seeds is {known.seeds!r}, which names each one: leave --seed out")
    variant = known.variant or TrainConfig.variant
    default = Arguments(TrainConfig(variant, recipe=known.recipe))
    begun = None
    if known.resume and known.out is not None:
        begun = parse_begun(distributed.from_first(functools.partial(begun_config, known.out)))
        if begun and known.variant in (None, begun.config.variant):
            default = begun
    arguments = tyro.cli(Arguments, args=list(argv), default=default)
    if begun and arguments.seeds == begun.seeds:
        check_same_seed(arguments.config.seed, begun)
    paths = {name: getattr(arguments, name) for name in ("out", "data_dir", "idx_dir")}
    try:
        expanded = {name: path and user_path(path) for name, path in paths.items()}
    except argparse.ArgumentTypeError as error:
        raise ConfigError(str(error)) from error
    return dataclasses.replace(arguments, **expanded)


def check_same_seed(seed: int, begun: Arguments) -> None:
    """Refuses a --seed that several seeds, which have begun, leave no place for.

    Raises:
        ConfigError: it is not that of the first one.
    """
    if begun.seeds is not None and seed != begun.config.seed:
        which = parse_seeds(begun.seeds, begun.config.seed)
        raise ConfigError(
            f"seed is {seed}, but the run was begun with the seeds {spoken(which)}: leave --seed "
            "out, or pass another --out"
        )


def begun_config(out: Path) -> bytes:
    """The config of the run in a folder, as JSON; nothing, if it has none."""
    # What is wrong with the folder is said later, and its checkpoints may know better.
    with contextlib.suppress(ConfigError, OSError):
        return runs.begun_config(out).to_json().encode()
    return b""


def parse_begun(text: bytes) -> Arguments | None:
    """What goes on with what `begun_config` found; None: nothing has begun."""
    if not text:
        return None
    begun = parse_config(text.decode())
    if isinstance(begun, TrainConfig):
        return Arguments(begun)
    # A single seed cannot be a list, which has a comma: so it is a number of seeds, one.
    each = ",".join(map(str, begun.seeds))
    return Arguments(begun.config, seeds=each if "," in each else "1")


def words_to_resume(argv: Sequence[str], path: Path) -> list[str]:
    """The command line that goes on with what this one began."""
    words = [word for word in argv if word not in ("--overwrite", "--resume")]
    has_out = any(word.split("=")[0] == "--out" for word in argv)
    return [*words, "--resume"] if has_out else [*words, "--resume", "--out", str(path)]


def run(arguments: Arguments, signals: Signals) -> int:
    """Does what the command line asks for."""
    # One of the processes speaks for all.
    console = make_console(quiet=not distributed.is_first())
    watchers = make_watchers(arguments)
    if arguments.dry_run:
        dry_run(arguments, console)
        return 0
    if arguments.compilation_cache:
        remember_compiled()
    begin = time.perf_counter()
    if arguments.seeds is None:
        which, train_with = [arguments.config.seed], training.train
    else:
        which = parse_seeds(arguments.seeds, arguments.config.seed)
        train_with = functools.partial(
            seeds.train_seeds, seeds=which, seed_mapping=arguments.seed_mapping
        )
    done = train(arguments, which, console, signals, train_with, watchers)
    return print_end(done, arguments.quiet, time.perf_counter() - begin, console)


def print_end(done: Run | SeedRuns, quiet: bool, seconds: float, console: Console) -> int:
    """Prints what a training came to; returns the exit status."""
    if isinstance(done, Run):
        table, line, failures = epochs_table(done.rows), result(done, seconds), {}
    else:
        table, line = seeds_table(done.summary), seeds_result(done, seconds)
        failures = done.failures
    if not quiet:
        print_table(console, table)
    print_line(console, line)
    for seed, reason in failures.items():
        print(f"error: seed {seed}: {reason}", file=sys.stderr)
    return 1 if failures else 0


def train(
    arguments: Arguments,
    which: Sequence[int],
    console: Console,
    signals: Signals,
    train_with: Callable[..., Any],
    watchers: Sequence[TensorBoard | Profile],
) -> Any:
    """Trains one seed or several, and shows it."""
    tally = Tally(which, arguments.config.epochs)
    display = make_display(console, arguments.quiet or console.quiet, tally)
    with contextlib.ExitStack() as stack:
        shows = [stack.enter_context(guarded(each)) for each in (*watchers, display)]

        def report(event: Any) -> None:
            signals.training = True
            for show in reversed(shows):
                show(event)

        return train_with(
            arguments.config,
            out=arguments.out,
            data_dir=arguments.data_dir,
            idx_dir=arguments.idx_dir,
            overwrite=arguments.overwrite,
            resume=arguments.resume,
            checkpoint_every=arguments.checkpoint_every,
            keep=arguments.keep,
            devices=arguments.devices,
            parallel=arguments.parallel,
            report=report,
            data_progress=display.show_data,
            should_stop=signals.should_stop,
        )


def make_watchers(arguments: Arguments) -> list[TensorBoard | Profile]:
    """What looks on besides the display, in the first of several processes."""
    if arguments.profile and arguments.seeds is not None:
        raise ConfigError("profile is for a run of one seed, not of several")
    watchers = []
    if arguments.tensorboard:
        distributed.from_first(find_tensorboard)
    if arguments.tensorboard and distributed.is_first():
        watchers.append(TensorBoard())
    if arguments.profile and distributed.is_first():
        watchers.append(Profile())
    return watchers


def find_tensorboard() -> bytes:
    """Misses its package before anything is trained, in all processes."""
    with needing("tensorboard"):
        importlib.import_module("tensorboardX")
    return b""


def dry_run(arguments: Arguments, console: Console) -> None:
    """Prints what would be trained, after the checks of a training; fetches nothing."""
    config = arguments.config
    lines = check(arguments)
    if arguments.idx_dir is not None:
        dataset = data.load(config.dataset, idx_dir=arguments.idx_dir)
    else:  # as many images, of no pixels
        images, labels = np.zeros((data.TRAIN_COUNT, 0, 0), np.uint8), np.zeros(data.TRAIN_COUNT)
        dataset = data.Dataset(images, labels, images[:0], labels[:0], mean=0.0, std=1.0)
    plan = make_plan(config, dataset)
    state = shapes(config, create_model(config.variant, config.dropout), plan.tx)
    console.print_json(config.to_json())
    print_table(console, parameters_table(state.params))
    total = config.epochs * plan.steps
    print_line(
        console,
        f"{config.epochs} epochs of {plan.steps} steps of {config.batch_size} images: "
        f"{total} steps over {plan.train_count:,} training images",
    )
    for line in lines:
        print_line(console, line)


def check(arguments: Arguments) -> list[str]:
    """Checks all that a training checks before it loads images; returns how seeds are trained."""
    config, out, lines = arguments.config, arguments.out, []
    watch = training.Watch(arguments.checkpoint_every, arguments.keep)
    training.check_arguments(out, arguments.overwrite, arguments.resume, watch)
    if arguments.seeds is None:
        devices = choose_devices(arguments.devices, arguments.parallel, config.batch_size)
        devices.check_divides(config.batch_size)
        check_continues = functools.partial(runs.check_continues, config)
    else:
        which = parse_seeds(arguments.seeds, config.seed)
        many, mapping, devices = seeds.choose(
            config, which, arguments.seed_mapping, arguments.devices, arguments.parallel
        )
        lines.append(f"seeds {spoken(many.seeds)} ({mapping})")
        check_continues = functools.partial(seeds.check_continues, many)
    if arguments.devices is None:
        lines += [f"note: {remark}" for remark in remarks_on(devices, config.batch_size)]
    if arguments.resume and out is not None and out.is_dir():
        check_continues(out)
    return lines


def seeds_result(done: SeedRuns, seconds: float) -> str:
    """The last line: what the runs of several seeds came to."""
    summary = done.summary
    accuracies = [run.summary["final_test_accuracy"][0] for run in done.runs.values()]
    best = [run.summary["best_test_accuracy"][0] for run in done.runs.values()]
    what = "none is finished"
    if accuracies:
        images = evaluated_images(done.config.config, summary["test_count"])
        what = (
            f"{spread(accuracies)} % of {images} "
            f"({min(accuracies):.2f} to {max(accuracies):.2f}, best epochs {spread(best)} %)"
        )
    return (
        f"{summary['variant']}, {len(done.runs)} of {len(summary['seeds'])} seeds: {what}, "
        f"{summary['parameters']:,} parameters, {seconds:.0f} s, in {done.path}"
    )


def result(done: Run, seconds: float) -> str:
    """The last line: what a run came to."""
    summary = done.summary
    return (
        f"{summary['variant']}, seed {done.config.seed}: "
        f"{summary['final_test_accuracy'][0]:.2f} % of "
        f"{evaluated_images(done.config, summary['test_count'])} "
        f"(best epoch {summary['best_test_accuracy'][0]:.2f} %), "
        f"{summary['parameters']:,} parameters, {seconds:.0f} s, in {done.path}"
    )


if __name__ == "__main__":
    status = run_main(main, needs_output=False)
    if status in (1, 2) and jax.distributed.is_initialized():
        # The others are waiting, or gone: to take leave of them would take too long.
        # If all were refused the same, they have the time to say so: this end is theirs, too.
        time.sleep(1 if distributed.is_first() else 0)
        os._exit(status)
    sys.exit(status)
