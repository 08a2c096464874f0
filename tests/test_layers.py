import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.random import threefry_2x32

import jaxmnist
from jaxmnist.models import layers
from jaxmnist.models.convolution import (
    convolve,
    image_size,
    matmul_conv,
    native_conv,
    retile,
)
from jaxmnist.models.random_bits import random_words

TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def normal(seed, *shape):
    # By NumPy: what JAX draws with would be compiled for every shape.
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def plain(images):
    """`[C, H, W, N]` as layers take it, in tiles of one pixel."""
    return images[:, None, None]


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(
    ("kernel_size", "channels", "features", "size"),
    [
        (3, 1, 4, 28),
        (3, 5, 8, 7),
        (1, 6, 3, 9),
        (3, 16, 2, 3),
        (3, 12, 12, 8),
        (5, 2, 3, 10),
        (3, 40, 3, 6),
    ],
)
def test_matmul_and_native_convolution_agree(kernel_size, channels, features, size, padding):
    x = plain(normal(0, channels, size, size, 6))
    kernel = normal(1, kernel_size, kernel_size, channels, features) / 10

    @functools.partial(jax.jit, static_argnums=0)
    def value_and_grads(conv):
        def weighted_sum(x, kernel):
            y = retile(conv(x, kernel, padding), 1)
            return jnp.sum(y * normal(2, *y.shape)) / 10, y

        (_, y), grads = jax.value_and_grad(weighted_sum, (0, 1), has_aux=True)(x, kernel)
        return y, grads

    ours, native = value_and_grads(matmul_conv), value_and_grads(native_conv)
    chex.assert_trees_all_close(ours, native, **TOLERANCE)
    assert ours[0].shape == (features, 1, 1, *[size + 2 * padding - kernel_size + 1] * 2, 6)


def test_tiled_images_are_convolved_as_plain_ones():
    images = normal(0, 3, 10, 10, 4)
    kernel = normal(1, 3, 3, 3, 8)
    x = retile(plain(images), 2)
    chex.assert_shape(matmul_conv(x, kernel), (8, 2, 2, 4, 4, 4))
    for method in (matmul_conv, native_conv):
        from_tiles, from_plain = (retile(method(i, kernel), 1) for i in (x, plain(images)))
        chex.assert_trees_all_close(from_tiles, from_plain, **TOLERANCE)


def test_tiles_worked_by_hand():
    x = plain(jnp.arange(16.0).reshape(1, 4, 4, 1))
    tiles = retile(x, 2)
    assert tiles[0, 0, 0, :, :, 0].tolist() == [[0, 2], [8, 10]]  # upper left pixels
    assert tiles[0, 1, 0, :, :, 0].tolist() == [[4, 6], [12, 14]]  # lower left ones
    assert image_size(tiles) == (4, 4)
    chex.assert_trees_all_equal(retile(tiles, 1), x)


@pytest.mark.parametrize(
    ("channels", "features", "size", "tile"),
    [(8, 16, 26, 2), (16, 16, 8, 1), (8, 16, 25, 1), (32, 64, 26, 2), (32, 64, 25, 1)],
    ids=["few channels", "many channels", "odd size", "Winograd", "Winograd, odd size"],
)
def test_where_tiles_pay(channels, features, size, tile):
    x = jnp.zeros((channels, 1, 1, size, size, 2))
    y = jax.eval_shape(matmul_conv, x, jnp.zeros((3, 3, channels, features)))
    assert y.shape[1:3] == (tile, tile)


@pytest.mark.parametrize(
    ("channels", "size", "products"),
    [(31, 8, 2), (32, 8, 16), (32, 7, 2)],
    ids=["few channels", "Winograd", "odd size"],
)
def test_where_winograds_method_pays(channels, size, products):
    x, kernel = jnp.zeros((channels, 1, 1, size, size, 2)), jnp.zeros((3, 3, channels, 8))
    # A function of its own: traces are cached by function.
    jaxpr = jax.make_jaxpr(lambda *operands: matmul_conv(*operands))(x, kernel)
    names = [equation.primitive.name for equation in jaxpr.eqns]
    assert names.count("dot_general") == products


def test_convolution_worked_by_hand():
    # [[1, 2, 3], [4, 5, 6], [7, 8, 9]] with [[1, 0], [0, -1]]: each pixel less its lower right.
    x = plain(jnp.arange(1.0, 10.0).reshape(1, 3, 3, 1))
    kernel = jnp.array([[1.0, 0.0], [0.0, -1.0]])[:, :, None, None]
    expected = jnp.full((1, 1, 1, 2, 2, 1), -4.0)
    chex.assert_trees_all_close(matmul_conv(x, kernel), expected)
    chex.assert_trees_all_close(native_conv(x, kernel), expected)


