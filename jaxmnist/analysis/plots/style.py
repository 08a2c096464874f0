"""Shared style of the plots: colours, sizes, saving."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rcdefaults
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

# Okabe and Ito's palette (Color Universal Design, 2008), safe for colour blindness and greyscale.
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
PALETTE = (BLUE, ORANGE, BLACK, "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DOTS_PER_INCH = 110
# Side of a digit's panel, in inches.
DIGIT = 0.6


def save(draw: Callable[[], Figure], file: Path, source: str) -> None:
    """Draw a figure and save it to a file; the same figure gives the same file.

    Args:
        draw: the function that draws the figure.
        file: the output file, PNG or SVG by extension.
        source: the source of the figure, written into the file.

    Raises:
        OSError: the file cannot be written.
    """
    # A fixed salt makes SVG ids reproducible; text is stored as text.
    with rc_context():
        rcdefaults()  # ignore the user's matplotlibrc, such as text.usetex
        with rc_context({"svg.hashsalt": "jaxmnist", "svg.fonttype": "none", "font.size": 9}):
            undated = {"Date": None} if file.suffix == ".svg" else {}
            metadata = {"Description": source, **undated}
            draw().savefig(file, dpi=DOTS_PER_INCH, metadata=metadata)


def with_grid(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure with one pair of axes and a grid; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def log_by_epoch(axes: Axes) -> None:
    """Give axes a logarithmic scale for errors or losses, whole numbers of epochs, and a grid."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def digits_in_rows(
    rows: Sequence[np.ndarray], titles: Sequence[str] = (), room: float = DIGIT
) -> Figure:
    """Draw images of digits in rows.

    Args:
        rows: images, uint8 `[columns, 28, 28]` each; the last row may be shorter.
        titles: titles above the images, row by row; empty for none.
        room: the side of an image's panel, in inches.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(columns * room, len(rows) * room), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False).ravel()
    digits = [digit for row in rows for digit in row]
    for axes in panels:
        axes.axis("off")
    for digit, axes in zip(digits, panels, strict=False):
        # Without interpolation, an SVG file holds the pixels themselves, and stays small.
        axes.imshow(digit, cmap="gray", vmin=0, vmax=255, interpolation="none")
    for title, axes in zip(titles, panels, strict=False):
        axes.set_title(title, fontsize=8)
    return figure
