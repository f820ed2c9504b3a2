"""Differences, their families and their sizes: closed forms, scipy, and simulated errors."""

import base64
import importlib.util
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from evidence_series import make_series
from scipy import optimize, special, stats

from gnexp.analysis.cells import Cell
from gnexp.analysis.comparisons import between, settings
from gnexp.analysis.inference import (
    AHEAD,
    BEHIND,
    MODERATED,
    UNDECIDED,
    UNTESTED,
    WELCH,
    Estimate,
    contrast,
    equivalence_needs,
    estimate,
    holm,
    sd_interval,
    seeds_needed,
    seeds_to_decide,
    simultaneous,
    welch_difference,
    with_images,
)
from gnexp.analysis.moderated_variance import moderate
from gnexp.analysis.samples import BOUND, CROSSED, Sample, image_variance, over_images, samples
from gnexp.analysis.statistics import equivalence

REL = 1e-9  # float64
INF = math.inf

_file = Path(__file__).parents[2] / "scripts" / "inference_errors.py"
_spec = importlib.util.spec_from_file_location("inference_errors", _file)
simulation = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulation)


def sample(values, images=0, prior_dof=0.0, variance=None, **more):
    """Return a Sample of these accuracies, its spread its own unless given."""
    own = np.var(values, ddof=1) if len(values) > 1 else math.nan
    dof = len(values) - 1.0 + prior_dof
    known = {"score_N": None, "rest": math.nan, "test_set": "", **more}
    variance = own if variance is None else variance
    spread = (own, variance, dof, prior_dof, False)
    return Sample(np.mean(values), len(values), *spread, images, **known)


def minus(a, b, **known):
    return contrast([(1.0, sample(a, **known)), (-1.0, sample(b, **known))])


def test_with_each_cells_own_spread_and_no_images_a_difference_is_welchs_of_scipy():
    a, b = [0.80, 0.82, 0.79, 0.83], [0.78, 0.71, 0.79]
    found, expected = minus(a, b), stats.ttest_ind(a, b, equal_var=False)
    bounds = tuple(expected.confidence_interval())
    assert (found.method, found.n_a, found.n_b, found.images, found.why) == (WELCH, 4, 3, "", "")
    assert (found.p, found.dof) == pytest.approx((expected.pvalue, expected.df), rel=REL)
    assert (found.lo, found.hi) == pytest.approx(bounds, rel=REL)
    assert (found.welch_p, found.welch_lo, found.welch_hi) == pytest.approx(
        (expected.pvalue, *bounds), rel=REL
    )
    alone = welch_difference(a, b)
    assert (alone.p, alone.lo, alone.hi) == pytest.approx((found.p, *bounds), rel=REL)


def test_one_seed_or_no_spread_gives_no_p():
    one, same = minus([0.8], [0.7]), minus([0.1 + 0.2] * 3, [0.3] * 3)
    for found, why in ((one, "fewer than two seeds"), (same, "no spread")):
        assert all(math.isnan(v) for v in (found.p, found.lo, found.hi))
        assert why in found.why
    assert one.difference == pytest.approx(0.1, rel=REL)
    # Test images say how far their choice moves the two, not how far another seed would.
    assert "no spread" in minus([0.8] * 3, [0.3] * 3, images=1000).why


def test_no_interval_leaves_what_a_difference_can_be():
    wide = minus([0.1, 0.9], [0.9, 0.1])
    assert (wide.lo, wide.hi) == (-1.0, 1.0)
    (member,) = simultaneous([wide])
    assert (member.lo_simultaneous, member.hi_simultaneous) == (-1.0, 1.0)
    costs = contrast((w, sample([0.1, 0.9])) for w in (1.0, -1.0, -1.0, 1.0))
    assert (costs.lo, costs.hi) == (-2.0, 2.0)  # of two differences


def test_holm_rejects_what_a_step_down_by_hand_rejects():
    rng = np.random.default_rng(0)
    for _ in range(300):
        p = rng.beta(0.3, 3, size=rng.integers(1, 9))
        rejected = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] > 0.05 / (len(p) - step):
                break
            rejected.add(int(index))
        adjusted = holm([math.nan, *p])  # what has no p does not count
        assert math.isnan(adjusted[0])
        assert {i for i, one in enumerate(adjusted[1:]) if one <= 0.05} == rejected
        assert max(adjusted[1:]) <= 1
    assert holm([]) == []


