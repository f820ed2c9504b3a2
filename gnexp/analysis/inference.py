"""Differences of mean accuracy, families of them, and how many seeds an answer takes.

Two sources of error stand in a difference: the seeds, whose spread is moderated over a setting (or
each cell's own, which is Welch's test; gnexp.analysis.moderated_variance), and the sampling of the
test images (gnexp.analysis.samples). Seeds are no blocks: accuracies of one seed in two cells
correlate by .02 to .24 on average in four published studies
(results/reference/inference/correlations.csv): too little for what pairing costs in degrees of
freedom, and where they correlate, not pairing errs on the safe side.
What too few values or no spread cannot give is nan, not a guess.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from gnexp.analysis.cells import Cell
from gnexp.analysis.moderated_variance import KEPT
from gnexp.analysis.samples import Sample, image_variance
from gnexp.analysis.statistics import shared, t_interval, t_quantile

ALPHA = 0.05
MODERATED, WELCH = "moderated", "Welch"
AHEAD, BEHIND, UNDECIDED, UNTESTED = "ahead", "behind", "undecided", "not tested"
NO_SPREAD, TOO_FEW = "no spread between seeds", "fewer than two seeds"
HALF_WIDTH = 0.005  # half a point of accuracy
MOST_SEEDS = 30  # beyond which no number of seeds is advised
Terms = Sequence[tuple[float, Sample]]
AnEstimate = TypeVar("AnEstimate", bound="Estimate")


@dataclass(frozen=True)
class Estimate:
    """A difference, its standard error and degrees of freedom, its own 95 % interval, and p.

    limit: the largest size that it can have; intervals end there. The rest is of a member of a
    family, as `simultaneous` has it. verdict: AHEAD or BEHIND (Holm rejects at 5 %; the interval
    lies on one side of 0), UNDECIDED, or UNTESTED (no p; not counted in `family`, the number of
    comparisons that have one).
    """

    difference: float
    se: float
    dof: float
    lo: float
    hi: float
    p: float
    limit: float = 1.0
    p_holm: float = math.nan
    lo_simultaneous: float = math.nan
    hi_simultaneous: float = math.nan
    family: int = 0
    verdict: str = UNTESTED


@dataclass(frozen=True)
class Difference(Estimate):
    """A weighted sum of cells' mean accuracies, mostly one minus another, and its sources of error.

    method: MODERATED, WELCH, or "" where a cell has one seed. n_a, n_b: the fewest seeds on the
    side that counts and on the side that is taken off. se_seeds, se_images: the two sources, se
    being the root of the sum of their squares; images: how the second is known (CROSSED, BOUND,
    or "" where the test images are not counted). welch_*: from each cell's own spread over seeds
    alone, beside it. why: what kept it from a p, or "". terms: what it is made of.
    """

    method: str = ""
    n_a: int = 0
    n_b: int = 0
    se_seeds: float = math.nan
    se_images: float = 0.0
    images: str = ""
    welch_lo: float = math.nan
    welch_hi: float = math.nan
    welch_p: float = math.nan
    why: str = ""
    terms: tuple[tuple[float, Sample], ...] = ()


def contrast(terms: Iterable[tuple[float, Sample]]) -> Difference:
    """Return sum weight x mean of the samples; 1 and -1 make a difference.

    se^2 = sum weight^2 variance / n + the variance over test images; degrees of freedom by
    Satterthwaite over both, those of the seeds as in gnexp.analysis.moderated_variance. Interval
    and p are nan where a sample has one value, or no seed has any spread (all at chance, say).
    """
    terms = tuple(terms)
    value = math.fsum(w * sample.mean for w, sample in terms)
    plus, minus = ([t for t in terms if (t[0] > 0) == positive] for positive in (True, False))
    counts = {
        "limit": max(sum(w for w, _ in plus), -sum(w for w, _ in minus)),
        **{"n_a": _fewest(plus), "n_b": _fewest(minus), "terms": terms},
    }
    if _fewest(terms) < 2:
        return Difference(value, math.nan, 0.0, *[math.nan] * 3, **counts, why=TOO_FEW)
    seeds, dof = _over_seeds(terms)
    images, images_dof, how = image_variance(terms)
    se, total_dof = satterthwaite([(seeds**2, dof), (images, images_dof)])
    found = estimate(value, se if seeds > 1e-12 else 0.0, total_dof, counts["limit"])
    own = satterthwaite((w * w * s.own_variance / s.n, s.n - 1.0) for w, s in terms)
    welch = estimate(value, *own, counts["limit"])
    return Difference(
        **vars(found) | counts,
        method=MODERATED if any(s.prior_dof for _, s in terms) else WELCH,
        **{"se_seeds": seeds, "se_images": math.sqrt(images), "images": how},
        **{"welch_lo": welch.lo, "welch_hi": welch.hi, "welch_p": welch.p},
        why="" if found.p == found.p else NO_SPREAD,
    )


def _fewest(terms: Terms) -> int:
    return min((sample.n for _, sample in terms), default=0)


def _over_seeds(terms: Terms, seeds: int | None = None) -> tuple[float, float]:
    """Return the standard error over seeds and its dof, were there so many `seeds` in each cell."""
    parts = [
        (w * w * s.variance / (seeds or s.n), s.dof if seeds is None else seeds - 1 + s.prior_dof)
        for w, s in terms
    ]
    se, dof = satterthwaite(parts)
    if any(s.prior_dof or s.scatters for _, s in terms):  # see gnexp.analysis.moderated_variance
        least = min(part for _, part in parts)
        dof = least + KEPT * (dof - least)
    return se, dof


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Estimate:
    """Return the mean of a - b over the seeds of both {seed: value}, with Student's interval.

    For what a seed makes alike: runs whose updates are the same but for rounding, one network under
    two statistics. Norms and batch sizes are no such pair.
    """
    steps = t_interval([x - y for x, y in shared(a, b).values()])
    return estimate(steps.mean, steps.sd / math.sqrt(max(1, steps.n)), steps.n - 1.0)


def welch_difference(a: Sequence[float], b: Sequence[float]) -> Estimate:
    """Return mean(a) - mean(b) with Welch's interval: each its own spread, values of one kind."""
    found = [t_interval(values) for values in (a, b)]
    apart = found[0].mean - found[1].mean
    if min(one.n for one in found) < 2:
        return estimate(apart, math.nan, 0.0)
    return estimate(apart, *satterthwaite((one.sd**2 / one.n, one.n - 1.0) for one in found))