@pytest.mark.parametrize(
    ("platform", "native"), [("cpu", False), ("gpu", True), ("tpu", True), (None, False)]
)
def test_each_platform_gets_its_convolution(platform, native):
    network = jaxmnist.create_model("gap").clone(platform=platform)
    variables = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    jaxpr = jax.make_jaxpr(network.apply)(variables, jnp.zeros((2, 28, 28, 1)))
    primitives = {equation.primitive.name for equation in jaxpr.eqns}
    assert ("conv_general_dilated" in primitives) == native
    assert ("dot_general" in primitives) != native


@pytest.mark.parametrize(("padding", "stride"), [(0, 1), (1, 2)])
def test_each_platform_convolves_each_channel_on_its_own(padding, stride):
    x, kernel = plain(normal(0, 2, 5, 5, 3)), normal(1, 3, 3, 1, 2)
    ours, native = (
        functools.partial(convolve, padding=padding, stride=stride, platform=platform)
        for platform in ("cpu", "gpu")
    )
    chex.assert_trees_all_close(ours(x, kernel), native(x, kernel), **TOLERANCE)
    channel = [matmul_conv(x[i : i + 1], kernel[..., i : i + 1], padding, stride) for i in (0, 1)]
    chex.assert_trees_all_close(ours(x, kernel), jnp.concatenate(channel), **TOLERANCE)
    assert "conv_general_dilated" in str(jax.make_jaxpr(native)(x, kernel))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(ours)(x, kernel))


@pytest.mark.parametrize(("kernel_size", "channels"), [(3, 4), (1, 9)])
def test_initial_weights_are_torchs(kernel_size, channels):
    conv = layers.Conv(500, kernel_size, use_bias=True)
    params = conv.init(jax.random.key(0), jnp.zeros((channels, 1, 1, 5, 5, 1)))["params"]
    bound = 1 / np.sqrt(kernel_size**2 * channels)
    for leaf in params.values():
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.95 * bound
        # A uniform variable on (-b, b) has the standard deviation b / sqrt(3).
        np.testing.assert_allclose(leaf.std(), bound / np.sqrt(3), rtol=0.1)
        assert abs(leaf.mean()) < 0.1 * bound


def test_batch_norm_worked_by_hand():
    # Two channels of four values. Means 2.5 and 0, biased variances 1.25 and 4,
    # unbiased ones 5/3 and 16/3.
    x = jnp.array([[1.0, 2.0, 3.0, 4.0], [-2.0, 2.0, -2.0, 2.0]]).reshape(2, 1, 1, 2, 1, 2)
    norm = layers.BatchNorm()
    variables = norm.init(jax.random.key(0), x)
    y, updates = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    expected = jnp.array(
        [
            (np.array([1.0, 2.0, 3.0, 4.0]) - 2.5) / np.sqrt(1.25 + 1e-5),
            np.array([-2.0, 2.0, -2.0, 2.0]) / np.sqrt(4 + 1e-5),
        ]
    ).reshape(2, 1, 1, 2, 1, 2)
    chex.assert_trees_all_close(y, expected, atol=1e-6)
    chex.assert_trees_all_close(
        updates["batch_stats"],
        {
            "mean": jnp.array([0.25, 0.0]),
            "var": jnp.array([0.9 + 0.1 * 5 / 3, 0.9 + 0.1 * 16 / 3]),
        },
        atol=1e-6,
    )


def test_batch_norm_evaluates_with_running_statistics():
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([3.0]), "var": jnp.array([4.0 - 1e-5])},
    }
    x = jnp.array([3.0, 5.0, 1.0]).reshape(1, 1, 1, 1, 1, 3)
    y = layers.BatchNorm().apply(variables, x, train=False)
    chex.assert_trees_all_close(y, jnp.array([1.0, 3.0, -1.0]).reshape(1, 1, 1, 1, 1, 3), atol=1e-6)


