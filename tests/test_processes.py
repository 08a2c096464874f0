"""Seeds in processes of their own: their distribution, and the failure of a process."""

import json
import multiprocessing
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import psutil
import pytest

import jaxmnist
from jaxmnist import RunOptions
from jaxmnist.parallel import devices
from jaxmnist.parallel.seed_mapping import shares_of_cores
from jaxmnist.runs import processes, worker
from jaxmnist.runs.loop import Stopped
from jaxmnist.runs.processes import STOP, STOPPED, Finished, Task
from jaxmnist.runs.setup import Callbacks, EpochDone, Failed, Progress
from tests import conftest
from tests.conftest import QUICK, SCRIPT, finish, wait_for_line
from tests.test_runs import assert_same_run

EPOCHS = 18  # of 18 steps: there is time to interrupt them
WORDS = [
    *("--variant", "quick", "--network", QUICK, "--dataset", "fashion_mnist"),
    *("--epochs", str(EPOCHS), "--batch-size", "32", "--seeds", "3"),
    *("--seed-mapping", "processes", "--checkpoint-every", "1", "--out", "runs"),
]


class Worker:
    """Records the messages that it is sent, and sends those of the test."""

    def __init__(self):
        self.pipe, self.seed, self.has_ended = object(), None, False
        self.received, self.messages = [], []

    def train(self, seed):
        self.seed = seed
        self.received.append(seed)

    def send(self, message):
        self.received.append(message)

    def receive(self):
        message = self.messages.pop(0)
        if message is not None:
            return message
        self.has_ended = True
        return None if self.seed is None else Failed(self.seed, "it died")


@pytest.fixture
def schedule(monkeypatch, tmp_path):
    """Schedules four seeds on two workers, whose messages come in the order of the test."""
    events, team = [], [Worker(), Worker()]

    def schedule(*messages, should_stop=lambda: False):
        order = iter([team[number] for number, _ in messages])
        for number, message in messages:
            team[number].messages.append(message)
        monkeypatch.setattr(processes, "wait", lambda pipes, timeout: [next(order).pipe])
        callbacks = Callbacks(report=events.append, should_stop=should_stop)
        return processes._schedule(team, [4, 5, 6, 7], tmp_path, callbacks)  # type: ignore[arg-type]

    return schedule, team, events


def progress(seed, step=4):
    return Progress((seed,), 1, step, 0.5, 90.0, 0.1, 1000.0)


def test_other_workers_start_when_the_first_has_compiled(schedule):
    train, team, events = schedule
    next(train((0, progress(4)), (0, Finished(4)), (1, Finished(5))))
    assert [worker.received for worker in team] == [[4], [5]]
    assert events == [progress(4)]


def test_a_worker_that_is_done_gets_the_next_seed(schedule):
    train, team, events = schedule
    epoch, failed = EpochDone([{"seed": 4, "epoch": 1}]), Failed(6, "the loss became nan")
    messages = (progress(4), epoch, Finished(4), failed)
    ends = train(*((0, each) for each in messages), (1, Finished(5)), (0, Finished(7)))
    assert list(ends) == [(4, None), (6, failed.reason), (5, None), (7, None)]
    assert [worker.received for worker in team] == [[4, 6, 7], [5]]
    assert events[1:] == [epoch, failed]


def test_a_process_that_dies_fails_its_own_seed_only(schedule):
    train, _, events = schedule
    finished = [(0, Finished(seed)) for seed in (4, 6, 7)]
    ends = train((0, progress(4)), (1, None), *finished)
    assert dict(ends) == {4: None, 5: "it died", 6: None, 7: None}
    assert events[-1] == Failed(5, "it died")


def test_if_the_first_dies_before_it_has_compiled_another_starts(schedule):
    train, team, _ = schedule
    ends = train((0, None), *((1, Finished(seed)) for seed in (5, 6, 7)))
    assert [seed for seed, _ in ends] == [4, 5, 6, 7]
    assert team[1].received == [5, 6, 7]


