"""The networks: published sizes, no in-place operations, initialization from one generator.

Shapes: N examples, C channels, H and W pixels.
"""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from gnexp.models.blocks import PaddedShortcut, PlainBlock, ResidualBlock
from gnexp.models.resnet import (
    build_model,
    cifar_resnet,
    initialize,
    zero_last_gamma,
)
from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.training.stack import Stack, why_not_stackable

BATCH_NORM = partial(build_norm, "bn")


def small(name: str = "tiny", norm: str = "gn") -> nn.Sequential:
    model = build_model(name, partial(build_norm, norm), num_classes=10, width=16)
    initialize(model, torch.Generator().manual_seed(0))
    return model


def images(n: int, size: int = 16) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
        ("resnet18", 11_173_962),
        ("resnet34", 21_282_122),
        ("resnet50", 23_520_842),
        # Without its shortcuts, which have no parameters, a network keeps its layers.
        ("plain20", 269_722),
        ("plain56", 853_018),
        ("plain110", 1_727_962),
        # One more norm, of 64 channels, before pooling.
        ("preresnet20", 269_850),
        ("preresnet56", 853_146),
        ("preresnet110", 1_728_090),
    ],
)
def test_each_network_has_the_published_number_of_parameters(name, parameters):
    with torch.device("meta"):  # counts need no memory
        model = build_model(name, BATCH_NORM, num_classes=10)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_gives_as_many_parameters_but_for_those_that_the_table_adds(norm):
    def counts(name, left_out=()):
        named = small("resnet8", name).named_parameters()
        return {k: p.numel() for k, p in named if k.rpartition(".")[2] not in left_out}

    expected = counts("bn")
    if not NORMS[norm].parameters:  # gamma and beta are fixed
        expected = {k: n for k, n in expected.items() if "norm" not in k}
    assert counts(norm, set(NORMS[norm].parameters) - {"weight", "bias"}) == expected


def test_tiny_is_the_smallest_network_of_the_family_that_32_groups_divide():
    model = build_model("tiny", partial(build_norm, "gn", num_groups=32), num_classes=10)
    channels = [m.num_channels for m in model.modules() if isinstance(m, nn.GroupNorm)]
    assert channels == [32, 32, 32, 64, 64, 128, 128]  # depth 8: these 7 convolutions and fc


def test_modules_have_the_names_that_files_and_tables_use():
    names = [name for name, _ in build_model("resnet20", BATCH_NORM, 10).named_parameters()]
    expected = {"conv1.weight", "norm1.bias", "stage1.0.conv1.weight", "stage3.2.norm2.weight"}
    assert expected | {"fc.weight", "fc.bias"} <= set(names)
    names = [name for name, _ in small("resnet18").named_parameters()]
    assert {"stage2.0.shortcut.conv.weight", "stage2.0.shortcut.norm.weight"} <= set(names)


@pytest.mark.parametrize("name", ["tiny", "resnet18", "resnet50", "preresnet8", "plain8"])
def test_networks_train_on_one_image_of_an_odd_size(name):
    model = build_model(name, BATCH_NORM, num_classes=7, width=8).train()
    logits = model(images(1, 33))
    assert logits.shape == (1, 7)
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("norm", NORMS)
def test_networks_evaluate_on_8_pixels_with_every_norm(norm):
    for name in ("tiny", "resnet18"):
        assert small(name, norm).eval()(images(2, 8)).isfinite().all()


def test_strides_leave_quarter_and_eighth_size_maps_in_the_last_stage():
    pixels = partial(values_per_statistic, input_shape=(3, 32, 32), batch=1)
    assert pixels(small("tiny", "bn"))[-1].values == 8 * 8
    assert pixels(small("resnet18", "bn"))[-1].values == 4 * 4


def test_the_padded_shortcut_keeps_every_other_pixel_and_appends_zero_channels():
    x_NCHW = images(2, 5)
    y_NCHW = PaddedShortcut(3, 7, stride=2)(x_NCHW)
    assert torch.equal(y_NCHW[:, :3], x_NCHW[:, :, ::2, ::2])
    assert torch.equal(y_NCHW[:, 3:], torch.zeros(2, 4, 3, 3))


