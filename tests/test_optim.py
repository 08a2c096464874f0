import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmnist.config import ConfigError, TrainConfig
from jaxmnist.optim import latest_hyperparams, make_optimizer, make_schedules, one_cycle
from tests.conftest import golden

PEAK = 0.015


@pytest.mark.parametrize("total_steps", [20, 1000, 7035])
def test_one_cycle_equals_pytorch(total_steps):
    learning_rate, momentum = one_cycle(PEAK, total_steps)
    steps, expected = jnp.arange(total_steps), golden("one_cycle")
    np.testing.assert_allclose(
        jax.jit(learning_rate)(steps), expected[f"lr_{total_steps}"], atol=1e-6 * PEAK, rtol=0
    )
    np.testing.assert_allclose(
        jax.jit(momentum)(steps), expected[f"momentum_{total_steps}"], atol=1e-6, rtol=0
    )


def test_one_cycle_worked_by_hand():
    # 100 steps: the peak is at step 29, half of the climb at 14.5, half of the fall at 64.
    learning_rate, momentum = one_cycle(1.0, 100)
    for step, rate in ((0, 0.04), (14.5, 0.52), (29, 1.0), (64, 0.500002), (99, 4e-6)):
        assert float(learning_rate(jnp.float32(step))) == pytest.approx(rate, abs=1e-6)
    for step, value in ((0, 0.95), (14.5, 0.9), (29, 0.85), (64, 0.9), (99, 0.95)):
        assert float(momentum(jnp.float32(step))) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_refuses_a_training_without_a_climb(total_steps):
    with pytest.raises(ConfigError, match=f"at least 4 steps, but training has {total_steps}; use"):
        one_cycle(PEAK, total_steps)
    with pytest.raises(ConfigError, match="at least 4 steps"):
        make_optimizer(TrainConfig("gap"), total_steps)
    make_optimizer(TrainConfig("less_params"), total_steps)


def test_four_steps_are_enough():
    learning_rate, _ = one_cycle(PEAK, 4)
    assert np.isfinite(jax.vmap(learning_rate)(jnp.arange(4))).all()


def test_constant_rate():
    schedules = make_schedules(TrainConfig("dropout", learning_rate=0.02), 100)
    assert {schedules.learning_rate(k) for k in (0, 50, 99)} == {0.02}
    assert {schedules.momentum(k) for k in (0, 50, 99)} == {0.9}


@pytest.mark.parametrize("variant", ["less_params", "gap"])
def test_the_optimiser_follows_its_schedules_as_torch_sgd_does(variant):
    """v <- momentum_k v + gradient; w <- w - rate_k v (torch.optim.SGD)."""
    config = TrainConfig(variant)
    tx, schedules = make_optimizer(config, 20), make_schedules(config, 20)
    params = {"w": jnp.array([1.0, -2.0])}
    opt_state = tx.init(params)
    update = jax.jit(tx.update)
    weight, velocity = np.array([1.0, -2.0]), np.zeros(2)
    for k in range(12):
        grads = np.array([0.5 + k, 1.0 - k], np.float32)
        updates, opt_state = update({"w": grads}, opt_state, params)
        params = jax.tree.map(jnp.add, params, updates)
        velocity = float(schedules.momentum(k)) * velocity + grads
        weight = weight - float(schedules.learning_rate(k)) * velocity
        chex.assert_trees_all_close(params, {"w": weight.astype(np.float32)}, rtol=1e-5)
        expected = (schedules.learning_rate(k), schedules.momentum(k))
        np.testing.assert_allclose(latest_hyperparams(opt_state), expected, rtol=1e-6)


def test_nesterov_and_weight_decay_as_torch_sgd_does():
    """g <- gradient + decay w; v <- m v + g; w <- w - rate (g + m v) (torch.optim.SGD)."""
    config = TrainConfig(recipe="record")
    tx, schedules = make_optimizer(config, 20), make_schedules(config, 20)
    w, v = np.array([1.0, -2.0]), np.zeros(2)
    params = {"w": jnp.array(w, jnp.float32)}
    opt_state = tx.init(params)
    for k in range(5):
        gradient = np.array([0.3, -0.1]) * (k + 1)
        updates, opt_state = tx.update({"w": jnp.array(gradient, jnp.float32)}, opt_state, params)
        params = optax.apply_updates(params, updates)
        rate, momentum = float(schedules.learning_rate(k)), float(schedules.momentum(k))
        g = gradient + 5e-4 * w
        v = momentum * v + g
        w = w - rate * (g + momentum * v)
        np.testing.assert_allclose(params["w"], w, rtol=1e-5)


def test_a_momentum_that_does_not_cycle():
    schedules = make_schedules(TrainConfig(recipe="notebook/constant_momentum"), 100)
    assert {float(schedules.momentum(k)) for k in (0, 29, 99)} == {0.9}
    cycle, _ = one_cycle(PEAK, 100)
    assert [schedules.learning_rate(k) for k in (0, 29, 99)] == [cycle(k) for k in (0, 29, 99)]


def test_a_staircase_as_steplr():
    """Epochs of 10 steps: the rate falls after every third epoch."""
    config = TrainConfig(schedule="step", learning_rate=0.5, step_size=3, gamma=0.1, epochs=7)
    schedules = make_schedules(config, 70)
    rates = [float(schedules.learning_rate(jnp.int32(k))) for k in (0, 29, 30, 59, 60, 69)]
    np.testing.assert_allclose(rates, [0.5, 0.5, 0.05, 0.05, 0.005, 0.005], rtol=1e-6)
    assert {float(schedules.momentum(k)) for k in (0, 69)} == {config.momentum}


def test_a_plateau_as_reducelronplateau():
    """Epochs of 2 steps, patience of 1: the rate falls after the second bad epoch in a row."""
    config = TrainConfig(schedule="plateau", learning_rate=0.5, gamma=0.1, patience=1, epochs=8)
    tx = make_optimizer(config, 16)
    params = {"scale": jnp.zeros(1)}  # also the name of the factor in the optimiser's state
    opt_state = tx.init(params)
    chex.assert_tree_all_finite(opt_state)
    rates = []
    losses = [(3, 1), (2, 2), (1, 2.8), (2, 1.9999), (0.5, 1), (1, 1), (1, 1), (1, 0)]
    for loss in itertools.chain(*losses):
        gradient = {"scale": jnp.ones(1)}
        update, opt_state = tx.update(gradient, opt_state, params, value=jnp.float32(loss))
        rates.append(float(latest_hyperparams(opt_state)[0]))
    # Means: 2 best, 2 bad, 1.9 best, 1.99995 bad, 0.75 best, 1 bad, 1 bad again; then it is lower.
    np.testing.assert_allclose(rates, [0.5] * 14 + [0.05] * 2, rtol=1e-6)
    # Sixteen steps of momentum 0.9 with a gradient of 1, at the rate of the last one.
    velocity = (1 - 0.9**16) / (1 - 0.9)
    np.testing.assert_allclose(update["scale"], -0.05 * velocity, rtol=1e-5)


def test_an_l1_penalty_worked_by_hand():
    """w <- w - rate (gradient + penalty sign(w)); zero stays where it is."""
    tx = make_optimizer(TrainConfig("less_params", l1=0.25, learning_rate=0.1), 10)
    params = {"w": jnp.array([1.0, -2.0, 0.0])}
    updates, _ = tx.update({"w": jnp.array([0.5, 0.5, 0.0])}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], [-0.075, -0.025, 0.0], rtol=1e-6)
