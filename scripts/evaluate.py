"""Evaluate trained networks: `python scripts/evaluate.py runs/gap-seed0`.

Print the accuracy, calibration and mistakes of a network, and write them with plots to
evaluation/DATASET/ in the run's folder. Several networks are compared, and also evaluated as an
ensemble, the mean of their log-probabilities.
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
from support.command import (
    Command,
    add_common_options,
    run_main,
    suggest_out,
    use_compilation_cache,
    user_path,
)
from support.output import make_console, print_line, print_table
from support.tables import make_table, number

from jaxmnist import data
from jaxmnist.analysis import evaluation, report, stats
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
    "+: images that only this network gets right, -: images that only the first one gets right; "
    "p: McNemar's exact test of the two, corrected for all lines by Holm's method"
)


class Evaluated(NamedTuple):
    """A network or an ensemble, its log-probabilities, and its evaluation."""

    runs: Sequence[Run]
    log_probs: np.ndarray  # float32 [N, 10]
    metrics: Evaluation

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
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or a pretrained network"
    )
    parser.add_argument("--dataset", choices=DATASETS, help="by default the training's data set")
    parser.add_argument(
        "--views", type=int, default=1, help="number of slightly transformed copies to average"
    )
    parser.add_argument(
        "--out",
        type=user_path,
        metavar="FOLDER",
        help="the output folder, by default in the run's folder",
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
    networks = [[run] for run in runs]
    log_probs = [with_tta(make_predict(run), arguments.views)(images.test_images) for run in runs]
    if len(runs) > 1:
        networks.append(runs)
        log_probs.append(ensemble(log_probs))
    evaluated = [
        Evaluated(network, each, evaluation.evaluate(each, labels))
        for network, each in zip(networks, log_probs, strict=True)
    ]
    for one in evaluated:
        write(one, images, folder_of(one, arguments, dataset), arguments.views, dataset)
    if len(runs) == 1:
        print_table(console, digits_table(evaluated[0].metrics))
    else:
        print_table(console, networks_table(evaluated, labels))
        print_line(console, LEGEND)
    print_line(console, line(evaluated[-1], dataset))


def folder_of(one: Evaluated, arguments: argparse.Namespace, dataset: str) -> Path:
    """Return the folder of metrics and plots; an ensemble uses --out or the first run's."""
    place = dataset if arguments.views == 1 else f"{dataset}-{arguments.views}views"
    if len(one.runs) > 1:
        return (arguments.out or one.runs[0].path / run_folder.EVALUATION) / f"{place}-ensemble"
    path, seed = one.runs[0].path, one.runs[0].seed_folder
    if arguments.out is None:
        return path / run_folder.EVALUATION / seed / place
    if len(arguments.runs) == 1:
        return arguments.out / seed / place
    # Several runs have one folder each, named by the path below their common folder.
    shared = os.path.commonpath([path.absolute().parent for path in arguments.runs])
    return arguments.out / os.path.relpath(path, shared) / seed / place


def check_each_once(runs: Sequence[Run]) -> None:
    """Check that each network occurs only once in an ensemble.

    Raises:
        ConfigError: a network occurs twice.
    """
    places = [(run.path.resolve(), run.config.seed) for run in runs]
    for run, place in zip(runs, places, strict=True):
        if places.count(place) > 1:
            raise ConfigError(f"{run.name} is named twice; name each network once")


def common_dataset(runs: Sequence[Run]) -> str:
    """Return the data set that all runs were trained on.

    Raises:
        ConfigError: the runs were trained on different data sets.
    """
    datasets = list(dict.fromkeys(run.config.dataset for run in runs))
    if len(datasets) > 1:
        raise ConfigError(
            f"the runs were trained on {' and '.join(datasets)}; "
            "pass --dataset to compare them on one"
        )
    return datasets[0]


def write(one: Evaluated, images: data.Dataset, folder: Path, views: int, dataset: str) -> None:
    """Write metrics and plots to a folder."""
    with suggest_out(folder):
        folder.mkdir(parents=True, exist_ok=True)
    runs = [{"path": str(run.path), "config": run.config.to_dict()} for run in one.runs]
    what = {"dataset": dataset, "views": views, "runs": runs}
    content = json.dumps({**what, **one.metrics.to_dict()}, indent=2) + "\n"
    run_folder.write(folder / FILE, content)
    plots.draw_all(one.metrics, images.test_images, folder, one.name)


def digits_table(metrics: Evaluation) -> Table:
    """Return a table with a line for each digit."""
    rows = []
    for digit, row in enumerate(metrics.confusion):
        wrong = np.where(np.arange(len(row)) == digit, 0, row)
        other = f"{wrong.argmax()} ({wrong.max()})" if wrong.any() else "-"
        precision, recall = (number(of[digit]) for of in (metrics.precision, metrics.recall))
        rows.append((str(digit), str(row.sum()), precision, recall, other))
    columns = ("digit", "images", "precision %", "recall %", "most frequent mistake (times)")
    return make_table(columns, rows, title="Digits")


def networks_table(evaluated: Sequence[Evaluated], labels: np.ndarray) -> Table:
    """Return a table with each network's line and its difference from the first."""
    *each, ensemble = evaluated
    folder = os.path.commonpath([one.runs[0].path.parent.absolute() for one in each])
    names = [os.path.relpath(one.name, folder) for one in each]
    against = [("", "", ""), *differences(evaluated, labels)]
    rows = [
        (
            name,
            f"{metrics.accuracy:.2f}",
            f"{metrics.low:.2f} to {metrics.high:.2f}",
            f"{metrics.loss:.4f}",
            f"{metrics.calibration_error:.2f}",
            *difference,
        )
        for name, (_, _, metrics), difference in zip(
            [*names, ensemble.name], evaluated, against, strict=True
        )
    ]
    columns = ("network", "right %", "95 % interval", "loss", "ECE", "+", "-", "p")
    return make_table(
        columns, rows, texts=1, title=f"Networks in {os.path.relpath(folder)}", box=box.SIMPLE
    )


def differences(evaluated: Sequence[Evaluated], labels: np.ndarray) -> list[tuple[str, str, str]]:
    """Return each later network's gains, losses and corrected p-value against the first."""
    first, *others = evaluated
    compared = [evaluation.compare(first.log_probs, one.log_probs, labels) for one in others]
    corrected = stats.holm([p for _, _, p in compared])
    return [
        (str(gains), str(losses), report.p_value(p))
        for (gains, losses, _), p in zip(compared, corrected, strict=True)
    ]


def line(one: Evaluated, dataset: str) -> str:
    """Return the last line of output, with the result."""
    metrics = one.metrics
    return (
        f"{one.name}: {metrics.accuracy:.2f} % of {metrics.count:,} test images of {dataset} "
        f"(95 % interval {metrics.low:.2f} to {metrics.high:.2f}), loss {metrics.loss:.4f}, "
        f"calibration error {metrics.calibration_error:.2f} points"
    )


if __name__ == "__main__":
    sys.exit(run_main(main))
