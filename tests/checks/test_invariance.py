"""Claim 5 of the check: who is invariant to a x + b, where, and but for eps."""

import numpy as np
import pytest
import torch
from norms_under_test import (
    AlmostInvariant,
    Constant,
    Dithers,
    ForgetsEps,
    NoAffine,
    Own,
    Peeks,
    Tracks,
    WrongGroups,
    checked,
)
from torch import nn

from gnexp.checks.finding import Finding
from gnexp.checks.verdicts import FAILS, HOLDS, conditional

SCOPES = ("group", "channel", "example", "batch_channel", "batch")
TRAINING = conditional("training: evaluation uses stored statistics")
UNPADDED = "the first convolution is not padded with zeros"
PADDED_ALIKE = conditional(f"{UNPADDED} and all images have one b")
ALIKE = conditional("all images of the batch have one a")


class LargeEps(Own):
    """Group norm whose eps is a thousand times the usual one, and stated."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__(num_channels, groups, eps=1e-2)


def row(norm: str | type[nn.Module], statement: str) -> Finding:
    return checked("invariance", norm)[statement]


def curve(norm: str, series: str) -> dict[float, float]:
    return checked("invariance", norm).line("a", series)


@pytest.mark.parametrize(
    ("norm", "unchanged", "others", "scale", "shift"),
    [
        # In others: sign_flip, vanishing, eps_predicts.
        ("bn", [FAILS, FAILS, FAILS, TRAINING, TRAINING], "ffh", ALIKE, PADDED_ALIKE),
        ("gn", [HOLDS, FAILS, HOLDS, FAILS, HOLDS], "hhh", HOLDS, FAILS),
        ("ln", [HOLDS, FAILS, HOLDS, FAILS, HOLDS], "hhh", HOLDS, FAILS),
        ("in", [HOLDS] * 5, "hhh", HOLDS, conditional(UNPADDED)),
        ("none", [FAILS] * 5, "fff", FAILS, FAILS),
        # The groups that it is told of hold its channels.
        (Tracks, [TRAINING] * 5, None, None, None),
        (Peeks, [FAILS, FAILS, FAILS, FAILS, HOLDS], None, None, None),  # as one batch alone
        (WrongGroups, [FAILS, FAILS, HOLDS, FAILS, HOLDS], None, None, None),
        (Dithers, [FAILS] * 5, None, None, None),
        (LargeEps, [HOLDS, FAILS, HOLDS, FAILS, HOLDS], "hhh", HOLDS, FAILS),
        (NoAffine, [HOLDS, FAILS, HOLDS, FAILS, HOLDS], "hhh", HOLDS, FAILS),
        (AlmostInvariant, [FAILS] * 5, "fhf", FAILS, FAILS),  # one percent of the scale
        (ForgetsEps, [HOLDS, FAILS, HOLDS, FAILS, HOLDS], "hff", HOLDS, FAILS),
        (Constant, [HOLDS] * 5, "hhf", HOLDS, HOLDS),
    ],
)
def test_a_norm_is_invariant_where_its_sets_lie_within_those_that_share_a_and_b(
    norm, unchanged, others, scale, shift
):
    result = checked("invariance", norm)
    assert result.verdicts(*(f"unchanged_{scope}" for scope in SCOPES)) == unchanged
    if others:
        kinds = "".join(v[0] for v in result.verdicts("sign_flip", "vanishing", "eps_predicts"))
        assert kinds == others
        assert result.verdicts("network_scale", "network_shift") == [scale, shift]
    if others == "hhh":
        departure = result["eps_predicts"].value
        assert departure == pytest.approx(1, abs=1e-8)  # float64, a departure of 4e-3


def test_the_predicted_departure_is_that_of_pytorchs_group_norm():
    """A layer of torch, in numbers of this test alone, at s / eps = 100 and one set."""
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6))
    x = torch.tensor((x - x.mean()) / x.std() * 1e-3**0.5)  # s = 1e-3, eps = 1e-5
    layer = nn.GroupNorm(1, 4, eps=1e-5).double()
    y = layer(x)
    for a, predicted in curve("gn", "eps predicts").items():
        off = ((layer(a * x + 3) - y).abs() / y.abs()).max().item()
        assert off == pytest.approx(predicted, rel=1e-6, abs=1e-9)  # float64
        if a in (0.5, 2.0):  # the first order in eps / s = 1e-2, whose error is some eps / s
            first = 1e-5 / (2 * 1e-3) * abs(1 - 1 / a**2)
            assert predicted == pytest.approx(first, rel=0.05)


def test_the_curve_of_an_invariant_norm_lies_on_what_eps_predicts_and_the_others_far_above():
    predicted = curve("gn", "eps predicts")
    for a, y in curve("gn", "each example and group").items():
        assert y == pytest.approx(predicted[a], rel=1e-6, abs=1e-12)  # float64
    for a, y in curve("bn", "each example and group").items():
        assert y > 0.1 > predicted[a] or a < 1 / 4


def test_eps_is_what_a_vanishing_scale_and_the_tolerance_depend_on():
    assert row(ForgetsEps, "vanishing").value > 100
    assert row(LargeEps, "unchanged_group").value > 500 * row("gn", "unchanged_group").value
