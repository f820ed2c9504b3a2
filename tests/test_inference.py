"""Differences, their families and their sizes: closed forms, scipy, and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from gnexp.study.inference import (
    AHEAD,
    BEHIND,
    PAIRED,
    UNDECIDED,
    UNTESTED,
    WELCH,
    Estimate,
    estimate,
    holm,
    paired_difference,
    sd_interval,
    seeds_needed,
    simultaneous,
    with_images,
)

REL = 1e-9  # float64
STUDIES = 4000
SEEDS = (3, 5, 10)


def seeded(values):
    return dict(enumerate(values))


def test_the_paired_difference_is_scipys_and_welch_stands_beside_it():
    a, b = [0.80, 0.82, 0.79, 0.83], [0.78, 0.81, 0.79, 0.80]
    found = paired_difference(seeded(a), seeded(b))
    paired, welch = stats.ttest_rel(a, b), stats.ttest_ind(a, b, equal_var=False)
    assert found.method == PAIRED
    assert found.p == pytest.approx(paired.pvalue, rel=REL)
    assert (found.lo, found.hi) == pytest.approx(tuple(paired.confidence_interval()), rel=REL)
    assert found.welch_p == pytest.approx(welch.pvalue, rel=REL)
    bounds = tuple(welch.confidence_interval())
    assert (found.welch_lo, found.welch_hi) == pytest.approx(bounds, rel=REL)
    assert found.correlation == pytest.approx(stats.pearsonr(a, b).statistic, rel=REL)
    assert (found.n_pairs, found.n_a, found.n_b, found.why) == (4, 4, 4, "")


def test_only_seeds_of_both_make_pairs_and_without_two_of_them_welch_decides():
    a, b = {0: 0.8, 1: 0.9, 2: 0.7}, {1: 0.5, 2: 0.4, 7: 0.1}
    found = paired_difference(a, b)
    assert found.n_pairs == 2
    assert found.difference == pytest.approx(0.35, rel=REL)
    assert found.welch_difference == pytest.approx(0.8 - 1 / 3, rel=REL)
    apart = paired_difference(a, {7: 0.1, 8: 0.2, 9: 0.15})
    expected = stats.ttest_ind([*a.values()], [0.1, 0.2, 0.15], equal_var=False)
    assert apart.method == WELCH
    assert apart.p == pytest.approx(expected.pvalue, rel=REL)


def test_one_seed_or_no_spread_gives_no_p():
    one = paired_difference({0: 0.8}, {0: 0.7})
    same = paired_difference(seeded([0.1 + 0.2] * 3), seeded([0.3] * 3))
    shifted = paired_difference(seeded([0.8, 0.7, 0.6]), seeded([0.7, 0.6, 0.5]))
    for found, why in ((one, "fewer than two seeds"), (same, "no spread"), (shifted, "no spread")):
        assert all(math.isnan(v) for v in (found.p, found.lo, found.hi))
        assert why in found.why
    assert one.difference == pytest.approx(0.1, rel=REL)


def test_holm_is_the_textbook_example_and_ignores_what_has_no_p():
    # By hand: 0.01 x 4, then max(0.04, 0.02 x 3), max(0.06, 0.022 x 2), max(0.06, 0.9).
    assert holm([0.02, math.nan, 0.01, 0.9, 0.022]) == pytest.approx(
        [0.06, math.nan, 0.04, 0.9, 0.06], rel=REL, nan_ok=True
    )
    assert holm([]) == []
    assert holm([0.7, 0.8]) == [1.0, 1.0]


def test_holm_rejects_what_a_step_down_by_hand_rejects():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p = rng.beta(0.3, 3, size=rng.integers(1, 9))
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (len(p) - step):
                break
            rejected.add(int(index))
        assert {i for i, adjusted in enumerate(holm(list(p))) if adjusted <= 0.05} == rejected


def test_an_interval_lies_on_one_side_of_0_exactly_when_holm_rejects():
    rng = np.random.default_rng(1)
    verdicts, cut = [], 0
    for _ in range(400):
        found = [estimate(d, 1.0, 4.0) for d in rng.normal(0, 4, size=rng.integers(1, 9))]
        for one, member in zip(found, simultaneous(found)):
            one_sided = member.lo >= 0 or member.hi <= 0
            assert one_sided == (member.p_holm <= 0.05)
            assert one_sided == (member.verdict in (AHEAD, BEHIND))
            assert member.lo <= one.difference <= member.hi
            assert (one.difference > 0) == (member.verdict == AHEAD) or not one_sided
            cut += 0.0 in (member.lo, member.hi)
            verdicts.append(member.verdict)
    assert {AHEAD, BEHIND, UNDECIDED} == set(verdicts)
    assert cut > 20  # Holm decides more than the uncut intervals would


def test_the_family_counts_only_comparisons_with_a_p():
    nothing = Estimate(0.3, *[math.nan] * 5)
    family = simultaneous([estimate(9.0, 1.0, 4.0), nothing, estimate(0.5, 1.0, 4.0)])
    assert [member.family for member in family] == [2, 2, 2]
    assert family[1].verdict == UNTESTED
    assert math.isnan(family[1].lo)
    half = stats.t.ppf(1 - 0.025 / 2 / 2, 4)  # Bonferroni at 2.5 % over two
    assert family[0].lo == pytest.approx(9 - half, rel=REL)
    assert family[2].hi == pytest.approx(0.5 + half, rel=REL)


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("m", [7, 21])
@pytest.mark.parametrize("nulls", ["all", "half", "one", "none"])
def test_all_true_differences_are_held_together_in_95_percent_of_studies(m, n, nulls):
    # Vectorized, by its own formulas; the next test ties these to the code.
    k = {"all": m, "half": m // 2, "one": 1, "none": 0}[nulls]
    rng = np.random.default_rng([m, n, k])
    for near in (0.0, -1e-9):  # no difference, and one too small to tell: a sign can be wrong
        theta = np.array([near] * k + [1e4] * (m - k))
        held = held_together(rng.normal(theta, 1.0, size=(STUDIES, n, m)), theta)
        assert held >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / STUDIES)


def held_together(draws, theta):
    _, n, m = draws.shape
    mean, se = draws.mean(axis=1), draws.std(axis=1, ddof=1) / math.sqrt(n)
    p = 2 * stats.t.sf(np.abs(mean) / se, n - 1)
    order = np.argsort(p, axis=1)
    falls = np.take_along_axis(p, order, 1) > 0.05 / np.arange(m, 0, -1)
    rejected = np.empty_like(falls)
    np.put_along_axis(rejected, order, ~np.logical_or.accumulate(falls, axis=1), 1)
    half = stats.t.ppf(1 - 0.05 / (4 * m), n - 1) * se
    lo = np.where(rejected & (mean > 0), np.maximum(mean - half, 0), mean - half)
    hi = np.where(rejected & (mean < 0), np.minimum(mean + half, 0), mean + half)
    return ((lo <= theta) & (theta <= hi)).all(axis=1).mean()


@pytest.mark.parametrize("n", [3, 5])
def test_the_simulated_intervals_are_those_of_the_code(n):
    theta = np.array([0.0, 0.0, 3.0, 40.0])
    draws = np.random.default_rng(n).normal(theta, 1.0, size=(60, n, 4))
    for study in draws:
        columns = [paired_difference(seeded(c), seeded(np.zeros(n))) for c in study.T]
        held = all(m.lo <= t <= m.hi for m, t in zip(simultaneous(columns), theta))
        assert held == bool(held_together(study[None], theta))


def covered(estimates, truth=0.0):
    return np.mean([one.lo <= truth <= one.hi for one in estimates])


@pytest.mark.parametrize("n", SEEDS)
def test_a_paired_interval_covers_95_percent_whatever_the_correlation(n):
    rng = np.random.default_rng(n)
    shared = rng.normal(0, 2, size=(STUDIES, n))
    a, b = (shared + rng.normal(0, 1, size=(STUDIES, n)) for _ in range(2))
    found = [paired_difference(seeded(x), seeded(y)) for x, y in zip(a, b)]
    assert 0.93 < covered(found) < 0.97


@pytest.mark.parametrize("n", SEEDS)
@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_welchs_interval_covers_about_95_percent_and_is_conservative_at_three(n, scale):
    rng = np.random.default_rng([n, int(scale)])
    a, b = rng.normal(0, 1, size=(STUDIES, n)), rng.normal(0, scale, size=(STUDIES, n))
    others = range(100, 100 + n)  # no seed in common
    found = [paired_difference(seeded(x), dict(zip(others, y))) for x, y in zip(a, b)]
    assert found[0].method == WELCH
    assert 0.93 < covered(found) < (0.98 if n == 3 else 0.97)


@pytest.mark.parametrize("n", SEEDS)
def test_the_interval_over_images_covers_fresh_seeds_and_images_and_more(n):
    # Half of the images are easy for every seed and half hard: seeds err on the same images.
    rng, images, studies = np.random.default_rng(n), 400, 1500
    right = np.where(rng.random((studies, 1, images)) < 0.5, 0.95, 0.35)
    scores = (rng.random((studies, n, images)) < right).mean(axis=2)
    bounds = np.array([with_images(list(values), images) for values in scores])
    lo, hi = bounds.T
    assert np.mean((lo <= 0.65) & (hi >= 0.65)) >= 0.95
    over_seeds = stats.t.ppf(0.975, n - 1) * scores.std(axis=1, ddof=1) / math.sqrt(n)
    assert np.all(hi - lo >= 2 * over_seeds - 1e-12)


def test_the_interval_over_images_adds_the_binomial_variance():
    values = [0.790, 0.800, 0.805, 0.795, 0.81]
    seeds, images = np.var(values, ddof=1) / 5, 0.8 * 0.2 / 1000
    dof = (seeds + images) ** 2 / (seeds**2 / 4 + images**2 / 999)
    expected = stats.t.interval(0.95, dof, loc=0.8, scale=math.sqrt(seeds + images))
    assert with_images(values, 1000) == pytest.approx(expected, rel=REL)
    assert all(math.isnan(v) for v in (*with_images([0.8], 1000), *with_images(values, 0)))


@pytest.mark.parametrize("sd", [0.0005, 0.002, 0.005, 0.02, 0.1])
def test_the_seeds_needed_are_the_fewest_that_do(sd):
    n = seeds_needed(sd)
    half = {k: stats.t.ppf(0.975, k - 1) * sd / math.sqrt(k) for k in range(2, n + 1)}
    assert half[n] <= 0.005
    assert all(width > 0.005 for k, width in half.items() if k < n)


def test_an_unknown_or_absent_spread_needs_no_known_number_of_seeds():
    assert math.isnan(seeds_needed(math.nan))
    assert math.isnan(seeds_needed(0.0))
    assert math.isinf(seeds_needed(10.0))


def test_the_spreads_interval_is_that_of_the_chi_square():
    rng = np.random.default_rng(5)
    bounds = [sd_interval(x.std(ddof=1), 4) for x in rng.normal(0, 1, size=(STUDIES, 5))]
    held = np.mean([lo <= 1 <= hi for lo, hi in bounds])
    assert held == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors
