"""Evaluates trained networks: `python scripts/evaluate.py runs/gap-seed0`.

Prints how often a network is right, how sure it is and where it errs, and writes the same with
pictures into the run's folder, in evaluation/DATASET/. Several networks are compared, and evaluated
together as an ensemble: the mean of their log-probabilities.
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

if __name__ == "__main__":
    # Neither `python -m scripts.evaluate` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    # In IPython (%run) Ctrl-C must go on to stop a cell, not the session.
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN and not hasattr(sys, "ps1"):
        # Ctrl-C ends it, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text
from support.command import failed, needing_out, remember_compiled, run_main, user_path
from support.output import make_console, print_line, print_table

from jaxmnist import data
from jaxmnist.analysis import evaluation, stats
from jaxmnist.analysis.evaluation import Evaluation
from jaxmnist.analysis.plots import evaluation as plots
from jaxmnist.config import ConfigError
from jaxmnist.inference.predict import load_runs, make_predict
from jaxmnist.inference.views import together, with_views
from jaxmnist.recipes import DATASETS
from jaxmnist.runs import run_folder
from jaxmnist.runs.run import Run

FILE = "evaluation.json"
LEGEND = (
    "+: images that only it gets right, -: those that only the first network does; "
    "p: McNemar's exact test of the two, corrected for all lines by Holm's method"
)


class Evaluated(NamedTuple):
    """A network or an ensemble, what it says of each image, and what that is worth."""

    runs: Sequence[Run]
    said: np.ndarray  # log-probabilities, float32 [N, 10]
    figures: Evaluation

    @property
    def name(self) -> str:
        """For people."""
        count = len(self.runs)
        return str(self.runs[0].path) if count == 1 else f"ensemble of {count}"


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    arguments = parse(argv)
    try:
        remember_compiled()
        run(arguments, make_console())
        return 0
    except Exception as error:
        return failed(error, arguments.debug)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
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
    parser.add_argument("--data-dir", type=user_path, help="as in scripts/train.py")
    parser.add_argument("--idx-dir", type=user_path, help="as in scripts/train.py")
    parser.add_argument("--debug", action="store_true", help="print a traceback with an error")
    return parser.parse_args(argv)


def run(arguments: argparse.Namespace, console: Console) -> None:
    """Evaluates each network on all test images, and all together."""
    runs = [run for path in arguments.runs for run in load_runs(path)]
    check_each_once(runs)
    dataset = arguments.dataset or common_dataset(runs)
    images = data.load(dataset, arguments.data_dir, arguments.idx_dir)
    labels = images.test_labels
    evaluated = []
    for one in runs:
        predict = with_views(make_predict(one), arguments.views)
        said = predict(images.test_images)
        evaluated.append(Evaluated([one], said, evaluation.evaluate(said, labels)))
    if len(runs) > 1:
        said = together([one.said for one in evaluated])
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
    """Where figures and pictures go: those of an ensemble to what was named first."""
    place = dataset if arguments.views == 1 else f"{dataset}-{arguments.views}views"
    if len(one.runs) > 1:
        return (arguments.out or arguments.runs[0] / run_folder.EVALUATION) / f"{place}-ensemble"
    if arguments.out is None:
        return one.runs[0].path / run_folder.EVALUATION / place
    if arguments.runs == [one.runs[0].path]:
        return arguments.out / place
    # Several runs have a folder each, by their names below the folder that they share.
    shared = os.path.commonpath([path.absolute().parent for path in arguments.runs])
    return arguments.out / os.path.relpath(one.runs[0].path, shared) / place


def check_each_once(runs: Sequence[Run]) -> None:
    """Keeps a network from counting twice in an ensemble.

    Raises:
        ConfigError: one is named twice.
    """
    paths = [run.path.resolve() for run in runs]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ConfigError(f"{runs[number].path} is named twice; each network counts once")


def common_dataset(runs: Sequence[Run]) -> str:
    """What all runs were trained on.

    Raises:
        ConfigError: it is not the same.
    """
    datasets = list(dict.fromkeys(run.config.dataset for run in runs))
    if len(datasets) > 1:
        raise ConfigError(
            f"the runs were trained on {' and '.join(datasets)}; "
            "pass --dataset, on which they are to be compared"
        )
    return datasets[0]


def write(one: Evaluated, images: data.Dataset, folder: Path, views: int, dataset: str) -> None:
    """Puts figures and pictures into a folder."""
    with needing_out(folder):
        folder.mkdir(parents=True, exist_ok=True)
    runs = [{"path": str(run.path), "config": json.loads(run.config.to_json())} for run in one.runs]
    what = {"dataset": dataset, "views": views, "runs": runs}
    content = json.dumps({**what, **one.figures.to_dict()}, indent=2) + "\n"
    run_folder.write(folder / FILE, content)
    plots.draw_all(one.figures, images.test_images, folder, one.name)


def digits_table(figures: Evaluation) -> Table:
    """A line for each digit."""
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
    """Return a line for each network, with its difference from the first."""
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
    """Return gains, losses and the corrected p-value of all but the first against the first."""
    first, *others = evaluated
    compared = [evaluation.compare(first.said, one.said, labels) for one in others]
    corrected = stats.correct([p for _, _, p in compared])
    return [
        (str(gains), str(losses), "<0.001" if p < 0.001 else f"{p:.3f}")
        for (gains, losses, _), p in zip(compared, corrected, strict=True)
        if p is not None
    ]


def relative_names(runs: Sequence[Run]) -> tuple[str, list[str]]:
    """The folder that runs have in common, and their names in it."""
    folder = os.path.commonpath([run.path.parent.absolute() for run in runs])
    return os.path.relpath(folder), [os.path.relpath(run.path, folder) for run in runs]


def line(one: Evaluated, dataset: str) -> str:
    """The last line: what it came to."""
    figures = one.figures
    return (
        f"{one.name}: {figures.accuracy:.2f} % of {figures.count:,} test images of {dataset} "
        f"(95 % interval {figures.low:.2f} to {figures.high:.2f}), loss {figures.loss:.4f}, "
        f"calibration error {figures.calibration_error:.2f} points"
    )


def percent(value: float | None) -> str:
    """Of nothing there is none."""
    return "-" if value is None else f"{value:.2f}"


if __name__ == "__main__":
    sys.exit(run_main(main))
