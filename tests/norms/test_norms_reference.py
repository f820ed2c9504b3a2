"""Every norm against its float64 reference, torch's and timm's layers: passes, gradients, stacks.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np
import pytest
import torch
from backward_references import online_norm_backward
from reference_checks import (
    assert_follows_the_reference,
    assert_gradients_are_slopes,
    assert_near,
    assert_stacked_is_each_alone,
    assert_takes_bfloat16_in_any_layout,
    draw,
    layer_of,
    numbers,
)
from torch import nn
from torch.nn import functional as F

from gnexp.norms.base import carries_activation
from gnexp.norms.registry import NORMS, build_norm
from gnexp.norms.statistic_size import values_per_statistic

SHAPE = (4, 16, 5, 7)
# More examples than a ghost batch has, and one; where each thing a norm can do happens on some.
SHAPES = [(10, 16, 2, 3), (1, 16, 4, 4)]
# Values have variance 9, so an eps of 50 in another place than beside it would be plain to see.
LARGE_EPS = {n: {"eps": 50.0} for n in NORMS if "eps" in NORMS[n].options and n != "online"}
OPTIONS = [(name, {}) for name in NORMS] + list(LARGE_EPS.items())
OPTIONS += [("gn", {"num_groups": groups}) for groups in (1, 4, 16)]
OPTIONS += [("evonorm_s0", {"num_groups": 4}), ("evonorm_b0", {"momentum": 0.3})]
OPTIONS += [("brn", {"total_examples": 100, "warmup": 0.001}), ("brn", {"rmax": 1.1, "dmax": 0.1})]
OPTIONS += [("gbn", {"ghost_batch": 4, "momentum": 0.3}), ("gbn", {"ghost_batch": 1})]
# Memories so short that a batch is longer; 0 remembers nothing.
ONLINE = [{}, {"alpha_f": 0.7, "alpha_b": 0.5}, {"alpha_f": 0.0, "alpha_b": 0.0}]
OPTIONS += [("online", options) for options in ONLINE[1:]]
over_options = pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])
over_norms = pytest.mark.parametrize("name", NORMS)


@over_modes
@over_shapes
@over_options
def test_passes_in_a_row_give_and_leave_what_the_reference_does(name, options, shape, training):
    assert_follows_the_reference(name, shape, training, **options)


@over_modes
@over_shapes
@over_options
def test_gradients_are_the_slopes_of_the_reference(name, options, shape, training):
    if name != "online" or not training:  # whose backward pass is a definition of its own
        assert_gradients_are_slopes(name, shape, training, **options)


@over_modes
@pytest.mark.parametrize(("name", "options"), OPTIONS[: len(NORMS)], ids=str)
def test_three_replicas_in_one_layer_are_three_layers(name, options, training):
    for shape in SHAPES:
        assert_stacked_is_each_alone(name, shape, training, **options)


@over_norms
def test_bfloat16_inputs_keep_their_layout_and_float32_statistics(name):
    assert_takes_bfloat16_in_any_layout(name)


def gradients(layer, x_NCHW, dy_NCHW):
    """Return the gradients of one pass by name, numbers as the reference gives them."""
    layer.zero_grad()
    x_NCHW = x_NCHW.clone().requires_grad_()
    layer(x_NCHW).backward(dy_NCHW)
    return {"x": x_NCHW.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}


@pytest.mark.parametrize("options", ONLINE, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (7, 16, 1, 1)], ids=str)
def test_online_norms_backward_passes_in_a_row_follow_their_reference(shape, options):
    layer = layer_of("online", shape[1], **options).train()
    options, state = {**NORMS["online"].options, **options}, numbers(layer)
    for number in range(3):
        x_NCHW, dy_NCHW = draw(*shape, seed=number), draw(*shape, seed=10 + number)
        expected, state = online_norm_backward(x_NCHW.numpy(), state, options, dy_NCHW.numpy())
        for key, gradient in gradients(layer, x_NCHW, dy_NCHW).items():
            assert_near(gradient, expected[key], f"{key} of pass {number}")
        for key, tensor in layer.state_dict().items():
            assert_near(tensor, state[key], f"{key} after pass {number}")


@pytest.mark.parametrize("changed", [1, 5])
def test_online_norm_sees_the_examples_before_and_none_behind(changed):
    x_NCHW = draw(6, 16, 3, 3)
    other_NCHW = x_NCHW.clone()
    other_NCHW[changed] += 1
    outputs = [layer_of("online").train()(x) for x in (x_NCHW, other_NCHW)]
    same = [torch.equal(a, b) for a, b in zip(*outputs)]
    assert same == [True] * changed + [False] * (6 - changed)


def test_gradients_of_online_norm_become_orthogonal_to_1_and_to_the_output_on_a_long_stream():
    layer = build_norm("online", 1, alpha_f=0.99, alpha_b=0.9).double().train()
    g = torch.Generator().manual_seed(0)
    sums = np.zeros(2)
    for _ in range(200):
        x_NCHW = torch.randn(20, 1, 4, 4, generator=g, dtype=torch.float64).requires_grad_()
        # A gradient that has both components; that of the output passes layer scaling in part.
        y_NCHW = layer(x_NCHW)
        y_NCHW.backward(1 + x_NCHW.detach() ** 3 / 10)
        sums += [x_NCHW.grad.mean().item(), (x_NCHW.grad * y_NCHW).mean().item()]
    # The control keeps its errors bounded, so that averages over 4000 examples vanish.
    assert np.abs(sums / 200).max() < 0.02
    assert layer.control_1.abs().item() > 1  # without it the first would be about 1


def test_evaluation_and_passes_without_gradients_leave_the_control_of_online_norm_alone():
    layer, x_NCHW = layer_of("online"), draw(4, 16, 3, 3)
    before = numbers(layer)
    layer.eval()(x_NCHW.clone().requires_grad_()).sum().backward()
    assert all(np.array_equal(value, numbers(layer)[key]) for key, value in before.items())
    with torch.no_grad():
        layer.train()(x_NCHW)
    after = numbers(layer)
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert moved == {"running_mean", "running_var"}


def batch_norm(layer, x):
    training = layer.training and layer.name != "bn_frozen"
    return F.batch_norm(x, layer.running_mean, layer.running_var, *layer.affine, training)


def over_channels(layer, x_NCHW):
    x_NHWC, (weight, bias) = x_NCHW.permute(0, 2, 3, 1), layer.affine
    if layer.name == "ln2d":
        return F.layer_norm(x_NHWC, (16,), weight, bias, 1e-5).permute(0, 3, 1, 2)
    return (F.rms_norm(x_NHWC, (16,), weight, 1e-5) + bias).permute(0, 3, 1, 2)


def over_all(layer, x):
    weight, bias = (each[:, None, None] for each in layer.affine)
    return F.layer_norm(x, x.shape[1:]) * weight + bias


TORCHS = dict.fromkeys(("bn", "gbn", "syncbn", "bn_frozen"), batch_norm)
TORCHS |= {"ln": over_all, "ln2d": over_channels, "rms": over_channels}
TORCHS["in"] = lambda layer, x: F.instance_norm(x, None, None, *layer.affine)


class TorchNorm(nn.Module):
    """A norm of torch's functions, with tensors of the usual names."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.weight, self.bias = (nn.Parameter(torch.zeros(16)) for _ in range(2))
        if TORCHS[name] is batch_norm:
            for key in ("running_mean", "running_var"):
                self.register_buffer(key, torch.zeros(16))

    @property
    def affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight, self.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return TORCHS[self.name](self, x)


