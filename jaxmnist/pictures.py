"""Pictures of digits, whatever they are like, as MNIST would have them.

MNIST's digits are white on black, scaled to fit 20x20 pixels, and lie with their centre of mass in
the middle of 28x28. Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
document recognition", Proceedings of the IEEE 86, 1998, section III.A.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SIZE, BOX = 28, 20
# More than any camera takes; below what Pillow warns of.
MAX_PIXELS = 80_000_000
MAX_BYTES = 256 << 20
# Of the range from background to ink: below it is paper, dust, or what JPEG made of them.
FAINT = 0.25
# Least difference of ink and background, of 255 steps.
LEAST_INK = 12
# From here on a picture is made smaller before anything is done with its pixels.
ENOUGH = 1024
# The white of pictures with 10, 12, 14 and 16 bits.
WHITES = (1023, 4095, 16383, 65535)


class PictureError(ValueError):
    """A file is not a picture of a digit."""


def read(source: Path | bytes) -> np.ndarray:
    """Reads a picture and prepares it as MNIST was.

    Args:
        source: a file, or the content of one: anything that Pillow reads; of several frames the
            first one counts.

    Returns:
        uint8 `[28, 28]`, the digit white on black.

    Raises:
        PictureError: it is no picture, too large, or nothing is drawn on it.
        OSError: the file cannot be opened.
    """
    content = _content(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its metadata, which nobody asked for
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return prepare(_greys(_open(content)))
    except (PictureError, MemoryError):
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise PictureError(f"it has more than {MAX_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        raise PictureError("it is not an image that Pillow reads") from error
    except Exception as error:  # Pillow's readers raise of all kinds
        raise PictureError(f"it cannot be read: {' '.join(str(error).split())}") from error


def prepare(greys: np.ndarray) -> np.ndarray:
    """A digit cropped, scaled and centred as MNIST's are.

    Args:
        greys: float `[H, W]`, 0 to 255, dark on light or light on dark.

    Returns:
        uint8 `[28, 28]`.

    Raises:
        PictureError: nothing is drawn on it.
    """
    ink = _ink(greys)
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    scale = BOX / max(ink.shape)
    height, width = (max(round(length * scale), 1) for length in ink.shape)
    # Pillow's filters cover all pixels that become one, so that thin lines are not lost.
    small = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    digit = np.asarray(small)
    top, left = (_offset(digit.sum(axis=1 - axis)) for axis in (0, 1))
    picture = np.zeros((SIZE, SIZE))
    picture[top : top + height, left : left + width] = digit / digit.max()
    return np.round(255 * picture).astype(np.uint8)


def _ink(greys: np.ndarray) -> np.ndarray:
    """How far each pixel is from the background, towards the ink: 0 to 1."""
    lighter = greys - np.median(_border(greys))
    # What is drawn is on one side of the background; on the other are shadows and sharpened edges.
    sides = (np.maximum(lighter, 0), np.maximum(-lighter, 0))
    ink = max(sides, key=lambda side: np.square(side).sum())
    if ink.max() < LEAST_INK:
        raise PictureError("nothing is drawn on it; expected a digit, dark or light")
    ink = ink / ink.max()
    return np.where(ink < FAINT, 0, ink)


def _offset(mass: np.ndarray) -> int:
    """Where a digit begins, of which this is the mass of each row, if its centre is the middle."""
    centre = (np.arange(len(mass)) + 0.5) @ mass / mass.sum()
    return int(np.clip(round(SIZE / 2 - centre), 0, SIZE - len(mass)))


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, Path):
        with source.open("rb") as file:
            source = file.read(MAX_BYTES + 1)
    if not source:
        raise PictureError("it is empty")
    if len(source) > MAX_BYTES:
        raise PictureError(f"it has more than {MAX_BYTES:,} bytes")
    return source


def _open(content: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(content))
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    # A JPEG is decoded in a smaller size at once.
    image.draft(None, (ENOUGH, ENOUGH))
    image.load()
    return ImageOps.exif_transpose(image)


def _greys(image: Image.Image) -> np.ndarray:
    """The picture in greys, 0 to 255; what is transparent becomes background."""
    image = _with_shades(image)
    if max(image.size) > ENOUGH:
        shrink = ENOUGH / max(image.size)
        width, height = (max(round(length * shrink), 1) for length in image.size)
        image = image.resize((width, height), Image.Resampling.BOX)
    if image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        # Cameras and scanners that measure fewer bits leave the upper ones empty.
        return values * (255 / next(white for white in WHITES if white >= values.max()))
    if image.mode in ("I", "F"):  # their black and white may be anything
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        return (values - low) * (255 / (high - low if high > low else 1))
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), np.float64)
    *colours, opacity = (np.asarray(band, np.float64) for band in image.convert("RGBA").split())
    luminance = np.dot(np.stack(colours, axis=-1), (0.299, 0.587, 0.114))
    opacity = opacity / 255
    page = _opaque_page(luminance, opacity)
    if page is not None:
        return page
    mean = np.average(luminance, weights=opacity) if opacity.any() else 0
    background = 255 if mean < 128 else 0
    return opacity * luminance + (1 - opacity) * background


def _opaque_page(luminance: np.ndarray, opacity: np.ndarray) -> np.ndarray | None:
    """The part that is no transparent margin, if that is a page with something on it."""
    rows, columns = (np.flatnonzero(opacity.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    is_page = _border(opacity[inside]).mean() > 0.9 and np.ptp(luminance[inside]) >= LEAST_INK
    return luminance[inside] if is_page else None


def _border(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _with_shades(image: Image.Image) -> Image.Image:
    """The same in a mode whose values can be averaged: not numbers of colours, nor single bits."""
    if image.mode == "LAB":
        return image.getchannel("L")
    mode = {"1": "L", "P": "RGBA", "PA": "RGBA"}.get(image.mode)
    return image.convert(mode) if mode else image
