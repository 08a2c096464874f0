"""Data sets as uint8 arrays, with verified checksums, from any source."""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from jaxmnist.config import ConfigError, check_choice
from jaxmnist.data import idx
from jaxmnist.data.cache import folder_beside, publish, read_cache, write_cache
from jaxmnist.data.dataset import (
    CLASSES,
    NORMALISATION,
    TRAIN_COUNT,
    Dataset,
    hold_out,
    to_dataset,
)
from jaxmnist.data.idx import DataError, Files, Progress
from jaxmnist.recipes import DATASETS

__all__ = [
    "CLASSES",
    "NORMALISATION",
    "TRAIN_COUNT",
    "DataError",
    "Dataset",
    "Progress",
    "hold_out",
    "load",
]

_log = logging.getLogger(__name__)
# One slash: `Path` collapses two slashes into one.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def ignore_progress(what: str, done: int, total: int) -> None:
    """Ignore a progress report."""


def load(
    dataset: str = "mnist",
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    progress: Progress = ignore_progress,
) -> Dataset:
    """Load a data set; download it the first time.

    Args:
        dataset: mnist, fashion_mnist or kmnist.
        data_dir: the folder of the TFDS data sets and, in `jaxmnist/`, of this package's copy; None
            for $TFDS_DATA_DIR, else ~/tensorflow_datasets, else a temporary folder.
        idx_dir: a folder with the four IDX files, raw or as .gz, used instead of all other
            sources; see `idx.read_folder`.
        progress: callback for downloads and preparation; see `idx.Progress`.

    Returns:
        The arrays.

    Raises:
        ConfigError: the data set is unknown, or a folder is not a local path.
        DataError: the data set cannot be obtained, or has the wrong content.
    """
    check_choice("dataset", dataset, DATASETS)
    if idx_dir is not None:
        return _read_idx_dir(dataset, _local_folder("idx_dir", idx_dir))
    published = idx.SHA256.get(dataset, {})
    folder = _choose_data_dir(data_dir).absolute()
    cache = folder / "jaxmnist" / "arrays" / dataset
    cached = read_cache(dataset, cache, published)
    if cached is not None:
        return cached
    files = _read_or_prepare(dataset, folder, published, progress)
    write_cache(files, cache)
    return to_dataset(dataset, files, published, folder)


def _read_idx_dir(dataset: str, folder: Path) -> Dataset:
    """Read a data set from the IDX files in a folder."""
    try:
        place, files = idx.read_folder(folder, dataset)
    except OSError as error:
        raise DataError(idx.describe_error(error, folder)) from error
    published = idx.SHA256.get(dataset, {})
    if idx.is_qmnist(files):
        if dataset != "mnist":
            raise DataError(f"{place} has QMNIST; expected {dataset}; pass --dataset mnist")
        published = {}  # QMNIST's pixels differ from MNIST's
    return to_dataset(dataset, files, published, place)


def _choose_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """Return the folder of the data sets, or a temporary one without a home directory."""
    if data_dir:
        return _local_folder("data_dir", data_dir)
    named = os.environ.get("TFDS_DATA_DIR")
    if named:
        return _local_folder("TFDS_DATA_DIR", named)
    with contextlib.suppress(RuntimeError):
        folder = Path("~/tensorflow_datasets").expanduser()
        # In a container started with only a user id, the home directory is /.
        if os.path.exists(folder) or os.access(folder.parent, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"jaxmnist-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user; pass --data-dir")
    _log.warning(
        "no home directory can be written; images are stored in %s (see --data-dir)",
        folder,
    )
    return folder


def _local_folder(name: str, value: str | os.PathLike) -> Path:
    """Return the path of a folder that the user passed.

    Raises:
        ConfigError: the value is a URL, or starts with an unknown home directory.
    """
    if _URL.match(os.fspath(value)):
        raise ConfigError(
            f"{name} is {os.fspath(value)!r}; expected a folder on this machine; "
            "pass one by --data-dir or --idx-dir"
        )
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigError(
            f"{name} is {os.fspath(value)!r}, but that home directory is not known; "
            "expected a full path"
        ) from error


def _read_or_prepare(
    dataset: str, data_dir: Path, published: Mapping[str, str], progress: Progress
) -> Files:
    """Read a prepared data set; without a readable one, download and prepare it."""
    # Imported here: TFDS imports slowly, and a start from the cache does not need it.
    from jaxmnist.data import sources, tfds_mnist

    own = tfds_mnist.own_folder(dataset, data_dir)
    for folder in (own, tfds_mnist.stock_folder(dataset, data_dir)):
        try:
            files = tfds_mnist.read(folder, progress)
            if files is not None:
                idx.check(files, published, folder)
                return files
        except DataError as error:
            _log.warning("skipped: %s", error)
    fetched = sources.fetch(dataset, progress)
    idx.check(fetched, published, "the network")
    try:
        with folder_beside(own) as scratch:
            tfds_mnist.prepare(dataset, fetched, scratch, progress)
            publish(tfds_mnist.own_folder(dataset, scratch), own)
    # On a full disk, array_record raises RuntimeError, and other writers raise OSError.
    except (OSError, RuntimeError) as error:
        advice = "make room there, or pass another --data-dir"
        _log.warning("%s could not be prepared in %s: %s; %s", dataset, data_dir, error, advice)
    return fetched
