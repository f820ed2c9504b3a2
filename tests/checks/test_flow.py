"""Claim 7: the check states what each norm does to a gradient, and denies what it does not."""

import dataclasses
import math

import numpy as np
import pytest
from norms_under_test import Own, checked, subject
from torch import nn

from gnexp.checks import gradient_by_depth
from gnexp.checks.finding import Finding, Point
from gnexp.checks.gradient_by_depth import block_gradients, verdict_by_depth
from gnexp.checks.statistic_sets import with_equal_sets
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED, VACUOUS, conditional

LAYER = ("self_regulating", "backward_scale", "batch_mates", "batch_size")
LAYER += ("weights_whole", "weights_filter")


class Explodes(Own):
    def standardize(self, x):
        return 1e9 * x


class Vanishes(Own):
    def standardize(self, x):
        return 1e-12 * x


def by_depth(norm, family: str, at: int, draws: int = 64) -> tuple[Finding, list[Point]]:
    """Return the finding on networks of one depth, and its points."""
    of = subject(norm, draws=draws)
    of = dataclasses.replace(of, x_NCHW=of.x_NCHW[:, :, ::4, ::4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_by_depth, "DEPTHS", (at,))
        *points, finding = gradient_by_depth.by_depth(of, family, "networks")
    return finding, points


def of_a_group(groups):
    return conditional(f"the filters of a group (G = {groups}) share the factor")


@pytest.mark.parametrize(
    ("norm", "verdicts"),
    [
        ("gn", [*5 * [HOLDS], of_a_group(8)]),
        ("ln", [*5 * [HOLDS], of_a_group(1)]),
        ("in", 6 * [HOLDS]),
        ("bn", [HOLDS, HOLDS, FAILS, FAILS, HOLDS, HOLDS]),  # through the batch
        ("none", [FAILS, FAILS, VACUOUS, VACUOUS, FAILS, FAILS]),
        ("peeks", [HOLDS, HOLDS, FAILS, FAILS, HOLDS, of_a_group(8)]),
        ("almost invariant", [FAILS, FAILS, HOLDS, HOLDS, FAILS, FAILS]),
    ],
)
def test_a_norm_regulates_itself_where_its_statistics_reach(norm, verdicts):
    assert checked("flow", norm).verdicts(*LAYER) == verdicts


def test_the_measured_scale_is_that_of_the_formula():
    of, got = subject("gn"), checked("flow", "gn").line("backward scale", "measured")
    x = with_equal_sets(of.features("flow", 4)).numpy()
    dy = of.normal("flow dy", *x.shape).numpy().reshape(4 * 8, -1)
    for sigma in (1e-3, 0.1, 1.0, 100.0):
        rows = sigma * x.reshape(4 * 8, -1)  # consecutive channels are a group
        rows = rows - rows.mean(1, keepdims=True)
        sd = np.sqrt(np.square(rows).mean(1, keepdims=True) + 1e-5)
        xhat = rows / sd
        dx = (dy - dy.mean(1, keepdims=True) - xhat * (dy * xhat).mean(1, keepdims=True)) / sd
        expected = np.linalg.norm(dx) / np.linalg.norm(dy)
        assert got[sigma] == pytest.approx(expected, rel=1e-9)  # float64


@pytest.mark.parametrize(("norm", "power"), [("bn", -1), ("none", 0)])
def test_scaled_weights_scale_their_gradient_by_the_inverse(norm, power):
    for series, exponent in (("weights", power), ("input", power + 1)):
        line = checked("flow", norm).line("scaled weights", series)
        assert len(line) == 5
        assert line == pytest.approx({a: a**exponent for a in line}, rel=1e-3)


def test_the_gradient_at_the_last_block_is_that_of_pooling_and_classifier():
    net, of = subject("gn").network("plain8"), subject("gn")
    x_NCHW, y_N = of.x_NCHW[:4], of.y_N[:4]
    body = nn.Sequential(*list(net.children())[:-3])
    features_NC = body(x_NCHW).mean((2, 3)).detach().double().numpy()
    w, b = (p.detach().double().numpy() for p in (net.fc.weight, net.fc.bias))
    e = np.exp(features_NC @ w.T + b)
    dlogits = (e / e.sum(1, keepdims=True) - np.eye(10)[y_N.numpy()]) / 4
    pixels = 8 * 8
    expected = np.linalg.norm(dlogits @ w / pixels) * math.sqrt(pixels)
    gradients = block_gradients(net, x_NCHW, y_N)
    assert len(gradients) == 3
    assert gradients[-1] == pytest.approx(expected, rel=1e-5)  # float32


def test_gradients_explode_with_depth_in_plain_networks_with_bn_and_stay_in_residual_ones_with_ln():
    finding, points = by_depth("bn", "plain", 56)
    assert points[0].y > 1000  # larger at the first block: it grows on its way back
    assert finding.verdict == FAILS
    assert finding.value > 1000
    finding, points = by_depth("ln", "resnet", 56)
    assert (finding.verdict, finding.n, len(points)) == (HOLDS, 4, 27)
    assert points[-1].y == 1  # relative to the last of 27 blocks


def test_one_initialization_decides_nothing():
    assert by_depth("ln", "resnet", 8)[0].verdict == HOLDS
    finding, _ = by_depth("ln", "resnet", 8, draws=4)
    assert (finding.verdict, finding.n) == (UNDECIDED, 1)


@pytest.mark.parametrize("norm", [Explodes, Vanishes])
def test_gradients_that_overflow_or_vanish_altogether_fail_and_do_not_crash(norm):
    finding, _ = by_depth(norm, "plain", 20)
    assert (finding.verdict, finding.value) == (FAILS, math.inf)
    assert "zero or not finite" in finding.measured


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ((HOLDS, HOLDS, HOLDS), HOLDS),
        ((HOLDS, UNDECIDED, FAILS), conditional("the depth is at most 20")),
        ((HOLDS, HOLDS, UNDECIDED), UNDECIDED),
        ((UNDECIDED, FAILS, FAILS), FAILS),
        ((FAILS, HOLDS, HOLDS), FAILS),
    ],
)
def test_depths_share_one_verdict(of, expected):
    assert verdict_by_depth(dict(zip((20, 56, 110), of, strict=True))) == expected
