import dataclasses
import json

import jax
import jax.monitoring
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError, TrainConfig, data
from jaxmnist.metrics import Metrics
from jaxmnist.optim import make_schedules
from jaxmnist.runs import loop
from jaxmnist.runs.loop import TrainingError
from jaxmnist.runs.run import Snapshot
from jaxmnist.runs.run_folder import read_config
from jaxmnist.runs.setup import EpochDone, Progress, Started, make_setup
from tests.conftest import train

pytestmark = pytest.mark.usefixtures("shared_programs")


def test_a_run_learns(small_run):
    assert small_run.summary["final_test_accuracy"][0] > 90
    assert small_run.rows[-1]["train_loss"] < small_run.rows[0]["train_loss"]


def test_the_rows_and_the_summary(small_run):
    assert read_config(small_run.path) == (small_run.config, (0,), 2)
    assert [row["epoch"] for row in small_run.rows] == [1, 2, 3]
    assert [row["step"] for row in small_run.rows] == [18, 36, 54]
    schedules = make_schedules(small_run.config, 54)
    for row in small_run.rows:
        for name, schedule in schedules._asdict().items():
            assert row[name] == pytest.approx(float(schedule(row["step"] - 1)), rel=1e-6)
    summary = small_run.summary
    assert summary["parameters"] == 1484
    assert summary["test_count"] == 430
    assert summary["steps"] == 54
    assert summary["final_test_accuracy"] == [small_run.rows[-1]["test_accuracy"]]
    assert summary["train_seconds"] > 0
    # Of 430 images, whatever the block: a whole number of them is right.
    right = small_run.rows[-1]["test_accuracy"] * 4.3
    assert right == pytest.approx(round(right), abs=1e-9)


@pytest.fixture(scope="module")
def watched(small_config, small_idx_dir, tmp_path_factory):
    """The small run again: its events, and before each what XLA compiled since the last."""
    events, compiled = [], []
    since = []

    def report(event):
        events.append(event)
        compiled.append(tuple(since))
        since.clear()

    def note(event, duration_secs, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            since.append(details["fun_name"])

    jax.monitoring.register_event_duration_secs_listener(note)
    out = tmp_path_factory.mktemp("runs") / "watched"
    run = train(small_config, out, small_idx_dir, report=report)
    jax.monitoring.unregister_event_duration_listener(note)
    return run, events, compiled


def test_order_of_events(watched):
    run, events, _ = watched
    assert events[0] == Started(run.path, run.path, 600, {0: 0}, 54, "loop", [])
    assert [event.rows for event in events if isinstance(event, EpochDone)] == [
        [row] for row in run.rows
    ]
    steps = [event.step for event in events if isinstance(event, Progress)]
    assert steps == sorted(set(steps))
    assert {4, 18, 36, 54} <= set(steps)  # the first chunk, and the end of every epoch


def test_a_run_compiles_each_program_once_and_before_the_first_chunk(watched):
    _, events, compiled = watched
    first = next(k for k, event in enumerate(events) if isinstance(event, Progress))
    programs = [name for names in compiled[: first + 1] for name in names]
    names = ("create_state", "epoch_permutation", "train_chunk", "evaluate")
    for program in (f"jit({name})" for name in names):
        assert programs.count(program) == 1
    assert compiled[first + 1 :] == [()] * (len(events) - first - 1)


def test_a_loss_that_is_not_finite_stops_the_run(small_config, small_idx_dir, tmp_path):
    config = dataclasses.replace(small_config, learning_rate=1e30, seed=5)
    message = r"loss became nan at step \d+ of seed 5; try a smaller --learning-rate than 1e\+30"
    with pytest.raises(TrainingError, match=message):
        train(config, tmp_path / "run", small_idx_dir)
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_last_step_that_breaks_the_network_is_an_error(small_config, small_idx_dir, tmp_path):
    """Its own loss is finite; that of the evaluation after it is not."""
    config = TrainConfig(
        "less_params", "fashion_mnist", epochs=1, batch_size=600, learning_rate=1e30
    )
    with pytest.raises(TrainingError, match="the test loss became nan at step 1 of seed 0"):
        train(config, tmp_path / "run", small_idx_dir)
    (row,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(row)["test_loss"] is None


def test_a_taken_out_is_refused_before_the_images_are_fetched(small_config, small_run, monkeypatch):
    def fetch(*arguments):
        raise AssertionError("fetched")

    monkeypatch.setattr(data, "load", fetch)
    with pytest.raises(ConfigError, match="is not empty"):
        jaxmnist.train(small_config, out=small_run.path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 601}, "batch_size is 601, but there are only 600 training images"),
        ({"epochs": 1, "batch_size": 200}, "needs at least 4 steps, .* has 3"),
    ],
)
def test_a_config_that_cannot_be_trained_leaves_no_folder(
    small_config, small_idx_dir, tmp_path, changes, message
):
    config = dataclasses.replace(small_config, **changes)
    with pytest.raises(ConfigError, match=message):
        train(config, tmp_path / "run", small_idx_dir)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("every", ["0", "0s", "1.5", "often", "-1", "", "1 s", "9" * 12])
def test_a_cadence_is_epochs_or_seconds(every):
    with pytest.raises(
        ConfigError, match=rf"checkpoint_every is '{every}'; expected epochs, such as 2"
    ):
        loop.make_cadence(every)


def test_a_cadence_of_epochs_counts_whole_ones():
    is_due = loop.make_cadence("2")
    moments = [5 / 468, 1, 467 / 468 + 1, 2, 2.5, 3, 4]
    assert [is_due(epochs) for epochs in moments] == [0, 0, 0, 1, 0, 0, 1]


def test_a_cadence_of_seconds_counts_from_the_last_time(monkeypatch):
    now = iter([100.0, 101.9, 102.0, 102.0, 103.9, 104.5, 104.5, 106.0])
    monkeypatch.setattr(loop.time, "monotonic", lambda: next(now))
    is_due = loop.make_cadence("2s")
    assert [is_due(0.5) for _ in range(5)] == [False, True, False, True, False]


@pytest.mark.parametrize("kind", ["params", "batch_stats"])
def test_a_state_with_a_number_that_is_not_finite_is_not_saved(small_run, small_idx_dir, kind):
    setup = make_setup(small_run.config, jaxmnist.RunOptions(idx_dir=small_idx_dir))
    broken = {**getattr(small_run.state, kind), "conv1": {"kernel": np.array([1.0, np.inf])}}
    state = small_run.state.replace(**{kind: broken}, step=np.int32(7))
    message = rf"{kind}/conv1/kernel is not finite after step 7 of seed 0; try a smaller --learn"
    with pytest.raises(TrainingError, match=message):
        loop.check_sound(Snapshot(state, Metrics.zero(), 0.0, []), 0, setup)
