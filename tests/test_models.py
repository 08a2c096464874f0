import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmnist
from jaxmnist import VARIANTS, TrainConfig, create_model, steps
from jaxmnist.optim import make_optimizer
from jaxmnist.state import TrainState, jit_once
from jaxmnist.steps import Batch
from tests.conftest import SKELETON_SLOW, golden, golden_batch, golden_variables
from tests.test_description import PARAMETERS


def shapes_of(variant):
    images = jnp.zeros((1, 28, 28, 1))
    return jax.eval_shape(create_model(variant).init, jax.random.key(0), images)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count(variant):
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(variant)["params"]))
    assert count == PARAMETERS[variant] == int(golden(variant)["parameters"])


def test_layers_are_named_by_kind_in_order_of_use():
    shapes = shapes_of("gap")
    kernels = {
        name: leaf["kernel"].shape for name, leaf in shapes["params"].items() if "kernel" in leaf
    }
    assert kernels == {
        "conv0": (3, 3, 1, 4),
        "conv1": (3, 3, 4, 8),
        "conv2": (1, 1, 8, 10),
        "conv3": (3, 3, 10, 16),
        "conv4": (3, 3, 16, 16),
        "conv5": (3, 3, 16, 18),
        "conv6": (1, 1, 18, 16),
        "conv7": (1, 1, 16, 10),
    }
    widths = [4, 8, 10, 16, 16, 18, 16]
    for k, width in enumerate(widths):
        for collection, kinds in (("params", "scale bias"), ("batch_stats", "mean var")):
            leaves = shapes[collection][f"norm{k}"]
            assert {kind: leaf.shape for kind, leaf in leaves.items()} == dict.fromkeys(
                kinds.split(), (width,)
            )
    assert len(shapes["params"]) == len(kernels) + len(widths)
    assert set(shapes_of("skeleton")["params"]["conv6"]) == {"kernel", "bias"}


@pytest.mark.parametrize("variant", VARIANTS)
def test_takes_images_and_gives_logits(variant):
    model = create_model(variant)
    logits = jax.eval_shape(model.apply, shapes_of(variant), jnp.zeros((3, 28, 28, 1)))
    chex.assert_shape(logits, (3, 10))
    chex.assert_type(logits, jnp.float32)


def test_dropout_rate():
    assert create_model("dropout").dropout_rate == 0.2
    assert create_model("gap").dropout_rate == 0.05
    assert create_model("gap", 0.0).dropout_rate == 0.0


def test_unknown_variant():
    with pytest.raises(jaxmnist.ConfigError, match=r"'batchnorm'; .* Did you mean batch_norm\?"):
        create_model("batchnorm")


@pytest.mark.parametrize("variant", SKELETON_SLOW)
def test_equals_pytorch(variant):
    """Evaluation, five training steps, and evaluation with the running statistics they left."""
    expected = golden(variant)
    images, labels = golden_batch(len(expected["eval_log_probs"]))
    variables = golden_variables(variant)
    model = create_model(variant, dropout_rate=0.0)

    @jit_once
    def log_probs(params, batch_stats):
        logits = model.apply({"params": params, "batch_stats": batch_stats}, images)
        return jax.nn.log_softmax(logits)

    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    np.testing.assert_allclose(
        log_probs(params, batch_stats), expected["eval_log_probs"], atol=1e-4
    )

    tx = make_optimizer(TrainConfig(variant), total_steps=20)
    train_step = jit_once(functools.partial(steps.train_step, model=model, tx=tx))
    state = TrainState(
        step=jnp.int32(0),
        key=jax.random.key(0),
        params=params,
        batch_stats=batch_stats,
        opt_state=tx.init(params),
    )
    losses = []
    for _ in range(5):
        state, metrics = train_step(state, Batch(images, labels))
        losses.append(metrics.loss)
    np.testing.assert_allclose(losses, expected["train_losses"], atol=1e-4)
    for name, norm in state.batch_stats.items():
        np.testing.assert_allclose(norm["mean"], expected[f"trained_{name}_mean"], atol=1e-4)
        np.testing.assert_allclose(norm["var"], expected[f"trained_{name}_var"], atol=1e-4)
    assert len(state.batch_stats) == sum(name.endswith("_var") for name in expected)
    trained = log_probs(state.params, state.batch_stats)
    np.testing.assert_allclose(trained, expected["trained_eval_log_probs"], atol=1e-4)


@pytest.mark.parametrize(
    ("variation", "count"),
    [
        ("gap_without_norm", 7188),
        ("gap_group_norm", 7364),
        ("gap_layer_norm", 7364),
        ("gap_ghost_norm", 7364),
        ("gap_late_pool", 7364),
        ("gap_wide", 7082),
        ("gap_two_pools", 7364),
    ],
)
def test_parameters_of_the_variations_of_gap(variation, count):
    shapes = shapes_of(variation)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    without = ("gap_without_norm", "gap_group_norm", "gap_layer_norm")
    assert ("batch_stats" in shapes) == (variation not in without)


def test_variations_of_gap_differ_in_one_thing():
    def kinds(name):
        layers = create_model(name).layers()
        return [getattr(layer, "__name__", type(layer).__name__) for layer in layers]

    gap = kinds("gap")
    assert kinds("gap_without_norm") == [kind for kind in gap if kind != "BatchNorm"]
    for name, norm in (("group", "GroupNorm"), ("layer", "GroupNorm"), ("ghost", "GhostNorm")):
        expected = [norm if kind == "BatchNorm" else kind for kind in gap]
        assert kinds(f"gap_{name}_norm") == expected
    pool = gap.index("global_avg_pool")
    assert gap[pool:] == ["global_avg_pool", "Conv", "relu", "BatchNorm", "Dropout", "Conv"]
    late = [*gap[:pool], "Conv", "relu", "BatchNorm", "Dropout", "global_avg_pool", "Conv"]
    assert kinds("gap_late_pool") == late
    second = [*gap[:pool], *gap[pool + 1 :]]
    second.insert(gap.index("max_pool") + 9, "max_pool")
    assert kinds("gap_two_pools") == second
    assert kinds("gap_wide").count("Conv") == gap.count("Conv") - 2
