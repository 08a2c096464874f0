import dataclasses
import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist import TrainConfig, create_model, data
from jaxmnist.metrics import Metrics
from jaxmnist.models import layers
from jaxmnist.optim import make_optimizer
from jaxmnist.parallel.programs import compile_programs, stack, unstack
from jaxmnist.runs.setup import to_devices
from jaxmnist.state import initial_state, jit_once, stream
from jaxmnist.steps import (
    EVAL_BLOCK,
    Batch,
    Images,
    batch_at,
    epoch_permutation,
    evaluate,
    normalise,
    train_chunk,
    train_step,
)

STEPS = 9  # an epoch of 600 images in batches of 64


class Trainer:
    """A network with its compiled programs and a state to start from."""

    def __init__(self, variant, idx_dir, recipe="notebook"):
        self.config = TrainConfig(variant, "fashion_mnist", recipe, epochs=2, batch_size=64)
        self.model = create_model(variant, self.config.dropout)
        self.tx = make_optimizer(self.config, 2 * STEPS)
        images = to_devices(data.load("fashion_mnist", idx_dir=idx_dir), None)
        self.images, self.test_images = images
        with_ema = self.config.ema_decay > 0
        self.create = functools.partial(initial_state, self.model, self.tx, with_ema=with_ema)
        self.programs = compile_programs(
            self.config, self.model, self.tx, self.images, self.test_images
        )

    def train(self, *stops, seed=0):
        state, metrics = self.create(seed), Metrics.zero()
        for stop in stops:
            state, metrics = self.chunk(state, metrics, stop)
        return state, metrics

    def chunk(self, state, metrics, stop):
        states, metrics = self.put(state), self.put(metrics)
        order = self.programs.epoch_permutation(states, self.images)
        done = self.programs.train_chunk(states, metrics, self.images, order, np.int32(stop))
        return self.get(done)

    def evaluate(self, state):
        return self.get(self.programs.evaluate(self.put(state), self.test_images))

    def put(self, tree):
        return self.programs.put(stack([tree]))

    def get(self, tree):
        return unstack(self.programs.get(tree), 1)[0]


@pytest.fixture(scope="module")
def gap(small_idx_dir):
    """With everything that is random: order, augmentation, dropout."""
    return Trainer("gap", small_idx_dir)


def test_chunks_of_any_length_give_the_same_bits(gap):
    whole = gap.train(STEPS)
    assert int(whole[0].step) == STEPS
    assert int(whole[1].count) == STEPS * 64
    for stops in ((1, 2, STEPS), (4, STEPS), tuple(range(1, STEPS + 1))):
        chex.assert_trees_all_equal(gap.train(*stops), whole)


def test_a_chunk_ends_with_its_epoch(gap):
    state, metrics = gap.train(2 * STEPS)
    assert int(state.step) == STEPS
    state, metrics = gap.train(2 * STEPS, 2 * STEPS)
    assert int(state.step) == 2 * STEPS
    assert int(metrics.count) == 2 * STEPS * 64


def test_seeds_differ_and_repeat(gap):
    chex.assert_trees_all_equal(gap.train(3, seed=5), gap.train(3, seed=5))
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(gap.train(3, seed=5)[0].params, gap.train(3, seed=6)[0].params)


def test_training_stops_at_the_first_loss_that_is_not_finite(gap):
    state = gap.create(0)
    params = jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(jnp.nan), state.params)
    state, metrics = gap.chunk(state.replace(params=params), Metrics.zero(), STEPS)
    assert int(state.step) == 1
    assert np.isnan(metrics.loss)


def test_evaluation_counts_every_image(gap):
    state, _ = gap.train(STEPS)
    count = len(gap.test_images.pixels)
    assert count % EVAL_BLOCK != 0
    metrics = gap.evaluate(state)
    assert int(metrics.count) == count
    logits = jit_once(gap.model.apply)(
        {"params": state.params, "batch_stats": state.batch_stats},
        normalise(gap.test_images.pixels, gap.test_images.mean, gap.test_images.std),
    )
    labels = np.asarray(gap.test_images.labels)
    assert int(metrics.correct) == int((np.asarray(logits).argmax(axis=1) == labels).sum())
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    expected = -log_probs[np.arange(count), labels].mean()
    assert metrics.loss == pytest.approx(expected, rel=1e-5)


