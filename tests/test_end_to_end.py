"""The real thing: MNIST from the network, through TFDS, to an accuracy."""

import subprocess
import sys

import pytest

import jaxmnist
from jaxmnist import data


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


def test_gap_learns_mnist_in_a_third_of_an_epoch(data_dir, tmp_path):
    config = jaxmnist.TrainConfig("gap", epochs=1, limit_train=20_000)
    run = jaxmnist.train(config, out=tmp_path / "run", data_dir=data_dir)
    assert run.summary["test_count"] == 10_000
    assert run.summary["steps"] == 156
    assert run.summary["final_test_accuracy"][0] > 90


def test_the_package_is_importable_without_the_checkout(tmp_path):
    code = "import jaxmnist; print(jaxmnist.VARIANTS[-1])"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "gap\n"
