import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from jaxmnist import augment
from tests.conftest import golden

COUNT = 20_000


@pytest.fixture(scope="module")
def expected():
    return golden("augment")


@pytest.fixture(scope="module")
def given_parameters(expected):
    rotation, angle, tx, ty, scale, shear, brightness, contrast = (
        jnp.asarray(expected[name], jnp.float32)
        for name in ("rotation", "angle", "tx", "ty", "scale", "shear", "brightness", "contrast")
    )
    moves = augment.Affine(angle, jnp.stack([tx, ty], axis=1), scale, shear)
    light = augment.Light(brightness, contrast, jnp.ones(len(tx), bool))
    return augment.Parameters(rotation, moves, light)


def still(count):
    """Affine maps that change nothing."""
    return augment.Affine(
        jnp.zeros(count), jnp.zeros((count, 2)), jnp.ones(count), jnp.zeros(count)
    )


def rotate(images, p):
    return augment.rotate(images, p.rotation)


def affine(images, p):
    return augment.affine(images, *p.affine)


def brighten(images, p):
    return augment.adjust_brightness(images, p.light.brightness)


def stretch(images, p):
    return augment.adjust_contrast(images, p.light.contrast)


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((rotate,), "rotated"),
        ((affine,), "affine"),
        ((rotate, affine), "rotated_then_affine"),
        ((brighten, stretch), "brightness_contrast"),
        ((stretch, brighten), "contrast_brightness"),
        ((augment.AUGMENTATIONS["rotation"].apply,), "rotated"),
        ((augment.AUGMENTATIONS["affine"].apply,), "affine"),
        ((augment.AUGMENTATIONS["jitter"].apply,), "brightness_contrast"),
    ],
)
def test_equals_torchvision(expected, given_parameters, parts, name):
    images = expected["images"]
    for part in parts:
        images = part(images, given_parameters)
    np.testing.assert_array_equal(images, expected[name])


@pytest.mark.parametrize("brightness_first", [True, False])
def test_the_whole_is_its_parts_in_order(expected, given_parameters, brightness_first):
    p = given_parameters
    first = jnp.full(len(p.rotation), brightness_first)
    p = p._replace(light=p.light._replace(brightness_first=first))
    images = jnp.asarray(expected["rotated_then_affine"])
    for part in (brighten, stretch) if brightness_first else (stretch, brighten):
        images = part(images, p)
    ours = jax.jit(augment.AUGMENTATIONS["notebook"].apply)(expected["images"], p)
    np.testing.assert_array_equal(ours, images)


def test_augment_applies_what_it_draws(expected):
    images, key = jnp.asarray(expected["images"]), jax.random.key(3)
    ours = augment.augment(key, images)
    chex.assert_shape(ours, (len(images), 28, 28))
    chex.assert_type(ours, jnp.uint8)
    drawn = augment.draw_parameters(key, len(images))
    chex.assert_trees_all_equal(ours, augment.apply_parameters(images, drawn))
    assert (ours != augment.augment(jax.random.key(4), images)).any()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("rotation", -6, 6),
        ("angle", -7, 7),
        ("scale", 0.8, 1.2),
        ("shear", -10, 10),
        ("brightness", 0.6, 1.4),
        ("contrast", 0.6, 1.4),
    ],
)
def test_drawn_parameters_are_uniform(name, low, high):
    rotation, moves, light = augment.draw_parameters(jax.random.key(0), COUNT)
    drawn = {"rotation": rotation, **moves._asdict(), **light._asdict()}
    values = np.asarray(drawn[name])
    assert values.min() >= low
    assert values.max() <= high
    tenths, _ = np.histogram(values, bins=10, range=(low, high))
    np.testing.assert_allclose(tenths / COUNT, 0.1, atol=0.01)


def test_drawn_translations_are_rounded():
    # round(U(-2.8, 2.8)): 0, 1 and 2 pixels have a width of 1, 3 pixels one of 0.3, of 5.6.
    values = np.asarray(augment.draw_parameters(jax.random.key(0), COUNT).affine.translate)
    chex.assert_shape(values, (COUNT, 2))
    for axis in range(2):
        found, counts = np.unique(values[:, axis], return_counts=True)
        assert found.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        widths = np.array([0.3, 1, 1, 1, 1, 1, 0.3]) / 5.6
        np.testing.assert_allclose(counts / COUNT, widths, atol=0.01)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.03


