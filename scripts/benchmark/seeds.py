"""Many seeds of jaxmnist trained by one program: `jax.vmap` over the training chunk."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from inputs import load_images
from protocol import Job, Offer, serve

from jaxmnist.config import TrainConfig, steps_per_epoch
from jaxmnist.metrics import Metrics
from jaxmnist.models import create_model
from jaxmnist.optim import make_optimizer
from jaxmnist.state import create_state
from jaxmnist.steps import Images, make_order_of_epoch, make_train_chunk


def prepare(work: dict[str, Any]) -> Offer:
    """One job for each number of seeds: a step of all of them."""
    images, _ = load_images(work)
    config = TrainConfig(work["variant"], batch_size=work["batch_size"])
    return Offer({str(count): training(config, images, count) for count in work["seeds"]})


def training(config: TrainConfig, images: Images, count: int) -> Job:
    """Trains so many seeds side by side, from the start of an epoch."""
    model = create_model(config.variant, config.dropout)
    steps = steps_per_epoch(len(images.pixels), config.batch_size)
    tx, _ = make_optimizer(config, config.epochs * steps)
    create = functools.partial(create_state, model, tx)
    states = jax.jit(jax.vmap(create))(jnp.arange(count))
    metrics = jax.tree.map(lambda zero: jnp.full(count, zero), Metrics.zero())
    orders = jax.jit(jax.vmap(make_order_of_epoch(config), in_axes=(0, None)))(states, images)
    chunk = jax.jit(jax.vmap(make_train_chunk(config, model, tx), in_axes=(0, 0, None, 0, None)))

    def job(times: int) -> None:
        for done in range(0, times, steps):  # a chunk is an epoch at most
            stop = np.int32(min(steps, times - done))
            jax.block_until_ready(chunk(states, metrics, images, orders, stop))

    return job


if __name__ == "__main__":
    serve(prepare)
