"""Statistics, worked by hand or read in tables."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from jaxmnist.analysis import stats

NUMBERS = st.lists(st.integers(0, 10_000), min_size=2, max_size=20)


def test_summary_worked_by_hand():
    found = stats.summarize([99.3, 99.5, 99.4])
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t: 0.975 and two degrees of freedom
    assert found == pytest.approx((3, 99.4, 0.1, 99.4 - half, 99.4 + half, 99.3, 99.5))


def test_one_seed_has_no_standard_deviation():
    assert stats.summarize([99.4]) == (1, 99.4, None, None, None, 99.4, 99.4)
    found = stats.compare({3: 99.0}, {3: 99.5, 4: 98.0})
    assert found.summary == (1, 0.5, None, None, None, 0.5, 0.5)
    assert (found.gains, found.losses, found.prob_superiority) == (1, 0, 0.5)
    assert (found.cohens_dz, found.p) == (None, None)


def test_refuses_no_seeds():
    with pytest.raises(ValueError, match="no values; expected at least one seed"):
        stats.summarize([])
    with pytest.raises(ValueError, match="no values"):
        stats.compare({0: 99.0}, {1: 99.0})


@given(NUMBERS, st.integers(-50, 50), st.integers(1, 9))
def test_summary_moves_and_scales_with_its_values(values, shift, factor):
    before = stats.summarize(values)
    after = stats.summarize([shift + factor * value for value in values])
    assert after.sd == pytest.approx(factor * before.sd)
    for name in ("mean", "low", "high", "min", "max"):
        assert getattr(after, name) == pytest.approx(shift + factor * getattr(before, name))
    assert after.min <= after.mean <= after.max


def test_comparison_worked_by_hand():
    found = stats.compare({0: 1, 1: 2, 2: 3}, {2: 3, 1: 4, 0: 2, 3: 9})  # differences 1, 2, 0
    assert (found.summary.n, found.summary.mean, found.summary.sd) == (3, 1, 1)
    assert (found.gains, found.losses, found.cohens_dz) == (2, 0, 1)
    assert found.values == [1, 2, 0]
    # Of the sums of +-1, +-2 and +-0 half are as far from 0 as 3.
    assert found.p == 0.5
    assert found.prob_superiority == 10 / 12  # of 3 x 4 pairs 9 are higher, and two equal


# Charles Darwin's 15 pairs of maize plants, eighths of an inch. Fisher counts 863 of the 32,768
# choices of signs whose sum is at least the one observed (The Design of Experiments, section 21).
MAIZE = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]


def test_fishers_example():
    assert stats.sign_flip_test(MAIZE) == 2 * 863 / 2**15


@given(st.lists(st.integers(-9, 9), min_size=2, max_size=8))
def test_p_is_the_share_of_all_sign_flips(differences):
    signs = itertools.product((-1, 1), repeat=len(differences))
    sums = [sum(s * d for s, d in zip(each, differences, strict=True)) for each in signs]
    expected = np.mean([abs(total) >= abs(sum(differences)) for total in sums])
    assert stats.sign_flip_test(differences) == expected
    # Hundredths are not exact as floating-point numbers; means that are equal still count so.
    assert stats.sign_flip_test([difference / 100 for difference in differences]) == expected


def test_differences_that_all_have_one_sign_have_the_smallest_p():
    for n in range(2, stats.MAX_EXACT + 1):
        assert stats.sign_flip_test([-0.3] * n) == 2.0 ** (1 - n)
    # One that lies far out does not hide that all are below zero, as it does in the t-test.
    scattered = [-0.58, -0.7, -0.8, -0.9, -1.0, -1.0, -1.0, -1.1, -2.0, -5.23]
    assert stats.sign_flip_test(scattered) == 2 / 2**10
    assert ttest_1samp(scattered, 0).pvalue > 0.005


def test_many_seeds_use_a_random_sample_of_the_sign_flips():
    differences = np.random.default_rng(0).normal(0.1, 0.25, stats.MAX_EXACT + 4).round(2)
    found = stats.sign_flip_test(differences)
    assert found == stats.sign_flip_test(differences)  # the same sample each time
    expected = ttest_1samp(differences, 0).pvalue
    assert 0.001 < expected < 0.2
    assert found == pytest.approx(expected, rel=0.15)


def test_equal_differences():
    # They are equal as decimals, though not as floating-point numbers.
    found = stats.compare({0: 98.17, 1: 98.24}, {0: 98.47, 1: 98.54})
    assert (found.summary.mean, found.summary.sd) == (0.3, 0)
    assert (found.gains, found.cohens_dz, found.p) == (2, None, 0.5)
    assert stats.compare({0: 98.0, 1: 99.0}, {0: 98.0, 1: 99.0}).p == 1


def test_seeds_to_show():
    assert stats.seeds_to_show() == 6  # 2^-5 is 0.031, 2^-4 is 0.0625
    assert stats.seeds_to_show(12) == 9
    eight, nine = (12 * stats.sign_flip_test([1.0] * n) for n in (8, 9))
    assert nine < stats.LEVEL <= eight


@pytest.mark.parametrize("direction", [1, -1])
def test_least_difference_to_show(direction):
    differences = [direction * value for value in (0.1, 0.2, 0.15, 0.0, 0.3, -0.2, 0.1, 0.25)]
    least = stats.least_to_show(differences)
    assert least is not None
    mean = np.mean(differences)
    for points, is_shown in ((least, True), (least - 0.001, False)):
        moved = differences - mean + direction * points
        assert (stats.sign_flip_test(moved) < stats.LEVEL) is is_shown
    assert stats.least_to_show(differences, 7) is None  # 8 seeds cannot, corrected for 7
    assert stats.least_to_show([0.1] * 8) == 0.001


@given(NUMBERS, NUMBERS)
def test_exchanged_networks_give_the_opposite(first, second):
    one, other = dict(enumerate(first)), dict(enumerate(second))
    there, back = stats.compare(one, other), stats.compare(other, one)
    assert back.summary.mean == -there.summary.mean
    assert back.p == there.p
    assert back.prob_superiority == pytest.approx(1 - there.prob_superiority)
    ties = sum(one[seed] == other[seed] for seed in one if seed in other)
    assert (back.gains, back.losses) == (there.losses, there.gains)
    assert there.gains + there.losses + ties == there.summary.n


def test_holm_worked_by_hand():
    assert stats.holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert stats.holm([0.6, 0.5]) == [1, 1]
    assert stats.holm([None]) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_only_increases(p_values):
    corrected = stats.holm(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert q is not None
        assert min(1, p) <= q <= min(1, p * len(p_values))
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


# Cohen's d_z and the pairs for a power of 80 % at 5 %, two-sided, as G*Power's tables have them.
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_to_resolve(effect, n):
    assert stats.seeds_to_resolve(0.02, 0.02 / effect) == n
    assert stats.seeds_to_resolve(-0.02, 0.02 / effect) == n


def test_seeds_to_resolve_without_scatter():
    assert stats.seeds_to_resolve(0.02, 0) == stats.seeds_to_show()
    assert stats.seeds_to_resolve(0.02, 1e-9) == stats.seeds_to_show()