def test_an_interval_lies_on_one_side_of_0_exactly_when_holm_rejects():
    rng = np.random.default_rng(1)
    verdicts, cut = [], 0
    for _ in range(400):
        found = [estimate(d, 1.0, 4.0, INF) for d in rng.normal(0, 4, size=rng.integers(1, 9))]
        for one, member in zip(found, simultaneous(found)):
            one_sided = member.lo_simultaneous >= 0 or member.hi_simultaneous <= 0
            assert one_sided == (member.p_holm <= 0.05)
            assert one_sided == (member.verdict in (AHEAD, BEHIND))
            assert member.lo_simultaneous <= one.difference <= member.hi_simultaneous
            assert (one.difference > 0) == (member.verdict == AHEAD) or not one_sided
            cut += 0.0 in (member.lo_simultaneous, member.hi_simultaneous)
            verdicts.append(member.verdict)
    assert {AHEAD, BEHIND, UNDECIDED} == set(verdicts)
    assert cut > 20  # Holm decides more than the uncut intervals would


def test_the_family_counts_only_comparisons_with_a_p():
    nothing = Estimate(0.3, *[math.nan] * 5)
    several = [estimate(9.0, 1.0, 4.0, INF), nothing, estimate(0.5, 1.0, 4.0, INF)]
    family = simultaneous(several)
    assert [member.family for member in family] == [2, 2, 2]
    assert family[1].verdict == UNTESTED
    assert math.isnan(family[1].lo_simultaneous)
    half = stats.t.ppf(1 - 0.025 / 2 / 2, 4)  # Bonferroni at 2.5 % over two
    assert family[0].lo_simultaneous == pytest.approx(9 - half, rel=REL)
    assert family[2].hi_simultaneous == pytest.approx(0.5 + half, rel=REL)


def moderated_by_hand(variance, dof, shared):
    """Smyth's estimates by a root finder, with the weights of the module's text, cell by cell."""
    gives = [i for i, (v, s) in enumerate(zip(variance, shared)) if s and v > 0]
    most = min(4.0, max(0.0, (len(gives) - 6) / 4))
    if most == 0:
        return list(variance), list(dof)
    e = [math.log(variance[i]) - special.digamma(dof[i] / 2) + math.log(dof[i] / 2) for i in gives]
    excess = np.var(e, ddof=1) - np.mean([special.polygamma(1, dof[i] / 2) for i in gives])
    d0 = math.inf
    if excess > 0:
        d0 = 2 * optimize.brentq(lambda y: special.polygamma(1, y) - excess, 1e-3, 1e6)
    w = min(d0, most)
    prior = math.exp(np.mean(e) + special.digamma(w / 2) - math.log(w / 2))
    found = []
    for v, d, s in zip(variance, dof, shared):
        own = prior if v == 0 else v
        found.append(((w * prior + d * own) / (w + d), d + 0.5 * w) if s else (v, d))
    return [list(column) for column in zip(*found)]


@pytest.mark.parametrize("cells", [3, 4, 5, 8, 20, 28])
def test_variances_are_moderated_as_smyth_has_it_with_weights_that_grow_with_the_cells(cells):
    rng = np.random.default_rng(cells)
    for log_sd in (0.0, 0.4, 1.5):
        dof = rng.integers(1, 6, size=cells).astype(float)
        variance = rng.chisquare(dof) / dof * np.exp(log_sd * rng.standard_normal(cells))
        shared = rng.random(cells) < 0.8
        variance[1] = 0.0
        found = moderate(variance, dof, shared)
        expected = moderated_by_hand(variance, dof, shared)
        assert np.allclose(found[0], expected[0], rtol=1e-6, atol=0)  # a root finder's
        assert np.allclose(found[1], expected[1], rtol=1e-6, atol=0)


def test_studies_along_leading_axes_are_moderated_one_by_one():
    variance = np.random.default_rng(3).chisquare(2, size=(5, 12))
    together = moderate(variance, 2.0, True)
    for row, *found in zip(variance, *together):
        alone = moderate(row, np.full(12, 2.0), np.full(12, True))
        assert np.allclose(found, alone, rtol=1e-12, atol=0)


