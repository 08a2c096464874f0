"""Printed tables of a run's epochs and seeds, and of a network's parameters."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

import jax
from rich.table import Table

from jaxmnist.config import TrainConfig
from jaxmnist.runs.setup import count_parameters
from jaxmnist.runs.summary import Row


def epochs_table(rows: Sequence[Row]) -> Table:
    """Return a table with a line per epoch; accuracies are in percent."""
    columns = ("epoch", "train loss", "train %", "test loss", "test %", "rate", "images/s")
    table = _table("Epochs", columns)
    for row in rows:
        table.add_row(
            str(row["epoch"]),
            _number(row["train_loss"], ".4f"),
            _number(row["train_accuracy"], ".2f"),
            _number(row["test_loss"], ".4f"),
            _number(row["test_accuracy"], ".2f"),
            _number(row["learning_rate"], ".3g"),
            _number(row["images_per_second"], ",.0f"),
        )
    return table


def seeds_table(summary: dict[str, Any]) -> Table:
    """Return a summary.json's table with a line per seed; accuracies are in percent."""
    table = _table("Seeds", ("seed", "train %", "test loss", "test %", "best epoch %"))
    columns = zip(
        summary["seeds"],
        summary["final_train_accuracy"],
        summary["final_test_loss"],
        summary["final_test_accuracy"],
        summary["best_test_accuracy"],
        strict=True,
    )
    for seed, train_accuracy, test_loss, test_accuracy, best in columns:
        table.add_row(
            str(seed),
            _number(train_accuracy, ".2f"),
            _number(test_loss, ".4f"),
            _number(test_accuracy, ".2f"),
            _number(best, ".2f"),
        )
    return table


def parameters_table(params: Any) -> Table:
    """Return a table with a line per array: name, shape and size; and the total size."""
    table = _table("Parameters", ("array", "shape", "numbers"))
    for path, leaf in jax.tree.leaves_with_path(params):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        table.add_row(name, " x ".join(map(str, leaf.shape)), f"{leaf.size:,}")
    table.add_section()
    table.add_row("all", "", f"{count_parameters(params):,}")
    return table


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Return the values' mean ± standard deviation (n - 1); a single value alone."""
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{mean(values):.{digits}f} ± {stdev(values):.{digits}f}"


def evaluated_images(config: TrainConfig, count: int) -> str:
    """Return the number and kind of a run's test images, as "10,000 test images"."""
    kind = "test" if config.holdout is None else "held-out training"
    return f"{count:,} {kind} images"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == "array" else "right")
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
