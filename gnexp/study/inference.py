"""Paired differences, families of them, and how many seeds an answer takes.

A seed fixes the initialization and the order of the images, so the same seed of two norms, or of
two batch sizes, makes a pair. What too few values or no spread cannot give is nan, not a guess.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gnexp.study import statistics

ALPHA = 0.05
PAIRED, WELCH = "paired t", "Welch"
AHEAD, BEHIND, UNDECIDED, UNTESTED = "ahead", "behind", "undecided", "not tested"
NO_SPREAD, TOO_FEW = "no spread between seeds", "fewer than two seeds"
HALF_WIDTH = 0.005  # half a point of accuracy
MOST_SEEDS = 1_000_000


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error and degrees of freedom, 95 % interval alone, and p."""

    difference: float
    se: float
    dof: float
    lo: float
    hi: float
    p: float


@dataclass(frozen=True)
class Difference(Estimate):
    """Mean of a minus mean of b by the primary method, and Welch's beside it.

    method: PAIRED over the n_pairs common seeds where there are two, else WELCH, else "".
    sd: of the paired differences. correlation: of the pairs. why: what kept it from a p, or "".
    """

    method: str
    n_pairs: int
    n_a: int
    n_b: int
    sd: float
    correlation: float
    welch_difference: float
    welch_lo: float
    welch_hi: float
    welch_p: float
    why: str


