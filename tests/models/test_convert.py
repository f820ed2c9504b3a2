"""`convert`: every normalization layer of any model replaced, or refused by name."""

import copy
import functools
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnexp.models.conversion.convert import convert
from gnexp.norms.registry import NORMS
from gnexp.training.stack import Stack

BATCH_NORMS = nn.modules.batchnorm._BatchNorm


ONE_LAYER = nn.Identity()
# Of each kind of layer one: of torch, with an activation, with other tensors, without parameters.
SEVERAL = ("bn", "gn", "frn", "dyt", "brn", "switchable", "bn_frozen", "gn_ws", "none")


class UNet(nn.Module):
    """A decoder with skip connections, as segmentation networks have."""

    def __init__(self, width=8):
        super().__init__()
        self.down1 = self.block(3, width)
        self.pool = nn.MaxPool2d(2)
        self.down2 = self.block(width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up_norm = nn.BatchNorm2d(width)
        self.up_relu = nn.ReLU(inplace=True)
        self.join = self.block(2 * width, width)
        self.head = nn.Conv2d(width, 10, 1)

    @staticmethod
    def block(inputs, outputs):
        conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))

    def forward(self, x):
        skip = self.down1(x)
        up = self.up_relu(self.up_norm(self.up(self.down2(self.pool(skip)))))
        return self.head(self.join(torch.cat([skip, up], dim=1))).mean(dim=(2, 3))


def torchvision_model(name):
    from torchvision import models

    return getattr(models, name)(weights=None, num_classes=10)


def timm_model(name, **options):
    return pytest.importorskip("timm").create_model(name, num_classes=10, **options)


MODELS = {
    "resnet18": functools.partial(torchvision_model, "resnet18"),
    "mobilenet_v3_small": functools.partial(torchvision_model, "mobilenet_v3_small"),
    "unet": UNet,
    "convnext_atto": functools.partial(timm_model, "convnext_atto"),
}


def images(count=2, size=64, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def small(norm=nn.BatchNorm2d, channels=8, **options):
    """A convolution, the norm and an in-place ReLU, then logits."""
    layers = (nn.Conv2d(3, channels, 3), norm(channels, **options), nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 4))


