"""Statistics, worked by hand or read in tables."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from jaxmnist import stats

NUMBERS = st.lists(st.integers(0, 10_000), min_size=2, max_size=20)


def test_a_spread_worked_by_hand():
    found = stats.describe([99.3, 99.5, 99.4])
    half = 4.302653 * 0.1 / math.sqrt(3)  # Student's t: 0.975 and two degrees of freedom
    assert found == pytest.approx((3, 99.4, 0.1, 99.4 - half, 99.4 + half, 99.3, 99.5))


def test_one_seed_has_no_spread():
    assert stats.describe([99.4]) == (1, 99.4, None, None, None, 99.4, 99.4)
    found = stats.compare({3: 99.0}, {3: 99.5, 4: 98.0})
    assert found.spread == (1, 0.5, None, None, None, 0.5, 0.5)
    assert (found.gains, found.losses, found.effect, found.p, found.order) == (
        1,
        0,
        None,
        None,
        0.5,
    )


def test_no_seed_is_refused():
    with pytest.raises(ValueError, match="no values; expected at least one seed"):
        stats.describe([])
    with pytest.raises(ValueError, match="no values"):
        stats.compare({0: 99.0}, {1: 99.0})


@given(NUMBERS, st.integers(-50, 50), st.integers(1, 9))
def test_a_spread_moves_and_stretches_with_its_values(values, shift, factor):
    before = stats.describe(values)
    after = stats.describe([shift + factor * value for value in values])
    assert after.sd == pytest.approx(factor * before.sd)
    for name in ("mean", "low", "high", "min", "max"):
        assert getattr(after, name) == pytest.approx(shift + factor * getattr(before, name))
    assert after.min <= after.mean <= after.max


def test_a_comparison_worked_by_hand():
    found = stats.compare({0: 1, 1: 2, 2: 3}, {2: 3, 1: 4, 0: 2, 3: 9})  # differences 1, 2, 0
    assert (found.spread.n, found.spread.mean, found.spread.sd) == (3, 1, 1)
    assert (found.gains, found.losses, found.effect) == (2, 0, 1)
    # With two degrees of freedom p is 1 - t/sqrt(2 + t^2); here t^2 is 3.
    assert found.p == pytest.approx(1 - math.sqrt(3 / 5))
    assert found.order == 10 / 12  # of 3 x 4 pairs 9 are higher, and two equal


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=2, max_size=12))
def test_p_is_that_of_the_paired_t_test(pairs):
    first, second = (dict(enumerate(values)) for values in zip(*pairs, strict=True))
    found = stats.compare(first, second)
    if found.spread.sd:
        expected = ttest_rel(list(second.values()), list(first.values())).pvalue
        assert found.p == pytest.approx(expected, abs=1e-12)
    else:
        assert (found.p, found.effect) == (None, None)


def test_differences_that_are_all_the_same_test_nothing():
    # Which they are as figures, though not as floating-point numbers.
    found = stats.compare({0: 98.17, 1: 98.24}, {0: 98.47, 1: 98.54})
    assert (found.spread.mean, found.spread.sd) == (0.3, 0)
    assert (found.gains, found.effect, found.p) == (2, None, None)


@given(NUMBERS, NUMBERS)
def test_the_other_way_round_everything_turns_round(first, second):
    one, other = dict(enumerate(first)), dict(enumerate(second))
    there, back = stats.compare(one, other), stats.compare(other, one)
    assert back.spread.mean == -there.spread.mean
    assert (back.p is None) == (there.p is None)
    assert back.p is None or back.p == pytest.approx(there.p)
    assert back.order == pytest.approx(1 - there.order)
    ties = sum(one[seed] == other[seed] for seed in one if seed in other)
    assert (back.gains, back.losses) == (there.losses, there.gains)
    assert there.gains + there.losses + ties == there.spread.n


def test_holm_worked_by_hand():
    assert stats.correct([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])
    assert stats.correct([0.6, 0.5]) == [1, 1]
    assert stats.correct([None]) == [None]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_a_correction_keeps_the_order_and_only_ever_adds(p_values):
    corrected = stats.correct(p_values)
    for p, q in zip(p_values, corrected, strict=True):
        assert q is not None
        assert min(1, p) <= q <= min(1, p * len(p_values))
    by_p = [q for _, q in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


# Cohen's d_z and the pairs for a power of 80 % at 5 %, two-sided, as G*Power's tables have them.
@pytest.mark.parametrize(("effect", "n"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)])
def test_how_many_seeds_resolve_a_difference(effect, n):
    assert stats.seeds_to_resolve(0.02, 0.02 / effect) == n
    assert stats.seeds_to_resolve(-0.02, 0.02 / effect) == n


def test_without_a_spread_two_seeds_resolve_everything():
    assert stats.seeds_to_resolve(0.02, 0) == 2
    assert stats.seeds_to_resolve(0.02, 1e-9) == 2
