"""Pictures of all kinds become what MNIST would have made of them."""

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jaxmnist.inference import pictures
from jaxmnist.inference.pictures import PictureError


def drawing(size=(200, 200), stroke=14, dark_on_light=True, mode="L"):
    """A seven, above and to the left of the middle."""
    paper, ink = (255, 0) if dark_on_light else (0, 255)
    image = Image.new("L", size, paper)
    width, height = size
    points = [(0.1, 0.1), (0.5, 0.1), (0.25, 0.7)]
    line = [(x * width, y * height) for x, y in points]
    ImageDraw.Draw(image).line(line, fill=ink, width=stroke, joint="curve")
    return image.convert(mode)


def content(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def is_like(first, second):
    """Whether two prepared pictures show the same, to a pixel of the edges."""
    return np.abs(first.astype(int) - second.astype(int)).mean() < 12


def assert_same_digit(image, kind="png", **options):
    """The picture shows what `drawing` does."""
    found = pictures.read(content(image, kind, **options))
    assert is_like(found, pictures.read(content(drawing())))


def test_a_digit_is_scaled_and_centred_like_mnists():
    digit = pictures.read(content(drawing()))
    assert (digit.shape, digit.dtype) == ((28, 28), np.uint8)
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    # Higher than wide: it fills the height of the box, and keeps its shape.
    assert rows[-1] - rows[0] + 1 == 20
    assert (columns[-1] - columns[0] + 1) / 20 == pytest.approx(0.42 / 0.62, abs=0.1)
    assert digit.max() == 255
    mass = digit / digit.sum()
    centre = (mass.sum(axis=1) @ np.arange(28), mass.sum(axis=0) @ np.arange(28))
    assert centre == (pytest.approx(13.5, abs=0.5), pytest.approx(13.5, abs=0.5))


def test_light_or_dark_large_or_small_anywhere():
    expected = pictures.read(content(drawing()))
    light = pictures.read(content(drawing(dark_on_light=False)))
    np.testing.assert_array_equal(light, expected)
    for size, stroke in (((60, 60), 4), ((1900, 1900), 133)):
        assert_same_digit(drawing(size, stroke))
    moved = Image.new("L", (700, 500), 255)
    moved.paste(drawing(), (480, 250))
    assert_same_digit(moved)


@pytest.mark.parametrize(
    ("mode", "kind", "options"),
    [
        ("RGB", "jpeg", {"quality": 60}),
        ("1", "png", {}),
        ("P", "gif", {}),
        ("RGBA", "png", {}),
        ("CMYK", "jpeg", {}),
        ("RGB", "bmp", {}),
        ("RGB", "webp", {"quality": 50}),
        ("L", "tiff", {}),
    ],
)
def test_every_format_that_pillow_reads(mode, kind, options):
    assert_same_digit(drawing(mode=mode), kind, **options)


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_more_greys_than_256(mode):
    values = np.asarray(drawing(), np.float64) / 255
    scale = {"I;16": (60_000, np.uint16), "F": (0.01, np.float32), "I": (100_000, np.int32)}[mode]
    image = Image.fromarray((values * scale[0]).astype(scale[1]))
    assert image.mode == mode
    assert_same_digit(image, "tiff")


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(ink):
    shape = 255 - np.asarray(drawing())
    bands = [np.full_like(shape, ink)] * 3
    image = Image.fromarray(np.dstack([*bands, shape]))
    assert_same_digit(image)


def test_uneven_paper_and_noise():
    rng = np.random.default_rng(0)
    paper = 200 + 15 * np.linspace(-1, 1, 200)[:, None] + rng.normal(0, 3, (200, 200))
    ink = 1 - np.asarray(drawing()) / 255
    photo = np.clip(paper * (1 - ink) + 40 * ink, 0, 255).astype(np.uint8)
    assert_same_digit(Image.fromarray(photo))


def test_a_dark_speck_beside_a_pale_digit():
    pale = drawing().point(lambda grey: 255 - (255 - grey) // 3)
    speckled = pale.copy()
    ImageDraw.Draw(speckled).ellipse((180, 180, 189, 189), fill=0)
    assert is_like(pictures.read(content(speckled)), pictures.read(content(pale)))


def test_turned_as_the_camera_was_held():
    upright = drawing().rotate(-90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 8  # to be turned counter-clockwise by 90 degrees
    assert_same_digit(upright, "jpeg", exif=exif, quality=95)


def test_the_first_of_several_frames():
    other = Image.new("L", (200, 200), 255)
    frames = content(drawing(), "tiff", save_all=True, append_images=[other])
    np.testing.assert_array_equal(pictures.read(frames), pictures.read(content(drawing())))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (b"", "it is empty"),
        (b"no picture at all", "it is not an image that Pillow reads"),
        (content(drawing())[:200], "it cannot be read: "),
        (content(drawing(), "jpeg")[:700], "it cannot be read: "),
        (content(Image.new("L", (50, 50), 255)), "nothing is drawn on it"),
        (content(Image.new("L", (1, 1))), "nothing is drawn on it"),
        (content(Image.new("RGBA", (50, 50))), "nothing is drawn on it"),
        (b"P4 25000 10001\n", "it has more than 250,000,000 pixels"),
    ],
)
def test_no_picture_of_a_digit(source, words):
    with pytest.raises(PictureError, match=words):
        pictures.read(source)


def test_a_file_without_end(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_BYTES", 100)
    with pytest.raises(PictureError, match="it has more than 100 bytes"):
        pictures.read(Path("/dev/zero"))


@pytest.mark.parametrize("mode", ["1", "P", "RGBA", "I;16"])
def test_thin_lines_of_a_large_picture_are_not_lost(mode):
    large = drawing((4000, 4000), stroke=8)
    if mode == "I;16":
        large = Image.fromarray(np.asarray(large).astype(np.uint16) * 257)
    else:
        large = large.convert(mode)
    found = pictures.read(content(large))
    assert is_like(found, pictures.read(content(drawing((1000, 1000), stroke=2))))


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_blank_page_with_noise_is_blank(mode):
    noise = np.random.default_rng(0).integers(0, 9, (64, 64))
    page = (240 + noise).astype(np.uint8) if mode == "L" else (65000 + noise).astype(np.uint16)
    with pytest.raises(PictureError, match="nothing is drawn on it"):
        pictures.read(content(Image.fromarray(page)))


def test_colours_that_pillow_does_not_convert():
    bands = [drawing(), Image.new("L", (200, 200), 128), Image.new("L", (200, 200), 128)]
    assert_same_digit(Image.merge("LAB", bands), "tiff")


def test_numbers_that_are_none():
    values = np.asarray(drawing(), np.float32)
    values = np.where(values == 0, np.inf, -np.inf).astype(np.float32)
    with pytest.raises(PictureError, match="nothing is drawn on it"):
        pictures.read(content(Image.fromarray(values), "tiff"))
    some = np.asarray(drawing(), np.float32) / 255
    some = np.where(np.arange(200) == 199, np.nan, some).astype(np.float32)
    found = pictures.read(content(Image.fromarray(some), "tiff"))
    assert found.shape == (28, 28)


def test_ten_bits_of_sixteen():
    values = np.asarray(drawing()).astype(np.uint16) * 4
    assert_same_digit(Image.fromarray(values), "tiff")


def test_a_page_with_a_transparent_margin():
    page = drawing(mode="RGBA")
    framed = Image.new("RGBA", (260, 240), (0, 0, 0, 0))
    framed.paste(page, (30, 20))
    np.testing.assert_array_equal(pictures.read(content(framed)), pictures.read(content(drawing())))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        pictures.read(tmp_path / "none.png")


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 2**32 - 1))
def test_any_greys_give_a_centred_digit_or_none(height, width, seed):
    rng = np.random.default_rng(seed)
    greys = rng.integers(0, 256, (height, width)) * rng.integers(0, 2, (height, width))
    try:
        digit = pictures.prepare(greys.astype(float))
    except PictureError:
        return
    assert (digit.shape, digit.dtype, digit.max()) == ((28, 28), np.uint8, 255)


def test_red_on_green_of_the_same_grey():
    ink = 1 - np.asarray(drawing())[..., None] / 255
    page = (ink * (200, 0, 0) + (1 - ink) * (0, 102, 0)).astype(np.uint8)
    assert_same_digit(Image.fromarray(page))


def test_108_megapixels():
    large = Image.new("L", (12_000, 9_000), 255)
    large.paste(drawing((6000, 6000), 420), (2000, 1000))
    assert_same_digit(large)


def test_a_phones_format_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(PictureError, match="it is a HEIC picture; pip install pillow-heif"):
        pictures.read(b"\0\0\0\x18ftypheic" + bytes(100))


def test_several_digits_where_one_is_expected():
    page = Image.new("L", (400, 200), 255)
    page.paste(drawing(), (10, 0))
    page.paste(drawing(), (200, 0))
    assert len(pictures.read_all(content(page))) == 2
    with pytest.raises(PictureError, match="2 digits side by side; expected one"):
        pictures.read(content(page))