def test_what_is_known_to_scatter_keeps_its_own_variance():
    rng = np.random.default_rng(2)
    values = {b: list(80 + rng.normal(0, 1, 3)) for b in (1, 2, 4, 8, 16, 32)}
    lines = [make_series(n, values, groups=8 if n == "gn" else None) for n in ("bn", "gn", "ln")]
    lines[1].cells[3].seeds[0] |= {"status": "diverged", "test_acc": None}
    (setting,) = settings(lines)
    own = {
        (line.norm, cell.key["batch"])
        for line in lines
        for cell in line.cells
        if not setting.samples[id(cell)].prior_dof
    }
    assert own == {("bn", 1), ("bn", 2), ("gn", 8)}
    lines[2].cells[0].record.result.pop("pools")  # a run that does not say
    known = samples(cell for line in lines for cell in line.cells)
    assert not known[id(lines[2].cells[0])].prior_dof


def test_the_method_is_named_and_small_settings_are_welchs():
    def line(norm, batches, seed):
        rng = np.random.default_rng(seed)
        return make_series(norm, {b: list(rng.normal(80, 1, 3)) for b in batches})

    small = [line("bn", (8, 32), 1), line("ln", (8, 32), 2)]
    (setting,) = settings(small)
    assert between(small[0].cells[0], small[1].cells[0], setting.samples).method == WELCH
    large = [line("bn", range(3, 20), 1), line("ln", range(3, 20), 2)]
    (setting,) = settings(large)
    one = between(large[0].cells[0], large[1].cells[0], setting.samples)
    assert one.method == MODERATED
    a, b = (x.cells[0].accuracies for x in large)
    welch = stats.ttest_ind(a, b, equal_var=False)
    assert one.welch_p == pytest.approx(welch.pvalue, rel=REL)
    assert one.dof > welch.df


@pytest.mark.parametrize("cells", [28, 2])
@pytest.mark.parametrize("scenario", simulation.SCENARIOS, ids=lambda one: one.name)
def test_a_family_errs_in_about_5_percent_of_studies_and_holds_the_truth_together(scenario, cells):
    # The large simulation, 10,000 studies each: scripts/inference_errors.py, results/LOG.md.
    norms, batches = simulation.GRIDS[cells]
    rng = np.random.default_rng([cells, *scenario.name.encode()])
    for row in simulation.simulate(rng, scenario, norms, batches, np.full(cells, 3), 1500):
        unannounced = ("one unannounced cell 4x", "every norm scatters 4x at batch 1")
        limit = 0.08 if scenario.name in unannounced else 0.06
        slack = 3.5 * math.sqrt(limit * (1 - limit) / 1500)
        assert row["error"] <= limit + slack, row
        assert row.get("coverage", 1.0) >= 0.93 - slack, row


@pytest.mark.parametrize("cells", [28, 2])
def test_a_lead_of_five_spreads_is_decided_with_three_seeds(cells):
    norms, batches = simulation.GRIDS[cells]
    rng = np.random.default_rng(cells)
    row = next(
        simulation.simulate(rng, simulation.SCENARIOS[0], norms, batches, np.full(cells, 3), 1500)
    )
    assert row["power"] > 0.80


@pytest.mark.parametrize("cells", [28, 4])
def test_the_simulated_decisions_are_those_of_the_report(cells):
    norms, batches = simulation.GRIDS[cells]
    scenario = simulation.SCENARIOS[1]
    names = ("bn", "gn", "ln", "in")[:norms]
    rng = np.random.default_rng(cells)
    sd = simulation.spreads(scenario, norms, batches)
    mean = 0.5 + 0.03 * rng.standard_normal(cells)
    pairs = simulation.family(simulation.AGAINST_BN, norms, batches)
    own = simulation.own_variance(scenario, norms, batches)
    for x in simulation.draw(rng, scenario, sd, mean, np.full(cells, 3), 5):
        _, lo, hi = simulation.decide(*simulation.compare(x[None], own, pairs))
        values = (100 * x.T).reshape(norms, len(batches), 3)
        lines = [
            make_series(n, dict(zip(batches, map(list, v))), test=0) for n, v in zip(names, values)
        ]
        (setting,) = settings(lines)
        found = [one.difference for _, of in setting.pairs for one in of]
        assert [one.lo_simultaneous for one in found] == pytest.approx(lo[0], rel=1e-6, abs=1e-12)
        assert [one.hi_simultaneous for one in found] == pytest.approx(hi[0], rel=1e-6, abs=1e-12)