def lived_in(model):
    """Give every tensor of the norms values of its own, as training does."""
    draw = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data = 0.5 + torch.rand(tensor.shape, generator=draw, dtype=tensor.dtype)
            module.num_batches_tracked.fill_(7)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_has_no_batch_norm_left_and_trains(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    done = convert(model, "gn", groups=4, fallback="gcd", example=images())
    new = done.model
    assert done.replaced
    assert not any(isinstance(module, BATCH_NORMS) for module in new.modules())
    loss = F.cross_entropy(new.train()(images()), torch.tensor([1, 2]))
    loss.backward()
    assert torch.isfinite(loss)
    for row in done.replaced:
        layer = new.get_submodule(".".join(filter(None, (row.name, row.within))))
        assert type(layer) is nn.GroupNorm
        assert layer.weight.grad.abs().sum() > 0
        assert layer.bias.grad.abs().sum() > 0


def test_names_in_state_dicts_stay_but_for_running_statistics():
    model = torchvision_model("resnet18")
    running = ("running_mean", "running_var", "num_batches_tracked")
    kept = [name for name in model.state_dict() if not name.endswith(running)]
    done = convert(model, "gn", groups=32)
    assert list(done.model.state_dict()) == kept
    assert len(done.replaced) == 20
    assert {row.name for row in done.replaced} >= {"bn1", "layer2.0.downsample.1"}
    assert "layer4.1.bn2: BatchNorm2d -> GroupNorm, 512 channels, affine kept" in str(done)


def test_batch_norm_from_batch_norm_is_the_same_function_with_its_running_statistics():
    model = lived_in(torchvision_model("resnet18")).double().eval()
    new = convert(model, "bn", example=images().double()).model
    x = images(3).double()
    assert torch.equal(new(x), model(x))
    assert all(
        torch.equal(a, b) for a, b in zip(new.state_dict().values(), model.state_dict().values())
    )


def test_frozen_statistics_are_those_that_batch_norm_had():
    model, x = lived_in(small()).double().eval(), images().double()
    frozen = convert(model, "bn_frozen").model.train()
    assert torch.allclose(frozen(x), model(x), rtol=1e-10)


def test_the_norm_of_group_norm_from_batch_norm_keeps_gamma_and_beta():
    model = lived_in(small()).double()
    x = images().double()
    weight, bias = model[1].weight, model[1].bias
    expected = F.group_norm(model[0](x), 2, weight, bias, 1e-5)
    assert torch.allclose(convert(model, "gn", groups=2).model[:2](x), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("old", "shape"),
    [
        (nn.BatchNorm1d(8), (4, 8)),
        (nn.BatchNorm1d(8), (4, 8, 5)),
        (nn.BatchNorm3d(8), (2, 8, 3, 4, 5)),
        (nn.InstanceNorm1d(8, affine=True), (4, 8, 5)),
    ],
)
@pytest.mark.parametrize("known", [True, False])
def test_inputs_of_other_than_four_axes_are_normalized_as_they_would_be(old, shape, known):
    x = torch.randn(shape, dtype=torch.float64)
    model = nn.Sequential(nn.Identity(), copy.deepcopy(old)).double()
    new = convert(model, "gn", groups=2, example=x if known else None).model
    assert torch.allclose(new(x), F.group_norm(x, 2), atol=1e-12)
    batch = convert(model, "bn", example=x if known else None).model.train()
    assert torch.allclose(batch(x), F.batch_norm(x, None, None, training=True), atol=1e-12)


def test_layer_norm_of_channels_last_maps_becomes_group_norm_of_its_channels():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(8, eps=1e-6)

        def forward(self, x_NHWC):
            return self.norm(x_NHWC)

    x_NHWC = torch.randn(2, 3, 5, 8, dtype=torch.float64)
    new = convert(Last().double(), "gn", groups=4, example=x_NHWC).model
    expected = F.group_norm(x_NHWC.permute(0, 3, 1, 2), 4).permute(0, 2, 3, 1)
    assert torch.allclose(new(x_NHWC), expected, atol=1e-12)
    blind = convert(Last(), "gn", groups=4)
    assert not blind.replaced
    assert "without an example" in blind.left[0].reason
    assert "without example=" in blind.notes[0]


def test_layer_norms_of_tokens_are_left_unless_asked_for():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), nn.LayerNorm(8)).double()
    x = images(size=8).double()
    done = convert(model, "gn", groups=2, example=x)
    assert [row.name for row in done.left] == ["2"]
    assert "tokens" in done.left[0].reason
    assert torch.equal(done.model(x), model(x))
    tokens = convert(model, "gn", groups=2, example=x, only="tokens").model
    expected = F.group_norm(model[:2](x).transpose(1, 2), 2).transpose(1, 2)
    assert torch.allclose(tokens(x), expected, atol=1e-12)


def test_a_layer_used_in_two_places_is_replaced_once_for_both():
    shared = nn.BatchNorm2d(8)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    done = convert(model, "gn", groups=2)
    assert done.model["a"][0] is done.model["b"]
    assert isinstance(done.model["b"], nn.GroupNorm)
    assert [(row.name, row.also) for row in done.replaced] == [("a.0", ("b",))]
    assert model["b"] is shared


def functional(call):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Sequential(nn.BatchNorm2d(3))

        def forward(self, x):
            return call(self.inner(x))

    return Functional()


