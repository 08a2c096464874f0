"""What networks say: of any number of images, in views, together."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest

import jaxmnist
from jaxmnist import ConfigError
from jaxmnist.data import idx
from jaxmnist.inference.predict import load_runs, load_seed, make_predict
from jaxmnist.inference.views import ensemble, with_tta
from jaxmnist.state import jit_once
from jaxmnist.steps import normalise
from tests.conftest import drawn


@pytest.fixture
def predict(small_run):
    return make_predict(small_run)


@pytest.mark.parametrize("count", [0, 1, 200, 201, 430])
def test_predicts_any_number_of_images(predict, small_run, count):
    pixels = drawn("pixels/predictions", (430, 28, 28), 0, 255).astype(np.uint8)[:count]
    mean, std = small_run.normalisation
    model = jaxmnist.create_model(small_run.config.variant)
    logits = jit_once(model.apply)(small_run.variables, normalise(pixels, mean, std))
    log_probs = predict(pixels)
    assert log_probs.shape == (count, 10)
    chex.assert_trees_all_close(log_probs, np.asarray(jax.nn.log_softmax(logits)), atol=1e-5)


def test_the_first_view_is_the_image_itself(predict, small_idx_dir):
    pixels = idx.parse_images((small_idx_dir / idx.TEST_IMAGES).read_bytes(), "test")[:20]
    alone = predict(pixels)
    chex.assert_trees_all_close(with_tta(predict, 1)(pixels), alone, atol=1e-6)
    seen = []

    def watching(images):
        seen.append(images)
        return predict(images)

    averaged = with_tta(watching, 5)(pixels)
    assert len(seen) == 5
    np.testing.assert_array_equal(seen[0], pixels)
    assert all((view != pixels).any() for view in seen[1:])
    # Small moves: a pixel or two, so that most of each bright square stays where it was.
    overlaps = [((view > 200) & (pixels > 200)).sum() / (pixels > 200).sum() for view in seen]
    assert min(overlaps) > 0.4
    expected = ensemble([predict(view) for view in seen])
    np.testing.assert_array_equal(averaged, expected)
    np.testing.assert_array_equal(averaged, with_tta(predict, 5)(pixels))


@pytest.mark.parametrize("views", [0, 1001])
def test_a_number_of_views_out_of_range(predict, views):
    with pytest.raises(ConfigError, match=f"views is {views}; expected 1 to 1000"):
        with_tta(predict, views)


def test_an_ensemble_is_the_mean_of_log_probabilities():
    first = np.log(np.array([[0.8, 0.2]]))
    second = np.log(np.array([[0.2, 0.8]]))
    half = np.exp(ensemble([first, second]))
    chex.assert_trees_all_close(half, np.array([[0.5, 0.5]]), rtol=1e-6)
    # Geometric means 0.4 and 0.3, made to add up to one.
    third = np.log(np.array([[0.2, 0.45]]))
    expected = np.array([[4 / 7, 3 / 7]])
    chex.assert_trees_all_close(np.exp(ensemble([first, third])), expected, rtol=1e-6)


def test_runs_of_one_folder(small_run, small_seeds, tmp_path):
    assert [run.path for run in load_runs(small_run.path)] == [small_run.path]
    assert [run.config.seed for run in load_runs(small_seeds.path)] == [0, 1]
    with pytest.raises(ConfigError, match=r"does not exist; expected the folder of a run"):
        load_runs(tmp_path / "none")


def test_one_seed_of_several(small_run, small_seeds):
    assert load_seed(small_run.path).config.seed == 0
    assert load_seed(small_seeds.path, 1).seed_folder == "seed1"
    with pytest.raises(ConfigError, match=r"there are several in .*; pass --seed with one of 0, 1"):
        load_seed(small_seeds.path)
    with pytest.raises(ConfigError, match=r"there is no finished seed 7 in .*pass --seed with one"):
        load_seed(small_seeds.path, 7)


def test_seeds_that_failed_are_named(small_seeds, tmp_path):
    out = tmp_path / "seeds"
    shutil.copytree(small_seeds.path, out)
    summary = {**small_seeds.summary, "failures": {"1": "the loss became nan"}}
    (out / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match=r"has seeds that failed: 1; --resume trains them again"):
        load_runs(out)
