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
import tyro
from command import Signals, failed, hush, needing, remember_compiled
from display import Tally, make_display
from rich.console import Console
from watchers import Profile, TensorBoard

from jaxmnist import TrainConfig, create_model, data, hosts, mesh, runs, seeds, training
from jaxmnist.config import (
    ConfigError,
    SeedsConfig,
    parse_config,
    parse_seeds,
    spoken,
    steps_per_epoch,
)
from jaxmnist.devices import check_platform, choose_devices, remarks_on
from jaxmnist.optim import make_optimizer
from jaxmnist.report import epochs_table, parameters_table, seeds_table, spread
from jaxmnist.runs import Run
from jaxmnist.seeds import SeedRuns
from jaxmnist.training import Stopped


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
        resume: go on with the run in --out from its newest checkpoint; what it was begun with need
            not be said again.
        checkpoint_every: epochs, as 2, or seconds, as 90s, from one checkpoint to the next.
        keep: how many checkpoints to keep, the newest ones.
        devices: how many share every batch, in equal parts; by default all there are, or
            as many of them as divide the batch.
        parallel: the form of their program: jit (with shard_map), or the older pmap.
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
        hosts.join(known.coordinator, known.num_processes, known.process_id)
        check_platform()
        same = (known.variant, known.seed, known.seeds, known.resume, str(known.out))
        hosts.check_same(str(same))


