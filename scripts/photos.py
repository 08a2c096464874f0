"""Measure accuracy on synthetic photos of digits: `python scripts/photos.py runs/gap-seed0`.

Draw test digits as photos on paper, without a nuisance and with each nuisance. The table compares
the preprocessing of `predict.py` with a plain resize to 28x28.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

if __name__ == "__main__":
    # Neither `python -m scripts.photos` nor PYTHONSAFEPATH adds this folder.
    sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from PIL import Image
from support.command import Command, add_common_options, run_main, use_compilation_cache
from support.digits import other_digits

from jaxmnist import data
from jaxmnist.analysis.nuisances import NUISANCES, photo_of
from jaxmnist.config import ConfigError
from jaxmnist.inference.ink import PictureError, border, find_digits
from jaxmnist.inference.predict import DIGITS, Predict
from jaxmnist.inference.views import load_ensemble

SURE = 0.9
TITLE = (
    "| pictures | right | refused | wrong, over 90 % sure | resize: right | resize: wrong, sure |\n"
    "|---|---:|---:|---:|---:|---:|"
)


def main(argv: Sequence[str]) -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run on MNIST")
    parser.add_argument("--count", type=int, default=500, help="test digits for each nuisance")
    add_common_options(parser)
    arguments = parser.parse_args(argv)
    with Command(arguments.debug) as command:
        use_compilation_cache()
        measure(arguments)
    return command.status


def measure(arguments: argparse.Namespace) -> None:
    """Print the table, row by row.

    Raises:
        ConfigError: the run was not trained on digits, or the count is out of range.
    """
    predict = load_ensemble(arguments.run)
    images = data.load(DIGITS, arguments.data_dir, arguments.idx_dir)
    if not 1 <= arguments.count <= len(images.test_images):
        raise ConfigError(f"count is {arguments.count}; expected 1 to {len(images.test_images)}")

    chosen = np.random.default_rng(0).permutation(len(images.test_images))[: arguments.count]
    labels = images.test_labels[chosen]
    print(TITLE)
    for name in NUISANCES:
        photos = [photo_of(images.test_images[i], np.random.default_rng(i), name) for i in chosen]
        row(name, photos, labels, predict)
    row("MNIST's own images", list(images.test_images[chosen]), labels, predict)
    if (others := other_digits()) is not None:
        row("scikit-learn's digits", *others, predict)


def row(name: str, photos: list[np.ndarray], labels: np.ndarray, predict: Predict) -> None:
    """Print a row with the percentages that are right, refused, and wrong but sure."""
    right, _, wrong = shares(photos, labels, predict, plainly_resized)
    numbers = (*shares(photos, labels, predict, find_digits), right, wrong)
    cells = " | ".join([name, *(f"{100 * number:.1f}" for number in numbers)])
    print(f"| {cells} |", flush=True)


def shares(
    photos: list[np.ndarray],
    labels: np.ndarray,
    predict: Predict,
    prepare: Callable[[np.ndarray], list[np.ndarray]],
) -> tuple[float, float, float]:
    """Return the fractions that are right, refused, and wrong with a probability above 0.9.

    A picture in which several digits are found is wrong, and sure if all digits are sure.
    """
    right = refused = sure_and_wrong = 0
    for photo, label in zip(photos, labels, strict=True):
        try:
            digits = prepare(photo.astype(float))
        except PictureError:
            refused += 1
            continue
        probabilities = np.exp(predict(np.stack(digits)))
        if len(digits) == 1 and probabilities.argmax() == label:
            right += 1
        else:
            sure_and_wrong += int(probabilities.max(axis=1).min() > SURE)
    return right / len(photos), refused / len(photos), sure_and_wrong / len(photos)


def plainly_resized(greys: np.ndarray) -> list[np.ndarray]:
    """Resize the picture to 28x28 pixels, light on dark, and stretch it to 0 to 255."""
    ink = 255 - greys if np.median(border(greys)) > greys.mean() else greys
    small = Image.fromarray(ink.astype(np.float32)).resize((28, 28), Image.Resampling.BOX)
    values = np.asarray(small) - np.asarray(small).min()
    return [np.round(255 * values / max(values.max(), 1)).astype(np.uint8)]


if __name__ == "__main__":
    sys.exit(run_main(main))
