"""The trained networks of the package: their files, and what takes their names."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxmnist import ConfigError, data
from jaxmnist.analysis import evaluation
from jaxmnist.inference import pretrained
from jaxmnist.inference.predict import load_runs, load_seed, make_predict
from jaxmnist.inference.pretrained import NAMES, SHORT_NAMES, load_pretrained, write_pretrained

RESULTS = json.loads((Path(__file__).parent.parent / "docs" / "results.json").read_text())


def result_of(name):
    """Seed 0 of a network in docs/results.json."""
    return next(run for run in RESULTS["variants"][name]["runs"] if run["seed"] == 0)


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of the folder of pretrained networks, in its place."""
    folder = shutil.copytree(pretrained.FOLDER, tmp_path / "pretrained")
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_is_the_run_of_the_published_results(name):
    run = load_pretrained(name)
    expected = result_of(name)
    assert run.config.name == name
    assert run.config.seed == 0
    assert run.summary["final_test_accuracy"] == [expected["final_test_accuracy"]]
    assert run.summary["parameters"] == RESULTS["variants"][name]["parameters"]
    assert [row["test_accuracy"] for row in run.rows] == expected["curves"]["test_accuracy"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_is_right_about_as_many_test_images_as_published(name, mnist):
    log_probs = make_predict(load_pretrained(name))(mnist.test_images)
    found = evaluation.evaluate(log_probs, mnist.test_labels)
    assert round(found.accuracy, 2) == result_of(name)["final_test_accuracy"]


@pytest.fixture(scope="module")
def mnist():
    try:
        return data.load("mnist", data_dir=Path.home() / "tensorflow_datasets")
    except data.DataError as error:
        pytest.skip(f"MNIST is not available: {error}")


def test_the_files_are_small():
    files = list(pretrained.FOLDER.glob("*.safetensors"))
    assert len(files) == len(NAMES)
    assert sum(file.stat().st_size for file in files) < 500_000


def test_a_damaged_file_is_refused(copy):
    file = copy / "gap.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
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
