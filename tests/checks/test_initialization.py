"""Claim 10: what gamma at the end of each residual branch does before training and at its start."""

import math

import numpy as np
import pytest
import torch
from norms_under_test import Own, checked, subject
from torch.nn import functional as F

from gnexp.checks import first_updates
from gnexp.checks.finding import Point
from gnexp.checks.signal_growth import BlockSignal, growth, set_last_gamma, trace
from gnexp.checks.subject import NormError
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED
from gnexp.models.resnet import zero_last_gamma

IDENTITIES = ("identity", "identity_post_activation")


class Leaks(Own):
    """Lets a little through whatever gamma is."""

    def forward(self, x):
        return super().forward(x) + 1e-6 * x


class Bare(Own):
    """Has no gamma."""

    def __init__(self, num_channels, groups=8):
        super().__init__(num_channels, groups)
        del self.weight

    def forward(self, x):
        return self.standardize(x)


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_with_a_norm_the_articles_block_adds_gamma_squared_and_the_usual_one_less(norm):
    got = checked("initialization", norm, draws=64)
    assert got.verdicts("branch", "uncorrelated", "growth", *IDENTITIES) == [HOLDS] * 5
    assert got["growth_of_gamma"].verdict in (HOLDS, UNDECIDED)  # eight seeds are few
    assert got["growth_post_activation"].verdict == FAILS
    # relu(x + r) walks as |z|, z normal of variance k: Var |z| = (1 - 2/pi) k
    assert got["growth_post_activation"].value == pytest.approx(1 - 2 / math.pi, abs=0.06)
    assert got["adds_up"].verdict == "holds only when no block changes the shape"


def test_without_a_norm_the_variance_does_not_grow_by_gamma_squared_but_gamma_0_is_the_identity():
    got = checked("initialization", "none", draws=64)
    assert got.verdicts("branch", "growth") == [FAILS] * 2
    assert got.verdicts(*IDENTITIES) == [HOLDS] * 2


def test_one_seed_decides_nothing_that_chance_is_in():
    growths = ("growth", "growth_of_gamma", "growth_post_activation")
    got = checked("initialization", "gn").verdicts("uncorrelated", *growths, "adds_up")
    assert got == [UNDECIDED] * 5


def test_a_branch_that_leaks_at_gamma_0_is_no_identity():
    assert checked("initialization", Leaks).verdicts(*IDENTITIES) == [FAILS] * 2


def test_a_norm_without_gamma_is_named():
    with pytest.raises(NormError, match="has none"):
        checked("initialization", Bare)


def test_the_traced_signal_is_that_of_the_formulas():
    of = subject("bn")
    net, x_NCHW = of.network("preresnet8"), of.x_NCHW[:2]
    set_last_gamma(of, net, 0.5)

    def normalized(u, gamma):  # BN of a batch, in float64
        mean = u.mean((0, 2, 3), keepdim=True)
        variance = u.var((0, 2, 3), correction=0, keepdim=True)
        return gamma * (u - mean) / (variance + 1e-5).sqrt()

    weight = {name: w.double() for name, w in net.state_dict().items()}
    x = normalized(F.conv2d(x_NCHW.double(), weight["conv1.weight"], padding=1), 1)
    u = F.conv2d(x.relu(), weight["stage1.0.conv1.weight"], padding=1)
    u = F.conv2d(normalized(u, 1).relu(), weight["stage1.0.conv2.weight"], padding=1)
    r = normalized(u, 0.5)
    first, *rest = trace(net, x_NCHW)
    assert first.before == pytest.approx(x.numpy().var(), rel=1e-4)  # float32
    assert first.branch == pytest.approx(r.numpy().var(), rel=1e-4)
    assert first.variance == pytest.approx((x + r).numpy().var(), rel=1e-4)
    correlation = np.corrcoef(x.flatten(), r.flatten())[0, 1]
    assert first.correlation == pytest.approx(correlation, abs=1e-4)
    assert [block.resized for block in (first, *rest)] == [False, True, True]


def test_growth_is_counted_within_stages():
    pairs = zip([0, 0, 0, 1, 1, 1], [5, 6, 7, 3, 5, 7])
    blocks = [BlockSignal(stage, 0, variance, 0, 0, False, False) for stage, variance in pairs]
    assert growth(blocks) == pytest.approx(1.5)  # 1 in the first stage, 2 in the second


def test_the_losses_are_those_of_a_plain_loop_over_the_same_batches(monkeypatch):
    monkeypatch.setattr(first_updates, "UPDATES", 4)
    of = subject("gn")
    losses_SU = first_updates._losses(of, 0.05, 2, zero_gamma=True)
    for seed in range(2):
        net = of.network("preresnet20", seed=seed)
        zero_last_gamma(net)
        sgd = torch.optim.SGD(net.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
        for update in range(4):
            batch = first_updates._batch(of, seed, update)
            loss = F.cross_entropy(net(of.x_NCHW[batch][:, :, ::2, ::2]), of.y_N[batch])
            assert losses_SU[seed, update] == pytest.approx(loss.item(), rel=1e-4)  # float32
            sgd.zero_grad()
            loss.backward()
            sgd.step()


CALM = [[2.3, 2.3], [2.3, 2.31], [2.3, 2.29]]
RISEN = [[2.3, 3.0], [2.3, 3.1], [2.3, 2.9]]


@pytest.mark.parametrize(
    ("one_SU", "zero_SU", "verdict"),
    [
        (RISEN, CALM, HOLDS),
        (CALM, CALM, FAILS),
        (CALM, RISEN, FAILS),
        ([RISEN[0], CALM[0], CALM[0]], CALM, UNDECIDED),
        (RISEN[:1], CALM[:1], UNDECIDED),
        ([[2.3, 100.0]] * 3, CALM, HOLDS),
    ],
)
def test_the_verdict_on_the_first_updates_is_that_of_the_interval(one_SU, zero_SU, verdict):
    found = first_updates._finding(subject("gn"), "", np.array(one_SU), np.array(zero_SU))
    assert found.verdict == verdict
    assert found.n == len(one_SU)
    assert ("diverged with gamma 1: 3 of 3" in found.measured) == (one_SU[0][1] == 100.0)


def test_both_rates_are_measured_and_a_training_that_diverges_counts(monkeypatch):
    monkeypatch.setattr(first_updates, "UPDATES", 3)
    monkeypatch.setattr(first_updates, "RATES", {"": 0.01, "_fast": 1e4})
    *points, row = first_updates.first_updates(subject("none", draws=16))
    assert row.statement == "first_updates_fast"
    assert "diverged with gamma 1: 2 of 2" in row.measured
    assert "first_updates" in {getattr(each, "statement", "") for each in points}
    points = [each for each in points if isinstance(each, Point)]
    assert {(p.panel, p.series) for p in points} == {
        (f"first updates, rate {rate}", f"gamma {gamma}")
        for rate in ("0.01", "10000")
        for gamma in (0, 1)
    }
    assert max(p.y for p in points) == first_updates.DIVERGED
