"""Claims 3 and 4: what depends on the batch, and what differs between training and evaluation."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from norms_under_test import Own, Peeks, Tracks, check, checked, subject
from torch import nn

from gnexp.checks.claims import train_vs_eval
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED, VACUOUS, conditional

OUTPUTS = [f"{done}_output" for done in ("one_mate", "all_mates", "batch_size")]
INDEPENDENT = OUTPUTS + [name.replace("output", "gradient") for name in OUTPUTS]
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


class PeeksBack(Own):
    """Looks at the example before, not at the next one."""

    def standardize(self, x):
        return super().standardize(x + 0.01 * x.roll(-1, 0))


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


class OfTheMoment(nn.BatchNorm2d):
    """Batch norm without running statistics."""

    def __init__(self, num_channels, groups):
        super().__init__(num_channels, track_running_stats=False)


def batch(norm, draws=16):
    return checked("batch_independence", norm, draws)


def modes(norm):
    return checked("train_test", norm, 16)


@pytest.mark.parametrize("norm", ["gn", "in", "none", Tracks])
def test_norms_of_single_examples_are_independent_of_the_batch(norm):
    found = batch(norm, draws=4)
    # Nothing is left to fall; and without a statistic nothing could depend on the batch at all.
    assert found.verdicts(*INDEPENDENT) == [VACUOUS if norm == "none" else HOLDS] * 6
    assert found.verdicts(*FALLS) == [VACUOUS] * 4
    assert all(row.note for row in found.rows.values() if row.verdict == VACUOUS)
    assert all(found[s].value <= 1e-10 for s in INDEPENDENT)  # relative, float64
    assert all(found[s].measured.startswith("no dependence") for s in FALLS)
    assert {p.x for p in found.points} == {2, 4, 8, 16, 32, 64}
    assert {p.y for p in found.points} == {1e-16}  # for log axes


@pytest.mark.parametrize("norm", [PeeksBack, OfTheMoment])
def test_norms_that_look_at_the_batch_are_caught_at_it(norm):
    assert set(batch(norm, 4).verdicts(*OUTPUTS)) == {FAILS}


def test_batch_norm_s_dependence_falls_as_means_over_the_batch_do():
    found = batch("bn")
    assert {found[s].note for s in INDEPENDENT} == {"in evaluation mode: 0"}
    assert found.verdicts(*OUTPUTS, *FALLS) == [FAILS] * 3 + [HOLDS] * 4
    for s, theory in zip(FALLS, (-1, -1, -0.5, -0.5)):
        # The next order in 1/N steepens the gradient's fall by 0.05 from N = 8 on.
        assert found[s].value == pytest.approx(theory, abs=0.08)
        assert found[s].lo < found[s].value < found[s].hi


def test_the_exponents_of_known_laws_are_found():
    leaks, more, less = (batch(norm) for norm in (Leaks, LeaksMore, LeaksLess))
    assert leaks["one_mate_output_falls"].value == pytest.approx(-1, abs=0.03)
    assert leaks["all_mates_output_falls"].value == pytest.approx(-0.5, abs=0.03)
    assert leaks.verdicts(*FALLS) == [HOLDS, VACUOUS, HOLDS, VACUOUS]
    # x.mean(0) is linear: no mate enters the gradient.
    assert leaks["one_mate_gradient_falls"].measured.startswith("no dependence")
    assert more["one_mate_output_falls"].value == pytest.approx(-0.5, abs=0.03)
    # sqrt(N) times a change of sqrt(N - 1) / N, whose own law the predictor takes for -1/2.
    assert more["all_mates_output_falls"].value == pytest.approx(0, abs=0.05)
    assert less["one_mate_output_falls"].value == pytest.approx(-1.5, abs=0.03)
    failing = (less["one_mate_output_falls"], *(more[s] for s in FALLS if "output" in s))
    assert {row.verdict for row in failing} == {FAILS}  # on either side


def test_looking_at_one_mate_is_no_mean_over_the_batch():
    found = batch(Peeks)
    assert found["all_mates_output_falls"].verdict == FAILS
    assert found["all_mates_output_falls"].value == pytest.approx(0, abs=0.1)
    assert found["one_mate_output_falls"].verdict == UNDECIDED


def test_four_draws_decide_no_exponent():
    found = batch("bn", draws=4)
    assert set(found.verdicts(*FALLS)) == {UNDECIDED}
    assert set(found.verdicts(*INDEPENDENT)) == {FAILS}  # no chance in it
    assert all("at least 9 draws" in found[s].note for s in FALLS)


def simulated(n, draws=3000, pixels=16):
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


@pytest.mark.parametrize("n", [2, 32])
def test_batch_norm_s_changes_are_those_of_a_simulation(n):
    one, every = simulated(n)
    for what, a, b in zip(("output", "gradient"), one, every):
        assert batch("bn").line(what, "one mate")[n] == pytest.approx(a, rel=0.12)  # of 16 draws
        assert batch("bn").line(what, "all mates")[n] == pytest.approx(b, rel=0.12)


def test_what_earlier_passes_left_in_the_layer_is_no_dependence_on_the_batch():
    assert set(batch(Drifts, draws=2).verdicts()) == {HOLDS, VACUOUS}


@pytest.mark.parametrize(
    ("norm", "sets"),
    [
        ("gn", "each example and group (G = 8)"),
        ("in", "each example and group (G = 64)"),
        (OfTheMoment, "each channel of the whole batch"),
    ],
)
def test_statistics_of_the_moment_undo_one_affine_map_of_their_sets_and_no_other_shift(norm, sets):
    found = modes(norm)
    assert found.verdicts(*EQUIVALENT[:3]) == [HOLDS] * 3
    assert found["shift"].verdict == conditional(f"the shift is one affine map for {sets}")
    assert found["shift"].value > 1e-9  # eps leaves a trace in float64


@pytest.mark.parametrize(("name", "shape"), [("channel", (64, 1, 1)), ("pixel", (4, 4))])
def test_the_change_by_another_shift_is_that_of_numpy(name, shape):
    """Of a batch whose channels, or pixels, are shifted apart."""
    random = np.random.default_rng(0)
    x = random.normal(size=(256, 64, 1, 1)) + 4 ** random.uniform(-0.5, 0.5, (256, 64, 1, 1)) * (
        random.normal(size=(256, 64, 4, 4))
    )

    def normed(x):
        rows = x.reshape(len(x), 8, -1)
        rows = rows - rows.mean(2, keepdims=True)
        return rows / rows.std(2, keepdims=True)

    a, b = (random.uniform(size=shape) for _ in range(2))
    expected = np.sqrt(((normed((1 + a) * x + b) - normed(x)) ** 2).mean())
    stated = re.search(rf"([\d.e-]+) by one for each {name}", modes("gn")["shift"].measured)
    assert float(stated[1]) == pytest.approx(expected, rel=0.3)  # one draw of a and b


@pytest.mark.parametrize(
    ("norm", "verdicts"),
    [
        ("bn", [FAILS] * 4),
        ("none", [VACUOUS, VACUOUS, VACUOUS, FAILS]),
        (Tracks, [FAILS, FAILS, FAILS, FAILS]),
    ],
)
def test_running_statistics_part_training_from_evaluation(norm, verdicts):
    found = modes(norm)
    assert found.verdicts(*EQUIVALENT) == verdicts
    buffers = found["no_running_state"].measured
    assert buffers == "no buffers" if norm == "none" else "running_mean, running_var" in buffers
    if norm != Tracks:
        # x has mean 0 and, with spreads uniform in log over [1/2, 2], variance 1 + 15/4 / log 16.
        variance = 1 + 3.75 / np.log(16)
        expected = np.sqrt(0.25 * variance + 0.25) / np.sqrt(variance)
        assert found["shift"].value == pytest.approx(expected, rel=0.05)  # 64 x 64


def test_layers_that_pool_over_anything_take_a_statistic():
    def of(build):
        return replace(subject("none"), build=build, reference=None)

    assert of(lambda c: nn.Tanh()).takes_no_statistic
    for pools in (nn.BatchNorm2d, nn.InstanceNorm2d, lambda c: nn.GroupNorm(c // 2, c)):
        assert not of(pools).takes_no_statistic
    assert not subject("ln2d").takes_no_statistic  # over the channels of one pixel


def test_the_unbiased_running_variance_is_what_is_left_on_a_batch_s_own_statistics():
    gaps = modes("bn").line("gap", "same batch")
    assert len(gaps) == 3
    for n, gap in gaps.items():
        assert gap == pytest.approx(1 - np.sqrt(1 - 1 / (n * 16)), rel=1e-3)  # eps against variance


def test_memory_is_found_where_no_buffer_shows_it_and_a_buffer_that_nothing_reads_is_none():
    hidden, unread = (check("train_test", subject(norm, draws=2)) for norm in (Remembers, Counts))
    assert hidden.verdicts("no_running_state", "no_memory") == [HOLDS, FAILS]
    assert unread.verdicts("no_running_state", "no_memory") == [FAILS, HOLDS]
    assert unread["no_running_state"].measured == "1 of 1: calls"


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
