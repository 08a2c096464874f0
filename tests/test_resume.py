"""The command as processes of their own: killed, stopped by signals, in each other's way."""

import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from jaxmnist import TrainConfig, load_run
from tests.conftest import QUICK, SCRIPT, finish, train, wait_for_line, wait_until
from tests.test_runs import assert_same_run

pytestmark = pytest.mark.slow

EPOCHS = 30  # of 18 steps: there is time to interrupt them
WORDS = [
    *("--variant", "quick", "--network", QUICK, "--dataset", "fashion_mnist"),
    *("--epochs", str(EPOCHS), "--batch-size", "32", "--checkpoint-every", "1", "--out", "run"),
]


@pytest.fixture(scope="module")
def whole(small_idx_dir, tmp_path_factory):
    """The run that nothing happened to."""
    config = TrainConfig("quick", "fashion_mnist", epochs=EPOCHS, batch_size=32, network=QUICK)
    out = tmp_path_factory.mktemp("runs") / "whole"
    return train(config, out, small_idx_dir)


def saving(folder):
    """Whether a checkpoint is being written."""
    return any("tmp" in entry.name for entry in (folder / "checkpoints" / "seed0").glob("*"))


@pytest.mark.parametrize("moment", ["at the start", "compiling", "in an epoch", "saving"])
def test_a_run_killed_at_any_moment_resumes(start, whole, tmp_path, moment):
    process = start(*WORDS)
    if moment == "at the start":
        wait_until((tmp_path / "run").exists, process)
    elif moment == "compiling":
        wait_for_line(process, "training 540 steps over 600 images into run")
    elif moment == "in an epoch":
        wait_for_line(process, "epoch 7/30")
    else:
        wait_for_line(process, "epoch 5/30")
        wait_until(lambda: saving(tmp_path / "run"), process)
    process.kill()
    assert finish(process)[0] == -signal.SIGKILL
    status, out, err = finish(start("--resume", "--out", "run", *WORDS[:-2]))
    assert (status, err) == (0, "")
    if moment in ("in an epoch", "saving"):
        assert re.search(r"into run, continuing at step \d+$", out.splitlines()[0])
    assert_same_run(load_run(tmp_path / "run"), whole)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_stops_and_prints_how_to_resume(start, whole, tmp_path, number, status):
    process = start(*WORDS)
    wait_for_line(process, "epoch 5/30")
    process.send_signal(number)
    if number == signal.SIGHUP:  # which a shell sends again
        process.send_signal(number)
    found, _, err = finish(process)
    assert found == status
    stopped = re.fullmatch(r"stopped at step (\d+); to continue: python (.*)\n", err)
    assert stopped is not None, err
    script, *words = shlex.split(stopped[2])
    assert Path(script) == SCRIPT
    status, out, _ = finish(start(*words))
    assert status == 0
    assert out.splitlines()[0].endswith(f"into run, continuing at step {stopped[1]}")
    assert_same_run(load_run(tmp_path / "run"), whole)


def test_a_closed_pipe_does_not_end_a_run(start, whole, tmp_path):
    process = start(*WORDS, script_errors=subprocess.STDOUT)
    wait_for_line(process, "epoch 2/30")
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    assert_same_run(load_run(tmp_path / "run"), whole)


def test_a_second_interrupt_ends_a_run_and_leaves_a_good_checkpoint(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "epoch 5/30")
    wait_until(lambda: saving(tmp_path / "run"), process)
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        time.sleep(0.002)
    status, _, err = finish(process)
    assert (status, err) == (-signal.SIGINT, "")  # a shell says 130
    status, out, _ = finish(start("--resume", "--out", "run"))
    assert status == 0
    assert "continuing at step" in out
    assert_same_run(load_run(tmp_path / "run"), whole)


def test_a_removed_folder_ends_the_run_in_a_line(start, tmp_path):
    process = start(*WORDS, "--epochs", "2000")  # more than it has time for
    wait_for_line(process, "epoch 2/2000")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    status, _, err = finish(process)
    assert status == 1
    assert re.fullmatch(r"error: .*No such file or directory.*run.*\n", err)
    # Of a checkpoint that was being written just then, Orbax may make folders anew.
    assert list((tmp_path / "run").glob("*.json*")) == []


def test_a_second_process_is_refused_and_the_first_continues(start, whole, tmp_path):
    first = start(*WORDS)
    wait_for_line(first, "epoch 2/30")
    first.send_signal(signal.SIGSTOP)  # or it may be at its end before the others begin
    for words in (["--resume", "--out", "run"], [*WORDS, "--overwrite"]):
        status, _, err = finish(start(*words))
        assert status == 2
        assert err.startswith("error: another process is training into run; wait for it")
    first.send_signal(signal.SIGCONT)
    assert finish(first)[0] == 0
    assert_same_run(load_run(tmp_path / "run"), whole)
