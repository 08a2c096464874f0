"""Cache of the images: four IDX files and their checksums, read in a fraction of a second."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxmnist.data import idx
from jaxmnist.data.dataset import Dataset, to_dataset
from jaxmnist.data.idx import DataError, Files

_log = logging.getLogger(__name__)

_DIGESTS = "SHA256SUMS"


def read_cache(dataset: str, cache: Path, published: Mapping[str, str]) -> Dataset | None:
    """Read the arrays from the cache; return None if it is missing, damaged or unreadable."""
    if not os.path.exists(cache):
        return None
    try:
        lines = (cache / _DIGESTS).read_text().splitlines()
        kept = {name: digest for digest, name in (line.split() for line in lines)}
        if set(kept) != set(idx.NAMES):
            raise DataError(f"{cache / _DIGESTS} is damaged")
        files = {name: (cache / name).read_bytes() for name in idx.NAMES}
        return to_dataset(dataset, files, published or kept, cache)
    except OSError as error:
        _log.warning("skipped: %s", idx.describe_error(error, cache))
    except (DataError, ValueError) as error:
        _log.warning("skipped: %s", error)
    return None


def write_cache(files: Files, cache: Path) -> None:
    """Write the files to the cache; log a failure, since it only slows the next start."""
    try:
        with folder_beside(cache) as scratch:
            folder = scratch / cache.name
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            sums = "".join(f"{idx.sha256(files[name])}  {name}\n" for name in idx.NAMES)
            (folder / _DIGESTS).write_text(sums)
            publish(folder, cache)
    except OSError as error:
        _log.warning("the images could not be stored in %s: %s", cache, error)


@contextlib.contextmanager
def folder_beside(final: Path) -> Iterator[Path]:
    """Yield a scratch folder on the same disk as `final`, and remove it afterwards."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=".new-", dir=final.parent, ignore_cleanup_errors=True
    ) as scratch:
        yield Path(scratch)


def publish(built: Path, final: Path) -> None:
    """Move a finished folder to its final path; replace a damaged one."""
    # Renaming the folder ensures that other processes never find half of a copy.
    with contextlib.suppress(FileNotFoundError):
        final.rename(built.with_name(f"{built.name}.damaged"))
    try:
        built.rename(final)
    except OSError:
        # Another process may have published the same folder meanwhile.
        if not final.exists():
            raise
