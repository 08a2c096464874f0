"""Many seeds in one folder, trained in this process: one after another, or in one program."""

import contextlib
import dataclasses
import itertools
import json
import shutil
import types

import chex
import jax
import jax.monitoring
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError
from jaxmnist.data import idx
from jaxmnist.runs import run_folder, training
from jaxmnist.runs import seeds as seeds
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.seeds import SeedDone, SeedsStarted
from jaxmnist.runs.training import EpochDone, Failed, Progress, Stopped, TrainingError
from tests.conftest import small_files
from tests.test_runs import after, assert_same_run, damage, plain, without_times

pytestmark = pytest.mark.usefixtures("shared_programs")

MAPPINGS = ("loop", "vmap")


@pytest.fixture
def train(small_config, small_idx_dir, tmp_path, monkeypatch):
    """Trains three seeds into a folder of the test's, one step a chunk."""
    monkeypatch.setattr(training, "CHUNK_SECONDS", 0)

    def train(which=(0, 1, 2), config=small_config, **options):
        options = {"out": tmp_path / "runs", "seed_mapping": "loop", **options}
        return jaxmnist.train_seeds(config, which, idx_dir=small_idx_dir, **options)

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
        run = jaxmnist.train_seeds(
            small_config,
            (0, 1, 2),
            out=tmp_path_factory.mktemp("whole") / mapping,
            idx_dir=small_idx_dir,
            seed_mapping=mapping,
            report=events.append,
        )
        jax.monitoring.unregister_event_duration_listener(note)
        found[mapping] = run, events, compiled
    return found


def assert_same_runs(found, expected):
    """To the bit, but for the times: in memory, and as they lie on disk."""
    assert found.runs.keys() == expected.runs.keys()
    for seed, run in found.runs.items():
        assert_same_run(run, expected.runs[seed])
    for name in without_times(expected.summary):
        assert found.summary[name] == expected.summary[name]
    rows = [row for run in found.runs.values() for row in run.rows]
    assert read_rows(found.path) == rows
    assert json.loads((found.path / "summary.json").read_text()) == found.summary


def read_rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_one_after_another_each_is_the_run_it_would_be_alone(whole, small_run):
    run, _, _ = whole["loop"]
    assert_same_run(run.runs[0], small_run)
    assert run.runs[1].config == dataclasses.replace(small_run.config, seed=1)
    losses = {run.runs[seed].rows[0]["train_loss"] for seed in (0, 1, 2)}
    assert len(losses) == 3


def test_in_one_program_each_learns_like_alone(whole):
    """Rounding differs, and 54 steps amplify it; tests/test_mesh.py compares the first steps."""
    alone, together = (whole[mapping][0] for mapping in MAPPINGS)
    for seed in (0, 1, 2):
        for row, expected in zip(together.runs[seed].rows, alone.runs[seed].rows, strict=True):
            assert (row["epoch"], row["step"], row["seed"]) == (
                *(expected["epoch"], expected["step"]),
                seed,
            )
            assert row["learning_rate"] == expected["learning_rate"]
        assert row["test_accuracy"] > 90
        first = together.runs[seed].rows[0]["train_loss"]
        for other in (0, 1, 2):
            is_like = abs(first - alone.runs[other].rows[0]["train_loss"]) < 0.002
            assert is_like == (other == seed)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_the_folder(whole, mapping):
    run, _, _ = whole[mapping]
    assert {entry.name for entry in run.path.iterdir()} == {
        *("config.json", "metrics.jsonl", "summary.json"),
        *("seed0", "seed1", "seed2"),
    }
    assert [(row["seed"], row["epoch"]) for row in read_rows(run.path)] == list(
        itertools.product((0, 1, 2), (1, 2, 3))
    )
    for seed in (0, 1, 2):
        loaded = jaxmnist.load_run(run.path / f"seed{seed}")
        chex.assert_trees_all_equal(plain(loaded.state), plain(run.runs[seed].state))
        assert loaded.rows == run.runs[seed].rows
    summary = run.summary
    assert (summary["seeds"], summary["seed_mapping"]) == ([0, 1, 2], mapping)
    assert (summary["epochs"], summary["steps"], summary["parameters"]) == (3, 54, 7364)
    assert summary["final_test_accuracy"] == [
        run.runs[seed].rows[-1]["test_accuracy"] for seed in (0, 1, 2)
    ]
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
        assert events[0] == SeedsStarted(run.path, run.path, 600, steps, 54, mapping, [])
        progress = [event for event in events if isinstance(event, Progress)]
        assert list(dict.fromkeys(event.seeds for event in progress)) == together
        epochs = [event.rows for event in events if isinstance(event, EpochDone)]
        assert [tuple(row["seed"] for row in rows) for rows in epochs] == [
            block for block in together for _ in range(3)
        ]
        means = [sum(row["train_loss"] for row in rows) / len(rows) for rows in epochs]
        ends = [event.loss for event in progress if event.step % 18 == 0]
        assert ends == pytest.approx(means, rel=1e-6)
        done = [event.run for event in events if isinstance(event, SeedDone)]
        assert [one.config.seed for one in done] == [0, 1, 2]
        assert [one.path for one in done] == [run.path / f"seed{seed}" for seed in (0, 1, 2)]


