"""Claim 6 of the check: hyperplane, sphere, and what is lost."""

from dataclasses import replace

import numpy as np
import pytest
from norms_under_test import (
    AlmostInvariant,
    Constant,
    ForgetsEps,
    NoAffine,
    Own,
    WrongGroups,
    checked,
    subject,
)
from torch import Tensor, nn

from gnexp.checks.finding import Finding
from gnexp.checks.verdicts import FAILS, HOLDS, VACUOUS, conditional

CHANNELS = 16  # of the layer whose Jacobian is taken, where the norm can be built with them
PIXELS = 4  # 2x2
OVER_THE_BATCH = conditional("taken over each channel of the whole batch")
MANY = conditional("a statistic has more than two values")


class OnlyCentred(Own):
    """Takes the mean away and leaves the scale."""

    def standardize(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.groups, -1)
        return (rows - rows.mean(2, keepdim=True)).reshape(x.shape)


class Detached(Own):
    """Passes no gradient to its input."""

    def standardize(self, x: Tensor) -> Tensor:
        return super().standardize(x.detach())


def row(norm: str | type[nn.Module], statement: str, groups: int | None = None) -> Finding:
    return checked("geometry", norm, groups=groups)[statement]


def spectrum(norm: str | type[nn.Module], n: int, groups: int | None = None) -> np.ndarray:
    line = checked("geometry", norm, groups=groups).line("singular values", f"N = {n}")
    assert [*line] == [rank / len(line) for rank in range(1, len(line) + 1)]
    return np.array([*line.values()])


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(
    ("norm", "of_example", "of_batch"), [("bn", 0, 4), ("gn", 8, 0), ("ln", 64, 0), ("in", 4, 0)]
)
def test_the_singular_values_are_those_of_the_formula_in_every_set(norm, of_example, of_batch, n):
    values, ratio = of_example + n * of_batch, 1e4  # variance over eps
    x = np.random.default_rng(0).standard_normal(values)
    xhat = (x - x.mean()) / x.std() * (ratio / (1 + ratio)) ** 0.5
    block = np.eye(values) - np.ones((values, values)) / values - np.outer(xhat, xhat) / values
    expected = np.linalg.svd(block, compute_uv=False)
    expected = np.sort(np.tile(expected / expected.max(), n * CHANNELS * PIXELS // values))
    # float64
    np.testing.assert_allclose(spectrum(norm, n), expected.clip(1e-16), rtol=1e-6, atol=1e-13)


SETS = ("mean", "radius", "sum_of_outputs", "sum_per_channel")
LOST = ("lost", "lost_per_example", "mean_direction", "scale_direction")


@pytest.mark.parametrize(
    ("norm", "in_sets", "lost", "counted"),
    [
        ("bn", [OVER_THE_BATCH] * 4, "ffhh", "32, 32, 32 of 64, 128, 192: 32 per batch"),
        ("gn", [HOLDS] * 4, "hhhh", "16, 32, 48 of 64, 128, 192: 16 per example"),
        ("ln", [HOLDS] * 4, "hhhh", "2, 4, 6"),
        ("in", [HOLDS] * 4, "hhhh", "32, 64, 96"),
        ("none", [FAILS] * 4, "ffff", "0, 0, 0 of 64, 128, 192: nothing is lost"),
        (AlmostInvariant, [HOLDS, FAILS, HOLDS, HOLDS], "fhff", "8, 16, 24"),  # the mean alone
        (OnlyCentred, [HOLDS, FAILS, HOLDS, HOLDS], "fhff", "8, 16, 24"),
        (ForgetsEps, [HOLDS, FAILS, HOLDS, HOLDS], "hhff", "16, 32, 48"),  # the scale exactly
        (WrongGroups, [FAILS] * 4, "fhhh", "8, 16, 24"),
        (Constant, [HOLDS, FAILS, HOLDS, HOLDS], "fhff", "64, 128, 192 of 64, 128, 192"),
        (Detached, [HOLDS] * 4, "fhff", "64, 128, 192 of 64, 128, 192"),
        (NoAffine, [HOLDS] * 4, "hhhh", "16, 32, 48"),
    ],
)
def test_a_norm_lies_on_a_sphere_and_loses_directions_where_its_sets_are(
    norm, in_sets, lost, counted
):
    result = checked("geometry", norm, groups=None)
    assert result.verdicts(*SETS) == in_sets
    assert "".join(verdict[0] for verdict in result.verdicts(*LOST)) == lost
    assert result["lost"].measured.startswith(counted)


@pytest.mark.parametrize(("groups", "channels"), [(2, 16), (32, 32), (64, 64)])
def test_the_jacobian_takes_as_many_channels_as_the_groups_need(groups, channels):
    finding = row("gn", "lost", groups)
    assert (finding.verdict, finding.value) == (HOLDS, 2 * groups)
    assert f"{channels} channels" in finding.note
    assert len(spectrum("gn", 3, groups)) <= 800


def test_the_radius_is_sqrt_n_only_where_the_variance_is_far_above_eps():
    for series in ("measured", "expected"):
        line = sorted(checked("geometry", "gn", groups=None).line("radius", series).items())
        assert line[0][1] < 0.3
        assert line[-1][1] == pytest.approx(1, abs=1e-5)
        for x, y in line:  # the mean over sets of unequal variances is not the mean's radius
            assert y == pytest.approx((x / (1 + x)) ** 0.5, rel=0.1)


def test_gamma_and_beta_of_each_channel_break_the_sum_of_outputs_and_not_its_form_per_channel():
    assert "each channel: 0.5" in row("gn", "sum_of_outputs").note
    absent = "no gamma per channel: 1; no beta per channel: 0"
    assert absent in row(NoAffine, "sum_of_outputs").note
    assert row("gn", "sum_per_channel").value < 1e-12  # float64


@pytest.mark.parametrize(
    ("norm", "verdict", "stated"),
    [
        ("bn", MANY, "signs alone or nothing at N = 2; refused at N = 1"),
        ("gn", MANY, "signs alone or nothing at C = 16;"),  # 2 channels in each of 8 groups
        ("ln", HOLDS, ""),
        ("in", FAILS, "signs alone or nothing at N = 2, 8; refused at N = 1"),  # one value
        ("none", VACUOUS, ""),
    ],
)
def test_on_one_pixel_outputs_are_signs_where_a_statistic_has_two_values(norm, verdict, stated):
    finding = row(norm, "few_values_1")
    assert finding.verdict == verdict
    assert finding.measured.startswith(stated)
    assert row(norm, "few_values_2").verdict == (VACUOUS if norm == "none" else HOLDS)


def test_the_spread_of_outputs_is_that_of_numpy_s_standardized_values():
    found = {}
    for channels in (16, 32, 64):
        for n in (1, 2, 8):
            of = replace(subject("gn"), channels=channels)
            x = 1e3 * of.features("geometry few", n, 1, 1).numpy().reshape(n * 8, -1)
            y = x - x.mean(1, keepdims=True)
            y = np.abs(y / y.std(1, keepdims=True))  # eps is 1e-5, variances 1e5 and more
            found[channels, n] = y.std() / np.sqrt((y**2).mean())
    assert max(found[16, n] for n in (1, 2, 8)) < 1e-6  # 1 and -1
    least = min(spread for (channels, _), spread in found.items() if channels > 16)
    assert row("gn", "few_values_1").measured.endswith(f"else {least:.2g} or more")
