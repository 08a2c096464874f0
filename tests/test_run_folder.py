import json
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxmnist import ConfigError, TrainConfig
from jaxmnist.metrics import Metrics
from jaxmnist.runs import run_folder
from jaxmnist.runs.summary import (
    environment,
    facts_of,
    git_commit,
    make_row,
    make_summary,
    summarize_seed,
)


def metrics(loss_sum, correct, count):
    return Metrics(np.float32(loss_sum), np.int32(correct), np.int32(count))


def row(epoch, correct, test_loss=50.0):
    return make_row(
        4,
        np.float32(0.29),  # the nearest number is 0.28999999165534973
        np.float32(0.9),
        epoch,
        epoch * 10,
        metrics(64.0, 96, 128),
        metrics(test_loss, correct, 100),
        2.0,
    )


def test_a_row_worked_by_hand():
    assert row(3, 97) == {
        "epoch": 3,
        "step": 30,
        "seed": 4,
        "train_loss": 0.5,
        "train_accuracy": 75.0,
        "test_loss": 0.5,
        "test_accuracy": 97.0,
        "learning_rate": 0.29,
        "momentum": 0.9,
        "train_seconds": 2.0,
        "images_per_second": 64.0,
    }


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_non_finite_metric_is_null(loss):
    assert json.loads(json.dumps(row(1, 97, loss), allow_nan=False))["test_loss"] is None


def test_a_summary_worked_by_hand():
    facts = {"parameters": 4572, "test_count": 100, "device": "abacus"}
    finished = {
        seed: summarize_seed([row(1, 95), row(2, 99), row(3, last)], seconds, facts)
        for seed, last, seconds in ((4, 97, 1.5), (6, 98, 0.51234))
    }
    assert facts_of(finished[4]) == facts
    config = TrainConfig("less_params", epochs=3)
    failures = {5: "the loss became nan"}
    assert make_summary(config, (4, 5, 6), 30, finished, failures, facts) == {
        "format": 2,
        "variant": "less_params",
        "recipe": "notebook",
        "dataset": "mnist",
        "parameters": 4572,
        "seeds": [4, 5, 6],
        "epochs": 3,
        "steps": 30,
        "test_count": 100,
        "final_test_accuracy": [97.0, None, 98.0],
        "best_test_accuracy": [99.0, None, 99.0],
        "final_test_loss": [0.5, None, 0.5],
        "final_train_accuracy": [75.0, None, 75.0],
        "failures": {"5": "the loss became nan"},
        "compile_seconds": 1.5,
        "train_seconds": 12.0,
        "images_per_second": 640.0,
        "device": "abacus",
    }
    one = make_summary(config, (6,), 30, {6: finished[6]}, {}, facts)
    assert (one["seeds"], one["compile_seconds"], one["train_seconds"]) == ([6], 0.512, 6.0)


def test_the_environment(monkeypatch):
    found = environment()
    assert found["device"].split(",")[0] in ("cpu", "gpu", "tpu")
    assert {"python", "jax", "jaxlib", "flax", "optax", "jaxmnist"} <= set(found["versions"])
    assert found["versions"]["jax"] == jax.__version__
    monkeypatch.setattr("jaxmnist.runs.summary._PACKAGES", ("not-installed-anywhere",))
    assert environment()["versions"]["not-installed-anywhere"] is None