class InPlaceWrites(TorchDispatchMode):
    """Collect the operations that write into a tensor which is not one of `allowed`."""

    def __init__(self, allowed):
        super().__init__()
        self.allowed = {tensor.data_ptr() for tensor in allowed}
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument, value in zip(func._schema.arguments, args):
            info = argument.alias_info
            # Without gradients a norm may write into what it alone has made.
            written = info and info.is_write and torch.is_grad_enabled()
            if written and value.data_ptr() not in self.allowed:
                self.found.append(func.__name__)
        return func(*args, **(kwargs or {}))


def in_place_writes(model: nn.Module, x_NCHW: torch.Tensor) -> list[str]:
    with InPlaceWrites(model.buffers()) as mode:  # BN may count its batches
        model(x_NCHW)
    return mode.found


@pytest.mark.parametrize("norm", NORMS)
def test_the_forward_pass_writes_into_no_activation(norm):
    for name in ("resnet18", "preresnet8") if norm == "gn" else ("resnet50", "plain8"):
        assert in_place_writes(small(name, norm).train(), images(2)) == []


def test_an_in_place_relu_or_sum_would_be_noticed():
    class Sum(nn.Module):
        def forward(self, x):
            y = 2 * x
            y += x
            return y

    assert in_place_writes(nn.Sequential(nn.Identity(), Sum()), images(1)) == ["add_.Tensor"]
    model = small()
    model.stage1[0].relu1.inplace = True
    assert in_place_writes(model, images(1)) == ["relu_.default"]


@pytest.mark.parametrize("norm", ["bn", "gn", "frn", "online", "none"])
@pytest.mark.parametrize("name", ["resnet20", "resnet50", "preresnet20"])
def test_with_zero_gamma_every_block_starts_as_its_shortcut(name, norm):
    model = small(name, norm).train()
    zeroed = zero_last_gamma(model)
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, ResidualBlock)}
    assert zeroed == [f"{n}.{block.last_norm}.weight" for n, block in blocks.items()]
    ends = F.relu if blocks["stage1.0"].activated else (lambda x: x)
    x_NCHW = ends(model.norm1(model.conv1(images(2))))
    assert (x_NCHW < 0).any() == (ends is not F.relu)  # a ReLU somewhere on the way would show
    for block in blocks.values():
        shortcut_NCHW = copy.deepcopy(block.shortcut)(x_NCHW)  # some norms follow what they see
        if isinstance(block.shortcut, nn.Identity):
            assert shortcut_NCHW is x_NCHW
        x_NCHW = block(x_NCHW)
        assert torch.equal(x_NCHW, ends(shortcut_NCHW))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_a_pre_activation_block_adds_a_branch_of_variance_gamma_squared(gamma):
    block = small("preresnet8", "in").train().stage1[0]
    with torch.no_grad():
        block.norm2.weight.fill_(gamma)
        x_NCHW = torch.randn(2, 16, 16, 16, generator=torch.Generator().manual_seed(2))
        r_NCHW = block(x_NCHW) - x_NCHW
    assert r_NCHW.var(correction=0).item() == pytest.approx(gamma**2, rel=1e-3)  # float32, eps


