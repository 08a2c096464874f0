"""Train a network on MNIST: `python scripts/train.py --variant gap`."""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Neither `python -m scripts.train` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import jax
import numpy as np
from rich.console import Console
from support.command import (
    TrainingCommand,
    add_debug_option,
    require_extra,
    run_main,
    use_compilation_cache,
    user_path,
)
from support.display import ProgressTracker, make_display
from support.networks import read_network
from support.options import Parser, add_fields
from support.output import make_console, print_line, print_table
from support.tables import epochs_table, evaluated_images, layers_table, seeds_table, spread
from support.watchers import Profile, TensorBoard, guarded

from jaxmnist import Callbacks, Run, RunOptions, TrainConfig, data, train
from jaxmnist.config import ConfigError, check_seeds, format_seeds, parse_seeds
from jaxmnist.models import model_of
from jaxmnist.models.description import describe, parameters
from jaxmnist.parallel import distributed
from jaxmnist.parallel.devices import check_platform, idle_devices
from jaxmnist.runs.loop import Stopped
from jaxmnist.runs.run import begun_config
from jaxmnist.runs.run_folder import format_config, parse_config
from jaxmnist.runs.setup import set_up
from jaxmnist.runs.train import check_options, choose_parallelism


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    with TrainingCommand("--debug" in argv, functools.partial(describe_stop, argv)) as command:
        arguments = make_parser().parse_words(argv)
        join(arguments)
        command.handle_signals()  # after `join`, which is not interrupted by handled signals
        config, seeds, options = resolve(arguments)
        console = make_console(quiet=not distributed.is_main_process())
        check_budget(config, arguments.budget, console)
        if arguments.dry_run:
            dry_run(config, seeds, options, arguments.out, console)
            return 0
        if arguments.compilation_cache:
            use_compilation_cache()
        begin = time.perf_counter()
        with watched(arguments, config, seeds, console, command) as callbacks:
            run = train(config, arguments.out, seeds, options, callbacks)
        return print_end(run, arguments.quiet, time.perf_counter() - begin, console)
    return command.status


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="the output folder; by "
                        "default runs/VARIANT-seedSEED, or the next free name")  # fmt: skip
    parser.add_argument("--seeds", metavar="N", help="train several seeds: a count, such as 8 "
                        "(from --seed on), or a list, such as 3,7,11")  # fmt: skip
    parser.add_argument("--budget", type=int, metavar="N", help="train no network of more than N "
                        "parameters")  # fmt: skip
    what = parser.add_argument_group("training (defaults: the recipe's values)")
    add_fields(what, TrainConfig, unset=True)
    add_fields(parser.add_argument_group("execution and storage"), RunOptions)
    together = parser.add_argument_group("several processes (detected on TPU pods and under SLURM)")
    together.add_argument("--coordinator", metavar="HOST:PORT", help="address of the first process")
    together.add_argument("--num-processes", type=int, metavar="N", help="number of processes; "
                          "1 to train in this process alone, even in a cluster")  # fmt: skip
    together.add_argument("--process-id", type=int, metavar="N", help="process index, from 0")
    shown = parser.add_argument_group("output")
    flag = functools.partial(shown.add_argument, action="store_true")
    flag("--dry-run", help="print the config, parameters and steps without training")
    flag("--quiet", help="print only the result")
    flag("--tensorboard", help="write the metrics of each epoch to tensorboard/")
    flag("--profile", help="write a jax.profiler trace of some steps to profile/ (one seed only)")
    shown.add_argument(
        "--compilation-cache",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="store compiled programs in the user's cache folder, for faster starts",
    )
    add_debug_option(parser)
    return parser


def join(arguments: argparse.Namespace) -> None:
    """Connect to the other processes, if there are any, before the first use of JAX."""
    distributed.join(arguments.coordinator, arguments.num_processes, arguments.process_id)
    check_platform()
    own = {"process_id", "data_dir", "idx_dir"}  # hosts may store the images in different folders
    alike = {name: value for name, value in vars(arguments).items() if name not in own}
    distributed.assert_equal_across_processes(str(alike))


