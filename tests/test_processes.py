"""Seeds in processes of their own: who gets which, and what becomes of them when one dies."""

import io
import json
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
from jaxmnist.parallel import devices
from jaxmnist.parallel.seed_mapping import shares_of_cores
from jaxmnist.runs import processes, worker
from jaxmnist.runs.loop import Stopped, TrainingError
from jaxmnist.runs.setup import Callbacks, EpochDone, Failed, Progress
from tests import conftest
from tests.conftest import SCRIPT, finish, wait_for_line
from tests.test_runs import assert_same_run

EPOCHS = 12  # of 18 steps
WORDS = (
    f"--variant gap --dataset fashion_mnist --epochs {EPOCHS} --batch-size 32 --seeds 3 "
    "--seed-mapping processes --checkpoint-every 1 --out runs"
).split()


class Worker:
    """Notes what it is told."""

    def __init__(self):
        self.seed = None
        self.told = []

    def train(self, seed):
        self.seed = seed
        self.told.append(seed)

    def send(self, message):
        self.told.append(message)

    def exit_reason(self):
        return "it died"


@pytest.fixture
def lead(monkeypatch, tmp_path):
    """Leads two workers, who say what the test says, over four seeds."""
    monkeypatch.setattr(processes, "POLL_SECONDS", 0)
    monkeypatch.setattr(
        processes, "read_snapshot", lambda setup, path, seed: (f"end of {seed}", [])
    )
    events, inbox, team = [], queue.SimpleQueue(), [Worker(), Worker()]

    def train(*messages, should_stop=lambda: False):
        for number, message in messages:
            inbox.put((team[number], message))
        callbacks = Callbacks(report=events.append, should_stop=should_stop)
        waiting = [4, 5, 6, 7]
        scheduler = processes._Scheduler(None, list(team), waiting, tmp_path, callbacks, inbox)  # type: ignore[arg-type]
        yield from scheduler.run()

    return train, team, events


def said(seed, step=4):
    return ["Progress", [seed], 1, step, 0.5, 90.0, 0.1, 1000.0]


def test_the_others_begin_when_the_first_has_compiled(lead):
    train, team, events = lead
    ends = train((0, said(4)), (0, ["done", 4, None]), (1, ["done", 5, None]))
    next(ends)
    assert (team[0].told, team[1].told) == ([4], [5])
    assert events == [Progress((4,), 1, 4, 0.5, 90.0, 0.1, 1000.0)]


def test_who_is_done_gets_the_next_seed(lead):
    train, team, events = lead
    row = {"seed": 4, "epoch": 1}
    ends = train(
        (0, said(4)),
        (0, ["EpochDone", [row]]),
        (0, ["done", 4, None]),
        (0, ["Failed", 6, "the loss became nan"]),
        (0, ["done", 6, "the loss became nan"]),
        (1, ["done", 5, None]),
        (0, ["done", 7, None]),
    )
    found = dict(ends)
    assert (team[0].told, team[1].told) == ([4, 6, 7], [5])
    assert [found[seed] for seed in (4, 5, 7)] == ["end of 4", "end of 5", "end of 7"]
    assert str(found[6]) == "the loss became nan"
    assert events[1:] == [EpochDone([row]), Failed(6, "the loss became nan")]


def test_a_process_that_dies_takes_its_seed_with_it_and_no_other(lead):
    train, _, events = lead
    ends = train(
        (0, said(4)),
        (1, None),
        (0, ["done", 4, None]),
        (0, ["done", 6, None]),
        (0, ["done", 7, None]),
    )
    found = dict(ends)
    assert isinstance(found[5], TrainingError)
    assert str(found[5]) == "it died"
    assert events[-1] == Failed(5, "it died")
    assert found.keys() == {4, 5, 6, 7}


