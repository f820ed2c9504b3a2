"""Intervals, equivalence and exponents: a few numbers in, a few numbers out.

Student's t throughout, because seeds are few. What too few values cannot give is nan, not a guess.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

UNEQUAL_SPREAD = 0.001  # Bartlett's p below which cells are not pooled
FLAT, LOWER, HIGHER, UNDECIDED = "flat within 1 point", "lower", "higher", "undecided"


@dataclass(frozen=True)
class Interval:
    """A mean of n values, their standard deviation, and an interval for the mean."""

    mean: float
    sd: float
    n: int
    lo: float
    hi: float

    def columns(self, name: str) -> dict[str, float]:
        """Return {name: mean, name_lo, name_hi}, as the tables have it."""
        return {name: self.mean, f"{name}_lo": self.lo, f"{name}_hi": self.hi}


@dataclass(frozen=True)
class Comparison:
    """A difference of two means: intervals, the equivalence test's p, and a verdict in words."""

    difference: float
    lo90: float
    hi90: float
    lo95: float
    hi95: float
    p_equivalence: float
    verdict: str


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


def jackknife(n: int, statistic: Callable[[Sequence[int]], float]) -> Interval:
    """Return statistic(all of range(n)) with the 95 % t interval of the delete-one jackknife.

    half-width = t_{n-1} * sqrt((n-1)/n * sum (s_i - mean s)^2), s_i the statistic without i; for
    a mean it is the ordinary t interval. No interval for n = 1 or where an s_i is not finite.
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

    It holds the ratios r for which the t test of mean(a - r b) = 0 does not reject, so it covers as
    that test does, however near 0 b comes. The ratio is nan unless mean b is positive; the interval
    is nan for n = 1, and where it has no ends, the t interval of mean b reaching 0. sd: nan.
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
    """Return Wilson's score interval for a proportion of n independent trials.

    (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), within [0, 1]. It says how far the
    choice of test images moves one network's accuracy; nothing about another seed.
    Source: formula as in R's cicalc::ci_prop_wilson.
    """
    from scipy.special import ndtri

    if n < 1 or not 0 <= accuracy <= 1:
        return math.nan, math.nan
    z = float(ndtri(0.5 + level / 2))
    centre = accuracy + z * z / (2 * n)
    half = z * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def pooled_sd(cells: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation common to all cells, and its degrees of freedom.

    sqrt(sum (n_i - 1) sd_i^2 / sum (n_i - 1)); cells of one value add nothing.
    """
    arrays = [np.asarray(cell, dtype=np.float64) for cell in cells]
    dof = sum(max(x.size - 1, 0) for x in arrays)
    if not dof:
        return math.nan, 0
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in arrays if x.size > 1)
    return math.sqrt(squares / dof), dof


def spreads_differ(cells: Sequence[Sequence[float]], p: float = UNEQUAL_SPREAD) -> bool:
    """Return whether Bartlett's test rejects one common standard deviation at level p.

    A cell on the edge of failing scatters ten times more than the others; pooled with them it
    would hide their differences and overstate its own precision. With v_i the variances, f_i =
    n_i - 1, f and v their sum and pooled value, k cells: (f ln v - sum f_i ln v_i) /
    (1 + (sum 1/f_i - 1/f) / 3(k - 1)) is about chi-squared with k - 1 degrees of freedom.
    """
    from scipy.special import chdtrc

    several = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell) > 1]
    f, v = (np.array(x) for x in ([x.size - 1 for x in several], [x.var(ddof=1) for x in several]))
    if len(several) < 2 or not v.any():
        return False
    if not v.all():  # no spread at all is unlike any spread, and has no logarithm
        return True
    statistic = f.sum() * np.log((f * v).sum() / f.sum()) - (f * np.log(v)).sum()
    statistic /= 1 + ((1 / f).sum() - 1 / f.sum()) / (3 * (len(f) - 1))
    return bool(chdtrc(len(f) - 1, statistic) < p)


def welch(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of mean(a) - mean(b), spreads unequal.

    se^2 = va + vb with v = sd^2/n; dof = se^4 / (va^2/(na-1) + vb^2/(nb-1)) (Welch-Satterthwaite).
    (nan, 0) when a sample has fewer than two values.
    """
    if min(len(a), len(b)) < 2:
        return math.nan, 0.0
    va, vb = (float(np.var(x, ddof=1)) / len(x) for x in (a, b))
    if va + vb == 0:
        return 0.0, float(len(a) + len(b) - 2)
    dof = (va + vb) ** 2 / (va**2 / (len(a) - 1) + vb**2 / (len(b) - 1))
    return math.sqrt(va + vb), dof


def compare_means(difference: float, se: float, dof: float, margin: float = 0.01) -> Comparison:
    """Test a difference of means for equivalence within +-margin (TOST), and against zero.

    The equivalence p is the larger of the two one-sided p values; p < 0.05 exactly when the 90 %
    interval lies inside the margin, which is the verdict 'flat within 1 point' (for the margin of
    0.01). Otherwise 'lower' or 'higher' when the 95 % interval excludes 0, else 'undecided'.
    Source: SAS/STAT user's guide, TTEST procedure, "TOST equivalence test".
    """
    from scipy.special import stdtr

    # No spread at all (every seed at chance, say) is no knowledge of the spread.
    if not (dof > 0 and math.isfinite(difference) and se > 0):
        return Comparison(difference, *[math.nan] * 5, verdict=UNDECIDED)
    t90, t95 = t_quantile(0.95, dof) * se, t_quantile(0.975, dof) * se
    lo90, hi90, lo95, hi95 = (difference + d for d in (-t90, t90, -t95, t95))
    above = 1 - stdtr(dof, (difference + margin) / se)
    below = stdtr(dof, (difference - margin) / se)
    p = float(max(above, below))
    if -margin < lo90 and hi90 < margin:
        verdict = FLAT
    elif hi95 < 0 or lo95 > 0:
        verdict = LOWER if hi95 < 0 else HIGHER
    else:
        verdict = UNDECIDED
    return Comparison(difference, lo90, hi90, lo95, hi95, p, verdict)


def fit_exponent(
    batch_sizes: Sequence[float],
    values: Sequence[float],
    log_errors: Sequence[float],
    groups: Sequence[Hashable],
) -> Exponent:
    """Fit log(value) = intercept[group] + slope * log(batch size) by weighted least squares.

    batch_sizes, values: positive, one per point. log_errors: standard errors of log(value).
    groups: which points share an intercept (a seed has its own level but the common law).
    slope = sum w x y / sum w x^2 with x, y centred at their group's weighted mean, w = 1/error^2;
    se^2 = max(1, chi2/dof) / sum w x^2 (the scale factor: scatter beyond the errors widens the
    interval, luck never narrows it), dof = points - groups - 1; intervals by Student's t.
    slope and se are nan when no group has two batch sizes, the intervals when dof is 0.
    Raises ValueError for a value or an error that is not positive.
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
