"""Runs that are stopped, damaged, and continue; in this process."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import chex
import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError, TrainConfig, data
from jaxmnist.data import idx
from jaxmnist.inference.predict import make_predict
from jaxmnist.runs import loop
from jaxmnist.runs.checkpoint import CheckpointError
from jaxmnist.runs.loop import Stopped, TrainingError
from jaxmnist.runs.run import begun_config
from jaxmnist.runs.setup import Progress, SeedDone, Started, to_devices
from jaxmnist.runs.summary import environment
from jaxmnist.state import jit_once
from tests import conftest
from tests.conftest import golden_batch, small_files

pytestmark = pytest.mark.usefixtures("shared_programs")

FIXTURES = Path(__file__).parent / "fixtures"
TIMES = {"train_seconds", "images_per_second", "compile_seconds", "cores", "seed_mapping"}


def without_times(record):
    return {key: value for key, value in record.items() if key not in TIMES}


def plain(state):
    return state.replace(key=jax.random.key_data(state.key))


def assert_same_run(run, expected):
    """To the bit, but for the times: in memory, and as it lies on disk."""
    assert run.snapshots.keys() == expected.snapshots.keys()
    for seed, snapshot in run.snapshots.items():
        chex.assert_trees_all_equal(plain(snapshot.state), plain(expected.snapshots[seed].state))
    assert [without_times(row) for row in run.rows] == [without_times(row) for row in expected.rows]
    assert without_times(run.summary) == without_times(expected.summary)
    assert read_rows(run.path) == run.rows
    assert json.loads((run.path / "summary.json").read_text()) == run.summary


def read_rows(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def checkpoints_of(path, seed=0):
    """The checkpoints of a seed, by step."""
    folder = path / "checkpoints" / f"seed{seed}"
    return {int(entry.name): entry for entry in folder.glob("[0-9]*") if entry.name.isdigit()}


@pytest.fixture
def train(small_config, small_idx_dir, tmp_path, monkeypatch):
    """Trains the small run into a folder of the test's, one step a chunk."""
    monkeypatch.setattr(loop, "CHUNK_SECONDS", 0)

    def train(config=small_config, **options):
        options = {"out": tmp_path / "run", "idx_dir": small_idx_dir, **options}
        return conftest.train(config, **options)

    return train


def after(chunks):
    """Stops a run after so many chunks."""
    calls = itertools.count(1)
    return lambda: next(calls) == chunks


def stop(train, chunks, **options):
    with pytest.raises(Stopped) as stopped:
        train(should_stop=after(chunks), **options)
    return stopped.value


# An epoch is 15 chunks here: four steps, then 14 times one.
@pytest.mark.parametrize("chunks", [1, 7, 15, 44])
def test_a_resumed_run_ends_as_an_uninterrupted_one(train, small_run, chunks):
    stopped = stop(train, chunks)
    assert stopped.step == {1: 4, 7: 10, 15: 18, 44: 53}[chunks]
    assert_same_run(train(resume=True), small_run)


def test_a_run_resumed_several_times_ends_the_same(train, small_run):
    stop(train, 3)
    for _ in range(3):
        stop(train, 10, resume=True)
    assert_same_run(train(resume=True), small_run)


@pytest.mark.parametrize("every", ["1", "2", "1s"])
def test_checkpoint_frequency_changes_no_result(train, small_run, every):
    assert_same_run(train(checkpoint_every=every), small_run)


def test_runs_of_equal_configs_are_equal_and_another_seed_differs(train, small_config, small_run):
    run = train()
    assert_same_run(run, small_run)
    content = (run.path / "config.json").read_text()
    assert content == (small_run.path / "config.json").read_text()
    other = train(dataclasses.replace(small_config, seed=1), overwrite=True)
    assert other.rows[0]["train_loss"] != small_run.rows[0]["train_loss"]


def test_events_of_a_resumed_run(train, small_run):
    stop(train, 20)
    events = []
    run = train(resume=True, report=events.append)
    assert events[0] == Started(run.path, run.path, 600, {0: 26}, 54, "loop", [])
    progress = [event for event in events if isinstance(event, Progress)]
    assert (progress[0].epoch, progress[0].step) == (2, 30)
    # The running metrics continue too.
    whole_epoch = next(event for event in progress if event.step == 36)
    assert whole_epoch.loss == small_run.rows[1]["train_loss"]