def covered(estimates, truth=0.0):
    return np.mean([one.lo <= truth <= one.hi for one in estimates])


def crossed_draw(rng, n, images, shared, seed_sd, cells=2):
    """Return (cells, S, N) of which images are right; images are hard for all cells in part."""
    common = rng.standard_normal(images)
    own = math.sqrt(shared) * common
    own = own + math.sqrt(1 - shared) * rng.standard_normal((cells, 1, images))
    level = seed_sd * rng.standard_normal((cells, n, 1))
    return rng.random((cells, n, images)) < special.ndtr(level + own)


def crossed_sample(right_SN, crossed=True):
    score_N, rest = over_images(right_SN)
    known = {"score_N": score_N, "rest": rest} if crossed else {}
    return sample(right_SN.mean(axis=1), images=right_SN.shape[1], **known)


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_images_part_of_a_difference_is_that_of_fresh_images_alone(n):
    """On average over studies it is the variance over test sets of the seeds' true difference."""
    rng, images, shared = np.random.default_rng(n), 400, 0.7
    found = []
    for _ in range(600):
        a, b = (crossed_sample(of) for of in crossed_draw(rng, n, images, shared, 0.3))
        found.append(image_variance([(1.0, a), (-1.0, b)])[0])
    # Over all seeds an image is right with chance Phi(x / sqrt(1.09)); E Phi(ax) Phi(ay) is known.
    ratio = 1 / (1 + 1.09)
    true = (math.asin(ratio) - math.asin(ratio * shared)) / math.pi
    assert np.mean(found) == pytest.approx(true / images, rel=0.05)


@pytest.mark.parametrize("how", [CROSSED, BOUND])
@pytest.mark.parametrize(("n", "images", "seed_sd"), [(3, 300, 0.02), (5, 1000, 0.2)])
def test_a_difference_covers_fresh_seeds_and_fresh_images(n, images, seed_sd, how):
    rng, found = np.random.default_rng([n, images]), []
    for _ in range(1200):
        drawn = crossed_draw(rng, n, images, 0.8, seed_sd)
        a, b = (crossed_sample(right, how == CROSSED) for right in drawn)
        found.append(contrast([(1.0, a), (-1.0, b)]))
    assert {one.images for one in found} == {how}
    assert covered(found) >= 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / 1200)
    if how == CROSSED:
        assert covered(found) < 0.985
        assert np.mean([one.se for one in found]) < 0.9 * np.mean(
            [math.hypot(one.se_seeds, math.sqrt(2 * 0.25 / images)) for one in found]
        )


def test_the_bound_is_that_of_each_side_and_other_test_sets_do_not_cancel():
    a, b = sample([0.8, 0.9], images=100), sample([0.5, 0.7], images=100)
    variance, dof, how = image_variance([(1.0, a), (-1.0, b)])
    assert (variance, dof, how) == (pytest.approx((0.85 * 0.15 + 0.6 * 0.4) / 100), 99.0, BOUND)
    right = crossed_draw(np.random.default_rng(0), 4, 200, 1.0, 0.0)
    same = [(w, crossed_sample(of)) for w, of in zip((1.0, -1.0), right)]
    apart = [(w, Sample(**{**vars(of), "test_set": str(w)})) for w, of in same]
    assert image_variance(apart)[0] > 5 * image_variance(same)[0]
    one, other = (image_variance([(1.0, of)])[0] for _, of in same)
    assert image_variance(apart)[0] == pytest.approx(one + other, rel=1e-9)
    assert image_variance([(1.0, sample([0.8, 0.9]))]) == (0.0, math.inf, "")


