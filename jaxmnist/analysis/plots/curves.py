"""Learning curves of runs."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxmnist.analysis.plots.style import PALETTE, log_by_epoch
from jaxmnist.runs.summary import Row

# The marker changes each time all colours are used.
MARKERS = ("", "s", "^", "D", "v", "x")
# A logarithmic axis cannot show an error of 0 %.
LEAST_ERROR = 0.01


def curves(runs: Mapping[str, Sequence[Row]], held_out: Collection[str] = ()) -> Figure:
    """Draw error and loss by epoch, on training images (dashed) and test images (solid).

    Args:
        runs: the rows of each run; several seeds are drawn as their mean and a band from the lowest
            to the highest.
        held_out: the names of the runs tested on held-out training images.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    error, loss = figure.subplots(1, 2)
    names = []
    for place, (name, rows) in enumerate(runs.items()):
        repeat, color = divmod(place, len(PALETTE))
        style = {"color": PALETTE[color], "marker": MARKERS[repeat % len(MARKERS)]}
        for part, line in (("train", "--"), ("test", "-")):
            shown = "held out" if part == "test" and name in held_out else part
            names.append(f"{name}, {shown}")
            errors = {
                epoch: np.maximum(100 - values, LEAST_ERROR)
                for epoch, values in by_epoch(rows, f"{part}_accuracy").items()
            }
            _draw(error, errors, line, style)
            _draw(loss, by_epoch(rows, f"{part}_loss"), line, style)
    error.set_ylabel("error, %")
    loss.set_ylabel("loss, nats an image")
    for axes in (error, loss):
        log_by_epoch(axes)
        axes.set_xlabel("epoch")
    # Folder names may contain characters that matplotlib would parse as math.
    legend = error.legend(error.lines, names, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure


def by_epoch(rows: Sequence[Row], metric: str) -> dict[int, np.ndarray]:
    """Return the values of a metric over seeds, by epoch; None values are skipped."""
    values = defaultdict(list)
    for row in rows:
        if row[metric] is not None:
            values[row["epoch"]].append(row[metric])
    return {epoch: np.array(values[epoch]) for epoch in sorted(values)}


def _draw(
    axes: Axes, values: Mapping[int, np.ndarray], line: str, style: Mapping[str, str]
) -> None:
    epochs, of_seeds = list(values), list(values.values())
    if any(len(each) > 1 for each in of_seeds):
        low, high = ([end(each) for each in of_seeds] for end in (np.min, np.max))
        axes.fill_between(epochs, low, high, color=style["color"], alpha=0.2, lw=0)
    # A single point is visible only with a marker; a hollow marker stands for a dashed line.
    marker = style["marker"] or ("o" if len(epochs) == 1 else "")
    fill = "none" if line == "--" else "full"
    means = [each.mean() for each in of_seeds]
    look = {"color": style["color"], "marker": marker, "fillstyle": fill, "markersize": 5}
    axes.plot(epochs, means, line, **look)
