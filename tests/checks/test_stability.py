"""Claim 8 of the check: how noisy the gradients of gamma and beta are, and what changes it."""

import functools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from norms_under_test import BROKEN, Own, Result, subject
from torch import nn

from gnexp.checks import network_noise
from gnexp.checks.claims import stability
from gnexp.checks.finding import Finding
from gnexp.checks.network_noise import measure_network
from gnexp.checks.power_law import fit, law_verdict, predicted, slope, variance_over_draws
from gnexp.checks.statistic_sets import StatisticSets
from gnexp.checks.subject import NormError
from gnexp.checks.verdicts import FAILS, HOLDS, NOT_MEASURED, UNDECIDED, VACUOUS

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


class Refuses(Own):
    """Takes float64 alone, which networks are not measured in."""

    def forward(self, x):
        if x.dtype == torch.float32:
            raise RuntimeError("no float32")
        return super().forward(x)


def of(norm, **more):
    """Return a subject with images of 16x16 pixels, which take a quarter of the time."""
    whole = subject(BROKEN.get(norm, norm), **more)
    return replace(whole, x_NCHW=whole.x_NCHW[..., ::2, ::2])


def result(found) -> Result:
    found = [*found]
    findings = [each for each in found if isinstance(each, Finding)]
    return Result(findings, [each for each in found if each not in findings])


@functools.cache
def layer(norm: str, draws: int = 48) -> Result:
    return result(stability.measure_layer(of(norm, draws=draws, channels=32)))


@functools.cache
def network(norm: str, draws: int = 12) -> Result:
    return result(measure_network(of(norm, draws=draws)))


@pytest.mark.parametrize("norm", [*NORMS, "wrong groups"])
def test_one_layers_variance_is_1_over_nhw_whatever_shares_a_statistic(norm):
    channels = "channels per group" if norm in ("gn", "wrong groups") else "channels"
    # 48 draws of 32 channels: a standard error of 4 % a point, eps far less.
    for series, power in ((channels, 0), ("H x W", -1), ("batch", -1)):
        line = layer(norm).line("one layer, gamma", series)
        first = min(line)
        assert len(line) >= 4
        assert line == pytest.approx({x: (x / first) ** power for x in line}, rel=0.25)
    times = float(layer(norm)["layer_batch_2"].note.rsplit(" ", 1)[1])
    assert times == pytest.approx(1, abs=0.2)
    # C = 32: 32 to 2 groups, N = 2 examples of 4x8 pixels; the other uses half as many groups.
    values = {"gn": "32 to 512 values", "wrong groups": "64 to 1024 values"}.get(norm, "")
    assert f"{values} per statistic" in layer(norm)["channels"].what


@pytest.mark.parametrize("norm", NORMS)
def test_the_rule_of_values_per_statistic_gets_the_verdict_it_deserves(norm):
    found = layer(norm)
    grows = norm not in ("bn", "in")  # whether a larger C means more values per statistic
    assert found["channels"].expected == ("exponent -1" if grows else "exponent 0")
    assert found.verdicts("channels", "pixels", "batch", "layer_batch_2") == [
        *(FAILS if grows else VACUOUS, PIXELS_ONLY_WHEN),
        *(HOLDS if norm == "bn" else FAILS, FAILS),
    ]
    assert bool(found["channels"].note)
    assert ("there is no statistic" in found["batch"].note) == (norm == "none")
    assert ("compared with its like" in found["layer_batch_2"].note) == (norm == "bn")


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_few_draws_make_nothing_hold(norm):
    verdicts = layer(norm, draws=4).verdicts() + network(norm, draws=4).verdicts()
    assert len(verdicts) == 10
    assert set(verdicts) <= {UNDECIDED, FAILS}
    assert layer(norm, draws=4)["pixels"].verdict == UNDECIDED


def test_noise_falls_as_1_over_the_batch_where_examples_stay_apart():
    for kind in ("gamma", "beta"):
        found = network("gn")[f"network_batch_{kind}"]
        assert found.lo < -1 < found.hi
        assert (found.expected, found.verdict) == ("exponent 0", FAILS)
        assert "batch 1 to 32" in found.what


