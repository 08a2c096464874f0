"""Participant: the same networks with flax's own layers, in NHWC, with one jitted call per step.

This is the version that a JAX user would write first. Only the network and the loop differ from
jaxmnist; batches, augmentation, optimiser and metrics are the same.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
from layer_times import iterate
from ours import setup_of
from participant import Job, Prepared

from jaxmnist.metrics import Metrics
from jaxmnist.runs.setup import Setup
from jaxmnist.state import initial_state
from jaxmnist.steps import Batch, batch_at, epoch_permutation, eval_step, normalise, train_step

EVAL_BATCH = 1000


class PlainNetwork(nn.Module):
    """A network of `description.describe`."""

    layers: tuple[Mapping[str, Any], ...]

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Apply the network, as `jaxmnist.models.Network` does."""
        x = images
        for layer in self.layers:
            match layer["kind"]:
                case "conv":
                    size, padding, bias = layer["kernel_size"], layer["padding"], layer["use_bias"]
                    x = nn.Conv(layer["features"], (size, size), padding=padding, use_bias=bias)(x)
                case "norm":
                    x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
                case "dropout":
                    x = nn.Dropout(layer["rate"], deterministic=not train)(x)
                case "relu":
                    x = nn.relu(x)
                case "max_pool":
                    x = nn.max_pool(x, (2, 2), strides=(2, 2))
                case "mean":
                    x = x.mean(axis=(1, 2), keepdims=True)
        return x.reshape(len(x), -1)


def prepare(spec: dict[str, Any]) -> Prepared:
    """Return jobs for training, with and without augmentation, and for evaluation."""
    model = PlainNetwork(tuple(flax.core.FrozenDict(layer) for layer in spec["layers"]))
    plain, augmented = (setup_of(spec, augment=is_augmented) for is_augmented in (False, True))
    jobs = {
        "evaluation": evaluation(model, plain),
        "step": training(model, plain),
        "augmented step": training(model, augmented),
    }
    return jobs, {}


def training(model: nn.Module, setup: Setup) -> Job:
    """Return a job that trains, one batch per call."""
    config, tx, images = setup.config, setup.tx, setup.train_images

    def step(state, metrics, images, order):
        batch = batch_at(state, images, order, state.step % setup.steps, config=config)
        state, latest = train_step(state, batch, model=model, tx=tx)
        return state, metrics.merge(latest)

    jitted = jax.jit(step, donate_argnums=(0, 1))
    state = initial_state(model, tx, config.seed)
    order = epoch_permutation(state, images, batch_size=config.batch_size)
    metrics = jax.device_put(Metrics.zero())
    return iterate(lambda *carry: jitted(*carry, images, order), state, metrics)


def evaluation(model: nn.Module, setup: Setup) -> Job:
    """Return a job that evaluates all test images, one batch per call."""
    images, state = setup.test_images, initial_state(model, setup.tx, 0)
    size = math.gcd(len(images.pixels), EVAL_BATCH)  # every image counts once
    pixels, labels = images.pixels.reshape(-1, size, 28, 28), images.labels.reshape(-1, size)
    batches = list(zip(pixels, labels, strict=True))

    @jax.jit
    def evaluate_batch(metrics, pixels, labels):
        batch = Batch(normalise(pixels, images.mean, images.std), labels)
        return metrics.merge(eval_step(state, batch, jnp.ones(size, bool), model=model))

    def job(times: int) -> None:
        for _ in range(times):
            metrics = Metrics.zero()
            for pixels, labels in batches:
                metrics = evaluate_batch(metrics, pixels, labels)
            jax.block_until_ready(metrics)

    return job
