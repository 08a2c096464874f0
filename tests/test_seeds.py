"""Runs of several seeds, trained in this process: one after another, or in one program."""

import dataclasses
import itertools
import json
import shutil
import types
from pathlib import Path

import chex
import jax
import jax.monitoring
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError
from jaxmnist.runs import loop
from jaxmnist.runs import train as train_module
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.loop import Stopped, TrainingError, TrainLoop
from jaxmnist.runs.setup import EpochDone, Failed, Progress, SeedDone, Started
from tests import conftest
from tests.test_runs import (
    after,
    assert_same_run,
    checkpoints_of,
    damage,
    plain,
    read_rows,
)

pytestmark = pytest.mark.usefixtures("shared_programs")

MAPPINGS = ("loop", "vmap")


@pytest.fixture
def train(small_config, small_idx_dir, tmp_path, monkeypatch):
    """Trains three seeds into a folder of the test's, one step a chunk."""
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0)

    def train(seeds=(0, 1, 2), config=small_config, **options):
        options = {"out": tmp_path / "runs", "seed_mapping": "loop", **options}
        return conftest.train(config, seeds=seeds, idx_dir=small_idx_dir, **options)

    return train


@pytest.fixture(scope="module")
def whole(small_config, small_idx_dir, tmp_path_factory):
    """By mapping: three seeds that nothing happened to, and their events and compilations."""
    found = {}
    for mapping in MAPPINGS:
        events, compiled = [], []

        def note(event, duration_secs, compiled=compiled, **details):
            if event == "/jax/core/compile/backend_compile_duration":
                compiled.append(details["fun_name"])

        jax.monitoring.register_event_duration_secs_listener(note)
        run = conftest.train(
            small_config,
            tmp_path_factory.mktemp("whole") / mapping,
            small_idx_dir,
            seeds=(0, 1, 2),
            seed_mapping=mapping,
            report=events.append,
        )
        jax.monitoring.unregister_event_duration_listener(note)
        found[mapping] = run, events, compiled
    return found


def test_seeds_one_after_another_equal_single_runs(whole, small_run):
    run, _, _ = whole["loop"]
    first, second, _ = run.split()
    chex.assert_trees_all_equal(plain(first.state), plain(small_run.state))
    assert second.config == dataclasses.replace(small_run.config, seed=1)
    losses = {one.rows[0]["train_loss"] for one in run.split()}
    assert len(losses) == 3


def test_seeds_in_one_program_learn_like_single_runs(whole):
    """Rounding differs, and 54 steps amplify it; tests/test_programs.py has the first steps."""
    alone, together = (whole[mapping][0].split() for mapping in MAPPINGS)
    for seed, one in enumerate(together):
        for row, expected in zip(one.rows, alone[seed].rows, strict=True):
            same = ("epoch", "step", "seed", "learning_rate")
            assert [row[name] for name in same] == [expected[name] for name in same]
        assert row["test_accuracy"] > 90
        first = one.rows[0]["train_loss"]
        for other in (0, 1, 2):
            is_like = abs(first - alone[other].rows[0]["train_loss"]) < 0.002
            assert is_like == (other == seed)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_folder(whole, mapping):
    run, _, _ = whole[mapping]
    assert {entry.name for entry in run.path.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints"),
    }
    assert [(row["seed"], row["epoch"]) for row in read_rows(run.path)] == list(
        itertools.product((0, 1, 2), (1, 2, 3))
    )
    summary = run.summary
    assert (summary["seeds"], summary["seed_mapping"]) == ([0, 1, 2], mapping)
    assert (summary["epochs"], summary["steps"], summary["parameters"]) == (3, 54, 1484)
    finals = [run.snapshots[seed].rows[-1]["test_accuracy"] for seed in (0, 1, 2)]
    assert summary["final_test_accuracy"] == finals
    assert (run.failures, summary["failures"]) == ({}, {})


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_there_is_one_compilation_for_all_seeds(whole, mapping):
    _, _, compiled = whole[mapping]
    for program in ("create_state", "epoch_permutation", "train_chunk", "evaluate"):
        assert compiled.count(f"jit({program})") == 1