CALLS = {
    "batch_norm": lambda x: F.batch_norm(x, None, None, training=True),
    "layer_norm": lambda x: torch.layer_norm(x, x.shape[1:]),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_function_that_normalizes_is_refused(name):
    with pytest.raises(ValueError, match=f"the model normalizes by a call of {name}"):
        convert(functional(CALLS[name]), "gn", groups=1, example=images())


def test_a_norm_outside_of_the_submodules_is_refused():
    class Hidden(nn.Module):
        def __init__(self, registered):
            super().__init__()
            self.norms = [nn.BatchNorm2d(3)]
            if registered:
                self.norm = self.norms[0]

        def forward(self, x):
            return self.norms[0](x)

    with pytest.raises(ValueError, match="normalizes by a call of batch_norm"):
        convert(Hidden(False), "gn", groups=1, example=images())
    with pytest.raises(ValueError, match="still calls batch_norm of a layer that was replaced"):
        convert(Hidden(True), "gn", groups=1, example=images())


class Halved(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x) / 2


class HomemadeNorm(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return self.gain * x / x.std()


def hooked(channels):
    layer = nn.BatchNorm2d(channels)
    layer.register_forward_hook(lambda *args: None)
    return layer


def parametrized(channels):
    layer = nn.BatchNorm2d(channels)
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus())
    return layer


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Halved, "1 is a Halved: a BatchNorm2d with a forward of its own"),
        (HomemadeNorm, "1 is a HomemadeNorm, which normalizes by a rule of its own: the scale"),
        (lambda c: nn.LazyBatchNorm2d(), r"the model has a lazy layer \(1\.weight\); pass a batch"),
        (hooked, "1 is a BatchNorm2d with hooks"),
        (parametrized, "1 is a BatchNorm2d whose parameters are parametrized"),
        (lambda c: torch.jit.script(nn.BatchNorm2d(c)), "1 is a ScriptModule"),
        (
            lambda c: torch.ao.nn.intrinsic.ConvBn2d(nn.Conv2d(c, c, 1), nn.BatchNorm2d(c)),
            "1 is a fused or quantized ConvBn2d",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_may_normalize_and_is_not_known_is_refused_by_name(layer, why):
    with pytest.raises(ValueError, match=why):
        convert(small(layer), "gn", groups=2)


class Normalize(nn.Module):
    """Image mean and std in front of a model: its name says norm, and it normalizes nothing."""

    def __init__(self, channels=3):
        super().__init__()
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.45))
        self.register_buffer("running_var", torch.full((channels,), 0.05))
        self.register_buffer("running_mean", torch.full((channels,), 0.3))

    def forward(self, x):
        y = (x - self.mean) / self.running_var.sqrt()[:, None, None]
        return y - self.running_mean[:, None, None]


class NormGate(nn.Module):
    """Squeeze and excitation, under a name of a norm."""

    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x):
        return x * self.fc(x.mean(dim=(2, 3))).sigmoid()[..., None, None]


class Attention(nn.Module):
    """A block whose queries are normalized: its output does not depend on the input's scale."""

    def __init__(self, channels):
        super().__init__()
        self.queries = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x):
        queries = F.normalize(self.queries(x), dim=1)
        return queries + queries.mean(dim=(2, 3), keepdim=True)


@pytest.mark.parametrize("example", [None, True])
def test_a_layer_called_a_norm_that_normalizes_nothing_is_none(example):
    model = nn.Sequential(Normalize(), *small(), nn.Identity())
    model.insert(2, NormGate(8))
    model.insert(4, Attention(8))
    done = convert(model, "gn", groups=2, example=images() if example else None)
    assert [row.name for row in done.replaced] == ["3"]
    assert not done.left
    assert type(done.model[0]) is Normalize


class Detr(nn.Module):
    """Frozen batch norm as in DETR: four buffers, and an eps in its forward."""

    def __init__(self, channels):
        super().__init__()
        for key, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            self.register_buffer(key, torch.full((channels,), float(value)))

    def forward(self, x):
        w, b, m, v = (t.reshape(1, -1, 1, 1) for t in self.buffers())
        scale = w * (v + 1e-5).rsqrt()
        return x * scale + (b - m * scale)


