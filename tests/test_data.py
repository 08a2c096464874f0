import errno
import importlib
import json
import multiprocessing
import os
import pwd
import re
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxmnist import ConfigError, data
from jaxmnist.data import DataError, cache, idx, ignore_progress, sources, tfds_mnist
from tests.conftest import SCRIPTS, small_files
from tests.test_idx import qmnist_labels, write

FILES = small_files(60, 30)


def arrays(files):
    return [idx.parse(files[name], name, name) for name in idx.NAMES]


def assert_loaded(dataset, files=FILES):
    for found, expected in zip(dataset[:4], arrays(files), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.fixture
def fetches(monkeypatch):
    """Lets the network give the small files, and counts how often it is asked."""
    asked = []

    def fetch(dataset, progress):
        asked.append(dataset)
        return FILES

    monkeypatch.setattr(sources, "fetch", fetch)
    return asked


@pytest.fixture
def no_network(monkeypatch):
    def fetch(dataset, progress):
        raise DataError("no network")

    monkeypatch.setattr(sources, "fetch", fetch)


def test_idx_dir_is_read_and_nothing_is_kept(tmp_path, no_network, small_idx_dir):
    loaded = data.load("fashion_mnist", tmp_path / "data", small_idx_dir)
    assert_loaded(loaded, small_files())
    assert not (tmp_path / "data").exists()


def test_qmnist_is_read_as_mnist_of_other_pixels(tmp_path):
    digits = idx.parse_labels(FILES[idx.TRAIN_LABELS], "")
    files = {**FILES, idx.TRAIN_LABELS: qmnist_labels(digits)}
    files[idx.TEST_LABELS] = qmnist_labels(idx.parse_labels(FILES[idx.TEST_LABELS], ""))
    for name, own in zip(idx.NAMES, idx.QMNIST_NAMES, strict=True):
        (tmp_path / own).write_bytes(files[name])
    assert_loaded(data.load("mnist", idx_dir=tmp_path))
    write(tmp_path, files)
    with pytest.raises(DataError, match="has QMNIST; expected kmnist; pass --dataset mnist"):
        data.load("kmnist", idx_dir=tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, small_idx_dir, monkeypatch):
    def refuse(path):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match="images-idx3-ubyte cannot be read: Permission denied"):
        data.load("kmnist", idx_dir=small_idx_dir)


def test_the_first_load_prepares_and_the_second_reads_the_cache(tmp_path, fetches):
    told = []
    first = data.load("kmnist", tmp_path, progress=lambda *step: told.append(step))
    assert_loaded(first)
    assert {what for what, _, _ in told} == {
        "preparing train-images-idx3-ubyte",
        "preparing t10k-images-idx3-ubyte",
    }
    told.clear()
    second = data.load("kmnist", tmp_path, progress=lambda *step: told.append(step))
    assert_loaded(second)
    assert fetches == ["kmnist"]
    assert told == []


def test_what_is_prepared_is_a_tfds_data_set(tmp_path, fetches):
    data.load("kmnist", tmp_path)
    source = tfds.data_source("jaxmnist/kmnist", split="test", data_dir=tmp_path)
    assert len(source) == 30
    expected = arrays(FILES)
    for k in (0, 17, 29):
        np.testing.assert_array_equal(source[k]["image"][..., 0], expected[2][k])
        assert source[k]["label"] == expected[3][k]


def test_without_its_cache_the_prepared_data_set_is_read(tmp_path, fetches):
    data.load("kmnist", tmp_path)
    shutil.rmtree(tmp_path / "jaxmnist" / "arrays")
    told = []
    assert_loaded(data.load("kmnist", tmp_path, progress=lambda *step: told.append(step)))
    assert fetches == ["kmnist"]
    assert {what for what, _, _ in told} == {"decoding train images", "decoding test images"}


@pytest.mark.parametrize("name", [idx.TEST_IMAGES, "SHA256SUMS"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_cache_is_replaced(tmp_path, fetches, caplog, name, damage):
    data.load("kmnist", tmp_path)
    path = tmp_path / "jaxmnist" / "arrays" / "kmnist" / name
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[:-3])
    else:
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    assert_loaded(data.load("kmnist", tmp_path))
    assert fetches == ["kmnist"]
    assert "skipped" in caplog.text
    assert name in caplog.text
    assert path.read_bytes() == content
    assert not list(tmp_path.rglob(".new-*"))


def test_a_damaged_prepared_data_set_is_replaced(tmp_path, fetches, caplog):
    data.load("kmnist", tmp_path)
    shutil.rmtree(tmp_path / "jaxmnist" / "arrays")
    own = tfds_mnist.own_folder("kmnist", tmp_path)
    shard = next(own.glob("*train.array_record*"))
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    assert_loaded(data.load("kmnist", tmp_path))
    assert fetches == ["kmnist", "kmnist"]
    assert f"skipped: the prepared data set in {own} cannot be read" in caplog.text
    assert shard.read_bytes() == content


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
def test_a_prepared_data_set_without_its_description_is_made_again(tmp_path, fetches, name):
    data.load("kmnist", tmp_path)
    shutil.rmtree(tmp_path / "jaxmnist" / "arrays")
    (tfds_mnist.own_folder("kmnist", tmp_path) / name).unlink()
    assert_loaded(data.load("kmnist", tmp_path))
    assert fetches == ["kmnist", "kmnist"]
    assert_loaded(data.load("kmnist", tmp_path))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.EACCES])
