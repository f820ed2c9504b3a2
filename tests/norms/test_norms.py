"""The table of norms: what each pools, starts with and takes, and which groups are valid.

Shapes: N examples, C channels, H and W pixels.
"""

from pathlib import Path

import pytest
import torch
import yaml
from no_trace import no_trace
from reference_checks import draw
from torch import nn

from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.norms.trials import pooled_axes
from gnexp.training.precision import autocast

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "norm"


@pytest.fixture
def x_NCHW() -> torch.Tensor:
    return draw(4, 16, 5, 7)


@pytest.mark.parametrize("name", NORMS)
def test_an_example_sees_its_batch_exactly_when_the_norm_pools_over_n(name, x_NCHW):
    layer = build_norm(name, num_channels=16).double().train()
    strangers = torch.cat([x_NCHW[:1], 3 * x_NCHW[1:] + 1])  # same first example, other batch
    same = torch.allclose(layer(x_NCHW)[0], layer(strangers)[0], rtol=0, atol=1e-12)  # float64
    assert same == ("n" not in NORMS[name].pools)


@pytest.mark.parametrize("name", NORMS)
def test_a_trial_finds_the_axes_that_the_table_names(name):
    layer = build_norm(name, num_channels=16)
    with no_trace(layer):
        found = pooled_axes(layer, 16, 3)
    if name == "brn":  # divides by running statistics, which pixels change only where r is clipped
        assert "n" in found
        assert {*found} <= {*"nhw"}
    else:  # the last step of Online Norm scales an example by its mean square over channels too
        assert found == ("nchw" if name == "online" else NORMS[name].pools)


class Gated(nn.Module):
    """Mean over examples alone, behind a gain that starts at zero; draws noise in training."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.gain * (x - x.mean(dim=0, keepdim=True)) + 0.1 * torch.rand_like(x)


class Remembering(nn.Module):
    """Centred by the mean of the batches before, not of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x):
        y = x - self.mean
        self.mean = 0.99 * self.mean + 0.01 * x.detach().mean()
        return y


@pytest.mark.parametrize(
    ("layer", "axes"),
    [
        (Gated(), "n"),
        (Remembering(), "n"),
        (nn.Dropout(0.5), ""),
        (nn.Softmax(dim=3), "w"),
        (nn.GroupNorm(16, 16), "hw"),
    ],
)
def test_a_trial_finds_what_any_layer_mixes(layer, axes):
    assert pooled_axes(layer, 16) == axes


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_starts_with_the_parameters_that_the_table_states_and_nothing_else(name):
    parameters = dict(build_norm(name, 16).named_parameters())
    assert {k: set(p.tolist()) for k, p in parameters.items()} == {
        k: {value} for k, value in NORMS[name].parameters.items()
    }
    scaling = {"weight": 1.0, "bias": 0.0}
    assert name == "bn_frozen" or scaling.items() <= NORMS[name].parameters.items()
    assert all(len(parameters[key]) == 16 for key in scaling if key in parameters)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("gm", {}, "norm=gm is unknown; did you mean gn? Valid: bn, gn, ln, in, "),
        ("batchnorm", {}, "norm=batchnorm is unknown; did you mean bn?"),
        ("gn", {"groups": 4}, "groups is not an option of norm=gn; did you mean num_groups?"),
        (
            "bn",
            {"epz": 1},
            "epz is not an option of norm=bn; did you mean eps? Valid: eps, m",
        ),
        ("none", {"eps": 1e-5}, "eps is not an option of norm=none"),
        ("bn", {"eps": 0.0}, "eps=0.0 must be positive"),
        ("bn", {"momentum": 0}, "momentum=0 must lie in"),
        ("evonorm_s0", {"num_groups": 7}, "num_groups=7 does not divide 16 channels; valid: 1, 2"),
        ("dyt", {"alpha": float("inf")}, "alpha=inf must be positive; the default is 0.5"),
        ("online", {"alpha_f": 1.0}, "alpha_f=1.0 must lie in [0, 1); the default is 0.999"),
        ("brn", {"rmax": 0.5}, "rmax=0.5 must be at least 1"),
        ("brn", {"dmax": -1}, "dmax=-1 must be 0 or more"),
        ("brn", {"warmup": 1.0}, "warmup=1.0 must be a part of training"),
        ("brn", {"warmup": 0.2}, "warmup=0.2 must be less than dmax_at=0.16"),
        ("brn", {"total_examples": 0}, "total_examples=0 must be at least 1"),
        ("gbn", {"ghost_batch": 2.5}, "ghost_batch=2.5 must be a whole number"),
        ("gbn", {"ghost_batch": 0}, "ghost_batch=0 must be a whole number of examples from 1 up"),
        ("gn", {"num_groups": 7}, "num_groups=7 does not divide 16 channels; valid: 1, 2, 4, 8"),
    ],
)
def test_a_wrong_name_or_option_is_refused_with_a_sentence(name, options, sentence):
    with pytest.raises(ValueError) as error:
        build_norm(name, 16, **options)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        ({}, 8),
        ({"groups": 48}, 48),
        ({"channels_per_group": 16}, 3),
        ({"groups": 32, "fallback": "gcd"}, 16),
        ({"groups": 7, "fallback": "gcd"}, 1),
        ({"channels_per_group": 32, "fallback": "gcd"}, 3),
    ],
)
def test_the_group_policy_for_48_channels(arguments, groups):
    assert group_count(48, **arguments) == groups


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"groups": 7}, "groups=7 does not divide 16 channels; valid: 1, 2, 4, 8, 16"),
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"groups": -8, "fallback": "gcd"}, "groups=-8 must be at least 1"),
        (
            {"channels_per_group": 3},
            "channels_per_group=3 does not divide 16 channels; valid: 1, 2, 4, 8, 16",
        ),
        (
            {"groups": 4, "channels_per_group": 4},
            "groups=4 and channels_per_group=4 exclude each other; give one of them",
        ),
        ({"groups": 4, "fallback": "lcm"}, "groups_fallback=lcm is unknown; valid: gcd"),
    ],
)
def test_groups_that_do_not_fit_are_refused_never_rounded(arguments, sentence):
    with pytest.raises(ValueError) as error:
        group_count(16, **arguments)
    assert str(error.value).startswith(sentence)