def first_look(argv: Sequence[str]) -> argparse.Namespace:
    """What must be known of the command line before the rest can be read."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--variant", default=None)
    first.add_argument("--recipe", default=TrainConfig.recipe)
    first.add_argument("--seed", default=None)
    first.add_argument("--seeds", default="")
    first.add_argument("--resume", action="store_true")
    first.add_argument("--out", type=Path, default=None)
    first.add_argument("--coordinator", default=None)
    first.add_argument("--num-processes", "--num_processes", type=int, default=None)
    first.add_argument("--process-id", "--process_id", type=int, default=None)
    first.add_argument("--help", "-h", action="store_true")
    return first.parse_known_args(argv)[0]


def parse(argv: Sequence[str]) -> Arguments:
    """Reads the command line.

    What it leaves open comes from the run that is to go on, or from the recipe of its --variant.
    """
    known = first_look(argv)
    if known.seed is not None and "," in known.seeds:
        raise ConfigError(f"seeds is {known.seeds!r}, which names each one: leave --seed out")
    variant = known.variant or TrainConfig.variant
    default = Arguments(TrainConfig(variant, recipe=known.recipe))
    if known.resume and known.out is not None:
        begun = hosts.from_first(functools.partial(begun_config, known.out))
        if begun:
            begun = arguments_of(parse_config(begun.decode()))
            default = begun if known.variant in (None, begun.config.variant) else default
    return tyro.cli(Arguments, args=list(argv), default=default)


def begun_config(out: Path) -> bytes:
    """The config of the run in a folder, as JSON; nothing, if it has none."""
    # What is wrong with the folder is said later, and its checkpoints may know better.
    with contextlib.suppress(ConfigError, OSError):
        return runs.begun_config(out).to_json().encode()
    return b""


def arguments_of(begun: TrainConfig | SeedsConfig) -> Arguments:
    """What goes on with what was begun."""
    if isinstance(begun, TrainConfig):
        return Arguments(begun)
    return Arguments(begun.config, seeds=",".join(map(str, begun.seeds)))


def words_to_resume(argv: Sequence[str], path: Path) -> list[str]:
    """The command line that goes on with what this one began."""
    words = [word for word in argv if word not in ("--overwrite", "--resume")]
    has_out = any(word.split("=")[0] == "--out" for word in argv)
    return [*words, "--resume"] if has_out else [*words, "--resume", "--out", str(path)]


def run(arguments: Arguments, signals: Signals) -> int:
    """Does what the command line asks for."""
    # One of the processes speaks for all.
    console = Console(quiet=not hosts.is_first())
    if arguments.dry_run:
        dry_run(arguments, console)
        return 0
    if arguments.compilation_cache:
        remember_compiled()
    begin = time.perf_counter()
    if arguments.seeds is None:
        done = train(arguments, [arguments.config.seed], console, signals, training.train)
        if not arguments.quiet:
            console.print(epochs_table(done.rows))
        line = result(done, time.perf_counter() - begin)
        console.print(line, highlight=False, soft_wrap=True, markup=False)
        return 0
    which = parse_seeds(arguments.seeds, arguments.config.seed)
    train_seeds = functools.partial(
        seeds.train_seeds, seeds=which, seed_mapping=arguments.seed_mapping
    )
    done = train(arguments, which, console, signals, train_seeds)
    if not arguments.quiet:
        console.print(seeds_table(done.summary))
    line = seeds_result(done, time.perf_counter() - begin)
    console.print(line, highlight=False, soft_wrap=True, markup=False)
    for seed, reason in done.failures.items():
        print(f"error: seed {seed}: {reason}", file=sys.stderr)
    return 1 if done.failures else 0


def train(
    arguments: Arguments,
    which: Sequence[int],
    console: Console,
    signals: Signals,
    train_with: Callable[..., Any],
) -> Any:
    """Trains one seed or several, and shows it."""
    tally = Tally(which, arguments.config.epochs)
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(watcher) for watcher in make_watchers(arguments)]
        display = stack.enter_context(
            make_display(console, arguments.quiet or console.quiet, tally)
        )

        def report(event: Any) -> None:
            signals.training = True
            for each in (display, *watchers):
                each.show(event)

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
        hosts.from_first(find_tensorboard)
    if arguments.tensorboard and hosts.is_first():
        watchers.append(TensorBoard())
    if arguments.profile and hosts.is_first():
        watchers.append(Profile())
    return watchers


def find_tensorboard() -> bytes:
    """Misses its package before anything is trained, in all processes."""
    with needing("tensorboard"):
        importlib.import_module("tensorboardX")
    return b""


def dry_run(arguments: Arguments, console: Console) -> None:
    """Prints what would be trained; fetches nothing."""
    config = arguments.config
    alone = arguments.seeds is None or arguments.seed_mapping == "loop"
    batch_size = config.batch_size if alone or arguments.parallel == "pmap" else None
    devices = choose_devices(arguments.devices, arguments.parallel, batch_size)
    available = data.TRAIN_COUNT
    if arguments.idx_dir is not None:
        available = len(data.load(config.dataset, idx_dir=arguments.idx_dir).train_images)
    count = runs.count_images(available, config.limit_train)
    steps = steps_per_epoch(count, config.batch_size)
    tx, _ = make_optimizer(config, config.epochs * steps)
    model = create_model(config.variant, config.dropout)
    state = runs.shapes(config, model, tx)
    console.print_json(config.to_json())
    console.print(parameters_table(state.params))
    console.print(
        f"{config.epochs} epochs of {steps} steps of {config.batch_size} images: "
        f"{config.epochs * steps} steps over {count:,} training images",
        highlight=False,
        soft_wrap=True,
    )
    side_by_side = 1
    if arguments.seeds is not None:
        which = SeedsConfig(config, parse_seeds(arguments.seeds, config.seed)).seeds
        mapping = mesh.choose_mapping(arguments.seed_mapping, len(which), devices)
        side_by_side = len(which) if mapping == "vmap" else 1
        console.print(f"seeds {spoken(which)} ({mapping})", highlight=False, soft_wrap=True)
    devices.check_divides(config.batch_size, side_by_side)
    for remark in remarks_on(devices, config.batch_size) if arguments.devices is None else ():
        console.print(f"note: {remark}", highlight=False, soft_wrap=True, markup=False)


def seeds_result(done: SeedRuns, seconds: float) -> str:
    """The last line: what the runs of several seeds came to."""
    summary = done.summary
    accuracies = [run.summary["final_test_accuracy"][0] for run in done.runs.values()]
    best = [run.summary["best_test_accuracy"][0] for run in done.runs.values()]
    what = "none is finished"
    if accuracies:
        what = (
            f"{spread(accuracies)} % of {summary['test_count']:,} test images "
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
        f"{summary['final_test_accuracy'][0]:.2f} % of {summary['test_count']:,} test images "
        f"(best epoch {summary['best_test_accuracy'][0]:.2f} %), "
        f"{summary['parameters']:,} parameters, {seconds:.0f} s, in {done.path}"
    )


if __name__ == "__main__":
    if "--debug" not in sys.argv:
        hush()
    status = main(sys.argv[1:])
    if status in (1, 2) and jax.distributed.is_initialized():
        # The others are waiting, or gone: to take leave of them would take too long.
        sys.stdout.flush()
        sys.stderr.flush()
        # If all were refused the same, they have the time to say so: this end is theirs, too.
        time.sleep(1 if hosts.is_first() else 0)
        os._exit(status)
    sys.exit(status)