def test_a_finished_run_is_not_trained_again_and_its_files_are_repaired(train, small_run):
    run = train()
    content = (run.path / "config.json").read_text()
    (run.path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    (run.path / "summary.json").write_text("{}")
    (run.path / "config.json").write_text("no JSON")
    events = []
    again = train(resume=True, report=events.append)
    assert events[0] == Started(run.path, run.path, 600, {0: 54}, 54, "loop", [])
    assert [type(event) for event in events[1:]] == [SeedDone]
    assert_same_run(again, small_run)
    assert (again.summary, again.rows) == (run.summary, run.rows)
    assert (run.path / "config.json").read_text() == content


def test_a_torn_line_and_rows_after_the_checkpoint_are_removed(train, small_run):
    path = stop(train, 20).path
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(small_run.rows[1]) + '\n{"epoch": 3, "st')
    assert_same_run(train(resume=True), small_run)


@pytest.mark.parametrize("kept", ["config.json", None])
def test_a_run_killed_before_its_first_checkpoint_begins_again(train, small_run, kept):
    path = stop(train, 5).path
    (whole,) = checkpoints_of(path).values()
    whole.rename(whole.with_name("18.orbax-checkpoint-tmp"))
    if kept is None:
        shutil.rmtree(path)
        path.mkdir()
    assert_same_run(train(resume=True), small_run)


def test_a_finished_run_without_checkpoints_is_not_trained_again(train):
    path = train().path
    shutil.rmtree(path / "checkpoints")
    summary = (path / "summary.json").read_text()
    with pytest.raises(CheckpointError, match="run is finished, but its checkpoints are gone"):
        train(resume=True)
    assert (path / "summary.json").read_text() == summary


def test_a_damaged_config_is_read_from_the_checkpoints(train, small_config, small_run):
    path = stop(train, 20).path
    assert begun_config(path)[:2] == (small_config, (0,))
    (path / "config.json").write_bytes(bytes(1000))  # as a power cut may leave it
    assert begun_config(path)[:2] == (small_config, (0,))
    assert_same_run(train(resume=True), small_run)


def test_keep_0_is_refused_before_anything_is_removed(train):
    path = stop(train, 5).path
    with pytest.raises(ConfigError, match="keep is 0; expected a whole number of at least 1"):
        train(keep=0, overwrite=True)
    assert (path / "checkpoints").is_dir()


def test_a_changed_config_value_is_refused_and_named(train, small_config):
    path = stop(train, 20).path
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    other = dataclasses.replace(small_config, seed=3, batch_size=30)
    with pytest.raises(ConfigError, match=r"batch_size was 32 and is 30, seed was 0 and is 3;"):
        train(other, resume=True)
    longer = dataclasses.replace(small_config, epochs=4)
    with pytest.raises(ConfigError, match="epochs was 3 and is 4;"):
        train(longer, resume=True)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    shutil.rmtree(path / "checkpoints")
    with pytest.raises(ConfigError, match="seed was 0 and is 3"):
        train(other, resume=True)


def test_a_config_that_only_config_json_has_is_refused_by_the_checkpoint(train, small_config):
    path = stop(train, 20).path
    values = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**values, "batch_size": 30}))
    with pytest.raises(ConfigError, match="batch_size was 32 and is 30"):
        train(dataclasses.replace(small_config, batch_size=30), resume=True)


def test_more_epochs_at_a_constant_rate(train, tmp_path):
    one = TrainConfig("less_params", "fashion_mnist", epochs=1, batch_size=32)
    two = dataclasses.replace(one, epochs=2)
    train(one)
    longer = train(two, resume=True)
    assert_same_run(longer, train(two, out=tmp_path / "at once"))
    assert longer.summary["epochs"] == 2
    with pytest.raises(ConfigError, match="epochs was 2 and is 1;"):
        train(one, resume=True)


def test_other_images_are_refused(train, tmp_path):
    stop(train, 5)
    files = small_files()
    labels = bytearray(files[idx.TRAIN_LABELS])
    labels[-1] = (labels[-1] + 1) % 10
    (tmp_path / "idx").mkdir()
    for name, content in {**files, idx.TRAIN_LABELS: bytes(labels)}.items():
        (tmp_path / "idx" / name).write_bytes(content)
    with pytest.raises(ConfigError, match="was started with other images; pass its --data-dir or"):
        train(resume=True, idx_dir=tmp_path / "idx")


def damage(checkpoint):
    shutil.rmtree(checkpoint / "record")