def small_net(name: str, **options) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        build_norm(name, 16, **options),
        nn.Conv2d(16, 32, 3, stride=4, padding=1),
        build_norm(name, 32, **options),
    )


@pytest.mark.parametrize(
    ("name", "options", "values"),
    [
        ("bn", {}, [5 * 64, 5 * 4]),
        ("gn", {}, [2 * 64, 4 * 4]),
        ("gn", {"num_groups": 16}, [64, 2 * 4]),
        ("ln", {}, [16 * 64, 32 * 4]),
        ("in", {}, [64, 4]),
        ("none", {}, []),
    ],
)
def test_values_per_statistic_at_batch_5_on_8_pixels(name, options, values):
    rows = values_per_statistic(small_net(name, **options), (3, 8, 8), batch=5)
    assert [row.values for row in rows] == values
    assert [(row.layer, row.channels) for row in rows] == [("1", 16), ("3", 32)][: len(values)]


@pytest.mark.parametrize(("name", "options"), [("bn", {}), ("in", {}), ("gn", {"num_groups": 16})])
def test_a_single_value_per_statistic_is_reported_not_raised(name, options):
    net = nn.Sequential(nn.Conv2d(3, 16, 8), build_norm(name, 16, **options))
    assert [row.values for row in values_per_statistic(net, (3, 8, 8), batch=1)] == [1]


def test_norms_with_unknown_axes_are_left_out():
    class OwnNorm(nn.BatchNorm2d):
        pass

    net = nn.Sequential(OwnNorm(3), nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16))
    assert [row.layer for row in values_per_statistic(net, (3, 8, 8), batch=1)] == ["2"]


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", ["bn", "gn", "online"])
def test_probing_leaves_no_trace_in_a_model(name, broken):
    net = nn.Sequential(small_net(name), nn.Dropout()).double().train()
    net[0][3].eval()  # a frozen layer
    with no_trace(net):
        if broken:  # the forward pass fails half-way
            with pytest.raises(RuntimeError):
                values_per_statistic(net, (5, 8, 8), batch=2)
        else:
            values_per_statistic(net, (3, 8, 8), batch=2)


@pytest.mark.parametrize("name", NORMS)
def test_the_yaml_of_a_norm_holds_the_defaults_of_the_table(name):
    typed = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert typed.pop("name") == name
    assert typed.pop("momentum_rule", "batches") == "batches"  # of all norms alike
    # The number of groups is a key of the run, and the total is told by the training.
    told = {k: v for k, v in NORMS[name].options.items() if k != "num_groups" and v is not None}
    assert typed == told
    assert told.get("eps", 1e-5) == 1e-5  # like for like


def test_a_ghost_batch_is_what_a_statistic_of_its_norm_is_over():
    net = small_net("gbn", ghost_batch=4)
    assert [row.values for row in values_per_statistic(net, (3, 8, 8), 6)] == [4 * 64, 4 * 4]
    assert [row.values for row in values_per_statistic(net, (3, 8, 8), 3)] == [3 * 64, 3 * 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NORMS)
def test_a_layer_of_half_precision_takes_inputs_of_its_own_dtype(name, dtype):
    x_NCHW = draw(10, 16, 4, 4)
    exact, layer = build_norm(name, 16).double(), build_norm(name, 16).to(dtype)
    x = x_NCHW.to(dtype).requires_grad_()
    y = layer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.double(), exact(x_NCHW), rtol=2**-5, atol=2**-5)
    assert layer.eval()(x).dtype == dtype


@pytest.mark.parametrize("name", ["bn", "none", "none_fixup"])
def test_under_bf16_a_control_computes_and_remembers_as_batch_norm_does(name):
    """Gamma's gradient is summed in float32; the backward pass keeps one bfloat16 activation."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(8, 16, 4, 4, generator=source).bfloat16().requires_grad_()
    slope = torch.randn(8, 16, 4, 4, generator=source).bfloat16()
    layer, kept = build_norm(name, 16), []
    with torch.no_grad():
        layer.weight.uniform_(0.5, 1.5, generator=source)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with autocast(torch.device("cpu"), "bf16"), hooks:
        y = layer(x)
    y.backward(slope)
    activations = [tensor for tensor in kept if tensor.numel() >= x.numel()]
    assert [tensor.dtype for tensor in activations] == [torch.bfloat16]
    assert x.grad.dtype == torch.bfloat16
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    if name != "bn":
        gamma, wide = layer.weight.detach().double()[:, None, None], slope.double()
        expected = (wide * x.detach().double()).sum((0, 2, 3))
        torch.testing.assert_close(layer.weight.grad.double(), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(x.grad, (wide * gamma).bfloat16())
