"""TensorFlow Datasets of MNIST, Fashion-MNIST and KMNIST, prepared and read without TensorFlow.

The stock builders need TensorFlow to encode images. The builder here passes encoded PNG bytes to
TFDS and uses the array_record format, which can be read without TensorFlow.
"""

import io
import os
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.hashing import Hasher
from tensorflow_datasets.image_classification import mnist

from jaxmnist.data import idx
from jaxmnist.data.idx import DataError, Files, Progress
from jaxmnist.recipes import DATASETS

_SPLITS = {
    "train": (idx.TRAIN_IMAGES, idx.TRAIN_LABELS),
    "test": (idx.TEST_IMAGES, idx.TEST_LABELS),
}
# Examples between two progress reports.
BLOCK = 1000

_STOCK: dict[str, Any] = dict(
    zip(DATASETS, (mnist.MNIST, mnist.FashionMNIST, mnist.KMNIST), strict=True)
)


class Jaxmnist(tfds.core.GeneratorBasedBuilder):
    """TFDS builder for IDX files in memory; it keeps their order."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [tfds.core.BuilderConfig(name=name) for name in DATASETS]

    def __init__(self, *, files: Files | None = None, progress: Progress | None = None, **kwargs):
        super().__init__(file_format="array_record", **kwargs)
        self._files, self._progress = files, progress

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            disable_shuffling=True,
        )

    def _log_download_bytes(self) -> None:
        """Suppress the message with the path, which is a scratch folder."""

    def _log_download_done(self) -> None:
        """Suppress the message with the path."""

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(*names) for split, names in _SPLITS.items()}

    def _generate_examples(self, images_name: str, labels_name: str):
        if self._files is None or self._progress is None:
            raise ValueError("the builder has no files; use `prepare`")
        images = idx.parse_images(self._files[images_name], images_name)
        labels = idx.parse_labels(self._files[labels_name], labels_name)
        for k, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield k, {"image": _png(image), "label": int(label)}
            if (k + 1) % BLOCK == 0 or k + 1 == len(images):
                self._progress(f"preparing {images_name}", k + 1, len(images))


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()


def urls(dataset: str) -> dict[str, tuple[str, int, str]]:
    """Return URL, size in bytes and SHA-256 of each compressed file, from TFDS's builder.

    Args:
        dataset: mnist, fashion_mnist or kmnist.
    """
    builder = _STOCK[dataset]
    found = {}
    for name in idx.NAMES:
        url = f"{builder.URL}{name}.gz"
        info = builder.url_infos[url]
        found[name] = (url, int(info.size), info.checksum)
    return found


def prepare(dataset: str, files: Files, folder: Path, progress: Progress) -> None:
    """Write a data set as array_record files.

    Args:
        dataset: mnist, fashion_mnist or kmnist.
        files: its four IDX files.
        folder: the data directory; the data set is written to `own_folder(dataset, folder)`.
        progress: callback for every `BLOCK` examples.
    """
    tfds.disable_progress_bar()  # `progress` reports instead
    with tempfile.TemporaryDirectory() as downloads:
        builder = Jaxmnist(data_dir=folder, config=dataset, files=files, progress=progress)
        builder.download_and_prepare(download_dir=downloads)


def stock_folder(dataset: str, data_dir: Path) -> Path:
    """Return the folder in which TFDS itself stores a data set."""
    return data_dir / dataset / str(_STOCK[dataset].VERSION)


def own_folder(dataset: str, folder: Path) -> Path:
    """Return the folder below `folder` to which `prepare` writes a data set."""
    return folder / Jaxmnist.name / dataset / str(Jaxmnist.VERSION)


def read(folder: Path, progress: Progress) -> dict[str, bytes] | None:
    """Read a prepared data set, ours or TFDS's own, back to the four IDX files.

    Args:
        folder: folder of one version of the data set, with its dataset_info.json.
        progress: callback for every `BLOCK` examples.

    Returns:
        The files; None if there is no data set, or its format needs TensorFlow.

    Raises:
        DataError: the data set is damaged, or the system cannot read it.
    """
    if not os.path.exists(folder):
        return None
    try:
        builder = tfds.builder_from_directory(folder)
        if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
            return None
        files = {}
        for split, (images_name, labels_name) in _SPLITS.items():
            images, labels = _read_split(builder, split, progress)
            files[images_name], files[labels_name] = idx.to_bytes(images), idx.to_bytes(labels)
    # TFDS, array_record, protobuf and Pillow do not document their errors for damaged files.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"the prepared data set in {folder} cannot be read: {reason}") from error
    return files


def _read_split(builder, split: str, progress: Progress) -> tuple[np.ndarray, np.ndarray]:
    # Decoding the PNG bytes here is twice as fast as TFDS's decoding.
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    count = len(source)
    images, labels = np.empty((count, 28, 28), np.uint8), np.empty(count, np.uint8)
    places = np.arange(count) if builder.info.disable_shuffling else _unshuffled(split, count)
    for start in range(0, count, BLOCK):
        block = places[start : start + BLOCK]
        examples = source.__getitems__(range(start, start + len(block)))
        for place, example in zip(block, examples, strict=True):
            with Image.open(io.BytesIO(example["image"]), formats=["png"]) as image:
                images[place], labels[place] = np.asarray(image), example["label"]
        progress(f"decoding {split} images", start + len(block), count)
    return images, labels


def _unshuffled(split: str, count: int) -> np.ndarray:
    """Return the IDX file index of each example of a stock data set.

    TFDS sorts examples by a hash of their key, which is that index.
    """
    hasher = Hasher(split)
    return np.argsort(np.array([hasher.hash_key(k) for k in range(count)], dtype=object))
