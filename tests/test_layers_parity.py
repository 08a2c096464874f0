"""Layers compute the outputs and gradients of PyTorch's, in float32."""

import jax
import numpy as np
import pytest

from jaxmnist.models import layers
from jaxmnist.models.convolution import retile
from tests.conftest import drawn

torch = pytest.importorskip("torch")
F = torch.nn.functional

pytestmark = pytest.mark.slow

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def activations(images, tile=1):
    """PyTorch's `[N, C, H, W]` as activations inside the networks."""
    return retile(images.transpose(1, 2, 3, 0)[:, None, None], tile)


def plain(x):
    """Activations as `[N, C, H, W]`."""
    return retile(x, 1)[:, 0, 0].transpose(3, 0, 1, 2)


def check(ours, theirs, *operands):
    """The output, and the gradient of a weighted sum of it for each operand."""
    y, pull = jax.vjp(jax.jit(ours), *operands)
    weights = drawn("weights", y.shape)
    tensors = [torch.tensor(operand, requires_grad=True) for operand in operands]
    expected = theirs(*tensors)
    expected.backward(torch.tensor(weights))
    np.testing.assert_allclose(y, expected.detach(), **TOLERANCE)
    for gradient, tensor in zip(pull(weights), tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad, **TOLERANCE)


@pytest.mark.parametrize("platform", ["cpu", "gpu"], ids=["matrix", "native"])
@pytest.mark.parametrize("depthwise", [False, True], ids=["all channels", "depthwise"])
@pytest.mark.parametrize(
    ("size", "stride", "padding", "side"),
    [
        (3, 1, 0, 8),
        (3, 1, 1, 7),
        (3, 2, 0, 8),  # a column is left over
        (3, 2, 1, 9),
        (1, 2, 0, 7),
        (1, 1, 1, 5),
        (4, 3, 2, 10),
        (2, 3, 0, 9),  # windows with a gap between them
    ],
)
def test_convolution(size, stride, padding, side, depthwise, platform):
    channels, features = 3, 3 if depthwise else 4
    kind = layers.DepthwiseConv if depthwise else layers.Conv
    options = {"platform": platform} | ({} if depthwise else {"features": features})
    conv = kind(**options, kernel_size=size, padding=padding, use_bias=True, stride=stride)

    def ours(images, kernel, bias):
        params = {"kernel": kernel, "bias": bias}
        return plain(conv.apply({"params": params}, activations(images)))

    def theirs(images, kernel, bias):
        groups = channels if depthwise else 1
        return F.conv2d(images, kernel.permute(3, 2, 0, 1), bias, stride, padding, groups=groups)

    check(
        ours,
        theirs,
        drawn("images", (2, channels, side, side)),
        drawn("kernel", (size, size, 1 if depthwise else channels, features)),
        drawn("bias", (features,)),
    )


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("groups", [1, 2, 6], ids=["layer norm", "group norm", "instance norm"])
def test_group_norm(groups, tile):
    def ours(images, scale, bias):
        params = {"scale": scale, "bias": bias}
        norm = layers.GroupNorm(groups)
        return plain(norm.apply({"params": params}, activations(images, tile)))

    def theirs(images, scale, bias):
        return F.group_norm(images, groups, scale, bias)

    images = 3 + drawn("images", (3, 6, 4, 4), -2, 2)
    check(ours, theirs, images, drawn("scale", (6,)), drawn("bias", (6,)))


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("splits", [1, 2, 4])
def test_ghost_norm_in_training(splits, tile):
    """Of each part, image n in part n mod `splits`, with the means of their running statistics."""
    before = {"mean": drawn("mean", (3,)), "var": drawn("var", (3,), 0.5, 1.5)}
    images = 3 + drawn("images", (8, 3, 4, 4), -2, 2)
    scale, bias = drawn("scale", (3,)), drawn("bias", (3,))

    def train(images, scale, bias):
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": before}
        norm, x = layers.GhostNorm(splits=splits), activations(images, tile)
        return norm.apply(variables, x, train=True, mutable=["batch_stats"])

    parts = [{key: torch.tensor(value) for key, value in before.items()} for _ in range(splits)]

    def theirs(images, scale, bias):
        outputs = [
            F.batch_norm(images[k::splits], *part.values(), scale, bias, training=True)
            for k, part in enumerate(parts)
        ]
        return torch.stack(outputs, 1).flatten(0, 1)

    check(lambda *operands: plain(train(*operands)[0]), theirs, images, scale, bias)
    _, updates = train(images, scale, bias)
    for key, found in updates["batch_stats"].items():
        expected = np.mean([part[key] for part in parts], axis=0)
        np.testing.assert_allclose(found, expected, **TOLERANCE)


@pytest.mark.parametrize("tile", [1, 2])
def test_residual_addition(tile):
    conv = layers.Conv(3, padding=1)

    def ours(images, kernel):
        x = activations(images, tile)
        return plain(layers.add(conv.apply({"params": {"kernel": kernel}}, x), layers.save(x)))

    def theirs(images, kernel):
        return images + F.conv2d(images, kernel.permute(3, 2, 0, 1), padding=1)

    check(ours, theirs, drawn("images", (2, 3, 6, 6)), drawn("kernel", (3, 3, 3, 3)))


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("levels", [1000, 2], ids=["one largest pixel", "several"])
def test_global_max_pooling(levels, tile):
    def ours(images):
        return plain(layers.global_max_pool(activations(images, tile)))

    images = np.round(drawn("images", (4, 3, 6, 6)) * levels)
    check(ours, lambda images: F.max_pool2d(images, 6), images)
