"""What a training shows, worked by hand."""

import importlib
import io
from pathlib import Path

import pytest
from rich.console import Console

from jaxmnist.runs.setup import EpochDone, Failed, Progress, Started


@pytest.fixture(scope="module")
def display():
    return importlib.import_module("support.display")


def row(seed, epoch, accuracy, test_loss: float | None = 0.03):
    return {
        "seed": seed,
        "epoch": epoch,
        "train_loss": 0.06,
        "train_accuracy": 98.0,
        "test_loss": test_loss,
        "test_accuracy": accuracy,
        "train_seconds": 2.5,
    }


def progress(seeds, epoch, step):
    return Progress(seeds, epoch, step, 0.0651, 98.15, 0.00123, 8123.4)


def seeds_started(steps, mapping="processes", warnings=()):
    out = Path("runs/a")
    return Started(out, out, 60000, steps, 7020, mapping, list(warnings))


def printed(display, seeds, *events):
    console = Console(file=io.StringIO(), width=80)
    with display.Lines(console, display.ProgressTracker(seeds, 15)) as lines:
        for event in events:
            lines.show(event)
    return console.file.getvalue().splitlines()


def test_one_seed_is_not_named(display):
    start = Started(Path("runs/a"), Path("runs/a"), 60000, {3: 0}, 7020, "loop", [])
    assert printed(display, [3], start, EpochDone([row(3, 1, 99.0)])) == [
        "training 7020 steps over 60,000 images into runs/a",
        "epoch 1/15: train loss 0.0600, 98.00 %; test loss 0.0300, 99.00 %; 2.5 s",
    ]


def test_seeds_one_after_another(display):
    lines = printed(
        display,
        (3, 7, 11),
        seeds_started({3: 0, 7: 0, 11: 0}, "loop"),
        progress((3,), 1, 468),
        EpochDone([row(3, 1, 99.0)]),
        progress((3,), 15, 7020),
        EpochDone([row(3, 15, 99.4, test_loss=None)]),
    )
    assert lines[:3] == [
        "training seeds 3, 7, 11 (loop), 7020 steps each over 60,000 images into runs/a",
        "seed 3, epoch 1/15: train loss 0.0600, 98.00 %; test loss 0.0300, 99.00 %; 2.5 s",
        "seed 3, epoch 15/15: train loss 0.0600, 98.00 %; test loss -, 99.40 %; 2.5 s",
    ]
    assert lines[3].startswith("1 of 3 seeds: test 99.40 % (1 seed, epoch 15), ")
    assert lines[3].endswith(" left")


def test_seeds_side_by_side_share_a_line(display):
    start = seeds_started({0: 0, 1: 0, 2: 0}, "vmap")
    done = EpochDone([row(0, 2, 99.3), row(1, 2, 99.4), row(2, 2, 99.5)])
    assert printed(display, (0, 1, 2), start, done)[1] == (
        "seeds 0 to 2, epoch 2/15: train loss 0.0600 ± 0.0000, 98.00 ± 0.00 %; "
        "test loss 0.0300 ± 0.0000, 99.40 ± 0.10 %; 7.5 s"
    )


@pytest.mark.parametrize(
    ("steps", "line"),
    [
        (
            {0: 7020, 1: 500, 2: 0},
            "training seeds 0 to 2 (processes), 7020 steps each over 60,000 images into runs/a, "
            "continuing at step 7520 of 21060, 1 seeds finished",
        ),
        ({0: 7020, 1: 7020}, "the runs in runs/a are finished: 2 of 2 seeds"),
    ],
)
def test_resumed_seeds(display, steps, line):
    start = seeds_started(steps, warnings=["device was an abacus"])
    assert printed(display, list(steps), start) == [line, "note: device was an abacus"]


def test_the_spread_is_over_the_seeds_that_are_furthest(display):
    tracker = display.ProgressTracker((0, 1, 2), 15)
    assert tracker.accuracy() == ""
    for event in (row(0, 1, 90.0), row(0, 2, 99.0), row(1, 1, 91.0), row(2, 2, 99.2)):
        tracker.take(EpochDone([event]))
    assert tracker.accuracy() == "test 99.10 ± 0.14 % (2 seeds, epoch 2)"


def test_time_left(display, monkeypatch):
    now = iter([100.0, 130.0, 130.0, 130.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(now))
    tracker = display.ProgressTracker((0, 1), 15)
    tracker.take(seeds_started({0: 7020, 1: 0}))
    assert tracker.time_left() == ""
    tracker.take(progress((1,), 1, 20))
    assert tracker.time_left() == ""
    tracker.take(progress((1,), 2, 1020))
    assert (tracker.done, tracker.total) == (8040, 14040)
    assert tracker.time_left() == "3 min left"  # 30 s for 1,000 steps, 6,000 to go
    tracker.take(progress((1,), 15, 6020))
    assert tracker.time_left() == "5 s left"


def test_a_failed_seed_does_not_count(display):
    tracker = display.ProgressTracker((0, 1), 15)
    tracker.take(seeds_started({0: 100, 1: 200}))
    tracker.take(EpochDone([row(1, 1, 10.0)]))
    failed = Failed(1, "the loss became nan")
    assert printed(display, (0, 1), failed) == ["seed 1 failed: the loss became nan"]
    tracker.take(failed)
    tracker.take(EpochDone([row(1, 2, 10.0)]))  # of the epoch in which it failed
    assert (tracker.done, tracker.total, tracker.count, tracker.accuracy()) == (100, 7020, 2, "")


def shown(display, tracker, *events):
    """The bars on a terminal of 80 columns, and what is printed above them."""
    console = Console(force_terminal=True, width=80, file=io.StringIO())
    plain = Console(width=80)
    with display.Live(console, tracker) as live:
        live.show_data("fetching mnist", 50, 100)
        for event in events:
            live.show(event)
        with plain.capture() as capture:
            plain.print(live._bars.make_tasks_table(live._bars.tasks))
    return capture.get().splitlines(), console.file.getvalue()


def test_the_live_display_of_one_seed_fits_a_terminal(display):
    start = Started(Path("runs/a"), Path("runs/a"), 60000, {3: 0}, 7020, "loop", [])
    (line,), above = shown(
        *(display, display.ProgressTracker([0], 15), start),
        EpochDone([row(0, 3, 99.0)]),
        progress((0,), 12, 5500),
    )
    assert "epoch 12/15" in line
    assert "loss 0.0651 98.15 % rate 0.0012 8,123 img/s" in line
    assert "-:--:--" in line
    assert "epoch 3/15: train loss" in above


def test_the_live_display_of_many_seeds_fits_a_terminal(display):
    tracker = display.ProgressTracker(range(64), 15)
    first = seeds_started({seed: 7020 * (seed < 10) for seed in range(64)})
    (line,), _ = shown(display, tracker, first, progress((10,), 1, 468))
    assert "10/64 seeds" in line
    assert "loss 0.0651" in line
    rows = EpochDone([row(seed, 15, 99.3 + seed / 100) for seed in range(10)])
    (line,), _ = shown(display, tracker, first, rows, progress((10,), 1, 468))
    assert "test 99.34 ± 0.03 % (10 seeds, epoch 15)" in line
    assert "-:--:--" in line
