"""What the figures have in common: colours, sizes, how they are kept."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context, rcdefaults
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette (Color Universal Design, 2008): told apart by everybody, and by lightness.
BLUE, ORANGE, BLACK = "#0072B2", "#E69F00", "#000000"
PALETTE = (BLUE, ORANGE, BLACK, "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
DOTS_PER_INCH = 110
# What a digit takes, in inches.
DIGIT = 0.6


def save(draw: Callable[[], Figure], files: Sequence[Path], source: str) -> None:
    """Draws a figure into files; what is drawn the same gives the same files.

    Args:
        draw: draws it.
        files: where it goes, as PNG or SVG by their endings.
        source: what it is made from, written into each file.

    Raises:
        OSError: the disk does not take them.
    """
    # Ids in the file that do not change from one time to the next, and text as text.
    with rc_context():
        rcdefaults()  # not those of the user's matplotlibrc, as text.usetex
        with rc_context({"svg.hashsalt": "jaxmnist", "svg.fonttype": "none", "font.size": 9}):
            figure = draw()
            for file in files:
                dated = {"Date": None} if file.suffix == ".svg" else {}
                metadata = {"Description": source, **dated}
                figure.savefig(file, dpi=DOTS_PER_INCH, metadata=metadata)


def with_grid(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def digits_in_rows(
    rows: Sequence[np.ndarray], titles: Sequence[str] = (), room: float = DIGIT
) -> Figure:
    """Pictures of digits, side by side.

    Args:
        rows: uint8 `[columns, 28, 28]` each; the last may have fewer.
        titles: above each picture, row by row; none, if there are none.
        room: the height that a row takes, in inches.
    """
    columns = len(rows[0])
    figure = Figure(figsize=(columns * room, len(rows) * room), layout="constrained")
    panels = figure.subplots(len(rows), columns, squeeze=False).ravel()
    digits = [digit for row in rows for digit in row]
    for axes in panels:
        axes.axis("off")
    for digit, axes in zip(digits, panels, strict=False):
        axes.imshow(digit, cmap="gray", vmin=0, vmax=255)
    for title, axes in zip(titles, panels, strict=False):
        axes.set_title(title, fontsize=8)
    return figure
