"""Plots of an evaluation: reliability, confusion, most confident mistakes."""

import dataclasses
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jaxmnist.analysis.evaluation import Evaluation
from jaxmnist.analysis.plots.style import BLACK, BLUE, digits_in_rows, save, with_grid
from jaxmnist.data.dataset import CLASSES

COLUMNS = 6


def draw_all(evaluation: Evaluation, images: np.ndarray, folder: Path, source: str) -> None:
    """Draw reliability.png, confusion.png and mistakes.png.

    Args:
        evaluation: the evaluation to draw.
        images: the evaluated images, uint8 `[N, 28, 28]`.
        folder: the output folder.
        source: the name of the evaluated network, written into each file.

    Raises:
        OSError: a file cannot be written.
    """
    save(lambda: reliability(evaluation), folder / "reliability.png", source)
    save(lambda: confusion(evaluation), folder / "confusion.png", source)
    save(lambda: mistakes(evaluation, images), folder / "mistakes.png", source)


def reliability(evaluation: Evaluation) -> Figure:
    """Draw accuracy against confidence, and the number of predictions by confidence."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    filled = [dataclasses.astuple(one) for one in evaluation.bins if one.count]
    edges, _, counts, confidences, accuracies, lows, highs = zip(*filled, strict=True)
    above.plot([0, 1], [0, 100], "--", color=BLACK, lw=0.8, label="perfect calibration")
    error = f"this network, off by {evaluation.calibration_error:.2f} points on average"
    above.plot(confidences, accuracies, "o", color=BLUE, label=error)
    above.vlines(confidences, lows, highs, color=BLUE, label="95 % interval")
    above.set_ylabel("accuracy, %")
    above.legend(loc="lower right", fontsize=8)
    below.bar(edges, counts, 1 / len(evaluation.bins), align="edge", color=BLUE)
    below.set_yscale("log")
    below.set_ylabel("images")
    below.set_xlabel("confidence: the probability of the prediction")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return figure


def confusion(evaluation: Evaluation) -> Figure:
    """Draw the confusion matrix with counts; cells with more mistakes are darker."""
    figure, axes = with_grid(5.5, 5)
    axes.grid(visible=False)
    wrong = evaluation.confusion * (1 - np.eye(CLASSES, dtype=int))
    axes.imshow(wrong, cmap="Greys", vmax=max(1.5 * wrong.max(), 1))
    for (row, column), number in np.ndenumerate(evaluation.confusion):
        if number:
            weight = "bold" if row == column else "normal"
            axes.text(column, row, f"{number}", ha="center", va="center", size=8, weight=weight)
    axes.set_xticks(range(CLASSES))
    axes.set_yticks(range(CLASSES))
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    return figure


def mistakes(evaluation: Evaluation, images: np.ndarray) -> Figure:
    """Draw the most confident mistakes, most confident first."""
    if not evaluation.mistakes:
        figure = Figure(figsize=(4, 1))
        figure.text(0.5, 0.5, "no mistakes", ha="center")
        return figure
    digits = images[[one.index for one in evaluation.mistakes]]
    rows = [digits[start : start + COLUMNS] for start in range(0, len(digits), COLUMNS)]
    titles = [f"{m.label} read as {m.said}: {m.confidence:.0%}" for m in evaluation.mistakes]
    return digits_in_rows(rows, titles, room=1.2)
