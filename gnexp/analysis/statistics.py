"""Intervals, equivalence and exponents: a few numbers in, a few numbers out.

Student's t throughout, because seeds are few. What too few values cannot give is nan, not a guess.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T")
FLAT, LOWER, HIGHER, UNDECIDED = "flat within 1 point", "lower", "higher", "undecided"


@dataclass(frozen=True)
class Interval:
    """A mean of n values, their standard deviation, and an interval for the mean."""

    mean: float
    sd: float
    n: int
    lo: float
    hi: float

    def within(self, least: float, most: float) -> "Interval":
        """Return it with ends that a quantity of this range can have; t knows of no range."""
        lo, hi = (x if math.isnan(x) else min(max(x, least), most) for x in (self.lo, self.hi))
        return dataclasses.replace(self, lo=lo, hi=hi)

    def columns(self, name: str) -> dict[str, float]:
        """Return {name: mean, name_lo, name_hi}, as the tables have it."""
        return {name: self.mean, f"{name}_lo": self.lo, f"{name}_hi": self.hi}


@dataclass(frozen=True)
class Exponent:
    """A fitted power law: its exponent, standard error, intervals, and what it was fitted to."""

    slope: float
    se: float
    lo95: float
    hi95: float
    lo997: float
    hi997: float
    dof: int
    chi2: float
    n_points: int
    n_groups: int


@functools.lru_cache(maxsize=4096)
def t_quantile(probability: float, dof: float) -> float:
    """Return Student's t quantile; nan when there are no degrees of freedom."""
    from scipy.special import stdtrit

    return float(stdtrit(dof, probability)) if dof > 0 else math.nan


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return mean +- t * sd / sqrt(n), sd with n - 1; for n = 1 sd and interval are nan.

    Assumes values that are independent and about normal: seeds, not epochs of one seed.
    """
    x = np.asarray(values, dtype=np.float64)
    n = x.size
    mean = float(x.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, n, math.nan, math.nan)
    sd = float(x.std(ddof=1))
    half = t_quantile(0.5 + level / 2, n - 1) * sd / math.sqrt(n)
    return Interval(mean, sd, n, mean - half, mean + half)


def shared(*tables: Mapping[int, T]) -> dict[int, tuple[T, ...]]:
    """Return {seed: its values in the tables}, of the seeds that all of them have, ascending."""
    seeds = set.intersection(*map(set, tables)) if tables else ()
    return {seed: tuple(table[seed] for table in tables) for seed in sorted(seeds)}


def jackknife(n: int, statistic: Callable[[Sequence[int]], float]) -> Interval:
    """Return statistic(all of range(n)) with the 95 % t interval of the delete-one jackknife.

    half-width = t_{n-1} * sqrt((n-1)/n * sum (s_i - mean s)^2), s_i the statistic without i. No
    interval for n = 1 or where an s_i is not finite.
    """
    if n == 0:
        return t_interval([])
    whole = statistic(range(n))
    left_out = [statistic([j for j in range(n) if j != i]) for i in range(n)] if n > 1 else []
    if not left_out or not all(map(math.isfinite, [whole, *left_out])):
        return Interval(whole, math.nan, n, math.nan, math.nan)
    spread = t_interval(left_out).sd
    half = t_quantile(0.975, n - 1) * spread * (n - 1) / math.sqrt(n)
    return Interval(whole, math.nan, n, whole - half, whole + half)


def ratio_interval(pairs: Sequence[tuple[float, float]]) -> Interval:
    """Return sum a / sum b of n pairs (a, b) with Fieller's 95 % interval.

    It holds the ratios r for which the t test of mean(a - r b) = 0 does not reject. The ratio is
    nan unless mean b is positive; the interval is nan for n = 1, and where the t interval of mean b
    reaches 0. sd: nan.
    """
    n = len(pairs)
    a, b = np.asarray(pairs, dtype=np.float64).reshape(n, 2).T
    mean_a, mean_b = (float(x.mean()) if n else math.nan for x in (a, b))
    none = Interval(mean_a / mean_b if mean_b > 0 else math.nan, math.nan, n, math.nan, math.nan)
    if n < 2:
        return none
    (s_aa, s_ab), (_, s_bb) = t_quantile(0.975, n - 1) ** 2 / n * np.cov(a, b)
    lead, half, last = mean_b**2 - s_bb, mean_a * mean_b - s_ab, mean_a**2 - s_aa
    if not (mean_b > 0 and lead > 0):
        return none
    root = math.sqrt(max(half**2 - lead * last, 0.0))
    return dataclasses.replace(none, lo=(half - root) / lead, hi=(half + root) / lead)


def binomial_interval(accuracy: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion of n independent trials, within [0, 1].

    It says how far the choice of test images moves one network's accuracy, not another seed.
    """
    from scipy.special import ndtri

    if n < 1 or not 0 <= accuracy <= 1:
        return math.nan, math.nan
    z = float(ndtri(0.5 + level / 2))
    centre = accuracy + z * z / (2 * n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def equivalence(
    difference: float, se: float, dof: float, margin: float = 0.01
) -> tuple[float, float, float]:
    """Return (lo90, hi90, p) of two one-sided tests that a difference lies within +-margin.

    p < 0.05 exactly when the 90 % interval lies inside the margin. nan without spread: no spread at
    all (every seed at chance, say) is no knowledge of the spread.
    Source: SAS/STAT user's guide, TTEST procedure, "TOST equivalence test".
    """
    from scipy.special import stdtr

    if not (dof > 0 and math.isfinite(difference) and se > 0):
        return math.nan, math.nan, math.nan
    half = t_quantile(0.95, dof) * se
    above = 1 - stdtr(dof, (difference + margin) / se)
    below = stdtr(dof, (difference - margin) / se)
    return difference - half, difference + half, float(max(above, below))


def fit_exponent(
    batch_sizes: Sequence[float],
    values: Sequence[float],
    log_errors: Sequence[float],
    groups: Sequence[Hashable],
) -> Exponent:
    """Fit log(value) = intercept[group] + slope * log(batch size) by weighted least squares.

    batch_sizes, values: positive, one per point. log_errors: standard errors of log(value).
    groups: which points share an intercept (a seed has its own level but the common law).
    se^2 = max(1, chi2/dof) / sum w x^2: scatter beyond the errors widens the interval, luck never
    narrows it; dof = points - groups - 1. slope and se are nan when no group has two batch sizes,
    the intervals when dof is 0. Raises ValueError for a value or an error that is not positive.
    """
    x, y, e = (np.asarray(v, dtype=np.float64) for v in (batch_sizes, values, log_errors))
    if not (np.all(x > 0) and np.all(y > 0) and np.all(e > 0)):
        raise ValueError("batch sizes, values and errors of a power-law fit must be positive")
    w, members = e**-2, {g: np.flatnonzero([h == g for h in groups]) for g in groups}
    x, y = np.log(x), np.log(y)
    for index in members.values():
        x[index] -= np.average(x[index], weights=w[index])
        y[index] -= np.average(y[index], weights=w[index])
    information = float((w * x * x).sum())
    dof = len(x) - len(members) - 1
    if information < 1e-12 * max(1.0, float(w.sum())):
        return Exponent(*[math.nan] * 6, max(dof, 0), math.nan, len(x), len(members))
    slope = float((w * x * y).sum()) / information
    chi2 = float((w * (y - slope * x) ** 2).sum())
    se = math.sqrt(max(1.0, chi2 / dof if dof > 0 else 1.0) / information)
    t95, t997 = t_quantile(0.975, dof) * se, t_quantile(0.9985, dof) * se
    bounds = (slope - t95, slope + t95, slope - t997, slope + t997)
    return Exponent(slope, se, *bounds, max(dof, 0), chi2, len(x), len(members))
