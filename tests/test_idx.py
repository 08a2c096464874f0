import errno
import gzip
import os
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxmnist.data import idx
from jaxmnist.data.idx import DataError
from jaxmnist.data.tfds_mnist import urls
from tests.conftest import small_files


@given(npst.arrays(np.uint8, st.tuples(st.integers(1, 5), st.just(28), st.just(28))))
def test_images_round_trip(images):
    np.testing.assert_array_equal(idx.parse_images(idx.to_bytes(images), "here"), images)


@given(npst.arrays(np.uint8, st.integers(1, 50), elements=st.integers(0, 9)))
def test_labels_round_trip(labels):
    np.testing.assert_array_equal(idx.parse_labels(idx.to_bytes(labels), "here"), labels)


def test_format_worked_by_hand():
    content = bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 0, 9])
    assert idx.parse_labels(content, "here").tolist() == [7, 0, 9]
    assert idx.to_bytes(np.array([7, 0, 9], np.uint8)) == content


IMAGES = idx.to_bytes(np.zeros((2, 28, 28), np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "here has 0 bytes, too few for an IDX file"),
        (IMAGES[:-1], r"here has 1583 bytes; its header says 2 items, 1584 bytes; it is cut short"),
        (IMAGES + b"x", "here has 1585 bytes; its header says 2 items, 1584 bytes"),
        (b"\x00" + b"\xff" * 2000, "here begins with the number 16777215; expected 2051"),
        (struct.pack(">4I", 2051, 2, 14, 56) + bytes(1568), "14x56 pixels; expected 28x28"),
        (struct.pack(">4I", 2051, 0, 28, 28), "its header says 0 items"),
        (struct.pack(">4I", 2051, 2**31, 28, 28), "its header says 2147483648 items"),
    ],
)
def test_what_is_no_images_file_is_named(content, message):
    with pytest.raises(DataError, match=message):
        idx.parse_images(content, "here")


def test_labels_above_9_are_named():
    with pytest.raises(DataError, match="here has the label 10; expected 0 to 9"):
        idx.parse_labels(idx.to_bytes(np.array([1, 10], np.uint8)), "here")


FILES = small_files(20, 10)


def write(folder, files=FILES, spell=lambda name: name, pack=lambda content: content):
    """Writes files under other names, or packed; returns the folder."""
    for name, content in files.items():
        path = folder / spell(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pack(content))
    return folder


def test_reads_raw_and_compressed_files(tmp_path):
    for k, (name, content) in enumerate(FILES.items()):
        if k % 2:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert idx.read_folder(tmp_path, "mnist") == (tmp_path, FILES)


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: name.replace("-idx", ".idx"),
        lambda name: name.replace("-idx", ".idx") + ".gz",
        lambda name: name.replace("-", "_"),
        lambda name: name.replace("-ubyte", ".ubyte"),
        lambda name: name.upper() + ".GZ",
        lambda name: f"{name}/{name}",
        lambda name: f"{name}/{name}.gz",
        lambda name: f"{name}.gz/{name}",
        lambda name: f"{name}/{name.replace('-idx', '.idx')}",
    ],
)
@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["raw", "gzip"])
def test_other_names_are_found_and_the_content_decides_what_is_packed(tmp_path, spell, pack):
    _, files = idx.read_folder(write(tmp_path, spell=spell, pack=pack), "kmnist")
    assert files == FILES


def test_what_only_has_the_name_is_passed_over(tmp_path):
    """Empty folders, links to nothing and macOS's ._ files beside the .gz files."""
    write(tmp_path, spell=lambda name: f"{name}.gz", pack=gzip.compress)
    (tmp_path / idx.TRAIN_IMAGES).mkdir()
    (tmp_path / idx.TRAIN_LABELS).symlink_to("nothing")
    (tmp_path / idx.TEST_IMAGES).mkdir()
    (tmp_path / idx.TEST_IMAGES / "notes.txt").touch()
    for name in idx.NAMES:
        (tmp_path / f"._{name}.gz").write_bytes(b"Mac OS X")
    assert idx.read_folder(tmp_path, "mnist")[1] == FILES


@pytest.mark.parametrize("dataset", ["mnist", "fashion_mnist", "kmnist"])
@pytest.mark.parametrize("above", ["", "..", "../.."])
def test_the_root_of_torchvisions_data_is_read(tmp_path, dataset, above):
    ours = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
    for other, name in ours.items():
        files = FILES if other == dataset else small_files(30, 10)
        write(tmp_path / name / "raw", files)
    place = tmp_path / ours[dataset] / "raw"
    found, files = idx.read_folder((place / above).resolve(), dataset)
    assert (found, files) == (place, FILES)


def test_files_of_two_places_are_not_mixed(tmp_path):
    write(tmp_path / "MNIST" / "raw")
    (tmp_path / idx.TRAIN_IMAGES).write_bytes(small_files(30, 10)[idx.TRAIN_IMAGES])
    assert idx.read_folder(tmp_path, "mnist")[1] == FILES
    (tmp_path / "MNIST" / "raw" / idx.TEST_LABELS).unlink()
    with pytest.raises(DataError, match=r"MNIST/raw has no t10k-labels-idx1-ubyte or .*\(it has t"):
        idx.read_folder(tmp_path, "mnist")


