"""Several processes that train one network, for real: over loopback, with two devices each."""

import functools
import re
import signal
import socket
import time

import chex
import jax
import pytest

from jaxmnist import ConfigError, TrainConfig, load_run, train
from jaxmnist.parallel import distributed
from tests.conftest import COMPILED_QUICKLY, QUICK, finish, wait_for_line
from tests.test_runs import plain

# Four steps an epoch with all that is random, at a constant rate, so that there may be more epochs.
WORDS = [
    *("--variant", "quick", "--network", QUICK, "--schedule", "constant"),
    *("--dataset", "fashion_mnist", "--batch-size", "64", "--limit-train", "256"),
]
# That a process whose others are gone ends in a time that is bounded, not that it is fast.
SECONDS = 100


@pytest.fixture
def start(start):
    return functools.partial(start, flags=COMPILED_QUICKLY)


@pytest.fixture
def start_two(start):
    """Starts the command in two processes that know of each other."""

    def start_two(*words, each=lambda number: ()):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        together = ("--coordinator", f"127.0.0.1:{port}", "--num-processes", "2")
        return [
            start(
                *(*WORDS, *words, *each(number), *together, "--process-id", str(number)),
                devices=2,
            )
            for number in (0, 1)
        ]

    return start_two


def both(processes):
    """Waits for both: status, what they said of their own, and errors of each."""
    return [(status, *map(without_gloo, said)) for status, *said in map(finish, processes)]


def without_gloo(text):
    """What is not of the library that connects processes; its threads write into each other."""
    of_gloo = re.compile(r".*(\[Gloo\] Rank|Expected number of connected).*|[\s:\d.]*")
    return "\n".join(line for line in text.splitlines() if not of_gloo.fullmatch(line))


def assert_same_state(folder, other, steps):
    """Both are after so many steps, and equal but for rounding."""
    one, two = (plain(load_run(each).state) for each in (folder, other))
    assert (int(one.step), int(two.step)) == (steps, steps)
    chex.assert_trees_all_equal(one.key, two.key)
    chex.assert_trees_all_close(one.variables, two.variables, atol=1e-5)
    # A step takes a hundredth of the momentum, so an error there is a hundred times as large.
    chex.assert_trees_all_close(one.opt_state, two.opt_state, atol=1e-3)


def test_one_and_two_processes_train_alike_and_resume_each_others_runs(start, start_two, tmp_path):
    (status, said, _), other = both(start_two("--epochs", "1", "--out", "two"))
    assert (status, other) == (0, (0, "", ""))
    assert said.splitlines()[-1].startswith("quick, seed 0:")
    assert finish(start(*WORDS, "--epochs", "1", "--out", "one", devices=4))[0] == 0
    assert_same_state(tmp_path / "one", tmp_path / "two", steps=4)
    assert load_run(tmp_path / "two").summary["device"].startswith("4 x cpu")
    assert len((tmp_path / "two" / "metrics.jsonl").read_text().splitlines()) == 1
    data = tmp_path / "two" / "checkpoints" / "seed0" / "4" / "arrays"
    assert {entry.name for entry in data.glob("ocdbt.*")} == {"ocdbt.process_0"}

    assert finish(start(*WORDS, "--epochs", "2", "--out", "two", "--resume"))[0] == 0
    assert [end[0] for end in both(start_two("--epochs", "2", "--out", "one", "--resume"))] == [
        0,
        0,
    ]
    assert_same_state(tmp_path / "one", tmp_path / "two", steps=8)


@pytest.mark.parametrize("victim", [0, 1])
def test_if_one_process_is_killed_the_other_ends(start, start_two, tmp_path, victim):
    processes = start_two("--epochs", "80", "--checkpoint-every", "1", "--out", "run")
    wait_for_line(processes[0], "epoch 3/80")
    processes[victim].kill()
    begin = time.monotonic()
    status, _, errors = finish(processes[1 - victim])
    assert time.monotonic() - begin < SECONDS
    # If the first one is gone, JAX's own runtime may be the first to notice, and aborts.
    assert status == 1 or (victim == 0 and status == -signal.SIGABRT)
    assert "another process failed or is gone" in errors or "another task died" in errors
    process = start(*WORDS, "--epochs", "80", "--out", "run", "--resume")
    wait_for_line(process, r"training 320 steps .*, continuing at step (4|8|12)")
    assert finish(process)[0] == 0
    assert len(load_run(tmp_path / "run").rows) == 80