def satterthwaite(parts: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """Return (root of the summed variances, their degrees of freedom) of (variance, dof) parts.

    dof = (sum v)^2 / sum v^2 / dof (Welch 1947; Satterthwaite 1946); all of them where no part has
    any variance.
    """
    parts = [*parts]
    total = math.fsum(v for v, _ in parts)
    if total <= 0:
        return 0.0, math.fsum(dof for _, dof in parts if math.isfinite(dof))
    return math.sqrt(total), total**2 / math.fsum(v * v / dof for v, dof in parts if v > 0)


def estimate(difference: float, se: float, dof: float, limit: float = 1.0) -> Estimate:
    """Return the t test of difference / se against 0; lo, hi and p are nan without spread.

    The interval ends at -limit and limit, beyond which no difference can lie.
    """
    from scipy.special import stdtr

    # Rounding leaves 1e-17 of spread between equal values.
    if not (dof > 0 and math.isfinite(difference) and se > 1e-12):
        return Estimate(difference, math.nan, dof, math.nan, math.nan, math.nan, limit)
    p = 2 * float(stdtr(dof, -abs(difference) / se))
    return Estimate(difference, se, dof, *_ends(difference, se, dof, ALPHA, limit), p, limit)


def _ends(value: float, se: float, dof: float, alpha: float, limit: float) -> tuple[float, float]:
    half = t_quantile(1 - alpha / 2, dof) * se
    return max(value - half, -limit), min(value + half, limit)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's step-down adjusted p values; nan stays nan and does not count.

    Ascending p_(1..m): max over j <= k of min(1, (m - j + 1) p_(j)). Rejecting what is at most
    alpha keeps the chance of any false rejection at most alpha, however the tests depend.
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")[: np.count_nonzero(~np.isnan(p))]  # nan is sorted last
    steps = p[order] * np.arange(len(order), 0, -1)
    p[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return p.tolist()


def simultaneous(differences: Sequence[AnEstimate]) -> list[AnEstimate]:
    """Return the family with each member's Holm p and an interval that agrees with Holm at 5 %.

    Of a family of m: d +- t_{1 - 0.05/(4m), dof} se (Bonferroni at 2.5 % in all); where Holm
    rejects and that still holds 0, the end beyond 0 is set to 0. So Holm rejects exactly when the
    interval has no value on the other side of 0 (lo >= 0 or hi <= 0).
    All intervals together hold their true differences in at least 95 % of studies: a true
    difference other than 0 is lost either outside the uncut intervals (2.5 % together) or by a
    decision in the wrong direction, half of Holm's 5 % (exact for one true difference near 0,
    confirmed by simulation for independent ones). No bounded intervals are narrower everywhere, as
    Holm spends all 5 % on differences of 0; Strassburger & Bretz 2008 and Guilbaud 2008 keep 5 %
    by giving the rejected no bound but 0, which says nothing of the size.
    """
    family = sum(d.p == d.p for d in differences)
    return [_adjust(d, p, family) for d, p in zip(differences, holm([d.p for d in differences]))]


def _adjust(d: AnEstimate, p_holm: float, family: int) -> AnEstimate:
    if p_holm != p_holm:
        return replace(d, family=family)
    lo, hi = _ends(d.difference, d.se, d.dof, ALPHA / (2 * family), d.limit)
    verdict = UNDECIDED
    if p_holm <= ALPHA:
        verdict = AHEAD if d.difference > 0 else BEHIND
        lo, hi = (max(lo, 0.0), hi) if verdict == AHEAD else (lo, min(hi, 0.0))
    ends = {"lo_simultaneous": lo, "hi_simultaneous": hi}
    return replace(d, p_holm=p_holm, **ends, family=family, verdict=verdict)


def with_images(sample: Sample) -> tuple[float, float]:
    """Return a 95 % interval for the mean accuracy over fresh seeds and fresh test images.

    Seeds by their own spread, test images as in `image_variance`; never narrower than the interval
    over seeds, and within [0, 1]. (nan, nan) for one value, unknown images, or no spread.
    """
    images, images_dof, how = image_variance([(1.0, sample)])
    seeds, dof = sample.own_variance / sample.n, sample.n - 1.0
    if sample.n < 2 or not how or seeds + images <= 0:
        return math.nan, math.nan
    both = satterthwaite([(seeds, dof), (images, images_dof)])
    half = max(t_quantile(1 - ALPHA / 2, dof) * se for se, dof in (both, (math.sqrt(seeds), dof)))
    return max(0.0, sample.mean - half), min(1.0, sample.mean + half)


def accuracy_rows(cells: Iterable[Cell], known: Mapping[int, Sample]) -> list[dict[str, Any]]:
    """Return one row per cell: mean accuracy and intervals of the seeds that did not diverge.

    lo_images, hi_images: over seeds and images; nan beside a diverged seed, whose accuracy is not
    in the mean.
    """
    rows = []
    for cell in cells:
        interval, over = cell.accuracy
        whole = id(cell) in known and not cell.diverged
        lo, hi = with_images(known[id(cell)]) if whole else (math.nan, math.nan)
        numbers = {**vars(interval), "n_diverged": cell.diverged, "interval": over}
        rows.append({**cell.key, **numbers, "lo_images": lo, "hi_images": hi})
    return rows


def _fewest_that(enough: Callable[[int], bool], first: int = 2) -> int | float:
    """Return the least number of seeds that is enough, inf beyond MOST_SEEDS."""
    return next((n for n in range(first, MOST_SEEDS + 1) if enough(n)), math.inf)


def seeds_needed(sd: float, half_width: float = HALF_WIDTH) -> int | float:
    """Return the least n >= 2 with t_{.975, n - 1} sd / sqrt(n) <= half_width.

    sd: of a seed's accuracy, 0..1. nan for an unknown or absent spread; inf beyond MOST_SEEDS. The
    interval of a study of that size is as narrow when its sd is this.
    """
    if not sd > 0:
        return math.nan
    return _fewest_that(
        lambda n: t_quantile(1 - ALPHA / 2, n - 1) * sd / math.sqrt(n) <= half_width
    )


def seeds_to_decide(one: Difference, family: int) -> tuple[int | float, int | float]:
    """Return the range of seeds in each cell that would decide a difference of this size.

    The least n above today's with |difference| > t_{1 - 0.05/(2 family), dof} se, were difference
    and test images as now, for the ends of the 50 % interval of the spread over seeds. inf beyond
    MOST_SEEDS, and where the test images alone prevent it; nan where the spread is unknown.
    """
    if one.p != one.p or not one.terms:
        return math.nan, math.nan

    def decides(factor: float, n: int) -> bool:
        seeds, dof = _over_seeds(one.terms, n)
        se, dof = satterthwaite([((factor * seeds) ** 2, dof), (one.se_images**2, math.inf)])
        return abs(one.difference) > t_quantile(1 - ALPHA / (2 * family), dof) * se

    first = max(s.n for _, s in one.terms) + 1
    low, high = (
        _fewest_that(partial(decides, factor), first)
        for factor in _sd_factors(_over_seeds(one.terms)[1], 0.5)
    )
    return low, high


def equivalence_needs(sd: float, p: float, family: int) -> tuple[int | float, int | float]:
    """Return (seeds in each cell, test images) without which `flat within 1 point` cannot be shown.

    Two one-sided tests with a margin of one point, the first of Holm's steps over `family`, at a
    measured difference of 0: z se < 0.01. Half of se^2 to the seeds, 2 sd^2 / n, half to the test
    images, 2 p (1 - p) / N, the conservative bound. sd: of a seed's accuracy; p: accuracy.
    """
    from scipy.special import ndtri

    if not (sd >= 0 and 0 <= p <= 1 and family > 0):
        return math.nan, math.nan
    half = (0.01 / float(ndtri(1 - ALPHA / family))) ** 2 / 2
    return max(2, math.ceil(2 * sd**2 / half)), max(2, math.ceil(2 * p * (1 - p) / half))


def sd_interval(sd: float, dof: float, level: float = 1 - ALPHA) -> tuple[float, float]:
    """Return an interval of a standard deviation: sd sqrt(dof / chi2_{upper, lower}(dof))."""
    low, high = _sd_factors(dof, level) if sd > 0 and dof > 0 else (math.nan, math.nan)
    return sd * low, sd * high


def _sd_factors(dof: float, level: float) -> tuple[float, float]:
    from scipy.special import chdtri

    upper, lower = float(chdtri(dof, (1 - level) / 2)), float(chdtri(dof, (1 + level) / 2))
    return math.sqrt(dof / upper), math.sqrt(dof / lower)


def seeds_columns(sd: float, dof: int) -> dict[str, float]:
    """Return seeds_needed, and _lo and _hi as the sd's 95 % interval has it."""
    low, high = sd_interval(sd, dof)
    spreads = {"seeds_needed": sd, "seeds_needed_lo": low, "seeds_needed_hi": high}
    return {name: seeds_needed(spread) for name, spread in spreads.items()}
