"""Evaluates trained networks: `python scripts/evaluate.py runs/gap-seed0`.

Prints a network's accuracy, calibration and mistakes, and writes them with pictures to
evaluation/DATASET/ in the run's folder. Several networks are compared, and also evaluated as an
ensemble: the mean of their log-probabilities.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Neither `python -m scripts.evaluate` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from support.command import (
    Command,
    add_common_options,
    run_main,
    suggest_out,
    use_compilation_cache,
    user_path,
)
from support.output import make_console, print_line, print_table

from jaxmnist import data
from jaxmnist.analysis import evaluation, stats
from jaxmnist.analysis.evaluation import Evaluation
from jaxmnist.analysis.plots import evaluation as plots
from jaxmnist.config import ConfigError
from jaxmnist.inference.predict import load_runs, make_predict
from jaxmnist.inference.views import ensemble, with_tta
from jaxmnist.recipes import DATASETS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

FILE = "evaluation.json"
LEGEND = (
    "+: images that only it gets right, -: those that only the first network does; "
    "p: McNemar's exact test of the two, corrected for all lines by Holm's method"
)


class Evaluated(NamedTuple):
    """A network or an ensemble, its log-probabilities, and its evaluation."""

    runs: Sequence[Run]
    said: np.ndarray  # log-probabilities, float32 [N, 10]
    figures: Evaluation

    @property
    def name(self) -> str:
        """Name to print."""
        count = len(self.runs)
        return self.runs[0].name if count == 1 else f"ensemble of {count}"


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    arguments = parse(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        run(arguments, make_console())
    return command.status


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or that of many seeds"
    )
    parser.add_argument("--dataset", choices=DATASETS, help="another than it was trained on")
    parser.add_argument(
        "--views", type=int, default=1, help="slightly moved copies of each image to average over"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="where to write, in place of the run's folder",
    )
    add_common_options(parser)
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Evaluate each network on all test images, and all networks as an ensemble."""
    runs = [run for path in arguments.runs for run in load_runs(path)]
    check_each_once(runs)
    dataset = arguments.dataset or common_dataset(runs)
    images = data.load(dataset, arguments.data_dir, arguments.idx_dir)
    labels = images.test_labels
    evaluated = []
    for one in runs:
        predict = with_tta(make_predict(one), arguments.views)
        said = predict(images.test_images)
        evaluated.append(Evaluated([one], said, evaluation.evaluate(said, labels)))
    if len(runs) > 1:
        said = ensemble([one.said for one in evaluated])
        evaluated.append(Evaluated(runs, said, evaluation.evaluate(said, labels)))
    for one in evaluated:
        write(one, images, folder_of(one, arguments, dataset), arguments.views, dataset)
    if len(runs) == 1:
        print_table(console, digits_table(evaluated[0].figures))
    else:
        print_table(console, networks_table(evaluated, labels))
        print_line(console, LEGEND)
    print_line(console, line(evaluated[-1], dataset))


def folder_of(one: Evaluated, arguments: argparse.Namespace, dataset: str) -> Path:
    """Return the folder of figures and pictures; an ensemble uses --out or the first run's."""
    place = dataset if arguments.views == 1 else f"{dataset}-{arguments.views}views"
    if len(one.runs) > 1:
        return (arguments.out or arguments.runs[0] / run_folder.EVALUATION) / f"{place}-ensemble"
    path, seed = one.runs[0].path, one.runs[0].seed_folder
    if arguments.out is None:
        return path / run_folder.EVALUATION / seed / place
    if arguments.runs == [path]:
        return arguments.out / seed / place
    # Each of several runs has a folder, named by its path below the folder that they share.
    shared = os.path.commonpath([path.absolute().parent for path in arguments.runs])
    return arguments.out / os.path.relpath(path, shared) / seed / place


def check_each_once(runs: Sequence[Run]) -> None:
    """Check that no network counts twice in an ensemble.

    Raises:
        ConfigError: a network is named twice.
    """
    places = [(run.path.resolve(), run.seed) for run in runs]
    for number, place in enumerate(places):
        if place in places[:number]:
            raise ConfigError(f"{runs[number].name} is named twice; each network counts once")


