"""Training and evaluation as pure functions, for one seed on one device.

With the name of a device `axis`, a function does one device's part of the work. The devices divide
the batch, and each returns the same state and metrics, those of the whole batch.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxmnist.augment import AUGMENTATIONS
from jaxmnist.collectives import Axis, axis_size, pmean, psum, pvary, shard
from jaxmnist.config import TrainConfig, steps_per_epoch
from jaxmnist.metrics import Array, Metrics, compute_metrics, cross_entropy
from jaxmnist.state import TrainState, stream, update_ema

# Number of images per evaluation block: small enough for a CPU's cache.
EVAL_BLOCK = 200


class Images(NamedTuple):
    """Images on the device, and the constants that normalise them."""

    pixels: Array  # uint8 [N, 28, 28]
    labels: Array  # uint8 [N]
    mean: Array  # float32 scalar, mean of pixels / 255
    std: Array  # float32 scalar, standard deviation of pixels / 255


class Batch(NamedTuple):
    """The input of one step."""

    images: jax.Array  # float32 [N, 28, 28, 1], normalised
    labels: jax.Array  # uint8 [N]


def normalise(pixels: jax.Array, mean: Array, std: Array) -> jax.Array:
    """Convert pixels uint8 `[N, 28, 28]` to the networks' input, float32 `[N, 28, 28, 1]`."""
    return ((pixels.astype(jnp.float32) / 255 - mean) / std)[..., None]


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    model: nn.Module,
    tx: optax.GradientTransformation,
    ema_decay: float = 0.0,
    axis: Axis = None,
) -> tuple[TrainState, Metrics]:
    """Take one step of the optimiser.

    Args:
        state: the state before the step.
        batch: this device's part of the batch.
        model: the network.
        tx: the optimiser.
        ema_decay: the decay of the moving average of the variables; 0 for no average.
        axis: the name of the device axis that shares the batch.

    Returns:
        The state after the step, and the metrics of the whole batch before the update, with
        dropout.
    """
    if axis is not None:
        model = model.clone(axis=axis)
    dropout_key = jax.random.fold_in(stream(state.key, "dropout"), state.step)

    def loss_fn(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            batch.images,
            train=True,
            rngs={"dropout": dropout_key},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, batch.labels).mean(), (logits, updates.get("batch_stats", {}))

    params = pvary(state.params, axis)
    (loss, (logits, batch_stats)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    # All parts have the same size, so the mean of their gradients is the gradient of the mean.
    grads = pmean(grads, axis)
    tx = optax.with_extra_args_support(tx)
    updates, opt_state = tx.update(grads, state.opt_state, state.params, value=pmean(loss, axis))
    state = state.replace(
        step=state.step + 1,
        params=optax.apply_updates(state.params, updates),
        batch_stats=batch_stats,
        opt_state=opt_state,
    )
    if ema_decay:
        state = update_ema(state, ema_decay)
    return state, psum(compute_metrics(logits, batch.labels), axis)


def epoch_permutation(state: TrainState, images: Images, *, batch_size: int) -> jax.Array:
    """Return the image order of the next step's epoch, int32 `[N]`."""
    count = len(images.pixels)
    epoch = state.step // steps_per_epoch(count, batch_size)
    return jax.random.permutation(jax.random.fold_in(stream(state.key, "order"), epoch), count)


def batch_at(
    state: TrainState,
    images: Images,
    order: jax.Array,
    position: jax.Array,
    *,
    config: TrainConfig,
    axis: Axis = None,
) -> Batch:
    """Return this device's part of the batch of a step.

    The batch is a function of the seed and `state.step` alone: random numbers are drawn for the
    whole batch before it is divided.

    Args:
        state: the state before the step.
        images: the training images.
        order: the permutation of the step's epoch.
        position: the position of the step in its epoch, from 0.
        config: the config, for batch size and augmentation.
        axis: the name of the device axis that shares the batch.
    """
    start = position * config.batch_size
    chosen = shard(jax.lax.dynamic_slice_in_dim(order, start, config.batch_size), axis)
    pixels = images.pixels[chosen]
    if config.augment:
        draw, apply = AUGMENTATIONS[config.augmentation]
        key = jax.random.fold_in(stream(state.key, "augment"), state.step)
        pixels = apply(pixels, shard(draw(key, config.batch_size), axis))
    return Batch(normalise(pixels, images.mean, images.std), images.labels[chosen])


def train_chunk(
    state: TrainState,
    metrics: Metrics,
    images: Images,
    order: jax.Array,
    stop: np.int32,
    *,
    config: TrainConfig,
    model: nn.Module,
    tx: optax.GradientTransformation,
    axis: Axis = None,
) -> tuple[TrainState, Metrics]:
    """Train until `state.step` is `stop` or the epoch ends; the loop runs on the device.

    The loop also ends after the first step with a loss that is not finite.

    Args:
        state: the state before the first step.
        metrics: the metrics of the epoch so far.
        images: the training images.
        order: the permutation of the epoch; drawing it takes as long as two steps.
        stop: the step count at which to stop; traced, so that one program handles any length.
        config: the config of the run.
        model: the network.
        tx: the optimiser.
        axis: the name of the device axis that shares each batch.

    Returns:
        The state after the last step, and the metrics of the epoch, including this chunk.
    """
    steps = steps_per_epoch(len(images.pixels), config.batch_size)
    epoch = state.step // steps
    last = jnp.minimum(stop, (epoch + 1) * steps)

    def is_unfinished(carry):
        state, metrics = carry
        return (state.step < last) & jnp.isfinite(metrics.loss_sum)

    def step(carry):
        state, metrics = carry
        position = state.step - epoch * steps
        batch = batch_at(state, images, order, position, config=config, axis=axis)
        state, latest = train_step(
            state, batch, model=model, tx=tx, ema_decay=config.ema_decay, axis=axis
        )
        return state, metrics.merge(latest)

    return jax.lax.while_loop(is_unfinished, step, (state, metrics))


def eval_step(state: TrainState, batch: Batch, valid: jax.Array, *, model: nn.Module) -> Metrics:
    """Return the metrics of one block of images; `valid`, bool `[N]`, masks padding."""
    logits: Any = model.apply(state.variables, batch.images)
    return compute_metrics(logits, batch.labels, valid)


def evaluate(state: TrainState, images: Images, *, model: nn.Module, axis: Axis = None) -> Metrics:
    """Return the metrics over all images; each device evaluates its part of the blocks."""
    count, devices = len(images.pixels), axis_size(axis)
    blocks = -(-count // (EVAL_BLOCK * devices)) * devices
    padding = blocks * EVAL_BLOCK - count
    pixels = jnp.pad(images.pixels, ((0, padding), (0, 0), (0, 0)))
    labels = jnp.pad(images.labels, (0, padding))

    def evaluate_block(block: jax.Array) -> Metrics:
        start = block * EVAL_BLOCK
        block_pixels = jax.lax.dynamic_slice_in_dim(pixels, start, EVAL_BLOCK)
        batch = Batch(
            normalise(block_pixels, images.mean, images.std),
            jax.lax.dynamic_slice_in_dim(labels, start, EVAL_BLOCK),
        )
        return eval_step(state, batch, start + jnp.arange(EVAL_BLOCK) < count, model=model)

    each = jax.lax.map(evaluate_block, shard(jnp.arange(blocks), axis))
    return psum(jax.tree.map(lambda leaf: leaf.sum(axis=0, dtype=leaf.dtype), each), axis)
