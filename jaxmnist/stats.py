"""Statistics over seeds: how far figures spread, and whether two networks can be told apart."""

import bisect
import math
from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.stats import nct, t

LEVEL = 0.05  # of tests; intervals hold 1 - LEVEL
POWER = 0.8
MAX_SEEDS = 10**6
DECIMALS = 6


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
    gains: int  # seeds in which the second is higher
    losses: int  # and in which it is lower
    effect: float | None  # their mean in units of their standard deviation; None without one
    p: float | None  # of the paired t-test, two-sided; None where nothing can be tested
    order: float  # of all pairs of one run each: the share in which the second is higher


def describe(values: Sequence[float]) -> Spread:
    """Mean, standard deviation and the 95 % interval of the mean, by Student's t.

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
    """Compares two networks over the seeds that both were trained with.

    A seed draws the same order of images in both and, where layers agree, the same initial weights.
    The effect size is Cohen's d_z, mean over standard deviation of the differences (Lakens,
    Frontiers in Psychology 4, 2013, equation 6). `order` is the probability of superiority over the
    runs of all seeds, ties counted half. Differences that are all the same test nothing: figures
    come in steps, and two seeds agree by chance.

    Args:
        first: by seed, the figure of one network.
        second: that of the other.

    Raises:
        ValueError: they have no seed in common.
    """
    # Figures in percent have a few decimals: what is beyond is the rounding of the subtraction.
    differences = [round(second[seed] - first[seed], DECIMALS) for seed in first if seed in second]
    spread = describe(differences)
    pairs = list(product(first.values(), second.values()))
    wins = sum((after > before) + (after == before) / 2 for before, after in pairs)
    return Difference(
        spread=spread,
        gains=sum(difference > 0 for difference in differences),
        losses=sum(difference < 0 for difference in differences),
        effect=spread.mean / spread.sd if spread.sd else None,
        p=_p_value(spread.mean / spread.sd, spread.n) if spread.sd else None,
        order=wins / len(pairs),
    )


def correct(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrects p-values for their number, by Holm's method (Scand. J. Statistics 6, 1979).

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
    """How many seeds a paired t-test needs to find a difference with a power of 80 %.

    Args:
        difference: the true one, not 0.
        sd: standard deviation of the differences between two runs of a seed.

    Returns:
        The smallest number of seeds, at most `MAX_SEEDS`; for a test at 5 %, with the spread taken
        as known. From the noncentral t distribution (Cohen, Statistical Power Analysis, 2nd
        edition, section 2.4).
    """
    if sd == 0:
        return 2

    def suffices(n: int) -> bool:
        return _power(abs(difference) / sd * math.sqrt(n), n - 1) >= POWER

    return 2 + bisect.bisect_left(range(2, MAX_SEEDS), True, key=suffices)


def _power(shift: float, freedom: int) -> float:
    """The power of a two-sided t-test whose statistic is shifted so far."""
    threshold = t.isf(LEVEL / 2, freedom)
    # The other tail adds nothing where the power is anywhere near POWER; beyond 30 SciPy gives up.
    return float(nct.sf(threshold, freedom, min(shift, 30.0)))


def _p_value(effect: float, n: int) -> float:
    return float(2 * t.sf(abs(effect) * math.sqrt(n), n - 1))
