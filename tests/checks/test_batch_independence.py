"""Claims 3 and 4: what depends on the batch, and what differs between training and evaluation."""

import functools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from norms_under_test import BROKEN, Own, Peeks, subject
from torch import nn

from gnexp.checks import statistic_sets as sets
from gnexp.checks.claims import batch_independence, train_vs_eval
from gnexp.checks.finding import FAILS, HOLDS, UNDECIDED, VACUOUS, conditional
from gnexp.norms.registry import NORMS

INDEPENDENT = [
    f"{done}_{what}"
    for done in ("one_mate", "all_mates", "batch_size")
    for what in ("output", "gradient")
]
FALLS = [
    f"{done}_{what}_falls" for done in ("one_mate", "all_mates") for what in ("output", "gradient")
]
EQUIVALENT = ["same_computation", "no_running_state", "no_memory", "shift"]


class Leaks(Own):
    """Adds a little of the batch mean, which moves by 1 / N."""

    power = 0.0

    def standardize(self, x):
        return super().standardize(x) + 0.01 * len(x) ** self.power * x.mean(0, keepdim=True)


class LeaksMore(Leaks):
    """Adds so much of it that a larger batch helps less."""

    power = 0.5


class LeaksLess(Leaks):
    power = -0.5


class Dithers(Own):
    def standardize(self, x):
        return super().standardize(x) + 1e-3 * torch.randn_like(x)


class Remembers(Own):
    """Keeps what it saw where no buffer shows it."""

    seen = 0.0

    def standardize(self, x):
        if self.training:
            self.seen = float(x.std())
        return super().standardize(x) * (1 + self.seen * (not self.training))


class Counts(Own):
    """Keeps a number that it never uses."""

    def __init__(self, num_channels, groups=8):
        super().__init__(num_channels, groups)
        self.register_buffer("calls", torch.zeros(()))

    def standardize(self, x):
        self.calls += self.training
        return super().standardize(x)


class Drifts(Counts):
    """Lets in what it counted: one pass changes the next."""

    def standardize(self, x):
        return super().standardize(x) * (1 + 1e-3 * self.calls)


def stock(build):
    return replace(subject("none"), build=build, reference=None, draws=16)


STOCK = {
    "bn without running statistics": lambda c: nn.BatchNorm2d(c, track_running_stats=False),
    "in with running statistics": lambda c: nn.InstanceNorm2d(
        c, affine=True, track_running_stats=True
    ),
}


def under_test(norm, draws=16):
    if norm in STOCK:
        return replace(stock(STOCK[norm]), draws=draws)
    return subject(BROKEN.get(norm, norm), draws=draws)


@functools.cache
def batch(norm, draws=16):
    return batch_independence.measure(under_test(norm, draws))


@functools.cache
def modes(norm):
    return train_vs_eval.measure(under_test(norm))


def quick_modes(norm, monkeypatch):
    monkeypatch.setattr(train_vs_eval, "SIZES", (1, 4))
    monkeypatch.setattr(train_vs_eval, "PASSES", 5)
    return train_vs_eval.measure(under_test(norm, draws=2))


def by_statement(result):
    return {finding.statement: finding for finding in result.findings}


@pytest.mark.parametrize("norm", ["gn", "ln", "in", "none", "in with running statistics"])
def test_norms_of_single_examples_are_independent_of_the_batch(norm):
    found = by_statement(batch(norm))
    # Nothing is left to fall; and without a statistic nothing could depend on the batch at all.
    expected = [VACUOUS if norm == "none" else HOLDS] * 6 + [VACUOUS] * 4
    assert [f.verdict for f in found.values()] == expected
    assert all(found[s].note for s in found if found[s].verdict == VACUOUS)
    assert all(found[s].value <= 1e-10 for s in INDEPENDENT)  # relative, float64
    assert all(found[s].measured.startswith("no dependence") for s in FALLS)


@pytest.mark.parametrize("norm", ["bn", "peeks", "bn without running statistics", LeaksMore])
def test_norms_that_look_at_the_batch_are_caught_at_it(norm):
    found = by_statement(batch(norm))
    assert {found[s].verdict for s in INDEPENDENT if "output" in s} == {FAILS}