def test_a_damaged_checkpoint_is_skipped_with_a_warning(train, small_run):
    path = stop(train, 40, checkpoint_every="1").path
    found = checkpoints_of(path)
    assert found.keys() == {36, 49}
    damage(found[49])
    events = []
    run = train(resume=True, report=events.append)
    assert events[0].steps == {0: 36}
    assert "checkpoints/seed0/49 cannot be used: " in events[0].warnings[0]
    assert_same_run(run, small_run)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_non_finite_values_stop_the_run_and_keep_the_last_good_checkpoint(
    train, small_run, monkeypatch, broken
):
    compile_programs = jaxmnist.runs.train.compile_programs

    def compile_broken(*arguments, **options):
        programs = compile_programs(*arguments, **options)

        def train_chunk(*arguments):
            state, metrics = programs.train_chunk(*arguments)
            if int(state.step) == 40 and broken == "loss":
                metrics = metrics.replace(loss_sum=metrics.loss_sum * float("nan"))
            if int(state.step) == 40 and broken == "gradient":
                state = state.replace(params=jax.tree.map(lambda x: x * np.nan, state.params))
            return state, metrics

        return programs._replace(train_chunk=train_chunk)

    message = {
        "loss": "the training loss became nan at step 40 of seed 0; try a smaller --learning-rate",
        "gradient": r"is not finite after step 40 of seed 0; try a smaller --learning-rate",
    }[broken]
    with monkeypatch.context() as patch:
        patch.setattr("jaxmnist.runs.train.compile_programs", compile_broken)
        with pytest.raises(TrainingError, match=message):
            # The broken gradient is followed by a checkpoint at once; the broken loss needs none.
            train(should_stop=after(31), checkpoint_every="1")
    events = []
    assert_same_run(train(resume=True, report=events.append), small_run)
    assert events[0].steps == {0: 36}


def test_without_a_whole_checkpoint_nothing_is_changed(train):
    path = stop(train, 20, checkpoint_every="1").path
    for entry in checkpoints_of(path).values():
        damage(entry)
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*/26 .*; .*/18"):
        train(resume=True)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before


def test_another_machine_or_version_is_a_warning(train, monkeypatch):
    known = environment()
    stop(train, 5)
    changed = {**known, "device": "abacus"}
    monkeypatch.setattr("jaxmnist.runs.setup.environment", lambda _: changed)
    events = []
    train(resume=True, report=events.append)
    (warning,) = events[0].warnings
    assert warning.startswith(f"device was {known['device']} and is abacus: the result may")


def test_a_folder_in_use_is_refused(train):
    def go_on(event):
        with pytest.raises(ConfigError, match="another process is training into"):
            train(resume=True)

    stop(train, 1, report=go_on)


def test_load_run_returns_the_result_of_train(small_run):
    loaded = jaxmnist.load_run(small_run.path)
    assert (loaded.config, loaded.summary) == (small_run.config, small_run.summary)
    assert (loaded.rows, loaded.failures, loaded.path) == (small_run.rows, {}, small_run.path)
    chex.assert_trees_all_equal(plain(loaded.state), plain(small_run.state))


@pytest.fixture
def copied(small_run, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(small_run.path, tmp_path / "copied")


def test_load_run_refuses_other_folders(tmp_path):
    with pytest.raises(ConfigError, match=r"has no config\.json; expected the folder of a run"):
        jaxmnist.load_run(tmp_path)
    with pytest.raises(ConfigError, match="nowhere does not exist; expected the folder of a run"):
        jaxmnist.load_run(tmp_path / "nowhere")


def test_load_run_refuses_an_unfinished_run(train):
    path = stop(train, 5).path
    with pytest.raises(ConfigError, match="run is not finished; use --resume to continue it"):
        jaxmnist.load_run(path)


def test_load_run_needs_the_last_checkpoint(train):
    path = train(checkpoint_every="1").path
    damage(checkpoints_of(path)[54])
    with pytest.raises(CheckpointError, match=r"/54 cannot be used: .*; --resume trains the end"):
        jaxmnist.load_run(path)


def test_load_run_refuses_a_config_that_differs_from_the_checkpoint(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "batch_size": 5}))
    with pytest.raises(CheckpointError, match=r"config\.json is not the config of .*checkpoints"):
        jaxmnist.load_run(copied)


def test_load_run_refuses_links(copied, small_run):
    shutil.rmtree(checkpoints_of(copied)[54])
    inside = "checkpoints/seed0/54"
    (copied / inside).symlink_to(small_run.path / inside)
    with pytest.raises(ConfigError, match=f"{inside} is a link"):
        jaxmnist.load_run(copied)


