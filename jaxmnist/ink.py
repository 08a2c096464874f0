"""Find the digits in a picture: estimate the paper, threshold the ink, group its pieces."""

from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import ndimage

SIZE, BOX = 28, 20
# Ink below this fraction of the strongest is paper, dust, or an artefact of JPEG.
FAINT = 0.25
# Least difference of ink and paper, as a fraction of the paper's grey level.
LEAST_CONTRAST = 0.07
# What remains of shading at the border is less than this fraction of the paper.
SHADING = 0.35
# Sides in pixels at which pictures are segmented, and at which paper and polarity are estimated.
WORKING, PAPER = 384, 128
# Pictures with a shorter side have neither grain nor ruled lines that could be told from strokes.
SMALL = 64
# Pictures below this size are one digit, enlarged smoothly by this factor.
TINY, ENLARGED = 20, 8
# A stroke is narrower than this fraction of the picture.
WIDEST_STROKE = 0.3
EIGHT = np.ones((3, 3), bool)
NOTHING = "nothing is drawn on it; expected a digit, dark or light"


class PictureError(ValueError):
    """A picture in which no digit can be read."""


class Piece(NamedTuple):
    """Connected ink: its label, its bounding box in pixels (stops are exclusive), its ink's sum."""

    label: int
    top: int
    bottom: int
    left: int
    right: int
    mass: float

    @property
    def height(self) -> int:
        """Rows of the bounding box."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns of the bounding box."""
        return self.right - self.left

    @property
    def size(self) -> int:
        """The longer side."""
        return max(self.height, self.width)


def find_digits(greys: np.ndarray) -> list[np.ndarray]:
    """Return every digit of a picture, from left to right.

    Args:
        greys: float `[H, W]`, 0 to 255, dark on light or light on dark.

    Returns:
        uint8 `[28, 28]` for each digit, as MNIST's: white on black, scaled and centred.

    Raises:
        PictureError: there is none, or it cannot be told from what surrounds it.
    """
    if max(greys.shape) < TINY:
        return [_as_mnist(_ink_of_tiny(greys))]
    ink = _without_noise(_ink(_resized(greys, WORKING)))
    ink = _without_strips(ink)
    strong = ink > _threshold(ink)
    lines = _lines(strong) | _lines(strong.T).T
    labels = _labels(strong & ~lines)
    pieces = _on_the_page(_pieces_of(labels, ink), labels.shape)
    # The paper's own shading is faint, and it goes on to the border.
    is_faint = np.percentile(ink[labels > 0], 90) < SHADING
    if is_faint and any(_touches_border(piece, labels.shape) for piece in pieces):
        raise PictureError(NOTHING)
    ink = np.where(ndimage.binary_dilation(lines, EIGHT, 2) & (labels == 0), 0, ink)
    return [_as_mnist(_ink_of(group, ink, labels)) for group in _digits_of(pieces)]


def _ink(greys: np.ndarray) -> np.ndarray:
    """Return how far each pixel is from the paper around it, 0 to 1 of the paper's grey level."""
    if not _is_dark_on_light(greys):
        greys = 255 - greys
    paper = np.maximum(_paper(greys), 1)
    # Shadows multiply: a fraction of the paper is the same in them. In deep shadow noise is not.
    return np.clip((paper - greys) / np.maximum(paper, 0.3 * paper.max()), 0, 1)


def _ink_of_tiny(greys: np.ndarray) -> np.ndarray:
    """Return the ink of a digit that fills a picture of a few pixels, 0 to 1."""
    light = greys.mean() < (greys.min() + greys.max()) / 2
    ink = greys - greys.min() if light else greys.max() - greys
    if ink.max() < 255 * LEAST_CONTRAST:
        raise PictureError(NOTHING)
    ink = np.pad(ink / ink.max(), 1).astype(np.float32)
    size = (ENLARGED * ink.shape[1], ENLARGED * ink.shape[0])
    ink = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.LANCZOS))
    return _cropped(np.clip((ink - 0.1) / 0.8, 0, 1))


def _paper(greys: np.ndarray) -> np.ndarray:
    """Return the grey level of the paper, where there is ink as well."""
    small = _resized(greys, PAPER)
    small = ndimage.median_filter(small, min(3, *small.shape))
    size = max(int(WIDEST_STROKE * max(small.shape)), 3)
    # Dark strokes are filled, larger regions keep their edges.
    closed = ndimage.grey_closing(small, (size, size), mode="nearest")
    image = Image.fromarray(closed.astype(np.float32))
    return np.asarray(image.resize(greys.shape[::-1], Image.Resampling.BILINEAR), float)


