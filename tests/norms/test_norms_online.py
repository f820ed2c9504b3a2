"""Online normalization: against a loop over examples, forward and backward, and what it is for.

Shapes: N examples, C channels, H and W pixels.
"""

import numpy as np
import pytest
import torch
from backward_references import online_norm_backward
from reference_checks import (
    SHAPES,
    assert_follows_the_reference,
    assert_gradients_are_slopes,
    assert_near,
    assert_stacked_is_each_alone,
    assert_takes_bfloat16_in_any_layout,
    draw,
    layer_of,
    numbers,
)

from gnexp.norms.registry import NORMS, build_norm

# The defaults, and memories so short that a batch is longer; 0 remembers nothing.
OPTIONS = [{}, {"alpha_f": 0.7, "alpha_b": 0.5}, {"alpha_f": 0.0, "alpha_b": 0.0}]
over_options = pytest.mark.parametrize("options", OPTIONS, ids=str)
over_shapes = pytest.mark.parametrize("shape", [*SHAPES, (7, 16, 1, 1)], ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])


@over_options
@over_modes
@over_shapes
def test_passes_in_a_row_give_and_leave_what_the_reference_does(shape, training, options):
    assert_follows_the_reference("online", shape, training, **options)


def gradients(layer, x_NCHW, dy_NCHW):
    """Return the gradients of one pass by name, numbers as the reference gives them."""
    layer.zero_grad()
    x_NCHW = x_NCHW.clone().requires_grad_()
    layer(x_NCHW).backward(dy_NCHW)
    return {"x": x_NCHW.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}


@over_options
@over_shapes
def test_backward_passes_in_a_row_give_and_leave_what_the_reference_does(shape, options):
    layer = layer_of("online", shape[1], **options).train()
    options, state = {**NORMS["online"].options, **options}, numbers(layer)
    for number in range(3):
        x_NCHW, dy_NCHW = draw(*shape, seed=number), draw(*shape, seed=10 + number)
        expected, state = online_norm_backward(x_NCHW.numpy(), state, options, dy_NCHW.numpy())
        for key, gradient in gradients(layer, x_NCHW, dy_NCHW).items():
            assert_near(gradient, expected[key], f"{key} of pass {number}")
        for key, tensor in layer.state_dict().items():
            assert_near(tensor, state[key], f"{key} after pass {number}")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_evaluation_gradients_are_the_slopes_of_the_reference(shape):
    assert_gradients_are_slopes("online", shape, training=False)


@over_modes
@over_shapes
def test_three_replicas_in_one_layer_are_three_layers(shape, training):
    assert_stacked_is_each_alone("online", shape, training)


def test_bfloat16_inputs_keep_their_layout_and_float32_statistics():
    assert_takes_bfloat16_in_any_layout("online")


@pytest.mark.parametrize("changed", [1, 4, 5])
def test_an_example_depends_on_those_before_it_and_on_none_behind(changed):
    x_NCHW = draw(6, 16, 3, 3)
    other_NCHW = x_NCHW.clone()
    other_NCHW[changed] += 1
    outputs = [layer_of("online").train()(x) for x in (x_NCHW, other_NCHW)]
    same = [torch.equal(a, b) for a, b in zip(*outputs)]
    assert same == [True] * changed + [False] * (6 - changed)


def test_one_batch_of_six_is_six_batches_of_one():
    together, apart = layer_of("online").train(), layer_of("online").train()
    x_NCHW, dy_NCHW = draw(6, 16, 3, 3), draw(6, 16, 3, 3, seed=3)
    expected = gradients(together, x_NCHW, dy_NCHW)
    parts = [gradients(apart, x_NCHW[n : n + 1], dy_NCHW[n : n + 1]) for n in range(6)]
    assert_near(torch.cat([part["x"] for part in parts]), expected["x"], "x")
    for key in ("weight", "bias"):
        assert_near(sum(part[key] for part in parts), expected[key], key)
    for key, tensor in together.state_dict().items():
        assert_near(apart.state_dict()[key], tensor, key)


def test_outputs_approach_the_standardized_ones_on_a_long_stream():
    layer = build_norm("online", 1, alpha_f=0.99).double().train()
    g = torch.Generator().manual_seed(0)
    x_NCHW = 3 * torch.randn(4000, 1, 4, 4, generator=g, dtype=torch.float64) + 2
    for batch in x_NCHW.split(50):
        layer(batch)
    y_NCHW = (x_NCHW[:50] - 2) / 3
    y_NCHW = y_NCHW / y_NCHW.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    # Averages over 100 examples of 16 pixels: the mean is known to 1 / 57 standard deviations.
    assert (layer.eval()(x_NCHW[:50]) - y_NCHW).abs().mean() < 0.05
    assert layer.running_var.sqrt().item() == pytest.approx(3, rel=0.05)


def test_gradients_become_orthogonal_to_1_and_to_the_output_on_a_long_stream():
    layer = build_norm("online", 1, alpha_f=0.99, alpha_b=0.9).double().train()
    g = torch.Generator().manual_seed(0)
    sums = np.zeros(2)
    for _ in range(200):
        x_NCHW = torch.randn(20, 1, 4, 4, generator=g, dtype=torch.float64).requires_grad_()
        # A gradient that has both components; that of the output passes layer scaling in part.
        y_NCHW = layer(x_NCHW)
        y_NCHW.backward(1 + x_NCHW.detach() ** 3 / 10)
        dx = x_NCHW.grad
        sums += [dx.mean().item(), (dx * y_NCHW).mean().item()]
    # The control keeps its errors bounded, so that averages over 4000 examples vanish.
    assert np.abs(sums / 200).max() < 0.02
    assert layer.control_1.abs().item() > 1  # without it the first would be about 1


def test_evaluation_and_passes_without_gradients_leave_the_control_alone():
    layer, x_NCHW = layer_of("online"), draw(4, 16, 3, 3)
    before = numbers(layer)
    x = x_NCHW.clone().requires_grad_()
    layer.eval()(x).sum().backward()
    assert all(np.array_equal(value, numbers(layer)[key]) for key, value in before.items())
    with torch.no_grad():
        layer.train()(x_NCHW)
    after = numbers(layer)
    moved = {key for key in before if not np.array_equal(before[key], after[key])}
    assert moved == {"running_mean", "running_var"}


def test_two_forward_passes_may_come_before_their_backward_passes():
    layer = layer_of("online").train()
    options, state = NORMS["online"].options, numbers(layer)
    xs = [draw(4, 16, 3, 3, seed=n).requires_grad_() for n in range(2)]
    dys = [draw(4, 16, 3, 3, seed=5 + n) for n in range(2)]
    ys = [layer(x) for x in xs]
    for y, dy in zip(ys, dys):
        y.backward(dy)
    for x, dy in zip(xs, dys):
        expected, state = online_norm_backward(x.detach().numpy(), state, options, dy.numpy())
        assert_near(x.grad, expected["x"])
    for key, tensor in layer.state_dict().items():
        assert_near(tensor, state[key], key)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"alpha_f": 1.0}, "alpha_f=1.0 must lie in [0, 1); the default is 0.999"),
        ({"alpha_b": -0.1}, "alpha_b=-0.1 must lie in [0, 1); the default is 0.99"),
        ({"eps": 0}, "eps=0 must be positive"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(options, sentence):
    with pytest.raises(ValueError) as error:
        build_norm("online", 16, **options)
    assert sentence in str(error.value)