class OverChannels(nn.LayerNorm):
    """Layer norm of each pixel over its channels, as in ConvNeXt and SAM."""

    def forward(self, x):
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ByHand(nn.Module):
    """Instance norm written out, without gamma and beta."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        var, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return (x - mean) / (var + 1e-6).sqrt()


class Cast(nn.BatchNorm2d):
    """Batch norm in float32 whatever comes."""

    def forward(self, x):
        return super().forward(x.float()).to(x.dtype)


@pytest.mark.parametrize("kind", [Detr, OverChannels, ByHand, Cast])
def test_an_unknown_layer_that_computes_what_a_known_one_does_is_replaced(kind):
    model = small(kind)
    done = convert(model, "gn", groups=2, example=images())
    assert [(row.name, row.old, row.new) for row in done.replaced] == [
        ("1", kind.__name__, "GroupNorm")
    ]
    x = torch.randn(2, 8, 4, 4)
    assert torch.allclose(done.model[1](x), F.group_norm(x, 2), atol=1e-5)


class Following(nn.Module):
    """Divides by a moving average of what has passed: linear in its input at each pass."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("size", torch.ones(channels))

    def forward(self, x):
        y = x / self.size[:, None, None]
        if self.training:
            self.size.lerp_(x.detach().abs().mean(dim=(0, 2, 3)), 0.1)
        return y


class Lengths(nn.Module):
    """Divides each pixel by its length, and has no tensors."""

    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return F.normalize(x, dim=1) * 2


@pytest.mark.parametrize("kind", [Following, Lengths])
def test_what_normalizes_under_any_name_is_refused_with_a_way_out_that_works(kind):
    model = small(kind)
    model.append(nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match=rf"1 is a {kind.__name__}, which.*; leave=1 leaves it"):
        convert(model, "gn", groups=2, example=images())
    done = convert(model, "gn", groups=2, example=images(), leave="1")
    assert [row.name for row in done.replaced] == ["6"]
    assert type(done.model[1]) is kind


def test_leave_and_only_take_patterns_and_classes():
    model = torchvision_model("resnet18")
    some = {"leave": ["layer[34].*", "*.downsample.1"], "example": images()}
    done = convert(model, "gn", **some)
    assert all(row.name.startswith(("bn1", "layer1", "layer2")) for row in done.replaced)
    assert len(done.replaced) == 1 + 4 + 4
    assert len(done.left) == 20 - 9
    assert convert(model, "gn", only="bn1").replaced[0].name == "bn1"
    assert len(convert(model, "gn", only=["layer1"]).replaced) == 4
    assert len(convert(model, "gn", only="BatchNorm2d", leave="BasicBlock").replaced) == 1
    with pytest.raises(ValueError, match=r"only=layer9\.\* is not a kind .* did you mean layer"):
        convert(model, "gn", only="layer9.*")
    tokens = nn.Sequential(nn.Flatten(2), nn.Linear(64, 8), nn.LayerNorm(8))
    assert len(convert(tokens, "gn", only="LayerNorm", example=images(size=8)).replaced) == 1


def test_what_is_named_in_leave_stays_and_is_reported():
    done = convert(small(Halved), "gn", groups=2, leave=["1"], example=images())
    assert type(done.model[1]) is Halved
    assert [(row.name, row.reason) for row in done.left] == [("1", "it is named in leave=")]
    within = str(convert(UNet(), leave="down1", example=torch.randn(2, 3, 8, 8)))
    assert "down1.1: BatchNorm2d left, since it is in down1, which is named in leave=" in within


class OwnTrain(nn.BatchNorm2d):
    def train(self, mode=True):
        return super().train(False)


def hooked_gamma():
    layer = nn.BatchNorm2d(8)
    layer.weight.register_hook(lambda grad: 2 * grad)
    return layer


def with_shared_gamma():
    first, second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
    second.weight = first.weight
    return nn.Sequential(first, second)


