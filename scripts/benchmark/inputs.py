"""The images of the benchmark, as the contenders written in JAX take them."""

from typing import Any

import jax
import numpy as np

from jaxmnist.steps import Images


def load_images(work: dict[str, Any]) -> tuple[Images, Images]:
    """Training and test images on the device, from the file that `work` names.

    Of the training images only `limit_train`, if `work` says so.
    """
    count = work.get("limit_train")
    with np.load(work["images"]) as file:
        mean, std = file["mean"], file["std"]
        train_images = Images(file["train_images"][:count], file["train_labels"][:count], mean, std)
        test_images = Images(file["test_images"], file["test_labels"], mean, std)
    return jax.device_put((train_images, test_images))
