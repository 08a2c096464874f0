"""Segmentation of the digits in a picture.

The steps are standard in document image analysis, and use scipy.ndimage. A morphological closing
estimates the illumination, openings with long elements find printed lines, and connected components
are grouped into digits.
Source: Gonzalez and Woods, "Digital Image Processing", 4th edition, chapters 9 and 10.
"""

from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE, BOX = 28, 20  # side of MNIST's images, and of the digits in them, in pixels

# Minimum contrast: as a fraction of the paper's brightness, and in standard deviations of noise.
LEAST_INK, LEAST_OF_NOISE = 0.05, 8
# Range of the longer side of a picture, in pixels; other pictures are resized.
LEAST_SIZE, MOST_SIZE = 140, 400
EDGE = 0.35  # minimum contrast of faint ink with its local mean, as a fraction of the ink
# Fraction of the range from paper to ink below which ink is dust or camera noise.
FAINT = 0.25
CORE = 0.6  # fraction of the ink above the blur between two strokes that nearly touch
# Fractions of the longer side of a picture.
WINDOW = 1 / 2  # wider than any stroke
THIN = 1 / 25  # thicker than any printed line
LONG = 1 / 5  # minimum length of the straight runs of a line
LINE = 0.45  # minimum length of a line
BAND = 0.8  # minimum dark fraction of a row in a band along an edge
BEYOND = 0.01  # minimum extent of a line beyond a digit, at both ends
DEEP = 0.2  # minimum depth from the edges of a digit that touches an edge
SHADE = 0.5  # minimum ink of a digit that touches an edge, as a fraction of the paper
SMALL = 0.06  # minimum size of a digit
# Fractions of the height of the tallest digit.
SPECK, LOW = 1 / 6, 0.45
# A digit's width, as a fraction of its height.
NARROW, WIDE = 0.9, 1.8
MOST_DIGITS = 20

NOTHING = "nothing is drawn on it; expected a digit, dark or light"
_NEIGHBOURS = np.ones((3, 3), bool)


class PictureError(ValueError):
    """A file or array that is not a picture of a digit."""


class _Part(NamedTuple):
    """One or more connected components of a digit; `bottom` and `right` are exclusive."""

    labels: tuple[int, ...]
    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def size(self) -> int:
        return max(self.height, self.width)


def find_digits(greys: np.ndarray) -> list[np.ndarray]:
    """Find the digits in a picture, and scale and centre each like MNIST's.

    Args:
        greys: float `[H, W]`, 0 to 255, dark on light or light on dark.

    Returns:
        uint8 `[28, 28]` for each digit, white on black, from left to right.

    Raises:
        PictureError: the picture is empty, or shows something other than digits.
    """
    ink, noise = _ink(_resized(greys))
    ink = _without_lines(_without_frame(_threshold(ink, noise)))
    ink = _threshold(_without_edges(ink), noise)
    labels, parts = _components(ink)
    darkest = ndimage.maximum(ink, labels, np.arange(len(parts) + 1))
    tallest = max(part.size for part in parts)
    if tallest < SMALL * max(ink.shape):
        raise PictureError(NOTHING)
    parts = [part for part in parts if part.size >= SPECK * tallest]
    # A dark speck is no measure of a pale digit.
    least = CORE * max(darkest[part.labels[0]] for part in parts)
    digits = _merge_parts([part for part in parts if darkest[part.labels[0]] >= least])
    if any(digit.width > WIDE * digit.height for digit in digits):
        raise PictureError("what is drawn is wider than a digit; expected digits side by side")
    if len(digits) > MOST_DIGITS:
        raise PictureError(f"there are {len(digits)} marks on it; expected a digit or a number")
    return [_as_mnist(_cut(ink, labels, digit)) for digit in digits]


def _resized(greys: np.ndarray) -> np.ndarray:
    """Resize a picture so that strokes are several pixels thick and processing stays fast."""
    longest = max(greys.shape)
    if longest <= LEAST_SIZE // 2:
        factor = LEAST_SIZE // longest
        return np.asarray(ndimage.zoom(greys, factor, order=3, mode="nearest", grid_mode=True))
    if longest <= MOST_SIZE:
        return greys
    height, width = (max(round(length * MOST_SIZE / longest), 1) for length in greys.shape)
    # Pillow's filters average all source pixels, so thin lines are not lost.
    image = Image.fromarray(greys.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), float)