def compiled():
    return torch.compile(nn.Sequential(nn.BatchNorm2d(8)), backend="eager")


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: OwnTrain(8), r"with a train\(\) of its own"),
        (hooked_gamma, "with hooks, which would be lost"),
        (with_shared_gamma, "1 and 0 share their weight"),
        (lambda: nn.DataParallel(nn.BatchNorm2d(8)), "wrapped in DataParallel: convert the model,"),
        (compiled, "is compiled: convert the model, then compile it"),
    ],
)
def test_what_a_replacement_would_lose_is_refused(build, why):
    with pytest.raises(ValueError, match=why):
        convert(build())


def test_norms_of_queries_and_keys_are_no_feature_maps():
    model = timm_model("vit_tiny_patch16_224", img_size=32, qk_norm=True)
    result = convert(model, only=["layer"], example=torch.randn(2, 3, 32, 32))
    assert not result.replaced
    assert "blocks.0.attn.q_norm: LayerNorm left, since it is within an attention layer" in str(
        result
    )


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    model = small()
    model.lock = threading.Lock()
    with pytest.raises(ValueError, match="the model cannot be copied: TypeError"):
        convert(model)


def test_groups_that_do_not_divide_are_refused_with_the_layer_and_the_valid_values():
    model = torchvision_model("mobilenet_v3_small")
    with pytest.raises(ValueError, match=r"layer features\.\S+: groups=32 does not .*valid: 1, 2"):
        convert(model, "gn", groups=32)
    done = convert(model, "gn", groups=32, fallback="gcd")
    found = {row.channels: done.model.get_submodule(row.name).num_groups for row in done.replaced}
    assert found[24] == 8
    assert found[16] == 16


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"norm": "gm"}, r"^norm=gm is unknown; did you mean gn\?"),
        ({"norm": "bn", "groups": 8}, "groups=8: norm=bn has no groups"),
        (
            {"only": "batches"},
            r"=batches is not a kind \(batch, .* class; did you mean batch",
        ),
        ({"only": 5}, r"only=5 must be a name, or a list of names such as \['batch'\]"),
        ({"leave": 5}, "leave=5 must be a name, or a list"),
        ({"epsilon": 1e-3}, "epsilon is not an option of norm=gn; did you mean eps"),
        ({"leave": "norm"}, "leave=norm is not the name of a module"),
        ({"norm": 3}, "norm=3 must be a name, or a function"),
        ({"norm": lambda channels: channels}, "layer .*: norm must build an nn.Module, not int"),
        ({"norm": nn.GroupNorm(8, 16)}, "norm=GroupNorm.* must be a name, or a function"),
        ({"norm": lambda: None}, "layer .*: building the norm for .* channels raised TypeError"),
        ({"model": UNet(), "norm": lambda _: ONE_LAYER}, "must build a new layer at each call"),
        ({"groups": "8"}, "groups='8' must be a whole number"),
        ({"groups": 4, "num_groups": 8}, "groups=4: norm=gn takes its groups from num_groups"),
        ({"model": 3}, "model must be an nn.Module, not int"),
    ],
)
def test_bad_arguments_get_a_sentence(words, why):
    model = words.get("model", small())
    options = {key: value for key, value in words.items() if key != "model"}
    with pytest.raises(ValueError, match=why):
        convert(model, **options)


def test_only_the_kinds_that_are_named_are_replaced():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(4, 8), nn.InstanceNorm2d(8))
    done = convert(model, "ln", only=["batch", "instance"])
    assert [row.name for row in done.replaced] == ["0", "2"]
    assert [(row.name, row.reason) for row in done.left] == [("1", "only= does not name group")]
    assert [row.affine for row in done.replaced] == ["kept", "absent"]  # the last had none


def bare(gamma, beta):
    """A batch norm with gamma, beta, both or neither, before a ReLU in a sequence."""
    model = small(affine=gamma or beta).double()
    if gamma != beta:
        setattr(model[1], "bias" if gamma else "weight", None)
    return model


