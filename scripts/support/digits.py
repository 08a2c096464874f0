"""Digits by other people: scikit-learn's, from bank cheques and forms, 8x8 pixels each."""

import functools
import sys

import numpy as np

from jaxmnist.analysis.robustness import Digits
from jaxmnist.inference.ink import PictureError, find_digits


def other_digits() -> tuple[list[np.ndarray], np.ndarray] | None:
    """Return scikit-learn's 1,797 digits of 8x8 pixels and their labels, if it is installed."""
    try:
        from sklearn.datasets import load_digits  # pyright: ignore
    except ModuleNotFoundError:
        print("note: scikit-learn is not installed; its digits are left out", file=sys.stderr)
        return None
    pixels, labels = load_digits(return_X_y=True)
    return list(np.round(np.reshape(pixels, (-1, 8, 8)) * 255 / 16)), np.asarray(labels)


@functools.cache
def prepared_digits() -> Digits | None:
    """Return the same digits as `predict.py` prepares pictures, which takes a few seconds."""
    if (found := other_digits()) is None:
        return None
    images, labels = [], []
    for greys, label in zip(*found, strict=True):
        try:
            digits = find_digits(greys)
        except PictureError:
            continue
        if len(digits) == 1:
            images += digits
            labels.append(label)
    return Digits(np.array(images), np.array(labels), len(found[1]))
