"""The images: from wherever they are to uint8 arrays, checked on every way."""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmnist.config import DATASETS, ConfigError, check_name
from jaxmnist.data import idx
from jaxmnist.data.idx import DataError, Files, Progress

__all__ = ["TRAIN_COUNT", "DataError", "Dataset", "Progress", "load"]

_log = logging.getLogger(__name__)

# The notebooks' constants for MNIST; those of the other data sets are computed.
NORMALISATION = {"mnist": (0.1307, 0.3081)}
_DIGESTS = "SHA256SUMS"
# `Path` makes one slash of two.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")

# Training images of each data set, as published.
TRAIN_COUNT = 60_000


class Dataset(NamedTuple):
    """A data set in memory; uint8, images `[N, 28, 28]`, labels `[N]`."""

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    mean: float  # of the training pixels / 255
    std: float


def hold_out(dataset: Dataset, count: int, fold: int) -> Dataset:
    """Puts some training images in the place of the test set.

    Args:
        dataset: as `load` returned it.
        count: how many.
        fold: which: 0 the last ones, 1 those before, and so on.

    Raises:
        ConfigError: there are not so many.
    """
    available = len(dataset.train_images)
    if count * (fold + 1) > available - 1:
        raise ConfigError(
            f"holdout is {count} and fold {fold}, but there are {available} training images: "
            f"expected a fold of at most {max((available - 1) // count - 1, 0)}, or fewer images"
        )
    held = np.zeros(available, bool)
    held[available - count * (fold + 1) : available - count * fold] = True
    images, labels = dataset.train_images, dataset.train_labels
    return dataset._replace(
        train_images=images[~held],
        train_labels=labels[~held],
        test_images=images[held],
        test_labels=labels[held],
    )


def ignore_progress(what: str, done: int, total: int) -> None:
    """Shows nothing."""


def load(
    dataset: str = "mnist",
    data_dir: str | os.PathLike | None = None,
    idx_dir: str | os.PathLike | None = None,
    progress: Progress = ignore_progress,
) -> Dataset:
    """Loads a data set, fetching it the first time.

    Args:
        dataset: mnist, fashion_mnist or kmnist.
        data_dir: where TFDS keeps its data sets, and where ours is kept, in `jaxmnist/`; None:
            the environment's TFDS_DATA_DIR, else ~/tensorflow_datasets, else a folder for
            temporary files.
        idx_dir: a folder with the four IDX files, raw or as .gz, to be used in place of all else;
            see `idx.read_folder`.
        progress: told what is being fetched or prepared, how much is done, and of how much.

    Returns:
        The arrays.

    Raises:
        ConfigError: there is no such data set, or a folder is not one of this machine.
        DataError: it cannot be had, or is not what it should be.
    """
    check_name("dataset", dataset, DATASETS)
    if idx_dir is not None:
        return _read_idx_dir(dataset, _local_folder("idx_dir", idx_dir))
    published = idx.SHA256.get(dataset, {})
    folder = _choose_data_dir(data_dir).absolute()
    cache = folder / "jaxmnist" / "arrays" / dataset
    cached = _read_cache(dataset, cache, published)
    if cached is not None:
        return cached
    files = _read_or_prepare(dataset, folder, published, progress)
    _write_cache(files, cache)
    return _to_dataset(dataset, files, published, folder)


def _read_idx_dir(dataset: str, folder: Path) -> Dataset:
    """Return the arrays of the IDX files in a folder."""
    try:
        place, files = idx.read_folder(folder, dataset)
    except OSError as error:
        raise DataError(_in_words(error, folder)) from error
    published = idx.SHA256.get(dataset, {})
    if idx.is_qmnist(files):
        if dataset != "mnist":
            raise DataError(f"{place} has QMNIST; expected {dataset}; pass --dataset mnist")
        published = {}  # QMNIST has the digits of MNIST, but not the same pixels
    return _to_dataset(dataset, files, published, place)


def _choose_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """Return the folder of the data sets; without a home directory, one for temporary files."""
    if data_dir:
        return _local_folder("data_dir", data_dir)
    named = os.environ.get("TFDS_DATA_DIR")
    if named:
        return _local_folder("TFDS_DATA_DIR", named)
    with contextlib.suppress(RuntimeError):
        folder = Path("~/tensorflow_datasets").expanduser()
        # A container that is given only a user's number has / for a home directory.
        if os.path.exists(folder) or os.access(folder.parent, os.W_OK):
            return folder
    folder = Path(tempfile.gettempdir()) / f"jaxmnist-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():
        raise DataError(f"{folder} belongs to another user; pass --data-dir")
    _log.warning(
        "no home directory can be written; images are kept in %s (--data-dir sets another folder)",
        folder,
    )
    return folder


