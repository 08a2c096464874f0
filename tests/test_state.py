import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxmnist import TrainConfig, create_model
from jaxmnist.optim import make_optimizer
from jaxmnist.state import initial_state, stream, update_ema


@pytest.fixture(scope="module")
def create():
    model = create_model("less_params")
    tx = make_optimizer(TrainConfig("less_params"), 100)
    return functools.partial(initial_state, model, tx)


def test_a_new_state(create):
    state = create(0)
    assert int(state.step) == 0
    assert state.batch_stats == {}
    chex.assert_tree_all_finite((state.params, state.opt_state))
    chex.assert_trees_all_equal(state.key, jax.random.key(0))


def test_the_seed_decides_the_weights(create):
    chex.assert_trees_all_equal(create(3).params, create(3).params)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(create(3).params, create(4).params)


def test_streams_are_separate():
    key = jax.random.key(0)
    names = ("init", "order", "augment", "dropout")
    draws = [float(jax.random.uniform(stream(key, name))) for name in names]
    assert len(set(draws)) == len(names)
    chex.assert_trees_all_equal(stream(key, "order"), stream(key, "order"))
    assert (jnp.array(stream(key, "order")) != stream(jax.random.key(1), "order")).all()


def test_an_average_worked_by_hand():
    """At first the mean of all that was, the first included; in the end 1/4 of what comes."""
    model = create_model("less_params")
    tx = make_optimizer(TrainConfig("less_params"), 100)
    state = initial_state(model, tx, 0, with_ema=True)
    zero = jnp.zeros(3)
    average = {"params": {"w": zero}, "batch_stats": {"mean": zero}}
    state = state.replace(**average, ema=average)
    found = []
    for step in range(1, 7):
        latest = {"params": {"w": zero + step}, "batch_stats": {"mean": zero - step}}
        state = update_ema(state.replace(step=jnp.int32(step), **latest), 0.75)
        found.append(float(state.ema["params"]["w"][0]))
        chex.assert_trees_all_close(state.ema["batch_stats"]["mean"], zero - found[-1])
    # (0 + 1) / 2, (0 + 1 + 2) / 3, (0 + ... + 3) / 4, and then 3/4 a + 1/4 x.
    assert found == pytest.approx([0.5, 1.0, 1.5, 2.125, 2.84375, 3.6328125])
    assert state.variables is state.ema


def test_without_an_average_the_weights_themselves_are_evaluated(create):
    state = create(0)
    assert state.variables["params"] is state.params