def test_initialising_leaves_the_running_statistics_alone():
    variables = layers.BatchNorm().init(
        jax.random.key(0), normal(0, 3, 1, 1, 4, 4, 5) + 7, train=True
    )
    chex.assert_trees_all_close(
        variables["batch_stats"], {"mean": jnp.zeros(3), "var": jnp.ones(3)}
    )


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_dropout_drops_at_its_rate_and_scales_the_rest(rate):
    x = jnp.ones((5, 2, 2, 20, 20, 50))
    y = layers.Dropout(rate).apply({}, x, train=True, rngs={"dropout": jax.random.key(0)})
    dropped = float(jnp.mean(y == 0))
    standard_error = np.sqrt(rate * (1 - rate) / x.size)
    assert abs(dropped - rate) < 4 * standard_error + 1e-5
    chex.assert_trees_all_close(y[y != 0], jnp.full(int((y != 0).sum()), 1 / (1 - rate)))


def test_dropout_drops_each_activation_independently():
    x = jnp.ones((5, 4, 4, 10, 10, 50))
    y = layers.Dropout(0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)}) == 0
    for axis in range(6):
        for distance in (1, 2, 3):
            both = jnp.mean(y & jnp.roll(y, distance, axis))
            assert abs(float(both) - 0.25) < 0.005, (axis, distance)


def test_dropout_depends_on_its_key_alone():
    def apply(seed):
        key = jax.random.key(seed)
        return layers.Dropout(0.3).apply(
            {}, jnp.ones((3, 1, 1, 4, 4, 9)), True, rngs={"dropout": key}
        )

    chex.assert_trees_all_equal(apply(0), apply(0))
    assert (apply(0) != apply(1)).any()


@pytest.mark.parametrize(("rate", "train"), [(0.3, False), (0.0, True)])
def test_dropout_that_drops_nothing(rate, train):
    x = plain(normal(0, 2, 3, 3, 4))
    chex.assert_trees_all_equal(layers.Dropout(rate).apply({}, x, train=train), x)


@pytest.mark.parametrize("first", [0, 1000, 2**32 - 3])
def test_random_words_are_threefrys(first):
    # JAX's own generator takes the two words of each counter as the two halves of an array.
    key, counters = jax.random.key(7), jnp.uint32(first) + jnp.arange(7, dtype=jnp.uint32)
    words = threefry_2x32(jax.random.key_data(key), jnp.concatenate([counters, 0 * counters]))
    chex.assert_trees_all_equal(random_words(key, counters), (words[:7], words[7:]))


@pytest.mark.parametrize(("size", "tile"), [(4, 1), (4, 2), (5, 1)])
def test_max_pool_worked_by_hand(size, tile):
    square = jnp.array(
        [
            [1.0, 5.0, 2.0, 0.0, 9.0],
            [3.0, 4.0, 8.0, 1.0, 9.0],
            [0.0, -1.0, -5.0, -4.0, 9.0],
            [-2.0, -3.0, -7.0, -6.0, 9.0],
            [9.0, 9.0, 9.0, 9.0, 9.0],
        ]
    )[:size, :size]

    def pooled(square):
        return layers.max_pool(retile(plain(square.reshape(1, size, size, 1)), tile))

    expected = jnp.array([[5.0, 8.0], [0.0, -4.0]]).reshape(1, 1, 1, 2, 2, 1)
    chex.assert_trees_all_equal(pooled(square), expected)
    slope = jax.grad(lambda square: pooled(square).sum())(square)
    assert np.argwhere(slope).tolist() == [[0, 1], [1, 2], [2, 0], [2, 3]]


def test_among_equals_the_first_gets_the_gradient():
    slope = jax.grad(lambda x: layers.max_pool(x).sum())(jnp.zeros((1, 1, 1, 2, 2, 1)))
    assert slope.reshape(2, 2).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_global_avg_pool_worked_by_hand():
    x = plain(jnp.array([[[[1.0, 10.0], [3.0, 30.0]]]]))  # one channel, 1x2 pixels, two images
    expected = plain(jnp.array([[[[2.0, 20.0]]]]))
    chex.assert_trees_all_close(layers.global_avg_pool(x), expected)


def test_layouts():
    images = normal(0, 5, 28, 27, 3)
    chex.assert_trees_all_equal(layers.from_images(images)[2, 0, 0, 4, 6, 1], images[1, 4, 6, 2])
    logits = layers.to_logits(jnp.arange(6.0).reshape(3, 1, 1, 1, 1, 2))
    chex.assert_trees_all_equal(logits, jnp.array([[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]))
    with pytest.raises(ValueError, match="2x1 pixels; expected 1x1"):
        layers.to_logits(jnp.zeros((3, 1, 1, 2, 1, 4)))
