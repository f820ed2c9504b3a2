"""Norms that timm has too agree with timm's, and those that carry their activation can lose it.

Shapes: N examples, C channels, H and W pixels.
"""

import pytest
import torch
from torch import nn

from gnexp.models.resnet import build_model
from gnexp.norms.base import carries_activation
from gnexp.norms.registry import NORMS, build_norm

SHAPE = (4, 16, 5, 7)
CARRYING = [name for name in NORMS if carries_activation(build_norm(name, 16))]


def draw(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=g, dtype=torch.float64) + 0.5


def theirs(name, activated):
    timm = pytest.importorskip("timm.layers")
    eps = {"eps": 1e-5}
    return {
        "ln2d": lambda: timm.LayerNorm2d(16, **eps),
        "frn": lambda: timm.FilterResponseNormTlu2d(16, apply_act=activated, **eps),
        "evonorm_b0": lambda: timm.EvoNorm2dB0(16, apply_act=activated, **eps),
        "evonorm_s0": lambda: timm.EvoNorm2dS0(16, groups=8, apply_act=activated, **eps),
    }[name]()


def ours(name, activated):
    layer = build_norm(name, 16)
    return layer if activated or name not in CARRYING else layer.without_activation()


# timm works in float32 where it takes a variance; its own rounding is the tolerance.
FLOAT32 = 2e-5


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("name", "activated"),
    [("ln2d", True), *((n, a) for n in ("frn", "evonorm_b0", "evonorm_s0") for a in (True, False))],
)
def test_outputs_gradients_and_buffers_agree_with_timms(name, activated, training):
    mine, other = ours(name, activated).train(training), theirs(name, activated).train(training)
    with torch.no_grad():
        for seed, (key, tensor) in enumerate(mine.state_dict().items()):
            drawn = draw(*tensor.shape, seed=seed + 1)
            tensor.copy_(drawn.abs() if "var" in key else drawn)
    extra = {} if activated else {"running_var": torch.ones(16)} if "b0" in name else {}
    other.load_state_dict({**mine.state_dict(), **extra})
    found = []
    for layer in (mine, other):
        x_NCHW = draw(*SHAPE).float().requires_grad_()
        y_NCHW = layer(x_NCHW)
        y_NCHW.backward(draw(*SHAPE, seed=9).float())
        kept = {k: v for k, v in layer.state_dict().items() if k in mine.state_dict()}
        found.append([y_NCHW, x_NCHW.grad, *(p.grad for p in layer.parameters()), *kept.values()])
    assert len(found[0]) == len(found[1])
    for got, expected in zip(*found):
        scale = expected.abs().max().item()
        torch.testing.assert_close(got, expected, rtol=FLOAT32, atol=FLOAT32 * max(1, scale))


def test_rms_norm_agrees_with_timms_which_has_no_beta():
    timm = pytest.importorskip("timm.layers")
    mine, other = build_norm("rms", 16), timm.RmsNorm2d(16, eps=1e-5)
    with torch.no_grad():
        mine.weight.copy_(draw(16, seed=1))
    other.load_state_dict({"weight": mine.weight})
    x_NCHW = draw(*SHAPE).float()
    torch.testing.assert_close(mine(x_NCHW), other(x_NCHW), rtol=FLOAT32, atol=FLOAT32)


def test_the_norms_that_carry_their_activation_are_the_three():
    assert CARRYING == ["frn", "evonorm_b0", "evonorm_s0"]


@pytest.mark.parametrize("name", CARRYING)
def test_without_its_activation_a_norm_has_gamma_and_beta_and_nothing_else(name):
    layer = build_norm(name, 16).without_activation()
    assert set(layer.state_dict()) == {"weight", "bias"}
    x_NCHW = draw(*SHAPE)
    expected = x_NCHW
    if name == "frn":
        expected = x_NCHW / (x_NCHW.square().mean((2, 3), keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer.double()(x_NCHW), expected)


@pytest.mark.parametrize("model", ["resnet8", "preresnet8", "plain8", "resnet18"])
@pytest.mark.parametrize("norm", CARRYING)
def test_a_norm_with_its_activation_replaces_the_relu_behind_it_and_no_other(norm, model):
    def build(name):
        net = build_model(model, lambda c: build_norm(name, c), num_classes=10, width=16)
        return {k: type(m) for k, m in net.named_modules() if "relu" in k}, net

    relus, _ = build("gn")
    with_own, net = build(norm)
    assert list(relus) == list(with_own)
    replaced = {name for name, kind in with_own.items() if kind is nn.Identity}
    left = {name for name, kind in with_own.items() if kind is nn.ReLU}
    # What follows a sum, or starts a branch, follows no norm.
    assert all(name.endswith(("relu_out", "relu_in")) for name in left)
    assert bool(left) == (model != "plain8")  # which has no sum
    active = [m for m in net.modules() if carries_activation(m) and m.activated]
    assert len(active) == len(replaced)
