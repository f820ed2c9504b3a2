"""Intervals cover what they claim to, and agree with independent derivations."""

import math

import numpy as np
import pytest
from scipy import optimize, stats

from gnexp.analysis.statistics import binomial_interval, equivalence, fit_exponent, t_interval
from gnexp.store.lr_choices import pooled_sd

REL = 1e-9  # float64


def test_the_t_interval_is_that_of_scipy():
    values = [0.78, 0.80, 0.79, 0.83]
    interval = t_interval(values, level=0.9)
    expected = stats.t.interval(0.9, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (interval.lo, interval.hi) == pytest.approx(expected, rel=REL)
    assert interval.sd == pytest.approx(np.std(values, ddof=1), rel=REL)
    assert (interval.mean, interval.n) == (pytest.approx(0.8, rel=REL), 4)


def test_one_value_has_a_mean_but_no_spread_and_no_interval():
    interval = t_interval([0.5])
    assert (interval.mean, interval.n) == (0.5, 1)
    assert all(math.isnan(v) for v in (interval.sd, interval.lo, interval.hi))
    assert t_interval([]).n == 0
    assert math.isnan(t_interval([]).mean)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (780, 1000), (1000, 1000)])
def test_the_binomial_interval_is_wilsons(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert binomial_interval(successes / n, n) == pytest.approx(tuple(expected), abs=1e-12)
    assert all(math.isnan(v) for v in binomial_interval(successes / n, 0))


def test_the_pooled_spread_is_the_residual_spread_of_a_one_way_layout():
    cells = [[1.0, 2.0, 4.0], [10.0, 11.0], [5.0]]
    design = np.repeat(np.eye(3), [3, 2, 1], axis=0)
    y = np.concatenate(cells)
    residual = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    sd, dof = pooled_sd(cells)
    assert dof == 3
    assert sd == pytest.approx(math.sqrt(residual @ residual / 3), rel=REL)
    assert pooled_sd([[1.0], [2.0]])[1] == 0


def test_the_equivalence_p_is_the_larger_of_two_one_sided_t_tests():
    a, b = np.array([0.780, 0.784, 0.779]), np.array([0.782, 0.781, 0.786])
    sd, dof = pooled_sd([a, b])
    lo90, hi90, p = equivalence(a.mean() - b.mean(), sd * math.sqrt(2 / 3), dof, margin=0.01)
    above = stats.ttest_ind(a, b - 0.01, alternative="greater").pvalue
    below = stats.ttest_ind(a, b + 0.01, alternative="less").pvalue
    assert p == pytest.approx(max(above, below), rel=1e-7)
    expected = stats.ttest_ind(a, b).confidence_interval(0.90)
    assert (lo90, hi90) == pytest.approx(tuple(expected), rel=1e-7)


@pytest.mark.parametrize("difference", [0.0, -0.006, 0.006, 0.0095, -0.012, 0.03])
def test_the_equivalence_p_is_below_5_percent_exactly_when_the_90_percent_interval_is_inside(
    difference,
):
    for se in (0.0001, 0.002, 0.004, 0.02):
        lo90, hi90, p = equivalence(difference, se, dof=10)
        assert (p < 0.05) == (lo90 > -0.01 and hi90 < 0.01)
    assert all(math.isnan(v) for v in equivalence(difference, math.nan, 0))


def test_an_interval_may_be_cut_to_what_its_quantity_can_be():
    wide = t_interval([0.1, 0.9]).within(0, 1)
    assert (wide.lo, wide.hi, wide.mean) == (0.0, 1.0, 0.5)
    assert math.isnan(t_interval([0.5]).within(0, 1).lo)


def power_law(rng, slope=-1.0, error=0.1, scatter=1.0):
    batch = np.tile([1, 2, 4, 8, 16], 3).astype(float)
    seed = np.repeat([0, 1, 2], 5)
    errors = error * rng.uniform(0.5, 2, size=15)
    noise = rng.normal(0, scatter * errors)
    return batch, np.exp(seed * 1.7 + slope * np.log(batch) + noise), errors, seed


def test_the_exponent_and_its_error_are_those_of_curve_fit():
    batch, values, errors, seed = power_law(np.random.default_rng(3), scatter=2.0)

    def law(index, slope, *levels):
        index = index.astype(int)
        return np.array(levels)[seed[index]] + slope * np.log(batch[index])

    index = np.arange(15)
    found, covariance = optimize.curve_fit(
        law, index, np.log(values), p0=[-1, 0, 0, 0], sigma=errors, absolute_sigma=False
    )
    fit = fit_exponent(batch, values, errors, list(seed))
    assert fit.chi2 / fit.dof > 1  # so that curve_fit's scaling is ours too
    assert fit.slope == pytest.approx(found[0], rel=1e-6)
    assert fit.se == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-6)
    assert (fit.dof, fit.n_points, fit.n_groups) == (11, 15, 3)
    assert fit.hi95 - fit.slope == pytest.approx(stats.t.ppf(0.975, 11) * fit.se, rel=1e-9)
    assert fit.slope - fit.lo997 == pytest.approx(stats.t.ppf(0.9985, 11) * fit.se, rel=1e-9)


def test_points_that_agree_too_well_do_not_narrow_the_interval():
    batch, values, errors, seed = power_law(np.random.default_rng(4), scatter=0.0)
    fit = fit_exponent(batch, values, errors, list(seed))
    design = np.column_stack([np.log(batch), np.eye(3)[seed]])
    covariance = np.linalg.inv(design.T @ (design / errors[:, None] ** 2))
    assert fit.slope == pytest.approx(-1.0, abs=1e-12)
    assert fit.se == pytest.approx(math.sqrt(covariance[0, 0]), rel=REL)


@pytest.mark.parametrize("scatter", [1.0, 3.0])
def test_the_exponents_interval_covers_at_least_95_percent_whatever_the_scatter(scatter):
    rng = np.random.default_rng(5)
    fits = [fit_exponent(*power_law(rng, -0.7, scatter=scatter)) for _ in range(1500)]
    covered = np.mean([fit.lo95 <= -0.7 <= fit.hi95 for fit in fits])
    assert 0.933 <= covered <= 0.985  # at least 95 % within 3 standard errors, and not idle


def test_a_fit_without_two_batch_sizes_or_without_freedom_says_nan():
    fit = fit_exponent([4, 4, 8], [1.0, 2.0, 3.0], [0.1] * 3, [0, 0, 1])
    assert math.isnan(fit.slope)
    assert math.isnan(fit.se)
    exact = fit_exponent([2, 4], [4.0, 2.0], [0.1, 0.1], [0, 0])
    assert exact.slope == pytest.approx(-1.0)
    assert math.isnan(exact.lo95)
    assert exact.dof == 0


def test_a_power_law_through_zero_is_refused():
    with pytest.raises(ValueError, match="positive"):
        fit_exponent([1, 2], [0.0, 1.0], [0.1, 0.1], [0, 0])
