"""The plots of a drill-down show its results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmnist import augment, optim
from jaxmnist.analysis import results, stats
from jaxmnist.analysis.plots import drilldown
from tests.conftest import drawn
from tests.test_results import write_seven


@pytest.fixture
def networks(tmp_path):
    file = tmp_path / "results.json"
    write_seven(file, {"skeleton": 1})
    return results.seven_variants(results.read(file))


@pytest.fixture
def images():
    return drawn("images/plots", (12, 28, 28), 0, 255).astype(np.uint8)


def points(axes, marker):
    """Positions of the markers of a kind."""
    lines = [line for line in axes.lines if line.get_marker() == marker and len(line.get_xdata())]
    return [(x, y) for line in lines for x, y in zip(*line.get_data(), strict=True)]


def intervals(axes):
    return [segment for lines in axes.collections for segment in lines.get_segments()]


@pytest.mark.slow
def test_plots_are_reproducible_and_contain_their_source(networks, images, tmp_path):
    drilldown.draw_all(networks, images, tmp_path / "figures", "results.json 1234")
    files = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    names = ("accuracy", "curves", "train-test-gap", "cost", "one-cycle", "augmentation")
    assert set(files) == {f"{name}.svg" for name in names}
    assert all(b"results.json 1234" in content for content in files.values())
    # The same results give the same files, so that a difference in them means something.
    drilldown.draw_all(networks, images, tmp_path / "figures", "results.json 1234")
    again = {file.name: file.read_bytes() for file in (tmp_path / "figures").iterdir()}
    assert {name for name in files if again[name] != files[name]} == set()


def test_accuracy_has_a_dot_per_seed_and_the_interval(networks):
    (axes,) = drilldown.accuracy(networks).axes
    values = [y for _, y in points(axes, "o")]
    assert values == [
        v for network in networks for v in network.by_seed("final_test_accuracy").values()
    ]
    spread = stats.summarize(list(networks[-1].by_seed("final_test_accuracy").values()))
    assert points(axes, "s")[-1] == (6.18, spread.mean)
    np.testing.assert_allclose(intervals(axes)[-1], [(6.18, spread.low), (6.18, spread.high)])
    assert len(intervals(axes)) == 6  # one seed has none
    assert axes.get_xticklabels()[0].get_text() == "skeleton\nn = 1"


def test_published_accuracies_are_crosses(networks):
    whole = [
        network._replace(runs=[{**run, "config": {**run["config"], "epochs": epochs}}])
        for network, epochs in zip(networks, (19, *[15] * 6), strict=True)
        for run in network.runs[:1]
    ]
    best = [99.28, 98.23, 98.80, 98.52, 99.21, 99.39, 99.42]
    (axes,) = drilldown.accuracy(whole).axes
    assert [y for _, y in points(axes, "x")] == best
    small, large, _ = drilldown.cost(whole).axes
    assert [y for _, y in points(small, "x")] == best[1:]
    assert points(large, "x") == [(6379786, 99.28)]
    assert points(drilldown.accuracy(networks).axes[0], "x") == []  # of a trial


def test_curves_are_errors_with_a_band(networks):
    axes = drilldown.curves(networks).axes[6]
    train, test = axes.lines
    np.testing.assert_allclose(train.get_ydata(), [2.0, 1.9])
    np.testing.assert_allclose(test.get_ydata(), [2.0, 1.37])
    band = axes.collections[1].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1.34, 2.0))
    assert axes.get_title() == "gap, n = 2"


def test_the_gap_is_train_less_test(networks):
    (axes,) = drilldown.train_test_gap(networks).axes
    assert [y for _, y in points(axes, "o")][-2:] == pytest.approx([-0.5, -0.56])


def test_cost_is_parameters_and_time(networks):
    small, large, by_time = drilldown.cost(networks).axes
    assert points(small, "s")[-1] == (7364, pytest.approx(98.63))
    assert [x for x, _ in points(large, "s")] == [6379786]
    assert points(by_time, "s")[-1] == pytest.approx((7.1, 98.63))  # two epochs of 3.55 s
    assert {text.get_text() for text in by_time.texts} == {network.name for network in networks}


def test_the_schedule_is_the_one_that_trains():
    rate, momentum = (axes.lines[0].get_ydata() for axes in drilldown.one_cycle(15).axes)
    expected = optim.one_cycle(0.015, 15 * 468)
    for step in (0, 2104, 5000, 7019):
        assert rate[step] == pytest.approx(float(expected.learning_rate(step)))
        assert momentum[step] == pytest.approx(float(expected.momentum(step)))


def test_augmented_digits_follow_the_originals(images):
    panels = [axes.images[0].get_array() for axes in drilldown.augmented(images).axes]
    assert len(panels) == 60
    np.testing.assert_array_equal(panels[:10], images[:10])
    keys = jax.random.split(jax.random.key(1), 5)
    for row, key in enumerate(keys, start=1):
        expected = augment.augment(key, jnp.asarray(images[:10]))
        np.testing.assert_array_equal(panels[10 * row : 10 * row + 10], expected)