def test_plain_networks_are_the_residual_ones_without_the_skip():
    plain, residual = small("plain8", "gn"), small("resnet8", "gn")
    assert plain.state_dict().keys() == residual.state_dict().keys()
    plain.load_state_dict(residual.state_dict())
    x_NCHW = torch.rand(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    block = residual.stage1[0]
    assert isinstance(plain.stage1[0], PlainBlock)
    skipless = F.relu(block.norm2(block.conv2(F.relu(block.norm1(block.conv1(x_NCHW))))))
    assert torch.equal(plain.stage1[0](x_NCHW), skipless)
    with pytest.raises(ValueError, match="residual blocks"):
        zero_last_gamma(plain)


@pytest.mark.parametrize("norm", NORMS)
def test_a_stack_of_them_is_each_model_alone(norm):
    name = "plain8" if norm == "gn" else "preresnet8"
    factory = partial(build_norm, norm)
    models = [build_model(name, factory, num_classes=4, width=8).double() for _ in range(3)]
    for seed, model in enumerate(models):
        initialize(model, torch.Generator().manual_seed(seed))
    assert why_not_stackable(models, (3, 16, 16)) is None
    stack = Stack(models).train()
    assert not stack.mapped  # every layer has a form of its own, none goes through torch.func
    x_NRCHW = images(6).view(2, 3, 3, 16, 16).double()
    logits_NRK = stack(x_NRCHW)
    logits_NRK.square().sum().backward()
    for r, model in enumerate(models):
        logits_NK = model.train()(x_NRCHW[:, r])
        logits_NK.square().sum().backward()
        torch.testing.assert_close(logits_NRK[:, r], logits_NK, rtol=1e-10, atol=1e-10)  # float64
        for ours, theirs in zip(
            stack.parts(stack.gradients(), r, r + 1), model.parameters(), strict=True
        ):
            torch.testing.assert_close(ours[0], theirs.grad, rtol=1e-10, atol=1e-10)


def test_zero_gamma_refuses_a_norm_without_a_weight_and_changes_nothing():
    def norm(channels: int) -> nn.Module:  # the last stage only has no gamma
        return nn.GroupNorm(1, channels, affine=channels < 64)

    model = cifar_resnet(8, norm)
    with pytest.raises(ValueError, match=r"stage3\.0\.norm2 \(GroupNorm\) has none"):
        zero_last_gamma(model)
    assert model.stage1[0].norm2.weight.all()


def test_initialization_depends_on_its_generator_alone():
    states = []
    for global_seed, seed in [(1, 0), (2, 0), (1, 5)]:
        torch.manual_seed(global_seed)
        model = build_model("resnet8", BATCH_NORM, 10)
        random_state = torch.get_rng_state()
        initialize(model, torch.Generator().manual_seed(seed))
        assert torch.equal(torch.get_rng_state(), random_state)
        states.append(model.state_dict())
    first, same, other = states
    assert all(torch.equal(first[key], same[key]) for key in first)
    drawn = [key for key in first if not torch.equal(first[key], other[key])]
    assert len(drawn) == 7 + 2  # convolutions, fc.weight, fc.bias; no norm


def test_initial_weights_have_the_stated_spread_and_precision_does_not_change_them():
    generator = torch.Generator()
    model = build_model("resnet8", BATCH_NORM, 10, width=64)
    initialize(model, generator.manual_seed(0))
    weight = model.stage2[0].conv2.weight
    # 147,456 normal draws: the sample sd has a relative standard error of 0.2 %
    assert weight.std().item() == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)
    assert model.fc.weight.abs().max().item() == pytest.approx(1 / 256**0.5, rel=0.01)
    double = build_model("resnet8", BATCH_NORM, 10, width=64).double()
    initialize(double, generator.manual_seed(0))
    assert torch.equal(double.stage2[0].conv2.weight, weight.double())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (
            partial(build_model, "resnet21", BATCH_NORM, 10),
            "resnet21 is unknown; did you mean r",
        ),
        (partial(build_model, "tiny", BATCH_NORM, 10, 0), "width=0 must be at least 1"),
        (partial(build_model, "tiny", BATCH_NORM, 0), "num_classes=0 must be at least 1"),
    ],
)
def test_a_wrong_name_width_or_depth_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError) as error:
        build()
    assert sentence in str(error.value)


@pytest.mark.parametrize(("name", "width"), [("tiny", 32), ("resnet50", 64), ("preresnet8", 16)])
def test_groups_that_do_not_divide_name_the_layer(name, width):
    def norm(channels: int) -> nn.Module:
        return build_norm("gn", channels, num_groups=group_count(channels, groups=7))

    with torch.device("meta"), pytest.raises(ValueError) as error:
        build_model(name, norm, num_classes=10)
    assert str(error.value).startswith(f"norm1: groups=7 does not divide {width} channels; valid:")