def timms(name: str, activated: bool) -> nn.Module:
    timm = pytest.importorskip("timm.layers")
    return {
        "ln2d": lambda: timm.LayerNorm2d(16, eps=1e-5),
        "frn": lambda: timm.FilterResponseNormTlu2d(16, apply_act=activated, eps=1e-5),
        "evonorm_b0": lambda: timm.EvoNorm2dB0(16, apply_act=activated, eps=1e-5),
        "evonorm_s0": lambda: timm.EvoNorm2dS0(16, groups=8, apply_act=activated, eps=1e-5),
    }[name]()


# timm works in float32 where it takes a variance; its own rounding is the tolerance.
FLOAT32 = 2e-5
CARRYING = ("frn", "evonorm_b0", "evonorm_s0")
OTHERS = [(name, True, "torch") for name in TORCHS] + [("ln2d", True, "timm")]
OTHERS += [(name, activated, "timm") for name in CARRYING for activated in (True, False)]


@over_modes
@pytest.mark.parametrize(("name", "activated", "library"), OTHERS, ids=str)
def test_outputs_gradients_and_buffers_are_those_of_torch_and_timm(
    name, activated, library, training
):
    mine = layer_of(name).float()
    mine = mine if activated else mine.without_activation()
    other = (TorchNorm(name) if library == "torch" else timms(name, activated)).train(training)
    mine.train(training)
    missing = other.load_state_dict(mine.state_dict(), strict=False).missing_keys
    assert set(missing) <= {"running_var", "num_batches_tracked"}
    found = []
    for layer in (mine, other):
        x_NCHW = draw(4, 16, 5, 7).float().requires_grad_()
        y_NCHW = layer(x_NCHW)
        y_NCHW.backward(draw(*SHAPE, seed=9).float())
        shared = mine.state_dict().keys() & other.state_dict().keys()
        kept = [layer.state_dict()[key] for key in sorted(shared)]
        slopes = dict(layer.named_parameters())
        of_both = sorted(dict(mine.named_parameters()).keys() & slopes.keys())
        found.append([y_NCHW, x_NCHW.grad, *(slopes[key].grad for key in of_both), *kept])
    for got, expected in zip(*found, strict=True):
        scale = max(1, expected.abs().max().item())
        torch.testing.assert_close(got, expected, rtol=FLOAT32, atol=FLOAT32 * scale)


