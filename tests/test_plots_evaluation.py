"""Plots of evaluations and runs show their numbers."""

import numpy as np
import pytest

from jaxmnist.analysis import evaluation
from jaxmnist.analysis.plots import curves
from jaxmnist.analysis.plots import evaluation as plots
from tests.conftest import drawn


@pytest.fixture
def images():
    return drawn("images/mistakes", (40, 28, 28), 0, 255).astype(np.uint8)


@pytest.fixture
def evaluated():
    """40 images of a 3, of which 10 are taken for an 8, ever more confidently."""
    probabilities = np.full((40, 10), 0.01)
    probabilities[:30, 3] = 0.91
    probabilities[30:, 8] = np.linspace(0.5, 0.9, 10)
    log_probs = np.log(probabilities / probabilities.sum(axis=1, keepdims=True))
    return evaluation.evaluate(log_probs, np.full(40, 3))


def test_confusion_has_the_counts(evaluated):
    (axes,) = plots.confusion(evaluated).axes
    cells = {(text.get_position(), text.get_text()) for text in axes.texts}
    assert cells == {((3, 3), "30"), ((8, 3), "10")}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "label")


def test_reliability_is_accuracy_against_confidence(evaluated):
    above, below = plots.reliability(evaluated).axes
    filled = [one for one in evaluated.bins if one.count]
    diagonal, dots = above.lines
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 100]]
    expected = [(one.confidence, one.accuracy) for one in filled]
    np.testing.assert_allclose(dots.get_xydata(), expected)
    assert [bar.get_height() for bar in below.patches] == [one.count for one in filled]


def test_mistakes_are_shown_with_the_prediction(evaluated, images):
    panels = plots.mistakes(evaluated, images).axes
    shown = [axes for axes in panels if axes.images]
    assert len(shown) == 10
    np.testing.assert_array_equal(shown[0].images[0].get_array(), images[39])
    assert shown[0].get_title() == "3 read as 8: 91%"


def test_no_mistakes(images):
    certain = np.log(np.full((5, 10), 0.01) + 0.9 * np.eye(10)[0])
    figure = plots.mistakes(evaluation.evaluate(certain, np.zeros(5)), images)
    assert [text.get_text() for text in figure.texts] == ["no mistakes"]


def row(epoch, seed, test):
    figures = {"train_loss": 0.1, "train_accuracy": 98.0, "test_loss": 0.2}
    return {"epoch": epoch, "seed": seed, **figures, "test_accuracy": test}


def test_curves_of_several_seeds_are_a_mean_and_a_band():
    rows = [row(1, 0, 90.0), row(1, 1, 94.0), row(2, 0, 95.0), row(2, 1, 100.0)]
    error, loss = curves.curves({"seeds": rows, "$one$": rows[:1]}).axes
    _, test, _, alone = error.lines
    np.testing.assert_allclose(test.get_xydata(), [[1, 8.0], [2, (5 + 0.01) / 2]])
    band = error.collections[1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((0.01, 10.0))
    np.testing.assert_allclose(alone.get_xydata(), [[1, 10.0]])
    assert alone.get_marker() == "o"
    assert [of.get_fillstyle() for of in error.lines[2:]] == ["none", "full"]  # train and test
    names = [text.get_text() for text in error.get_legend().get_texts()]
    assert names == ["seeds, train", "seeds, test", "$one$, train", "$one$, test"]
    assert loss.lines[1].get_ydata().tolist() == [0.2, 0.2]


def test_every_run_of_many_looks_different():
    runs = {f"run{number}": [row(1, 0, 90.0), row(2, 0, 91.0)] for number in range(30)}
    error, loss = curves.curves(runs).axes
    for axes in (error, loss):
        looks = {(of.get_color(), of.get_marker(), of.get_linestyle()) for of in axes.lines}
        assert len(looks) == 60


def test_held_out_images_are_not_called_test():
    runs = {"one": [row(1, 0, 90.0)], "other": [row(1, 0, 91.0)]}
    legend = curves.curves(runs, held_out=["other"]).axes[0].get_legend()
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["one, train", "one, test", "other, train", "other, held out"]


def test_missing_values_are_not_drawn():
    rows = [{**row(1, 0, 90.0), "train_accuracy": None}, row(2, 0, 95.0)]
    assert list(curves.by_epoch(rows, "train_accuracy")) == [2]
