"""The IDX format, in which MNIST was published: the currency of every source of images.

A data set is four files, held as bytes under their published names. Source of the format:
http://yann.lecun.com/exdb/mnist/ ("FILE FORMATS FOR THE MNIST DATABASE").
"""

import hashlib
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

# The largest file has 47 MB; a compressed one that grows beyond this is not one of ours.
SIZE_LIMIT = 1 << 28

# Of the decompressed files. The other data sets publish no digests.
SHA256 = {
    "mnist": {
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}

Files = Mapping[str, bytes]

# Told of what is being fetched or prepared, how much of it is done, and of how much.
Progress = Callable[[str, int, int], None]


class DataError(RuntimeError):
    """The images cannot be had, or are not what they should be."""


def read_folder(folder: Path) -> dict[str, bytes]:
    """Reads the four files of a folder, raw or as .gz.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    return {name: _read(folder, name) for name in NAMES}


def _read(folder: Path, name: str) -> bytes:
    for path in (folder / name, folder / f"{name}.gz"):
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        return decompress(content, path) if path.suffix == ".gz" else content
    raise DataError(f"{folder} has no {name} or {name}.gz; expected the four IDX files there")


def decompress(content: bytes, origin: object) -> bytes:
    """Unpacks a .gz, up to a size that no file of ours has.

    Raises:
        DataError: it is damaged, or too large.
    """
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        raw = unpack.decompress(content, SIZE_LIMIT)
    except zlib.error as error:
        raise DataError(f"{origin} is damaged ({error}); fetch it again") from error
    if unpack.unconsumed_tail:
        raise DataError(f"{origin} unpacks to more than {SIZE_LIMIT} bytes; it is no IDX file")
    if not unpack.eof:
        raise DataError(f"{origin} is cut short; fetch it again")
    return raw


def check(files: Files, expected: Mapping[str, str], origin: object) -> None:
    """Compares the files with the SHA-256 digests that they should have.

    Raises:
        DataError: a file differs; the message names it.
    """
    for name, digest in expected.items():
        found = sha256(files[name])
        if found != digest:
            raise DataError(
                f"{name} from {origin} is corrupt or another file: its SHA-256 is {found}, "
                f"expected {digest}; remove it and fetch it again"
            )


def sha256(content: bytes) -> str:
    """The SHA-256 digest, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parse_images(content: bytes, origin: object) -> np.ndarray:
    """uint8 `[N, 28, 28]` from an images file.

    Raises:
        DataError: it is something else, or its length is not what its header says.
    """
    pixels, (count, height, width) = _parse(content, origin, magic=2051, dimensions=3)
    if (height, width) != (28, 28):
        raise DataError(f"{origin} has images of {height}x{width} pixels; expected 28x28")
    return pixels.reshape(count, height, width)


def parse_labels(content: bytes, origin: object) -> np.ndarray:
    """uint8 `[N]` from a labels file.

    Raises:
        DataError: it is something else, or its length is not what its header says.
    """
    labels, _ = _parse(content, origin, magic=2049, dimensions=1)
    if labels.max() > 9:
        raise DataError(f"{origin} has the label {labels.max()}; expected 0 to 9")
    return labels


def _parse(content, origin, magic, dimensions):
    header = struct.calcsize(f">{1 + dimensions}I")
    if len(content) < header:
        raise DataError(f"{origin} has {len(content)} bytes, too few for an IDX file")
    found, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    if found != magic:
        raise DataError(f"{origin} begins with the number {found}; expected {magic}")
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected or not shape[0]:
        raise DataError(
            f"{origin} has {len(content)} bytes; its header says {shape[0]} items, "
            f"{expected} bytes; it is cut short or damaged"
        )
    return np.frombuffer(content, np.uint8, offset=header), shape


def to_bytes(array: np.ndarray) -> bytes:
    """The IDX file of images `[N, 28, 28]` or labels `[N]`, uint8."""
    magic = 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
