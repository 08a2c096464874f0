"""Whole epochs of jaxmnist."""

import functools
from typing import Any

from inputs import load_images
from ours import Trainer
from protocol import Job, Offer, serve

from jaxmnist.config import TrainConfig, steps_per_epoch


def prepare(work: dict[str, Any]) -> Offer:
    """One job for each number of epochs."""
    train_images, test_images = load_images(work)
    config = TrainConfig(work["variant"], batch_size=work["batch_size"])
    trainer = Trainer(config, train_images, test_images)
    steps = steps_per_epoch(len(train_images.pixels), config.batch_size)
    jobs: dict[str, Job] = {
        str(epochs): functools.partial(train_epochs, trainer, epochs * steps)
        for epochs in work["epochs"]
    }
    return Offer(jobs)


def train_epochs(trainer: Trainer, steps: int, times: int) -> None:
    """Trains so many steps, so many times."""
    trainer.train(steps * times)


if __name__ == "__main__":
    serve(prepare)