@pytest.mark.parametrize(("mapping", "chunks"), [("loop", 60), ("vmap", 20)])
def test_stopped_seeds_go_on_to_the_same_end(train, whole, mapping, chunks):
    with pytest.raises(Stopped) as stopped:
        train(seed_mapping=mapping, should_stop=after(chunks))
    # In the loop the first seed is done, 44 chunks, and the second at its 16th chunk.
    assert stopped.value.step == {"loop": 54 + 18 + 4, "vmap": 3 * (18 + 8)}[mapping]
    events = []
    found = train(seed_mapping=mapping, resume=True, report=events.append)
    assert (
        events[0].steps
        == {
            "loop": {0: 54, 1: 22, 2: 0},
            "vmap": {0: 26, 1: 26, 2: 26},
        }[mapping]
    )
    assert_same_runs(found, whole[mapping][0])
    if mapping == "loop":
        assert {event.seeds for event in events if isinstance(event, Progress)} == {(1,), (2,)}


def test_what_is_finished_is_not_trained_again_and_seeds_may_be_added(train, whole):
    train((0, 1))
    events = []
    found = train((0, 1, 2), resume=True, report=events.append)
    assert {event.seeds for event in events if isinstance(event, Progress)} == {(2,)}
    # Of the seeds that were finished before, this is said, too.
    assert [event.run.config.seed for event in events if isinstance(event, SeedDone)] == [0, 1, 2]
    assert_same_runs(found, whole["loop"][0])
    shutil.rmtree(found.path / "seed1")
    assert_same_runs(train((0, 1, 2), resume=True), whole["loop"][0])


def test_seeds_that_are_not_equally_far_do_not_share_a_block(train, whole, monkeypatch):
    """After a stop of the loop; and blocks of three, of which the last has places left over."""
    with pytest.raises(Stopped):
        train((3, 0, 1, 2, 4), should_stop=after(60))
    blocks = []
    train_block = training.train_block

    def watched(jobs, begun, programs, watch):
        blocks.append(([job.config.seed for job in jobs], programs.places))
        return train_block(jobs, begun, programs, watch)

    monkeypatch.setattr(seeds, "train_block", watched)
    monkeypatch.setattr(seeds, "compile_block", lambda compile_for, _: compile_for(3))
    found = train((3, 0, 1, 2, 4), seed_mapping="vmap", resume=True)
    assert blocks == [([1, 2, 4], 3), ([0], 3)]
    assert found.runs.keys() == {3, 0, 1, 2, 4}
    for seed in (1, 2):
        rows = whole["vmap"][0].runs[seed].rows
        assert found.runs[seed].rows[0]["train_loss"] == pytest.approx(
            rows[0]["train_loss"], rel=0.1
        )


@pytest.fixture
def breaking(monkeypatch):
    """Seed 1 breaks in its second epoch."""
    check_finite = training.check_finite

    def check(which, loss, step, config):
        loss = float("nan") if config.seed == 1 and step >= 22 else loss
        check_finite(which, loss, step, config)

    monkeypatch.setattr(training, "check_finite", check)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_seed_that_fails_is_named_and_takes_no_other_down(train, whole, breaking, mapping):
    events = []
    found = train(seed_mapping=mapping, checkpoint_every="1", report=events.append)
    reason = "the training loss became nan at step 22 of seed 1; try a smaller --learning-rate "
    assert found.failures[1].startswith(reason)
    assert [event for event in events if isinstance(event, Failed)] == [
        Failed(1, found.failures[1])
    ]
    expected = whole[mapping][0]
    for seed in (0, 2):
        assert_same_run(found.runs[seed], expected.runs[seed])
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
    loaded = jaxmnist.load_seeds(found.path)
    assert (loaded.runs.keys(), loaded.failures) == ({0, 2}, found.failures)