def test_batch_norm_is_independent_of_the_batch_in_evaluation_mode_alone():
    found = by_statement(batch("bn"))
    assert {found[s].note for s in INDEPENDENT} == {"in evaluation mode: 0"}
    assert "0" not in {found[s].measured for s in INDEPENDENT}


def test_batch_norm_s_dependence_falls_as_means_over_the_batch_do():
    found = by_statement(batch("bn"))
    assert [found[s].verdict for s in FALLS] == [HOLDS] * 4
    for s, theory in zip(FALLS, (-1, -1, -0.5, -0.5)):
        # The next order in 1/N steepens the gradient's fall by 0.05 from N = 8 on.
        assert found[s].value == pytest.approx(theory, abs=0.08)
        assert found[s].lo < found[s].value < found[s].hi


def test_the_exponents_of_known_laws_are_found():
    leaks, more = by_statement(batch(Leaks)), by_statement(batch(LeaksMore))
    assert leaks["one_mate_output_falls"].value == pytest.approx(-1, abs=0.03)
    assert leaks["all_mates_output_falls"].value == pytest.approx(-0.5, abs=0.03)
    assert [leaks[s].verdict for s in FALLS] == [HOLDS, VACUOUS, HOLDS, VACUOUS]
    # x.mean(0) is linear: no mate enters the gradient.
    assert leaks["one_mate_gradient_falls"].measured.startswith("no dependence")
    assert more["one_mate_output_falls"].value == pytest.approx(-0.5, abs=0.03)
    # sqrt(N) times a change of sqrt(N - 1) / N, whose own law the predictor takes for -1/2.
    assert more["all_mates_output_falls"].value == pytest.approx(0, abs=0.05)
    less = by_statement(batch(LeaksLess))["one_mate_output_falls"]
    assert less.value == pytest.approx(-1.5, abs=0.03)
    assert less.verdict == more["one_mate_output_falls"].verdict == FAILS  # on either side
    assert more["all_mates_output_falls"].verdict == FAILS


def test_looking_at_one_mate_is_no_mean_over_the_batch():
    found = by_statement(batch("peeks"))
    assert found["all_mates_output_falls"].verdict == FAILS
    assert found["all_mates_output_falls"].value == pytest.approx(0, abs=0.1)
    assert found["one_mate_output_falls"].verdict == UNDECIDED


def test_four_draws_decide_no_exponent():
    found = by_statement(batch("bn", draws=4))
    assert {found[s].verdict for s in FALLS} == {UNDECIDED}
    assert {found[s].verdict for s in INDEPENDENT} == {FAILS}  # no chance in it
    assert all(found[s].n == 4 for s in FALLS)


def simulated(n, draws=300, pixels=16):
    """RMS changes of batch normalization in NumPy, with draws of its own: (replaced, what)."""
    random = np.random.default_rng(0)

    def features():
        level, spread = random.normal(size=(n, draws)), 4 ** random.uniform(-0.5, 0.5, (n, draws))
        return level[..., None] + spread[..., None] * random.normal(size=(n, draws, pixels))

    def first(x, v):
        sigma = np.sqrt(x.var(axis=(0, 2)) + 1e-5)[:, None]
        y = (x[0] - x.mean(axis=(0, 2))[:, None]) / sigma
        mean_v, mean_vy = v.sum(1, keepdims=True), (v * y).sum(1, keepdims=True)
        return y, (v - (mean_v + y * mean_vy) / (n * pixels)) / sigma

    x, z, v = features(), features(), random.normal(size=(draws, pixels))
    one, every = x.copy(), z.copy()
    one[1], every[0] = z[1], x[0]
    before = first(x, v)
    return [
        [np.sqrt(((a - b) ** 2).mean() / (b**2).mean()) for a, b in zip(first(changed, v), before)]
        for changed in (one, every)
    ]


@pytest.mark.parametrize("n", [2, 8, 32])
def test_batch_norm_s_changes_are_those_of_a_simulation(n):
    points = {(p.panel, p.series): p.y for p in batch("bn").points if p.x == n}
    one, every = simulated(n, draws=3000)
    for what, a, b in zip(("output", "gradient"), one, every):
        assert points[what, "one mate"] == pytest.approx(a, rel=0.12)  # of 16 draws
        assert points[what, "all mates"] == pytest.approx(b, rel=0.12)