def in_base64(right):
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def test_a_cell_reads_which_images_its_seeds_are_right_about_and_counts_a_diverged_one_at_chance():
    right = np.random.default_rng(1).random((2, 40)) < 0.7
    record = SimpleNamespace(
        result={"data": {"classes": list("abcd"), "test": 40}, "pools": ""}, config={}
    )
    seeds = [
        {
            "seed": s,
            "status": "complete",
            "test_acc": r.mean(),
            "correct": in_base64(r),
        }
        for s, r in enumerate(right)
    ]
    seeds.append({"seed": 2, "status": "diverged", "test_acc": None})
    cell = Cell({"norm": "gn", "batch": 1}, record, seeds)
    found = samples([cell])[id(cell)]
    expected = (right.sum(axis=0) + 0.25) / 3
    assert np.allclose(found.score_N, expected, rtol=0, atol=1e-7)  # float32
    assert found.mean == pytest.approx(expected.mean(), rel=1e-6)
    seeds[0].pop("correct")
    assert samples([cell])[id(cell)].score_N is None


def test_the_interval_over_images_adds_the_binomial_variance():
    values = [0.790, 0.800, 0.805, 0.795, 0.81]
    seeds, images = np.var(values, ddof=1) / 5, 0.8 * 0.2 / 1000
    dof = (seeds + images) ** 2 / (seeds**2 / 4 + images**2 / 999)
    expected = stats.t.interval(0.95, dof, loc=0.8, scale=math.sqrt(seeds + images))
    assert with_images(sample(values, images=1000)) == pytest.approx(expected, rel=REL)
    over_seeds = stats.t.interval(0.95, 1, loc=0.8, scale=0.01)  # never narrower than that
    assert with_images(sample([0.79, 0.81], images=1000)) == pytest.approx(over_seeds, rel=REL)
    for unknown in (sample([0.8], images=1000), sample(values)):
        assert all(math.isnan(v) for v in with_images(unknown))


@pytest.mark.parametrize("sd", [0.0005, 0.002, 0.005, 0.01])
def test_the_seeds_needed_are_the_fewest_that_do(sd):
    n = seeds_needed(sd)
    half = {k: stats.t.ppf(0.975, k - 1) * sd / math.sqrt(k) for k in range(2, n + 1)}
    assert half[n] <= 0.005
    assert all(width > 0.005 for k, width in half.items() if k < n)
    assert (seeds_needed(0.1), math.isnan(seeds_needed(0.0))) == (math.inf, True)  # beyond 30


@pytest.mark.parametrize("family", [1, 21])
def test_the_seeds_that_would_decide_are_the_fewest_that_do(family):
    a, b = [0.70, 0.72, 0.71], [0.60, 0.75, 0.66]
    one = minus(a, b, images=5000)
    low, high = seeds_to_decide(one, family)
    assert 3 < low <= high
    va, vb, images = np.var(a, ddof=1), np.var(b, ddof=1), one.se_images**2
    dof_now = (va + vb) ** 2 / (va**2 / 2 + vb**2 / 2)
    for n, tail in ((low, 0.75), (high, 0.25)):
        factor = dof_now / stats.chi2.ppf(tail, dof_now)

        def decides(k, factor=factor):
            parts = [v * factor / k for v in (va, vb)]
            total = sum(parts) + images
            dof = total**2 / sum(p**2 / (k - 1) for p in parts)
            return abs(one.difference) > stats.t.ppf(1 - 0.025 / family, dof) * math.sqrt(total)

        assert n == next((k for k in range(4, 31) if decides(k)), math.inf)


def test_where_the_test_images_prevent_it_no_number_of_seeds_is_advised():
    one = minus([0.70, 0.71, 0.72], [0.68, 0.69, 0.70], images=50)
    assert seeds_to_decide(one, 5) == (math.inf, math.inf)
    assert all(math.isnan(n) for n in seeds_to_decide(minus([0.7], [0.6]), 5))


def test_with_fewer_seeds_and_images_than_named_flat_cannot_be_shown():
    sd, p, family = 0.008, 0.6, 4
    seeds, images = equivalence_needs(sd, p, family)

    def shown(n, big):
        se = math.sqrt(2 * sd**2 / n + 2 * p * (1 - p) / big)
        return equivalence(0.0, se, 1e9)[2] < 0.05 / family

    assert shown(seeds, images)
    assert not shown(seeds - 1, images - images // 20)
    assert all(math.isnan(v) for v in equivalence_needs(math.nan, p, family))


def test_the_spreads_interval_is_that_of_the_chi_square():
    quantiles = stats.chi2.ppf((0.975, 0.025), 4)
    assert sd_interval(0.3, 4) == pytest.approx(tuple(0.3 * np.sqrt(4 / quantiles)), rel=REL)
