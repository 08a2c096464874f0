"""Plots of a drill-down, readable in black and white and with colour blindness."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmnist.analysis.plots.style import (
    BLACK,
    BLUE,
    ORANGE,
    digits_in_rows,
    log_by_epoch,
    save,
    with_grid,
)
from jaxmnist.analysis.results import VariantResults
from jaxmnist.analysis.stats import Summary
from jaxmnist.augment import augment
from jaxmnist.config import TrainConfig
from jaxmnist.optim import make_schedules
from jaxmnist.state import jit_once

# Training steps per epoch of MNIST.
STEPS = 468
DIGITS, COPIES = 10, 5
# Networks with more parameters get their own panel; on a shared axis, the others would merge.
LARGE = 100_000


def draw_all(
    networks: Sequence[VariantResults], images: np.ndarray, folder: Path, source: str
) -> None:
    """Draw every plot, as SVG.

    Args:
        networks: the seven networks with their runs.
        images: training images, of which some are shown, uint8 `[N, 28, 28]`.
        folder: the output folder; created if missing.
        source: the digest of the results, written into each file.

    Raises:
        OSError: a file cannot be written.
    """
    plots: dict[str, Callable[[], Figure]] = {
        "accuracy": lambda: accuracy(networks),
        "curves": lambda: curves(networks),
        "train-test-gap": lambda: train_test_gap(networks),
        "cost": lambda: cost(networks),
        "one-cycle": lambda: one_cycle(networks[-1].config.epochs),
        "augmentation": lambda: augmented(images),
    }
    folder.mkdir(exist_ok=True)
    for name, draw in plots.items():
        save(draw, folder / f"{name}.svg", source)


def accuracy(networks: Sequence[VariantResults]) -> Figure:
    """Draw test accuracy by network: every seed, interval of the mean, published accuracy."""
    figure, axes = with_grid(7.5, 4)
    for place, network in enumerate(networks):
        _draw_seeds(axes, place, network, "final_test_accuracy")
        if published := network.published:
            axes.plot(place + 0.34, published.headline, "x", color=ORANGE, markersize=7, mew=2)
    axes.plot([], [], "o", color=BLUE, fillstyle="none", label="a seed, final epoch")
    axes.plot([], [], "s", color=BLACK, label="mean and 95 % interval")
    axes.plot([], [], "x", color=ORANGE, mew=2, label="published, one run")
    _name_networks(axes, networks)
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right")
    return figure


def curves(networks: Sequence[VariantResults]) -> Figure:
    """Draw error by epoch: the mean over seeds, and a band from the lowest to the highest."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    panels = figure.subplots(2, 4, sharey=True).ravel()
    for axes, network in zip(panels, networks, strict=False):
        epochs = range(1, network.config.epochs + 1)
        for name, color, line in (("train", ORANGE, "--"), ("test", BLUE, "-")):
            runs = [run["curves"][f"{name}_accuracy"] for run in network.runs]
            errors = np.maximum(100 - np.array(runs), 0.01)
            axes.fill_between(epochs, errors.min(0), errors.max(0), color=color, alpha=0.25, lw=0)
            axes.plot(epochs, errors.mean(0), line, color=color, label=name)
        log_by_epoch(axes)
        axes.set_title(f"{network.name}, n = {len(network.runs)}", fontsize=9)
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    figure.supxlabel("epoch")
    figure.supylabel("error, %")
    return figure


def train_test_gap(networks: Sequence[VariantResults]) -> Figure:
    """Draw final train accuracy minus test accuracy, by network."""
    figure, axes = with_grid(7.5, 3.5)
    axes.axhline(0, color=BLACK, lw=0.8)
    for place, network in enumerate(networks):
        _draw_seeds(axes, place, network, "train_test_gap")
    _name_networks(axes, networks)
    axes.set_ylabel("train minus test accuracy, points")
    return figure


def cost(networks: Sequence[VariantResults]) -> Figure:
    """Draw test accuracy against parameters, with the published ones, and against training time."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    small, large, by_time = figure.subplots(1, 3, sharey=True, width_ratios=(4, 1.4, 4))
    for place, network in enumerate(networks):
        summary = network.summary("final_test_accuracy")
        by_parameters = large if network.parameters > LARGE else small
        if published := network.published:
            by_parameters.plot(network.parameters, published.headline, "x", color=ORANGE, mew=2)
        seconds = network.seconds_per_epoch * network.config.epochs
        for axes, x in ((by_parameters, network.parameters), (by_time, seconds)):
            _draw_interval(axes, x, summary)
            # Neighbours are close: names alternate between above left and below right.
            side, where = ("left", (7, -10)) if place % 2 else ("right", (-7, 4))
            axes.annotate(
                network.name, (x, summary.mean), where, textcoords="offset points", ha=side, size=8
            )
    small.plot([], [], "s", color=BLACK, label="mean and 95 % interval, final epoch")
    small.plot([], [], "x", color=ORANGE, mew=2, label="published, one run")
    small.legend(loc="lower right")
    small.set_ylabel("test accuracy, %")
    small.set_xlabel("parameters")
    large.set_xlabel("parameters, millions")
    sizes = [network.parameters for network in networks if network.parameters > LARGE]
    large.set_xticks(sizes, [f"{size / 1e6:.2f}" for size in sizes])
    by_time.set_xlabel("median epoch x epochs of a run, s")
    by_time.set_xscale("log")
    for axes in (small, large, by_time):
        axes.margins(x=0.3, y=0.15)
        axes.grid(alpha=0.3)
    return figure


def one_cycle(epochs: int) -> Figure:
    """Draw the learning rate and momentum of `gap` over all steps."""
    schedules = make_schedules(TrainConfig("gap", epochs=epochs), epochs * STEPS)
    steps = jnp.arange(epochs * STEPS)
    figure, axes = with_grid(6, 3)
    axes.plot(steps / STEPS, jit_once(schedules.learning_rate)(steps), color=BLUE)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate (line)")
    momentum = axes.twinx()
    momentum.plot(steps / STEPS, jit_once(schedules.momentum)(steps), "--", color=ORANGE)
    momentum.set_ylabel("momentum (dashes)")
    return figure


def augmented(images: np.ndarray) -> Figure:
    """Draw original digits in the first row, and augmented copies below."""
    originals = jnp.asarray(images[:DIGITS])
    keys = jax.random.split(jax.random.key(1), COPIES)
    copies = jit_once(jax.vmap(augment, in_axes=(0, None)))(keys, originals)
    return digits_in_rows([np.asarray(digits) for digits in (originals, *copies)])


def _draw_seeds(axes: Axes, place: int, network: VariantResults, metric: str) -> None:
    """Draw a dot per seed, side by side so that equal values are visible, and the interval."""
    values = list(network.by_seed(metric).values())
    offsets = np.linspace(-0.24, 0.06, len(values)) if len(values) > 1 else [0]
    axes.plot(place + np.array(offsets), values, "o", color=BLUE, fillstyle="none", markersize=4)
    _draw_interval(axes, place + 0.18, network.summary(metric))


def _draw_interval(axes: Axes, x: float, summary: Summary) -> None:
    axes.plot(x, summary.mean, "s", color=BLACK, markersize=4)
    if summary.low is not None and summary.high is not None:
        axes.vlines(x, summary.low, summary.high, color=BLACK)


def _name_networks(axes: Axes, networks: Sequence[VariantResults]) -> None:
    names = [f"{network.name}\nn = {len(network.runs)}" for network in networks]
    axes.set_xticks(range(len(networks)), names)
    axes.tick_params(axis="x", labelsize=8)