def test_random_numbers_of_the_layer_are_no_dependence_on_the_batch(monkeypatch):
    before = torch.get_rng_state()
    found = by_statement(batch(Dithers, draws=4))
    quick_modes(Dithers, monkeypatch)
    assert torch.equal(torch.get_rng_state(), before)
    assert {found[s].verdict for s in FALLS} == {VACUOUS}
    assert found["all_mates_output"].verdict == HOLDS


def test_what_earlier_passes_left_in_the_layer_is_no_dependence_on_the_batch():
    found = by_statement(batch(Drifts, draws=2))
    assert {f.verdict for f in found.values()} == {HOLDS, VACUOUS}
    assert {found[s].verdict for s in FALLS} == {VACUOUS}


@pytest.mark.parametrize(
    ("norm", "sets"),
    [
        ("gn", "each example and group (G = 8)"),
        ("ln", "each example and group (G = 1)"),
        ("in", "each example and group (G = 64)"),
        ("bn without running statistics", "each channel of the whole batch"),
    ],
)
def test_statistics_of_the_moment_undo_one_affine_map_of_their_sets_and_no_other_shift(norm, sets):
    found = by_statement(modes(norm))
    assert [found[s].verdict for s in EQUIVALENT[:3]] == [HOLDS] * 3
    assert found["shift"].verdict == conditional(f"the shift is one affine map for {sets}")
    assert found["shift"].value > 1e-9  # eps leaves a trace in float64