def _local_folder(name: str, value: str | os.PathLike) -> Path:
    """Return the path of a folder that the user names.

    Raises:
        ConfigError: it is an address, or starts with a home directory that does not exist.
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


def _in_words(error: OSError, folder: Path) -> str:
    """Return in words which file could not be read and why."""
    return f"{error.filename or folder} cannot be read: {error.strerror or error}"


def _read_or_prepare(
    dataset: str, data_dir: Path, published: Mapping[str, str], progress: Progress
) -> Files:
    """Return the files of a prepared data set; prepare it first if there is none."""
    # TFDS takes a while to import, which a start from the cache is spared.
    from jaxmnist.data import sources, tfds_mnist

    own = tfds_mnist.own_folder(dataset, data_dir)
    stock = tfds_mnist.stock_folder(dataset, data_dir)
    for folder in (own, stock):
        files = _read_prepared(folder, published, progress, ours=folder == own)
        if files is not None:
            return files
    fetched = sources.fetch(dataset, progress)
    idx.check(fetched, published, "the network")
    try:
        with _folder_beside(own) as scratch:
            tfds_mnist.prepare(dataset, fetched, scratch, progress)
            _publish(tfds_mnist.own_folder(dataset, scratch), own)
    # A full disk is an OSError here and array_record's RuntimeError there.
    except (OSError, RuntimeError) as error:
        advice = "make room there, or pass another --data-dir"
        _log.warning("%s could not be prepared in %s: %s; %s", dataset, data_dir, error, advice)
        return fetched
    return _read_prepared(own, published, progress, ours=True) or fetched


def _read_prepared(
    folder: Path, published: Mapping[str, str], progress: Progress, ours: bool
) -> Files | None:
    """Return the files of a prepared data set, or None if no whole one can be read.

    A damaged data set is removed if it is ours.
    """
    from jaxmnist.data import tfds_mnist

    try:
        files = tfds_mnist.read(folder, progress)
        if files is not None:
            idx.check(files, published, folder)
        return files
    except (DataError, OSError) as error:
        if ours and isinstance(error, DataError):
            _remove(folder, error)
        else:
            _log.warning("passed over: %s", error)
        return None


def _to_dataset(dataset: str, files: Files, digests: Mapping[str, str], origin: object) -> Dataset:
    """The arrays of the four files, after comparing them with their digests."""
    idx.check(files, digests, origin)
    names = {name: f"{name} from {origin}" for name in idx.NAMES}
    train_images = idx.parse_images(files[idx.TRAIN_IMAGES], names[idx.TRAIN_IMAGES])
    train_labels = idx.parse_labels(files[idx.TRAIN_LABELS], names[idx.TRAIN_LABELS])
    test_images = idx.parse_images(files[idx.TEST_IMAGES], names[idx.TEST_IMAGES])
    test_labels = idx.parse_labels(files[idx.TEST_LABELS], names[idx.TEST_LABELS])
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(labels):
            raise DataError(f"{origin} has {len(images)} images but {len(labels)} labels")
    mean, std = NORMALISATION.get(dataset) or _mean_and_std(train_images)
    return Dataset(train_images, train_labels, test_images, test_labels, mean, std)


def _mean_and_std(images: np.ndarray) -> tuple[float, float]:
    """Of the pixels / 255, exactly, from their histogram."""
    share = np.bincount(images.ravel(), minlength=256) / images.size
    values = np.arange(256) / 255
    mean = float(share @ values)
    std = float(np.sqrt(share @ (values - mean) ** 2))
    if std == 0:
        raise DataError("all training pixels are alike; there is nothing to learn from them")
    return mean, std


def _read_cache(dataset: str, cache: Path, published: Mapping[str, str]) -> Dataset | None:
    """Return the arrays of our own copy, or None if there is no whole one.

    A damaged copy is removed. One that the system cannot read now is left alone.
    """
    if not os.path.exists(cache):
        return None
    try:
        lines = (cache / _DIGESTS).read_text().splitlines()
        kept = {name: digest for digest, name in (line.split() for line in lines)}
        if set(kept) != set(idx.NAMES):
            raise DataError(f"{cache / _DIGESTS} is damaged")
        files = {name: (cache / name).read_bytes() for name in idx.NAMES}
        return _to_dataset(dataset, files, published or kept, cache)
    except (DataError, ValueError, *idx.NOT_A_FILE) as error:
        _remove(cache, error)
    except OSError as error:
        _log.warning("passed over: %s", _in_words(error, cache))
    return None


def _remove(folder: Path, reason: Exception) -> None:
    """Remove a damaged folder of ours, and log it; a folder that must stay is passed over."""
    try:
        # Under another name first: a second process that removes it too finds nothing, or all.
        with _folder_beside(folder) as scratch:
            folder.rename(scratch / folder.name)
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("passed over: %s; it cannot be removed: %s", reason, error)
        return
    _log.warning("removed: %s", reason)


def _write_cache(files: Files, cache: Path) -> None:
    """Keeps the files for the next start; a disk that does not take them costs only time."""
    try:
        with _folder_beside(cache) as scratch:
            folder = scratch / cache.name
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            sums = "".join(f"{idx.sha256(files[name])}  {name}\n" for name in idx.NAMES)
            (folder / _DIGESTS).write_text(sums)
            _publish(folder, cache)
    except OSError as error:
        _log.warning("the images could not be kept in %s: %s", cache, error)


@contextlib.contextmanager
def _folder_beside(final: Path) -> Iterator[Path]:
    """A scratch folder on the same disk as `final`, removed afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".new-", dir=final.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


def _publish(built: Path, final: Path) -> None:
    """Gives a finished folder its name, unless another process was faster with the same."""
    try:
        built.rename(final)
    except OSError:
        if not final.exists():
            raise