def test_jitter_comes_in_either_order_equally_often_and_parameters_are_independent():
    p = augment.draw_parameters(jax.random.key(0), COUNT)
    assert abs(float(p.light.brightness_first.mean()) - 0.5) < 0.02
    leaves = jax.tree.leaves(p)
    columns = [c for t in leaves for c in np.asarray(t, np.float64).reshape(COUNT, -1).T]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.04


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_doing_nothing_changes_nothing(seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    light = augment.Light(jnp.ones(2), jnp.ones(2), jnp.array([True, False]))
    nothing = augment.Parameters(jnp.zeros(2), still(2), light)
    chex.assert_trees_all_equal(np.asarray(augment.apply_parameters(images, nothing)), images)


def test_worked_by_hand():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 3, 5] = 100
    shifted = augment.affine(image, *still(1)._replace(translate=jnp.array([[2.0, -1.0]])))
    assert np.argwhere(shifted[0]).tolist() == [[2, 7]]
    # A quarter turn counter-clockwise takes row 3, column 5 to row 27 - 5, column 3.
    turned = augment.rotate(image, jnp.array([90.0]))
    assert int(turned[0, 22, 3]) == 100
    # The mean of 100 / 784 rounds to 0, so contrast 1.5 is 150; brightness 0.35 is 35.0.
    assert int(augment.adjust_contrast(image, jnp.array([1.5]))[0, 3, 5]) == 150
    assert int(augment.adjust_brightness(image, jnp.array([0.355]))[0, 3, 5]) == 35
    assert int(augment.adjust_brightness(image, jnp.array([3.0]))[0, 3, 5]) == 255


def test_outside_is_1_for_rotation_and_0_for_affine():
    white = np.full((1, 28, 28), 200, np.uint8)
    assert int(augment.rotate(white, jnp.array([45.0]))[0, 0, 0]) == 1
    turned = augment.affine(white, *still(1)._replace(angle=jnp.array([45.0])))
    assert int(turned[0, 0, 0]) == 0


@pytest.fixture(scope="module")
def maps():
    return augment.draw_affine(jax.random.key(0), 64)


def test_bilinear_equals_scipy(expected, maps):
    """What scipy makes of the inverse map in floating point, but for its 256 steps."""
    images = expected["images"][:64]
    ours = np.asarray(augment.bilinear(images, maps))
    rows, columns = np.indices((28, 28)) + 0.5
    for image, found, angle, shift, scale, shear in zip(images, ours, *maps, strict=True):
        r, s = np.deg2rad(float(angle)), np.deg2rad(float(shear))
        # torchvision: rotation by r after shear by s, then scale, about the centre.
        forward = scale * np.array(
            [
                [np.cos(r), -np.cos(r) * np.tan(s) - np.sin(r)],
                [np.sin(r), -np.sin(r) * np.tan(s) + np.cos(r)],
            ]
        )
        offsets = np.stack([columns - 14 - shift[0], rows - 14 - shift[1]]).reshape(2, -1)
        x, y = np.linalg.solve(forward, offsets) + 14 - 0.5
        reference = ndimage.map_coordinates(
            image.astype(float), [y, x], order=1, mode="grid-constant", cval=0
        )
        np.testing.assert_allclose(found.ravel(), reference, atol=3)
        assert np.abs(found.ravel() - reference).mean() < 0.5


def test_bilinear_with_nothing_to_do_is_the_image(expected):
    images = expected["images"]
    np.testing.assert_array_equal(augment.bilinear(images, still(len(images))), images)


def test_bilinear_shifts_by_halves(expected):
    images = expected["images"]
    half = still(len(images))._replace(translate=jnp.tile(jnp.array([0.5, 0.0]), (len(images), 1)))
    wide = np.pad(images.astype(float), ((0, 0), (0, 0), (1, 0)))
    between = (wide[:, :, :-1] + wide[:, :, 1:]) / 2
    np.testing.assert_array_equal(augment.bilinear(images, half), between)


def test_light_falls_on_the_mapped_image(expected):
    """A shift by a pixel, the nearest of the notebooks' maps and a bilinear one do the same."""
    images = expected["images"]
    light = augment.draw_parameters(jax.random.key(2), len(images)).light
    shift = still(len(images))._replace(translate=jnp.tile(jnp.array([1.0, 0.0]), (len(images), 1)))
    lit = augment.bilinear_and_light(images, (shift, light))
    assert lit.dtype == jnp.uint8
    plain = augment.Parameters(jnp.zeros(len(images)), shift, light)
    np.testing.assert_array_equal(lit, augment.apply_parameters(images, plain))


def test_maps_and_light_are_drawn_apart():
    maps, light = augment.draw_affine_and_light(jax.random.key(1), COUNT)
    correlation = np.corrcoef(maps.scale, light.brightness)[0, 1]
    assert abs(correlation) < 0.05
    assert 0.6 <= float(light.contrast.min()) < 0.61


@pytest.mark.parametrize(
    ("name", "strength"), [("bilinear", 1.0), ("weak_bilinear", 0.7), ("strong_bilinear", 1.3)]
)
def test_affine_maps_are_drawn_from_their_ranges(name, strength):
    drawn = augment.AUGMENTATIONS[name].draw(jax.random.key(1), COUNT)
    chex.assert_shape(drawn.translate, (COUNT, 2))
    for values, middle, reach in (
        (drawn.angle, 0, 13),
        (drawn.translate, 0, 2.8),
        (drawn.scale, 1, 0.2),
        (drawn.shear, 0, 10),
    ):
        low, high = middle - strength * reach, middle + strength * reach
        assert low <= float(values.min()) < low + 0.01 * reach
        assert high - 0.01 * reach < float(values.max()) <= high
    assert (drawn.translate % 1 != 0).any()  # not whole pixels