def resolve(arguments: argparse.Namespace) -> tuple[TrainConfig, tuple[int, ...], RunOptions]:
    """Return the config, seeds and options of the command line.

    Missing options come from the run to resume, or from the recipe.

    Raises:
        ConfigError: a value is out of range.
    """
    fields = [field.name for field in dataclasses.fields(TrainConfig)]
    given = {name: getattr(arguments, name) for name in fields}
    given = {name: value for name, value in given.items() if value is not None}
    if "network" in given:
        # --variant takes precedence over the name of the file.
        given = read_network(given.pop("network")) | given
    if "seed" in given and arguments.seeds and "," in arguments.seeds:
        raise ConfigError(f"seeds is {arguments.seeds!r}, which names each one: leave --seed out")
    names = [field.name for field in dataclasses.fields(RunOptions)]
    options = RunOptions(**{name: getattr(arguments, name) for name in names})
    config, seeds = TrainConfig(**given), None
    if options.resume and arguments.out is not None:
        text = distributed.broadcast_from_main(functools.partial(read_begun, arguments.out))
        begun = parse_config(text) if text else None
        # A different network or recipe is rejected later, with an error that names both values.
        if begun and all(
            given.get(name, getattr(begun.config, name)) == getattr(begun.config, name)
            for name in ("variant", "recipe")
        ):
            config = dataclasses.replace(begun.config, **given)
            seeds = begun.seeds if "seed" not in given else None
    if arguments.seeds is not None:
        seeds = parse_seeds(arguments.seeds, config.seed)
    seeds = check_seeds([config.seed] if seeds is None else seeds)
    if arguments.profile and len(seeds) > 1:
        raise ConfigError("profile is for a run of one seed, not of several")
    return config, seeds, options


def check_budget(config: TrainConfig, budget: int | None, console: Console) -> None:
    """Check that a network has few enough parameters; print its layers if not.

    Raises:
        ConfigError: it has more than the budget.
    """
    count = sum(map(parameters, describe(model_of(config))))
    if budget is not None and count > budget:
        print_table(console, layers_table(config))
        raise ConfigError(
            f"{config.variant} has {count:,} parameters, {count - budget:,} more than --budget "
            f"allows ({budget:,}); make it smaller, or raise --budget"
        )


def read_begun(out: Path) -> str:
    """Return the config of the run in a folder, as JSON; empty if there is none."""
    # `train` reports errors in the folder.
    with contextlib.suppress(ConfigError, OSError):
        begun = begun_config(out)
        return format_config(begun.config, begun.seeds) if begun else ""
    return ""


def describe_stop(argv: Sequence[str], stop: BaseException) -> str:
    """Return the line to print after a training was stopped."""
    if not isinstance(stop, Stopped):
        return "stopped"
    resume = shlex.join(["python", sys.argv[0], *words_to_resume(argv, stop.path)])
    return f"stopped at step {stop.step}; to continue: {resume}"


def words_to_resume(argv: Sequence[str], path: Path) -> list[str]:
    """Return the arguments of the command that resumes this training."""
    words = [word for word in argv if word not in ("--overwrite", "--resume")]
    has_out = any(word.split("=")[0] == "--out" for word in argv)
    return [*words, "--resume"] if has_out else [*words, "--resume", "--out", str(path)]


@contextlib.contextmanager
def watched(
    arguments: argparse.Namespace,
    config: TrainConfig,
    seeds: Sequence[int],
    console: Console,
    command: TrainingCommand,
):
    """Display a training; yield the callbacks for it."""
    tracker = ProgressTracker(seeds, config.epochs)
    display = make_display(console, arguments.quiet or console.quiet, tracker)
    with contextlib.ExitStack() as stack:
        watchers = [*make_watchers(arguments), display]
        shows = [stack.enter_context(guarded(each)) for each in watchers]

        def report(event: Any) -> None:
            command.training = True
            for show in reversed(shows):
                show(event)

        yield Callbacks(report, display.show_data, command.should_stop)


