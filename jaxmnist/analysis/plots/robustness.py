"""Plot of the accuracy under shifts of the test images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmnist.analysis.plots.style import BLACK, PALETTE
from jaxmnist.analysis.robustness import DIGITS, Measured
from jaxmnist.analysis.shifts import SHIFTS

# One for each colour, for black and white.
MARKERS = ("o", "s", "^", "D", "v", "x", "P")


def accuracy_by_strength(networks: Sequence[Measured]) -> Figure:
    """Draw accuracy by strength, a panel per shift, and the accuracy on digits by other people.

    A line is the mean over the seeds of a network, a band extends from the lowest to the highest. A
    vertical line marks the moderate strength.
    """
    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(3, 4, sharey=True).ravel()
    for axes, name in zip(panels, SHIFTS, strict=False):
        _draw_shift(axes, name, networks)
    digits, *others = panels[len(SHIFTS) :]
    _draw_digits(digits, networks)
    for axes in others:
        axes.axis("off")
    others[0].legend(*panels[0].get_legend_handles_labels(), loc="center left", frameon=False)
    figure.supylabel("accuracy, %")
    return figure


def _draw_shift(axes: Axes, name: str, networks: Sequence[Measured]) -> None:
    shift = SHIFTS[name]
    axes.axvline(shift.moderate, color=BLACK, lw=0.6, ls=":")
    for place, network in enumerate(networks):
        values, style = network.accuracies(name), _style(place)
        low, high = values.min(axis=0), values.max(axis=0)
        axes.fill_between(shift.strengths, low, high, color=style["color"], alpha=0.2, lw=0)
        label = f"{network.name}, n = {len(network.runs)}"
        line = ("-", "--", ":")[place // len(PALETTE) % 3]
        axes.plot(shift.strengths, values.mean(axis=0), line, label=label, lw=1, **style)
    if shift.unit == "factor":
        axes.set_xscale("log")
        axes.set_xticks(shift.strengths, [f"{strength:g}" for strength in shift.strengths])
        axes.minorticks_off()
    axes.set_title(name, fontsize=9)
    axes.set_xlabel(shift.unit)
    axes.grid(alpha=0.3)


def _draw_digits(axes: Axes, networks: Sequence[Measured]) -> None:
    """Draw a marker per seed, network by network from left to right."""
    for place, network in enumerate(networks):
        values = list(network.by_seed(DIGITS).values())
        offsets = np.linspace(-0.25, 0.25, len(values)) if len(values) != 1 else [0]
        axes.plot(place + np.array(offsets), values, ls="", **_style(place))
    axes.set_title("scikit-learn's digits", fontsize=9)
    axes.set_xlabel("network")
    axes.set_xticks([])
    axes.grid(alpha=0.3)


def _style(place: int) -> dict[str, Any]:
    """Return colour and marker of a network; hollow markers show what is behind them."""
    return {
        "color": PALETTE[place % len(PALETTE)],
        "marker": MARKERS[place % len(MARKERS)],
        "markersize": 4,
        "fillstyle": "none",
    }
