"""Claim 10: what gamma at the end of each residual branch does before training and at its start."""

import functools
import math

import numpy as np
import pytest
import torch
from norms_under_test import BROKEN, Own, subject
from torch.nn import functional as F

from gnexp.checks import first_updates
from gnexp.checks.claims import initialization
from gnexp.checks.finding import FAILS, HOLDS, UNDECIDED, Measured
from gnexp.checks.signal_growth import SignalTrace, set_last_gamma, trace
from gnexp.checks.subject import NormError
from gnexp.models.resnet import zero_last_gamma

KEYS = (
    *("branch", "uncorrelated", "growth", "growth_of_gamma", "growth_post_activation", "adds_up"),
    *("identity", "identity_post_activation"),
)


class Leaks(Own):
    """Lets a little through whatever gamma is."""

    def forward(self, x):
        return super().forward(x) + 1e-6 * x


@functools.cache
def measured(norm, draws: int = 64) -> Measured:
    """Claim 10 at depth 20, without training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initialization, "DEPTHS", (20,))
        patch.setattr(initialization, "DEPTH_OF_GAMMAS", 20)
        patch.setattr(initialization, "first_updates", lambda subject, result: None)
        return initialization.measure(subject(BROKEN.get(norm, norm), draws=draws))


def verdicts(norm, draws: int = 64) -> dict[str, str]:
    return {finding.statement: finding.verdict for finding in measured(norm, draws).findings}


def values(norm) -> dict[str, float]:
    return {finding.statement: finding.value for finding in measured(norm).findings}


@pytest.mark.parametrize("norm", ["bn", "gn", "ln", "in"])
def test_with_every_norm_the_articles_block_adds_gamma_squared_and_the_usual_one_less(norm):
    got = verdicts(norm)
    assert tuple(got) == KEYS
    assert got["branch"] == got["uncorrelated"] == got["growth"] == HOLDS
    assert got["growth_of_gamma"] in (HOLDS, UNDECIDED)  # at this depth eight seeds are few
    assert got["growth_post_activation"] == FAILS
    # relu(x + r) walks as |z|, z normal of variance k: Var |z| = (1 - 2/pi) k
    assert values(norm)["growth_post_activation"] == pytest.approx(1 - 2 / math.pi, abs=0.06)
    assert got["adds_up"] == "holds only when no block changes the shape"
    assert got["identity"] == got["identity_post_activation"] == HOLDS


def test_without_a_norm_the_variance_does_not_grow_by_gamma_squared_but_gamma_0_is_the_identity():
    got = verdicts("none")
    assert got["branch"] == got["growth"] == FAILS
    assert got["identity"] == got["identity_post_activation"] == HOLDS


def test_one_seed_decides_nothing_that_chance_is_in():
    got = verdicts("gn", draws=4)
    for statement in ("uncorrelated", "growth", "growth_of_gamma", "growth_post_activation"):
        assert got[statement] == UNDECIDED
    assert got["adds_up"] == UNDECIDED


def test_a_branch_that_leaks_at_gamma_0_is_no_identity():
    got = verdicts(Leaks, draws=4)
    assert got["identity"] == got["identity_post_activation"] == FAILS


def test_a_norm_without_gamma_is_told_so():
    class Bare(Own):
        def __init__(self, num_channels, groups=8):
            super().__init__(num_channels, groups)
            del self.weight

        def forward(self, x):
            return self.standardize(x)

    with pytest.raises(NormError, match="has none"):
        measured(Bare)


def test_the_traced_signal_is_that_of_the_formulas():
    of = subject("bn")
    net, x_NCHW = of.network("preresnet8"), of.x_NCHW[:2]
    set_last_gamma(of, net, 0.5)

    def normalized(u, gamma):  # BN of a batch, in float64
        mean, variance = (
            u.mean((0, 2, 3), keepdim=True),
            u.var((0, 2, 3), correction=0, keepdim=True),
        )
        return gamma * (u - mean) / (variance + 1e-5).sqrt()

    weight = {name: w.double() for name, w in net.state_dict().items()}
    x = normalized(F.conv2d(x_NCHW.double(), weight["conv1.weight"], padding=1), 1)
    start = x.numpy().var()
    u = F.conv2d(x.relu(), weight["stage1.0.conv1.weight"], padding=1)
    u = F.conv2d(normalized(u, 1).relu(), weight["stage1.0.conv2.weight"], padding=1)
    r = normalized(u, 0.5)
    seen = trace(net, x_NCHW)
    assert seen.start == pytest.approx(start, rel=1e-4)  # float32
    assert seen.branch[0] == pytest.approx(r.numpy().var(), rel=1e-4)
    assert seen.variance[0] == pytest.approx((x + r).numpy().var(), rel=1e-4)
    correlation = np.corrcoef(x.flatten(), r.flatten())[0, 1]
    assert seen.correlation[0] == pytest.approx(correlation, abs=1e-4)
    assert seen.resized == [False, True, True]


def test_growth_is_counted_within_stages():
    seen = SignalTrace(stage=[0, 0, 0, 1, 1, 1], variance=[5, 6, 7, 3, 5, 7])
    assert seen.slope() == pytest.approx(1.5)  # 1 in the first stage, 2 in the second


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


def finding(one_SU, zero_SU, suffix=""):
    return first_updates._finding(subject("gn"), suffix, np.array(one_SU), np.array(zero_SU))


def test_the_verdict_on_the_first_updates_is_that_of_the_interval():
    calm = [[2.3, 2.3], [2.3, 2.31], [2.3, 2.29]]
    risen = [[2.3, 3.0], [2.3, 3.1], [2.3, 2.9]]
    assert finding(risen, calm).verdict == HOLDS
    assert finding(calm, calm).verdict == finding(calm, risen).verdict == FAILS
    assert finding([[2.3, 3.0], [2.3, 2.3], [2.3, 2.3]], calm).verdict == UNDECIDED
    assert finding(risen[:1], calm[:1]).verdict == UNDECIDED


def test_a_training_that_diverges_counts_and_does_not_crash(monkeypatch):
    monkeypatch.setattr(first_updates, "UPDATES", 4)
    losses_SU = first_updates._losses(subject("none"), 1e4, 2, zero_gamma=False)
    assert np.isfinite(losses_SU).all()
    assert losses_SU.max() == first_updates.DIVERGED
    gone = finding([[2.3, 100.0]] * 3, [[2.3, 2.3]] * 3)
    assert gone.verdict == HOLDS
    assert "diverged with gamma 1: 3 of 3" in gone.measured
