"""Networks as text: grammar, shapes, errors, and equality with the seven variants."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxmnist import VARIANTS, ConfigError, TrainConfig, create_model
from jaxmnist.models import model_of
from jaxmnist.models.description import describe, receptive_fields, seen, tabulate
from jaxmnist.network_text import NetworkError, canonical, parse, with_shapes
from jaxmnist.state import jit_once
from tests.test_description import PARAMETERS

CONV_8, CONV_10, CONV_16, CONV_1X1 = (
    f"conv {layer} / relu / norm / drop" for layer in ("8", "10", "16", "8 1x1")
)
TEXTS = {
    "skeleton": "conv 32 pad 1 bias / relu / conv 64 pad 1 bias / relu / pool / "
    "conv 128 pad 1 bias / relu / conv 256 pad 1 bias / relu / pool / "
    "conv 512 bias / relu / conv 1024 bias / relu / conv 10 bias",
    "less_params": "conv 8 / relu / conv 16 / relu / pool / conv 8 1x1 / relu / conv 10 / relu / "
    "conv 10 / relu / conv 16 / relu / conv 10 1x1 / mean",
    "batch_norm": "conv 8 / relu / conv 16 / relu / norm / pool / conv 8 1x1 / norm / relu / "
    "conv 10 / relu / conv 10 / relu / conv 16 / relu / norm / conv 10 1x1 / mean",
    "dropout": f"{CONV_8} / {CONV_16} / pool / {CONV_1X1} / {CONV_10} / {CONV_10} / {CONV_16} / "
    "conv 10 1x1 / mean",
    "fc_layer": f"{CONV_8} / {CONV_16} / pool / {CONV_1X1} / {CONV_10} / {CONV_16} / {CONV_16} / "
    "mean / conv 10 1x1",
    "gap": """
        conv 4
        relu
        norm
        conv 8 / relu / norm / drop          # a block on one line
        pool
        conv 10 1x1 / relu / norm / drop
        conv 16 / relu / norm / drop
        conv 16 / relu / norm / drop
        conv 18 / relu / norm / drop
        mean
        conv 16 1x1 / relu / norm / drop
        conv 10 1x1
    """,
}
TEXTS["augmentation"] = TEXTS["fc_layer"]
EVERY_KIND = (
    "conv 6 / relu / norm / drop 0.1 / pool / save / depthwise pad 1 bias / layer_norm / relu / "
    "conv 6 1x1 / ghost_norm 2 / add / conv 8 stride 2 / group_norm 4 / drop / conv 10 1x1 / max"
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_variants_as_text_have_the_same_parameters_to_the_bit(variant):
    own = TrainConfig("mine", network=TEXTS[variant], dropout=create_model(variant).dropout_rate)
    images = jnp.zeros((1, 28, 28, 1))
    if variant == "skeleton":  # its 6.4 million random numbers take seconds
        shapes = [
            jax.eval_shape(model.init, jax.random.key(0), images)
            for model in (create_model(variant), model_of(own))
        ]
        chex.assert_trees_all_equal(*shapes)
    else:
        init = [jit_once(model.init) for model in (create_model(variant), model_of(own))]
        chex.assert_trees_all_equal(*(each(jax.random.key(7), images) for each in init))
    without_dropout_rates = [
        [{**layer, "rate": None} for layer in describe(model)]
        for model in (create_model(variant), model_of(own))
    ]
    assert without_dropout_rates[0] == without_dropout_rates[1]


def test_shapes_and_sums():
    layers = with_shapes(parse(EVERY_KIND))
    shapes = [(layer["kind"], layer["side"], layer["features"]) for layer in layers]
    assert shapes == [
        *[("conv", 26, 6), ("relu", 26, 6), ("norm", 26, 6), ("dropout", 26, 6)],
        *[("max_pool", 13, 6), ("conv", 13, 6), ("group_norm", 13, 6), ("relu", 13, 6)],
        *[("conv", 13, 6), ("ghost_norm", 13, 6), ("add", 13, 6)],
        *[("conv", 6, 8), ("group_norm", 6, 8), ("dropout", 6, 8)],
        *[("conv", 6, 10), ("max", 1, 10)],
    ]
    assert layers[10]["source"] == 4  # the output of the pooling
    rows = tabulate(describe(model_of(TrainConfig(network=EVERY_KIND))))
    parameters = {row["layer"]: row["parameters"] for row in rows if row["parameters"]}
    assert parameters == {
        "conv0": 54, "norm0": 12, "conv1": 60, "norm1": 12, "conv2": 36, "norm2": 12,
        "conv3": 432, "norm3": 16, "conv4": 80,
    }  # fmt: skip
    # One product and one sum for each weight and output pixel; the depthwise layer has 9 a pixel.
    assert rows[5]["mflop"] == pytest.approx(2 * 9 * 6 * 13 * 13 / 1e6)


def test_an_add_belongs_to_the_last_save_that_is_left():
    layers = with_shapes(parse("conv 10 pad 1 / save / relu / save / norm / add / add / mean"))
    sources = [layer["source"] for layer in layers if layer["kind"] == "add"]
    assert [layers[source]["kind"] for source in sources] == ["relu", "conv"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_table_sums_up_to_the_published_parameters(variant):
    rows = tabulate(describe(create_model(variant)))
    assert sum(row["parameters"] for row in rows) == PARAMETERS[variant]


def test_receptive_fields_by_hand():
    """gap: 3x3, 3x3, pooling, 1x1, 3x3, 3x3, 3x3, mean of 6x6, as the course calculates them."""
    layers = describe(create_model("gap"))
    fields = dict(zip([layer["name"] for layer in layers], receptive_fields(layers), strict=True))
    assert [fields[f"conv{k}"] for k in range(6)] == [
        *[(3, 1), (5, 1), (6, 2), (10, 2), (14, 2), (18, 2)]
    ]
    assert fields["max_pool0"] == (6, 2)
    assert fields["global_avg_pool0"] == (28, 2)


@pytest.mark.parametrize("name", [*VARIANTS, "every kind"])
def test_receptive_fields_are_the_extent_of_the_gradient(name):
    """Of the central unit of each layer, with positive weights, in float64."""
    config = TrainConfig(network=EVERY_KIND) if name == "every kind" else TrainConfig(name)
    model = model_of(config)
    layers = describe(model)
    # With one channel a layer, the geometry is the same and skeleton takes no time.
    thin = [{**layer, "features": 1, "inputs": 1, "groups": 1} for layer in layers]
    for index, layer in enumerate(layers):
        with jax.enable_x64(True):
            gradient = np.asarray(_gradient(thin[: index + 1], layer["side"] // 2))
        touched = np.flatnonzero(np.abs(gradient).sum(axis=1))
        assert (touched[0], touched[-1] + 1) == seen(layers, index, layer["side"] // 2), layer
    if name != "every kind":
        field, _ = receptive_fields(layers)[index]
        assert touched[-1] + 1 - touched[0] == min(field, 28)


def _gradient(layers, pixel):
    """The gradient of one pixel of the last layer, by the definition of each kind of layer."""

    def output(image):
        outputs = [image]
        for layer in layers:
            outputs.append(_apply(layer, outputs[-1], outputs))
        return outputs[-1][pixel, pixel]

    return jax.grad(output)(jnp.asarray(np.random.default_rng(0).uniform(1, 2, (28, 28))))


def _apply(layer, x, outputs):
    match layer["kind"]:
        case "conv":
            size, stride, pad = (layer[key] for key in ("kernel_size", "stride", "padding"))
            return jax.lax.conv_general_dilated(
                x[None, None], jnp.ones((1, 1, size, size)), (stride, stride), [(pad, pad)] * 2
            )[0, 0]
        case "max_pool":  # its window, whichever pixel is the largest
            side = len(x) // 2 * 2
            return x[:side, :side].reshape(side // 2, 2, side // 2, 2).sum((1, 3))
        case "mean" | "max":
            return x.sum(keepdims=True)
        case "group_norm":
            return (x - x.mean()) / x.std()
        case "add":
            return x + outputs[layer["source"] + 1]
        case _:
            return x


def test_a_network_of_every_kind_trains_and_evaluates():
    config = TrainConfig("mine", network=EVERY_KIND, batch_size=4)
    model = model_of(config)
    images = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    variables = jit_once(model.init)(jax.random.key(1), images)

    def loss(params):
        logits, updates = model.apply(
            {**variables, "params": params},
            images,
            train=True,
            rngs={"dropout": jax.random.key(2)},
            mutable=["batch_stats"],
        )
        return jnp.square(logits).sum(), updates

    gradients, updates = jit_once(jax.grad(loss, has_aux=True))(variables["params"])
    chex.assert_tree_all_finite(gradients)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))
    assert set(updates["batch_stats"]) == {"norm0", "norm2"}
    assert jit_once(model.apply)(variables, images).shape == (4, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("conv 8\nrelu\n\npool\npool\npool\npool\npool", "line 8: pool of a 1x1 image"),
        ("conv 8 / foo", "layer 2: 'foo' is not a layer: expected one of conv, depthwise, drop"),
        ("conv", "layer 1: 'conv' is not a layer: expected a number after conv"),
        ("conv 0", "0 is not a number from 1 to 9999"),
        ("conv 8 3x5", "3x5 is no option; expected such as 3x3, stride 2, pad 1 or bias"),
        ("conv 8 stride", "stride is no option"),
        ("relu 3", "'relu 3' is not a layer: expected nothing after relu"),
        ("drop 1", "1 is not a rate of at least 0 and below 1"),
        ("conv 8 29x29", "layer 1: a 29x29 convolution of a 28x28 image"),
        ("conv 9 / group_norm 2", "layer 2: 9 channels do not divide into 2 groups"),
        ("conv 8 pad 3", "layer 1: pad 3 is not smaller than the kernel, 3"),
        ("conv 8 / add", "layer 2: add without a save before it"),
        ("save / conv 10 / mean", "a save has no add after it"),
        ("save / conv 4 / add", "add of 1 channels of 28x28 to 4 of 26x26; expected the same"),
        ("conv 10", "ends with 10 channels of 26x26 pixels; expected 10 of 1x1"),
        ("  # nothing", "the network has no layers"),
    ],
)
def test_errors_name_the_place_and_the_layer(text, message):
    with pytest.raises(NetworkError, match=message):
        parse(text)
    with pytest.raises(ConfigError, match=f"network, .*{message}"):
        TrainConfig(network=text)


WORDS = ("conv 3", "conv 2 1x1", "conv 4 stride 2 pad 1", "relu", "norm", "pool", "drop 0.5")


@given(st.lists(st.sampled_from(WORDS), max_size=6))
def test_any_layers_with_a_fitting_end_are_a_network(words):
    text = " / ".join([*words, "conv 10 1x1", "mean"])
    try:
        layers = with_shapes(parse(text))
    except NetworkError:  # the image is too small for a layer
        return
    assert (layers[-1]["side"], layers[-1]["features"]) == (1, 10)
    assert canonical(text) == text
    assert [seen(layers, k, 0)[0] for k in range(len(layers))] == [0] * len(layers)


def test_the_config_keeps_the_network():
    text = "conv 10 pad 1   # wide\nrelu\n\nmean"
    config = TrainConfig(network=text)
    assert config.network == "conv 10 pad 1 / relu / mean"
    assert re.fullmatch("own-[0-9a-f]{6}", config.variant)
    assert (config.schedule, config.augment, config.dropout) == ("one_cycle", True, 0)
    assert TrainConfig.from_dict(config.to_dict()) == config
    assert TrainConfig("mine", network=text).name == "mine"
    assert TrainConfig(network="conv 10 / drop / mean").dropout == 0.05
    assert "network" not in TrainConfig("gap").to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "gap"}, "variant is 'gap'; expected a name for your own network"),
        ({"variant": "a/b"}, "variant is 'a/b'; expected a name"),
        ({"dropout": 0.1}, "has no dropout layers; leave --dropout out, or add a drop layer"),
        ({"network": 8}, "network is 8; expected text"),
        ({"network": "conv 10 / mean / norm", "batch_size": 1}, "normalises single numbers"),
        ({"network": "conv 10 / ghost_norm 3 / mean"}, "use a multiple of 3"),
        (
            {"network": "conv 10 / mean / ghost_norm 128"},
            "layer 3 of the network, ghost_norm 128, normalises single numbers; use at least 256",
        ),
    ],
)
def test_values_that_do_not_fit_the_network(fields, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"network": "conv 10 / mean", **fields})