def test_events(whole):
    for mapping, together in (("loop", [(0,), (1,), (2,)]), ("vmap", [(0, 1, 2)])):
        run, events, _ = whole[mapping]
        steps = {0: 0, 1: 0, 2: 0}
        assert events[0] == Started(run.path, run.path, 600, steps, 54, mapping, [])
        progress = [event for event in events if isinstance(event, Progress)]
        assert list(dict.fromkeys(event.seeds for event in progress)) == together
        epochs = [event.rows for event in events if isinstance(event, EpochDone)]
        assert [tuple(row["seed"] for row in rows) for rows in epochs] == [
            group for group in together for _ in range(3)
        ]
        means = [sum(row["train_loss"] for row in rows) / len(rows) for rows in epochs]
        ends = [event.loss for event in progress if event.step % 18 == 0]
        assert ends == pytest.approx(means, rel=1e-6)
        done = [event.run for event in events if isinstance(event, SeedDone)]
        assert [one.config.seed for one in done] == [0, 1, 2]
        assert [one.summary["seeds"] for one in done] == [[0], [1], [2]]


@pytest.mark.parametrize(("mapping", "chunks"), [("loop", 60), ("vmap", 20)])
def test_resumed_seeds_end_as_uninterrupted_ones(train, whole, mapping, chunks):
    with pytest.raises(Stopped) as stopped:
        train(seed_mapping=mapping, should_stop=after(chunks))
    # In the loop the first seed is done, 44 chunks, and the second at its 16th chunk.
    assert stopped.value.step == {"loop": 54 + 18 + 4, "vmap": 3 * (18 + 8)}[mapping]
    events = []
    found = train(seed_mapping=mapping, resume=True, report=events.append)
    steps = {"loop": {0: 54, 1: 22, 2: 0}, "vmap": {0: 26, 1: 26, 2: 26}}
    assert events[0].steps == steps[mapping]
    assert_same_run(found, whole[mapping][0])
    if mapping == "loop":
        assert {event.seeds for event in events if isinstance(event, Progress)} == {(1,), (2,)}


def test_finished_seeds_are_not_trained_again_and_seeds_may_be_added(train, whole):
    """From one seed to three; then one whose checkpoints are gone."""
    train((0,))
    events = []
    found = train((0, 1, 2), resume=True, report=events.append)
    assert {event.seeds for event in events if isinstance(event, Progress)} == {(1,), (2,)}
    # The seeds that were finished before are reported too.
    assert [event.run.config.seed for event in events if isinstance(event, SeedDone)] == [0, 1, 2]
    assert_same_run(found, whole["loop"][0])
    shutil.rmtree(found.path / "checkpoints" / "seed1")
    assert_same_run(train((0, 1, 2), resume=True), whole["loop"][0])


def test_seeds_at_different_steps_do_not_train_side_by_side(train, whole, monkeypatch):
    """After a stop of the loop; and groups of three, the last of which leaves slots empty."""
    with pytest.raises(Stopped):
        train((3, 0, 1, 2, 4), should_stop=after(60))
    groups = []

    def watched(setup, snapshots, programs, *arguments):
        groups.append((list(snapshots), programs.num_slots))
        return TrainLoop(setup, snapshots, programs, *arguments)

    monkeypatch.setattr(train_module, "TrainLoop", watched)
    monkeypatch.setattr(train_module, "compile_largest", lambda compile_for, _: compile_for(3))
    found = train((3, 0, 1, 2, 4), seed_mapping="vmap", resume=True)
    assert groups == [([1, 2, 4], 3), ([0], 3)]
    assert list(found.snapshots) == [3, 0, 1, 2, 4]
    for seed in (1, 2):
        expected = whole["vmap"][0].snapshots[seed].rows[0]["train_loss"]
        loss = found.snapshots[seed].rows[0]["train_loss"]
        assert loss == pytest.approx(expected, rel=0.1)


