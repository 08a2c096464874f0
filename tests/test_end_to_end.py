"""The real thing: MNIST from the network, through TFDS, to an accuracy, and what is made of it."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

import jaxmnist
from jaxmnist import TrainConfig, data
from jaxmnist.export import imported
from jaxmnist.export.network import trained_network
from jaxmnist.export.targets import TARGETS, export
from jaxmnist.inference import pictures, pretrained
from jaxmnist.inference.predict import make_predict
from jaxmnist.runs.setup import make_setup
from tests.conftest import trained_variables

pytestmark = pytest.mark.slow

PICTURES = {"confusion.png", "mistakes.png", "reliability.png"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    try:
        data.load("mnist", folder)
    except data.DataError as error:
        if "could not be fetched" not in str(error):
            raise
        pytest.skip(f"MNIST cannot be fetched here: {error}")
    return folder


def test_mnist_is_whole(data_dir):
    mnist = data.load("mnist", data_dir)
    assert mnist.train_images.shape == (60_000, 28, 28)
    assert mnist.test_images.shape == (10_000, 28, 28)
    assert mnist.train_labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test_labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # The published constants are those of these images, rounded.
    pixels = mnist.train_images / 255
    assert round(float(pixels.mean()), 4) == 0.1307
    assert round(float(pixels.std()), 4) == 0.3081


@pytest.mark.parametrize("name", pretrained.NAMES)
def test_pretrained_networks_are_as_accurate_as_when_trained(name, data_dir):
    mnist = data.load("mnist", data_dir)
    run = pretrained.load_pretrained(name)
    correct = make_predict(run)(mnist.test_images).argmax(axis=1) == mnist.test_labels
    assert [100 * correct.mean()] == pytest.approx(run.summary["final_test_accuracy"], abs=1e-9)


def test_gap_learns_mnist_in_a_third_of_an_epoch(data_dir, tmp_path):
    config = jaxmnist.TrainConfig("gap", epochs=1, limit_train=20_000)
    run = jaxmnist.train(config, tmp_path / "run", options=jaxmnist.RunOptions(data_dir=data_dir))
    assert run.summary["test_count"] == 10_000
    assert run.summary["steps"] == 156
    assert run.summary["final_test_accuracy"][0] > 90


@pytest.fixture(scope="module")
def trained(data_dir, tmp_path_factory):
    """A run of `gap` that somebody trained to the end."""
    job = make_setup(TrainConfig("gap"), jaxmnist.RunOptions(data_dir=data_dir))
    out = tmp_path_factory.mktemp("runs") / "gap"
    return imported.write_run(job, trained_variables(), out, Path("gap_seed0.safetensors"))


def test_a_trained_network_is_as_good_as_it_was(trained, data_dir, command):
    """The figures of docs/results.json, but for the rounding of another machine."""
    assert trained.summary["final_test_accuracy"][0] == pytest.approx(99.42, abs=0.02)
    status, said, _ = command("evaluate", trained.path, "--data-dir", data_dir)
    assert status == 0
    folder = trained.path / "evaluation" / "mnist"
    figures = json.loads((folder / "evaluation.json").read_text())
    assert figures["count"] == 10_000
    assert figures["correct"] == pytest.approx(9942, abs=2)
    assert figures["loss"] == pytest.approx(0.01672, abs=1e-4)
    assert f"{figures['accuracy']:.2f} % of 10,000 test images of mnist" in said
    assert len(figures["mistakes"]) == 36
    assert {file.name for file in folder.glob("*.png")} == PICTURES


@pytest.mark.parametrize(("side", "inverted"), [(56, False), (100, True), (301, True)])
def test_digits_are_read_from_pictures_of_them(trained, data_dir, side, inverted):
    mnist = data.load("mnist", data_dir)
    images = [picture_of(image, side, inverted) for image in mnist.test_images[:300]]
    read = np.stack([pictures.read(image) for image in images])
    said = make_predict(trained)(read).argmax(axis=1)
    assert (said == mnist.test_labels[:300]).mean() > 0.98


def picture_of(image, side, inverted):
    """A PNG of another size, dark on light where it is inverted."""
    picture = Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    (ImageOps.invert(picture) if inverted else picture).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("target", [name for name in TARGETS if name != "torch"])
def test_exports_say_of_real_images_what_the_network_says(trained, data_dir, tmp_path, target):
    images = data.load("mnist", data_dir).test_images[:256]
    file, difference = export(trained_network(trained), target, tmp_path, images)
    assert file.is_file()
    assert difference < 1e-4
