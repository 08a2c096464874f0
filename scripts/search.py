"""Compares networks and recipes on images held out of the training set.

`python scripts/search.py gap/record gap/record/no_decay` trains each with the same seeds on the
same folds, and compares them with the first fold by fold, by the loss on the held-out images; the
test set is not read. Finished runs are lines of docs/search.jsonl: what is there is not trained
again.
"""

import argparse
import contextlib
import dataclasses
import json
import signal
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":
    # Neither `python -m scripts.search` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # What follows takes a second to import, in which Ctrl-C should not print a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

from rich.console import Console
from rich.table import Table
from support.command import Signals, remember_compiled, run_main, until_stopped, user_path
from support.display import Tally, make_display
from support.output import make_console, print_line, print_table

from jaxmnist import TrainConfig, train_seeds
from jaxmnist.analysis import stats
from jaxmnist.config import ConfigError, SeedsConfig, by_name, parse_seeds
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run
from jaxmnist.runs.seeds import SeedDone

ROOT = Path(__file__).parent.parent
OUT, RUNS = ROOT / "docs" / "search.jsonl", ROOT / "runs" / "search"
HOLDOUT = 5000
FIRST_SEED = 100  # docs/results.json has those from 0 on, which are to choose nothing
FIGURES = ("final_test_loss", "final_test_accuracy", "best_test_accuracy")

Line = dict[str, Any]
ByRun = Mapping[tuple[int, int], float]  # by fold and seed


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    return until_stopped(lambda signals: run(arguments, make_console(), signals), arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help="as gap/record or gap/record/rate_0.2/no_decay"
    )
    parser.add_argument(
        "--seeds", default="2", help=f"how many, from {FIRST_SEED} on, or which, as 100,107"
    )
    parser.add_argument("--folds", type=int, default=2, help=f"of {HOLDOUT} images each")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--out", type=user_path, default=OUT, help="the file of finished runs")
    parser.add_argument("--data-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console, signals: Signals) -> int:
    """Trains what is missing, and prints the comparison; returns the exit status."""
    if arguments.folds < 1:
        raise ConfigError(f"folds is {arguments.folds}; expected a whole number of at least 1")
    configs = [by_name(name, epochs=arguments.epochs, holdout=HOLDOUT) for name in arguments.names]
    for number, config in enumerate(configs):
        if config in configs[:number]:
            raise ConfigError(f"{config.name} is there twice; expected each name once")
    seeds = SeedsConfig(configs[0], parse_seeds(arguments.seeds, FIRST_SEED)).seeds
    failures = []
    if not arguments.report:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        remember_compiled()
        for config in configs:
            for fold in range(arguments.folds):
                fold_of = dataclasses.replace(config, fold=fold)
                failures += train(arguments, console, signals, fold_of, seeds)
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    print_table(console, table(arguments.out, configs))
    return 1 if failures else 0


def train(
    arguments: argparse.Namespace,
    console: Console,
    signals: Signals,
    config: TrainConfig,
    seeds: Sequence[int],
) -> list[str]:
    """Trains the seeds that are not in the file, which each is put into; returns what failed."""
    finished = by_run(arguments.out, config)
    missing = [seed for seed in seeds if (config.fold, seed) not in finished]
    if not missing:
        return []
    print_line(console, f"{config.name}, fold {config.fold}, seeds {missing}")
    with make_display(console, True, Tally(missing, config.epochs)) as display:

        def report(event: Any) -> None:
            signals.training = True
            if isinstance(event, SeedDone):
                add(arguments.out, event.run)
            display.show(event)

        folder = RUNS / f"{config.name.replace('/', '-')}-{config.epochs}-{config.fold}"
        done = train_seeds(
            config,
            missing,
            out=folder,
            overwrite=folder.is_dir(),
            data_dir=arguments.data_dir,
            idx_dir=arguments.idx_dir,
            report=report,
            should_stop=signals.should_stop,
        )
    signals.training = False
    if signals.should_stop():
        raise KeyboardInterrupt
    return [
        f"{config.name}, fold {config.fold}, seed {seed}: {why}"
        for seed, why in done.failures.items()
    ]


def read(file: Path) -> list[Line]:
    """The finished runs; a line that a process did not finish writing is none."""
    found = []
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return [line for line in found if isinstance(line, dict)]


def add(file: Path, done: Run) -> None:
    """Puts a finished run into the file."""
    line = {
        **dataclasses.asdict(done.config),
        **{name: done.summary[name][0] for name in FIGURES},
        "train_seconds": done.summary["train_seconds"],
    }
    file.touch()
    run_folder.append(file, json.dumps(line))


def by_run(file: Path, config: TrainConfig, figure: str = "final_test_loss") -> ByRun:
    """Return a figure of a config's runs."""
    same = {**dataclasses.asdict(config), "fold": None, "seed": None}
    return {
        (line["fold"], line["seed"]): line[figure]
        for line in read(file)
        if {**{name: line[name] for name in same}, "fold": None, "seed": None} == same
    }


def table(file: Path, configs: Sequence[TrainConfig]) -> Table:
    """Return a line for each config, of the runs that the first has, too."""
    first = by_run(file, configs[0])
    if not first:
        raise ConfigError(
            f"{file} has no finished run of {configs[0].name}, which is to be compared with; leave "
            "--report out to train it"
        )
    shown = Table(caption=legend(configs), caption_justify="left")
    for column in ("name", "epochs", "n", "loss", "difference", "p", "%", "s"):
        shown.add_column(column, justify="left" if column == "name" else "right", overflow="fold")
    for config in configs:
        losses, accuracies, seconds = (
            {run: value for run, value in by_run(file, config, figure).items() if run in first}
            for figure in ("final_test_loss", "final_test_accuracy", "train_seconds")
        )
        if losses:
            of_folds = over_folds(losses)
            shown.add_row(
                *(config.name, str(config.epochs), str(len(of_folds)), f"{fmean(of_folds):.4f}"),
                *(("", "") if config == configs[0] else against(first, losses)),
                *(f"{fmean(over_folds(accuracies)):.2f}", f"{fmean(seconds.values()):.0f}"),
            )
    return shown


def legend(configs: Sequence[TrainConfig]) -> str:
    """Return what the columns are, and what their p-values rest on."""
    return (
        f"loss and %: on {configs[0].holdout:,} held-out training images a fold. n: folds, "
        "of which each is the mean of its seeds, because they share its images. p: paired t-test "
        "over folds, of each line alone. It assumes that the folds' differences are normally "
        "distributed. Without that, 2 folds show nothing (sign-flip test: p is at least 0.5), and "
        f"it takes at least {stats.seeds_to_show()} to show anything."
    )


def against(first: ByRun, other: ByRun) -> tuple[str, str]:
    """Return the mean difference over folds and its p-value, as text.

    Args:
        first: by fold and seed, the loss of what is compared with.
        other: that of the other config, of some of the same runs.
    """
    spread = stats.describe(over_folds({run: other[run] - first[run] for run in other}))
    p = stats.paired_t_test(spread)
    return f"{spread.mean:+.4f}", "-" if p is None else f"{p:.3f}"


def over_folds(values: ByRun) -> list[float]:
    """Return the mean of each fold's seeds.

    The runs of a fold share its training and held-out images, so that they are not independent.

    Args:
        values: by fold and seed.
    """
    of_fold = defaultdict(list)
    for (fold, _), value in values.items():
        of_fold[fold].append(value)
    return [fmean(of_seeds) for of_seeds in of_fold.values()]


if __name__ == "__main__":
    sys.exit(run_main(main))