@pytest.fixture
def breaking(monkeypatch):
    """Seed 1 breaks in its second epoch."""
    check_finite = loop.check_finite

    def check(which, loss, step, seed, setup):
        loss = float("nan") if seed == 1 and step >= 22 else loss
        check_finite(which, loss, step, seed, setup)

    monkeypatch.setattr(loop, "check_finite", check)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_failed_seed_is_named_and_the_others_finish(train, whole, breaking, mapping):
    events = []
    found = train(seed_mapping=mapping, checkpoint_every="1", report=events.append)
    reason = "the training loss became nan at step 22 of seed 1; try a smaller --learning-rate "
    assert found.failures[1].startswith(reason)
    assert [event for event in events if isinstance(event, Failed)] == [
        Failed(1, found.failures[1])
    ]
    expected = whole[mapping][0]
    for seed in (0, 2):
        one, other = (plain(run.snapshots[seed].state) for run in (found, expected))
        chex.assert_trees_all_equal(one, other)
    summary = json.loads((found.path / "summary.json").read_text())
    assert summary["failures"] == {"1": found.failures[1]}
    for name in ("final_test_accuracy", "best_test_accuracy", "final_test_loss"):
        first, _, last = expected.summary[name]
        assert summary[name] == [first, None, last]
    assert [(row["seed"], row["epoch"]) for row in read_rows(found.path)] == [
        *((0, 1), (0, 2), (0, 3)),
        (1, 1),
        *((2, 1), (2, 2), (2, 3)),
    ]
    loaded = jaxmnist.load_run(found.path)
    assert (loaded.snapshots.keys(), loaded.failures) == ({0, 2}, found.failures)