def test_if_the_first_dies_before_it_has_compiled_another_begins(lead):
    train, team, _ = lead
    ends = train((0, None), *((1, ["done", seed, None]) for seed in (5, 6, 7)))
    assert [seed for seed, _ in ends] == [4, 5, 6, 7]
    assert team[1].told == [5, 6, 7]


def test_without_any_process_the_rest_fails(lead):
    train, _, events = lead
    found = dict(train((0, None), (1, None)))
    assert str(found[7]) == "no process is left to train it"
    assert [event.seed for event in events] == [4, 5, 6, 7]


def test_all_are_told_to_stop_once_and_get_nothing_more(lead):
    train, team, _ = lead
    ends = train(
        (0, said(4)),
        (0, said(4, 5)),
        (1, ["stopped"]),
        (0, ["done", 4, None]),
        should_stop=lambda: team[1].seed is not None or "stop" in team[0].told,
    )
    assert next(ends) == (4, "end of 4")
    with pytest.raises(Stopped):
        next(ends)
    assert (team[0].told, team[1].told) == ([4, "stop"], [5, "stop"])


def test_a_first_seed_that_fails_before_it_was_compiled_lets_nobody_else_begin(lead):
    train, team, _ = lead
    ends = train(
        (0, ["Failed", 4, "no checkpoint is whole"]),
        (0, ["done", 4, "no checkpoint is whole"]),
        (0, said(5)),
        (0, ["done", 5, None]),
    )
    next(ends)
    assert (team[0].told, team[1].told) == ([4], [])
    next(ends)
    assert (team[0].told, team[1].told) == ([4, 5], [6])


def test_a_stop_that_comes_when_all_are_done_is_none(lead):
    train, team, _ = lead
    messages = [(0, said(4)), *((0, ["done", seed, None]) for seed in (4, 6, 7))]
    ends = dict(
        train(*messages, (1, ["done", 5, None]), should_stop=lambda: team[0].told[-1:] == [7])
    )
    assert ends.keys() == {4, 5, 6, 7}


def test_a_stop_that_comes_first_lets_nobody_begin(lead):
    train, team, _ = lead
    with pytest.raises(Stopped):
        next(train(should_stop=lambda: True))
    assert team[0].told == []


@pytest.fixture
def process(monkeypatch):
    """Starts a worker that runs this code, and takes what it says until it ends."""
    inbox = queue.SimpleQueue()

    def process(code):
        monkeypatch.setattr(processes, "_WORKER", ("-c", code))
        return processes._Worker({}, [0], inbox), inbox

    return process


def test_what_a_library_prints_is_no_message(process):
    one, inbox = process("print('hello'); print('[\"stopped\"]'); print('[\"torn')")
    with one:
        assert inbox.get(timeout=30) == (one, ["stopped"])
        assert inbox.get(timeout=30) == (one, None)
        assert one.exit_reason() == "its process ended with status 0"


def test_the_last_words_of_a_process(process):
    one, inbox = process(
        "import sys; sys.stderr.buffer.write(b'Traceback\\nMemoryError: \\xff\\n'); sys.exit(3)"
    )
    with one:
        assert inbox.get(timeout=30) == (one, None)
        assert one.exit_reason() == "its process ended with status 3: MemoryError: \ufffd"


def test_a_process_that_does_not_end_is_killed(process, monkeypatch):
    monkeypatch.setattr(processes, "END_SECONDS", 0.1)
    one, inbox = process("import time; time.sleep(1000)")
    with one:
        one.train(3)
    assert inbox.get(timeout=30) == (one, None)


