"""The benchmark's images, for the contenders written in JAX."""

from typing import Any

import jax
import numpy as np

from jaxmnist.steps import Images


def load_images(work: dict[str, Any]) -> tuple[Images, Images]:
    """Load training and test images to the device, from the file that `work` names.

    `limit_train` in `work` limits the number of training images.
    """
    count = work.get("limit_train")
    with np.load(work["images"]) as file:
        mean, std = file["mean"], file["std"]
        train_images = Images(file["train_images"][:count], file["train_labels"][:count], mean, std)
        test_images = Images(file["test_images"], file["test_labels"], mean, std)
    return jax.device_put((train_images, test_images))
