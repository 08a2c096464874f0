import functools
import json
import os
import shutil
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxmnist import ConfigError, TrainConfig, create_model
from jaxmnist.metrics import Metrics
from jaxmnist.optim import make_optimizer
from jaxmnist.runs import checkpoint
from jaxmnist.runs.checkpoint import Checkpoint, CheckpointError, save
from jaxmnist.runs.summary import make_row
from jaxmnist.state import create_state, initial_state
from tests.test_runs import plain

METRICS = Metrics(np.float32(12.5), np.int32(90), np.int32(128))
NOTES = {"rows": [{"loss": 0.1}], "of": "no importance"}


def functions(variant):
    model = create_model(variant)
    tx = make_optimizer(TrainConfig(variant), 100)
    return functools.partial(initial_state, model, tx), jax.eval_shape(
        functools.partial(create_state, model, tx), 0
    )


@pytest.fixture(scope="module")
def state():
    create, _ = functions("batch_norm")
    return create(3)


def at(state, step):
    return Checkpoint(state.replace(step=jnp.int32(step)), METRICS, NOTES)


@pytest.fixture(scope="module")
def original(state, tmp_path_factory):
    """Checkpoints of steps 10 and 20; tests must not change them."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "seed0"
    for step in (5, 10, 20):
        save(folder, at(state, step), keep=2)
    return folder


@pytest.fixture
def saved(original, tmp_path):
    """A copy of the same, to be damaged."""
    return shutil.copytree(original, tmp_path / "checkpoints")


def template(variant="batch_norm"):
    _, shapes = functions(variant)
    return lambda notes: shapes


def test_a_checkpoint_is_restored_bit_by_bit(state, original):
    found, skipped = checkpoint.newest_whole(original, template())
    chex.assert_trees_all_equal_structs(found.state, state)
    chex.assert_trees_all_equal_dtypes(plain(found.state), plain(state))
    chex.assert_trees_all_equal(plain(found.state), plain(at(state, 20).state))
    chex.assert_trees_all_equal(found.metrics, METRICS)
    assert (found.metadata, skipped) == (NOTES, [])


def test_the_newest_are_kept(original):
    assert checkpoint.steps(original) == [20, 10]


def test_another_network_is_refused(original):
    with pytest.raises(
        CheckpointError,
        match=r"state/batch_stats/norm0/mean is float32\[16\]; expected no such array: it is of",
    ):
        checkpoint.newest_whole(original, template("less_params"))


def test_another_dtype_is_refused_not_cast(original):
    _, shapes = functions("batch_norm")
    shapes = shapes.replace(step=jax.ShapeDtypeStruct((), np.int16))
    with pytest.raises(CheckpointError, match=r"state/step is int32\[\]; expected int16\[\]"):
        checkpoint.newest_whole(original, lambda notes: shapes)


def test_an_error_of_the_template_ends_the_search(original):
    def refuse(notes):
        raise ConfigError(f"not {notes['of']}")

    with pytest.raises(ConfigError, match="not no importance"):
        checkpoint.newest_whole(original, refuse)


def test_no_checkpoint(tmp_path):
    assert checkpoint.steps(tmp_path / "none") == []
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: there is none"):
        checkpoint.newest_whole(tmp_path, template())


def largest_file(path):
    """The largest with numbers in it; TensorStore writes one or more, as its threads have it."""
    return max(path.rglob("d/*"), key=lambda file: file.stat().st_size)


def flip(file, place, bit=0):
    content = bytearray(file.read_bytes())
    content[place] ^= 1 << bit
    file.write_bytes(content)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_flipped_bits_of_the_arrays_are_detected(saved, state):
    """Sixteen places over the largest file, which holds the arrays."""
    file, reasons = largest_file(saved / "20" / "arrays"), []
    whole = file.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 16, dtype=int):
        flip(file, place)
        found, skipped = checkpoint.newest_whole(saved, template())
        # Nothing depends on some bytes: then the newest checkpoint is as it was saved.
        expected = at(state, 10 if skipped else 20)
        chex.assert_trees_all_equal(plain(found.state), plain(expected.state))
        reasons += skipped
        file.write_bytes(whole)
    assert all("checkpoints/20 cannot be used: " in reason for reason in reasons)
    # Orbax restores most of them as other numbers, without an error.
    assert sum("differ from their digests" in reason for reason in reasons) > 8


def test_a_changed_array_is_named(saved, state, tmp_path):
    """As whole as can be for Orbax: the arrays of a checkpoint, in another one's place."""
    other = state.replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
    save(tmp_path / "other", at(other, 20), keep=1)
    shutil.rmtree(saved / "20" / "arrays")
    shutil.copytree(tmp_path / "other" / "20" / "arrays", saved / "20" / "arrays")
    found, (reason,) = checkpoint.newest_whole(saved, template())
    assert int(found.state.step) == 10
    assert reason.endswith("differ from their digests, first state/params/conv0/kernel")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record["notes"].update(of="importance"), "its record differs from its"),
        (lambda record: record.update(format=3), "its record differs from its digest"),
        (lambda record: record.pop("sha256_of_record"), "KeyError 'sha256_of_record'"),
    ],
)
def test_a_changed_record_is_detected(saved, change, message):
    file = saved / "20" / "record" / "metadata"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))
    found, (reason,) = checkpoint.newest_whole(saved, template())
    assert message in reason
    assert int(found.state.step) == 10