def test_a_worker_shares_what_was_compiled_for_as_many_cores(monkeypatch):
    flags, cores = {}, []
    monkeypatch.setattr(jax.config, "update", flags.__setitem__)
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda _, mine: cores.append(mine))
    monkeypatch.setattr(worker, "make_setup", lambda *arguments, mapping: (*arguments, mapping))
    config = jaxmnist.TrainConfig("gap", epochs=2)
    task = {"cores": [1, 3], "cache": "kept", "config": config.to_json()}
    task |= {"data_dir": "d", "idx_dir": None, "checkpoint_every": "1", "keep": 3}
    setup, options = worker.prepare(task)
    assert (setup, cores) == ((config, options, "processes"), [[1, 3]])
    assert options == jaxmnist.RunOptions(data_dir="d", checkpoint_every="1", keep=3)
    assert flags == {
        **{f"jax_{name}": value for name, value in devices._FLAGS.items()},
        "jax_compilation_cache_dir": "kept/2-cores",
        "jax_compilation_cache_max_size": 512 << 20,
        "jax_persistent_cache_min_compile_time_secs": 0,
    }


def test_a_worker_ends_when_nobody_can_ask_it_any_more(monkeypatch):
    """At once, also if it is compiling; what it says next would end it only then."""
    ended, requests, stop = [], queue.SimpleQueue(), threading.Event()
    monkeypatch.setattr(worker.os, "_exit", ended.append)
    monkeypatch.setattr(worker.sys, "stdin", io.StringIO('{"config": 1}\n3\n"stop"\n'))
    worker._listen(requests, stop)
    assert (requests.get_nowait(), requests.get_nowait()) == ({"config": 1}, 3)
    assert (stop.is_set(), ended) == (True, [0])


@pytest.fixture(scope="module")
def whole(small_idx_dir, tmp_path_factory):
    """The seeds that nothing happened to, one after another in this process."""
    config = jaxmnist.TrainConfig("gap", "fashion_mnist", epochs=EPOCHS, batch_size=32)
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


def test_in_processes_each_seed_is_the_run_it_would_be_alone(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 1/12")
    if hasattr(os, "sched_getaffinity"):
        shares = [one.cpu_affinity() for one in workers_of(process)]
        mine = os.sched_getaffinity(0)
        assert sorted(core for share in shares for core in share) == sorted(mine)
    status, out, err = finish(process)
    assert (status, err) == (0, "")
    assert re.fullmatch(
        r"gap, 3 of 3 seeds: \d+\.\d\d ± \d\.\d\d % of 430 test images \(\d.* to .*, best epochs "
        r".*\), 7,364 parameters, \d+ s, in runs",
        out.splitlines()[-1],
    )
    assert_same_runs(tmp_path / "runs", whole)
    summary = json.loads((tmp_path / "runs" / "summary.json").read_text())
    assert summary["seed_mapping"] == "processes"


def test_a_signal_stops_all_and_says_how_to_go_on(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 2/12")
    workers = workers_of(process)
    for one in workers:  # as a terminal or a scheduler does: to all of them
        one.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143
    stopped = re.fullmatch(r"stopped at step (\d+); to go on: python (.*)\n", err)
    assert stopped is not None, err
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    script, *words = shlex.split(stopped[2])
    assert Path(script) == SCRIPT
    status, out, _ = finish(start(*words))
    assert status == 0
    assert f"into runs, going on at step {stopped[1]} of 648, " in out.splitlines()[0]
    assert_same_runs(tmp_path / "runs", whole)


def test_killed_it_leaves_no_orphan_and_goes_on(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 2/12")
    workers = workers_of(process)
    assert len(workers) == len(shares_of_cores(3))
    process.kill()
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    # The seeds need not be said again, and may go on in another way.
    status, out, err = finish(start("--resume", "--out", "runs", "--seed-mapping", "loop"))
    assert (status, err) == (0, "")
    assert "training seeds 0 to 2 (loop), " in out.splitlines()[0]
    assert_same_runs(tmp_path / "runs", whole)


@pytest.mark.skipif(len(shares_of_cores(3)) < 2, reason="one core has one worker")
def test_a_killed_worker_is_named_and_the_others_finish(start, whole, tmp_path):
    process = start(*WORDS)
    wait_for_line(process, "seed 1, epoch 1/12")
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