def test_a_failed_seed_resumes_from_its_last_good_checkpoint(train, whole, monkeypatch):
    def failing_for_seed_1(snapshot, seed, setup):
        if seed == 1 and snapshot.step > 18:
            raise TrainingError("params are not finite")

    with monkeypatch.context() as patch:
        patch.setattr(loop, "check_sound", failing_for_seed_1)
        found = train(checkpoint_every="1", seed_mapping="vmap")
    assert found.failures == {1: "params are not finite"}
    events = []
    found = train(resume=True, seed_mapping="vmap", report=events.append)
    assert events[0].steps == {0: 54, 1: 18, 2: 54}
    assert found.failures == {}
    one, other = (run.snapshots[1].state.params for run in (found, whole["loop"][0]))
    chex.assert_trees_all_close(one, other, atol=0.05)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_seed_whose_checkpoint_cannot_be_written_fails_alone(train, mapping, monkeypatch):
    mkdir = Path.mkdir

    def full(self, *arguments, **options):
        if self.name == "seed2":
            raise OSError(28, "No space left on device", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    found = train(seed_mapping=mapping)
    assert found.snapshots.keys() == {0, 1}
    assert found.failures[2].startswith("[Errno 28] No space left on device: ")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_if_all_seeds_fail_there_is_still_a_summary(train, monkeypatch, mapping):
    def check(which, loss, step, seed, setup):
        raise TrainingError(f"seed {seed} is broken")

    monkeypatch.setattr(loop, "check_finite", check)
    found = train(seed_mapping=mapping)
    assert found.failures == {seed: f"seed {seed} is broken" for seed in (0, 1, 2)}
    assert found.summary["final_test_accuracy"] == [None, None, None]
    assert (found.summary["parameters"], found.summary["train_seconds"]) == (1484, 0)
    assert found.summary["images_per_second"] is None


def test_a_seed_without_a_whole_checkpoint_fails_alone(train):
    path = train().path
    for entry in checkpoints_of(path, seed=1).values():
        damage(entry)
    events = []
    found = train(resume=True, report=events.append)
    assert found.snapshots.keys() == {0, 2}
    assert "no checkpoint in" in found.failures[1]
    assert Failed(1, found.failures[1]) in events


def test_another_config_is_refused_before_anything_is_trained(train, small_config):
    path = train((0, 1)).path
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    other = dataclasses.replace(small_config, batch_size=30)
    message = "started with the seeds 0, 1, but --seeds lacks 1; leave --seeds out"

    def assert_refused():
        with pytest.raises(ConfigError, match="batch_size was 32 and is 30"):
            train((0, 1), other, resume=True)
        with pytest.raises(ConfigError, match=message):
            train((0, 2), resume=True)

    assert_refused()
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    (path / "config.json").unlink()
    assert_refused()
    assert not (path / "config.json").exists()
    assert (path / "summary.json").exists()


def test_a_loss_becomes_nan_within_a_chunk(train, whole, monkeypatch):
    """In the midst of a chunk: the step that is named is that of the seed."""
    compile_programs = train_module.compile_programs

    def compile_broken(*arguments, **options):
        programs = compile_programs(*arguments, **options)

        def train_chunk(state, *arguments):
            if int(state.step[0]) == 18:
                ruin = np.array([1, np.nan, 1], np.float32)[:, None, None, None, None]
                kernel = state.params["conv0"]["kernel"] * ruin
                params = {**state.params, "conv0": {"kernel": kernel}}
                state = state.replace(params=params)
            return programs.train_chunk(state, *arguments)

        return programs._replace(train_chunk=train_chunk)

    monkeypatch.setattr(train_module, "compile_programs", compile_broken)
    monkeypatch.setattr(loop, "FIRST_CHUNK", 7)
    found = train(seed_mapping="vmap")
    reason = "the training loss became nan at step 19 of seed 1; try a smaller --learning-rate "
    assert found.failures.keys() == {1}
    assert found.failures[1].startswith(reason)
    for seed in (0, 2):
        one, other = (run.snapshots[seed].state for run in (found, whole["vmap"][0]))
        chex.assert_trees_all_equal(plain(one), plain(other))


def test_load_run_returns_the_result_of_train(whole):
    run, _, _ = whole["vmap"]
    loaded = jaxmnist.load_run(run.path)
    assert (loaded.config, loaded.failures) == (run.config, run.failures)
    assert (loaded.summary, loaded.path, loaded.rows) == (run.summary, run.path, run.rows)
    for seed in (0, 1, 2):
        one, other = (plain(each.snapshots[seed].state) for each in (loaded, run))
        chex.assert_trees_all_equal(one, other)


def test_load_run_refuses_unfinished_or_damaged_runs(train):
    with pytest.raises(Stopped):
        train(should_stop=after(3))
    path = train(resume=True).path
    for content, reason in (
        ("{}", "'format'"),
        ('{"format": 2}', "'failures'"),
        ("[", "Expecting"),
    ):
        (path / "summary.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"summary\.json is damaged; --resume .*{reason}"):
            jaxmnist.load_run(path)
    (path / "summary.json").unlink()
    with pytest.raises(ConfigError, match="is not finished; use --resume to continue it"):
        jaxmnist.load_run(path)
    train(resume=True)
    damage(checkpoints_of(path, seed=1)[54])
    with pytest.raises(CheckpointError, match="seed1"):
        jaxmnist.load_run(path)


def test_the_time_of_a_chunk_is_shared_among_its_seeds(train, monkeypatch):
    """By a clock that a chunk takes three seconds of; an epoch is 15 chunks here."""
    clock = itertools.count(0, 3)
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock), monotonic=lambda: 0)
    monkeypatch.setattr(loop, "time", fake)
    found = train(seed_mapping="vmap")
    rows = read_rows(found.path)
    assert {row["train_seconds"] for row in rows} == {15.0}
    assert {row["images_per_second"] for row in rows} == {38.4}  # 18 steps of 32
    assert found.summary["train_seconds"] == 135
    assert found.summary["images_per_second"] == 38.4
