"""Statistics over seeds: how far figures spread, and whether two networks can be told apart."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.stats import nct, permutation_test, t

LEVEL = 0.05  # of tests; intervals hold 1 - LEVEL
POWER = 0.8
MAX_SEEDS = 10**6
DECIMALS = 6
MAX_EXACT = 20  # values whose signs are flipped in all 2^n ways; of more, a sample of these ways
RESAMPLES = 99_999


class Spread(NamedTuple):
    """What a figure is over seeds; of a single one there is no spread, and no interval."""

    n: int
    mean: float
    sd: float | None  # n - 1 in the denominator
    low: float | None  # of the 95 % interval of the mean
    high: float | None
    min: float
    max: float


class Difference(NamedTuple):
    """A figure of a second network less that of a first, seed by seed."""

    spread: Spread  # of the differences
    values: list[float]  # the differences themselves, one a seed
    gains: int  # seeds in which the second is higher
    losses: int  # and in which it is lower
    effect: float | None  # their mean in units of their standard deviation; None without one
    p: float | None  # of the sign-flip test, two-sided; None for a single seed
    order: float  # of all pairs of one run each: the share in which the second is higher


def describe(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and the 95 % interval of the mean, by Student's t.

    The interval assumes that values are normally distributed over seeds. With few or skewed values
    it is a rough guide; `sign_flip_test` does not assume it.

    Args:
        values: one a seed, at least one.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no values; expected at least one seed")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Spread(n, mean, None, None, None, mean, mean)
    sd = stdev(values)
    half = float(t.isf(LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return Spread(n, mean, sd, mean - half, mean + half, min(values), max(values))


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Compare two networks over the seeds that both were trained with.

    A seed draws the same order of images in both and, where layers agree, the same initial weights.
    The effect size is Cohen's d_z, mean over standard deviation of the differences (Lakens,
    Frontiers in Psychology 4, 2013, equation 6). `order` is the probability of superiority over the
    runs of all seeds, ties counted half.

    Args:
        first: by seed, the figure of one network.
        second: that of the other.

    Raises:
        ValueError: they have no seed in common.
    """
    # Figures in percent have a few decimals: what is beyond is the rounding of the subtraction.
    differences = [round(second[seed] - first[seed], DECIMALS) for seed in first if seed in second]
    spread = describe(differences)
    pairs = list(itertools.product(first.values(), second.values()))
    wins = sum((after > before) + (after == before) / 2 for before, after in pairs)
    return Difference(
        spread=spread,
        values=differences,
        gains=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
        effect=spread.mean / spread.sd if spread.sd else None,
        p=sign_flip_test(differences) if spread.n > 1 else None,
        order=wins / len(pairs),
    )


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean of paired differences, by flipping their signs.

    If two networks do not differ, each difference is as likely as its negative. The p-value is the
    share of all 2^n choices of signs whose mean is at least as far from 0 as the one observed
    (Fisher, The Design of Experiments, 1935, section 21; Pitman, Supplement to the Journal of the
    Royal Statistical Society 4, 1937). No distribution is assumed. The smallest possible value is
    2^(1 - n). For more than `MAX_EXACT` differences, `RESAMPLES` random choices of signs, always
    the same ones, stand in for all.

    Args:
        differences: of at least two pairs; what is beyond `DECIMALS` is taken for rounding.
    """
    # Sums of whole numbers are exact, so that equal means count as equal.
    units = np.round(np.asarray(differences, float) * 10**DECIMALS).astype(np.int64)
    if len(units) > MAX_EXACT:
        flips = {"permutation_type": "samples", "n_resamples": RESAMPLES, "batch": 10_000}
        return float(permutation_test((units,), np.sum, rng=0, **flips).pvalue)
    sums = np.zeros(1, np.int64)
    for unit in units:
        sums = np.concatenate([sums + unit, sums - unit])
    return float(np.mean(np.abs(sums) >= abs(units.sum())))


def paired_t_test(spread: Spread) -> float | None:
    """Return the two-sided p-value of the paired t-test.

    Unlike `sign_flip_test` it can reach any value with two pairs, because it assumes that the
    differences are normally distributed.

    Args:
        spread: of the differences.

    Returns:
        None if there is one difference, or all are the same.
    """
    if not spread.sd:
        return None
    statistic = abs(spread.mean) / spread.sd * math.sqrt(spread.n)
    return float(2 * t.sf(statistic, spread.n - 1))


def seeds_to_show(together: int = 1) -> int:
    """Return the number of seeds from which the sign-flip test can show a difference at all.

    Args:
        together: how many comparisons are corrected for by `correct`.
    """
    return next(n for n in itertools.count(2) if 2.0 ** (1 - n) * together < LEVEL)


def least_to_show(differences: Sequence[float], together: int = 1) -> float | None:
    """Return the smallest mean difference, in its own direction, that the sign-flip test shows.

    The differences are moved together, so that they keep their scatter, until the test's p-value,
    times the number of comparisons (the first step of Holm's method), is below `LEVEL`.

    Args:
        differences: of pairs.
        together: how many comparisons are corrected for by `correct`.

    Returns:
        Its size, rounded up to a thousandth; None if there are too few differences to show any.
    """
    if len(differences) < seeds_to_show(together):
        return None
    mean = fmean(differences)
    scatter = math.copysign(1, mean) * (np.asarray(differences, float) - mean)

    def shows(thousandths: int) -> bool:
        return sign_flip_test(list(scatter + thousandths / 1000)) * together < LEVEL

    # Beyond the largest deviation all differences have one sign.
    end = math.ceil(1000 * np.abs(scatter).max()) + 1
    return bisect.bisect_left(range(end), True, key=shows) / 1000


def correct(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number, by Holm's method (Scand. J. Statistics 6, 1979).

    Args:
        p_values: of comparisons made together; None where there is none.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = min(1.0, max(least, p * (len(known) - rank)))
        corrected[place] = least
    return corrected


def seeds_to_resolve(difference: float, sd: float) -> int:
    """Return how many seeds it takes to find a difference with a power of 80 %.

    The power is that of the paired t-test, from the noncentral t distribution (Cohen, Statistical
    Power Analysis, 2nd edition, section 2.4). With growing n the sign-flip test has the same
    (Hoeffding, Annals of Mathematical Statistics 23, 1952).

    Args:
        difference: the true one, not 0.
        sd: standard deviation of the differences between two runs of a seed.

    Returns:
        The smallest number of seeds, from `seeds_to_show` to `MAX_SEEDS`; for a test at 5 %, with
        the spread taken as known.
    """
    least = seeds_to_show()
    if sd == 0:
        return least

    def suffices(n: int) -> bool:
        return _power(abs(difference) / sd * math.sqrt(n), n - 1) >= POWER

    return least + bisect.bisect_left(range(least, MAX_SEEDS), True, key=suffices)


def _power(shift: float, freedom: int) -> float:
    """Return the power of a two-sided t-test whose statistic is shifted so far."""
    threshold = t.isf(LEVEL / 2, freedom)
    # The other tail adds nothing where the power is anywhere near POWER; beyond 30 SciPy gives up.
    return float(nct.sf(threshold, freedom, min(shift, 30.0)))
