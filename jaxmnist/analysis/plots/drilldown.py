"""Figures of a drill-down, readable in black and white and with colour blindness."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from jaxmnist.analysis import stats
from jaxmnist.analysis.plots.style import BLACK, BLUE, ORANGE, digits_in_rows, save, with_grid
from jaxmnist.analysis.results import Rung
from jaxmnist.analysis.stats import Spread
from jaxmnist.augment import augment
from jaxmnist.config import TrainConfig
from jaxmnist.optim import make_optimizer

# Training steps of one epoch of MNIST.
STEPS = 468
DIGITS, COPIES = 10, 5
# Networks with more parameters get their own panel; the others would merge into one line.
LARGE = 100_000


def draw_all(rungs: Sequence[Rung], images: np.ndarray, folder: Path, source: str) -> list[str]:
    """Draw every figure, as PNG and SVG.

    Args:
        rungs: the seven networks with their runs.
        images: training images to show some of, uint8 `[N, 28, 28]`.
        folder: the output folder; created if missing.
        source: the digest of the results, written into each file.

    Returns:
        The names of the figures, without file extensions.

    Raises:
        OSError: a file cannot be written.
    """
    figures: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: accuracy(rungs),
        "curves": lambda: curves(rungs),
        "train-test-gap": lambda: train_test_gap(rungs),
        "cost": lambda: cost(rungs),
        "one-cycle": lambda: one_cycle(rungs[-1].epochs),
        "augmentation": lambda: augmented(images),
    }
    folder.mkdir(exist_ok=True)
    for name, draw in figures.items():
        save(draw, [folder / f"{name}.png", folder / f"{name}.svg"], source)
    return list(figures)


def accuracy(rungs: Sequence[Rung]) -> Figure:
    """Draw test accuracy by rung: every seed, the interval of the mean, the published figure."""
    figure, axes = with_grid(7.5, 4)
    for place, rung in enumerate(rungs):
        values = list(rung.by_seed("final_test_accuracy").values())
        _dots(axes, place, values)
        _interval(axes, place + 0.18, stats.describe(values))
        if rung.published is not None:
            axes.plot(place + 0.34, rung.published.headline, "x", color=ORANGE, markersize=7, mew=2)
    axes.plot([], [], "o", color=BLUE, fillstyle="none", label="a seed, final epoch")
    axes.plot([], [], "s", color=BLACK, label="mean and 95 % interval")
    axes.plot([], [], "x", color=ORANGE, mew=2, label="published, one run")
    _name_rungs(axes, rungs)
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right")
    return figure


def curves(rungs: Sequence[Rung]) -> Figure:
    """Draw error by epoch: the mean over seeds, and a band from the lowest to the highest."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 4, sharey=True).ravel()
    for axes, rung in zip(panels, rungs, strict=False):
        epochs = range(1, rung.epochs + 1)
        for name, color, line in (("train", ORANGE, "--"), ("test", BLUE, "-")):
            runs = [run["curves"][f"{name}_accuracy"] for run in rung.runs]
            errors = np.maximum(100 - np.array(runs), 0.01)
            axes.fill_between(epochs, errors.min(0), errors.max(0), color=color, alpha=0.25, lw=0)
            axes.plot(epochs, errors.mean(0), line, color=color, label=name)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"{rung.name}, n = {len(rung.runs)}", fontsize=9)
        axes.grid(alpha=0.3)
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supxlabel("epoch")
    figure.supylabel("error, %")
    return figure


def train_test_gap(rungs: Sequence[Rung]) -> Figure:
    """Draw final train accuracy minus test accuracy, by rung."""
    figure, axes = with_grid(7.5, 3.5)
    axes.axhline(0, color=BLACK, lw=0.8)
    for place, rung in enumerate(rungs):
        values = list(rung.by_seed("train_test_gap").values())
        _dots(axes, place, values)
        _interval(axes, place + 0.18, stats.describe(values))
    _name_rungs(axes, rungs)
    axes.set_ylabel("train less test accuracy, points")
    return figure


def cost(rungs: Sequence[Rung]) -> Figure:
    """Draw test accuracy against parameters, with published figures, and against training time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    small, large, by_time = figure.subplots(1, 3, sharey=True, width_ratios=(4, 1.4, 4))
    for place, rung in enumerate(rungs):
        spread = stats.describe(list(rung.by_seed("final_test_accuracy").values()))
        by_parameters = large if rung.parameters > LARGE else small
        if rung.published is not None:
            by_parameters.plot(rung.parameters, rung.published.headline, "x", color=ORANGE, mew=2)
        seconds = rung.seconds_per_epoch * rung.epochs
        for axes, x in ((by_parameters, rung.parameters), (by_time, seconds)):
            _interval(axes, x, spread)
            # Neighbours are close: names alternate between above left and below right.
            side, where = ("left", (7, -10)) if place % 2 else ("right", (-7, 4))
            axes.annotate(
                rung.name, (x, spread.mean), where, textcoords="offset points", ha=side, size=8
            )
    small.plot([], [], "s", color=BLACK, label="mean and 95 % interval, final epoch")
    small.plot([], [], "x", color=ORANGE, mew=2, label="published, one run")
    small.legend(loc="lower right")
    small.set_ylabel("test accuracy, %")
    small.set_xlabel("parameters")
    large.set_xlabel("parameters, millions")
    sizes = [rung.parameters for rung in rungs if rung.parameters > LARGE]
    large.set_xticks(sizes, [f"{size / 1e6:.2f}" for size in sizes])
    by_time.set_xlabel("median epoch x epochs of a run, s")
    by_time.set_xscale("log")
    for axes in (small, large, by_time):
        axes.margins(x=0.3, y=0.15)
        axes.grid(alpha=0.3)
    return figure


def one_cycle(epochs: int) -> Figure:
    """Draw the learning rate and momentum of `gap` over all steps."""
    _, schedules = make_optimizer(TrainConfig("gap", epochs=epochs), epochs * STEPS)
    steps = jnp.arange(epochs * STEPS)
    figure, axes = with_grid(6, 3)
    axes.plot(steps / STEPS, schedules.learning_rate(steps), color=BLUE)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate (line)")
    momentum = axes.twinx()
    momentum.plot(steps / STEPS, schedules.momentum(steps), "--", color=ORANGE)
    momentum.set_ylabel("momentum (dashes)")
    return figure


def augmented(images: np.ndarray) -> Figure:
    """Draw original digits in the first row, and augmented copies below."""
    originals = jnp.asarray(images[:DIGITS])
    keys = jax.random.split(jax.random.key(0), COPIES)
    rows = [np.asarray(digits) for digits in (originals, *(augment(k, originals) for k in keys))]
    return digits_in_rows(rows)


def _dots(axes: Axes, place: int, values: Sequence[float]) -> None:
    """Draw a dot per seed, side by side so that equal values can be counted."""
    offsets = np.linspace(-0.24, 0.06, len(values)) if len(values) > 1 else [0]
    axes.plot(place + np.array(offsets), values, "o", color=BLUE, fillstyle="none", markersize=4)


def _interval(axes: Axes, x: float, spread: Spread) -> None:
    axes.plot(x, spread.mean, "s", color=BLACK, markersize=4)
    if spread.low is not None and spread.high is not None:
        axes.vlines(x, spread.low, spread.high, color=BLACK)


def _name_rungs(axes: Axes, rungs: Sequence[Rung]) -> None:
    axes.set_xticks(range(len(rungs)), [f"{r.name}\nn = {len(r.runs)}" for r in rungs])
    axes.tick_params(axis="x", labelsize=8)
