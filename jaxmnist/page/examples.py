"""Test images that the page offers: easy digits, and mistakes of the networks."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxmnist.analysis.evaluation import evaluate
from jaxmnist.data.dataset import CLASSES, Dataset
from jaxmnist.inference.predict import make_predict
from jaxmnist.runs.run import Run

# Test images among which are chosen: enough to contain mistakes of even the best network.
IMAGES = 2000
MISTAKES = 10


def choose_examples(runs: Sequence[Run], images: Dataset) -> dict[str, list[dict[str, Any]]]:
    """Return test images, JSON-serialisable: `easy` and `hard` ones.

    Args:
        runs: finished runs of one seed each.
        images: the data set.
    """
    pixels, labels = images.test_images[:IMAGES], images.test_labels[:IMAGES]
    predictions = [make_predict(run)(pixels) for run in runs]

    def describe(index: int) -> dict[str, Any]:
        image = base64.b64encode(pixels[index].tobytes()).decode()
        return {"number": index, "label": int(labels[index]), "pixels": image}

    return {
        "easy": [describe(index) for index in find_easy(predictions, labels)],
        "hard": [describe(index) for index in find_hard(predictions, labels)],
    }


def find_easy(predictions: Sequence[np.ndarray], labels: np.ndarray) -> list[int]:
    """Return the index of the first image of each digit that all networks classify correctly.

    Args:
        predictions: log-probabilities, float32 `[N, 10]`, of each network.
        labels: integers `[N]`.
    """
    correct = np.all([each.argmax(axis=1) == labels for each in predictions], axis=0)
    first = [np.flatnonzero(correct & (labels == digit))[:1] for digit in range(CLASSES)]
    return np.concatenate(first).tolist()


def find_hard(predictions: Sequence[np.ndarray], labels: np.ndarray) -> list[int]:
    """Return the indices of the networks' most confident mistakes, each network's by turns.

    Args:
        predictions: as for `find_easy`.
        labels: integers `[N]`.
    """
    of_each = [[each.index for each in evaluate(p, labels).mistakes] for p in predictions]
    longest = max(map(len, of_each))
    turns = [mistakes[k] for k in range(longest) for mistakes in of_each if k < len(mistakes)]
    return list(dict.fromkeys(turns))[:MISTAKES]