@pytest.mark.parametrize(
    ("gamma", "beta"), [(False, False), (True, False), (False, True)], ids=["none", "gamma", "beta"]
)
@pytest.mark.parametrize("norm", SEVERAL)
def test_a_converted_layer_has_gamma_and_beta_where_the_old_one_had_them(norm, gamma, beta):
    done = convert(bare(gamma, beta), norm, example=images(size=8).double())
    layer = done.model[1]
    own = {*NORMS[norm].parameters} - {"weight", "bias"}
    had = {key for key, has in (("weight", gamma), ("bias", beta)) if has}
    learns = {name for name, _ in layer.named_parameters()}
    assert learns - own == (had if NORMS[norm].parameters else set())
    fresh = convert(small().double(), norm, example=images(size=8).double()).model
    fresh.load_state_dict(done.model.state_dict(), strict=False)
    x = images(4, 8).double()
    assert torch.allclose(done.model.train()(x), fresh.train()(x), atol=1e-10)  # ones and zeros
    word = {(): "absent", ("weight",): "kept, weight alone", ("bias",): "kept, bias alone"}
    assert done.replaced[0].affine == word[tuple(had)]


@pytest.mark.parametrize("norm", SEVERAL)
def test_a_stack_has_the_gammas_and_betas_of_its_models_and_what_is_frozen(norm):
    def one(seed):
        torch.manual_seed(seed)
        model = bare(False, False)
        model[0].weight.requires_grad_(False)
        model.insert(3, nn.BatchNorm2d(8).double())
        model[3].bias.requires_grad_(False)
        return convert(model, norm, example=images(size=8).double()).model.train()

    models = [one(0), one(1)]
    stack = Stack(models).train()
    kept = [[p.requires_grad for p in each.parameters()] for each in (stack, models[0])]
    assert kept[0] == kept[1]
    assert not all(kept[0])
    x_NRCHW = torch.stack([images(4, 8, seed).double() for seed in (2, 3)], dim=1)
    wanted = torch.stack([m(x_NRCHW[:, r]) for r, m in enumerate(copy.deepcopy(models))], dim=1)
    assert torch.allclose(stack(x_NRCHW), wanted, atol=1e-10)
    assert stack.state(1).keys() == models[1].state_dict().keys()


def test_gamma_without_beta_of_other_kinds_stays_alone():
    model = nn.Sequential(nn.LayerNorm(8, bias=False), nn.RMSNorm(8))
    x = torch.randn(2, 4, 4, 8)
    new = convert(model, "gn", groups=2, example=x).model
    names = [name for name, _ in new.named_parameters()]
    assert names == ["0.norm.weight", "1.norm.weight"]
    again = convert(nn.Sequential(nn.GroupNorm(2, 8, affine=False)), "dyt").model
    assert [name for name, _ in again.named_parameters()] == ["0.norm.alpha"]


def test_eps_is_the_norms_own_or_typed_and_what_differs_is_reported():
    model = small(eps=1e-3, momentum=0.01)
    done = convert(model, "bn")
    assert done.model[1].eps == 1e-5
    assert done.replaced[0].changed == ("eps 0.001 -> 1e-05", "momentum 0.01 -> 0.1")
    assert convert(model, "gn", groups=2, eps=1e-2).model[1].eps == 1e-2


def test_dtype_flags_and_frozen_parameters_are_those_of_the_old_layer():
    model = small().to(torch.bfloat16)
    model[1].eval().weight.requires_grad_(False)
    layer = convert(model, "gn", groups=2).model[1]
    assert layer.weight.dtype == torch.bfloat16
    assert not layer.training
    assert not layer.weight.requires_grad
    assert layer.bias.requires_grad


def test_the_model_itself_is_never_changed_and_may_be_a_norm():
    model = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(6))
    with pytest.raises(ValueError, match="layer 1: groups=4"):
        convert(model, "gn", groups=4)
    convert(model, "gn", groups=2)
    assert all(type(layer) is nn.BatchNorm2d for layer in model)
    assert type(convert(nn.BatchNorm2d(8), "gn").model) is nn.GroupNorm


