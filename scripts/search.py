"""Tries changes of a recipe on images held out of the training set: `scripts/search.py fast`.

Every change is trained with the same seeds on the same folds as the recipe itself, and compared
with it run by run, by the loss on what was held out; the test set is not read. Finished runs are
lines of docs/search.jsonl: what is there is not trained again.
"""

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
    # What follows takes a second to import, in which Ctrl-C should not print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from command import Signals, hush, remember_compiled, until_stopped
from display import Tally, make_display
from rich.console import Console
from rich.table import Table

from jaxmnist import TrainConfig, stats, train_seeds
from jaxmnist.config import CHANGES, check_name, parse_seeds
from jaxmnist.runs import Run
from jaxmnist.seeds import SeedDone

ROOT = Path(__file__).parent.parent
OUT, RUNS = ROOT / "docs" / "search.jsonl", ROOT / "runs" / "search"
HOLDOUT = 5000
FIGURES = ("final_test_loss", "final_test_accuracy", "best_test_accuracy")

Line = dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    return until_stopped(lambda signals: run(arguments, Console(), signals), arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="what is changed, as fast, or fast/rate_0.2")
    parser.add_argument(
        "--changes",
        default=",".join(CHANGES),
        help="those to try, as rate_0.2,no_decay/no_average; each alone",
    )
    parser.add_argument("--variant", default="gap")
    parser.add_argument("--seeds", default="100,101", help="as in scripts/train.py")
    parser.add_argument("--folds", type=int, default=2, help=f"of {HOLDOUT} images each")
    parser.add_argument("--epochs", type=int, help="in place of the recipe's")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--out", type=Path, default=OUT, help="the file of finished runs")
    parser.add_argument("--data-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=Path, help="as in scripts/train.py")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console, signals: Signals) -> int:
    """Trains what is missing, and prints the comparison; returns the exit status."""
    changes = arguments.changes.split(",")
    for change in changes:
        for part in change.split("/"):
            check_name("changes", part, CHANGES)
    recipes = [arguments.recipe, *(f"{arguments.recipe}/{change}" for change in changes)]
    remember_compiled()
    for recipe in recipes if not arguments.report else ():
        for fold in range(arguments.folds):
            train(arguments, console, signals, config_of(arguments, recipe, fold))
    console.print(table(arguments, recipes))
    return 0


def config_of(arguments: argparse.Namespace, recipe: str, fold: int) -> TrainConfig:
    """What is trained, with any seed."""
    return TrainConfig(
        arguments.variant, recipe=recipe, epochs=arguments.epochs, holdout=HOLDOUT, fold=fold
    )


def train(
    arguments: argparse.Namespace, console: Console, signals: Signals, config: TrainConfig
) -> None:
    """Trains the seeds that are not in the file; each is put there as soon as it is finished."""
    finished = by_run(arguments.out, config)
    seeds = parse_seeds(arguments.seeds, 0)
    missing = [seed for seed in seeds if (config.fold, seed) not in finished]
    if not missing:
        return
    console.print(f"{config.recipe}, fold {config.fold}, seeds {missing}", highlight=False)
    with make_display(console, True, Tally(missing, config.epochs)) as display:

        def report(event: Any) -> None:
            signals.training = True
            if isinstance(event, SeedDone):
                add(arguments.out, event.run)
            display.show(event)

        folder = RUNS / f"{config.recipe.replace('/', '-')}-{config.epochs}-{config.fold}"
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
    for seed, why in done.failures.items():
        print(f"note: {config.recipe}, seed {seed}: {why}", file=sys.stderr)


def read(file: Path) -> list[Line]:
    """The finished runs."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def add(file: Path, done: Run) -> None:
    """Puts a finished run into the file."""
    line = {
        **dataclasses.asdict(done.config),
        **{name: done.summary[name][0] for name in FIGURES},
        "train_seconds": done.summary["train_seconds"],
    }
    with file.open("a") as lines:
        lines.write(json.dumps(line) + "\n")


def by_run(file: Path, config: TrainConfig, figure: str = "final_test_loss") -> dict[Any, float]:
    """A figure of a config's runs, by fold and seed."""
    same = {**dataclasses.asdict(config), "fold": None, "seed": None}
    return {
        (line["fold"], line["seed"]): line[figure]
        for line in read(file)
        if {**{name: line[name] for name in same}, "fold": None, "seed": None} == same
    }


def table(arguments: argparse.Namespace, recipes: Sequence[str]) -> Table:
    """A line for each recipe that has runs, next to the first."""
    base = config_of(arguments, recipes[0], 0)
    shown = Table(title=f"{base.variant}, {base.epochs} epochs", title_justify="left")
    for column in ("recipe", "n", "loss", "less the first", "p alone", "accuracy %", "s"):
        shown.add_column(column, justify="left" if column == "recipe" else "right", overflow="fold")
    first = by_run(arguments.out, base)
    for recipe in recipes:
        config = config_of(arguments, recipe, 0)
        losses = by_run(arguments.out, config)
        if not losses:
            continue
        accuracies, seconds = (
            stats.describe(list(by_run(arguments.out, config, figure).values()))
            for figure in ("final_test_accuracy", "train_seconds")
        )
        against = ("", "")
        if recipe != recipes[0]:
            difference = stats.compare(first, losses)
            p = difference.p
            against = (f"{difference.spread.mean:+.4f}", "-" if p is None else f"{p:.2f}")
        loss = stats.describe(list(losses.values()))
        shown.add_row(
            recipe,
            str(loss.n),
            f"{loss.mean:.4f}",
            *against,
            f"{accuracies.mean:.2f}",
            f"{seconds.mean:.0f}",
        )
    return shown


if __name__ == "__main__":
    if "--debug" not in sys.argv:
        hush()
    sys.exit(main(sys.argv[1:]))
