import pytest
from rich.console import Console
from support.tables import epochs_table, evaluated_images, layers_table, seeds_table, spread

from jaxmnist import TrainConfig
from tests.conftest import SCRIPTS
from tests.test_results import finished


def shown(table, width=100) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_epochs_table():
    row = {
        "epoch": 2,
        "train_loss": 0.51234,
        "train_accuracy": 87.654,
        "test_loss": None,
        "test_accuracy": 99.416,
        "learning_rate": 0.015,
        "images_per_second": 12345.6,
    }
    line = next(line for line in shown(epochs_table([row])).splitlines() if "0.5123" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["2", "0.5123", "87.65", "-", "99.42", "0.015", "12,346"]


def test_seeds_table():
    summary = {
        "seeds": [3, 7],
        "final_train_accuracy": [98.154, None],
        "final_test_loss": [0.01956, None],
        "final_test_accuracy": [99.416, None],
        "best_test_accuracy": [99.43, None],
    }
    lines = [line for line in shown(seeds_table(summary)).splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert cells == [["3", "98.15", "0.0196", "99.42", "99.43"], ["7", "-", "-", "-", "-"]]


def test_spread_worked_by_hand():
    assert spread([99.4]) == "99.40"
    assert spread([99.3, 99.4, 99.5]) == "99.40 ± 0.10"  # n - 1
    assert spread([1.0, 2.0], digits=4) == "1.5000 ± 0.7071"


def test_layers_table_at_80_columns():
    lines = shown(layers_table(TrainConfig("gap")), width=80).splitlines()
    assert max(map(len, lines)) <= 80
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]
    assert ["conv1", "24x24x8", "3x3", "288", "0.332", "5", "1", "3 %"] in rows
    assert ["global_avg_pool0", "1x1x18", "-", "-", "-", "28", "2", "100 %"] in rows
    assert ["all", "", "", "7,364", "1.174", "", "", ""] in rows


@pytest.mark.parametrize(
    ("holdout", "images"),
    [(None, "10,000 test images"), (5000, "5,000 held-out training images")],
)
def test_images_that_were_held_out_are_no_test_images(monkeypatch, holdout, images):
    monkeypatch.syspath_prepend(SCRIPTS)
    import train

    run = finished(holdout=holdout)
    run.summary.update(variant="gap", seeds=[0], test_count=holdout or 10000)
    assert evaluated_images(run.config, run.summary["test_count"]) == images
    assert f": 99.40 % of {images} (best epoch" in train.describe_result(run, 1.0)
    for name in ("final_test_accuracy", "best_test_accuracy"):
        run.summary[name] = [99.4, None, 99.4]
    run.summary["seeds"] = [0, 1, 2]
    expected = f", 2 of 3 seeds: 99.40 ± 0.00 % of {images} (99.40 to 99.40, best"
    assert expected in train.describe_result(run, 1.0)
