"""The learning rate range test, on tables worked by hand and on a tiny network."""

import json

import numpy as np
import pytest

from jaxmnist import ConfigError, RunOptions, TrainConfig
from jaxmnist.analysis import lr_range

NETWORK = "conv 10 8x8 stride 4 / relu / mean"


def test_losses_are_averaged_over_neighbouring_rates():
    rates, losses = np.array([1.0, 1.4, 2.0, 3.1]), np.array([4.0, 2.0, 6.0, 8.0])
    # Neighbours are within a factor of 1.5.
    assert lr_range.smoothed(rates, losses).tolist() == [3.0, 4.0, 4.0, 8.0]
    losses[3] = np.nan
    assert np.isfinite(lr_range.smoothed(rates, losses)).tolist() == [True, True, True, False]


def test_the_interval_ends_where_the_median_loss_is_lowest():
    rates = np.array([0.01, 0.1, 1.0, 10.0])
    smooth = np.array([[2, 1.0, 0.9, np.nan], [2, 1.1, np.inf, np.nan], [2, 1.2, 1.3, np.nan]])
    assert lr_range.suggest(rates, smooth) == pytest.approx((0.01, 0.1))
    with pytest.raises(ConfigError, match="no loss is finite"):
        lr_range.suggest(rates, np.full((2, 4), np.nan))


def test_the_rate_grows_exponentially_at_the_momentum_of_the_peak():
    schedules = lr_range.make_schedules(TrainConfig("gap"), 469)
    rates = [float(schedules.learning_rate(step)) for step in (0, 234, 468)]
    assert rates == pytest.approx([1e-4, 10**-1.5, 10.0], rel=1e-5)
    assert float(schedules.momentum(7)) == pytest.approx(0.85)
    assert lr_range.make_schedules(TrainConfig("less_params"), 9).momentum(3) == 0.9


def test_the_command_measures_the_same_losses(command, small_idx_dir, tmp_path):
    words = (NETWORK, "--seeds", "2", "--dataset", "kmnist", "--idx-dir", small_idx_dir)
    status, out, err = command("lr_range", *words, "--out", tmp_path / "out")
    assert (status, err) == (0, "")
    found = json.loads((tmp_path / "out" / "lr_range.json").read_text())
    low, high = found["interval"]
    assert high / low == pytest.approx(10)
    assert f"between {low:.2g} and {high:.2g}" in out
    assert (tmp_path / "out" / "lr_range.png").stat().st_size > 5000

    config = TrainConfig.from_dict(found["config"])
    options = RunOptions(idx_dir=small_idx_dir)
    both = lr_range.measure(config, (0, 1), options)
    assert both.losses.shape == (2, 4)
    np.testing.assert_array_equal(both.losses, found["losses"])
    assert not np.array_equal(both.losses[0], both.losses[1])
    assert both.losses[0][0] == pytest.approx(np.log(10), abs=0.3)  # an untrained network
    alone = lr_range.measure(config, (1,), options)
    np.testing.assert_allclose(alone.losses[0], both.losses[1], rtol=1e-3)
