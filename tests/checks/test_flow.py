"""Claim 7: the check states what each norm does to a gradient, and denies what it does not."""

import dataclasses
import functools
import math

import numpy as np
import pytest
from norms_under_test import BROKEN, Own, subject
from torch import nn

from gnexp.checks import gradient_by_depth
from gnexp.checks.claims import flow
from gnexp.checks.finding import FAILS, HOLDS, UNDECIDED, VACUOUS, Finding, Measured, conditional
from gnexp.checks.gradient_by_depth import block_gradients, verdict_by_depth

NORMS = ("bn", "gn", "ln", "in", "none")
LAYER = (
    *("self_regulating", "backward_scale", "batch_mates", "batch_size"),
    *("weights_whole", "weights_filter"),
)


@functools.cache
def measured(norm: str) -> Measured:
    """Claim 7 with the shallowest networks and one initialization."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_by_depth, "DEPTHS", (8,))
        return flow.measure(subject(BROKEN.get(norm, norm), draws=4))


def verdicts(norm: str) -> dict[str, str]:
    return {finding.statement: finding.verdict for finding in measured(norm).findings}


def by_depth(norm, family: str, at: int, draws: int = 64) -> tuple[Finding, Measured]:
    """Return the finding on networks of one depth, and all that was measured."""
    images = subject("gn").x_NCHW[:, :, ::4, ::4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_by_depth, "DEPTHS", (at,))
        of = dataclasses.replace(subject(norm, draws=draws), x_NCHW=images)
        gradient_by_depth.by_depth(of, result := Measured(), family, "networks")
    return result.findings[0], result


@pytest.mark.parametrize("norm", [*NORMS, *BROKEN])
def test_every_norm_gets_the_same_statements(norm):
    assert tuple(verdicts(norm)) == (*LAYER, "depth_resnet", "depth_plain")


def test_what_holds_exactly_for_gn_ln_and_in():
    for norm, groups in (("gn", 8), ("ln", 1)):
        got = [verdicts(norm)[statement] for statement in LAYER]
        assert got == 5 * [HOLDS] + [
            conditional(f"the filters of a group (G = {groups}) share the factor")
        ]
    assert [verdicts("in")[statement] for statement in LAYER] == 6 * [HOLDS]


def test_bn_regulates_itself_filter_by_filter_but_through_the_batch():
    got = [verdicts("bn")[statement] for statement in LAYER]
    assert got == [HOLDS, HOLDS, FAILS, FAILS, HOLDS, HOLDS]


def test_without_a_norm_nothing_is_regulated_and_nothing_shared():
    got = [verdicts("none")[statement] for statement in LAYER]
    assert got == [FAILS, FAILS, VACUOUS, VACUOUS, FAILS, FAILS]


def test_norms_that_are_a_little_off_are_found_out():
    assert verdicts("peeks")["batch_mates"] == FAILS
    assert verdicts("peeks")["batch_size"] == FAILS
    for statement in ("self_regulating", "backward_scale", "weights_whole", "weights_filter"):
        assert verdicts("almost invariant")[statement] == FAILS


def test_the_measured_scale_is_that_of_the_formula():
    of = subject("gn")
    got = {
        p.x: p.y
        for p in measured("gn").points
        if p.series == "measured" and p.panel == "backward scale"
    }
    x = flow.with_equal_sets(of.features("flow", 4)).numpy()
    dy = of.normal("flow dy", *x.shape).numpy().reshape(4 * 8, -1)
    for sigma in (1e-3, 0.1, 1.0, 100.0):
        rows = sigma * x.reshape(4 * 8, -1)  # consecutive channels are a group
        rows = rows - rows.mean(1, keepdims=True)
        sd = np.sqrt(np.square(rows).mean(1, keepdims=True) + 1e-5)
        xhat = rows / sd
        dx = (dy - dy.mean(1, keepdims=True) - xhat * (dy * xhat).mean(1, keepdims=True)) / sd
        assert got[sigma] == pytest.approx(
            np.linalg.norm(dx) / np.linalg.norm(dy), rel=1e-9
        )  # float64


def test_scaled_weights_scale_their_gradient_by_the_inverse():
    for norm, power in (("bn", -1), ("none", 0)):
        points = [p for p in measured(norm).points if p.panel == "scaled weights"]
        for point in points:
            expected = point.x**power if point.series == "weights" else point.x ** (power + 1)
            assert point.y == pytest.approx(expected, rel=1e-3)


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
    finding, result = by_depth("bn", "plain", 56)
    assert result.points[0].y > 1000  # larger at the first block: it grows on its way back
    assert finding.verdict == FAILS
    assert finding.value > 1000
    finding, result = by_depth("ln", "resnet", 56)
    assert finding.verdict == HOLDS
    assert finding.n == 4
    assert [p.y for p in result.points][-1] == 1  # relative to the last of 27 blocks
    assert len(result.points) == 27


def test_one_initialization_decides_nothing():
    assert by_depth("ln", "resnet", 8)[0].verdict == HOLDS
    finding, _ = by_depth("ln", "resnet", 8, draws=4)
    assert finding.verdict == UNDECIDED
    assert finding.n == 1


def test_gradients_that_overflow_or_vanish_altogether_fail_and_do_not_crash():
    class Explodes(Own):
        def standardize(self, x):
            return 1e9 * x

    class Vanishes(Own):
        def standardize(self, x):
            return 1e-12 * x

    for norm in (Explodes, Vanishes):
        finding, _ = by_depth(norm, "plain", 20)
        assert finding.verdict == FAILS
        assert finding.value == math.inf
        assert "zero or not finite" in finding.measured


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        ((HOLDS, HOLDS, HOLDS), HOLDS),
        ((HOLDS, HOLDS, FAILS), conditional("the depth is at most 56")),
        ((HOLDS, UNDECIDED, FAILS), conditional("the depth is at most 20")),
        ((HOLDS, HOLDS, UNDECIDED), UNDECIDED),
        ((UNDECIDED, FAILS, FAILS), FAILS),
        ((FAILS, HOLDS, HOLDS), FAILS),
    ],
)
def test_depths_share_one_verdict(of, expected):
    assert verdict_by_depth(dict(zip((20, 56, 110), of, strict=True))) == expected
