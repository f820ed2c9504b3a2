"""FRN with TLU and the EvoNorms: the formulas, with the activation they carry and without it.

Agreement with timm's layers: see `test_norms_timm`.
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

from gnexp.norms.base import stack_replicated
from gnexp.norms.registry import build_norm
from gnexp.norms.statistic_size import values_per_statistic

# Values have variance 9, so an eps of 50 in another place than beside it would be plain to see.
CASES = {
    "frn": ("frn", {}),
    "frn, large eps": ("frn", {"eps": 50.0}),
    "evonorm_b0": ("evonorm_b0", {}),
    "evonorm_b0, large eps": ("evonorm_b0", {"eps": 50.0, "momentum": 0.3}),
    "evonorm_s0": ("evonorm_s0", {}),
    "evonorm_s0, large eps": ("evonorm_s0", {"eps": 50.0, "num_groups": 4}),
    "evonorm_s0, one group": ("evonorm_s0", {"num_groups": 1}),
}
NAMES = ("frn", "evonorm_b0", "evonorm_s0")
EVONORMS = ("evonorm_b0", "evonorm_s0")
over_cases = pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])
over_names = pytest.mark.parametrize("name", NAMES)


@over_modes
@over_shapes
@over_cases
def test_passes_in_a_row_give_and_leave_what_the_reference_does(name, options, shape, training):
    assert_follows_the_reference(name, shape, training, **options)


@over_modes
@over_shapes
@over_cases
def test_gradients_are_the_slopes_of_the_reference(name, options, shape, training):
    assert_gradients_are_slopes(name, shape, training, **options)


@over_modes
@over_shapes
@over_cases
def test_three_replicas_in_one_layer_are_three_layers(name, options, shape, training):
    assert_stacked_is_each_alone(name, shape, training, **options)


@over_names
def test_bfloat16_inputs_keep_their_layout_and_float32_statistics(name):
    assert_takes_bfloat16_in_any_layout(name)


@pytest.mark.parametrize(
    ("name", "options", "shape"),
    [
        ("frn", {}, (1, 16, 1, 1)),
        ("evonorm_b0", {}, (2, 16, 1, 1)),
        ("evonorm_s0", {}, (1, 16, 1, 1)),
        ("evonorm_s0", {"num_groups": 16}, (1, 16, 1, 1)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_one_pixel_and_dead_channels_give_finite_values_and_gradients(name, options, shape, scale):
    layer, x_NCHW = layer_of(name, **options), (scale * draw(*shape)).requires_grad_()
    y_NCHW = layer(x_NCHW)
    y_NCHW.sum().backward()
    found = [y_NCHW, x_NCHW.grad, *(p.grad for p in layer.parameters())]
    assert all(tensor.isfinite().all() for tensor in found)


def test_evonorm_b0_refuses_a_single_value_per_channel_in_training_alone():
    layer, x_NCHW = layer_of("evonorm_b0"), draw(1, 16, 1, 1)
    before = layer.running_var.clone()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer.train()(x_NCHW)
    assert torch.equal(layer.running_var, before)
    assert layer.eval()(x_NCHW).isfinite().all()


def without_activation(name: str, seed: int = 0) -> nn.Module:
    return layer_of(name, seed=seed).without_activation()


@over_modes
@pytest.mark.parametrize("name", EVONORMS)
def test_without_its_activation_an_evonorm_is_gamma_x_plus_beta(name, training):
    layer, x_NCHW = without_activation(name).train(training), draw(4, 16, 5, 7)
    expected = x_NCHW * layer.weight[:, None, None] + layer.bias[:, None, None]
    assert_near(layer(x_NCHW), expected.detach(), rtol=1e-14)


def test_without_its_activation_frn_is_frn_below_whose_threshold_nothing_falls():
    layer, x_NCHW = layer_of("frn"), draw(4, 16, 5, 7)
    cut = layer(x_NCHW).detach()
    layer.tau.data.fill_(-1e9)
    uncut = layer(x_NCHW).detach()
    assert (cut != uncut).any()
    assert_near(layer.without_activation()(x_NCHW), uncut, rtol=0)


@over_names
def test_without_their_activation_three_replicas_in_one_layer_are_three_layers(name):
    alone = [without_activation(name, seed=r + 1) for r in range(3)]
    joined = stack_replicated(alone)
    assert set(joined.state_dict()) == {"weight", "bias"}
    xs = [draw(4, 16, 5, 7, seed=r) for r in range(3)]
    expected = torch.cat([layer(x) for layer, x in zip(alone, xs)], dim=1)
    assert_near(joined(torch.cat(xs, dim=1)), expected.detach(), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "with_it", "without"),
    [
        ("frn", [35], [35]),
        ("evonorm_b0", [4 * 35], []),
        ("evonorm_s0", [2 * 35], []),
    ],
)
def test_an_evonorm_without_its_activation_has_no_statistic(name, with_it, without):
    layer = nn.Sequential(build_norm(name, 16))
    assert [row.values for row in values_per_statistic(layer, (16, 5, 7), 4)] == with_it
    layer[0].without_activation()
    assert [row.values for row in values_per_statistic(layer, (16, 5, 7), 4)] == without
    # The type itself is as it was: layers made later still have theirs.
    again = nn.Sequential(build_norm(name, 16))
    assert [row.values for row in values_per_statistic(again, (16, 5, 7), 4)] == with_it


def ignores(name, change) -> bool:
    """Return whether a layer of negligible eps gives the same for a changed input."""
    layer, x_NCHW = layer_of(name, eps=1e-14), draw(4, 16, 5, 7)
    return torch.allclose(layer(change(x_NCHW)), layer(x_NCHW), rtol=1e-9, atol=1e-9)  # float64


def test_frn_ignores_the_scale_of_an_examples_channel_but_not_its_shift():
    assert ignores("frn", lambda x: x * (draw(4, 16, 1, 1, seed=1).abs() + 0.5))
    assert not ignores("frn", lambda x: x + draw(4, 16, 1, 1, seed=1))
    assert not ignores("frn", lambda x: x * (draw(4, 1, 5, 7, seed=1).abs() + 0.5))


def test_frn_never_falls_below_tau_and_sends_it_the_gradient_of_what_would():
    layer, x_NCHW = layer_of("frn"), draw(4, 16, 5, 7)
    y_NCHW = layer(x_NCHW)
    y_NCHW.sum().backward()
    tau = layer.tau.detach()[:, None, None]
    assert (y_NCHW >= tau).all()
    assert layer.tau.grad.tolist() == (y_NCHW == tau).sum(dim=(0, 2, 3)).tolist()


def test_evonorm_b0_of_one_example_at_v_0_divides_by_the_deviation_without_centring():
    layer, x_NCHW = build_norm("evonorm_b0", 16).double(), draw(1, 16, 5, 7)
    layer.v.data.zero_()
    expected = x_NCHW / (x_NCHW.var(dim=(2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    assert_near(layer(x_NCHW), expected, rtol=1e-12)


def test_evonorm_b0_keeps_the_unbiased_variance_of_the_batch_and_evaluates_by_it():
    layer, x_NCHW = build_norm("evonorm_b0", 16, momentum=1.0).double(), draw(4, 16, 5, 7)
    layer(x_NCHW)
    assert_near(layer.running_var, x_NCHW.var(dim=(0, 2, 3)), rtol=1e-12)
    layer.eval().v.data.zero_()
    layer.running_var.fill_(1e4)  # above any example's variance
    assert_near(layer(x_NCHW), x_NCHW / (1e4 + 1e-5) ** 0.5, rtol=1e-12)
    assert (layer.running_var == 1e4).all()


@pytest.mark.parametrize(("v", "part"), [(0.0, 0.5), (1e6, 1.0)])
def test_evonorm_s0_lets_half_of_x_through_at_v_0_and_its_positive_part_at_large_v(v, part):
    layer, x_NCHW = build_norm("evonorm_s0", 16, num_groups=1).double(), draw(4, 16, 5, 7)
    layer.v.data.fill_(v)
    deviation = (x_NCHW.var(dim=(1, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    kept = x_NCHW.relu() if v else x_NCHW
    assert_near(layer(x_NCHW), part * kept / deviation, rtol=1e-10)


def test_evonorm_s0_groups_are_consecutive_channels_of_one_example():
    layer, x_NCHW = layer_of("evonorm_s0", num_groups=4), draw(3, 16, 4, 5)
    other = x_NCHW.clone()
    other[1, 6, 2, 3] += 10  # a channel of the second group
    changed_NC = (layer(other) != layer(x_NCHW)).flatten(2).any(dim=2)
    assert changed_NC.nonzero().tolist() == [[1, channel] for channel in (4, 5, 6, 7)]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("frn", {"eps": 0.0}, "eps=0.0 must be positive"),
        ("evonorm_b0", {"eps": -1e-5}, "eps=-1e-05 must be positive"),
        ("evonorm_b0", {"momentum": 2}, "momentum=2 must lie in (0, 1]; the default is 0.1"),
        ("evonorm_s0", {"eps": float("nan")}, "eps=nan must be positive"),
        ("evonorm_s0", {"num_groups": 7}, "num_groups=7 does not divide 16 channels; valid: 1, 2"),
        ("frn", {"momentum": 0.1}, "momentum is not an option of norm=frn"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_a_sentence(name, options, sentence):
    with pytest.raises(ValueError) as error:
        build_norm(name, 16, **options)
    assert sentence in str(error.value)
