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
    names = ("rotation", "angle", "scale", "shear", "brightness", "contrast")
    values = {name: jnp.asarray(expected[name], jnp.float32) for name in names}
    translate = jnp.stack([expected["tx"], expected["ty"]], axis=1).astype(jnp.float32)
    first = jnp.ones(len(translate), bool)
    return augment.Parameters(translate=translate, brightness_first=first, **values)


def affine(images, p):
    return augment.affine(images, p.angle, p.translate, p.scale, p.shear)


def test_rotate_equals_torchvision(expected, given_parameters):
    ours = augment.rotate(expected["images"], given_parameters.rotation)
    np.testing.assert_array_equal(ours, expected["rotated"])


def test_affine_equals_torchvision(expected, given_parameters):
    np.testing.assert_array_equal(affine(expected["images"], given_parameters), expected["affine"])


def test_rotate_then_affine_equals_torchvision(expected, given_parameters):
    rotated = augment.rotate(expected["images"], given_parameters.rotation)
    both = affine(rotated, given_parameters)
    np.testing.assert_array_equal(both, expected["rotated_then_affine"])


def test_jitter_equals_torchvision(expected, given_parameters):
    p, images = given_parameters, expected["images"]
    brightness_first = augment.adjust_contrast(
        augment.adjust_brightness(images, p.brightness), p.contrast
    )
    np.testing.assert_array_equal(brightness_first, expected["brightness_contrast"])
    contrast_first = augment.adjust_brightness(
        augment.adjust_contrast(images, p.contrast), p.brightness
    )
    np.testing.assert_array_equal(contrast_first, expected["contrast_brightness"])


@pytest.mark.parametrize("brightness_first", [True, False])
def test_the_whole_is_its_parts_in_order(expected, given_parameters, brightness_first):
    count = len(expected["images"])
    p = given_parameters._replace(brightness_first=jnp.full(count, brightness_first))
    images = jnp.asarray(expected["rotated_then_affine"])
    if brightness_first:
        images = augment.adjust_contrast(
            augment.adjust_brightness(images, p.brightness), p.contrast
        )
    else:
        images = augment.adjust_brightness(
            augment.adjust_contrast(images, p.contrast), p.brightness
        )
    ours = jax.jit(augment.apply_parameters)(expected["images"], p)
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
    values = np.asarray(getattr(augment.draw_parameters(jax.random.key(0), COUNT), name))
    assert values.min() >= low
    assert values.max() <= high
    tenths, _ = np.histogram(values, bins=10, range=(low, high))
    np.testing.assert_allclose(tenths / COUNT, 0.1, atol=0.01)


def test_drawn_translations_are_rounded():
    # round(U(-2.8, 2.8)): 0, 1 and 2 pixels have a width of 1, 3 pixels one of 0.3, of 5.6.
    values = np.asarray(augment.draw_parameters(jax.random.key(0), COUNT).translate)
    chex.assert_shape(values, (COUNT, 2))
    for axis in range(2):
        found, counts = np.unique(values[:, axis], return_counts=True)
        assert found.tolist() == [-3, -2, -1, 0, 1, 2, 3]
        widths = np.array([0.3, 1, 1, 1, 1, 1, 0.3]) / 5.6
        np.testing.assert_allclose(counts / COUNT, widths, atol=0.01)
    assert abs(np.corrcoef(values.T)[0, 1]) < 0.03


def test_jitter_comes_in_either_order_equally_often_and_parameters_are_independent():
    p = augment.draw_parameters(jax.random.key(0), COUNT)
    assert abs(float(p.brightness_first.mean()) - 0.5) < 0.02
    columns = [c for t in p for c in np.asarray(t, np.float64).reshape(COUNT, -1).T]
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.04


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_doing_nothing_changes_nothing(seed):
    images = np.random.default_rng(seed).integers(0, 256, (2, 28, 28), dtype=np.uint8)
    zero, one = jnp.zeros(2), jnp.ones(2)
    nothing = augment.Parameters(
        zero, zero, jnp.zeros((2, 2)), one, zero, one, one, jnp.array([True, False])
    )
    chex.assert_trees_all_equal(np.asarray(augment.apply_parameters(images, nothing)), images)


def test_worked_by_hand():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 3, 5] = 100
    shifted = affine(
        image,
        augment.Parameters(
            *(jnp.zeros(1),) * 2, jnp.array([[2.0, -1.0]]), jnp.ones(1), *(jnp.zeros(1),) * 4
        ),
    )
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
    p = jnp.zeros(1)
    assert int(augment.affine(white, p + 45, jnp.zeros((1, 2)), p + 1, p)[0, 0, 0]) == 0


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
    still = jnp.zeros(len(images))
    nothing = augment.Affine(still, jnp.zeros((len(images), 2)), 1 + still, still)
    np.testing.assert_array_equal(augment.bilinear(images, nothing), images)


def test_bilinear_shifts_by_halves(expected):
    images = expected["images"]
    still = jnp.zeros(len(images))
    half = augment.Affine(
        still, jnp.tile(jnp.array([0.5, 0.0]), (len(images), 1)), 1 + still, still
    )
    wide = np.pad(images.astype(float), ((0, 0), (0, 0), (1, 0)))
    between = (wide[:, :, :-1] + wide[:, :, 1:]) / 2
    np.testing.assert_array_equal(augment.bilinear(images, half), between)


def test_light_falls_on_the_mapped_image(expected):
    """A shift by a pixel, the nearest of the notebooks' maps and a bilinear one do the same."""
    images = expected["images"]
    light = augment.draw_parameters(jax.random.key(2), len(images))
    still = jnp.zeros(len(images))
    shift = jnp.tile(jnp.array([1.0, 0.0]), (len(images), 1))
    moved = augment.AffineAndLight(augment.Affine(still, shift, 1 + still, still), light)
    plain = light._replace(
        rotation=still, angle=still, translate=shift, scale=1 + still, shear=still
    )
    lit = augment.bilinear_and_light(images, moved)
    assert lit.dtype == jnp.uint8
    np.testing.assert_array_equal(lit, augment.apply_parameters(images, plain))


def test_maps_and_light_are_drawn_apart():
    drawn = augment.draw_affine_and_light(jax.random.key(1), COUNT)
    correlation = np.corrcoef(drawn.affine.scale, drawn.light.brightness)[0, 1]
    assert abs(correlation) < 0.05
    assert 0.6 <= float(drawn.light.contrast.min()) < 0.61


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


def test_the_parts_of_the_notebooks_augmentation_make_the_whole(expected, given_parameters):
    images, p = expected["images"], given_parameters
    for name in ("rotation", "affine", "jitter"):
        images = augment.AUGMENTATIONS[name].apply(images, p)
    whole = augment.AUGMENTATIONS["notebook"].apply(expected["images"], p)
    np.testing.assert_array_equal(images, whole)


def test_each_part_alone(expected, given_parameters):
    images, p = expected["images"], given_parameters

    def alone(name):
        return augment.AUGMENTATIONS[name].apply(images, p)

    np.testing.assert_array_equal(alone("rotation"), expected["rotated"])
    np.testing.assert_array_equal(alone("affine"), expected["affine"])
    np.testing.assert_array_equal(alone("jitter"), expected["brightness_contrast"])
