"""Claim 2: GN reaches from LN to IN, and who lies on that spectrum. Float64 throughout."""

from dataclasses import replace

import numpy as np
import pytest
from norms_under_test import AlmostInvariant, Own, Peeks, WrongGroups, check, checked, subject

from gnexp.checks.claims import spectrum
from gnexp.checks.subject import NormError
from gnexp.checks.verdicts import FAILS, HOLDS, VACUOUS

ONE_EXAMPLE = "holds only when the batch is one example"
ALIKE = "holds only when the channels of all groups are alike in distribution"
G = (1, 2, 4, 8, 16, 32, 64)


@pytest.mark.parametrize(
    ("norm", "on_it", "is_ln", "is_in", "to_ln", "to_in"),
    [
        ("gn", HOLDS, HOLDS, HOLDS, HOLDS, ALIKE),
        ("ln", HOLDS, HOLDS, FAILS, VACUOUS, VACUOUS),  # its groups cannot be chosen
        ("in", HOLDS, FAILS, HOLDS, VACUOUS, VACUOUS),
        ("bn", ONE_EXAMPLE, FAILS, ONE_EXAMPLE, ONE_EXAMPLE, ONE_EXAMPLE),
        ("none", FAILS, FAILS, FAILS, FAILS, FAILS),
        (Own, HOLDS, HOLDS, HOLDS, HOLDS, ALIKE),
        (Peeks, FAILS, FAILS, FAILS, HOLDS, ALIKE),
        (AlmostInvariant, FAILS, FAILS, FAILS, HOLDS, ALIKE),
    ],
)
def test_a_norm_is_where_it_belongs_on_the_spectrum(norm, on_it, is_ln, is_in, to_ln, to_in):
    assert checked("spectrum", norm).verdicts() == [on_it, is_ln, is_ln, is_in, is_in, to_ln, to_in]


def test_more_groups_than_it_has_are_not_believed():
    fixed = replace(subject(WrongGroups), regroup=None)
    finding = check("spectrum", fixed)["spectrum"]
    assert finding.verdict == FAILS
    assert "G = 4, off by" in finding.measured
    assert finding.expected == "0 for G = 8, as it says"
    silent = replace(fixed, groups=None)
    assert check("spectrum", silent)["spectrum"].verdict == HOLDS


def test_a_norm_that_cannot_have_the_groups_it_is_asked_for_is_named():
    with pytest.raises(NormError, match="WrongGroups"):  # half of one group is none
        checked("spectrum", WrongGroups)


def test_groups_counted_the_wrong_way_round_move_the_wrong_way():
    gn = subject("gn")
    turned = replace(gn, regroup=lambda c, groups: gn.regroup(c, c // groups))
    found = check("spectrum", turned)
    assert found.verdicts("one_group_forward", "to_ln", "to_in") == [FAILS] * 3


class Detaches(Own):
    """Takes mean and variance for constants on the way back."""

    def standardize(self, x):
        rows = x.reshape(len(x), self.groups, -1)
        mean = rows.mean(2, keepdim=True).detach()
        variance = rows.var(2, correction=0, keepdim=True).detach()
        return ((rows - mean) / (variance + self.eps).sqrt()).reshape(x.shape)


def test_the_right_output_with_the_wrong_gradient_is_not_enough():
    for end in ("one_group", "c_groups"):
        verdicts = checked("spectrum", Detaches).verdicts(f"{end}_forward", f"{end}_backward")
        assert verdicts == [HOLDS, FAILS]


def closed_form(x_NCHW, groups):
    """The distances to LN and IN from standard deviations alone; eps left out."""
    x = x_NCHW.numpy().reshape(len(x_NCHW), groups, 64 // groups, -1)
    s = x.reshape(len(x), -1).std(axis=1)
    s_g = x.reshape(len(x), groups, -1).std(axis=2)
    s_c = x.std(axis=3)
    to_ln = 2 * (1 - np.mean(s_g / s[:, None]))
    to_in = 2 * (1 - np.mean(s_c / s_g[:, :, None]))
    return np.sqrt(np.maximum(0, (to_ln, to_in)))


@pytest.mark.parametrize("panel", ["distance", "distance, unlike channels"])
def test_the_distances_are_those_of_the_closed_form(panel):
    gn = subject("gn")
    alike = panel == "distance"
    x_NCHW = gn.features("spectrum", 4) if alike else spectrum._unlike_channels(gn)
    points = [p for p in checked("spectrum", "gn").points if p.panel == panel]
    found = {(p.series, p.x): p.y for p in points}
    expected = {}
    for groups in G:
        to_ln, to_in = closed_form(x_NCHW, groups)
        expected |= {("to LN", groups): to_ln, ("to IN", groups): to_in}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)  # eps shifts float64 by 1e-5


@pytest.mark.parametrize(("norm", "groups"), [("ln", 1), ("in", 64)])
def test_a_fixed_norm_is_one_point_of_gn_s_curve(norm, groups):
    curve = {(p.panel, p.series, p.x): p.y for p in checked("spectrum", "gn").points}
    points = checked("spectrum", norm).points
    assert {p.x for p in points} == {groups}
    assert len(points) == 4
    for p in points:
        assert p.y == pytest.approx(curve[p.panel, p.series, p.x], abs=1e-12)  # float64