def test_git_commit_outside_a_checkout_is_none(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.setattr("jaxmnist.runs.summary.__file__", str(tmp_path / "summary.py"))
    assert git_commit() is None


@pytest.mark.parametrize(
    ("config", "seeds", "name"),
    [
        (TrainConfig("gap"), (0,), "gap-seed0"),
        (TrainConfig("less_params"), (12,), "less_params-seed12"),
        (TrainConfig("gap", "kmnist"), (3,), "gap-kmnist-seed3"),
        (TrainConfig("gap", recipe="record"), (0,), "gap-record-seed0"),
        (
            TrainConfig(recipe="fast/rate_0.2", holdout=9, fold=1),
            (0,),
            "gap-fast-rate_0.2-holdout9-fold1-seed0",
        ),
        (TrainConfig("gap"), (0, 1), "gap-2seeds-seed0"),
        (TrainConfig("gap", "kmnist"), (3, 1, 2), "gap-kmnist-3seeds-seed3"),
    ],
)
def test_default_name(config, seeds, name):
    assert run_folder.default_name(config, seeds) == name


BEGUN = {"config.json", "metrics.jsonl"}


def claim(out=None, overwrite=False):
    with run_folder.new_folder(TrainConfig("gap"), [0], out, overwrite) as claimed:
        return claimed


def names(folder):
    return {entry.name for entry in folder.iterdir()}


def test_the_next_free_folder_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    taken = [claim() for _ in range(3)]
    assert [str(requested) for requested, _ in taken] == ["runs/gap-seed0"] * 3
    assert [str(made) for _, made in taken] == [
        "runs/gap-seed0",
        "runs/gap-seed0-2",
        "runs/gap-seed0-3",
    ]


def test_a_named_folder_that_holds_something_is_refused(tmp_path):
    out = tmp_path / "run"
    assert claim(out) == (out, out)
    (out / "summary.json").write_text("old")
    (out / "checkpoints" / "7").mkdir(parents=True)
    (out / ".summary.json.new").write_text("half")
    with pytest.raises(
        ConfigError, match=r"run is not empty; pass another --out, or, .*--overwrite"
    ):
        claim(out)
    assert (out / "summary.json").exists()
    claim(out, overwrite=True)
    assert names(out) == BEGUN


def test_a_partly_overwritten_run_can_be_overwritten(tmp_path, monkeypatch):
    """It is interrupted when it comes to the second folder."""
    run_folder.write_config(tmp_path, TrainConfig("gap"), [0, 1])
    for folder in ("checkpoints", "tensorboard"):
        (tmp_path / folder / "seed0").mkdir(parents=True)
    rmtree, removed = run_folder.shutil.rmtree, []

    def interrupted(path):
        if removed:
            raise KeyboardInterrupt
        removed.append(path.name)
        rmtree(path)

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.shutil, "rmtree", interrupted)
        with pytest.raises(KeyboardInterrupt):
            claim(tmp_path, overwrite=True)
    assert names(tmp_path) == {"config.json", "checkpoints", "tensorboard"} - {*removed}
    claim(tmp_path, overwrite=True)
    assert names(tmp_path) == BEGUN


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "years of work", r"holds thesis\.tex, which does not belong to a run"),
        ("config.json", '{"api": "settings"}', r"config\.json: config is of format None"),
        ("checkpoints", "", "holds checkpoints, which does not belong to a run"),
    ],
)
def test_overwrite_removes_nothing_but_runs(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        claim(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == content


@pytest.mark.parametrize("link", ["seed0", "checkpoints", "evaluation", "metrics.jsonl"])
def test_overwrite_follows_no_link(tmp_path, link):
    other, out = tmp_path / "other", tmp_path / "run"
    for folder in (other / "checkpoints" / "7", out):
        folder.mkdir(parents=True)
    for folder in (other, out):
        run_folder.write_config(folder, TrainConfig("gap"), [0])
    (out / link).symlink_to(other)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        ConfigError, match=f"{link} is a link, and a run's folder must not contain links"
    ):
        claim(out, overwrite=True)
    assert sorted(tmp_path.rglob("*")) == before
    # What is named may be a link itself: to a larger disk.
    (out / link).unlink()
    (tmp_path / "named").symlink_to(out)
    claim(tmp_path / "named", overwrite=True)
    assert (names(out), (tmp_path / "named").is_symlink()) == (BEGUN, True)


@pytest.mark.parametrize("name", [".DS_Store", "._seed0", "Thumbs.db", "desktop.ini", ".nfs0001a"])
def test_system_files_are_ignored(tmp_path, name):
    (tmp_path / name).write_text("")
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ConfigError, match="holds checkpoints, which does not belong to a run"):
        run_folder.check_is_run(tmp_path)
    run_folder.write_config(tmp_path, TrainConfig("gap"), [0])
    claim(tmp_path, overwrite=True)
    assert names(tmp_path) == {name, *BEGUN}


def test_files_of_a_killed_process_are_ignored(tmp_path):
    (tmp_path / ".config.json.new").write_text("ha")
    claim(tmp_path)
    assert names(tmp_path) == BEGUN


def test_a_default_folder_that_cannot_be_made_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").symlink_to("nowhere")
    with pytest.raises(OSError, match="runs"):
        claim()


