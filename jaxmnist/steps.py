"""Training and evaluation as pure functions, for one seed on one device.

With the name of an `axis` of devices they do one device's share of the work: the batch is shared
out, and what is returned is that of the whole batch, the same on every device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist import collectives
from jaxmnist.augment import AUGMENTATIONS
from jaxmnist.config import TrainConfig, steps_per_epoch
from jaxmnist.metrics import Array, Metrics, losses, measure
from jaxmnist.state import TrainState, stream

# Images of the test set that are evaluated at a time: few enough for the cache of a CPU.
EVAL_BLOCK = 200


class Images(NamedTuple):
    """Images as they lie on the device, and what normalises them."""

    pixels: Array  # uint8 [N, 28, 28]
    labels: Array  # uint8 [N]
    mean: Array  # float32 scalar, of pixels / 255
    std: Array  # float32 scalar, of pixels / 255


class Batch(NamedTuple):
    """What one training step sees."""

    images: jax.Array  # float32 [N, 28, 28, 1], normalised
    labels: jax.Array  # uint8 [N]


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
BatchAt = Callable[[TrainState, Images, jax.Array, jax.Array], Batch]
OrderOfEpoch = Callable[[TrainState, Images], jax.Array]
TrainChunk = Callable[
    [TrainState, Metrics, Images, jax.Array, np.int32], tuple[TrainState, Metrics]
]
EvalStep = Callable[[TrainState, Batch, jax.Array], Metrics]
Evaluate = Callable[[TrainState, Images], Metrics]


def normalise(pixels: jax.Array, mean: Array, std: Array) -> jax.Array:
    """uint8 `[N, 28, 28]` to the networks' float32 `[N, 28, 28, 1]`."""
    return ((pixels.astype(jnp.float32) / 255 - mean) / std)[..., None]


def make_train_step(
    model: nn.Module, tx: optax.GradientTransformation, axis: collectives.Axis = None
) -> TrainStep:
    """The training step: `train_step(state, batch) -> (state, metrics)`.

    The batch is this device's share of it. The metrics are those of the forward pass over all of
    it, before the update, with dropout on.
    """
    if axis is not None:
        model = model.clone(axis=axis)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dropout_key = jax.random.fold_in(stream(state.key, "dropout"), state.step)

        def loss_fn(params):
            logits, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch.images,
                train=True,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            return losses(logits, batch.labels).mean(), (logits, updates.get("batch_stats", {}))

        params = collectives.own(state.params, axis)
        grads, (logits, batch_stats) = jax.grad(loss_fn, has_aux=True)(params)
        # The shares are of the same size: the gradient of the mean is the mean of the gradients.
        grads = collectives.mean(grads, axis)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state.averaged(), collectives.total(measure(logits, batch.labels), axis)

    return train_step


def epoch_order(key: jax.Array, epoch: jax.Array, count: int) -> jax.Array:
    """The order in which an epoch takes the training images, int32 `[count]`."""
    return jax.random.permutation(jax.random.fold_in(stream(key, "order"), epoch), count)


def make_order_of_epoch(config: TrainConfig) -> OrderOfEpoch:
    """The order of the epoch that the next step belongs to: `order_of_epoch(state, images)`."""

    def order_of_epoch(state: TrainState, images: Images) -> jax.Array:
        count = len(images.pixels)
        epoch = state.step // steps_per_epoch(count, config.batch_size)
        return epoch_order(state.key, epoch, count)

    return order_of_epoch


def make_batch_at(config: TrainConfig, axis: collectives.Axis = None) -> BatchAt:
    """The batch of a step, or a share of it: `batch_at(state, images, order, position) -> batch`.

    `order` is the epoch's, `position` the step's place in the epoch. The batch depends on these,
    the seed and `state.step` alone: what is random is drawn for the whole of it.
    """
    draw, apply = AUGMENTATIONS[config.recipe_of_variant.augmentation]

    def batch_at(state: TrainState, images: Images, order: jax.Array, position: jax.Array) -> Batch:
        start = position * config.batch_size
        chosen = jax.lax.dynamic_slice_in_dim(order, start, config.batch_size)
        chosen = collectives.share(chosen, axis)
        pixels = images.pixels[chosen]
        if config.augment:
            key = jax.random.fold_in(stream(state.key, "augment"), state.step)
            parameters = collectives.share(draw(key, config.batch_size), axis)
            pixels = apply(pixels, parameters)
        return Batch(normalise(pixels, images.mean, images.std), images.labels[chosen])

    return batch_at


def make_train_chunk(
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    axis: collectives.Axis = None,
) -> TrainChunk:
    """A stretch of training: `train_chunk(state, metrics, images, order, stop)`.

    It trains until `state.step` is `stop` or the epoch is over, adds to the metrics, and returns
    `(state, metrics)`. `order` is that of the epoch: drawing it takes as long as two steps. `stop`
    is traced, so that one compilation serves stretches of any length. It also ends after the first
    step whose loss is not finite.
    """
    batch_at, train_step = make_batch_at(config, axis), make_train_step(model, tx, axis)

    def train_chunk(state, metrics, images, order, stop):
        steps = steps_per_epoch(len(images.pixels), config.batch_size)
        epoch = state.step // steps
        stop = jnp.minimum(stop, (epoch + 1) * steps)

        def unfinished(carry):
            state, metrics = carry
            return (state.step < stop) & jnp.isfinite(metrics.loss_sum)

        def body(carry):
            state, metrics = carry
            batch = batch_at(state, images, order, state.step - epoch * steps)
            state, of_step = train_step(state, batch)
            return state, metrics.merge(of_step)

        return jax.lax.while_loop(unfinished, body, (state, metrics))

    return train_chunk


def make_eval_step(model: nn.Module) -> EvalStep:
    """The evaluation of one block: `eval_step(state, batch, valid) -> metrics`.

    `valid`, bool `[N]`, says which images of the batch count.
    """

    def eval_step(state: TrainState, batch: Batch, valid: jax.Array) -> Metrics:
        logits: Any = model.apply(state.variables, batch.images)
        return measure(logits, batch.labels, valid)

    return eval_step


def make_evaluate(model: nn.Module, axis: collectives.Axis = None) -> Evaluate:
    """Evaluation: `evaluate(state, images) -> metrics` over all images, however many.

    A device takes its share of the blocks; the metrics are those of all.
    """
    eval_step = make_eval_step(model)

    def evaluate(state: TrainState, images: Images) -> Metrics:
        count = len(images.pixels)
        blocks = -(-count // (EVAL_BLOCK * collectives.count(axis))) * collectives.count(axis)
        padding = blocks * EVAL_BLOCK - count
        pixels = jnp.pad(images.pixels, ((0, padding), (0, 0), (0, 0)))
        labels = jnp.pad(images.labels, (0, padding))

        def of_block(block: jax.Array) -> Metrics:
            start = block * EVAL_BLOCK
            block_pixels = jax.lax.dynamic_slice_in_dim(pixels, start, EVAL_BLOCK)
            batch = Batch(
                normalise(block_pixels, images.mean, images.std),
                jax.lax.dynamic_slice_in_dim(labels, start, EVAL_BLOCK),
            )
            valid = start + jnp.arange(EVAL_BLOCK) < count
            return eval_step(state, batch, valid)

        each = jax.lax.map(of_block, collectives.share(jnp.arange(blocks), axis))
        summed = jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=leaf.dtype), each)
        return collectives.total(summed, axis)

    return evaluate
