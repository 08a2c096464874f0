"""What other people's code relies on: names, arguments, shapes and fields of files.

docs/architecture.md lists it. A change of these tests breaks programs of others.
"""

import inspect
import json

import numpy as np
import pytest

import jaxmnist
from jaxmnist import augment, data, optim

ROW = {
    *("epoch", "step", "seed", "train_loss", "train_accuracy", "test_loss", "test_accuracy"),
    *("learning_rate", "momentum", "train_seconds", "images_per_second"),
}
OVER_SEEDS = {
    *("final_test_accuracy", "best_test_accuracy", "final_test_loss", "final_train_accuracy"),
    "seeds",
}
SUMMARY = OVER_SEEDS | {
    *("variant", "recipe", "dataset", "parameters", "epochs", "steps", "test_count", "device"),
    *("compile_seconds", "train_seconds", "images_per_second", "versions", "git_commit"),
}


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (jaxmnist.create_model, ["variant", "dropout_rate"]),
        (jaxmnist.train, ["config", "out", "seeds", "options"]),
        (jaxmnist.load_run, ["path"]),
        (jaxmnist.load_pretrained, ["name"]),
        (optim.one_cycle, ["peak", "total_steps"]),
        (augment.augment, ["key", "images"]),
        (augment.rotate, ["images", "degrees"]),
        (augment.affine, ["images", "angle", "translate", "scale", "shear"]),
        (augment.adjust_brightness, ["images", "factor"]),
        (augment.adjust_contrast, ["images", "factor"]),
        (data.load, ["dataset", "data_dir", "idx_dir"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_arguments_keep_their_names_and_order(function, arguments):
    assert list(inspect.signature(function).parameters)[: len(arguments)] == arguments


def test_schedules_are_functions_of_the_step():
    learning_rate, momentum = optim.one_cycle(0.015, 100)
    assert [float(learning_rate(29)), float(momentum(29))] == pytest.approx([0.015, 0.85])


def test_a_run_folder_and_its_fields(small_run):
    path = small_run.path
    assert {file.name for file in path.iterdir()} >= {
        *("config.json", "metrics.jsonl", "summary.json", "checkpoints")
    }
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [set(row) >= ROW for row in rows] == [True] * small_run.config.epochs
    summary = json.loads((path / "summary.json").read_text())
    assert set(summary) >= SUMMARY
    assert {name: len(summary[name]) for name in OVER_SEEDS} == dict.fromkeys(OVER_SEEDS, 1)


def test_images_and_labels_are_bytes(small_idx_dir):
    dataset = data.load("kmnist", idx_dir=small_idx_dir)
    for part, count in (("train", 600), ("test", 430)):
        images = getattr(dataset, f"{part}_images")
        labels = getattr(dataset, f"{part}_labels")
        assert (type(images), images.dtype, images.shape) == (np.ndarray, np.uint8, (count, 28, 28))
        assert (type(labels), labels.dtype, labels.shape) == (np.ndarray, np.uint8, (count,))