def test_what_another_shift_changes_is_that_of_numpy():
    """Group and layer norm of a batch whose channels, or pixels, are shifted apart."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 64, 1, 1)) + 4 ** random.uniform(-0.5, 0.5, (256, 64, 1, 1)) * (
        random.normal(size=(256, 64, 4, 4))
    )

    def normed(x, groups):
        rows = x.reshape(len(x), groups, -1)
        rows = rows - rows.mean(2, keepdims=True)
        return rows / rows.std(2, keepdims=True)

    for norm, groups in (("gn", 8), ("ln", 1), ("in", 64)):
        measured = by_statement(modes(norm))["shift"].measured
        for name, shape in (("channel", (64, 1, 1)), ("pixel", (4, 4))):
            a, b = (random.uniform(size=shape) for _ in range(2))
            before, after = normed(x, groups), normed((1 + a) * x + b, groups)
            expected = np.sqrt(((after - before) ** 2).mean())
            told = float(re.search(rf"([\d.e-]+) by one for each {name}", measured)[1])
            if (norm, name) == ("in", "channel"):
                assert max(told, expected) < 1e-5  # eps
            else:
                assert told == pytest.approx(expected, rel=0.3)  # one draw of a and b


def test_a_layer_without_a_statistic_holds_vacuously_what_is_said_of_statistics():
    def verdicts(build):
        found = by_statement(train_vs_eval.measure(replace(stock(build), draws=2)))
        return [found[s].verdict for s in EQUIVALENT[:3]]

    assert [by_statement(modes("none"))[s].verdict for s in EQUIVALENT[:3]] == [VACUOUS] * 3
    assert verdicts(lambda c: nn.GroupNorm(8, c)) == [HOLDS] * 3
    assert sets.takes_no_statistic(stock(lambda c: nn.Tanh()))
    for pools in (nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(c // 2, c)):
        assert not sets.takes_no_statistic(stock(pools))
    assert not sets.takes_no_statistic(subject("ln2d"))  # over the channels of one pixel


def test_batch_norm_is_another_function_in_evaluation():
    found = by_statement(modes("bn"))
    assert [found[s].verdict for s in EQUIVALENT] == [FAILS] * 4
    assert "running_mean, running_var" in found["no_running_state"].measured


def test_running_statistics_and_not_the_batch_part_training_from_evaluation():
    found = by_statement(modes("in with running statistics"))
    assert found["same_computation"].verdict == FAILS
    assert found["no_memory"].verdict == FAILS


def test_without_standardization_both_modes_agree_and_a_shift_goes_through():
    found = by_statement(modes("none"))
    assert [found[s].verdict for s in EQUIVALENT] == [VACUOUS, VACUOUS, VACUOUS, FAILS]


@pytest.mark.parametrize("norm", ["bn", "none"])
def test_a_shift_that_goes_through_changes_the_output_by_the_closed_form(norm):
    # x has mean 0 and, with spreads uniform in log over [1/2, 2], variance 1 + 15/4 / log 16.
    variance = 1 + 3.75 / np.log(16)
    expected = np.sqrt(0.25 * variance + 0.25) / np.sqrt(variance)
    assert by_statement(modes(norm))["shift"].value == pytest.approx(expected, rel=0.05)  # 64 x 64


def test_the_unbiased_running_variance_is_what_is_left_on_a_batch_s_own_statistics():
    gaps = {p.x: p.y for p in modes("bn").points if p.series == "same batch"}
    for n in train_vs_eval.SIZES:
        values = n * 16
        expected = 1 - np.sqrt((values - 1) / values)
        assert gaps[n] == pytest.approx(expected, rel=1e-3)  # eps against the variance


@pytest.mark.parametrize("n", [1, 4, 64])
def test_batch_norm_s_gap_is_that_of_a_simulation(n):
    """Running averages in NumPy, with draws of its own from the same population."""
    random = np.random.default_rng(0)
    population = subject("bn").features("train test", train_vs_eval.POOL).numpy()
    mean, variance, gaps = np.zeros(64), np.ones(64), []
    for i in range(130):
        x = population[random.permutation(len(population))[:n]]
        m, v = x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))
        if i >= 100:
            # (x - mean) / sd of the running statistics, seen from the standardized batch
            a, b = np.sqrt((v + 1e-5) / (variance + 1e-5)), (m - mean) / np.sqrt(variance + 1e-5)
            gaps.append(np.sqrt(((a - 1) ** 2 + b**2).mean()))
        values = n * 16
        mean, variance = 0.9 * mean + 0.1 * m, 0.9 * variance + 0.1 * v * values / (values - 1)
    point = next(p for p in modes("bn").points if (p.series, p.x) == ("same data", n))
    assert point.y == pytest.approx(np.mean(gaps), rel=0.1)
    assert point.lo < point.y < point.hi


def test_memory_is_found_where_no_buffer_shows_it_and_a_buffer_that_nothing_reads_is_none(
    monkeypatch,
):
    hidden, unread = (by_statement(quick_modes(norm, monkeypatch)) for norm in (Remembers, Counts))
    assert (hidden["no_running_state"].verdict, hidden["no_memory"].verdict) == (HOLDS, FAILS)
    assert (unread["no_running_state"].verdict, unread["no_memory"].verdict) == (FAILS, HOLDS)
    assert unread["no_running_state"].measured == "1 of 1: calls"


def test_every_norm_answers_the_same_statements():
    for measure in (batch, modes):
        statements = [[f.statement for f in measure(norm).findings] for norm in NORMS]
        assert all(s == statements[0] for s in statements)
    assert [f.statement for f in batch("gn").findings] == INDEPENDENT + FALLS
    assert [f.statement for f in modes("gn").findings] == EQUIVALENT


def test_the_figures_span_all_batch_sizes():
    for norm in ("gn", "bn"):
        points = batch(norm).points
        assert {(p.panel, p.series) for p in points} == {
            (what, done) for what in ("output", "gradient") for done in ("one mate", "all mates")
        }
        assert {p.x for p in points} == {2, 4, 8, 16, 32, 64}
        assert {p.x for p in modes(norm).points} == {1, 2, 4, 8, 16, 32, 64}
        assert all(p.y >= 1e-16 for p in points + modes(norm).points)  # for log axes


def test_peeks_is_caught_whichever_mate_it_looks_at():
    class PeeksBack(Own):
        def standardize(self, x):
            return super().standardize(x + 0.01 * x.roll(-1, 0))

    for norm in (Peeks, PeeksBack):
        found = by_statement(batch_independence.measure(subject(norm, draws=2)))
        assert found["one_mate_output"].verdict == FAILS
