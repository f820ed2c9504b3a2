"""Claim 5, trained networks: what contrast and style cost them, against numbers made by hand."""

import numpy as np
import pytest
import torch
from norms_under_test import subject
from scipy import stats
from torch import nn

from gnexp.checks import trained_networks
from gnexp.checks.subject import NormError
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED


class Normalized(nn.Module):
    """Standardizes each image over all its values, and then asks the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(1)
        rows = rows - rows.mean(dim=1, keepdim=True)
        return self.net((rows / rows.std(dim=1, keepdim=True)).reshape(x.shape))


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(trained_networks, "TRAIN_IMAGES", 192)
    monkeypatch.setattr(trained_networks, "TEST_IMAGES", 60)


def findings(norm, draws=20):
    return {f.statement: f for f in trained_networks.trained_findings(subject(norm, draws=draws))}


def test_every_norm_gets_a_row_for_contrast_and_one_for_style_over_all_seeds():
    before, found = torch.get_rng_state(), findings("gn")
    assert list(found) == ["trained_contrast", "trained_style"]
    for finding in found.values():
        assert finding.n == 2  # a network for ten draws, two at least
        assert "3 epochs of 192 images of shapes10, 60 test images of its own each" in finding.what
        assert "of the accuracy above chance lost" in finding.measured
    assert torch.equal(torch.get_rng_state(), before)
    assert findings("gn") == found


def test_networks_that_standardize_images_lose_nothing_to_contrast_but_something_to_style(
    monkeypatch,
):
    plain = trained_networks.small_network
    monkeypatch.setattr(trained_networks, "small_network", lambda *args: Normalized(plain(*args)))
    contrast, style = trained_networks.trained_findings(subject("gn", draws=20))
    assert contrast.measured.startswith("0.0 % ")
    assert "0.0 points (0.0 to 0.0)" in contrast.measured
    moved = [float(f.measured.split("move by ")[1].split()[0]) for f in (contrast, style)]
    assert moved[0] < 1e-5 < 0.01 < moved[1]  # float32


def test_lower_contrast_keeps_the_mean_of_an_image_and_style_is_one_map_for_each_colour():
    x = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    of = subject("gn")
    dim = trained_networks.changed("contrast", of, x, 0).numpy()
    mean = x.numpy().mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(dim, mean + 0.3 * (x.numpy() - mean), atol=1e-12)
    styled = trained_networks.changed("style", of, x, 0)
    for image in range(3):
        for colour in range(3):
            fit = stats.linregress(x[image, colour].flatten(), styled[image, colour].flatten())
            assert fit.rvalue == pytest.approx(1, abs=1e-12)
            assert 0.5 <= fit.slope <= 2
            assert -1 <= fit.intercept <= 1
    assert not torch.equal(styled, trained_networks.changed("style", of, x, 1))


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        ([0.60, 0.605, 0.592], HOLDS),
        ([0.40, 0.42, 0.41], FAILS),  # about 38 % of the 50 points above chance
        ([0.50, 0.62, 0.60], UNDECIDED),
    ],
)
def test_the_verdict_is_on_the_share_of_accuracy_above_chance(after, verdict):
    before = [0.60, 0.61, 0.59]
    found = [(a, b, 0.1) for a, b in zip(before, after)]
    finding = trained_networks._finding("style", found)
    assert finding.verdict == verdict
    lost, above = np.array(before) - after, np.array(before) - 0.1
    assert finding.value == pytest.approx(lost.sum() / above.sum(), rel=1e-12)
    for end in (finding.lo, finding.hi):  # Fieller: what a t test over seeds just rejects
        assert stats.ttest_1samp(lost - end * above, 0).pvalue == pytest.approx(0.05, rel=1e-6)


def test_networks_at_chance_decide_nothing():
    found = [(0.09, 0.09, 0.1), (0.12, 0.10, 0.1), (0.10, 0.11, 0.1)]
    finding = trained_networks._finding("style", found)
    assert finding.verdict == UNDECIDED
    assert "not decidedly above chance" in finding.note


def test_a_norm_that_fails_in_training_is_named():
    class NoBackward(nn.Module):
        def __init__(self, channels, groups):
            super().__init__()

        def forward(self, x):
            if x.requires_grad:
                raise ArithmeticError("no gradient here")
            return x

    with pytest.raises(NormError, match="training raised ArithmeticError: no gradient here"):
        findings(NoBackward)