def test_batch_1_stands_apart_where_examples_mix_and_batchnorm_is_as_noisy_as_itself():
    for kind in ("gamma", "beta"):
        found = network("bn", 40)[f"network_batch_{kind}"]
        assert "batch 2 to 32" in found.what
        assert "batch 1 is another function" in found.note
        assert found.expected == "exponent -1"
        itself = network("bn", 40)[f"network_noise_{kind}"]
        assert itself.lo < 1 < itself.hi
        assert itself.value != 1, "on batches of its own"
        assert HOLDS not in (itself.verdict, network("bn", 40)[f"network_relative_{kind}"].verdict)
        mixed, apart = (network(norm, 4).line(f"network, {kind}", "noise") for norm in ("bn", "in"))
        assert tuple(mixed) == network_noise.BATCHES
        # The same images: one alone is normalized alike (float32), two are not.
        assert mixed[1] == pytest.approx(apart[1], rel=1e-3)
        assert mixed[2] > 1.1 * apart[2]


def test_noise_of_a_network_is_that_of_its_single_examples():
    few = of("gn", draws=64)
    few = replace(few, x_NCHW=few.x_NCHW[:32], y_N=few.y_N[:32])
    net = network_noise._network(few, 0)
    gammas = [m.weight for m in net.modules() if isinstance(m, nn.GroupNorm)]
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
    absolute = network_noise._ratio(ours, theirs, relative=False)[0]
    assert absolute == pytest.approx(mean["noise"] / 4, rel=1e-12)
    weak = [{"noise": 4.0, "signal": (-1) ** i * 0.5 + 0.1} for i in range(8)]
    assert all(map(math.isnan, network_noise._ratio(ours, weak, relative=True)))


def test_a_network_that_overflows_is_undecided_and_no_crash():
    found = result(measure_network(of(Explodes, draws=4)))
    assert set(found.verdicts()) == {UNDECIDED}
    assert "not finite" in found["network_batch_gamma"].measured
    assert not found.points


def test_a_gamma_without_effect_and_a_layer_without_gamma_give_every_row():
    idle = result(stability.measure(of(IgnoresGamma, draws=4, channels=16)))
    assert "zero" in idle["channels"].measured
    plain = replace(of("gn", draws=4, channels=16), regroup=None)
    plain = replace(plain, build=lambda c: nn.GroupNorm(8, c, affine=False))
    none = result(stability.measure(plain))
    assert set(none.verdicts()) == {NOT_MEASURED}
    assert [*none.rows] == [*idle.rows]


def test_a_norm_that_raises_in_a_network_is_named():
    with pytest.raises(NormError, match=r"Refuses in resnet8, batch 1: .*no float32"):
        result(measure_network(of(Refuses, draws=4)))


def test_laws_and_variances_are_those_of_numpy():
    x = (1, 2, 4, 8)
    law = fit(x, [(3 * n**-0.5, 0.01) for n in x])
    assert law.mean == pytest.approx(-0.5, abs=1e-12)  # float64
    assert (law_verdict(law, -0.5), law_verdict(law, 0.0)) == (HOLDS, FAILS)
    assert math.isnan(fit(x, [(0.0, 0.01)] * 4).mean)
    y = [1.0, 3.0, 2.0, 5.0]
    assert slope(x, y) == pytest.approx(np.polyfit(np.log(x), np.log(y), 1)[0], rel=1e-12)
    assert math.isnan(slope(x, [1.0, 0.0, 2.0, 5.0]))
    g_KC = np.random.default_rng(0).normal(5, 2, (4000, 3))
    found = variance_over_draws(torch.from_numpy(g_KC))
    assert found[0] == pytest.approx(g_KC.var(axis=0, ddof=1).mean(), rel=1e-12)
    # Of n independent normal values: sqrt(2 / n), here of 12,000.
    assert found[1] == pytest.approx((2 / g_KC.size) ** 0.5, rel=0.1)
    assert (predicted((2, 4), (10, 20)), predicted((2, 4), (7, 7))) == (-1, 0)
    assert StatisticSets("group", 2).size(3, 4, 5, 6) == 60


def test_an_error_counts_channels_that_move_together_once():
    g_K = torch.from_numpy(np.random.default_rng(1).normal(size=(1000, 1)))
    alone, copies = variance_over_draws(g_K), variance_over_draws(g_K.expand(-1, 50))
    assert copies[1] == pytest.approx(alone[1], rel=1e-9)