def test_what_makes_a_chunk_fast(gap):
    """No convolution inside the loop, state donated, nothing sent to the host on the way."""
    hlo = gap.programs.train_chunk.as_text()
    assert not re.search(r"\bconvolution\(", hlo)
    assert "while(" in hlo
    for sent in ("outfeed", "infeed", "send(", "callback"):
        assert sent not in hlo
    leaves = len(jax.tree.leaves((gap.create(0), Metrics.zero())))
    # The seed's key and what the optimiser derives anew have nothing to be written over.
    header = hlo.splitlines()[0]
    assert header.count("may-alias") >= leaves - 3
    states, metrics = gap.put(gap.create(0)), gap.put(Metrics.zero())
    order = gap.programs.epoch_permutation(states, gap.images)
    gap.programs.train_chunk(states, metrics, gap.images, order, np.int32(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(states.params))
    data_constants = re.findall(r"u8\[600,28,28\]\S* constant", hlo)
    assert not data_constants


def test_the_order_is_that_of_the_next_steps_epoch(gap):
    for step, epoch in ((0, 0), (STEPS - 1, 0), (STEPS, 1), (STEPS + 1, 1)):
        state = gap.create(0).replace(step=jnp.int32(step))
        key = jax.random.fold_in(stream(state.key, "order"), epoch)
        expected = jax.random.permutation(key, 600)
        found = gap.programs.epoch_permutation(gap.put(state), gap.images)
        chex.assert_trees_all_equal(found, expected)


def test_an_epochs_order_is_a_permutation_of_its_own(gap):
    states = [gap.create(0).replace(step=jnp.int32(step)) for step in (0, STEPS)]
    orders = [np.asarray(epoch_permutation(each, gap.images, batch_size=64)) for each in states]
    for order in orders:
        assert sorted(order) == list(range(600))
    assert (orders[0] != orders[1]).mean() > 0.9


def test_normalise_worked_by_hand():
    pixels = jnp.array([[[0, 255, 51]]], jnp.uint8)
    images = normalise(pixels, np.asarray(0.2, np.float32), np.asarray(0.4, np.float32))
    chex.assert_trees_all_close(images, jnp.array([-0.5, 2.0, 0.0]).reshape(1, 1, 3, 1), atol=1e-6)


class DropHalf(nn.Module):
    """The smallest network that drops something."""

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.Dropout(0.5)(layers.from_images(images), train)
        return nn.Dense(10)(layers.to_logits(layers.global_avg_pool(x)))


def test_every_step_drops_others():
    model = DropHalf()
    tx = make_optimizer(TrainConfig("less_params"), 10)
    state = initial_state(model, tx, 0)
    step_once = jax.jit(functools.partial(train_step, model=model, tx=tx))
    batch = Batch(jnp.ones((8, 28, 28, 1)), jnp.arange(8, dtype=jnp.uint8))
    losses = [
        step_once(state.replace(step=jnp.int32(step)), batch)[1].loss for step in (0, 1, 2, 0)
    ]
    assert len(set(losses)) == 3
    assert losses[0] == losses[3]


def test_the_optimiser_gets_the_loss_of_the_step():
    """The plateau schedule depends on it."""
    model = DropHalf()

    def update(updates, state, params=None, *, value, **extra):
        return updates, value

    tx = optax.GradientTransformationExtraArgs(lambda params: jnp.float32(0), update)
    state = initial_state(model, tx, 0)
    batch = Batch(jnp.ones((8, 28, 28, 1)), jnp.arange(8, dtype=jnp.uint8))
    state, metrics = jit_once(functools.partial(train_step, model=model, tx=tx))(state, batch)
    np.testing.assert_allclose(state.opt_state, metrics.loss, rtol=1e-6)


def test_every_step_augments_otherwise_and_the_same_step_the_same(gap):
    augmented = jit_once(functools.partial(batch_at, config=gap.config))
    state, order = gap.create(0), jnp.arange(600)

    def images(step, position):
        at_step = state.replace(step=jnp.int32(step))
        return augmented(at_step, gap.images, order, jnp.int32(position)).images

    chex.assert_trees_all_equal(images(3, 0), images(3, 0))
    assert (images(3, 0) != images(4, 0)).any()
    without = dataclasses.replace(gap.config, augment=False)
    plain = jit_once(functools.partial(batch_at, config=without))
    batch = plain(state, gap.images, order, jnp.int32(2))
    expected = normalise(gap.images.pixels[128:192], gap.images.mean, gap.images.std)
    chex.assert_trees_all_close(batch.images, expected, atol=1e-6)
    chex.assert_trees_all_equal(batch.labels, gap.images.labels[128:192])


def test_the_batch_of_a_step_is_its_share_of_the_epochs_order(small_idx_dir):
    """Without augmentation and dropout, a chunk is `train_step` over slices of the order."""
    config = TrainConfig("less_params", "fashion_mnist", batch_size=64)
    model = create_model("less_params")
    tx = make_optimizer(config, 2 * STEPS)
    images, _ = to_devices(data.load("fashion_mnist", idx_dir=small_idx_dir), None)
    start = initial_state(model, tx, 0)
    order = np.asarray(epoch_permutation(start, images, batch_size=64))
    chunk = jax.jit(functools.partial(train_chunk, config=config, model=model, tx=tx))
    state, metrics = chunk(start, Metrics.zero(), images, order, np.int32(2))

    step_once = jax.jit(functools.partial(train_step, model=model, tx=tx))
    expected, merged = start, Metrics.zero()
    for k in range(2):
        chosen = order[64 * k : 64 * (k + 1)]
        pixels = normalise(images.pixels[chosen], images.mean, images.std)
        expected, of_step = step_once(expected, Batch(pixels, images.labels[chosen]))
        merged = merged.merge(of_step)
    chex.assert_trees_all_close(state.params, expected.params, atol=1e-6)
    chex.assert_trees_all_close(metrics, merged, rtol=1e-5)


def test_evaluating_fewer_images_than_a_block(gap):
    few = Images(*(leaf[:7] for leaf in gap.test_images[:2]), *gap.test_images[2:])
    metrics = jit_once(functools.partial(evaluate, model=gap.model))(gap.create(0), few)
    assert int(metrics.count) == 7


def test_evaluation_is_of_the_average(small_idx_dir):
    trainer = Trainer("gap", small_idx_dir, recipe="record")
    state, _ = trainer.train(STEPS)
    kept = trainer.create(0).ema
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.ema, kept)
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)
    evaluated = [trainer.evaluate(each) for each in (state, state.replace(params=broken))]
    chex.assert_trees_all_equal(*evaluated)
    assert np.isfinite(evaluated[0].loss)
