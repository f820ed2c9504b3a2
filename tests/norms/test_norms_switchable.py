"""Switchable norm: the formulas, and the three norms at the corners of its mixtures.

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
    randomized,
)
from torch import nn

from gnexp.norms.registry import build_norm

over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])
CERTAIN = 1000.0  # beside 0: the softmax of the other two is 0 in float64
CORNERS = [("in", 0), ("ln", 1), ("bn", 2)]


@over_modes
@over_shapes
def test_passes_in_a_row_give_and_leave_what_the_reference_does(shape, training):
    assert_follows_the_reference("switchable", shape, training, momentum=0.3)


@over_modes
@over_shapes
def test_gradients_are_the_slopes_of_the_reference(shape, training):
    assert_gradients_are_slopes("switchable", shape, training)


@over_modes
@over_shapes
def test_three_replicas_in_one_layer_are_three_layers(shape, training):
    assert_stacked_is_each_alone("switchable", shape, training)


def test_bfloat16_inputs_keep_their_layout_and_float32_statistics():
    assert_takes_bfloat16_in_any_layout("switchable")


def test_a_single_value_per_channel_is_refused_in_training_alone():
    layer, x_NCHW = layer_of("switchable"), draw(1, 16, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer.train()(x_NCHW)
    assert layer.eval()(x_NCHW).isfinite().all()


def pair(name: str, mean_of: int, var_of: int) -> tuple[nn.Module, nn.Module]:
    """Return switchable norm with certain choices and norm `name`, with the numbers of one."""
    ours, other = layer_of("switchable"), build_norm(name, 16).double()
    with torch.no_grad():
        for weights, chosen in ((ours.mean_weight, mean_of), (ours.var_weight, var_of)):
            weights.zero_()[chosen] = CERTAIN
    state = ours.state_dict()
    other.load_state_dict({key: state[key] for key in other.state_dict()})
    return ours, other


@over_modes
@pytest.mark.parametrize(("name", "index"), CORNERS)
def test_certain_of_one_norm_it_is_that_norm(name, index, training):
    ours, other = pair(name, index, index)
    ours.train(training), other.train(training)
    for number in range(2):
        xs = [draw(4, 16, 3, 5, seed=number).requires_grad_() for _ in range(2)]
        ys = [layer(x) for layer, x in zip((ours, other), xs)]
        for y in ys:
            y.backward(draw(4, 16, 3, 5, seed=9))
        assert_near(ys[0], ys[1].detach(), "output")
        assert_near(xs[0].grad, xs[1].grad, "gradient of x")
    assert_near(ours.weight.grad, other.weight.grad, "gradient of weight")
    for key, buffer in other.named_buffers():
        assert_near(ours.get_buffer(key), buffer, key)


def test_means_and_variances_are_chosen_apart():
    ours, _ = pair("bn", 1, 2)  # the mean of layer norm with the variance of batch norm
    x_NCHW = draw(4, 16, 3, 5)
    mean = x_NCHW.mean(dim=(1, 2, 3), keepdim=True)
    var = x_NCHW.var(dim=(0, 2, 3), correction=0, keepdim=True)
    y = (x_NCHW - mean) / (var + 1e-5).sqrt()
    expected = ours.weight[:, None, None] * y + ours.bias[:, None, None]
    assert_near(ours(x_NCHW), expected.detach())


def test_at_the_start_the_three_count_alike():
    layer, x_NCHW = build_norm("switchable", 16).double(), draw(4, 16, 3, 5)
    dims = ((2, 3), (1, 2, 3), (0, 2, 3))
    mean = sum(x_NCHW.mean(dim=d, keepdim=True) for d in dims) / 3
    var = sum(x_NCHW.var(dim=d, correction=0, keepdim=True) for d in dims) / 3
    assert_near(layer(x_NCHW), (x_NCHW - mean) / (var + 1e-5).sqrt())


def test_a_large_mean_costs_float32_no_more_than_its_own_rounding():
    x_NCHW = draw(4, 16, 3, 5)
    exact = randomized(build_norm("switchable", 16))
    single = build_norm("switchable", 16)
    single.load_state_dict(exact.state_dict())
    y_NCHW = single(x_NCHW.float() + 4096)  # squares would leave no digit of the variance
    exact_NCHW = exact((x_NCHW.float() + 4096).double())
    torch.testing.assert_close(y_NCHW.double(), exact_NCHW, rtol=1e-3, atol=1e-3)  # float32
