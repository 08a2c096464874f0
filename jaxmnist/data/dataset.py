"""Data sets in memory, and their constants: classes, sizes, normalisation."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from jaxmnist.config import ConfigError
from jaxmnist.data import idx
from jaxmnist.data.idx import DataError, Files

# Mean and standard deviation of MNIST, from the notebooks; for other data sets they are computed.
NORMALISATION = {"mnist": (0.1307, 0.3081)}

CLASSES = 10
# Number of training images of each data set, as published.
TRAIN_COUNT = 60_000


class Dataset(NamedTuple):
    """Images uint8 `[N, 28, 28]` and labels uint8 `[N]` in memory."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: float  # mean of the training pixels / 255
    std: float


def hold_out(dataset: Dataset, count: int, fold: int) -> Dataset:
    """Replace the test set by some of the training images.

    Args:
        dataset: result of `load`.
        count: number of images.
        fold: index of the block of images: 0 is the last block, 1 the one before it, and so on.

    Raises:
        ConfigError: there are too few training images.
    """
    available = len(dataset.train_images)
    if count * (fold + 1) > available - 1:
        raise ConfigError(
            f"holdout is {count} and fold {fold}, but there are {available} training images: "
            f"expected a fold of at most {max((available - 1) // count - 1, 0)}, or fewer images"
        )
    held = slice(available - count * (fold + 1), available - count * fold)
    images, labels = dataset.train_images, dataset.train_labels
    return dataset._replace(
        train_images=np.delete(images, held, axis=0),
        train_labels=np.delete(labels, held),
        test_images=images[held],
        test_labels=labels[held],
    )


def to_dataset(dataset: str, files: Files, digests: Mapping[str, str], origin: object) -> Dataset:
    """Verify the checksums of the four files and return their arrays."""
    idx.check(files, digests, origin)
    train_images, train_labels, test_images, test_labels = (
        idx.parse(files[name], name, f"{name} from {origin}") for name in idx.NAMES
    )
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(f"{origin} has {len(images)} images but {len(labels)} labels")
    mean, std = NORMALISATION.get(dataset) or _mean_and_std(train_images)
    return Dataset(train_images, train_labels, test_images, test_labels, mean, std)


def _mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Compute the exact mean and standard deviation of the pixels / 255 from their histogram."""
    share = np.bincount(images.ravel(), minlength=256) / images.size
    values = np.arange(256) / 255
    mean = float(share @ values)
    std = float(np.sqrt(share @ (values - mean) ** 2))
    if std == 0:
        raise DataError("all training pixels are equal; there is nothing to learn from them")
    return mean, std