@pytest.mark.parametrize("name", ["run_format1", "seeds_format1", "record_format1"])
def test_a_run_of_format_1_can_be_read_but_not_resumed(name, tmp_path):
    """Made from the small images, one epoch of `gap`, by commits 93973f4 and 043cef2."""
    path = shutil.copytree(FIXTURES / name, tmp_path / name)
    run = jaxmnist.load_run(path)
    assert (run.config.epochs, len(run.rows)) == (1, len(run.summary["seeds"]))
    images, _ = golden_batch(4)
    model = jaxmnist.create_model("gap")
    logits = [jit_once(model.apply)(s.state.variables, images) for s in run.snapshots.values()]
    np.testing.assert_allclose(
        np.squeeze(logits), np.load(FIXTURES / f"{name}_logits.npy"), atol=1e-5
    )
    with pytest.raises(ConfigError, match="is of an older version"):
        conftest.train(run.config, path, "nowhere", resume=True)  # before images are needed


def test_nothing_in_a_run_is_a_pickle(small_run):
    """A pickle can run anything when it is opened; every file of a run is opened here."""
    for file in small_run.path.rglob("*"):
        if file.is_file():
            content = file.read_bytes()
            assert not content.startswith((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))
            assert b"PK\x03\x04" not in content[:4]


def test_limit_train(small_idx_dir):
    dataset = data.load("kmnist", idx_dir=small_idx_dir)
    train_images, test_images = to_devices(dataset, 100)
    assert len(train_images.pixels) == len(train_images.labels) == 100
    assert len(test_images.pixels) == 430
    np.testing.assert_array_equal(train_images.pixels, dataset.train_images[:100])
    with pytest.raises(ConfigError, match="limit_train is 601, but there are 600 training images"):
        to_devices(dataset, 601)


def test_normalisation_of_a_run(small_run, small_idx_dir):
    images = jaxmnist.data.load("fashion_mnist", idx_dir=small_idx_dir)
    assert small_run.normalisation == (images.mean, images.std)
    # Older runs did not keep it.
    summary = {key: value for key, value in small_run.summary.items() if key != "normalisation"}
    mnist = small_run._replace(config=jaxmnist.TrainConfig("gap"), summary=summary)
    assert mnist.normalisation == (0.1307, 0.3081)
    with pytest.raises(ConfigError, match="has no normalisation of its images; train it again"):
        _ = small_run._replace(summary=summary).normalisation


def test_a_run_with_ema_is_resumed_and_read_back(train, tmp_path):
    config = TrainConfig("tiny", "fashion_mnist", "record", epochs=2, limit_train=512)
    whole = train(config, out=tmp_path / "whole")
    assert set(whole.state.ema) == {"params", "batch_stats"}
    chex.assert_trees_all_equal(whole.variables, whole.state.ema)
    stopped = stop(train, 1, config=config)
    assert stopped.step == 4
    again = train(config, resume=True)
    assert_same_run(again, whole)
    chex.assert_trees_all_equal(jaxmnist.load_run(again.path).variables, whole.variables)


@pytest.mark.parametrize("schedule", ["step", "plateau"])
def test_a_run_with_a_falling_rate_is_resumed(train, small_config, tmp_path, schedule):
    fall = {"step_size": 1, "patience": 0, "gamma": 0.5}
    config = dataclasses.replace(small_config, schedule=schedule, l1=1e-3, **fall)
    whole = train(config, out=tmp_path / "whole")
    stop(train, 20, config=config)
    assert_same_run(train(config, resume=True), whole)
    rates = [row["learning_rate"] for row in whole.rows]
    if schedule == "step":
        assert rates == pytest.approx([0.1, 0.05, 0.025])
    else:
        assert rates[0] == pytest.approx(0.1)
        assert set(np.round(rates, 6)) <= {0.1, 0.05, 0.025}


def test_a_run_is_tested_on_held_out_images(train, small_config, small_idx_dir):
    held = dataclasses.replace(small_config, epochs=1, holdout=100, fold=1)
    run = train(held)
    images = data.hold_out(data.load(held.dataset, idx_dir=small_idx_dir), 100, fold=1)
    predictions = make_predict(run)(images.test_images).argmax(axis=1)
    expected = 100 * (predictions == images.test_labels).mean()
    assert run.summary["final_test_accuracy"] == [pytest.approx(expected)]
