"""Claim 9, information isolation: what is measured, against closed forms and broken norms."""

import sys

import numpy as np
import pytest
import torch
from norms_under_test import BROKEN, Own, Result, check, checked, subject
from torch import Tensor, nn

from gnexp.checks.claims import isolation
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED, VACUOUS
from gnexp.measure import dp_accounting
from gnexp.measure.isolation import (
    clipped_sum,
    cross_example_share,
    depends_on_the_past,
    moves_of_clipped_sum,
    per_example_gradients,
    state_written,
)

APART = ["layer", "jacobian", "outputs", "losses"]


class Remembers(Own):
    """Standardizes each example alone, then adds what it has kept of the last batch."""

    def __init__(self, num_channels: int, groups: int = 8) -> None:
        super().__init__(num_channels, groups)
        self.register_buffer("last", torch.zeros(num_channels, 1, 1))

    def standardize(self, x: Tensor) -> Tensor:
        y = super().standardize(x) + 0.1 * self.last
        self.last = x.detach().mean(dim=(0, 2, 3))[:, None, None]
        return y


class HidesItsMixing(Own):
    """Pools over the batch, but shows no derivative of it."""

    def standardize(self, x: Tensor) -> Tensor:
        return super().standardize(x) + 1e-6 * x.detach().mean(dim=0)


def measured(norm) -> Result:
    pytest.importorskip("dp_accounting")
    return checked("isolation", norm)


@pytest.fixture
def numbers() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def small_network(norm: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 4 * 4, 5)
        ).double()


def batch(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    x_NCHW = torch.randn(n, 3, 6, 6, generator=g, dtype=torch.float64)
    return x_NCHW, torch.randint(0, 5, (n,), generator=g)


@pytest.mark.parametrize("norm", ["gn", "none"])
def test_a_norm_of_each_example_isolates_exactly(norm):
    found = measured(norm)
    assert found.verdicts(*APART) == [HOLDS if norm == "gn" else VACUOUS] * 4
    assert set(found.verdicts()) - {VACUOUS} == {HOLDS}
    assert [found[statement].value for statement in APART] == [0.0] * 4
    assert found["bound"].value == 2.0
    for statement in ("bound", "sensitivity", "noise"):  # the bound, and what was found beside it
        assert "proven" in found[statement].measured
        assert "largest found" in found[statement].measured


def test_batch_norm_fails_everything_but_its_own_larger_bound_and_needs_n_times_the_noise():
    bn, gn = measured("bn"), measured("gn")
    assert [s for s, row in bn.rows.items() if row.verdict != FAILS] == ["within_bound"]
    assert bn["within_bound"].verdict == HOLDS
    assert bn["noise"].value == pytest.approx(isolation.BATCH * gn["noise"].value, rel=1e-12)
    assert "running_mean and running_var" in bn["noise"].note
    assert "running" not in gn["noise"].note


@pytest.mark.parametrize("norm", [BROKEN["peeks"], HidesItsMixing])
def test_mixing_that_is_small_or_shows_no_derivative_still_loses_the_bound(norm):
    found = measured(norm)
    assert found.verdicts("layer", "outputs", "bound") == [FAILS] * 3
    assert found["jacobian"].verdict == (HOLDS if norm is HidesItsMixing else FAILS)
    # Nothing moved by more than 2 clip, which proves nothing where examples mix.
    assert found["sensitivity"].verdict == UNDECIDED


def test_a_layer_that_remembers_earlier_batches_gets_no_noise():
    found = measured(Remembers)
    assert found.verdicts("layer", "bound", "noise") == [HOLDS, FAILS, FAILS]
    assert np.isnan(found["noise"].value)
    assert "earlier batches" in found["noise"].note


def test_without_the_accountant_only_the_noise_is_undecided(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    dp_accounting.noise_multiplier.cache_clear()
    before = torch.get_rng_state()
    found = check("isolation", subject("gn", draws=2))
    assert found.verdicts() == [HOLDS] * 7 + [UNDECIDED]
    assert "pip install 'gnexp[dp]'" in found["noise"].note
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_points_stay_below_the_bound_and_lie_on_the_batch_sizes(norm):
    line = measured(norm).line
    for size in (2, 8):
        bound = line("sensitivity", "proven upper bound")[size]
        assert bound == (2 * size if norm == "bn" else 2)
        assert 0.5 < line("sensitivity", "largest found")[size] <= bound
        moved = line("cross-example", "10 times the contrast")[size]
        assert 0.1 < moved < 2 if norm == "bn" else moved == 0


def test_the_jacobian_of_batch_norm_is_that_of_the_closed_form(numbers):
    x = 2 * torch.randn(3, 4, 2, 2, generator=numbers, dtype=torch.float64) + 1
    own = cross = 0.0
    example = np.repeat(np.arange(3), 4)  # of the 12 values of a channel
    for values in x.numpy().transpose(1, 0, 2, 3).reshape(4, 12):
        s = np.sqrt(values.var() + 1e-5)
        xhat = (values - values.mean()) / s
        jacobian = (np.eye(12) - 1 / 12 - np.outer(xhat, xhat) / 12) / s
        same = example[:, None] == example[None, :]
        own += (jacobian[same] ** 2).sum()
        cross += (jacobian[~same] ** 2).sum()
    share = cross_example_share(nn.BatchNorm2d(4).double(), x)
    assert share == pytest.approx((cross / (own + cross)) ** 0.5, rel=1e-10)  # float64


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_an_example_has_a_gradient_of_its_own_exactly_where_examples_do_not_mix(norm, numbers):
    layer = nn.BatchNorm2d(8) if norm == "bn" else nn.GroupNorm(2, 8)
    model, (x_NCHW, y_N) = small_network(layer), batch(4, numbers)
    together = per_example_gradients(model, x_NCHW, y_N)
    alone = torch.cat([per_example_gradients(model, x[None], y[None]) for x, y in zip(x_NCHW, y_N)])
    off = (together - alone).norm() / alone.norm()
    assert off < 1e-12 if norm == "gn" else off > 0.01
    nn.functional.cross_entropy(model(x_NCHW), y_N, reduction="sum").backward()
    whole = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(together.sum(dim=0), whole, rtol=1e-10, atol=1e-12)  # float64


def test_clipping_shortens_long_gradients_only():
    g = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    assert clipped_sum(g, 1.0).tolist() == pytest.approx([0.9, 1.2], rel=1e-12)


def test_a_move_is_that_of_the_clipped_sum(numbers):
    model, (x_NCHW, y_N) = small_network(nn.GroupNorm(2, 8)), batch(3, numbers)
    other, label = x_NCHW[2], y_N[2]
    (move,) = moves_of_clipped_sum(model, x_NCHW[:2], y_N[:2], [(other, label)], 0.01)
    a, _, b = (row.numpy() for row in per_example_gradients(model, x_NCHW, y_N))
    difference = 0.01 * a / np.linalg.norm(a) - 0.01 * b / np.linalg.norm(b)
    assert move == pytest.approx(np.linalg.norm(difference), rel=1e-10)


def test_state_and_memory_are_told_apart(numbers):
    x, earlier = (torch.randn(3, 8, 4, 4, generator=numbers).double() for _ in range(2))
    norm, memory = nn.BatchNorm2d(8).double(), Remembers(8, 2).double()
    assert state_written(norm, x) == ["running_mean", "running_var"]
    assert not depends_on_the_past(norm, x, earlier)
    assert state_written(memory, x) == ["last"]
    assert depends_on_the_past(memory, x, earlier)
    assert not depends_on_the_past(nn.Dropout(0.5).double(), x, earlier)