def _is_dark_on_light(greys: np.ndarray) -> bool:
    """Whether the ink is darker than the paper, of which there is more."""
    small = _resized(greys, PAPER)
    # Ratios of grey levels: a shadow is a smaller one than ink, whatever its area.
    levels = np.log(small + 10)
    lighter = levels - np.median(levels)
    height, width = (length // 10 for length in small.shape)
    centre = lighter[height : len(small) - height, width : small.shape[1] - width]
    return bool((np.minimum(centre, 0) ** 4).sum() >= (np.maximum(centre, 0) ** 4).sum())


def _without_strips(ink: np.ndarray) -> np.ndarray:
    """Return the ink without what runs along a whole side: a strip, the desk around a sheet."""
    labels = _labels(ink > _threshold(ink))
    ink = ink.copy()
    for turns in range(4):
        turned, its_labels = np.rot90(ink, turns), np.rot90(labels, turns)
        common = np.bincount(its_labels[0])
        common[0] = 0
        if common.max() < 0.8 * turned.shape[1]:
            continue
        # Only as deep as usual thereabouts: a digit may touch the strip.
        depth = np.argmin(np.pad(its_labels == common.argmax(), ((0, 1), (0, 0))), axis=0)
        usual = ndimage.median_filter(depth, max(len(depth) // 3, 3), mode="nearest")
        turned[np.arange(len(turned))[:, None] < (usual + 3) * (usual > 0)] = 0
    return ink


def _without_noise(ink: np.ndarray) -> np.ndarray:
    """Return the ink smoothed as much as its noise asks for."""
    if min(ink.shape) < SMALL:
        return ink
    grain = _grain(ink)
    return ndimage.gaussian_filter(ink, min(25 * grain, 2)) if grain > 0.015 else ink


def _grain(ink: np.ndarray) -> float:
    """Return the standard deviation of the noise, from differences of neighbours."""
    difference = np.diff(np.diff(ink, axis=0), axis=1)
    return float(np.median(np.abs(difference)) / 0.6745 / 2)


def _threshold(ink: np.ndarray) -> float:
    """Return what separates ink from paper."""
    drawn = ink[ink > LEAST_CONTRAST]
    strongest = np.percentile(drawn, 90) if drawn.size else 0
    noise = np.median(ink) + 5 * _grain(ink) if min(ink.shape) >= SMALL else 0
    return max(0.35 * strongest, noise, LEAST_CONTRAST)


def _lines(strong: np.ndarray) -> np.ndarray:
    """Return the pixels of nearly horizontal lines."""
    height, width = strong.shape
    lines = np.zeros_like(strong)
    if min(strong.shape) < SMALL:
        return lines
    runs = ndimage.binary_opening(strong, np.ones((1, max(width // 10, 8)), bool))
    labels = _labels(ndimage.binary_dilation(runs, np.ones((3, 9))))
    thickness = _run_lengths(strong)
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        here = runs[place] & (labels[place] == number)
        columns = here.any(axis=0)
        start, stop = place[1].start, place[1].stop
        from_border = min(start, width - stop) <= 5
        if columns.sum() < (0.6 if from_border else 0.8) * width:
            continue
        # Where a stroke crosses, the line is as thick as the stroke: the usual one is the line's.
        of_columns = np.where(here, thickness[place], height).min(axis=0)
        usual = np.median(of_columns[columns])
        if usual <= max(0.02 * min(strong.shape), 3):
            lines[place] |= here & (thickness[place] <= 1.6 * usual + 1)
    return lines


def _run_lengths(strong: np.ndarray) -> np.ndarray:
    """Return for each pixel the length of the vertical run of ink that it is in."""
    height, width = strong.shape
    lengths = np.zeros(strong.shape, int)
    padded = np.pad(strong, ((1, 1), (0, 0))).T.astype(np.int8)
    change = np.diff(padded, axis=1)
    columns, starts = np.nonzero(change == 1)
    _, stops = np.nonzero(change == -1)
    marks = np.zeros((width, height + 1), int)
    marks[columns, starts] += stops - starts
    marks[columns, stops] -= stops - starts
    lengths[:] = np.cumsum(marks, axis=1)[:, :-1].T
    return lengths


def _labels(mask: np.ndarray) -> np.ndarray:
    """Return the number of the connected piece that each pixel is in, 0 outside."""
    labels = np.zeros(mask.shape, np.int32)
    ndimage.label(mask, EIGHT, output=labels)
    return labels


def _pieces_of(labels: np.ndarray, ink: np.ndarray) -> list[Piece]:
    """Return the connected pieces of ink, those with the most ink first."""
    places = ndimage.find_objects(labels)
    masses = ndimage.sum_labels(ink, labels, np.arange(1, len(places) + 1))
    pieces = [
        Piece(number, rows.start, rows.stop, columns.start, columns.stop, float(mass))
        for number, ((rows, columns), mass) in enumerate(zip(places, masses, strict=True), 1)
    ]
    return sorted(pieces, key=lambda piece: -piece.mass)


def _on_the_page(pieces: list[Piece], shape: tuple[int, ...]) -> list[Piece]:
    """Return the pieces without frames, neighbours at the border and specks."""
    pieces = [piece for piece in pieces if not _is_frame(piece, pieces)]
    if not pieces:
        raise PictureError(NOTHING)
    largest = max(piece.size for piece in pieces)
    parts = [piece for piece in pieces if _is_part(piece, shape)]
    whole = [piece for piece in pieces if piece not in parts]
    if not any(piece.size > 0.5 * largest for piece in whole):
        whole = pieces
    largest = max(piece.size for piece in whole)
    return [piece for piece in whole if piece.size > 0.12 * largest]


def _touches_border(piece: Piece, shape: tuple[int, ...]) -> bool:
    height, width = shape
    return piece.top == 0 or piece.left == 0 or piece.bottom == height or piece.right == width


def _is_part(piece: Piece, shape: tuple[int, ...]) -> bool:
    """Whether a piece at the border is the rest of something outside of the picture."""
    height, width = shape
    if piece.left == 0 or piece.right == width:
        return piece.width < 0.5 * piece.height or piece.size < 0.3 * height
    return (piece.top == 0 or piece.bottom == height) and piece.height < 0.5 * piece.width


def _is_frame(piece: Piece, pieces: list[Piece]) -> bool:
    """Whether a piece is a thin line around another."""
    return any(
        piece.top < other.top
        and piece.bottom > other.bottom
        and piece.left < other.left
        and piece.right > other.right
        and other.size > 0.3 * piece.size
        for other in pieces
    )


def _digits_of(pieces: list[Piece]) -> list[list[Piece]]:
    """Return the pieces of each digit, from left to right.

    Pieces belong to one digit if they lie above each other, or if one is much smaller.
    """
    tallest = max(piece.height for piece in pieces)
    tall = sorted((p for p in pieces if p.height > 0.6 * tallest), key=lambda p: p.left + p.right)
    groups: list[list[Piece]] = []
    for piece in tall:
        if groups and any(_overlap(piece, other) > 0.35 for other in groups[-1]):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    for piece in pieces:
        if piece not in tall:
            nearest = min(groups, key=lambda group: _gap(piece, group[0]))
            if _gap(piece, nearest[0]) < 0.3 * tallest:
                nearest.append(piece)
    return groups


def _overlap(one: Piece, other: Piece) -> float:
    """Return how much of the narrower one is above or below the other one, 0 to 1."""
    both = min(one.right, other.right) - max(one.left, other.left)
    return both / min(one.width, other.width)


def _gap(one: Piece, other: Piece) -> int:
    """Return the number of pixels between two bounding boxes."""
    across = max(one.left, other.left) - min(one.right, other.right)
    down = max(one.top, other.top) - min(one.bottom, other.bottom)
    return max(across, down, 0)


def _ink_of(group: list[Piece], ink: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the ink of a digit in its bounding box, 0 to 1."""
    here = np.isin(labels, [piece.label for piece in group])
    strongest = np.percentile(ink[here], 90)
    reach = ndimage.binary_dilation(here, EIGHT, 2) & (here | (labels == 0))
    ink = np.where(reach, np.minimum(ink / strongest, 1), 0)
    return _cropped(np.where(ink < FAINT, 0, ink))


def _cropped(ink: np.ndarray) -> np.ndarray:
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _as_mnist(ink: np.ndarray) -> np.ndarray:
    """Return a digit scaled into 20x20 pixels with its centre of mass in the middle of 28x28."""
    scale = BOX / max(ink.shape)
    height, width = (max(round(length * scale), 1) for length in ink.shape)
    # Pillow's filters cover all pixels that become one, so that thin lines are not lost.
    small = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    digit = np.asarray(small)
    top, left = (_offset(digit.sum(axis=1 - axis)) for axis in (0, 1))
    picture = np.zeros((SIZE, SIZE))
    picture[top : top + height, left : left + width] = digit / digit.max()
    return np.round(255 * picture).astype(np.uint8)


def _offset(mass: np.ndarray) -> int:
    """Return where a digit begins, from the mass of each row, if its centre is the middle."""
    centre = (np.arange(len(mass)) + 0.5) @ mass / mass.sum()
    return int(np.clip(round(SIZE / 2 - centre), 0, SIZE - len(mass)))


def _resized(values: np.ndarray, side: int) -> np.ndarray:
    """Return an image whose longer side is at most this many pixels."""
    if max(values.shape) <= side:
        return values
    shrink = side / max(values.shape)
    height, width = (max(round(length * shrink), 1) for length in values.shape)
    image = Image.fromarray(values.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX), float)