def _ink(greys: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the darkness of each pixel relative to the paper (1: black), and the noise level."""
    longest = max(greys.shape)
    smooth = ndimage.gaussian_filter(greys, longest / 300)
    blurred = ndimage.gaussian_filter(greys, longest / 100)
    if not _is_dark_on_light(blurred):
        smooth, blurred = 255 - smooth, 255 - blurred
    window = round(WINDOW * longest) // 2 * 2 + 1
    light = ndimage.grey_closing(blurred, (window, window), mode="nearest")
    # Relative to the illumination, for ink in a shadow. The floor of 128 limits the noise.
    ink = (light - smooth) / np.maximum(light, 128)
    step = max(longest // 100, 1)
    changes = np.concatenate([(ink[:, step:] - ink[:, :-step]).ravel(), [0]])
    # Most neighbours differ by noise alone, so the median gives its standard deviation.
    noise = 1.48 / np.sqrt(2) * float(np.median(np.abs(changes)))
    # The paper is lighter than the estimated light.
    return ink - np.percentile(ink, 25), noise


def _is_dark_on_light(greys: np.ndarray) -> bool:
    """Return whether the ink is darker than the paper."""
    light = greys - greys.min() >= greys.max() - greys
    sheets = [_sheet(light), _sheet(~light)]
    if sheets[0] == sheets[1] == 0:
        # The picture is cropped at the digit, which may fill most of it: the edges are paper.
        return bool(border(light).mean() >= 0.5)
    # The smaller sheet lies on the larger one.
    return sheets[1] == 0 or 0 < sheets[0] <= sheets[1]


def border(values: np.ndarray) -> np.ndarray:
    """Return the values along the four edges of an array `[H, W]`."""
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _sheet(mask: np.ndarray) -> int:
    """Return the area of the largest region, or 0 if it is not rectangular like a sheet."""
    labels, count = _label(mask)
    if not count:
        return 0
    largest = np.bincount(labels.ravel())[1:].argmax()
    region = labels[ndimage.find_objects(labels)[largest]] == largest + 1
    # A band, because sheets are rarely upright and a digit may reach an edge.
    band = max(max(region.shape) // 30, 1)
    edges = (region[:band], region[-band:], region[:, :band].T, region[:, -band:].T)
    is_sheet = (
        all(edge.any(axis=0).mean() >= 0.7 for edge in edges)
        and region.mean() >= 0.5
        and min(np.divide(region.shape, mask.shape)) >= 0.5
    )
    return region.size if is_sheet else 0


def _threshold(ink: np.ndarray, noise: float) -> np.ndarray:
    """Remove ink that is faint compared with the darkest ink.

    Raises:
        PictureError: there is no ink.
    """
    detail = ink - ndimage.gaussian_filter(ink, max(ink.shape) / 30)
    # Faint ink has edges. Residual illumination has none.
    is_light = ink.max() < SHADE and detail.max() < EDGE * ink.max()
    if is_light or ink.max() < max(LEAST_INK, LEAST_OF_NOISE * noise):
        raise PictureError(NOTHING)
    return np.where(ink < FAINT * ink.max(), 0, ink)


def _label(mask: np.ndarray, neighbours: np.ndarray | None = None) -> tuple[np.ndarray, int]:
    """Label connected regions from 1, and return the labels and the number of regions."""
    labels: Any = ndimage.label(mask, neighbours)
    return labels


def _components(
    ink: np.ndarray, labels: np.ndarray | None = None
) -> tuple[np.ndarray, list[_Part]]:
    """Return the labels, by default of connected ink, and the part of each label."""
    if labels is None:
        labels, _ = _label(ink > 0, _NEIGHBOURS)
    return labels, [
        _Part((label,), place[0].start, place[0].stop, place[1].start, place[1].stop)
        for label, place in enumerate(ndimage.find_objects(labels), 1)
        if place is not None
    ]


def _cores(ink: np.ndarray) -> np.ndarray:
    """Label connected ink; split regions that reach the left or right edge where ink is faint."""
    connected, count = _label(ink > 0, _NEIGHBOURS)
    cores, _ = _label(ink > CORE * ink.max(), _NEIGHBOURS)
    nearest: Any = ndimage.distance_transform_edt(
        cores == 0, return_distances=False, return_indices=True
    )
    labels = np.where(ink > 0, cores[tuple(nearest)] + count, 0)
    is_parted = np.bincount(connected.ravel(), cores.ravel(), count + 1) > 0
    is_parted &= np.isin(np.arange(count + 1), connected[:, [0, -1]])
    return np.where(is_parted[connected], labels, connected)


def _without_frame(ink: np.ndarray) -> np.ndarray:
    """Crop dark bands along the edges, such as a desk around the sheet."""
    rows, columns = (_inside((ink > 0).mean(axis=axis)) for axis in (1, 0))
    inner = ink[rows, columns]
    open_edges = [
        edge
        for edge, is_cut in (
            (inner[:1], rows.start > 0),
            (inner[-1:], rows.stop < ink.shape[0]),
            (inner[:, :1], columns.start > 0),
            (inner[:, -1:], columns.stop < ink.shape[1]),
        )
        if not is_cut
    ]
    # In a picture cropped at the digit, strokes reach the edges: keep all of it.
    return ink if any((edge > 0).mean() > 0.1 for edge in open_edges) or not inner.any() else inner


def _inside(dark: np.ndarray) -> slice:
    """Return the range between the bands at both ends, from the dark fraction of each row."""
    most = len(dark) // 4
    first = next((n for n in range(most) if dark[n] < BAND), most)
    last = next((n for n in range(most) if dark[-1 - n] < BAND), most)
    return slice(first, len(dark) - last)


def _without_lines(ink: np.ndarray) -> np.ndarray:
    """Remove ruled lines, grids and boxes: thin, straight, and longer than the digit."""
    mask = ink > 0
    across, down = _lines(mask), _lines(mask.T).T
    rest = np.where(across | down, 0, ink)
    labels, parts = _components(rest)
    parts = [part for part in parts if part.size >= SMALL * max(ink.shape)]
    if not parts:  # a box or grid, or a digit that is one line
        return np.zeros_like(ink) if across.any() and down.any() else _without_edges(ink)
    inner = [part for part in parts if not _touches(part, ink.shape)] or parts
    main = max(inner, key=lambda part: part.size)
    depth: Any = ndimage.distance_transform_edt(labels == main.labels[0])
    stroke = 2 * float(depth.max())
    across = _longer(across, main.left, main.right, stroke)
    down = _longer(down.T, main.top, main.bottom, stroke).T
    return np.where(across | down, 0, ink)


def _lines(mask: np.ndarray) -> np.ndarray:
    """Return the pixels of thin horizontal lines, except where strokes cross them."""
    longest = max(mask.shape)
    length, thickness = round(LONG * longest), round(THIN * longest)
    # Lines are rarely straight: a pixel up or down counts as the same row.
    thick = ndimage.binary_dilation(mask, np.ones((3, 1), bool))
    runs = mask & _opened(thick, (1, max(length, 3)))
    strokes = _opened(mask, (thickness + 1, 1))
    return runs & ~strokes


def _opened(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the opening by a rectangle; `grey_opening` takes the same time for any size."""
    return ndimage.grey_opening(mask.astype(np.uint8), size, mode="constant").astype(bool)


def _longer(lines: np.ndarray, left: int, right: int, stroke: float) -> np.ndarray:
    """Select the lines that extend beyond the digit at both ends, or are far thinner than strokes.

    Args:
        lines: bool `[H, W]`.
        left: first column of the digit.
        right: column after its last one.
        stroke: thickness of its strokes, in pixels.
    """
    width = lines.shape[1]
    # A digit interrupts a line that it crosses: close the gap.
    gap = right - left + 5
    padded = np.pad(lines, ((0, 0), (gap, gap))).astype(np.uint8)
    joined = ndimage.grey_closing(padded, (1, gap))[:, gap:-gap]
    labels, count = _label(joined, _NEIGHBOURS)
    areas = ndimage.sum_labels(lines, labels, np.arange(count + 1))
    kept = np.zeros(count + 1, bool)
    for label, (_, columns) in enumerate(ndimage.find_objects(labels), 1):
        length = columns.stop - columns.start
        beyond = min(left - columns.start, columns.stop - right) >= BEYOND * width
        kept[label] = length >= LINE * width and (beyond or areas[label] < 0.4 * stroke * length)
    return lines & kept[labels]


def _touches(part: _Part, shape: tuple[int, ...]) -> bool:
    """Return whether a part touches an edge of the picture."""
    return part.top == 0 or part.left == 0 or part.bottom == shape[0] or part.right == shape[1]


def _without_edges(ink: np.ndarray) -> np.ndarray:
    """Remove parts that touch the edges: a desk, a strip, a shadow, a part of the next digit.

    Raises:
        PictureError: nothing else remains.
    """
    labels, parts = _components(ink, _cores(ink))
    free = [part for part in parts if not _touches(part, ink.shape)]
    free = [part for part in free if part.size >= SMALL * max(ink.shape)]
    touching = [part for part in parts if _touches(part, ink.shape)]
    numbers = np.arange(labels.max() + 1)
    mass = ndimage.sum_labels(ink, labels, numbers)
    depth = ndimage.maximum(_distance_to_edge(ink.shape), labels, numbers)
    most = max((mass[part.labels[0]] for part in free), default=0)
    # Keep a digit that the crop touches: nothing else is as large, and shadows are fainter.
    cropped = [
        part
        for part in touching
        if ink.max() >= SHADE
        and depth[part.labels[0]] >= DEEP * min(ink.shape)
        and mass[part.labels[0]] > most
    ]
    removed = [part.labels[0] for part in touching if part not in cropped]
    rest = np.where(np.isin(labels, removed), 0, ink)
    if not rest.any():
        raise PictureError(f"{NOTHING}, within its edges")
    return rest


def _distance_to_edge(shape: tuple[int, ...]) -> np.ndarray:
    rows, columns = (np.minimum(np.arange(n), np.arange(n)[::-1]) for n in shape)
    return np.minimum(rows[:, None], columns[None])


def _merge_parts(parts: list[_Part]) -> list[_Part]:
    """Merge the parts of each digit; digits are side by side."""
    tallest = max(part.height for part in parts)
    digits: list[_Part] = []
    for part in sorted(parts, key=lambda part: part.left):
        if digits and _is_one_digit(digits[-1], part, tallest):
            digits[-1] = _join(digits[-1], part)
        else:
            digits.append(part)
    tallest = max(digit.height for digit in digits)
    return [digit for digit in digits if digit.height >= LOW * tallest]


def _is_one_digit(left: _Part, right: _Part, tallest: int) -> bool:
    """Return whether two parts overlap horizontally, or are close and narrow enough together."""
    gap = right.left - left.right
    overlaps = -gap >= min(left.width, right.width) / 4
    both = _join(left, right)
    is_low = min(left.height, right.height) < LOW * tallest
    close = gap <= 0.12 * both.height and (is_low or both.width <= NARROW * both.height)
    return overlaps or close


def _join(one: _Part, other: _Part) -> _Part:
    return _Part(
        labels=one.labels + other.labels,
        top=min(one.top, other.top),
        bottom=max(one.bottom, other.bottom),
        left=min(one.left, other.left),
        right=max(one.right, other.right),
    )


def _cut(ink: np.ndarray, labels: np.ndarray, digit: _Part) -> np.ndarray:
    rows, columns = slice(digit.top, digit.bottom), slice(digit.left, digit.right)
    own = np.where(np.isin(labels[rows, columns], digit.labels), ink[rows, columns], 0)
    return own / own.max()


def _as_mnist(ink: np.ndarray) -> np.ndarray:
    """Scale ink, 0 to 1, to 20 x 20 pixels, with its centre of mass in the middle of 28 x 28."""
    scale = BOX / max(ink.shape)
    height, width = (max(round(length * scale), 1) for length in ink.shape)
    small = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    digit = np.asarray(small)
    offsets = np.round((SIZE - 1) / 2 - np.array(ndimage.center_of_mass(digit)))
    top, left = np.clip(offsets, 0, np.subtract(SIZE, digit.shape)).astype(int)
    picture = np.zeros((SIZE, SIZE))
    picture[top : top + height, left : left + width] = digit / digit.max()
    return np.round(255 * picture).astype(np.uint8)
