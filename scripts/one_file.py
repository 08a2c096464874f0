"""Training of `gap` in one file: start reading here.

This file has only the mathematics, with an augmentation that is slightly simpler. The package
trains the same network with the notebooks' exact augmentation, faster, and with checkpoints,
several seeds and devices (docs/architecture.md). `python scripts/one_file.py` trains for 15 epochs
and prints the test accuracy after each.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from jaxmnist import data

BATCH_SIZE, PEAK_LEARNING_RATE = 128, 0.015
MEAN, STD = 0.1307, 0.3081  # of the training pixels, between 0 and 1


class Gap(nn.Module):
    """The network: small convolutions with an average over all pixels, 7,364 parameters."""

    dropout_rate: float = 0.05

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Return logits `[N, 10]` of normalised images `[N, 28, 28, 1]`."""
        # PyTorch's default initialisation: uniform within 1 / sqrt(fan_in).
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        conv = functools.partial(nn.Conv, padding="VALID", use_bias=False, kernel_init=init)

        def block(x, features, size=3, dropout_rate=self.dropout_rate):
            x = nn.relu(conv(features, (size, size))(x))
            x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(x)
            return nn.Dropout(dropout_rate, deterministic=not train)(x)

        x = block(images, 4, dropout_rate=0)  # 26x26
        x = block(x, 8)  # 24x24
        x = nn.max_pool(x, (2, 2), strides=(2, 2))  # 12x12
        x = block(x, 10, size=1)
        x = block(x, 16)  # 10x10
        x = block(x, 16)  # 8x8
        x = block(x, 18)  # 6x6
        x = x.mean(axis=(1, 2), keepdims=True)  # 1x1
        x = block(x, 16, size=1)
        return conv(10, (1, 1))(x)[:, 0, 0]


def one_cycle(step: jax.Array, total_steps: int, start: float, peak: float, end: float):
    """Return PyTorch's OneCycleLR at a step: a cosine up for 30 % of the steps, then one down."""
    turn = 0.3 * total_steps - 1
    up = (1 - jnp.cos(jnp.pi * step / turn)) / 2
    down = (1 + jnp.cos(jnp.pi * (step - turn) / (total_steps - 1 - turn))) / 2
    return jnp.where(step <= turn, start + (peak - start) * up, end + (peak - end) * down)


class TrainState(train_state.TrainState):
    """Flax's parameters, optimiser and step, with the running statistics of BatchNorm."""

    batch_stats: Any


def create_state(key: jax.Array, model: nn.Module, total_steps: int) -> TrainState:
    """Return the state before the first step."""
    variables = jax.jit(model.init)(key, jnp.zeros((1, 28, 28, 1)))
    rates = (PEAK_LEARNING_RATE / 25, PEAK_LEARNING_RATE, PEAK_LEARNING_RATE / 25e4)
    tx = optax.inject_hyperparams(optax.sgd)(
        learning_rate=lambda step: one_cycle(step, total_steps, *rates),
        # The momentum falls while the learning rate rises.
        momentum=lambda step: one_cycle(step, total_steps, 0.95, 0.85, 0.95),
    )
    return TrainState.create(apply_fn=model.apply, tx=tx, **variables)


def augment(key: jax.Array, image: jax.Array) -> jax.Array:
    """Rotate, shear, scale, shift and re-light one image `[28, 28]` with values from 0 to 1."""
    draws = jax.random.uniform(key, (8,), minval=-1, maxval=1)
    # One rotation replaces the notebook's two, of up to 6 and 7 degrees.
    rotation, shear = jnp.deg2rad(13 * draws[0]), jnp.deg2rad(10 * draws[1])
    scale, shift = 1 + 0.2 * draws[2], jnp.round(2.8 * draws[3:5])
    brightness, contrast = 1 + 0.4 * draws[5:7]
    cos, sin = jnp.cos(rotation), jnp.sin(rotation)
    turn, lean = jnp.array([[cos, sin], [-sin, cos]]), jnp.array([[1, 0], [-jnp.tan(shear), 1]])
    # Each pixel of the result has the value of the nearest source pixel.
    pixels = jnp.indices((28, 28)).reshape(2, -1) - 13.5
    source = jnp.linalg.inv(scale * turn @ lean) @ (pixels - shift[:, None]) + 13.5
    image = jax.scipy.ndimage.map_coordinates(image, list(source), order=0).reshape(28, 28)

    def brighten(image):
        return jnp.clip(brightness * image, 0, 1)

    def stretch(image):
        return jnp.clip(image.mean() + contrast * (image - image.mean()), 0, 1)

    return jnp.where(draws[7] < 0, stretch(brighten(image)), brighten(stretch(image)))


@jax.jit
def prepare(key: jax.Array, pixels: jax.Array) -> jax.Array:
    """Augment each image of a batch, uint8 `[N, 28, 28]`, and normalise the batch."""
    images = jax.vmap(augment)(jax.random.split(key, len(pixels)), pixels / 255)
    return ((images - MEAN) / STD)[..., None]


@jax.jit
def train_step(state: TrainState, images: jax.Array, labels: jax.Array, key: jax.Array):
    """Take one step of gradient descent; return the new state and the loss before the step."""

    def loss_fn(params):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updates = state.apply_fn(
            variables, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
        return loss, updates["batch_stats"]

    (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    return state.apply_gradients(grads=grads, batch_stats=batch_stats), loss


@jax.jit
def accuracy(state: TrainState, pixels: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the percentage of images that the network classifies correctly."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    logits = state.apply_fn(variables, ((pixels / 255 - MEAN) / STD)[..., None])
    return 100 * (logits.argmax(axis=1) == labels).mean()


def train(dataset: data.Dataset, epochs: int = 15, seed: int = 0) -> TrainState:
    """Train from a seed, print a line per epoch, and return the final state."""
    key = jax.random.key(seed)
    steps = len(dataset.train_images) // BATCH_SIZE
    state, loss = create_state(key, Gap(), epochs * steps), jnp.inf
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(dataset.train_images))
        for batch in np.split(order[: steps * BATCH_SIZE], steps):
            augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, state.step))
            images = prepare(augment_key, dataset.train_images[batch])
            state, loss = train_step(state, images, dataset.train_labels[batch], dropout_key)
        percent = accuracy(state, dataset.test_images, dataset.test_labels)
        print(f"epoch {epoch + 1}/{epochs}: loss {loss:.4f}, test accuracy {percent:.2f} %")
    return state


if __name__ == "__main__":
    train(data.load())
