import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxmnist.data import idx
from jaxmnist.data.idx import DataError
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


def test_reads_raw_and_compressed_files(tmp_path):
    files = small_files(20, 10)
    for k, (name, content) in enumerate(files.items()):
        if k % 2:
            (tmp_path / name).write_bytes(content)
        else:
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    assert idx.read_folder(tmp_path) == files


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"has no train-images-idx3-ubyte or .*\.gz; expected"):
        idx.read_folder(tmp_path)


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / idx.TRAIN_IMAGES).mkdir()
    with pytest.raises(DataError, match="train-images-idx3-ubyte cannot be read: Is a directory"):
        idx.read_folder(tmp_path)


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