def make_watchers(arguments: argparse.Namespace) -> list[TensorBoard | Profile]:
    """Return the watchers of a training besides the display, for the main process."""
    watchers = []
    if arguments.tensorboard:
        distributed.broadcast_from_main(find_tensorboard)
    if arguments.tensorboard and distributed.is_main_process():
        watchers.append(TensorBoard())
    if arguments.profile and distributed.is_main_process():
        watchers.append(Profile())
    return watchers


def find_tensorboard() -> None:
    """Raise an error early, in all processes, if tensorboardX is missing."""
    with require_extra("tensorboard"):
        importlib.import_module("tensorboardX")


def dry_run(
    config: TrainConfig,
    seeds: tuple[int, ...],
    options: RunOptions,
    out: Path | None,
    console: Console,
) -> None:
    """Run the checks of a training and print its config; download nothing."""
    config = dataclasses.replace(config, seed=seeds[0])
    check_options(config, seeds, out, options)
    devices, mapping = choose_parallelism(config, seeds, options)
    if options.idx_dir is not None:
        dataset = data.load(config.dataset, idx_dir=options.idx_dir)
    else:  # a stand-in with the same number of images, without pixels
        images, labels = np.zeros((data.TRAIN_COUNT, 0, 0), np.uint8), np.zeros(data.TRAIN_COUNT)
        dataset = data.Dataset(images, labels, images[:0], labels[:0], mean=0.0, std=1.0)
    setup = set_up(config, dataset, options, devices, facts={})
    console.print_json(data=config.to_dict())
    print_table(console, layers_table(config))
    print_line(
        console,
        f"{config.epochs} epochs of {setup.steps} steps of {config.batch_size} images: "
        f"{setup.total_steps} steps over {len(setup.train_images.pixels):,} training images",
    )
    if len(seeds) > 1:
        print_line(console, f"seeds {format_seeds(seeds)} ({mapping})")
    if options.devices is None:
        for line in idle_devices(devices, config.batch_size):
            print_line(console, f"note: {line}")


def print_end(run: Run, quiet: bool, seconds: float, console: Console) -> int:
    """Print the result of a training; return the exit status."""
    if not quiet:
        of_many = len(run.summary["seeds"]) > 1
        print_table(console, seeds_table(run.summary) if of_many else epochs_table(run.rows))
    print_line(console, describe_result(run, seconds))
    for seed, reason in run.failures.items():
        print(f"error: seed {seed}: {reason}", file=sys.stderr)
    return 1 if run.failures else 0


def describe_result(run: Run, seconds: float) -> str:
    """Return the last line of a training."""
    summary = run.summary
    images = evaluated_images(run.config, summary["test_count"])
    final, best = (
        [value for value in summary[name] if value is not None]
        for name in ("final_test_accuracy", "best_test_accuracy")
    )
    count = len(summary["seeds"])
    who = f"seed {run.config.seed}" if count == 1 else f"{len(final)} of {count} seeds"
    if not final:
        result = "none is finished"
    elif count == 1:
        result = f"{final[0]:.2f} % of {images} (best epoch {best[0]:.2f} %)"
    else:
        result = (
            f"{spread(final)} % of {images} "
            f"({min(final):.2f} to {max(final):.2f}, best epochs {spread(best)} %)"
        )
    return (
        f"{summary['variant']}, {who}: {result}, {summary['parameters']:,} parameters, "
        f"{seconds:.0f} s, in {run.path}"
    )


if __name__ == "__main__":
    status = run_main(main, needs_output=False)
    if status in (1, 2) and jax.distributed.is_initialized():
        # The other processes are waiting or gone, so an orderly shutdown would take too long.
        # The main process's exit ends all others; give them time to print the same error.
        time.sleep(1 if distributed.is_main_process() else 0)
        os._exit(status)
    sys.exit(status)