def test_without_any_process_the_remaining_seeds_fail(schedule):
    train, _, events = schedule
    found = dict(train((0, None), (1, None)))
    assert found[7] == "no process is left to train it"
    assert [event.seed for event in events] == [4, 5, 6, 7]


def test_a_stop_is_sent_to_all_once_and_no_seed_after_it(schedule):
    train, team, _ = schedule
    ends = train(
        (0, progress(4)),
        (0, progress(4, 5)),
        (1, STOPPED),
        (0, Finished(4)),
        should_stop=lambda: team[1].seed is not None or STOP in team[0].received,
    )
    assert next(ends) == (4, None)
    with pytest.raises(Stopped):
        next(ends)
    assert [worker.received for worker in team] == [[4, STOP], [5, STOP]]


def test_a_first_seed_that_fails_before_compilation_starts_no_other_worker(schedule):
    train, team, _ = schedule
    failed = Failed(4, "no checkpoint is whole")
    ends = train((0, failed), (0, progress(5)), (0, Finished(5)))
    next(ends)
    assert [worker.received for worker in team] == [[4], []]
    next(ends)
    assert [worker.received for worker in team] == [[4, 5], [6]]


def test_a_stop_after_the_last_seed_was_started_may_find_all_finished(schedule):
    train, team, _ = schedule
    messages = [(0, progress(4)), *((0, Finished(seed)) for seed in (4, 6, 7)), (1, Finished(5))]
    ends = train(*messages, should_stop=lambda: team[0].received[-1:] == [7])
    assert [seed for seed, _ in ends] == [4, 6, 7, 5]


def test_a_stop_before_the_start_starts_no_seed(schedule):
    train, team, _ = schedule
    with pytest.raises(Stopped):
        next(train(should_stop=lambda: True))
    assert team[0].received == []


@pytest.fixture
def process(monkeypatch):
    """Starts a worker that runs this code."""

    def process(code):
        monkeypatch.setattr(processes, "_WORKER", ("-c", code))
        return processes._Worker(Task(jaxmnist.TrainConfig(), RunOptions(), Path(), [0], ""))

    return process


def test_printed_text_is_no_message(process):
    code = (
        "import sys; from multiprocessing.connection import Connection; print('hello'); "
        "Connection(int(sys.argv[1])).send('stopped')"
    )
    with process(code) as one:
        assert one.receive() == STOPPED
        assert (one.receive(), one.has_ended) == (None, True)


def test_the_last_error_line_of_a_process_is_its_reason(process):
    code = "import sys; sys.stderr.buffer.write(b'Traceback\\nMemoryError: \\xff\\n'); sys.exit(3)"
    with process(code) as one:
        one.train(5)
        assert one.receive() == Failed(5, "its process ended with status 3: MemoryError: \ufffd")


def test_a_process_that_does_not_end_is_killed(process, monkeypatch):
    monkeypatch.setattr(processes, "END_SECONDS", 0.1)
    with process("import time; time.sleep(1000)") as one:
        one.train(3)
    assert one._process.returncode == -signal.SIGKILL


def test_workers_share_programs_compiled_for_the_same_number_of_cores(monkeypatch):
    flags, cores = {}, []
    monkeypatch.setattr(jax.config, "update", flags.__setitem__)
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda _, mine: cores.append(mine))
    worker.use_cores([1, 3], "kept")
    assert cores == [[1, 3]]
    assert flags == {
        **{f"jax_{name}": value for name, value in devices._FLAGS.items()},
        "jax_compilation_cache_dir": "kept/2-cores",
        "jax_compilation_cache_max_size": 512 << 20,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }


def test_a_worker_ends_when_its_pipe_is_closed(monkeypatch):
    """At once, also while it compiles; its next message would end it only then."""
    ended, requests, stop = [], queue.SimpleQueue(), threading.Event()
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    ours, theirs = multiprocessing.Pipe()
    with theirs:
        with ours:
            for message in ("task", 3, STOP):
                ours.send(message)
        with pytest.raises(EOFError):
            worker.listen(theirs, requests, stop)
    assert (requests.get_nowait(), requests.get_nowait()) == ("task", 3)
    assert (stop.is_set(), ended) == (True, [0])


