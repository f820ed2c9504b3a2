"""Claim 6 of the check: hyperplane, sphere, and what is lost."""

import functools
from dataclasses import replace

import numpy as np
import pytest
import torch
from norms_under_test import AlmostInvariant, ForgetsEps, Own, WrongGroups, subject
from torch import Tensor, nn

from gnexp.checks.claims.geometry import jacobian, measure
from gnexp.checks.finding import FAILS, HOLDS, VACUOUS, Finding, Measured, conditional
from gnexp.checks.subject import NormError

NORMS = ("bn", "gn", "ln", "in", "none")
CHANNELS = 16  # of the layer whose Jacobian is taken, where the norm can be built with them
PIXELS = 4  # 2x2
OVER_THE_BATCH = conditional("taken over each channel of the whole batch")


class NoAffine(nn.Module):
    """Group norm without gamma and beta."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, num_channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class OnlyCentred(Own):
    """Takes the mean away and leaves the scale."""

    def standardize(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(x), self.groups, -1)
        return (rows - rows.mean(2, keepdim=True)).reshape(x.shape)


class Deaf(Own):
    """Returns beta whatever it is given."""

    def standardize(self, x: Tensor) -> Tensor:
        return 0 * x


class Detached(Own):
    """Passes no gradient to its input."""

    def standardize(self, x: Tensor) -> Tensor:
        return super().standardize(x.detach())


class NoGraph(nn.Module):
    """Has neither a parameter nor a gradient."""

    def __init__(self, num_channels: int, groups: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x.detach()


@functools.cache
def measured(norm: str | type[nn.Module], groups: int | None = None) -> Measured:
    return measure(subject(norm, groups))


def row(norm: str | type[nn.Module], statement: str, groups: int | None = None) -> Finding:
    return next(f for f in measured(norm, groups).findings if f.statement == statement)


def spectrum(norm: str | type[nn.Module], n: int, groups: int | None = None) -> np.ndarray:
    points = measured(norm, groups).points
    chosen = [p for p in points if p.panel == "singular values" and p.series == f"N = {n}"]
    assert [p.x for p in chosen] == [rank / len(chosen) for rank in range(1, len(chosen) + 1)]
    return np.array([p.y for p in chosen])


def formula_spectrum(values_per_set: int, sets: int) -> np.ndarray:
    """Singular values over the largest of `sets` blocks of the article's formula, in NumPy."""
    n, ratio = values_per_set, 1e4  # variance over eps
    x = np.random.default_rng(0).standard_normal(n)
    xhat = (x - x.mean()) / x.std() * (ratio / (1 + ratio)) ** 0.5
    block = np.eye(n) - np.ones((n, n)) / n - np.outer(xhat, xhat) / n
    values = np.linalg.svd(block, compute_uv=False)
    return np.sort(np.tile(values / values.max(), sets))


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("norm", "values_per_set"),
    [
        ("bn", lambda n: n * PIXELS),
        ("gn", lambda n: CHANNELS // 8 * PIXELS),
        ("ln", lambda n: CHANNELS * PIXELS),
        ("in", lambda n: PIXELS),
    ],
)
def test_the_singular_values_are_those_of_the_formula_in_every_set(norm, values_per_set, n):
    size = values_per_set(n)
    expected = formula_spectrum(size, n * CHANNELS * PIXELS // size)
    got = spectrum(norm, n)
    np.testing.assert_allclose(got, np.maximum(expected, 1e-16), rtol=1e-6, atol=1e-13)  # float64


def test_without_a_norm_nothing_is_lost():
    assert spectrum("none", 2).min() == pytest.approx(1, abs=1e-12)  # float64
    assert row("none", "lost").verdict == FAILS
    assert row("none", "lost_per_example").verdict == FAILS
    assert "nothing is lost" in row("none", "lost").measured


@pytest.mark.parametrize(("norm", "each"), [("gn", 16), ("ln", 2), ("in", 32)])
def test_norms_of_one_example_lose_two_directions_per_group_of_each_example(norm, each):
    finding = row(norm, "lost")
    assert finding.verdict == HOLDS
    assert finding.value == each
    assert row(norm, "lost_per_example").verdict == HOLDS


def test_batch_norm_loses_two_directions_per_channel_whatever_the_batch():
    assert row("bn", "lost").measured.startswith("32, 32, 32 of 64, 128, 192")
    assert row("bn", "lost").verdict == FAILS
    assert row("bn", "lost_per_example").verdict == FAILS


@pytest.mark.parametrize(("groups", "channels"), [(2, 16), (32, 32), (64, 64)])
def test_the_jacobian_takes_as_many_channels_as_the_groups_need(groups, channels):
    finding = row("gn", "lost", groups)
    assert finding.verdict == HOLDS
    assert finding.value == 2 * groups
    assert f"{channels} channels" in finding.note
    assert len(spectrum("gn", 3, groups)) <= 800


def test_the_jacobian_is_the_one_of_finite_differences():
    s = subject("gn", channels=8)
    x = torch.tensor(np.random.default_rng(0).standard_normal((2, 8, 2, 2)))
    layer, step = nn.GroupNorm(8, 8).double(), 1e-6
    columns = []
    for i in range(x.numel()):
        moved = torch.zeros(x.numel(), dtype=x.dtype)
        moved[i] = step
        moved = moved.view_as(x)
        columns.append(((layer(x + moved) - layer(x - moved)) / (2 * step)).reshape(-1).detach())
    # float64, differences of size 1e-6 of numbers of size 1
    np.testing.assert_allclose(jacobian(s, x), torch.stack(columns, dim=1), rtol=0, atol=1e-8)


@pytest.mark.parametrize("statement", ["mean", "radius", "sum_of_outputs", "sum_per_channel"])
def test_hyperplane_sphere_and_sums_hold_in_the_sets_that_the_norm_uses(statement):
    verdicts = [row(norm, statement).verdict for norm in NORMS]
    assert verdicts == [OVER_THE_BATCH, HOLDS, HOLDS, HOLDS, FAILS]


@pytest.mark.parametrize("statement", ["mean_direction", "scale_direction"])
def test_a_norm_loses_the_mean_exactly_and_the_scale_but_for_eps(statement):
    verdicts = [row(norm, statement).verdict for norm in NORMS]
    assert verdicts == [HOLDS, HOLDS, HOLDS, HOLDS, FAILS]


def test_the_radius_is_sqrt_n_only_where_the_variance_is_far_above_eps():
    points = [p for p in measured("gn").points if p.panel == "radius"]
    for series in ("measured", "expected"):
        line = sorted((p.x, p.y) for p in points if p.series == series)
        assert line[0][1] < 0.3
        assert line[-1][1] == pytest.approx(1, abs=1e-5)
        for x, y in line:  # the mean over sets of unequal variances is not the mean's radius
            assert y == pytest.approx((x / (1 + x)) ** 0.5, rel=0.1)


def test_gamma_and_beta_of_each_channel_break_the_sum_of_outputs_and_not_its_form_per_channel():
    assert "each channel: 0.5" in row("gn", "sum_of_outputs").note
    assert row("gn", "sum_per_channel").value < 1e-12  # float64


def test_a_norm_that_lets_some_scale_through_loses_the_mean_alone():
    for norm in (AlmostInvariant, OnlyCentred):
        assert row(norm, "lost").value == 8
        assert row(norm, "lost").verdict == FAILS
        assert row(norm, "mean").verdict == HOLDS
        assert row(norm, "radius").verdict == FAILS
        assert row(norm, "scale_direction").verdict == FAILS


def test_without_eps_the_scale_is_lost_exactly():
    assert row(ForgetsEps, "lost").verdict == HOLDS
    assert row(ForgetsEps, "scale_direction").verdict == FAILS


@pytest.mark.parametrize("statement", ["mean", "radius", "lost", "sum_of_outputs"])
def test_half_as_many_groups_as_stated_are_found_out(statement):
    assert row(WrongGroups, statement).verdict == FAILS


@pytest.mark.parametrize("norm", [Deaf, Detached])
def test_a_layer_that_passes_nothing_of_its_input_back_has_lost_everything(norm):
    assert row(norm, "lost").measured.startswith("64, 128, 192 of 64, 128, 192")
    assert row(norm, "lost").verdict == FAILS


def test_a_layer_without_any_gradient_is_named():
    with pytest.raises(NormError, match="NoGraph passes no gradient"):
        measured(NoGraph)


def test_a_layer_without_gamma_and_beta_is_judged_with_one_and_zero():
    finding = row(NoAffine, "sum_of_outputs")
    assert finding.verdict == HOLDS
    assert "no gamma per channel: 1; no beta per channel: 0" in finding.note


def test_every_norm_gives_the_same_statements_in_the_same_words():
    norms = (*NORMS, NoAffine, Deaf, OnlyCentred)
    said = {tuple((f.statement, f.text, f.what) for f in measured(n).findings) for n in norms}
    assert len(said) == 1


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    measure(subject("gn"))
    assert torch.equal(torch.get_rng_state(), before)


MANY = conditional("a statistic has more than two values")


@pytest.mark.parametrize(
    ("norm", "verdict", "told"),
    [
        ("bn", MANY, "signs alone or nothing at N = 2; refused at N = 1"),
        ("gn", MANY, "signs alone or nothing at C = 16;"),  # 2 channels in each of 8 groups
        ("ln", HOLDS, ""),
        ("in", FAILS, "signs alone or nothing at N = 2, 8; refused at N = 1"),  # one value
        ("none", VACUOUS, ""),
    ],
)
def test_on_one_pixel_outputs_are_signs_where_a_statistic_has_two_values(norm, verdict, told):
    finding = row(norm, "few_values_1")
    assert finding.verdict == verdict
    assert finding.measured.startswith(told)
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
