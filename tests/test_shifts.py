"""Shifts of test images: seeded, of a known strength, and the same for every network."""

import numpy as np
import pytest

from jaxmnist.analysis.shifts import SHIFTS, shifted
from tests.conftest import drawn


@pytest.fixture(scope="module")
def images():
    """Random pixels in the middle 8 x 8 of each image, so that a move loses none."""
    pixels = np.zeros((20, 28, 28), np.uint8)
    pixels[:, 10:18, 10:18] = drawn("images/shifts", (20, 8, 8), 1, 255).astype(np.uint8)
    return pixels


def moves(before, after):
    """The place of the first pixel with ink, after less before: rows and columns."""
    corners = [
        np.array([(image.any(axis=axis)).argmax() for image in images])
        for images in (before, after)
        for axis in (1, 0)
    ]
    return list(zip(corners[2] - corners[0], corners[3] - corners[1], strict=True))


@pytest.mark.parametrize("name", SHIFTS)
def test_every_shift_is_seeded_and_its_neutral_strength_changes_nothing(name):
    images = drawn("images/shifts/whole", (20, 28, 28), 0, 256).astype(np.uint8)
    shift = SHIFTS[name]
    assert {shift.neutral, shift.moderate} < set(shift.strengths)
    assert list(shift.strengths) == sorted(shift.strengths)
    neutral = shifted(name, images, shift.neutral)
    np.testing.assert_array_equal(neutral, images)
    changed = shifted(name, images, shift.moderate)
    assert (changed.dtype, changed.shape) == (np.uint8, images.shape)
    assert (changed != images).any(axis=(1, 2)).all()
    assert changed.tobytes() == shifted(name, images, shift.moderate).tobytes()


@pytest.mark.parametrize("pixels", [1, 4, 8])
def test_a_shift_moves_by_whole_pixels_in_four_directions(pixels, images):
    after = shifted("shift", images, pixels)
    found = moves(images, after)
    assert set(found) == {(0, pixels), (0, -pixels), (pixels, 0), (-pixels, 0)}
    for image, other, (rows, columns) in zip(images, after, found, strict=True):
        np.testing.assert_array_equal(np.roll(image, (rows, columns), axis=(0, 1)), other)
    # The direction of an image is the same at every strength.
    assert [np.sign(move).tolist() for move in found] == [
        np.sign(move).tolist() for move in moves(images, shifted("shift", images, 2))
    ]


def test_a_rotation_turns_a_bar_to_either_side():
    bars = np.zeros((20, 28, 28), np.uint8)
    bars[:, 4:24, 13:15] = 255
    turned = shifted("rotation", bars, 45).astype(float)
    rows, columns = np.indices((28, 28)) - 13.5
    tilts = (turned * rows * columns).sum(axis=(1, 2)) / (turned * rows**2).sum(axis=(1, 2))
    # At 45 degrees the bar is a diagonal, on which columns are rows or their negatives.
    assert set(np.round(tilts, 1)) == {1.0, -1.0}
    total = turned.sum(axis=(1, 2)) / bars.sum(axis=(1, 2))
    assert total == pytest.approx(1, abs=0.05)


def test_a_shear_moves_rows_along_x_by_the_tangent():
    bars = np.zeros((20, 28, 28), np.uint8)
    bars[:, 4:24, 13:15] = 255
    sheared = shifted("shear", bars, 30).astype(float)
    rows, columns = np.indices((28, 28)) - 13.5
    tilts = (sheared * rows * columns).sum(axis=(1, 2)) / (sheared * rows**2).sum(axis=(1, 2))
    assert np.abs(tilts) == pytest.approx(np.tan(np.deg2rad(30)), abs=0.02)
    assert {-1, 1} == set(np.sign(tilts))


def test_a_scale_changes_the_area():
    squares = np.zeros((2, 28, 28), np.uint8)
    squares[:, 8:20, 8:20] = 200
    for factor in (0.5, 1.5):
        area = shifted("scale", squares, factor).sum(axis=(1, 2)) / squares.sum(axis=(1, 2))
        assert area == pytest.approx(factor**2, abs=0.01)


def test_brightness_and_contrast_multiply_differences():
    halves = np.full((1, 28, 28), 50, np.uint8)
    halves[:, 14:] = 150
    dark, faint = shifted("brightness", halves, 0.4), shifted("contrast", halves, 0.4)
    assert [dark[0, 0, 0], dark[0, 27, 0]] == [20, 60]
    assert [faint[0, 0, 0], faint[0, 27, 0]] == [80, 120]  # about the mean of 100
    bright = shifted("brightness", halves, 4)
    assert [bright[0, 0, 0], bright[0, 27, 0]] == [200, 255]


def test_noise_has_its_standard_deviation_and_grows_in_place():
    grey = np.full((20, 28, 28), 128, np.uint8)
    weak, strong = (shifted("noise", grey, sd).astype(float) - 128 for sd in (10, 20))
    assert [weak.std(), strong.std()] == pytest.approx([10, 20], rel=0.03)
    assert np.abs(strong - 2 * weak).max() <= 1.5  # rounding


def test_blur_spreads_a_dot_by_its_standard_deviation():
    dots = np.zeros((2, 28, 28), np.uint8)
    dots[:, 13:15, 13:15] = 255
    blurred = shifted("blur", dots, 2).astype(float)
    np.testing.assert_array_equal(blurred[0], blurred[1])  # of its own image only
    rows = np.arange(28) - 13.5
    variance = (blurred[0].sum(axis=1) * rows**2).sum() / blurred[0].sum()
    assert variance == pytest.approx(2**2 + 0.25, rel=0.1)  # and that of two pixels


@pytest.mark.parametrize("side", [4, 8, 14])
def test_an_occlusion_blackens_a_whole_square(side):
    white = np.full((200, 28, 28), 255, np.uint8)
    hidden = shifted("occlusion", white, side) == 0
    assert set(hidden.sum(axis=(1, 2))) == {side**2}
    for axis in (1, 2):
        lines = hidden.any(axis=axis)
        assert set(lines.sum(axis=1)) == {side}
        first = lines.argmax(axis=1)
        assert (first.min(), first.max()) == (0, 28 - side)  # anywhere, never cut by an edge