@pytest.fixture(scope="module")
def whole(small_idx_dir, tmp_path_factory):
    """Uninterrupted runs of the seeds, one after another in this process."""
    config = jaxmnist.TrainConfig(
        "quick", "fashion_mnist", epochs=EPOCHS, batch_size=32, network=QUICK
    )
    out = tmp_path_factory.mktemp("runs") / "whole"
    return conftest.train(config, out, small_idx_dir, seeds=(0, 1, 2), seed_mapping="loop")


def assert_same_runs(folder, whole):
    assert_same_run(jaxmnist.load_run(folder), whole)


def workers_of(process):
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "jaxmnist.runs.worker" in child.cmdline()
    ]


def test_each_seed_in_a_process_equals_its_own_run(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 1/18")
    if hasattr(os, "sched_getaffinity"):
        shares = [one.cpu_affinity() for one in workers_of(process)]
        mine = os.sched_getaffinity(0)
        assert sorted(core for share in shares for core in share) == sorted(mine)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"quick, 3 of 3 seeds: \d+\.\d\d ± \d\.\d\d % of 430 test images \(\d.* to .*, best epochs "
        r".*\), 2,668 parameters, \d+ s, in runs",
        out.splitlines()[-1],
    )
    assert_same_runs(tmp_path / "runs", whole)
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["seed_mapping"] == "processes"


def test_a_signal_stops_all_and_prints_how_to_resume(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 2/18")
    workers = workers_of(process)
    for one in workers:  # as a terminal or a scheduler does: to all of them
        one.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143
    stopped = re.fullmatch(r"stopped at step (\d+); to continue: python (.*)\n", err)
    assert stopped is not None, err
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    script, *words = shlex.split(stopped[2])
    assert Path(script) == SCRIPT
    status, out, _ = finish(start(*words))
    assert status == 0
    assert f"into runs, continuing at step {stopped[1]} of 972, " in out.splitlines()[0]
    assert_same_runs(tmp_path / "runs", whole)


def test_a_killed_run_leaves_no_orphan_and_resumes(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 2/18")
    workers = workers_of(process)
    assert len(workers) == len(shares_of_cores(3))
    process.kill()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    # The seeds come from the run, and may resume with another mapping.
    status, out, err = finish(start("--resume", "--out", "runs", "--seed-mapping", "loop"))
    assert (status, err) == (0, "")
    assert "training seeds 0 to 2 (loop), " in out.splitlines()[0]
    assert_same_runs(tmp_path / "runs", whole)


@pytest.mark.skipif(len(shares_of_cores(3)) < 2, reason="one core has one worker")
def test_a_killed_worker_is_named_and_the_others_finish(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 1/18")
    workers_of(process)[1].kill()
    status, out, err = finish(process)
    assert (status, err) == (1, "error: seed 1: its process was ended by signal 9 (Killed)\n")
    assert "seed 1 failed: its process was ended by signal 9 (Killed)" in out
    assert jaxmnist.load_run(tmp_path / "runs").snapshots.keys() == {0, 2}
    assert finish(start("--resume", "--out", "runs"))[0] == 0
    assert_same_runs(tmp_path / "runs", whole)


@pytest.mark.slow
def test_a_program_that_is_not_guarded_may_use_processes(small_idx_dir, tmp_path):
    """`multiprocessing` would run it again in every process; a run here needs no main guard."""
    code = f"""
import jaxmnist
config = jaxmnist.TrainConfig("less_params", "fashion_mnist", epochs=1, batch_size=100)
options = jaxmnist.RunOptions(idx_dir={str(small_idx_dir)!r}, seed_mapping="processes")
found = jaxmnist.train(config, "runs", (0, 1), options)
print(found.summary["seeds"], found.failures)
"""
    (tmp_path / "mine.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[0, 1] {}\n", "")