def test_a_cache_that_the_system_cannot_read_is_passed_over(
    tmp_path, fetches, monkeypatch, caplog, number
):
    data.load("kmnist", tmp_path)
    cache = tmp_path / "jaxmnist" / "arrays" / "kmnist"
    before = {path.name: path.read_bytes() for path in cache.iterdir()}
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.parent == cache:
            raise OSError(number, os.strerror(number), "a file")
        return read_bytes(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert_loaded(data.load("kmnist", tmp_path))
    assert fetches == ["kmnist"]
    assert f"skipped: a file cannot be read: {os.strerror(number)}" in caplog.text
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == before


def test_a_prepared_data_set_that_the_system_cannot_read_is_passed_over(
    tmp_path, fetches, monkeypatch, caplog
):
    tfds_mnist.prepare("kmnist", FILES, tmp_path, ignore_progress)

    def fail(folder):
        raise RuntimeError("open() failed: Too many open files; opening a file")

    monkeypatch.setattr(tfds, "builder_from_directory", fail)
    assert_loaded(data.load("kmnist", tmp_path))
    own = tfds_mnist.own_folder("kmnist", tmp_path)
    assert f"in {own} cannot be read: open() failed: Too many open files" in caplog.text
    assert (own / "dataset_info.json").exists()


def damage(folder):
    """Changes a byte of the cached labels; returns the cache."""
    cache = folder / "jaxmnist" / "arrays" / "kmnist"
    content = bytearray((cache / idx.TRAIN_LABELS).read_bytes())
    content[-1] ^= 1
    (cache / idx.TRAIN_LABELS).write_bytes(content)
    return cache


@pytest.mark.parametrize("kind", ["own", "stock"])
def test_a_damaged_cache_in_a_read_only_folder_is_passed_over(
    tmp_path, kind, request, no_network, monkeypatch, caplog
):
    if kind == "own":
        tfds_mnist.prepare("kmnist", FILES, tmp_path, ignore_progress)
    else:
        request.getfixturevalue("stock")
    data.load("kmnist", tmp_path)
    damage(tmp_path)

    # What mkdir raises there; the tests may be run by root, who may write everywhere.
    def refuse(**arguments):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "a folder")

    monkeypatch.setattr(cache.tempfile, "TemporaryDirectory", refuse)
    assert_loaded(data.load("kmnist", tmp_path))
    assert "skipped: train-labels-idx1-ubyte from" in caplog.text
    assert "could not be stored in" in caplog.text


@pytest.mark.parametrize("name", ["", idx.TRAIN_IMAGES])
def test_something_else_in_the_place_of_the_cache_is_replaced(tmp_path, fetches, name):
    data.load("kmnist", tmp_path)
    cache = tmp_path / "jaxmnist" / "arrays" / "kmnist"
    content = (cache / idx.TRAIN_IMAGES).read_bytes()
    if name:
        (cache / name).unlink()
        (cache / name).mkdir()
    else:
        shutil.rmtree(cache)
        cache.write_text("a file")
    assert_loaded(data.load("kmnist", tmp_path))
    assert (cache / idx.TRAIN_IMAGES).read_bytes() == content


def test_preparing_prints_nothing_but_lets_progress_print(tmp_path, fetches, capsys):
    data.load("kmnist", tmp_path, progress=lambda *step: print(*step))
    out = capsys.readouterr().out
    assert "preparing train-images-idx3-ubyte 60 60" in out
    assert "Downloading" not in out


def test_files_that_are_not_mnist_are_never_trained_on(tmp_path, fetches, small_idx_dir):
    message = r"train-images-idx3-ubyte from .* is corrupt or another file: its SHA-256 is "
    with pytest.raises(DataError, match=message + r".*, expected ba891046"):
        data.load("mnist", tmp_path, small_idx_dir)
    with pytest.raises(DataError, match=message):
        data.load("mnist", tmp_path)
    assert not list(tmp_path.rglob("*ubyte*"))


