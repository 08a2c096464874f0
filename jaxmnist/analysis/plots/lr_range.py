"""Plot of a learning rate range test."""

import numpy as np
from matplotlib.figure import Figure

from jaxmnist.analysis.lr_range import RangeTest
from jaxmnist.analysis.plots.style import BLACK, BLUE, ORANGE, with_grid


def loss_by_rate(found: RangeTest, name: str) -> Figure:
    """Draw the smoothed loss by learning rate: median and range over seeds, and the interval.

    Args:
        found: the result of the test.
        name: the name of the network, for the title.
    """
    figure, axes = with_grid(7.5, 4)
    finite = np.where(np.isfinite(found.smooth), found.smooth, np.nan)
    whole = ~np.isnan(finite).any(axis=0)
    rates, losses = found.rates[whole], finite[:, whole]
    axes.axvspan(found.low, found.high, color=ORANGE, alpha=0.2, label="suggested peak")
    axes.fill_between(
        rates, losses.min(axis=0), losses.max(axis=0), color=BLUE, alpha=0.3, label="all seeds"
    )
    axes.plot(rates, np.median(losses, axis=0), color=BLACK, label="median")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * float(losses[:, 0].max()))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss, smoothed")
    axes.set_title(f"{name}: learning rate range test, {len(losses)} seeds", loc="left")
    axes.legend(loc="upper left")
    return figure
