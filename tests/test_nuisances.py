"""Photos of digits under every nuisance become the digit that was photographed."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jaxmnist.analysis.nuisances import NUISANCES, photo_of
from jaxmnist.inference.ink import PictureError, find_digits


@pytest.fixture(scope="module")
def seven():
    """A seven as MNIST has them."""
    large = Image.new("L", (280, 280))
    ImageDraw.Draw(large).line([(80, 60), (190, 60), (130, 220)], fill=255, width=26)
    return np.asarray(large.resize((28, 28), Image.Resampling.BOX))


@pytest.mark.parametrize("dark_on_light", [True, False])
@pytest.mark.parametrize("nuisance", NUISANCES)
def test_the_digit_of_a_photo_is_found(seven, nuisance, dark_on_light):
    if nuisance == "shadow" and not dark_on_light:
        pytest.skip("a shadow is dark; its inverse would be a light patch")
    (expected,) = find_digits(seven.astype(float))
    for seed in range(3):
        photo = photo_of(seven, np.random.default_rng(seed), nuisance).astype(float)
        (found,) = find_digits(photo if dark_on_light else 255 - photo)
        assert np.abs(found.astype(int) - expected).mean() < 16, seed


@pytest.mark.parametrize(
    "nuisance", ["clean", "light falling to 0.7", "light falling to 0.6", "grain"]
)
def test_paper_without_a_digit_is_refused(nuisance):
    blank = np.zeros((28, 28), np.uint8)
    photo = photo_of(blank, np.random.default_rng(0), nuisance).astype(float)
    with pytest.raises(PictureError, match="nothing is drawn on it"):
        find_digits(photo)


def test_several_digits_are_found_from_left_to_right(seven):
    photo = photo_of(seven, np.random.default_rng(0)).astype(float)
    mirrored = photo[:, ::-1]
    digits = find_digits(np.concatenate([photo, photo, mirrored], axis=1))
    assert len(digits) == 3
    first, second, third = (digit.astype(int) for digit in digits)
    assert np.abs(first - second).mean() < 8
    assert np.abs(first - third).mean() > 20


def test_a_thin_one_is_no_line():
    page = np.full((280, 280), 235.0)
    page[50:230, 139:142] = 40
    (digit,) = find_digits(page)
    assert digit.any(axis=0).sum() <= 4