def common_dataset(runs: Sequence[Run]) -> str:
    """Return the data set that all runs were trained on.

    Raises:
        ConfigError: the runs were trained on different data sets.
    """
    datasets = list(dict.fromkeys(run.config.dataset for run in runs))
    if len(datasets) > 1:
        raise ConfigError(
            f"the runs were trained on {' and '.join(datasets)}; "
            "pass --dataset, on which they are to be compared"
        )
    return datasets[0]


def write(one: Evaluated, images: data.Dataset, folder: Path, views: int, dataset: str) -> None:
    """Write figures and pictures to a folder."""
    with suggest_out(folder):
        folder.mkdir(parents=True, exist_ok=True)
    runs = [{"path": str(run.path), "config": json.loads(run.config.to_json())} for run in one.runs]
    what = {"dataset": dataset, "views": views, "runs": runs}
    content = json.dumps({**what, **one.figures.to_dict()}, indent=2) + "\n"
    run_folder.write(folder / FILE, content)
    plots.draw_all(one.figures, images.test_images, folder, one.name)


def digits_table(figures: Evaluation) -> Table:
    """Return a table with a line for each digit."""
    table = Table(title="Digits", title_justify="left")
    for column in ("digit", "images", "precision %", "recall %", "most often taken for (times)"):
        table.add_column(column, justify="right")
    for digit, row in enumerate(figures.confusion):
        wrong = np.where(np.arange(len(row)) == digit, 0, row)
        other = f"{wrong.argmax()} ({wrong.max()})" if wrong.any() else "-"
        precision, recall = (percent(of[digit]) for of in (figures.precision, figures.recall))
        table.add_row(str(digit), str(row.sum()), precision, recall, other)
    return table


def networks_table(evaluated: Sequence[Evaluated], labels: np.ndarray) -> Table:
    """Return a table with each network's line and its difference from the first."""
    *each, together = evaluated
    folder, names = relative_names([one.runs[0] for one in each])
    title = Text(f"Networks in {folder}", style="bold")
    table = Table(title=title, title_justify="left", box=box.SIMPLE)
    table.add_column("network", overflow="fold")
    for column in ("right %", "95 % interval", "loss", "ECE", "+", "-", "p"):
        table.add_column(column, justify="right", no_wrap=True)
    against = [("", "", ""), *differences(evaluated, labels)]
    rows = zip([*names, together.name], evaluated, against, strict=True)
    for name, one, difference in rows:
        figures = one.figures
        table.add_row(
            Text(name),
            f"{figures.accuracy:.2f}",
            f"{figures.low:.2f} to {figures.high:.2f}",
            f"{figures.loss:.4f}",
            f"{figures.calibration_error:.2f}",
            *difference,
        )
    return table


def differences(evaluated: Sequence[Evaluated], labels: np.ndarray) -> list[tuple[str, str, str]]:
    """Return each later network's gains, losses and corrected p-value against the first."""
    first, *others = evaluated
    compared = [evaluation.compare(first.said, one.said, labels) for one in others]
    corrected = stats.correct([p for _, _, p in compared])
    return [
        (str(gains), str(losses), "<0.001" if p < 0.001 else f"{p:.3f}")
        for (gains, losses, _), p in zip(compared, corrected, strict=True)
        if p is not None
    ]


def relative_names(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """Return the folder that the runs share, and their names in it."""
    folder = os.path.commonpath([run.path.parent.absolute() for run in runs])
    return os.path.relpath(folder), [os.path.relpath(run.name, folder) for run in runs]


def line(one: Evaluated, dataset: str) -> str:
    """Return the last line, with the result."""
    figures = one.figures
    return (
        f"{one.name}: {figures.accuracy:.2f} % of {figures.count:,} test images of {dataset} "
        f"(95 % interval {figures.low:.2f} to {figures.high:.2f}), loss {figures.loss:.4f}, "
        f"calibration error {figures.calibration_error:.2f} points"
    )


def percent(value: float | None) -> str:
    """Return a percentage with two decimals, or - for None."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(run_main(main))