def test_a_file_in_the_folders_place_is_an_error(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(FileExistsError):
        claim(tmp_path / "run", overwrite=True)


def test_a_folder_has_one_lock(tmp_path):
    with run_folder.locked(tmp_path):
        with (
            pytest.raises(ConfigError, match=r"another process is training into .*; wait for it"),
            run_folder.locked(tmp_path),
        ):
            pass
        with pytest.raises(ConfigError, match="another process"):
            claim(tmp_path)
    with run_folder.locked(tmp_path):
        assert list(tmp_path.iterdir()) == []


def test_a_run_with_links_is_refused(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    run_folder.check_links(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "7").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match=r"checkpoints/7 is a link; a run's folder must not"):
        run_folder.check_links(tmp_path / "run")
    with pytest.raises(ConfigError, match="nowhere does not exist; expected the folder of a run"):
        run_folder.check_links(tmp_path / "nowhere")


def test_an_unreadable_config_is_refused(tmp_path):
    file = tmp_path / "config.json"
    with pytest.raises(ConfigError, match=r"has no config\.json; expected the folder of a run"):
        run_folder.read_config(tmp_path)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"config\.json: 'utf-8' codec can't decode"):
        run_folder.read_config(tmp_path)
    with file.open("wb") as opened:
        opened.truncate(1 << 40)  # a hole: a terabyte that takes no room
    with pytest.raises(ConfigError, match="has 1099511627776 bytes; expected a config"):
        run_folder.read_config(tmp_path)


def test_a_failed_write_changes_nothing(tmp_path, monkeypatch):
    run_folder.write(tmp_path / "a.json", "one")

    def full(self, content):
        self.touch()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(type(tmp_path), "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            run_folder.write(tmp_path / "a.json", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "one"


def test_a_file_that_has_the_content_is_left_untouched(tmp_path):
    file = tmp_path / "a.json"
    run_folder.write(file, "one")
    before = file.stat()
    run_folder.write(file, "one")
    after = file.stat()  # without the time of access: the file was read
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    run_folder.write(file, "two")
    assert file.read_text() == "two"


def test_appending_begins_on_a_line_of_its_own(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"ep')
    run_folder.append(path, "one")
    assert path.read_text() == '{"ep\none\n'


def test_appended_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    run_folder.write_rows(tmp_path, [])
    run_folder.append(path, "one")
    run_folder.append(path, "two")
    assert path.read_text() == "one\ntwo\n"


def test_a_line_that_another_process_appends_at_the_same_time_is_kept(tmp_path, monkeypatch):
    path = tmp_path / "search.jsonl"
    path.write_text("one\n")
    open_file = Path.open

    def after_another(self, mode):
        with open(self, "a") as other:
            other.write("theirs, and longer\n")
        return open_file(self, mode)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", after_another)
        run_folder.append(path, "two")
    assert path.read_text() == "one\ntheirs, and longer\ntwo\n"


def test_appending_does_not_make_a_removed_file_again(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        run_folder.append(tmp_path / "metrics.jsonl", "one")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_named_with_its_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device.*metrics\.jsonl"):
        run_folder.append(path, "three")


def test_overwrite_removes_derived_files(small_run, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(small_run.path, out)
    for name in run_folder.DERIVED_FOLDERS:
        (out / name / "below").mkdir(parents=True, exist_ok=True)
    (out / run_folder.CURVES).write_bytes(b"")
    run_folder.check_is_run(out)
    with run_folder.new_folder(small_run.config, [0], out, overwrite=True):
        assert names(out) == BEGUN


def test_remove_derived(tmp_path):
    for name in run_folder.DERIVED_FOLDERS:
        (tmp_path / name / "below").mkdir(parents=True)
    run_folder.remove_derived(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"profile", "tensorboard"}


def test_an_unfinished_row_is_not_read(small_run, tmp_path):
    file = tmp_path / "metrics.jsonl"
    run_folder.write_rows(tmp_path, small_run.rows)
    whole = file.read_text()
    file.write_text(whole + whole.splitlines()[0])  # but for its end
    assert run_folder.read_rows(tmp_path) == small_run.rows


def test_config_json(tmp_path):
    config = TrainConfig("gap", epochs=3, seed=7)
    run_folder.write_config(tmp_path, config, (7, 3))
    assert run_folder.read_config(tmp_path) == (config, (7, 3), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values.update(seeds=3), r"config has the seeds 3; expected a list"),
        (lambda values: values.update(seeds=[[]]), r"seed is \[\]; expected a whole number"),
        (lambda values: values.update(seeds=[]), r"seeds is empty; expected at least one"),
        (lambda values: values.update(format=3), "config is of format 3"),
        (lambda values: values.pop("epochs"), r"config has \["),
    ],
)
def test_a_wrong_config_is_refused(change, message):
    values = json.loads(run_folder.format_config(TrainConfig(), (1, 2)))
    change(values)
    with pytest.raises(ConfigError, match=message):
        run_folder.parse_config(json.dumps(values))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config is not JSON"),
        ("[" * 100_000, "config is not JSON"),
        ("[]", "config has list; expected a JSON object"),
    ],
)
def test_a_config_that_is_no_object_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        run_folder.parse_config(text)