def test_a_whole_checkpoint_of_another_format_ends_the_search(saved, state, monkeypatch):
    """It is not damaged: to pass it over would be to lose it."""
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 3)
        save(saved, at(state, 30), keep=3)
    message = r"checkpoints/30 is of format 3, but this version of jaxmnist reads format 1 and 2"
    with pytest.raises(ConfigError, match=message):
        checkpoint.newest_metadata(saved)
    with pytest.raises(ConfigError, match=message):
        checkpoint.newest_whole(saved, template())


def test_the_newest_metadata(saved, tmp_path):
    assert checkpoint.newest_metadata(tmp_path / "none") is None
    shutil.rmtree(saved / "20" / "arrays")
    assert checkpoint.newest_metadata(saved) == NOTES
    for step in ("10", "20"):
        shutil.rmtree(saved / step / "record")
    assert checkpoint.newest_metadata(saved) is None


def test_a_pipe_in_a_checkpoint_is_not_opened(saved):
    os.mkfifo(saved / "20" / "record" / "pipe")  # whoever reads it waits for ever
    _, (reason,) = checkpoint.newest_whole(saved, template())
    assert reason.endswith("pipe is no file")


def test_an_oversized_record_is_not_read(saved):
    file = saved / "20" / "record" / "metadata"
    with file.open("ab") as opened:
        opened.truncate(1 << 40)
    _, (reason,) = checkpoint.newest_whole(saved, template())
    assert "metadata has 1099511627776 bytes; expected at most 16777216" in reason


def test_the_rows_of_the_longest_run_can_be_read_again():
    """A row of the longest numbers that a training may have, as the record holds it."""
    long = 0.123456789012345678
    tested = types.SimpleNamespace(loss=1e5 * long, accuracy=100 * long)
    row = make_row(2**32 - 1, 1e-5 * long, long, 50_000, 2**31 - 1, METRICS, tested, 1e5 * long)
    row |= {"train_loss": 1e5 * long, "train_accuracy": 100 * long}
    rows = len(json.dumps([row])) * checkpoint.MAX_EPOCHS
    assert rows + 100_000 < checkpoint.MAX_RECORD_BYTES


def test_an_oversized_array_is_not_read(saved):
    """Ten gigabytes of zeros take a few kilobytes on disk, and must take none in memory."""
    arrays = {"state": {"step": np.zeros(25_000_000, np.int32)}}
    shutil.rmtree(saved / "20" / "arrays")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(saved / "20" / "arrays", arrays)
    _, (reason,) = checkpoint.newest_whole(saved, template())
    assert "metrics/correct is no such array" in reason


# TensorStore's threads still report to a loop that Orbax closed when the first array failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", ["empty", "no arrays", "no record", "cut", "in another's place"])
def test_a_damaged_checkpoint_is_skipped(saved, damage):
    newest = saved / "20"
    if damage == "empty":
        shutil.rmtree(newest)
        newest.mkdir()
    elif damage == "no arrays":
        shutil.rmtree(newest / "arrays")
    elif damage == "no record":
        shutil.rmtree(newest / "record")
    elif damage == "cut":
        file = largest_file(newest / "arrays")
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    else:
        shutil.rmtree(newest)
        shutil.copytree(saved / "10", newest)
    found, (reason,) = checkpoint.newest_whole(saved, template())
    assert int(found.state.step) == 10
    assert reason.startswith(f"{newest} cannot be used: ")
    checkpoint.clean(saved, 10)
    assert checkpoint.steps(saved) == [10]


def test_without_a_whole_checkpoint_every_reason_is_given(saved):
    for step in ("10", "20"):
        shutil.rmtree(saved / step / "record")
    before = sorted(saved.rglob("*"))
    with pytest.raises(CheckpointError, match=r"is whole: .*/20 cannot .*; .*/10 cannot"):
        checkpoint.newest_whole(saved, template())
    assert sorted(saved.rglob("*")) == before


def test_half_written_checkpoints_are_removed(saved):
    half = saved / "30.orbax-checkpoint-tmp"
    shutil.copytree(saved / "20", half)
    assert checkpoint.steps(saved) == [20, 10]
    checkpoint.clean(saved, 20)
    assert sorted(entry.name for entry in saved.iterdir() if entry.is_dir()) == ["10", "20"]


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, state, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    folder = tmp_path / "checkpoints" / "seed0"
    with pytest.raises(OSError, match=r"No space left on device \(1000 bytes free, .*checkpoints"):
        save(folder, at(state, 1), keep=2)
    assert list(folder.iterdir()) == []


def test_a_removed_run_folder_is_named_and_not_made_again(tmp_path, state):
    run = tmp_path / "run"
    run.mkdir()
    save(run / "checkpoints" / "seed0", at(state, 1), keep=2)
    shutil.rmtree(run)
    with pytest.raises(OSError, match=r"the run's folder was removed.*run"):
        save(run / "checkpoints" / "seed0", at(state, 2), keep=2)
    assert not run.exists()


def test_a_checkpoint_that_could_not_be_written_is_an_error(saved, state, monkeypatch):
    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", fail)
    message = r"could not be written .*No space left .*are whole"
    with pytest.raises(CheckpointError, match=message):
        save(saved, at(state, 30), keep=2)
    found, _ = checkpoint.newest_whole(saved, template())
    assert int(found.state.step) == 20
