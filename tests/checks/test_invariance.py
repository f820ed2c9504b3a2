"""Claim 5 of the check: who is invariant to a x + b, where, and but for eps."""

import functools
from unittest import mock

import numpy as np
import pytest
import torch
from norms_under_test import AlmostInvariant, ForgetsEps, Own, Peeks, WrongGroups, subject
from torch import nn

from gnexp.checks.claims import invariance
from gnexp.checks.finding import FAILS, HOLDS, Finding, Measured, conditional

NORMS = ("bn", "gn", "ln", "in", "none")
SCOPES = ("group", "channel", "example", "batch_channel", "batch")
TRAINING = conditional("training: evaluation uses stored statistics")


class TracksStatistics(nn.InstanceNorm2d):
    """Instance norm that evaluates with running statistics, as PyTorch offers it."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__(num_channels, affine=True, track_running_stats=True)


class LargeEps(Own):
    """Group norm whose eps is a thousand times the usual one, and stated."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__(num_channels, groups, eps=1e-2)


class NoBeta(nn.Module):
    """Group norm without any parameter."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, num_channels, affine=False)

    def forward(self, x):
        return self.norm(x)


class Noisy(Own):
    """Adds noise of a ten-thousandth from the global random state."""

    def standardize(self, x):
        return super().standardize(x) + 1e-4 * torch.randn_like(x)


class AlwaysZero(nn.Module):
    """Returns zeros."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__()

    def forward(self, x):
        return 0 * x


@functools.cache
def measured(norm: str | type[nn.Module]) -> Measured:
    with mock.patch.object(invariance, "trained_findings", return_value=[]):  # have own tests
        return invariance.measure(subject(norm))


def row(norm: str | type[nn.Module], statement: str) -> Finding:
    return next(f for f in measured(norm).findings if f.statement == statement)


def curve(norm: str, series: str) -> dict[float, float]:
    return {p.x: p.y for p in measured(norm).points if p.panel == "a" and p.series == series}


@pytest.mark.parametrize(
    ("norm", "verdicts"),
    [
        ("bn", (FAILS, FAILS, FAILS, TRAINING, TRAINING)),
        ("gn", (HOLDS, FAILS, HOLDS, FAILS, HOLDS)),
        ("ln", (HOLDS, FAILS, HOLDS, FAILS, HOLDS)),
        ("in", (HOLDS, HOLDS, HOLDS, HOLDS, HOLDS)),
        ("none", (FAILS, FAILS, FAILS, FAILS, FAILS)),
        (TracksStatistics, (TRAINING,) * 5),  # the groups that it is told of hold its channels
    ],
)
def test_a_norm_is_invariant_exactly_where_its_sets_lie_within_those_that_share_a_and_b(
    norm, verdicts
):
    assert tuple(row(norm, f"unchanged_{scope}").verdict for scope in SCOPES) == verdicts


@pytest.mark.parametrize("statement", ["sign_flip", "vanishing"])
def test_sign_flip_and_vanishing_scale_hold_for_the_norms_of_one_example_alone(statement):
    verdicts = [row(norm, statement).verdict for norm in NORMS]
    assert verdicts == [FAILS, HOLDS, HOLDS, HOLDS, FAILS]


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in", LargeEps, NoBeta])
def test_the_departure_is_the_one_that_eps_predicts(norm):
    finding = row(norm, "eps_predicts")
    assert finding.verdict == HOLDS
    assert finding.value == pytest.approx(1, abs=1e-8)  # float64, a departure of 4e-3


@pytest.mark.parametrize("norm", ["none", ForgetsEps, AlmostInvariant])
def test_a_departure_that_is_not_that_of_eps_is_found_out(norm):
    assert row(norm, "eps_predicts").verdict == FAILS


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


def test_the_matrix_has_a_point_for_every_scope_with_the_value_of_its_row():
    points = [p for p in measured("gn").points if p.panel == "matrix"]
    assert [p.x for p in points] == [0, 1, 2, 3, 4]
    assert [p.y for p in points] == [row("gn", f"unchanged_{scope}").value for scope in SCOPES]


@pytest.mark.parametrize("statement", ["unchanged_group", "sign_flip", "network_scale"])
def test_one_percent_of_the_scale_let_through_is_not_invariance(statement):
    assert row(AlmostInvariant, statement).verdict == FAILS


def test_a_norm_that_peeks_is_invariant_only_when_the_whole_batch_is_scaled_alike():
    verdicts = [row(Peeks, f"unchanged_{scope}").verdict for scope in SCOPES]
    assert verdicts == [FAILS, FAILS, FAILS, FAILS, HOLDS]


def test_half_as_many_groups_as_stated_are_found_out():
    assert row(WrongGroups, "unchanged_group").verdict == FAILS
    assert row(WrongGroups, "unchanged_example").verdict == HOLDS


def test_without_eps_a_vanishing_scale_leaves_an_output_of_size_one():
    assert row(ForgetsEps, "unchanged_group").verdict == HOLDS
    finding = row(ForgetsEps, "vanishing")
    assert finding.verdict == FAILS
    assert finding.value > 100


def test_a_large_eps_moves_the_tolerance_with_the_departure():
    finding = row(LargeEps, "unchanged_group")
    assert finding.verdict == HOLDS
    assert finding.value > 500 * row("gn", "unchanged_group").value


def test_a_network_is_invariant_to_the_scale_of_its_images_where_its_first_norm_is():
    alike = conditional("all images of the batch have one a")
    verdicts = [row(norm, "network_scale").verdict for norm in NORMS]
    assert verdicts == [alike, HOLDS, HOLDS, HOLDS, FAILS]


def test_a_shift_of_the_image_is_another_one_for_each_channel_and_seen_by_the_padding():
    padding = "the first convolution is not padded with zeros"
    verdicts = [row(norm, "network_shift").verdict for norm in NORMS]
    bn = conditional(f"{padding} and all images have one b")
    assert verdicts == [bn, FAILS, FAILS, conditional(padding), FAILS]


def test_noise_is_no_invariance_and_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    assert row(Noisy, "unchanged_group").verdict == FAILS
    assert torch.equal(torch.get_rng_state(), before)


def test_zeros_are_measured_without_an_error():
    assert row(AlwaysZero, "eps_predicts").verdict == FAILS


def test_every_norm_gives_the_same_statements_in_the_same_words():
    norms = (*NORMS, NoBeta, AlwaysZero, TracksStatistics)
    said = {tuple((f.statement, f.text, f.what) for f in measured(n).findings) for n in norms}
    assert len(said) == 1