def test_if_one_process_gets_a_signal_all_save_and_stop(start_two, tmp_path):
    processes = start_two("--epochs", "80", "--out", "run")
    wait_for_line(processes[0], "epoch 2/80")
    processes[1].send_signal(signal.SIGTERM)
    (first, _, words), (second, _, others) = both(processes)
    assert (first, second) == (130, 143)
    assert re.match(r"stopped at step \d+; to continue: ", words)
    assert words.replace("--process-id 0", "--process-id 1") == others
    step = re.findall(r"step (\d+)", words)
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "seed0").iterdir()] == step


def test_an_error_of_the_main_process_is_raised_in_all(start_two, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    for status, said, errors in both(start_two("--out", "run")):
        assert (status, said) == (2, "")
        assert errors.startswith("error: run is not empty; pass another --out")


def test_processes_with_different_options_are_refused(start_two, tmp_path):
    for status, said, errors in both(start_two("--out", "run", each=lambda n: ("--seed", str(n)))):
        assert (status, said) == (2, "")
        assert errors.startswith("error: the 2 processes that train together received different")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("a:1", 2, None), r"--num-processes and --process-id belong together: pass all three"),
        ((None, None, 0), r"coordinator, --num-processes and --process-id belong together"),
        (
            ("localhost", 2, 0),
            r"coordinator is 'localhost'; expected HOST:PORT, such as 10\.0\.0\.1",
        ),
        (("localhost:99999", 2, 0), r"coordinator is 'localhost:99999'; expected HOST:PORT"),
        (("a:1", 0, 0), r"num_processes is 0; expected at least 1"),
        (("a:1", 2, 2), r"process_id is 2; expected a whole number from 0 to 1"),
    ],
)
def test_invalid_processes_are_refused(words, message):
    with pytest.raises(ConfigError, match=message):
        distributed.join(*words)


def test_resume_in_one_process_only_is_refused(start_two):
    for status, said, errors in both(
        start_two("--out", "run", each=lambda number: ["--resume"] if number else [])
    ):
        assert (status, said) == (2, "")
        assert errors.startswith("error: the 2 processes that train together received different")


def test_an_error_of_one_process_ends_both(start_two):
    (first, _, words), (second, _, others) = both(
        start_two("--epochs", "1", each=lambda number: ["--idx-dir", "nowhere"] if number else [])
    )
    assert second in (1, 2)
    assert "nowhere has no train-images-idx3-ubyte" in others
    assert first in (1, -signal.SIGABRT)
    assert "another process failed or is gone" in words or "another task died" in words


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, False),  # within sbatch, outside of srun
        ({"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "a", "SLURM_NTASKS": "8"}, True),
        ({"TPU_SKIP_MDS_QUERY": "1"}, False),  # JAX on a machine without TPU chips
        ({"TPU_ML_PLATFORM": "JAX"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
    ],
)
def test_detection_of_a_cluster(monkeypatch, environment, found):
    asked = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: asked.append(True))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join(None, None, None)
    distributed.join(None, 1, None)
    assert asked == [True] * found


def test_a_single_process_needs_no_agreement():
    distributed.join(None, None, None)
    distributed.join(None, 1, None)
    distributed.assert_equal_across_processes("anything")
    assert distributed.is_main_process()
    assert distributed.sync_decision(3, False, True) == (3, False, True)
    assert distributed.broadcast_from_main(lambda: b"content") == b"content"
    with pytest.raises(OSError, match="broken"), distributed.as_host_error():
        distributed.broadcast_from_main(failing)


def failing():
    raise OSError("broken")


def test_a_runtime_error_is_a_host_error_with_several_processes_only(monkeypatch):
    error = jax.errors.JaxRuntimeError("INTERNAL: broken\nand more")
    with pytest.raises(jax.errors.JaxRuntimeError), distributed.as_host_error():
        raise error
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with (
        pytest.raises(distributed.HostError, match=r"or is gone \(INTERNAL: broken\); run all"),
        distributed.as_host_error(),
    ):
        raise error


def test_several_seeds_in_several_processes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "broadcast_from_main", lambda action: action())
    with pytest.raises(ConfigError, match="there are 2 processes that train one seed together"):
        train(TrainConfig(), tmp_path / "runs", range(4))