def qmnist_labels(digits):
    """QMNIST's labels file: the digit, and seven numbers about it."""
    table = np.arange(len(digits) * 8, dtype=">i4").reshape(-1, 8)
    table[:, 0] = digits
    return struct.pack(">3I", 0x0C02, len(digits), 8) + table.tobytes()


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["raw", "gzip"])
@pytest.mark.parametrize("below", ["", "QMNIST/raw"])
def test_qmnist_is_read(tmp_path, pack, below):
    for name, own in zip(idx.NAMES, idx.QMNIST_NAMES, strict=True):
        content = FILES[name]
        if name in (idx.TRAIN_LABELS, idx.TEST_LABELS):
            content = qmnist_labels(idx.parse_labels(content, ""))
        write(tmp_path / below, {own: content}, pack=pack)
    _, files = idx.read_folder(tmp_path, "mnist")
    assert idx.is_qmnist(files)
    assert not idx.is_qmnist(FILES)
    assert files[idx.TEST_IMAGES] == FILES[idx.TEST_IMAGES]
    for name in (idx.TRAIN_LABELS, idx.TEST_LABELS):
        labels = idx.parse_labels(files[name], name)
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, idx.parse_labels(FILES[name], name))
    with pytest.raises(DataError, match="has no train-images-idx3-ubyte"):
        idx.read_folder(tmp_path, "kmnist")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (qmnist_labels([3, -1]), "here has the label -1; expected 0 to 9"),
        (qmnist_labels([3, 10]), "here has the label 10; expected 0 to 9"),
        (qmnist_labels([3, 1])[:-1], r"its header says 2 items, 76 bytes; it is cut short"),
        (qmnist_labels([3, 1])[:9], r"its header says 2 items, 12 bytes; it is cut short"),
        (struct.pack(">3I", 0x0C02, 2, 0), "its header says 2 items, 12 bytes"),
        (struct.pack(">2I", 0x0C01, 1) + bytes(4), "begins with the number 3073; expected 2049"),
    ],
)
def test_what_is_no_labels_file_of_qmnist_is_named(content, message):
    with pytest.raises(DataError, match=message):
        idx.parse_labels(content, "here")


@pytest.mark.parametrize("pack", [lambda content: content, gzip.compress], ids=["raw", "gzip"])
def test_files_of_another_data_set_are_refused(tmp_path, monkeypatch, pack):
    monkeypatch.setitem(
        idx._OWNERS, idx.sha256(FILES[idx.TRAIN_LABELS]), ("mnist", idx.TRAIN_LABELS)
    )
    write(tmp_path, pack=pack)
    assert idx.read_folder(tmp_path, "mnist")[1] == FILES
    with pytest.raises(
        DataError, match=r"ubyte is train-labels-idx1-ubyte of mnist; .*--dataset m"
    ):
        idx.read_folder(tmp_path, "kmnist")


def test_a_packed_file_is_known_by_its_own_digest(tmp_path, monkeypatch):
    packed = gzip.compress(FILES[idx.TEST_IMAGES], mtime=0)
    monkeypatch.setitem(idx._OWNERS, idx.sha256(packed), ("kmnist", idx.TEST_IMAGES))
    write(tmp_path, pack=lambda content: gzip.compress(content, mtime=0))
    with pytest.raises(DataError, match="is t10k-images-idx3-ubyte of kmnist"):
        idx.read_folder(tmp_path, "fashion_mnist")


def test_the_known_digests_are_those_of_tfds():
    for dataset, digests in idx._PACKED_SHA256.items():
        assert digests == {name: digest for name, (_, _, digest) in urls(dataset).items()}
    assert idx._OWNERS[idx.SHA256["mnist"][idx.TEST_LABELS]] == ("mnist", idx.TEST_LABELS)


def test_a_missing_file_is_named_with_what_is_there(tmp_path):
    message = r"has no train-images-idx3-ubyte or .*\.gz; expected the four IDX files there "
    with pytest.raises(DataError, match=message + r"\(it is empty\)"):
        idx.read_folder(tmp_path, "mnist")
    (tmp_path / "emnist-digits-train-images-idx3-ubyte.gz").touch()
    with pytest.raises(DataError, match=message + r"\(it has emnist-digits-train-images"):
        idx.read_folder(tmp_path, "mnist")
    with pytest.raises(DataError, match=message + r"\(it does not exist\)"):
        idx.read_folder(tmp_path / "nowhere", "mnist")
    file = tmp_path / "emnist-digits-train-images-idx3-ubyte.gz"
    with pytest.raises(DataError, match=message + r"\(it is a file\)"):
        idx.read_folder(file, "mnist")


def test_what_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch):
    write(tmp_path)

    def refuse(path):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(OSError, match="Too many open files"):
        idx.read_folder(tmp_path, "mnist")


def test_a_gzip_of_several_parts_is_whole():
    assert idx.decompress(gzip.compress(b"one ") + gzip.compress(b"two"), "here") == b"one two"


def test_a_damaged_gz_is_named(monkeypatch):
    packed = gzip.compress(bytes(10_000), mtime=0)
    with pytest.raises(DataError, match=r"a\.gz is cut short; fetch it again"):
        idx.decompress(packed[:-9], "a.gz")
    with pytest.raises(DataError, match=r"a\.gz is damaged"):
        idx.decompress(packed[:-8] + bytes(8), "a.gz")
    with pytest.raises(DataError, match=r"a\.gz is damaged"):
        idx.decompress(b"no gzip at all", "a.gz")
    monkeypatch.setattr(idx, "SIZE_LIMIT", 9_999)
    with pytest.raises(DataError, match=r"a\.gz unpacks to more than 9999 bytes"):
        idx.decompress(packed, "a.gz")


def test_another_file_is_named_by_its_digest():
    files = small_files(20, 10)
    digests = {name: idx.sha256(content) for name, content in files.items()}
    idx.check(files, digests, "there")
    files[idx.TEST_LABELS] = files[idx.TEST_LABELS][:-1] + b"\x05"
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte from there is corrupt or another"):
        idx.check(files, digests, "there")