def test_a_wrong_prepared_mnist_is_never_trained_on(tmp_path, no_network, caplog):
    tfds_mnist.prepare("mnist", FILES, tmp_path, ignore_progress)
    with pytest.raises(DataError, match="no network"):
        data.load("mnist", tmp_path)
    assert "skipped: train-images-idx3-ubyte from" in caplog.text


with tfds.core.registered.skip_registration():

    class Kmnist(tfds.core.GeneratorBasedBuilder):
        """Writes what TFDS's own builder would: shuffled by the hash of the example's place."""

        VERSION = tfds.core.Version("3.0.1")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(28, 28, 1)),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples(0), "test": self._generate_examples(2)}

        def _generate_examples(self, first):
            images, labels = arrays(FILES)[first : first + 2]
            for k, (image, label) in enumerate(zip(images, labels, strict=True)):
                yield k, {"image": tfds_mnist._png(image), "label": int(label)}


@pytest.fixture
def stock(tmp_path):
    """An array_record copy where TFDS itself would keep it."""
    Kmnist(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    return tfds_mnist.stock_folder("kmnist", tmp_path)


def test_a_stock_copy_is_read_in_the_original_order(tmp_path, stock, no_network):
    source = tfds.builder_from_directory(stock).as_data_source("train")
    shuffled = [int(example["label"]) for example in source]
    assert shuffled != arrays(FILES)[1].tolist()
    assert_loaded(data.load("kmnist", tmp_path))


def test_a_tfrecord_copy_breaks_nothing(tmp_path, stock, fetches):
    path = stock / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    before = sorted(file.name for file in stock.iterdir())
    assert_loaded(data.load("kmnist", tmp_path))
    assert fetches == ["kmnist"]
    assert sorted(file.name for file in stock.iterdir()) == before


def test_a_damaged_stock_copy_is_passed_over_and_left_alone(tmp_path, stock, fetches, caplog):
    shard = next(stock.glob("*train.array_record*"))
    shard.write_bytes(shard.read_bytes()[:100])
    assert_loaded(data.load("kmnist", tmp_path))
    assert f"skipped: the prepared data set in {stock} cannot be read" in caplog.text
    assert shard.stat().st_size == 100


def _load_in_a_process(data_dir, results):
    sources.fetch = lambda dataset, progress: FILES
    loaded = data.load("kmnist", data_dir)
    results.put(int(loaded.train_images.sum()))


def test_two_processes_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=_load_in_a_process, args=(tmp_path, results)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    sums = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(timeout=60)
        assert process.exitcode == 0
    assert sums == [int(arrays(FILES)[0].sum())] * 2
    assert not list(tmp_path.rglob(".new-*"))
    assert_loaded(data.load("kmnist", tmp_path))


def test_a_disk_that_does_not_take_the_cache_costs_only_time(tmp_path, stock, caplog, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "publish", full)
    assert_loaded(data.load("kmnist", tmp_path))
    assert "could not be stored" in caplog.text
    assert not list(tmp_path.rglob(".new-*"))


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError("No space left")])
def test_a_disk_without_room_for_the_data_set_is_named(
    tmp_path, fetches, monkeypatch, caplog, error
):
    def full(*arguments):
        raise error

    monkeypatch.setattr(tfds_mnist, "prepare", full)
    assert_loaded(data.load("kmnist", tmp_path))
    assert re.search(r"could not be prepared in .*No space left.*--data-dir", caplog.text)
    assert not list(tmp_path.rglob(".new-*"))


@pytest.fixture
def no_home(monkeypatch, tmp_path):
    """A user who has only a number, as in a container; returns the folder for temporary files."""

    def unknown(*arguments):
        raise KeyError("uid not found")

    for name in ("HOME", "TFDS_DATA_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_without_a_home_directory_images_are_kept_with_temporary_files(no_home, fetches, caplog):
    assert_loaded(data.load("kmnist"))
    assert_loaded(data.load("kmnist"))
    assert fetches == ["kmnist"]
    folder = no_home / f"jaxmnist-{os.getuid()}"
    assert f"images are stored in {folder} (see --data-dir)" in caplog.text
    assert folder.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match=r"idx_dir is '~/idx', but that home .* a full path"):
        data.load("kmnist", idx_dir="~/idx")


def test_a_home_directory_that_cannot_be_written_is_like_none(no_home, fetches, monkeypatch):
    monkeypatch.setenv("HOME", str(no_home / "home"))
    (no_home / "home").mkdir()
    assert data._choose_data_dir(None) == no_home / "home" / "tensorflow_datasets"

    # What the system answers where the directory is another user's; root may read everything.
    stat = os.stat

    def refuse(path, **arguments):
        if str(path).endswith("tensorflow_datasets"):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, **arguments)

    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "stat", refuse)
    assert data._choose_data_dir(None) == no_home / f"jaxmnist-{os.getuid()}"


