"""Per-example gradients against Opacus, and the noise of dp-accounting against closed forms."""

import functools

import pytest
import torch
from norms_under_test import subject
from scipy import optimize, stats
from torch import Tensor, nn

from gnexp.measure.dp_accounting import epsilon_spent, noise_multiplier
from gnexp.measure.isolation import per_example_gradients
from gnexp.measure.per_example import per_example_covariance
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import build_norm

PER_EXAMPLE = ("gn", "ln", "in")
RTOL, ATOL = 1e-10, 1e-12  # float64
DELTA = 1e-5


def resnet8(norm: str) -> nn.Module:
    net = build_model("resnet8", functools.partial(build_norm, norm), 10, 8)
    initialize(net, torch.Generator().manual_seed(0))
    return net.double().train()


def of_opacus(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
    """(N, P) by the library's own hooks, formulas written out layer type by layer type."""
    module = pytest.importorskip("opacus", reason="needs opacus").GradSampleModule(
        model, loss_reduction="sum"
    )
    nn.functional.cross_entropy(module(x_NCHW), y_N, reduction="sum").backward()
    rows_NP = torch.cat([p.grad_sample.flatten(1) for p in module.parameters()], dim=1)
    module.to_standard_module()
    return rows_NP


@pytest.mark.parametrize("norm", PER_EXAMPLE)
def test_per_example_gradients_and_the_trace_of_their_covariance_are_those_of_opacus(norm):
    model, data = resnet8(norm), subject("gn")
    x_NCHW, y_N = data.x_NCHW[:6, :, ::2, ::2].double(), data.y_N[:6]
    theirs = of_opacus(resnet8(norm), x_NCHW, y_N)
    ours = per_example_gradients(model, x_NCHW, y_N)
    torch.testing.assert_close(ours, theirs, rtol=RTOL, atol=ATOL)
    rows = per_example_covariance(model, x_NCHW, y_N, chunk=4)
    trace = {row["parameters"]: row["trace"] for row in rows}
    assert trace["all"] == pytest.approx(theirs.numpy().var(axis=0).sum(), rel=RTOL)


def exact_sigma(epsilon: float) -> float:
    """Theorem 8 of Balle & Wang 2018 for sensitivity 1: the least noise of the Gaussian mechanism,
    delta = Phi(1/(2s) - eps s) - e^eps Phi(-1/(2s) - eps s)."""

    def excess(s: float) -> float:
        a, b = 1 / (2 * s), epsilon * s
        return stats.norm.cdf(a - b) - stats.norm.cdf(-a - b) * 2.718281828459045**epsilon - DELTA

    return optimize.brentq(excess, 1e-2, 1e3, xtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.5, 8.0])
def test_the_noise_of_one_full_batch_is_close_above_the_exact_one(epsilon):
    ratio = noise_multiplier(epsilon, DELTA, 64, 64, 1) / exact_sigma(epsilon)
    assert 1 <= ratio < 1.12  # in units of the sensitivity: another unit is off by 2


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_sampling_saves_noise_but_never_more_than_a_pair_of_datasets_allows(epsilon):
    """All examples have gradient -clip/2, replaced or not, but one that has +clip/2.

    The outputs are then a mixture of normals at 0 and 1 (in sensitivities) and a normal at 0.
    """
    n, batch = 1000, 100
    s = noise_multiplier(epsilon, DELTA, n, batch, 1)
    assert s < noise_multiplier(epsilon, DELTA, batch, batch, 1)
    q, growth = batch / n, 2.718281828459045**epsilon
    # The mixture's density exceeds e^eps times the other's above this threshold.
    t = 0.5 + s**2 * torch.tensor((growth - 1 + q) / q, dtype=torch.float64).log().item()
    mixture = (1 - q) * stats.norm.sf(t / s) + q * stats.norm.sf((t - 1) / s)
    assert mixture - growth * stats.norm.sf(t / s) <= DELTA


def test_more_privacy_needs_more_noise_and_what_is_returned_suffices():
    setting = (DELTA, 50_000, 64, 7812)
    noise = [noise_multiplier(epsilon, *setting) for epsilon in (1.0, 2.0, 4.0, 8.0)]
    assert noise == sorted(noise, reverse=True)
    assert len(set(noise)) == 4
    assert epsilon_spent(noise[-1], *setting) <= 8.0 < epsilon_spent(0.999 * noise[-1], *setting)
