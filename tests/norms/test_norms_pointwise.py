"""Per-pixel layer norm and RMS norm, and Dynamic Tanh: the formulas, and what they ignore.

Shapes: N examples, C channels, H and W pixels.
"""

import pytest
import torch
from reference_checks import (
    SHAPES,
    assert_follows_the_reference,
    assert_gradients_are_slopes,
    assert_near,
    assert_stacked_is_each_alone,
    assert_takes_bfloat16_in_any_layout,
    draw,
    layer_of,
)
from torch import nn
from torch.nn import functional as F

from gnexp.norms.registry import build_norm

# Values have variance 9, so an eps of 50 in another place than beside it would be plain to see.
CASES = {
    "ln2d": ("ln2d", {}),
    "ln2d, large eps": ("ln2d", {"eps": 50.0}),
    "rms": ("rms", {}),
    "rms, large eps": ("rms", {"eps": 50.0}),
    "dyt": ("dyt", {}),
}
NAMES = ("ln2d", "rms", "dyt")
over_cases = pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])


@over_modes
@over_shapes
@over_cases
def test_passes_in_a_row_give_what_the_reference_does(name, options, shape, training):
    assert_follows_the_reference(name, shape, training, **options)


@over_modes
@over_shapes
@over_cases
def test_gradients_are_the_slopes_of_the_reference(name, options, shape, training):
    assert_gradients_are_slopes(name, shape, training, **options)


@over_shapes
@over_cases
def test_three_replicas_in_one_layer_are_three_layers(name, options, shape):
    assert_stacked_is_each_alone(name, shape, **options)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_inputs_keep_their_layout(name):
    assert_takes_bfloat16_in_any_layout(name)


