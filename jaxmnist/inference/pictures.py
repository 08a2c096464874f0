"""Reader for pictures of digits in any format and size, with MNIST's preprocessing.

MNIST's digits are white on black, scaled to fit 20x20 pixels, with their centre of mass in the
middle of 28x28. Source: LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to
document recognition", Proceedings of the IEEE 86, 1998, section III.A.
"""

import io
import math
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from jaxmnist.inference.ink import PictureError, border, find_digits

# More than an A4 scan at 1,200 dpi (139 million) or a phone's photo (200 million).
MAX_PIXELS = 250_000_000
MAX_BYTES = 256 << 20
# Minimum range of grey levels of a page with a transparent margin.
LEAST_INK = 12
# Pictures with a longer side than this, in pixels, are first reduced.
ENOUGH = 1024
# Rows of the reduced picture that are computed at once, to bound the memory.
STRIP = 64
# Values of white with 10, 12, 14 and 16 bits.
WHITES = (1023, 4095, 16383, 65535)
# Modes whose values cannot be averaged, and the modes to convert them to.
SHADES = {"1": "L", "P": "RGBA", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB"}
# Brands in the file type box of HEIC pictures.
HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read(source: Path | bytes) -> np.ndarray:
    """Read a picture of one digit and preprocess it like MNIST.

    Args:
        source: a file, or its content, in any format that Pillow reads. Only the first frame is
            used.

    Returns:
        uint8 `[28, 28]`, the digit white on black.

    Raises:
        PictureError: the file is not a picture, is too large, or does not show one digit.
        OSError: the file cannot be opened.
    """
    return _one_of(read_all(source))


def prepare(greys: np.ndarray) -> np.ndarray:
    """Crop, scale and centre one digit like MNIST's.

    Args:
        greys: float `[H, W]`, 0 to 255, dark on light or light on dark.

    Returns:
        uint8 `[28, 28]`.

    Raises:
        PictureError: the picture does not show one digit.
    """
    return _one_of(find_digits(greys))


def read_all(source: Path | bytes) -> list[np.ndarray]:
    """Read a picture of one digit or of several side by side.

    Args:
        source: a file or its content, as for `read`.

    Returns:
        uint8 `[28, 28]` for each digit, from left to right.

    Raises:
        PictureError: the file is not a picture, is too large, or contains no digit.
        OSError: the file cannot be opened.
    """
    content = _content(source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata
            return find_digits(_greys(_open(content)))
    except (PictureError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise PictureError("it is not an image that Pillow reads") from error
    except Exception as error:  # Pillow's readers raise many types of exceptions
        raise PictureError(f"it cannot be read: {' '.join(str(error).split())}") from error


def _one_of(digits: list[np.ndarray]) -> np.ndarray:
    if len(digits) != 1:
        raise PictureError(f"{len(digits)} digits side by side; expected one")
    return digits[0]


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
    """Open a picture, upright and no larger than needed."""
    if content[4:8] == b"ftyp" and content[8:12] in HEIC:
        _register_heic()
    # Opening reads only the header. One limit on the pixels, checked here, fits all formats.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PIXELS:
            raise PictureError(f"it has more than {MAX_PIXELS:,} pixels")
        # Decode a JPEG directly at a smaller size.
        image.draft(None, (ENOUGH, ENOUGH))
        image.load()
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return ImageOps.exif_transpose(_smaller(image))


def _register_heic() -> None:
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise PictureError(
            "it is a HEIC picture; pip install pillow-heif lets it be read, or save it as JPEG"
        ) from error
    pillow_heif.register_heif_opener()


def _smaller(image: Image.Image) -> Image.Image:
    """Reduce a large picture strip by strip, without a large copy of it."""
    exif, factor = image.getexif(), math.ceil(max(image.size) / ENOUGH)
    if factor == 1:
        return _with_shades(image)
    width = max(round(image.width / factor), 1)
    strips, mode = [], image.mode
    for top in range(0, image.height, STRIP * factor):
        bottom = min(top + STRIP * factor, image.height)
        strip = _with_shades(image.crop((0, top, image.width, bottom)))
        rows = max(round((bottom - top) / factor), 1)
        strips.append(np.asarray(strip.resize((width, rows), Image.Resampling.BOX)))
        mode = strip.mode
    whole = Image.fromarray(np.concatenate(strips))
    if whole.mode != mode and not mode.startswith("I;16"):
        whole = Image.fromarray(np.concatenate(strips)).convert(mode)
    whole.getexif().update(exif)
    return whole


def _greys(image: Image.Image) -> np.ndarray:
    """Convert a picture to grey levels, 0 to 255; transparent pixels become background."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        # Cameras and scanners with fewer bits leave the upper bits empty.
        return values * (255 / next(white for white in WHITES if white >= values.max()))
    if image.mode in ("I", "F"):  # values of any range
        values = np.nan_to_num(np.asarray(image, np.float64), posinf=0, neginf=0)
        low, high = values.min(), values.max()
        return (values - low) * (255 / (high - low if high > low else 1))
    if not image.has_transparency_data:
        return _grey_of_colours(image)
    *colours, opacity = (np.asarray(band, np.float64) for band in image.convert("RGBA").split())
    luminance = np.dot(np.stack(colours, axis=-1), (0.299, 0.587, 0.114))
    opacity = opacity / 255
    page = _opaque_page(luminance, opacity)
    if page is not None:
        return page
    mean = np.average(luminance, weights=opacity) if opacity.any() else 0
    background = 255 if mean < 128 else 0
    return opacity * luminance + (1 - opacity) * background


def _grey_of_colours(image: Image.Image) -> np.ndarray:
    """Return the luminance, or a colour channel if it has far more contrast."""
    grey = np.asarray(image.convert("L"), np.float64)
    if image.mode in ("L", "LA"):
        return grey
    bands = [np.asarray(band, np.float64) for band in image.convert("RGB").split()]
    contrasts = [_contrast(band) for band in bands]
    best = int(np.argmax(contrasts))
    return bands[best] if contrasts[best] > 2 * _contrast(grey) else grey


def _contrast(band: np.ndarray) -> float:
    """Return the largest distance of an extreme grey level from the median."""
    low, usual, high = np.percentile(band, (1, 50, 99))
    return max(usual - low, high - usual)


def _opaque_page(luminance: np.ndarray, opacity: np.ndarray) -> np.ndarray | None:
    """Crop the transparent margin; return None if the rest is not a page with a drawing."""
    rows, columns = (np.flatnonzero(opacity.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    is_page = border(opacity[inside]).mean() > 0.9 and np.ptp(luminance[inside]) >= LEAST_INK
    return luminance[inside] if is_page else None


def _with_shades(image: Image.Image) -> Image.Image:
    """Convert palette indices, single bits and the like to values that can be averaged."""
    if image.mode == "LAB":
        return image.getchannel("L")
    mode = SHADES.get(image.mode)
    return image.convert(mode) if mode else image