@pytest.mark.parametrize("name", CARRYING)
def test_without_their_activation_layers_stack_and_an_evonorm_has_no_statistic(name):
    alone = [layer_of(name, seed=r + 1).without_activation() for r in range(3)]
    joined = NORMS[name].stacked[1](alone)
    assert set(joined.state_dict()) == {"weight", "bias"}
    xs = [draw(*SHAPE, seed=r) for r in range(3)]
    expected = torch.cat([layer(x) for layer, x in zip(alone, xs)], dim=1)
    assert_near(joined(torch.cat(xs, dim=1)), expected.detach(), rtol=1e-12)
    values = [row.values for row in values_per_statistic(nn.Sequential(alone[0]), SHAPE[1:], 4)]
    assert values == ([35] if name == "frn" else [])
    assert carries_activation(build_norm(name, 16))
    # The type itself is as it was: layers made later still have theirs.
    again = nn.Sequential(build_norm(name, 16))
    assert len(values_per_statistic(again, SHAPE[1:], 4)) == 1


@pytest.mark.parametrize("name", ["frn", "evonorm_s0", "ln2d", "rms", "dyt"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_one_pixel_and_dead_channels_give_finite_values_and_gradients(name, scale):
    layer, x_NCHW = layer_of(name), (scale * draw(1, 16, 1, 1)).requires_grad_()
    y_NCHW = layer(x_NCHW)
    y_NCHW.sum().backward()
    found = [y_NCHW, x_NCHW.grad, *(p.grad for p in layer.parameters())]
    assert all(tensor.isfinite().all() for tensor in found)


@pytest.mark.parametrize("name", ["brn", "gbn", "syncbn", "switchable", "evonorm_b0"])
def test_a_single_value_per_channel_is_refused_in_training_alone(name):
    layer, x_NCHW = layer_of(name), draw(1, 16, 1, 1)
    before = layer.running_var.clone()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer.train()(x_NCHW)
    assert torch.equal(layer.running_var, before)
    assert layer.eval()(x_NCHW).isfinite().all()


CERTAIN = 1000.0  # beside 0: the softmax of the other two is 0 in float64


@over_modes
@pytest.mark.parametrize(("name", "index"), [("in", 0), ("ln", 1), ("bn", 2)])
def test_switchable_norm_that_is_certain_of_one_norm_is_that_norm(name, index, training):
    ours, other = layer_of("switchable"), build_norm(name, 16).double()
    with torch.no_grad():
        for weights in (ours.mean_weight, ours.var_weight):
            weights.zero_()[index] = CERTAIN
    other.load_state_dict({key: ours.state_dict()[key] for key in other.state_dict()})
    x_NCHW = draw(4, 16, 3, 5)
    assert_near(ours.train(training)(x_NCHW), other.train(training)(x_NCHW).detach(), "output")
    for key, buffer in other.named_buffers():
        assert_near(ours.get_buffer(key), buffer, key)


def test_a_large_mean_costs_switchable_norm_in_float32_no_more_than_its_own_rounding():
    exact, single = layer_of("switchable"), build_norm("switchable", 16)
    single.load_state_dict(exact.state_dict())
    x_NCHW = draw(4, 16, 3, 5).float() + 4096  # squares would leave no digit of the variance
    y_NCHW = single(x_NCHW).double()
    torch.testing.assert_close(y_NCHW, exact(x_NCHW.double()), rtol=1e-3, atol=1e-3)  # float32
