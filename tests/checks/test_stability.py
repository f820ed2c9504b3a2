"""Claim 8 of the check: how noisy the gradients of gamma and beta are, and what changes it."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norms_under_test import BROKEN, Own, subject
from torch import nn

from gnexp.checks import network_noise
from gnexp.checks.claims import stability
from gnexp.checks.finding import FAILS, HOLDS, NOT_MEASURED, UNDECIDED, VACUOUS, Measured
from gnexp.checks.network_noise import measure_network
from gnexp.checks.power_law import Variance, fit, predicted, variance_over_draws
from gnexp.checks.statistic_sets import StatisticSets
from gnexp.checks.subject import NormError

NORMS = ("bn", "gn", "ln", "in", "none")
PIXELS_ONLY_WHEN = "holds only when the pixels' upstream gradients are independent"


class Explodes(Own):
    """Overflows float32 in a network, not in one layer of float64."""

    def standardize(self, x):
        return super().standardize(x) * x * 1e18


class IgnoresGamma(Own):
    """Has a gamma that does nothing."""

    def forward(self, x):
        return self.standardize(x) + 0 * self.weight.sum() + self.bias[:, None, None]


def of(norm, **more):
    """Return a subject with images of 16x16 pixels, which take a quarter of the time."""
    whole = subject(BROKEN.get(norm, norm), **more)
    return replace(whole, x_NCHW=whole.x_NCHW[..., ::2, ::2])


@functools.cache
def layer(norm: str, draws: int = 48) -> Measured:
    result = Measured()
    stability.measure_layer(of(norm, draws=draws, channels=32), result)
    return result


@functools.cache
def network(norm: str, draws: int = 12) -> Measured:
    result = Measured()
    measure_network(of(norm, draws=draws), result)
    return result


def row(result: Measured, statement: str):
    return next(f for f in result.findings if f.statement == statement)


def ys(result: Measured, panel: str, series: str) -> np.ndarray:
    points = [(p.x, p.y) for p in result.points if (p.panel, p.series) == (panel, series)]
    return np.array(points).T


@pytest.mark.parametrize("norm", [*NORMS, "wrong groups"])
def test_one_layers_variance_is_1_over_nhw_whatever_shares_a_statistic(norm):
    result = layer(norm)
    channels = "channels per group" if norm in ("gn", "wrong groups") else "channels"
    # 48 draws of 32 channels: a standard error of 4 % a point, eps far less.
    for series, law in ((channels, lambda x: x**0), ("H x W", lambda x: 1 / x), ("batch", None)):
        x, y = ys(result, "one layer, gamma", series)
        expected = law(x) / law(x[0]) if law else x[0] / x
        np.testing.assert_allclose(y, expected, rtol=0.25)
    times = float(row(result, "layer_batch_2").note.rsplit(" ", 1)[1])
    assert times == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("norm", NORMS)
def test_the_rule_of_values_per_statistic_gets_the_verdict_it_deserves(norm):
    result = layer(norm)
    grows = norm not in ("bn", "in")  # whether a larger C means more values per statistic
    assert row(result, "channels").expected == ("exponent -1" if grows else "exponent 0")
    assert row(result, "channels").verdict == (FAILS if grows else VACUOUS)
    assert bool(row(result, "channels").note)
    assert ("there is no statistic" in row(result, "batch").note) == (norm == "none")
    assert ("compared with its like" in row(result, "layer_batch_2").note) == (norm == "bn")
    assert row(result, "pixels").verdict == PIXELS_ONLY_WHEN
    assert row(result, "batch").verdict == (HOLDS if norm == "bn" else FAILS)
    assert row(result, "layer_batch_2").verdict == FAILS


def test_groups_that_are_not_as_told_are_counted_by_measurement():
    told, used = row(layer("gn"), "channels").what, row(layer("wrong groups"), "channels").what
    # C = 32: 32 to 2 groups, N = 2 examples of 4x8 pixels; the other uses half as many groups.
    assert "32 to 512 values per statistic" in told
    assert "64 to 1024 values per statistic" in used


@pytest.mark.parametrize("norm", NORMS)
def test_few_draws_make_nothing_hold(norm):
    findings = layer(norm, draws=4).findings + network(norm, draws=4).findings
    assert len({f.statement for f in findings}) == len(findings) == 10
    assert {f.verdict for f in findings} <= {UNDECIDED, FAILS}
    assert row(layer(norm, draws=4), "pixels").verdict == UNDECIDED


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_noise_falls_as_1_over_the_batch_where_examples_stay_apart(norm):
    for kind in ("gamma", "beta"):
        found = row(network(norm), f"network_batch_{kind}")
        assert found.lo < -1 < found.hi
        assert (found.expected, found.verdict) == ("exponent 0", FAILS)
        assert "batch 1 to 32" in found.what


def test_batch_1_stands_apart_exactly_where_examples_mix():
    for kind in ("gamma", "beta"):
        found = row(network("bn", 40), f"network_batch_{kind}")
        assert "batch 2 to 32" in found.what
        assert "batch 1 is another function" in found.note
        assert found.expected == "exponent -1"
        batches, mixed = ys(network("bn", 4), f"network, {kind}", "noise")
        _, apart = ys(network("in", 4), f"network, {kind}", "noise")
        assert list(batches) == list(network_noise.BATCHES)
        # The same images: one alone is normalized alike (float32), two are not.
        assert mixed[0] == pytest.approx(apart[0], rel=1e-3)
        assert mixed[1] > 1.1 * apart[1]


def test_batchnorm_is_as_noisy_as_itself_and_its_relative_noise_is_not_called_less():
    for kind in ("gamma", "beta"):
        found = row(network("bn", 40), f"network_noise_{kind}")
        assert found.lo < 1 < found.hi
        assert found.value != 1  # on batches of its own
        assert found.verdict != HOLDS
        assert row(network("bn", 40), f"network_relative_{kind}").verdict != HOLDS


def test_noise_of_a_network_is_that_of_its_single_examples():
    few = of("gn", draws=64)
    few = replace(few, x_NCHW=few.x_NCHW[:32], y_N=few.y_N[:32])
    net = network_noise._network(few, 0)
    gammas = [p for m in net.modules() if isinstance(m, nn.GroupNorm) for p in (m.weight,)]
    gradients = []
    for x, y in zip(few.x_NCHW, few.y_N):
        loss = F.cross_entropy(net(x[None]), y[None])
        gradients.append(torch.cat(torch.autograd.grad(loss, gammas)).double())
    trace = torch.stack(gradients).var(dim=0, correction=0).sum().item()
    found = network_noise._noise(few, net, 2, "test")["gamma"]
    # 95 % of 64 draws; float32 rounding is far below.
    assert found["noise_lo"] < trace / 2 < found["noise_hi"]


def test_ratio_of_relative_noise_is_that_of_the_averages_and_unbounded_without_signal():
    rng = np.random.default_rng(0)
    ours = [{"noise": 3 + 0.1 * rng.random(), "signal": 1 + 0.1 * rng.random()} for _ in range(8)]
    theirs = [{"noise": 4.0, "signal": 0.5 + 0.01 * i} for i in range(8)]
    mean = {k: np.mean([r[k] for r in ours]) for k in ("noise", "signal")}
    expected = (mean["noise"] / mean["signal"]) / (4 / 0.535)
    ratio, lo, hi = network_noise._ratio(ours, theirs, relative=True)
    assert ratio == pytest.approx(expected, rel=1e-12)  # float64
    assert lo < ratio < hi < 1.1 * ratio
    assert network_noise._ratio(ours, theirs, relative=False)[0] == pytest.approx(
        mean["noise"] / 4, rel=1e-12
    )
    weak = [{"noise": 4.0, "signal": (-1) ** i * 0.5 + 0.1} for i in range(8)]
    assert all(map(math.isnan, network_noise._ratio(ours, weak, relative=True)))


def test_a_network_that_overflows_is_undecided_and_no_crash():
    result = Measured()
    measure_network(of(Explodes, draws=4), result)
    assert {f.verdict for f in result.findings} == {UNDECIDED}
    assert "not finite" in row(result, "network_batch_gamma").measured
    assert not result.points


def test_a_gamma_without_effect_and_a_layer_without_gamma_give_every_row():
    idle = stability.measure(of(IgnoresGamma, draws=4, channels=16))
    assert "zero" in row(idle, "channels").measured
    plain = replace(of("gn", draws=4, channels=16), regroup=None)
    plain = replace(plain, build=lambda c: nn.GroupNorm(8, c, affine=False))
    none = stability.measure(plain)
    assert {f.verdict for f in none.findings} == {NOT_MEASURED}
    assert [f.statement for f in none.findings] == [f.statement for f in idle.findings]


def test_a_norm_that_raises_in_a_network_is_named():
    class Refuses(Own):
        def forward(self, x):
            if x.dtype == torch.float32:
                raise RuntimeError("no float32")
            return super().forward(x)

    with pytest.raises(NormError, match=r"Refuses in resnet8, batch 1: .*no float32"):
        measure_network(of(Refuses, draws=4), Measured())


def test_laws_and_variances_are_those_of_numpy():
    law = fit((1, 2, 4, 8), [Variance(3 * x**-0.5, 0.01) for x in (1, 2, 4, 8)])
    assert law.exponent == pytest.approx(-0.5, abs=1e-12)  # float64
    assert law.verdict(-0.5) == HOLDS
    assert law.verdict(0.0) == FAILS
    g_KC = np.random.default_rng(0).normal(5, 2, (4000, 3))
    found = variance_over_draws(torch.from_numpy(g_KC))
    assert found.value == pytest.approx(g_KC.var(axis=0, ddof=1).mean(), rel=1e-12)
    # Of n independent normal values: sqrt(2 / n), here of 12,000.
    assert found.error == pytest.approx((2 / g_KC.size) ** 0.5, rel=0.1)
    assert predicted((2, 4), (10, 20)) == -1
    assert predicted((2, 4), (7, 7)) == 0
    assert StatisticSets("group", 2).rows(torch.empty(3, 4, 5, 6)).shape[1] == 60


def test_an_error_counts_channels_that_move_together_once():
    g_K = torch.from_numpy(np.random.default_rng(1).normal(size=(1000, 1)))
    alone, copies = variance_over_draws(g_K), variance_over_draws(g_K.expand(-1, 50))
    assert copies.error == pytest.approx(alone.error, rel=1e-9)