@dataclass(frozen=True)
class Adjusted:
    """A member of a family: Holm's p, the simultaneous interval, and the decision.

    verdict: AHEAD or BEHIND (Holm rejects at 5 %; the interval lies on one side of 0), UNDECIDED,
    or UNTESTED (no p; not counted in `family`, the number of comparisons that have one).
    """

    p_holm: float
    lo: float
    hi: float
    family: int
    verdict: str


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Compare {seed: value} with {seed: value}, a minus b.

    Paired t over the seeds of both: mean d, se = sd(d)/sqrt(n), n - 1 degrees of freedom. Welch
    over all seeds of each. Where a method finds no spread its interval and p are nan: equal
    values of every seed (all at chance, say) tell nothing of the spread.
    """
    seeds = sorted(a.keys() & b.keys())
    x, y = np.array([a[s] for s in seeds]), np.array([b[s] for s in seeds])
    pairs = statistics.t_interval(x - y)
    welch_se, welch_dof = statistics.welch([*a.values()], [*b.values()])
    apart = float(np.mean([*a.values()]) - np.mean([*b.values()])) if a and b else math.nan
    welch = estimate(apart, welch_se, welch_dof)
    if len(seeds) >= 2:
        method, d, se, dof = PAIRED, pairs.mean, pairs.sd / math.sqrt(pairs.n), pairs.n - 1.0
    else:
        method = WELCH if welch_dof > 0 else ""
        d, se, dof = apart, welch_se, welch_dof
    found = estimate(d, se, dof)
    why = "" if found.p == found.p else NO_SPREAD if dof > 0 else TOO_FEW
    counts = (len(seeds), len(a), len(b), pairs.sd, _correlation(x, y))
    beside = (apart, welch.lo, welch.hi, welch.p)
    return Difference(*vars(found).values(), method, *counts, *beside, why)


def estimate(difference: float, se: float, dof: float) -> Estimate:
    """Return the t test of difference / se against 0; lo, hi and p are nan without spread."""
    from scipy.special import stdtr

    # Rounding leaves 1e-17 of spread between equal values.
    if not (dof > 0 and math.isfinite(difference) and se > 1e-12):
        return Estimate(difference, math.nan, dof, math.nan, math.nan, math.nan)
    half = statistics.t_quantile(1 - ALPHA / 2, dof) * se
    p = 2 * float(stdtr(dof, -abs(difference) / se))
    return Estimate(difference, se, dof, difference - half, difference + half, p)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < 3 or min(np.ptp(x), np.ptp(y)) < 1e-12:  # two points always lie on a line
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values; nan stays nan and does not count.

    Ascending p_(1..m): max over j <= k of min(1, (m - j + 1) p_(j)). Rejecting what is at most
    alpha keeps the chance of any false rejection at most alpha, however the tests depend.
    """
    p = np.asarray(p_values, dtype=np.float64)
    adjusted = np.full(len(p), math.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(order) else steps
    return adjusted.tolist()


def simultaneous(differences: Sequence[Estimate]) -> list[Adjusted]:
    """Return each member's Holm p and an interval that agrees with Holm's decision at 5 %.

    Of a family of m: d +- t_{1 - 0.05/(4m), dof} se (Bonferroni at 2.5 % in all); where Holm
    rejects and that still holds 0, the end beyond 0 is set to 0. So Holm rejects exactly when the
    interval has no value on the other side of 0 (lo >= 0 or hi <= 0).
    All intervals together hold their true differences in at least 95 % of studies: a true
    difference other than 0 is lost either outside the uncut intervals (2.5 % together) or by a
    decision in the wrong direction, which is half of Holm's 5 %. (The second half is exact for
    one true difference near 0 and confirmed by simulation for independent ones; ends are closed:
    that a difference is not 0 is Holm's own statement, at its own 5 %.) Why not narrower: no
    bounded intervals both exclude 0 exactly when Holm rejects and hold everything in 95 %, as
    Holm spends all 5 % on differences of 0. Strassburger & Bretz 2008 and Guilbaud 2008 keep
    5 % by giving the rejected no bound but 0, which says nothing of the size.
    """
    adjusted = holm([d.p for d in differences])
    family = sum(d.p == d.p for d in differences)
    return [_adjust(d, p, family) for d, p in zip(differences, adjusted)]


def _adjust(d: Estimate, p_holm: float, family: int) -> Adjusted:
    if p_holm != p_holm:
        return Adjusted(math.nan, math.nan, math.nan, family, UNTESTED)
    half = statistics.t_quantile(1 - ALPHA / (4 * family), d.dof) * d.se
    lo, hi = d.difference - half, d.difference + half
    if p_holm > ALPHA:
        return Adjusted(p_holm, lo, hi, family, UNDECIDED)
    if d.difference > 0:
        return Adjusted(p_holm, max(lo, 0.0), hi, family, AHEAD)
    return Adjusted(p_holm, lo, min(hi, 0.0), family, BEHIND)


def with_images(values: Sequence[float], images: int) -> tuple[float, float]:
    """Return a 95 % interval for the mean accuracy over fresh seeds and fresh test images.

    Var = sd^2/n + Var_images/N. Seeds share their test images, so Var_images is that of the share
    of seeds that are right about an image: at most p(1 - p), reached when all seeds err on the
    same images. That bound is used, so the interval is conservative. Welch-Satterthwaite degrees
    of freedom, but never narrower than the interval over seeds, and within [0, 1]. (nan, nan) for
    one value or unknown images.
    """
    seeds = statistics.t_interval(values)
    if seeds.n < 2 or images < 2:
        return math.nan, math.nan
    of_seeds = seeds.sd**2 / seeds.n
    of_images = max(seeds.mean * (1 - seeds.mean), 0.0) / images
    total = of_seeds + of_images
    if total == 0:
        return math.nan, math.nan
    dof = total**2 / (of_seeds**2 / (seeds.n - 1) + of_images**2 / (images - 1))
    half = statistics.t_quantile(1 - ALPHA / 2, dof) * math.sqrt(total)
    half = max(half, (seeds.hi - seeds.lo) / 2)
    return max(0.0, seeds.mean - half), min(1.0, seeds.mean + half)


def seeds_needed(sd: float, half_width: float = HALF_WIDTH, alpha: float = ALPHA) -> int | float:
    """Return the least n >= 2 with t_{1 - alpha/2, n - 1} sd / sqrt(n) <= half_width.

    sd: of a seed's accuracy, or of a pair's difference, 0..1. nan for an unknown or absent spread;
    inf beyond a million. The interval of a study of that size is as narrow when its sd is this.
    """
    if not sd > 0:
        return math.nan

    def enough(n: int) -> bool:
        return statistics.t_quantile(1 - alpha / 2, n - 1) * sd / math.sqrt(n) <= half_width

    high = 2
    while not enough(high):
        high *= 2
        if high > MOST_SEEDS:
            return math.inf
    low = high // 2  # not enough, unless high is 2 already
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def sd_interval(sd: float, dof: float) -> tuple[float, float]:
    """Return the 95 % interval of a standard deviation: sd sqrt(dof / chi2_{.975, .025}(dof))."""
    from scipy.special import chdtri

    if not (sd > 0 and dof > 0):
        return math.nan, math.nan
    upper, lower = float(chdtri(dof, ALPHA / 2)), float(chdtri(dof, 1 - ALPHA / 2))
    return sd * math.sqrt(dof / upper), sd * math.sqrt(dof / lower)


def seeds_columns(sd: float, dof: int, name: str = "seeds_needed") -> dict[str, float]:
    """Return seeds_needed, and _lo and _hi as the sd's 95 % interval has it."""
    low, high = sd_interval(sd, dof)
    values = [seeds_needed(s) for s in (sd, low, high)]
    return dict(zip((name, f"{name}_lo", f"{name}_hi"), values))
