"""Test images that the page offers: easy digits, and mistakes of the networks."""

from collections.abc import Sequence

import numpy as np

from jaxmnist.analysis import evaluation
from jaxmnist.data.dataset import CLASSES

MISTAKES = 10


def choose_examples(said: Sequence[np.ndarray], labels: np.ndarray) -> list[int]:
    """Return the first image of each digit that all networks get right, then mistakes by turns.

    Args:
        said: log-probabilities, float32 `[N, 10]`, of each network.
        labels: integers `[N]`.

    Returns:
        Indices into `labels`, each once.
    """
    right = np.all([each.argmax(axis=1) == labels for each in said], axis=0)
    easy = [np.flatnonzero(right & (labels == digit))[:1] for digit in range(CLASSES)]
    return [*np.concatenate(easy).tolist(), *_mistakes(said, labels)]


def _mistakes(said: Sequence[np.ndarray], labels: np.ndarray) -> list[int]:
    """Return the networks' most confident mistakes, by turns."""
    of_each = [
        [mistake.index for mistake in evaluation.evaluate(each, labels).mistakes] for each in said
    ]
    longest = max(map(len, of_each))
    turns = [mistakes[k] for k in range(longest) for mistakes in of_each if k < len(mistakes)]
    return list(dict.fromkeys(turns))[:MISTAKES]