@pytest.mark.parametrize("norm", SEVERAL)
def test_an_in_place_relu_behind_any_norm_gives_the_gradients_of_one_that_is_not(norm):
    done = convert(small().double(), norm, example=images(size=8).double())
    plain = copy.deepcopy(done.model)
    for module in plain.modules():
        module.inplace = False
    for model in (done.model, plain):
        model.train()(images(size=8).double()).square().sum().backward()
    for ours, theirs in zip(done.model.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        assert ours.grad is None or torch.equal(ours.grad, theirs.grad)


def test_a_norm_with_an_activation_replaces_the_one_behind_it_or_comes_without():
    done = convert(small(), "frn")
    assert isinstance(done.model[2], nn.Identity)
    assert done.model[1].activated
    assert done.replaced[0].activation == "its own for ReLU"
    done = convert(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), "frn")
    assert not done.model[0].activated
    assert "without its own" in done.replaced[0].activation
    with pytest.raises(ValueError, match="layer 0: EvoNormS0 is a norm and an activation in one"):
        convert(nn.Sequential(nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)), "evonorm_s0")


def test_a_layer_of_timm_with_its_own_activation_keeps_it_or_gives_it_up():
    layers = pytest.importorskip("timm").layers
    model = nn.Sequential(layers.BatchNormAct2d(8), layers.BatchNormAct2d(8, apply_act=False))
    x = torch.randn(2, 8, 4, 4)
    done = convert(model, "gn", groups=2)
    assert torch.allclose(done.model[0](x), F.group_norm(x, 2).relu(), atol=1e-6)
    assert torch.allclose(done.model[1](x), F.group_norm(x, 2), atol=1e-6)
    carrying = convert(model, "frn").model
    assert carrying[0].norm.activated
    assert isinstance(carrying[0].act, nn.Identity)
    assert not carrying[1].norm.activated


def test_a_statistic_of_one_value_is_refused_with_the_size_of_the_input():
    model = torchvision_model("resnet18")
    with pytest.raises(ValueError, match=r"layer layer4\.0\.bn1: GroupNorm would have one value"):
        convert(model, "in", example=images(size=32))
    assert convert(model, "gn", example=images(size=32)).replaced


def test_a_converted_model_that_does_not_take_the_example_is_refused():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(x) + self.norm.running_mean.sum()

    with pytest.raises(ValueError, match=r"the converted model does not take.*: AttributeError \("):
        convert(Reads(), "gn", groups=1, example=images())


def test_an_example_is_of_any_form_and_one_that_the_model_does_not_take_is_named():
    with pytest.raises(ValueError, match=r"the model does not take the example: RuntimeError \("):
        convert(torchvision_model("resnet18"), "gn", example=torch.zeros(2, 5, 64, 64))
    model = nn.Sequential(nn.Conv2d(3, 8, 8), nn.BatchNorm2d(8))  # one value per channel and image
    one = torch.randn(1, 3, 8, 8)
    for example in (one, (one,), {"input": one}):
        assert len(convert(model, "bn", example=example).replaced) == 1


def test_weight_standardization_is_of_the_convolutions_right_before_a_norm():
    done = convert(UNet(), "gn_ws", groups=4, example=images())
    kinds = {
        name: type(m).__name__ for name, m in done.model.named_modules() if "Conv" in str(type(m))
    }
    assert kinds["down1.0"] == kinds["join.0"] == "StandardizedConv2d"
    assert kinds["head"] == "Conv2d"
    assert "3 convolutions" in done.notes[0]
    assert done.notes[1] == "those of other kinds are not: up (ConvTranspose2d)"


def test_weight_standardization_names_the_convolution_that_it_is_not_for():
    model = nn.Sequential(nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8))
    why = r"needs an nn.Conv2d right before .*, and right before them is 0 \(Conv3d\)"
    with pytest.raises(ValueError, match=why):
        convert(model, "gn_ws", groups=2, example=torch.randn(2, 3, 5, 5, 5))
