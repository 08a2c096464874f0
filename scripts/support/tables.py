"""Printed tables of a run's epochs and seeds, and of a network's parameters."""

from collections.abc import Iterable, Sequence
from statistics import mean, stdev
from typing import Any

from rich.table import Table

from jaxmnist.config import TrainConfig
from jaxmnist.models import model_of
from jaxmnist.models.description import describe, tabulate
from jaxmnist.runs.summary import Row

# The columns of a table: the header, the key of the value, and its format.
EPOCHS = (
    ("epoch", "epoch", "d"),
    ("train loss", "train_loss", ".4f"),
    ("train %", "train_accuracy", ".2f"),
    ("test loss", "test_loss", ".4f"),
    ("test %", "test_accuracy", ".2f"),
    ("rate", "learning_rate", ".3g"),
    ("images/s", "images_per_second", ",.0f"),
)
SEEDS = (
    ("seed", "seeds", "d"),
    ("train %", "final_train_accuracy", ".2f"),
    ("test loss", "final_test_loss", ".4f"),
    ("test %", "final_test_accuracy", ".2f"),
    ("best epoch %", "best_test_accuracy", ".2f"),
)

LEGEND = (
    "output: height, width, channels; MFLOP: of a forward pass of one image; field: receptive "
    "field, the side of the square of image pixels that an output pixel depends on, without "
    "borders; jump: distance between the squares of two neighbours; seen: share of the image that "
    "the central pixel depends on"
)


def make_table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 0, **options: Any
) -> Table:
    """Return a table to print.

    Args:
        columns: the headers.
        rows: the cells of each row.
        texts: the number of leading text columns, which are left-aligned and wrap on a narrow
            terminal; the other columns are numbers.
        options: further arguments of rich's `Table`, such as the title.
    """
    table = Table(title_justify="left", caption_justify="left", **options)
    for place, column in enumerate(columns):
        table.add_column(
            column,
            justify="left" if place < texts else "right",
            overflow="fold",
            no_wrap=0 < texts <= place,
        )
    for row in rows:
        table.add_row(*row)
    return table


def epochs_table(rows: Sequence[Row]) -> Table:
    """Return a table with a line per epoch; accuracies are in percent."""
    lines = [[number(row[key], form) for _, key, form in EPOCHS] for row in rows]
    return make_table([header for header, _, _ in EPOCHS], lines, title="Epochs")


def seeds_table(summary: dict[str, Any]) -> Table:
    """Return the table of a summary, with a line per seed; accuracies are in percent."""
    columns = [[number(value, form) for value in summary[key]] for _, key, form in SEEDS]
    headers = [header for header, _, _ in SEEDS]
    return make_table(headers, zip(*columns, strict=True), title="Seeds")


def layers_table(config: TrainConfig) -> Table:
    """Return the table of a network's layers, with their sums in the last line."""
    layers = tabulate(describe(model_of(config)))
    rows = [
        (
            row["layer"],
            "x".join(map(str, row["output"])),
            "x".join(map(str, row["kernel"] or ("-",))),
            f"{row['parameters']:,}" if row["parameters"] else "-",
            f"{row['mflop']:.3f}" if row["mflop"] else "-",
            str(row["receptive_field"]),
            str(row["jump"]),
            f"{100 * row['seen']:.0f} %",
        )
        for row in layers
    ]
    columns = ("layer", "output", "kernel", "params", "MFLOP", "field", "jump", "seen")
    table = make_table(columns, rows, texts=1, title=f"Layers of {config.name}", caption=LEGEND)
    table.add_section()
    parameters, mflop = (sum(row[key] for row in layers) for key in ("parameters", "mflop"))
    table.add_row("all", "", "", f"{parameters:,}", f"{mflop:.3f}", "", "", "")
    return table


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return values as mean ± standard deviation (n - 1), or a single value as it is."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def evaluated_images(config: TrainConfig, count: int) -> str:
    """Return the number and kind of a run's test images, such as "10,000 test images"."""
    kind = "test" if config.holdout is None else "held-out training"
    return f"{count:,} {kind} images"


def number(value: float | None, form: str = ".2f") -> str:
    """Return a number as text, or - for None."""
    return "-" if value is None else format(value, form)
