"""The one file is the package's `gap`: the same network, steps, schedule and augmentation."""

import functools
import importlib

import jax
import numpy as np
import pytest

from jaxmnist import TrainConfig, create_model, data, steps
from jaxmnist.augment import adjust_brightness, adjust_contrast, affine
from jaxmnist.optim import make_optimizer
from jaxmnist.state import initial_state, jit_once
from jaxmnist.steps import Batch
from tests.conftest import SCRIPTS, golden_batch

STEPS = 20


@pytest.fixture(scope="module")
def one_file():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        yield importlib.import_module("one_file")


@pytest.fixture(scope="module")
def first_state(one_file):
    """The state before the first step; without dropout, whose masks the package draws otherwise."""
    create = jit_once(one_file.create_state, static_argnums=(1, 2))
    return create(jax.random.key(0), one_file.Gap(dropout_rate=0.0), STEPS)


def renamed(params):
    """Give flax's own layers the package's names."""
    names = {"Conv_": "conv", "BatchNorm_": "norm"}
    return {names[name[:-1]] + name[-1]: leaves for name, leaves in params.items()}


@pytest.mark.slow
def test_twenty_steps_are_the_packages(one_file, first_state):
    """In float64, where rounding hides nothing."""
    images, labels = golden_batch(16)
    model = create_model("gap", dropout_rate=0.0)
    config = TrainConfig("gap", learning_rate=one_file.PEAK_LEARNING_RATE)
    tx = make_optimizer(config, STEPS)
    state = initial_state(model, tx, 0)
    with jax.enable_x64(True):
        images = images.astype(np.float64)
        params = jax.tree.map(lambda leaf: leaf.astype(np.float64), first_state.params)
        ours = first_state.replace(params=params, opt_state=first_state.tx.init(params))
        state = state.replace(params=renamed(params), opt_state=tx.init(renamed(params)))
        train_step = jax.jit(functools.partial(steps.train_step, model=model, tx=tx))
        for step in range(STEPS):
            rows = np.roll(np.arange(16), step)[:12]
            state, _ = train_step(state, Batch(images[rows], labels[rows]))
            ours, _ = one_file.train_step(ours, images[rows], labels[rows], jax.random.key(step))
    moved = jax.tree.map(lambda new, old: np.abs(np.subtract(new, old)).max(), ours.params, params)
    assert min(jax.tree.leaves(moved)) > 1e-4
    found = jax.tree.leaves_with_path(renamed(ours.params))
    for (path, leaf), expected in zip(found, jax.tree.leaves(state.params), strict=True):
        assert leaf.dtype == np.float64
        np.testing.assert_allclose(leaf, expected, rtol=0, atol=1e-9, err_msg=str(path))


def test_dropout_and_initialisation_are_the_packages(one_file, first_state):
    assert one_file.Gap().dropout_rate == create_model("gap").dropout_rate
    assert sum(leaf.size for leaf in jax.tree.leaves(first_state.params)) == 7364
    for name, leaves in renamed(first_state.params).items():
        if name.startswith("conv"):
            bound = np.prod(leaves["kernel"].shape[:3]) ** -0.5
            assert 0.9 * bound < abs(leaves["kernel"]).max() <= bound


@pytest.mark.parametrize(("last", "order"), [(-0.5, "brightness first"), (0.5, "contrast first")])
def test_the_augmentation_is_the_packages(one_file, monkeypatch, small_idx_dir, last, order):
    """But for the package's fixed point and its whole grey levels."""
    image = data.load("kmnist", idx_dir=small_idx_dir).train_images[:1]
    draws = np.array([0.4, -0.7, 0.5, 0.3, -0.8, 0.5, -0.6, last], np.float32)
    monkeypatch.setattr(jax.random, "uniform", lambda *_, **__: draws)
    found = 255 * one_file.augment(jax.random.key(0), image[0] / 255)
    shift = np.round(2.8 * draws[3:5])[None, ::-1]
    maps = [np.float32([value]) for value in (1 + 0.2 * draws[2], 10 * draws[1])]
    expected = affine(image, 13 * draws[:1], shift, *maps)
    light = [(adjust_brightness, 1 + 0.4 * draws[5:6]), (adjust_contrast, 1 + 0.4 * draws[6:7])]
    for adjust, factor in light if order == "brightness first" else light[::-1]:
        expected = adjust(expected, factor)
    difference = abs(found - expected[0])
    assert (difference < 2).mean() > 0.98
    assert (abs(found - image[0]) < 2).mean() < 0.5


@pytest.mark.slow
def test_it_trains(one_file, small_idx_dir, capsys):
    state = one_file.train(data.load("kmnist", idx_dir=small_idx_dir), epochs=2)
    assert int(state.step) == 2 * (600 // 128)
    assert capsys.readouterr().out.count("test accuracy") == 2
    variance = state.batch_stats["BatchNorm_0"]["var"]
    assert float(abs(variance - 1).max()) > 0.01
