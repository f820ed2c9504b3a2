"""How a network starts: standardized filters, and weights under which none needs no norm.

Shapes: N examples, C channels, H and W pixels.
"""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnexp.config.schema import ModelConfig, TrainConfig
from gnexp.data.seeding import generator
from gnexp.models.blocks import ResidualBlock
from gnexp.models.initialization import start
from gnexp.models.resnet import build_model
from gnexp.models.weight_standardization import StandardizedConv2d
from gnexp.norms.registry import build_norm
from gnexp.runner.build.data import images_of, resolved
from gnexp.runner.build.model import seeded_model

SMALL = ("data.train_limit=60", "data.test_limit=20", "epochs=1", "gradients=0", "batch=10")


def draw(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def network(norm="none", model="resnet20", width=8, seed=0, **asked):
    net = build_model(model, partial(build_norm, norm), num_classes=4, width=width)
    start(net, generator(seed, "test"), **asked)
    return net


def standardized(**options):
    layer = StandardizedConv2d(6, 4, 3, **options).double()
    with torch.no_grad():
        layer.weight.copy_(0.3 * draw(*layer.weight.shape, seed=1) + 0.2)
    return layer


@pytest.mark.parametrize(
    "options", [{}, {"stride": 2, "padding": 1}, {"groups": 2}, {"bias": False}], ids=str
)
def test_a_standardized_convolution_applies_filters_of_mean_0_and_variance_1(options):
    layer, x = standardized(**options), draw(2, 6, 7, 5)
    filters = layer.weight.detach().numpy()
    filters = np.stack([(w - w.mean()) / np.sqrt(w.var() + 1e-6) for w in filters])
    plain = {k: getattr(layer, k) for k in ("stride", "padding", "groups")}
    expected = F.conv2d(x, torch.from_numpy(filters), layer.bias, **plain)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)  # float64


def test_the_standardized_convolution_is_timms():
    timm_layers = pytest.importorskip("timm.layers")
    ours = standardized(stride=2, padding=1)
    theirs = timm_layers.StdConv2d(6, 4, 3, stride=2, padding=1, bias=True, eps=1e-6).double()
    theirs.load_state_dict(ours.state_dict())
    x, dy = draw(2, 6, 8, 8), draw(2, 4, 4, 4, seed=2)
    for layer in (ours, theirs):
        layer(x).backward(dy)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-10, atol=1e-12)  # float64
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-8, atol=1e-10)


def test_every_convolution_is_standardized_and_names_stay():
    plain, net = network("gn"), network("gn", weight_standardization=True)
    kinds = {type(m) for m in net.modules() if isinstance(m, nn.Conv2d)}
    assert kinds == {StandardizedConv2d}
    assert list(net.state_dict()) == list(plain.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters()))
    with pytest.raises(ValueError, match="weight_standardization=true needs a model with conv"):
        start(nn.Sequential(nn.Linear(2, 2)), None, weight_standardization=True)


@pytest.mark.parametrize("model", ["resnet20", "preresnet20", "resnet50"])
def test_fixup_starts_each_branch_at_zero_and_scales_the_rest_by_the_depth(model):
    he, net = network(model=model), network(model=model, initialization="fixup")
    blocks = {name: m for name, m in net.named_modules() if isinstance(m, ResidualBlock)}
    count = {"resnet20": 9, "preresnet20": 9, "resnet50": 16}[model]
    assert len(blocks) == count
    for name, block in blocks.items():
        convs = [key for key, m in block.named_children() if isinstance(m, nn.Conv2d)]
        *first, last = convs
        assert not block.get_submodule(last).weight.any()
        power = -1 / (2 * len(convs) - 2)
        for key in first:
            expected = he.get_submodule(f"{name}.{key}").weight * count**power
            torch.testing.assert_close(block.get_submodule(key).weight, expected)
    assert not net.fc.weight.any()
    assert not net.fc.bias.any()


def losses(net, updates=30, rate=0.1):
    x_NCHW, y_N = draw(32, 3, 8, 8).float(), torch.arange(32) % 4
    x_NCHW[:, 0] += y_N[:, None, None]
    optimizer = torch.optim.SGD(net.parameters(), rate, momentum=0.9)
    found = []
    for _ in range(updates):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x_NCHW), y_N)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def test_a_deep_network_without_a_norm_learns_with_fixup_and_not_without():
    started = losses(network(model="resnet56", initialization="fixup"))
    assert started[0] == pytest.approx(np.log(4), abs=1e-6)
    assert started[-1] < 0.7
    without = losses(network(model="resnet56"), updates=3)
    assert not without[-1] < 10


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            ("norm=none", "weight_standardization=true"),
            "needs a norm that standardizes, which norm",
        ),
        (("norm=none_fixup", "zero_gamma=true"), "initialization=fixup excludes zero_gamma=true"),
        (
            ("norm=gn_ws", "initialization=fixup"),
            "initialization=fixup excludes weight_standardization=true",
        ),
        (("norm=none_fixup", "model=plain8"), "initialization=fixup needs a model with residual"),
        (("initialization=orthogonal",), "initialization=orthogonal is not one of he, fixup"),
    ],
)
def test_what_cannot_start_is_refused_with_a_sentence(typed, sentence, gnexp, workdir):
    answer = gnexp("train", *SMALL, *typed)
    assert answer.code == 2
    assert sentence in answer.err
    assert not (workdir / "results").exists()


@pytest.mark.parametrize(
    ("name", "norm", "key"),
    [
        ("gn_ws", "gn", {"weight_standardization": True}),
        ("none_fixup", "none", {"initialization": "fixup"}),
    ],
)
def test_the_norm_of_the_table_is_the_key_by_another_name(name, norm, key):
    model = ModelConfig("resnet8", 8)
    configs = (
        TrainConfig(norm={"name": name}, model=model),
        TrainConfig(norm={"name": norm}, model=model, **key),
    )
    data = images_of(configs[0].data).summary
    ours, theirs = (seeded_model(resolved(config), data, seed=0) for config in configs)
    assert str(ours) == str(theirs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
