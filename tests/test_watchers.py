"""TensorBoard and the profiler look on, and change nothing."""

import sys

import pytest
from tensorboardX.proto.event_pb2 import Event

import jaxmnist
from jaxmnist.runs.setup import EpochDone, Started
from tests.conftest import SCRIPTS

pytestmark = pytest.mark.usefixtures("shared_programs")


def events(folder):
    """What TensorBoard reads: records of length, its check, content, its check."""
    found = []
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            found.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return found


WORDS = ("--variant", "less_params", "--dataset", "kmnist", "--epochs", "2", "--quiet")


def test_tensorboard_has_every_row(command, small_idx_dir, tmp_path):
    out = tmp_path / "run"
    words = (*WORDS, "--out", out, "--idx-dir", small_idx_dir, "--tensorboard")
    status, _, err = command("train", *words)
    assert (status, err) == (0, "")
    found = {
        (event.step, value.tag): value.simple_value
        for event in events(out / "tensorboard" / "seed0")
        for value in event.summary.value
    }
    assert all(event.wall_time > 1e9 for event in events(out / "tensorboard" / "seed0"))
    for row in jaxmnist.load_run(out).rows:
        assert found[row["epoch"], "test_loss"] == pytest.approx(row["test_loss"])
        assert found[row["epoch"], "learning_rate"] == pytest.approx(row["learning_rate"])


def test_figures_that_are_not_finite_are_left_out(small_run, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    from support.watchers import TensorBoard

    row = {**small_run.rows[0], "seed": 3, "train_loss": None}
    with TensorBoard() as watcher:
        watcher.show(Started(tmp_path, tmp_path, 256, {0: 0}, 8, "loop", []))
        watcher.show(EpochDone([row]))
    tags = {
        value.tag
        for event in events(tmp_path / "tensorboard/seed3")
        for value in event.summary.value
    }
    assert {"test_loss", "train_accuracy"} < tags
    assert "train_loss" not in tags


def test_profile_has_a_trace(command, small_idx_dir, tmp_path):
    out = tmp_path / "run"
    words = (*WORDS, "--out", out, "--idx-dir", small_idx_dir, "--profile", "--batch-size", "32")
    status, _, err = command("train", *words)
    assert (status, err) == (0, "")
    (trace,) = (out / "profile").rglob("*.xplane.pb")
    assert b"train_chunk" in trace.read_bytes()


@pytest.mark.parametrize("fails", ["__enter__", "show", "__exit__", "both"])
def test_a_failing_watcher_is_a_note(command, small_idx_dir, tmp_path, monkeypatch, fails):
    """The disk is full, say, or another profiler is on."""
    monkeypatch.syspath_prepend(SCRIPTS)
    from support import watchers

    def failing(method):
        def fail(*arguments):
            if method.__name__ == "__exit__":
                method(*arguments)
            raise RuntimeError("it cannot be")

        return fail

    for name in ("show", "__exit__") if fails == "both" else (fails,):
        for watcher in (watchers.Profile, watchers.TensorBoard):
            monkeypatch.setattr(watcher, name, failing(getattr(watcher, name)))
    words = (*WORDS, "--out", tmp_path / "run", "--idx-dir", small_idx_dir, "--batch-size", "32")
    status, said, errors = command("train", *words, "--profile", "--tensorboard")
    assert status == 0
    assert said.startswith("less_params, seed 0: ")
    lines = [line for line in errors.splitlines() if "too few steps" not in line]
    assert sorted(lines) == [
        "note: Profile is off after an error: it cannot be",
        "note: TensorBoard is off after an error: it cannot be",
    ]
    assert len(jaxmnist.load_run(tmp_path / "run").rows) == 2


def test_too_few_steps_for_a_profile_are_a_note(command, small_idx_dir, tmp_path):
    out = tmp_path / "run"
    words = (*WORDS[:4], "--epochs", "1", "--out", out, "--idx-dir", small_idx_dir, "--profile")
    command("train", *words)
    # It is finished: there is nothing left to trace.
    status, _, err = command("train", *words, "--resume")
    assert (status, err) == (0, "note: too few steps were left for a profile\n")


def test_missing_tensorboard_names_the_remedy(command, small_idx_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    words = (*WORDS, "--out", tmp_path / "run", "--idx-dir", small_idx_dir)
    status, _, err = command("train", *words, "--tensorboard")
    assert status == 2
    assert (
        err == "error: tensorboardX is not installed; pip install -e '.[tensorboard]' installs it\n"
    )
    assert not (tmp_path / "run").exists()
