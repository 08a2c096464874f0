"""The trained networks of the package: their files, and what takes their names."""

import json
import shutil
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import pytest
from PIL import Image

from jaxmnist import ConfigError, data
from jaxmnist.config import parse_experiment
from jaxmnist.inference import pretrained
from jaxmnist.inference.predict import load_runs, load_seed, make_predict
from jaxmnist.inference.pretrained import NAMES, SHORT_NAMES, load_pretrained, write_pretrained

RESULTS = json.loads((Path(__file__).parent.parent / "docs" / "results.json").read_text())


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the folder of pretrained networks, in its place."""
    folder = shutil.copytree(pretrained.FOLDER, tmp_path / "pretrained")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_is_a_run_like_the_published_ones(name):
    """Of the same config; on another kind of processor, rounding leads to other weights."""
    run, published = load_pretrained(name), RESULTS["variants"][name]
    expected = parse_experiment(name, seed=0)
    assert run.config == expected
    assert run.summary["parameters"] == published["parameters"]
    accuracies = [each["final_test_accuracy"] for each in published["runs"]]
    (accuracy,) = run.summary["final_test_accuracy"]
    assert abs(accuracy - fmean(accuracies)) < 4 * stdev(accuracies)
    assert run.rows[-1]["test_accuracy"] == accuracy
    assert len(run.rows) == expected.epochs


def test_the_files_are_small():
    files = list(pretrained.FOLDER.glob("*.safetensors"))
    assert len(files) == len(NAMES)
    assert sum(file.stat().st_size for file in files) < 500_000


@pytest.mark.parametrize("is_swapped", [False, True])
def test_a_damaged_file_is_refused(copy, is_swapped):
    file = copy / "gap.safetensors"
    content = bytearray(file.with_stem("gap-fast" if is_swapped else "gap").read_bytes())
    content[-1] ^= not is_swapped
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"gap\.safetensors differs from its digest"):
        load_pretrained("gap")


def test_an_unknown_name_is_refused():
    with pytest.raises(ConfigError, match=r"pretrained network is 'gab'; .*Did you mean gap\?"):
        load_pretrained("gab")


def test_a_recipe_names_its_network():
    assert SHORT_NAMES == {"fast": "gap/fast", "record": "gap/record"}
    assert load_seed("record").config.recipe == "record"
    assert load_seed("gap/fast").config.recipe == "fast"


def test_a_folder_comes_before_a_name(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small_run.path, "gap")
    assert load_seed("gap").config == small_run.config


def test_neither_a_folder_nor_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"gab does not exist; .* less_params, batch_norm, "):
        load_runs("gab")


def test_what_is_written_is_what_was_trained(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "NAMES", (small_run.config.name,))
    (file,) = write_pretrained([small_run], tmp_path / "networks")
    monkeypatch.setattr(pretrained, "FOLDER", file.parent)
    run = load_pretrained(small_run.config.name)
    images = np.zeros((3, 28, 28), np.uint8)
    np.testing.assert_array_equal(make_predict(run)(images), make_predict(small_run)(images))
    assert run.rows == small_run.rows
    assert run.summary == small_run.summary
    assert run.config == small_run.config


def test_a_missing_run_is_named(small_run, tmp_path):
    with pytest.raises(ConfigError, match=r"no run of seed 0 of less_params, batch_norm, .*record"):
        write_pretrained([small_run], tmp_path)


def test_predict_takes_a_name(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    picture = np.full((60, 40), 255, np.uint8)
    picture[8:52, 18:23] = 0
    Image.fromarray(picture).save("one.png")
    status, out, _ = command("predict", "record", "one.png")
    assert status == 0
    assert out.startswith("one.png: 1 ")


def test_export_takes_a_name(command, small_idx_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data.idx, "SHA256", {})
    words = ("gap/fast", "--to", "safetensors", "--idx-dir", small_idx_dir)
    status, out, err = command("export", *words)
    assert (status, err) == (0, "")
    assert out.startswith("runs/pretrained/gap-fast/export/model.safetensors: ")