def test_a_folder_of_another_user_is_not_trusted(no_home, monkeypatch):
    (no_home / f"jaxmnist-{os.getuid() + 1}").mkdir()
    number = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: number)
    with pytest.raises(DataError, match="belongs to another user; pass --data-dir"):
        data.load("kmnist")


def test_without_a_home_directory_compiled_programs_are_not_kept(no_home, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.chdir(no_home)
    command = importlib.import_module("support.command")
    command.use_compilation_cache()
    # What older versions of platformdirs return.
    monkeypatch.setattr(
        command.platformdirs, "user_cache_path", lambda name: Path("~/.cache") / name
    )
    command.use_compilation_cache()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("note: compiled programs are not kept: ") for line in lines)
    assert list(no_home.iterdir()) == []


@pytest.mark.parametrize("url", ["gs://bucket/data", "s3://bucket", "hdfs://host:9000/a", "gs:/a"])
def test_an_address_is_no_folder(url, monkeypatch, tmp_path, fetches):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"data_dir is '{url}'; expected a folder on this"):
        data.load("kmnist", data_dir=url)
    with pytest.raises(ConfigError, match=r"idx_dir is .*; expected a folder on this machine"):
        data.load("kmnist", idx_dir=Path(url))
    monkeypatch.setenv("TFDS_DATA_DIR", url)
    with pytest.raises(ConfigError, match=f"TFDS_DATA_DIR is '{url}'; .*--data-dir"):
        data.load("kmnist")
    assert list(tmp_path.iterdir()) == []
    assert_loaded(data.load("kmnist", data_dir=tmp_path / "a:b"))


def test_normalisation(small_idx_dir, tmp_path, monkeypatch):
    loaded = data.load("fashion_mnist", idx_dir=small_idx_dir)
    pixels = loaded.train_images / 255
    assert loaded.mean == pytest.approx(pixels.mean(), rel=1e-12)
    assert loaded.std == pytest.approx(pixels.std(), rel=1e-12)
    monkeypatch.setitem(idx.SHA256, "mnist", {})
    mnist = data.load("mnist", idx_dir=small_idx_dir)
    assert (mnist.mean, mnist.std) == (0.1307, 0.3081)


def test_images_that_are_all_alike(tmp_path):
    write(tmp_path, {**FILES, idx.TRAIN_IMAGES: idx.to_bytes(np.full((60, 28, 28), 7, np.uint8))})
    with pytest.raises(DataError, match="all training pixels are equal"):
        data.load("kmnist", idx_dir=tmp_path)


def test_as_many_labels_as_images(tmp_path):
    write(tmp_path, {**FILES, idx.TEST_LABELS: idx.to_bytes(np.zeros(31, np.uint8))})
    with pytest.raises(DataError, match="has 30 images but 31 labels"):
        data.load("kmnist", idx_dir=tmp_path)


def test_unknown_data_set():
    with pytest.raises(ConfigError, match="dataset is 'cifar10'; expected one of mnist"):
        data.load("cifar10")


def test_images_that_are_held_out_take_the_place_of_the_test_set(small_idx_dir):
    whole = data.load("fashion_mnist", idx_dir=small_idx_dir)
    count = len(whole.train_images)
    held = data.hold_out(whole, 100, fold=1)
    np.testing.assert_array_equal(held.test_images, whole.train_images[count - 200 : count - 100])
    np.testing.assert_array_equal(held.test_labels, whole.train_labels[count - 200 : count - 100])
    rest = np.r_[0 : count - 200, count - 100 : count]
    np.testing.assert_array_equal(held.train_images, whole.train_images[rest])
    np.testing.assert_array_equal(held.train_labels, whole.train_labels[rest])
    assert (held.mean, held.std) == (whole.mean, whole.std)
    first = data.hold_out(whole, 100, fold=0)
    np.testing.assert_array_equal(first.test_labels, whole.train_labels[-100:])


def test_more_cannot_be_held_out_than_there_is(small_idx_dir):
    whole = data.load("fashion_mnist", idx_dir=small_idx_dir)
    count = len(whole.train_images)
    data.hold_out(whole, count - 1, fold=0)
    with pytest.raises(ConfigError, match=f"holdout is {count} and fold 0, but there are {count}"):
        data.hold_out(whole, count, fold=0)
    with pytest.raises(ConfigError, match=r"fold 5, .* expected a fold of at most 4"):
        data.hold_out(whole, count // 5 - 1, fold=5)