@pytest.mark.parametrize("shape", [(1, 16, 1, 1), (3, 16, 1, 1)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_one_pixel_is_enough(name, shape):
    layer, x_NCHW = layer_of(name), draw(*shape).requires_grad_()
    y_NCHW = layer(x_NCHW)
    y_NCHW.sum().backward()
    assert y_NCHW.isfinite().all()
    assert x_NCHW.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_pixel_sees_no_other_pixel_and_no_other_example(name):
    layer, x_NCHW = layer_of(name), draw(3, 16, 4, 5)
    other = x_NCHW.clone()
    other[1, :, 2, 3] += draw(16, seed=1)
    changed_NHW = (layer(other) != layer(x_NCHW)).any(dim=1)
    assert changed_NHW.nonzero().tolist() == [[1, 2, 3]]


def test_layer_norm_gives_the_channels_of_each_pixel_mean_0_and_variance_1():
    y_NCHW = build_norm("ln2d", 16).double()(draw(4, 16, 5, 7))
    zeros = torch.zeros(4, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(y_NCHW.mean(dim=1), zeros, rtol=0, atol=1e-12)
    # eps takes a part of eps / variance, at most 1e-5 where the variance is at least 1.
    torch.testing.assert_close(y_NCHW.var(dim=1, correction=0), zeros + 1, rtol=0, atol=1e-5)


def test_rms_norm_gives_the_channels_of_each_pixel_mean_square_1():
    y_NCHW = build_norm("rms", 16).double()(draw(4, 16, 5, 7))
    ones = torch.ones(4, 5, 7, dtype=torch.float64)
    torch.testing.assert_close(y_NCHW.square().mean(dim=1), ones, rtol=0, atol=1e-5)


def ignores(name, change) -> bool:
    """Return whether a layer of negligible eps gives the same for a changed input."""
    layer, x_NCHW = layer_of(name, eps=1e-14), draw(4, 16, 5, 7)
    return torch.allclose(layer(change(x_NCHW)), layer(x_NCHW), rtol=1e-9, atol=1e-9)  # float64


@pytest.mark.parametrize(
    ("what", "change", "by_layer_norm", "by_rms_norm"),
    [
        ("scale", lambda x: x * (draw(4, 1, 5, 7, seed=1).abs() + 0.5), True, True),
        ("shift", lambda x: x + draw(4, 1, 5, 7, seed=1), True, False),
        ("scale per channel", lambda x: x * (draw(16, 1, 1, seed=1).abs() + 0.5), False, False),
        ("shift per channel", lambda x: x + draw(16, 1, 1, seed=1), False, False),
    ],
)
def test_layer_norm_ignores_a_pixels_scale_and_shift_and_rms_norm_its_scale_alone(
    what, change, by_layer_norm, by_rms_norm
):
    assert ignores("ln2d", change) == by_layer_norm
    assert ignores("rms", change) == by_rms_norm


class LastAxis(nn.Module):
    """PyTorch's norm over the last axis, on the channels, with gamma and beta."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = (nn.Parameter(torch.zeros(16).double()) for _ in range(2))

    def forward(self, x_NCHW: torch.Tensor) -> torch.Tensor:
        x_NHWC = x_NCHW.permute(0, 2, 3, 1)
        if self.name == "ln2d":
            y_NHWC = F.layer_norm(x_NHWC, (16,), self.weight, self.bias, 1e-5)
        else:
            y_NHWC = F.rms_norm(x_NHWC, (16,), self.weight, 1e-5) + self.bias
        return y_NHWC.permute(0, 3, 1, 2)


def timms(name: str) -> nn.Module:
    timm = pytest.importorskip("timm.layers")
    return {"ln2d": timm.LayerNorm2d, "rms": timm.RmsNorm2d}[name](16, eps=1e-5).double()


@pytest.mark.parametrize("theirs", [LastAxis, timms], ids=["torch", "timm"])
@pytest.mark.parametrize("name", ["ln2d", "rms"])
def test_outputs_and_gradients_are_those_of_torch_and_timm_in_float64(name, theirs):
    mine, other = layer_of(name), theirs(name)
    if not hasattr(other, "bias"):  # timm's RMS norm has no beta
        mine.bias.data.zero_()
    other.load_state_dict({key: mine.state_dict()[key] for key in other.state_dict()})
    found = []
    for layer in (mine, other):
        x_NCHW = draw(4, 16, 5, 7).requires_grad_()
        y_NCHW = layer(x_NCHW)
        y_NCHW.backward(draw(4, 16, 5, 7, seed=3))
        found.append([y_NCHW, x_NCHW.grad, *(layer.get_parameter(k).grad for k in keys(other))])
    for got, expected in zip(*found, strict=True):
        assert_near(got, expected.detach(), rtol=1e-12)


def keys(layer: nn.Module) -> list[str]:
    return [key for key, _ in layer.named_parameters()]


def test_dynamic_tanh_has_one_alpha_a_layer_and_starts_with_the_one_asked_for():
    assert build_norm("dyt", 48, alpha=0.8).alpha.tolist() == pytest.approx([0.8])
    assert build_norm("dyt", 48).alpha.tolist() == [0.5]


def test_dynamic_tanh_stays_within_gamma_of_beta_whatever_comes():
    layer = layer_of("dyt")
    low, high = (
        (layer.bias + sign * layer.weight.abs())[:, None, None].detach() for sign in (-1, 1)
    )
    for scale in (1e-3, 1.0, 1e6):
        y_NCHW = layer(scale * draw(4, 16, 5, 7)).detach()
        assert (low <= y_NCHW).all()
        assert (y_NCHW <= high).all()


def test_dynamic_tanh_is_odd_and_near_0_multiplies_by_alpha():
    layer, x_NCHW = build_norm("dyt", 16).double(), draw(4, 16, 5, 7)
    torch.testing.assert_close(layer(-x_NCHW), -layer(x_NCHW))
    # tanh(z) = z - z^3 / 3 + ..: relative error z^2 / 3
    torch.testing.assert_close(layer(1e-6 * x_NCHW), 0.5e-6 * x_NCHW, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan"), float("inf")])
def test_an_alpha_that_is_no_positive_number_is_refused_with_a_sentence(alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha} must be positive; the default is 0.5"):
        build_norm("dyt", 16, alpha=alpha)