def test_a_seed_that_failed_goes_on_from_its_last_good_checkpoint(train, whole, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(training, "check_sound", failing_for_seed_1)
        found = train(checkpoint_every="1", seed_mapping="vmap")
    assert found.failures == {1: "params are not finite"}
    events = []
    found = train(resume=True, seed_mapping="vmap", report=events.append)
    assert events[0].steps == {0: 54, 1: 18, 2: 54}
    assert found.failures == {}
    chex.assert_trees_all_close(
        found.runs[1].state.params, whole["loop"][0].runs[1].state.params, atol=0.05
    )


def failing_for_seed_1(position, config):
    if config.seed == 1 and position.step > 18:
        raise TrainingError("params are not finite")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_seed_whose_checkpoint_cannot_be_written_fails_alone(train, mapping, monkeypatch):
    mkdir = type(run_folder.seed_folder(train().path, 0)).mkdir

    def full(self, *arguments, **options):
        if self.parent.name == "seed2":
            raise OSError(28, "No space left on device", str(self))
        mkdir(self, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.mkdir", full)
    found = train(overwrite=True, seed_mapping=mapping)
    assert found.runs.keys() == {0, 1}
    assert found.failures[2].startswith("[Errno 28] No space left on device: ")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_if_all_fail_there_is_a_summary_all_the_same(train, monkeypatch, mapping):
    def check(which, loss, step, config):
        raise TrainingError(f"seed {config.seed} is broken")

    monkeypatch.setattr(training, "check_finite", check)
    found = train(seed_mapping=mapping)
    assert found.failures == {seed: f"seed {seed} is broken" for seed in (0, 1, 2)}
    assert found.summary["final_test_accuracy"] == [None, None, None]
    assert (found.summary["parameters"], found.summary["train_seconds"]) == (7364, 0)
    assert found.summary["images_per_second"] is None


def test_a_seed_of_which_nothing_is_whole_fails_alone(train, whole):
    path = train().path
    for entry in (path / "seed1" / "checkpoints").glob("[0-9]*"):
        damage(entry)
    events = []
    found = train(resume=True, report=events.append)
    assert found.runs.keys() == {0, 2}
    assert "no checkpoint in" in found.failures[1]
    assert Failed(1, found.failures[1]) in events


def test_another_config_is_refused_before_anything_is_trained(train, small_config):
    path = train((0, 1)).path
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    other = dataclasses.replace(small_config, batch_size=30)
    with pytest.raises(ConfigError, match="batch_size was 32 and is 30"):
        train((0, 1), other, resume=True)
    message = "begun with the seeds 0, 1, and 1 are not among those asked for; leave --seeds out"
    with pytest.raises(ConfigError, match=message):
        train((0, 2), resume=True)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    (path / "config.json").unlink()
    with pytest.raises(ConfigError, match="batch_size was 32 and is 30"):
        train((0, 1), other, resume=True)
    with pytest.raises(ConfigError, match="has seed0, which are not among the seeds asked for"):
        train((1,), resume=True)
    assert not (path / "config.json").exists()
    assert (path / "summary.json").exists()


def test_other_images_are_refused_and_nothing_is_touched(train, tmp_path, whole):
    path = train((0, 1)).path
    files = small_files()
    labels = bytearray(files[idx.TRAIN_LABELS])
    labels[-1] = (labels[-1] + 1) % 10
    (tmp_path / "idx").mkdir()
    for name, content in {**files, idx.TRAIN_LABELS: bytes(labels)}.items():
        (tmp_path / "idx" / name).write_bytes(content)
    config = whole["loop"][0].config.config
    with pytest.raises(ConfigError, match="was begun with other images"):
        jaxmnist.train_seeds(config, (0, 1, 2), out=path, idx_dir=tmp_path / "idx", resume=True)
    assert jaxmnist.load_seeds(path).config.seeds == (0, 1)


def test_a_damaged_config_is_written_anew(train, whole):
    path = train().path
    (path / "config.json").write_text("no JSON")
    assert_same_runs(train(resume=True), whole["loop"][0])
    assert run_folder.read_config_of_seeds(path).seeds == (0, 1, 2)


def test_one_run_and_many_are_not_taken_for_each_other(train, small_config, small_idx_dir):
    path = train((0, 1)).path
    with pytest.raises(
        ConfigError, match=r"has the runs of 2 seeds; expected one of them, .*seed0"
    ):
        jaxmnist.load_run(path)
    with pytest.raises(ConfigError, match="has the runs of several seeds; pass their --seeds"):
        jaxmnist.train(small_config, out=path, idx_dir=small_idx_dir, resume=True)
    with pytest.raises(ConfigError, match="seed0 has one run; leave --seeds out"):
        train((0, 1), out=path / "seed0", resume=True)
    with pytest.raises(ConfigError, match="seed0 has one run; expected the runs of --seeds"):
        jaxmnist.load_seeds(path / "seed0")
    jaxmnist.train(small_config, out=path, idx_dir=small_idx_dir, overwrite=True)
    assert not (path / "seed1").exists()


def test_a_run_that_has_no_checkpoint_yet_is_not_taken_for_many(train, small_config, tmp_path):
    path = tmp_path / "one"
    path.mkdir()
    (path / "config.json").write_text(small_config.to_json())
    with pytest.raises(ConfigError, match="one has one run; leave --seeds out"):
        train((0, 1), out=path, resume=True)
    assert [entry.name for entry in path.iterdir()] == ["config.json"]


def test_a_seed_that_another_process_is_at_fails_alone(train):
    held = contextlib.ExitStack()

    def hold(event):
        if isinstance(event, Progress) and event.seeds == (0,) and event.step == 4:
            path = events[0].out / "seed1"
            path.mkdir()
            held.enter_context(run_folder.locked(path))
        events.append(event)

    events = []
    with held:
        found = train(report=hold)
    assert found.runs.keys() == {0, 2}
    assert found.failures[1].startswith("another process is training into ")


def test_a_log_of_all_that_cannot_be_written_ends_no_seed(train, whole, monkeypatch):
    append = run_folder.append

    def full(path, line):
        if path.parent.name == "runs":
            raise OSError(28, "No space left on device", str(path))
        append(path, line)

    monkeypatch.setattr(run_folder, "append", full)
    assert_same_runs(train(), whole["loop"][0])


def test_a_loss_that_is_really_not_finite(train, whole, monkeypatch):
    """In the midst of a chunk: the step that is named is that of the seed."""
    compile_for = training.compile_for

    def compile_broken(job, places):
        programs = compile_for(job, places)

        def train_chunk(state, *arguments):
            if int(state.step[0]) == 18:
                ruin = np.array([1, np.nan, 1], np.float32)[:, None, None, None, None]
                kernel = state.params["conv0"]["kernel"] * ruin
                params = {**state.params, "conv0": {"kernel": kernel}}
                state = state.replace(params=params)
            return programs.train_chunk(state, *arguments)

        return programs._replace(train_chunk=train_chunk)

    monkeypatch.setattr(seeds, "compile_for", compile_broken)
    monkeypatch.setattr(training, "FIRST_CHUNK", 7)
    found = train(seed_mapping="vmap")
    reason = "the training loss became nan at step 19 of seed 1; try a smaller --learning-rate "
    assert found.failures.keys() == {1}
    assert found.failures[1].startswith(reason)
    for seed in (0, 2):
        assert_same_run(found.runs[seed], whole["vmap"][0].runs[seed])


def test_overwriting_removes_nothing_but_runs(train):
    path = train((0, 1)).path
    (path / "seed1" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"seed1 holds thesis\.tex, which is not of a run"):
        train((0, 1), overwrite=True)
    assert (path / "seed1" / "thesis.tex").exists()


def test_load_seeds_gives_the_same_back(whole):
    run, _, _ = whole["vmap"]
    loaded = jaxmnist.load_seeds(run.path)
    assert (loaded.config, loaded.failures) == (run.config, run.failures)
    assert (loaded.summary, loaded.path) == (run.summary, run.path)
    for seed in (0, 1, 2):
        assert loaded.runs[seed].summary == run.runs[seed].summary
        chex.assert_trees_all_equal(plain(loaded.runs[seed].state), plain(run.runs[seed].state))


def test_load_seeds_refuses_what_is_not_at_its_end(train):
    with pytest.raises(Stopped):
        train(should_stop=after(3))
    found = train(resume=True)
    path = found.path
    for content, reason in (
        ("{}", "'format'"),
        ('{"format": 1}', "'failures'"),
        ("[", "Expecting"),
    ):
        (path / "summary.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"summary\.json is damaged: {reason}.*; --resume"):
            jaxmnist.load_seeds(path)
    (path / "summary.json").unlink()
    with pytest.raises(ConfigError, match="are not finished; --resume goes on with them"):
        jaxmnist.load_seeds(path)
    assert_same_runs(train(resume=True), found)
    damage(next((path / "seed1" / "checkpoints").glob("[0-9]*")))
    with pytest.raises(CheckpointError, match="seed1"):
        jaxmnist.load_seeds(path)


def test_the_time_of_a_block_is_shared_among_its_seeds(train, monkeypatch):
    """By a clock that a chunk takes three seconds of; an epoch is 15 chunks here."""
    clock = itertools.count(0, 3)
    fake = types.SimpleNamespace(perf_counter=lambda: next(clock), monotonic=lambda: 0)
    monkeypatch.setattr(training, "time", fake)
    found = train(seed_mapping="vmap")
    rows = read_rows(found.path)
    assert {row["train_seconds"] for row in rows} == {15.0}
    assert {row["images_per_second"] for row in rows} == {38.4}  # 18 steps of 32
    assert found.summary["train_seconds"] == 135
    assert found.summary["images_per_second"] == 38.4
