"""Statistics over seeds: the spread of a metric and the difference between two networks."""

import bisect
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np
from scipy.stats import nct, permutation_test, t

LEVEL = 0.05  # significance level; intervals cover 1 - LEVEL
POWER = 0.8
MAX_SEEDS = 10**6
DECIMALS = 6
MAX_EXACT = 20  # largest n for which all 2^n sign flips are tried; beyond it, a random sample
RESAMPLES = 99_999


class Summary(NamedTuple):
    """A metric over seeds; a single seed has no standard deviation and no interval."""

    n: int
    mean: float
    sd: float | None  # n - 1 in the denominator
    low: float | None  # lower end of the 95 % interval of the mean
    high: float | None
    min: float
    max: float


class Difference(NamedTuple):
    """A metric of a second network minus that of a first, seed by seed."""

    summary: Summary  # of the differences
    values: list[float]  # the differences, one per seed
    gains: int  # seeds where the second is higher
    losses: int  # seeds where the second is lower
    cohens_dz: float | None  # mean over standard deviation; None without one
    p: float | None  # two-sided p-value of the sign-flip test; None for a single seed
    prob_superiority: float  # fraction of pairs of runs in which the second is higher


def summarize(values: Sequence[float]) -> Summary:
    """Return the mean, standard deviation and 95 % interval of the mean, by Student's t.

    The interval assumes that values are normally distributed over seeds. It is a rough guide for
    few or skewed values. `sign_flip_test` assumes no distribution.

    Args:
        values: one value per seed, at least one.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values; expected at least one seed")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Summary(n, mean, None, None, None, mean, mean)
    sd = stdev(values)
    half = float(t.isf(LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half, min(values), max(values))


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Compare two networks over the seeds that both were trained with.

    With the same seed, both have the same order of images and, for equal layers, the same initial
    weights.
    `cohens_dz` is an effect size (Lakens, Frontiers in Psychology 4, 2013, equation 6).
    `prob_superiority` compares the runs of all seeds; ties count half.

    Args:
        first: the metric of one network, by seed.
        second: the metric of the other, by seed.

    Raises:
        ValueError: the networks have no seed in common.
    """
    # Percentages have few decimals, so rounding removes the error of the subtraction.
    differences = [round(second[seed] - first[seed], DECIMALS) for seed in first if seed in second]
    summary = summarize(differences)
    pairs = list(itertools.product(first.values(), second.values()))
    wins = sum((after > before) + (after == before) / 2 for before, after in pairs)
    return Difference(
        summary=summary,
        values=differences,
        gains=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
        cohens_dz=summary.mean / summary.sd if summary.sd else None,
        p=sign_flip_test(differences) if summary.n > 1 else None,
        prob_superiority=wins / len(pairs),
    )


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return the two-sided p-value of the mean of paired differences, by flipping signs.

    If two networks do not differ, each difference is as likely as its negative. The p-value is the
    share of all 2^n choices of signs whose mean is at least as far from 0 as the observed mean
    (Fisher, The Design of Experiments, 1935, section 21; Pitman, Supplement to the Journal of the
    Royal Statistical Society 4, 1937). The test assumes no distribution. Its smallest possible
    p-value is 2^(1 - n). For more than `MAX_EXACT` differences, it uses `RESAMPLES` random choices
    of signs, always the same ones.

    Args:
        differences: differences of at least two pairs, rounded to `DECIMALS`.
    """
    # Integer sums are exact, so that equal means compare equal.
    units = np.round(np.asarray(differences, float) * 10**DECIMALS).astype(np.int64)
    if len(units) > MAX_EXACT:
        flips = {"permutation_type": "samples", "n_resamples": RESAMPLES, "batch": 10_000}
        return float(permutation_test((units,), np.sum, rng=0, **flips).pvalue)
    sums = np.zeros(1, np.int64)
    for unit in units:
        sums = np.concatenate([sums + unit, sums - unit])
    return float(np.mean(np.abs(sums) >= abs(units.sum())))


def seeds_to_show(comparisons: int = 1) -> int:
    """Return the smallest number of seeds with which the sign-flip test can show any difference.

    Args:
        comparisons: the number of comparisons that `holm` corrects for.
    """
    return next(n for n in itertools.count(2) if 2.0 ** (1 - n) * comparisons < LEVEL)


def least_to_show(differences: Sequence[float], comparisons: int = 1) -> float | None:
    """Return the smallest mean difference that the sign-flip test would show.

    All differences are shifted by the same amount, which preserves their scatter, until the p-value
    times the number of comparisons (the first step of Holm's method) is below `LEVEL`.

    Args:
        differences: the paired differences.
        comparisons: the number of comparisons that `holm` corrects for.

    Returns:
        The size of the mean, rounded up to a thousandth; None if there are too few differences.
    """
    if len(differences) < seeds_to_show(comparisons):
        return None
    mean = fmean(differences)
    scatter = math.copysign(1, mean) * (np.asarray(differences, float) - mean)

    def shows(thousandths: int) -> bool:
        return sign_flip_test(list(scatter + thousandths / 1000)) * comparisons < LEVEL

    # Beyond the largest deviation all differences have one sign.
    end = math.ceil(1000 * np.abs(scatter).max()) + 1
    return bisect.bisect_left(range(end), True, key=shows) / 1000


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for multiple comparisons, by Holm's method (Scand. J. Statistics 6, 1979).

    Args:
        p_values: the p-values of all comparisons; None if a comparison has none.
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = min(1.0, max(least, p * (len(known) - rank)))
        corrected[place] = least
    return corrected


def seeds_to_resolve(difference: float, sd: float) -> int:
    """Return the number of seeds needed to find a difference with a power of 80 %.

    The power is that of the paired t-test, from the noncentral t distribution (Cohen, Statistical
    Power Analysis, 2nd edition, section 2.4). For large n the sign-flip test has the same power
    (Hoeffding, Annals of Mathematical Statistics 23, 1952).

    Args:
        difference: the true difference, not 0.
        sd: the standard deviation of the paired differences.

    Returns:
        The smallest number of seeds, from `seeds_to_show` to `MAX_SEEDS`, for a test at 5 %
        with known standard deviation.
    """
    least = seeds_to_show()
    if sd == 0:
        return least

    def suffices(n: int) -> bool:
        return _power(abs(difference) / sd * math.sqrt(n), n - 1) >= POWER

    return least + bisect.bisect_left(range(least, MAX_SEEDS), True, key=suffices)


def _power(shift: float, freedom: int) -> float:
    """Return the power of a two-sided t-test whose statistic has the given noncentrality."""
    threshold = t.isf(LEVEL / 2, freedom)
    # The other tail is negligible when the power is near POWER. SciPy fails beyond a shift of 30.
    return float(nct.sf(threshold, freedom, min(shift, 30.0)))
