"""Reader and writer of IDX, the format in which MNIST was published.

Every source of images returns a data set as four files: bytes by published file name. Source:
http://yann.lecun.com/exdb/mnist/ ("FILE FORMATS FOR THE MNIST DATABASE").
"""

import gzip
import hashlib
import io
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"
NAMES = (TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS)

# QMNIST's files in the same order. Source: https://github.com/facebookresearch/qmnist
QMNIST_NAMES = (
    "qmnist-train-images-idx3-ubyte",
    "qmnist-train-labels-idx2-int",
    "qmnist-test-images-idx3-ubyte",
    "qmnist-test-labels-idx2-int",
)
# torchvision's folder names by data set.
_TORCHVISION = {
    "mnist": ("MNIST", "QMNIST"),
    "fashion_mnist": ("FashionMNIST",),
    "kmnist": ("KMNIST",),
}
_GZIP_MAGIC = b"\x1f\x8b"
# Magic numbers of uint8 in one dimension, and of QMNIST's int32 in two.
_LABELS_MAGIC, _QMNIST_LABELS_MAGIC = 2049, 3074

# Limit against decompression bombs, in bytes; the largest file has 47 MB.
SIZE_LIMIT = 1 << 28

# Checksums of the decompressed files. The other data sets publish none.
SHA256 = {
    "mnist": {
        TRAIN_IMAGES: "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        TRAIN_LABELS: "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        TEST_IMAGES: "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        TEST_LABELS: "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    }
}
# Checksums of the compressed files. Source: TFDS, url_checksums of its builders.
_PACKED_SHA256 = {
    "fashion_mnist": {
        TRAIN_IMAGES: "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        TRAIN_LABELS: "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        TEST_IMAGES: "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        TEST_LABELS: "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
    "kmnist": {
        TRAIN_IMAGES: "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
        TRAIN_LABELS: "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
        TEST_IMAGES: "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
        TEST_LABELS: "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
    },
}
# Data set and name of each file by checksum.
_OWNERS = {
    digest: (dataset, name)
    for digests in (SHA256, _PACKED_SHA256)
    for dataset, known in digests.items()
    for name, digest in known.items()
}

Files = Mapping[str, bytes]

# Progress callback: description, amount done, total amount.
Progress = Callable[[str, int, int], None]


class DataError(RuntimeError):
    """A data set that cannot be obtained, or has the wrong content."""


def read_folder(folder: Path, dataset: str) -> tuple[Path, dict[str, bytes]]:
    """Read the four files of a data set from a folder.

    A file may be raw or gzipped, as detected from its content. Its name may have other separators
    (`train-images.idx3-ubyte`) or another case, and the file may be in a folder of that name. The
    files may be in `MNIST/raw`, as torchvision stores them. For mnist, QMNIST's files also count.

    Args:
        folder: folder of the files, or torchvision's root.
        dataset: mnist, fashion_mnist or kmnist.

    Returns:
        The folder that contains the files, and the decompressed files by MNIST's names.

    Raises:
        DataError: a file is missing, damaged, or known to belong to another data set.
        OSError: the system cannot read a file.
    """
    place, paths = _find(folder, dataset)
    return place, {name: _read(path, dataset, name) for name, path in paths.items()}


def _find(folder: Path, dataset: str) -> tuple[Path, dict[str, Path]]:
    """Find the folder with all four files, and return it with their paths by MNIST's names."""
    sets = (NAMES, QMNIST_NAMES) if dataset == "mnist" else (NAMES,)
    most: tuple[Path, Sequence[str], list[Path | None]] = (folder, NAMES, [None] * 4)
    for place in _places(folder, dataset):
        for names in sets:
            paths = [_find_file(place, name) for name in names]
            found = {name: path for name, path in zip(NAMES, paths, strict=True) if path}
            if len(found) == len(NAMES):
                return place, found
            if paths.count(None) < most[2].count(None):
                most = (place, names, paths)
    place, names, paths = most
    missing = names[paths.index(None)]
    raise DataError(
        f"{place} has no {missing} or {missing}.gz; expected the four IDX files there "
        f"({_describe(place)})"
    )


def _places(folder: Path, dataset: str) -> Iterator[Path]:
    """Yield the folder and the subfolders in which torchvision stores the data set."""
    yield folder
    yield from _entries(folder, "raw")
    for name in _TORCHVISION[dataset]:
        for below in _entries(folder, name):
            yield below
            yield from _entries(below, "raw")


def _find_file(place: Path, name: str) -> Path | None:
    """Return the file with a name, or the file in a folder with that name."""
    for entry in _entries(place, name):
        for path in [entry, *_entries(entry, name)]:
            if path.is_file():
                return path
    return None


def _entries(folder: Path, name: str) -> list[Path]:
    """Return the entries of a folder that match a name in any spelling, .gz files last."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    # Skip hidden files: macOS writes a ._X next to many files X.
    found = [each for each in names if _plain(each) == _plain(name) and each[0] != "."]
    found.sort(key=lambda each: (each.lower().endswith("gz"), each != name, each))
    return [folder / each for each in found]


def _plain(name: str) -> str:
    """Return a name in lower case, without separators and .gz."""
    return re.sub(r"[-._ ]", "", name.lower()).removesuffix("gz")


def _describe(folder: Path, limit: int = 6) -> str:
    """Describe the content of a folder for an error message."""
    if not folder.is_dir():
        return "it is a file" if folder.exists() else "it does not exist"
    names = sorted(os.listdir(folder))
    more = ", ..." if len(names) > limit else ""
    return f"it has {', '.join(names[:limit])}{more}" if names else "it is empty"


def _read(path: Path, dataset: str, name: str) -> bytes:
    """Read and decompress a file; raise DataError if it is a different known file."""
    content = path.read_bytes()
    forms = [content]
    if content.startswith(_GZIP_MAGIC):
        forms.append(decompress(content, path))
    for form in forms:
        owner, owned = _OWNERS.get(sha256(form), (dataset, name))
        if (owner, owned) != (dataset, name):
            raise DataError(
                f"{path} is {owned} of {owner}; expected {name} of {dataset}; "
                f"pass --dataset {owner}, or another --idx-dir"
            )
    return forms[-1]


def describe_error(error: OSError, folder: Path) -> str:
    """Return a message that names the unreadable file and the reason."""
    return f"{error.filename or folder} cannot be read: {error.strerror or error}"


def is_qmnist(files: Files) -> bool:
    """Return whether the label files have QMNIST's format."""
    magic = struct.pack(">I", _QMNIST_LABELS_MAGIC)
    return all(files[name].startswith(magic) for name in (TRAIN_LABELS, TEST_LABELS))


def decompress(content: bytes, origin: object) -> bytes:
    """Decompress a gzip file of at most `SIZE_LIMIT` decompressed bytes.

    Raises:
        DataError: the file is damaged or too large.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            raw = file.read(SIZE_LIMIT + 1)
    except EOFError as error:
        raise DataError(f"{origin} is cut short; fetch it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{origin} is damaged ({error}); fetch it again") from error
    if len(raw) > SIZE_LIMIT:
        raise DataError(f"{origin} unpacks to more than {SIZE_LIMIT} bytes; it is no IDX file")
    return raw


def check(files: Files, expected: Mapping[str, str], origin: object) -> None:
    """Compare the files with their expected SHA-256 checksums.

    Raises:
        DataError: a checksum differs; the message names the file.
    """
    for name, digest in expected.items():
        found = sha256(files[name])
        if found != digest:
            raise DataError(
                f"{name} from {origin} is corrupt or another file: its SHA-256 is {found}, "
                f"expected {digest}; remove it and fetch it again"
            )


def sha256(content: bytes) -> str:
    """Return the SHA-256 checksum in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def parse(content: bytes, name: str, origin: object) -> np.ndarray:
    """Parse one of the files `NAMES`, as images or as labels."""
    is_images = name in (TRAIN_IMAGES, TEST_IMAGES)
    return (parse_images if is_images else parse_labels)(content, origin)


def parse_images(content: bytes, origin: object) -> np.ndarray:
    """Parse an image file to uint8 `[N, 28, 28]`.

    Raises:
        DataError: the file is not an image file, or its length does not match its header.
    """
    pixels = _parse(content, origin, {2051: ("u1", 3)})
    if pixels.shape[1:] != (28, 28):
        height, width = pixels.shape[1:]
        raise DataError(f"{origin} has images of {height}x{width} pixels; expected 28x28")
    return pixels


def parse_labels(content: bytes, origin: object) -> np.ndarray:
    """Parse a label file of MNIST or QMNIST to uint8 `[N]`.

    QMNIST stores int32 `[N, 8]`: the digit, then its writer and its position in NIST's collection.

    Raises:
        DataError: the file is not a label file, or its length does not match its header.
    """
    labels = _parse(content, origin, {_LABELS_MAGIC: ("u1", 1), _QMNIST_LABELS_MAGIC: (">i4", 2)})
    digits = labels.reshape(len(labels), -1)[:, 0]
    for digit in (digits.max(), digits.min()):
        if not 0 <= digit <= 9:
            raise DataError(f"{origin} has the label {digit}; expected 0 to 9")
    return digits.astype(np.uint8, copy=False)


def _parse(content: bytes, origin: object, formats: Mapping[int, tuple[str, int]]) -> np.ndarray:
    """Parse an IDX file; `formats` holds dtype and number of dimensions by magic number."""
    least = min(4 + 4 * dimensions for _, dimensions in formats.values())
    if len(content) < least:
        raise DataError(f"{origin} has {len(content)} bytes, too few for an IDX file")
    (magic,) = struct.unpack_from(">I", content)
    if magic not in formats:
        raise DataError(f"{origin} begins with the number {magic}; expected {min(formats)}")
    dtype, dimensions = formats[magic]
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", content[4:header].ljust(4 * dimensions, b"\0"))
    expected = header + int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
    if len(content) != expected or 0 in shape:
        raise DataError(
            f"{origin} has {len(content)} bytes; its header says {shape[0]} items, "
            f"{expected} bytes; it is cut short or damaged"
        )
    return np.frombuffer(content, dtype, offset=header).reshape(shape)


def to_bytes(array: np.ndarray) -> bytes:
    """Encode images `[N, 28, 28]` or labels `[N]`, uint8, as an IDX file."""
    magic = 2048 + array.ndim
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.tobytes()
