"""Accuracy under population, batch and example statistics: each is as its definition says.

Shape suffixes: N images, C channels, H, W pixels, B images of a batch.
"""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from no_trace import no_trace
from torch import nn

from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.data.sources import Dataset
from gnexp.measure import batch_passes, bn_statistics
from gnexp.measure import precise_bn as population
from gnexp.measure.bn_statistics import STATISTICS, batch_logits, example_statistics
from gnexp.measure.precise_bn import precise_statistics, running_layers
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS, build_norm
from gnexp.training.evaluate import evaluate

STATELESS = [name for name, norm in NORMS.items() if "n" not in norm.pools]
OPTIONS = {name: {"num_groups": 2} for name in ("gn", "gn_ws", "evonorm_s0")}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    # Images differ in brightness and contrast, so that a batch's statistics are not everyone's.
    light, contrast = rng.uniform(40, 200, (90, 3, 1, 1)), rng.uniform(5, 40, (90, 1, 1, 1))
    x = np.clip(light + contrast * rng.standard_normal((90, 3, 8, 8)), 0, 255).astype(np.uint8)
    y = np.arange(90) % 3
    return DeviceDataset(Dataset(x[:60], y[:60], x[60:], y[60:], ("a", "b", "c"), "random", ""))


class Net(nn.Module):
    """Two norms, the second in a residual branch and called by keyword; order of names reversed."""

    def __init__(self, norm):
        super().__init__()
        self.later = norm(4)
        self.first = norm(4)
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x_NCHW):
        h = F.relu(self.first(self.conv1(x_NCHW)))
        h = h + self.later(input=self.conv2(h))
        return self.fc(F.relu(h).mean(dim=(2, 3)))


def scatter(model: nn.Module) -> nn.Module:
    """Give weights, gammas and betas, and running statistics values that none has by default."""
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                draw = torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
                positive = name.endswith("running_var") or tensor.ndim == 1
                tensor.copy_(0.5 + draw.abs() if positive else 0.4 * draw)
    return model


def net(norm=nn.BatchNorm2d, dtype=torch.float64) -> nn.Module:
    return scatter(Net(norm)).to(dtype)


def resnet(name: str, dtype=torch.float64) -> nn.Module:
    """Stacks without torch.func, unlike `Net`."""
    norm = partial(build_norm, name, **OPTIONS.get(name, {}))
    model = build_model("resnet8", norm, num_classes=3, width=4)
    initialize(model, torch.Generator().manual_seed(0))
    return scatter(model).to(dtype)


def other_scores(model, images, batch, precision="fp32", augment="none", seed=0, plain=None):
    how = {"augment": augment, "seed": seed, "plain": plain}
    return bn_statistics.other_scores(model, images, batch, precision, **how)


def train_images(images, dtype=torch.float64):
    return normalize(images.x_train, images.mean, images.std, dtype)


def naive_batch_norm(x, mean, var, layer):
    """The formula in numpy, channel by channel; mean and var: (C,) or (N, C)."""
    mean, var = (np.broadcast_to(s, x.shape[:2])[..., None, None] for s in (mean, var))
    gamma, beta = (p.detach().numpy()[:, None, None] for p in (layer.weight, layer.bias))
    return (x - mean) / np.sqrt(var + layer.eps) * gamma + beta


def naive_net(model: Net, x, statistics_of):
    """`Net` in float64; statistics_of(x, layer) gives what its norms normalize by."""
    x = torch.as_tensor(x)
    with torch.no_grad():
        h = model.conv1(x).numpy()
        h = naive_batch_norm(h, *statistics_of(h, model.first), model.first).clip(0)
        h2 = model.conv2(torch.from_numpy(h)).numpy()
        h = h + naive_batch_norm(h2, *statistics_of(h2, model.later), model.later)
        return model.fc(torch.from_numpy(h.clip(0).mean(axis=(2, 3)))).numpy()


# Population statistics


def test_population_statistics_are_those_of_torch_over_one_big_batch(images):
    model, x = net(), train_images(images)
    with precise_statistics(model, [x]) as found:
        ours = {name: (layer.running_mean.clone(), layer.running_var.clone())
                for name, layer in running_layers(model).items()}  # fmt: skip
        logits = model(x)
    judge = net(partial(nn.BatchNorm2d, momentum=1.0)).train()
    expected = judge(x)
    count = x[:, 0].numel()
    assert set(found) == {"first", "later"}
    for name, layer in running_layers(judge).items():
        unbiased = ours[name][1] * count / (count - 1)  # what torch keeps
        torch.testing.assert_close(ours[name][0], layer.running_mean, rtol=0, atol=1e-12)  # float64
        torch.testing.assert_close(unbiased, layer.running_var, rtol=1e-12, atol=0)  # float64
        torch.testing.assert_close(found[name], ours[name], rtol=0, atol=0)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-11)  # float64


@pytest.mark.parametrize("build", [net, partial(resnet, "bn")])
def test_chunks_one_layer_after_another_and_small_parts_give_the_statistics_of_a_single_pass(
    images, build, monkeypatch
):
    model, x = build(), train_images(images)
    with precise_statistics(model, [x]) as at_once:
        pass
    assert at_once.keys() == running_layers(model).keys()
    for size, part in ((7, 1000), (59, 2**20)):
        monkeypatch.setattr(population, "_PART", part)
        with precise_statistics(model, x.split(size)) as in_chunks:
            pass
        torch.testing.assert_close(in_chunks, at_once, rtol=1e-11, atol=1e-12)  # float64


def test_float32_activations_far_from_zero_lose_no_variance(images):
    layer = nn.Sequential(nn.BatchNorm2d(3))
    x = 1000 + 1e-2 * torch.randn(60, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with precise_statistics(layer, x.split(7)) as found:
        pass
    exact = x.double().numpy().var(axis=(0, 2, 3))
    np.testing.assert_allclose(found["0"][1], exact, rtol=1e-9)  # float64 sums of float32 values


@pytest.mark.parametrize(("most_bytes", "count"), [(2**30, 1), (20_000, 20)])
def test_population_scores_are_those_with_the_statistics_of_the_training_images(
    images, most_bytes, count, monkeypatch
):
    monkeypatch.setattr(bn_statistics, "MOST_BYTES", most_bytes)
    model = net()
    assert len(bn_statistics.training_chunks(model, images, "fp32")[1]) == count
    with precise_statistics(model, [train_images(images)]):
        expected = evaluate(model, images).logits_NK
    scores = other_scores(model, images, 2)["population"]
    torch.testing.assert_close(scores.logits_NK, expected, rtol=0, atol=1e-5)  # float32 logits
    assert (expected - evaluate(model, images).logits_NK).abs().max() > 0.1


def test_a_layer_that_is_called_twice_has_no_population_statistics_and_is_named(images):
    class Twice(Net):
        def forward(self, x_NCHW):
            h = self.first(self.conv1(x_NCHW))
            return self.fc(self.first(self.conv2(h)).mean(dim=(2, 3)))

    model, x = scatter(Twice(nn.BatchNorm2d)).double(), train_images(images)
    for chunks in ([x], x.split(7)):
        with (
            pytest.raises(ValueError, match="first is called twice in one forward pass"),
            precise_statistics(model, chunks),
        ):
            pass
    scores = other_scores(model, images, 2)
    assert scores["population"] is scores["population_augmented"] is None
    assert scores["batch"] is not None


class Shared(nn.Module):
    """A user's norm with one pair of running statistics for every two channels."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels // 2))
        self.register_buffer("running_var", torch.ones(channels // 2))

    def forward(self, input):
        x = input.unflatten(1, (-1, 2)).flatten(2)
        return F.batch_norm(
            x, self.running_mean, self.running_var, None, None, self.training
        ).view_as(input)


def test_statistics_of_groups_of_channels_are_not_taken_for_those_of_channels(images):
    model = net(nn.BatchNorm2d)
    model.later = Shared(4)
    model = model.double()
    message = "later holds 2 running statistics for an input of 4 channels"
    with (
        pytest.raises(ValueError, match=message),
        precise_statistics(model, [train_images(images)]),
    ):
        pass
    assert other_scores(model, images, 2)["population"] is None


def test_a_layer_that_no_pass_reaches_keeps_its_running_statistics(images):
    model = net()
    model.unused = nn.BatchNorm2d(7).double()
    with precise_statistics(model, train_images(images).split(9)) as found:
        assert torch.equal(model.unused.running_var, torch.ones(7, dtype=torch.float64))
    assert set(found) == {"first", "later"}


def test_the_population_is_a_fixed_random_subset_of_the_training_images(images, monkeypatch):
    monkeypatch.setattr(bn_statistics, "MOST_IMAGES", 25)
    torch.manual_seed(1)
    first = population_of(images, "none")
    torch.manual_seed(2)
    assert len(first) == 25
    assert torch.equal(first, population_of(images, "none"))
    every = {image.numpy().tobytes() for image in train_images(images)}
    drawn = [image.numpy().tobytes() for image in first]
    assert len({*drawn} & every) == 25
    assert drawn != [image.numpy().tobytes() for image in train_images(images)[:25]]


# The same of augmented images


def population_of(images, augment, seed=0):
    """Return the images as the model gets them, in one batch, in float64."""
    seen = []
    model = net()
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    forward, chunks = bn_statistics.training_chunks(
        model, images, "fp32", augment=augment, seed=seed
    )
    seen.clear()
    for chunk in chunks:
        forward(chunk)
    return torch.cat(seen)


@pytest.mark.parametrize("build", [net, partial(resnet, "bn")])
def test_augmented_scores_are_those_with_the_statistics_of_the_augmented_images(images, build):
    model, x_NCHW = build(), population_of(images, "crop_flip", seed=3)
    with precise_statistics(model, [x_NCHW]):
        expected = evaluate(model, images).logits_NK
    scores = other_scores(model, images, 2, augment="crop_flip", seed=3)
    torch.testing.assert_close(scores["population_augmented"].logits_NK, expected)
    assert not torch.allclose(scores["population"].logits_NK, expected, atol=1e-3)
    assert torch.equal(x_NCHW, population_of(images, "crop_flip", seed=3))
    assert not torch.equal(x_NCHW, population_of(images, "crop_flip", seed=4))
    same = other_scores(model, images, 2, augment="none", seed=5)
    assert same["population_augmented"] is same["population"]


# Statistics of the test batch


def in_turn_by_torch(model, images, batch):
    """Logits of one batch after another, each by a fresh copy whose norms are in training mode."""

    def forward(x_NCHW):
        fresh = copy.deepcopy(model).eval()
        for module in fresh.modules():
            if hasattr(module, "running_mean"):
                module.train()
        return fresh(x_NCHW)

    x = normalize(images.x_test, images.mean, images.std, torch.float64)
    count, x = len(x), torch.cat([x] * 4)  # the last batch is filled up from the start
    with torch.no_grad():
        rows = [forward(x[start : start + batch]) for start in range(0, count, batch)]
    return torch.cat(rows)[:count]


# Of 30 images in passes of 16: batches that share a pass. A dropout draws, so nothing is shared.
SHARED = {
    ("relu", 1): [16, 14],
    ("relu", 7): [2, 2, 1],
    ("relu", 64): [],
    ("mapped", 3): [5, 5],
    ("dropout", 2): [],
}


class TwoFaced(nn.Module):
    """An activation of a user's that is another one in training."""

    def forward(self, x_NCHW):
        return torch.tanh(x_NCHW) if self.training else F.relu(x_NCHW)


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "mapped": TwoFaced(),  # goes through torch.func
    "dropout": nn.Sequential(nn.ReLU(), nn.Dropout(0.5)),  # stays in evaluation mode
}

CHECKS = {"relu": 0, "mapped": 2, "dropout": 1}  # passes of two batches that try torch.func


@pytest.mark.parametrize(("activation", "batch"), SHARED)
@pytest.mark.parametrize(("name", "momentum"), [("bn", None), ("brn", 0.1)])
def test_many_batches_in_one_pass_give_what_they_give_in_turn(
    images, name, momentum, activation, batch, monkeypatch
):
    model = resnet(name).train()
    model.relu = ACTIVATIONS[activation]
    for layer in running_layers(model).values():
        layer.momentum = momentum
    passes, set_chunks = [], batch_passes.Stack.set_chunks

    def counted(stack, chunks):
        passes.append(chunks)
        set_chunks(stack, chunks)

    monkeypatch.setattr(batch_passes.Stack, "set_chunks", counted)
    logits = batch_logits(model, images, batch)
    shared = SHARED[activation, batch]
    # Only stock BN tells batches apart within a pass; the others pass one after the other.
    checks = [2] * CHECKS[activation] if batch < 9 else []  # 64 images are too many for a try
    assert passes == (checks + shared if name == "bn" else [])
    expected = in_turn_by_torch(model, images, batch)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)  # float64


class Follower(nn.Module):
    """A user's norm: like batch norm, but uses its running statistics in training mode too."""

    def __init__(self, channels):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.weight, self.bias = (nn.Parameter(torch.ones(channels)) for _ in range(2))
        self.eps = 1e-5

    def forward(self, input):
        mean = self.running_mean
        if self.training:
            mean = (mean + input.mean(dim=(0, 2, 3))) / 2
            self.running_mean = mean.detach()  # rebound, not updated in place
        x = (input - mean[:, None, None]) * (self.running_var + self.eps).rsqrt()[:, None, None]
        return x * self.weight[:, None, None] + self.bias[:, None, None]


def test_no_batch_changes_the_running_statistics_that_the_next_one_finds(images):
    model = net(Follower)
    with no_trace(model):
        scores = other_scores(model, images, 3)
    x = normalize(images.x_test, images.mean, images.std, torch.float64).numpy()

    def halfway(h, layer):
        return (layer.running_mean.numpy() + h.mean((0, 2, 3))) / 2, layer.running_var.numpy()

    expected = np.concatenate([naive_net(model, x[i : i + 3], halfway) for i in range(0, 30, 3)])
    logits = scores["batch"].logits_NK.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)  # float32 logits
    assert scores["example"] is None  # what this layer does with its statistics is not known


# Statistics moved towards the example


@pytest.mark.parametrize("batch", [1, 5])
def test_example_statistics_are_those_of_a_batch_whose_other_images_are_the_running_ones(
    images, batch
):
    model = net()
    x = normalize(images.x_test, images.mean, images.std, torch.float64)

    def mixture(h, layer):
        """Moments of drawing the image with weight a, else from the running distribution."""
        a = 1 / batch
        kept_mean, kept_var = layer.running_mean.numpy(), layer.running_var.numpy()
        mean = a * h.mean((2, 3)) + (1 - a) * kept_mean
        square = a * (h**2).mean((2, 3)) + (1 - a) * (kept_var + kept_mean**2)
        return mean, square - mean**2

    with example_statistics(model, batch), torch.no_grad():
        moved = model(x).numpy()
    np.testing.assert_allclose(moved, naive_net(model, x, mixture), atol=1e-10)  # float64


def test_example_statistics_need_stock_layers(images):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(2), nn.BatchNorm1d(3), nn.Flatten(1))
    model.append(nn.Linear(3 * 64, 3))
    scores = other_scores(model, images, 2)
    assert scores["example"] is None
    assert scores["population"] is not None
    assert scores["batch"] is not None

    class Named(nn.BatchNorm2d):
        """A subclass that leaves the forward pass as it is."""

    assert other_scores(net(Named), images, 2)["example"] is not None


# All of them


@pytest.mark.parametrize(("build", "batch"), [(net, 1), (partial(resnet, "bn"), 3)])
def test_scoring_leaves_the_model_bit_identical(images, build, batch, monkeypatch):
    model = build(dtype=torch.float32).train()
    next(iter(running_layers(model).values())).eval()  # a mixed state must come back too
    with no_trace(model):
        scores = other_scores(model, images, batch, augment="crop_flip")
    assert set(scores) == set(STATISTICS)
    plain = evaluate(copy.deepcopy(model), images).logits_NK
    assert not any(torch.allclose(s.logits_NK, plain, atol=1e-3) for s in scores.values())
    monkeypatch.setattr(bn_statistics, "MOST_BYTES", 20_000)
    with no_trace(model):
        other_scores(model, images, batch, augment="crop_flip")


def test_the_model_comes_back_when_the_block_fails(images):
    model, x = net().train(), train_images(images)
    for manager in (precise_statistics(model, x.split(9)), example_statistics(model, 2)):
        with no_trace(model), pytest.raises(RuntimeError, match="in the block"), manager:
            raise RuntimeError("in the block")


@pytest.mark.parametrize("name", STATELESS)
def test_without_running_statistics_nothing_depends_on_the_batch(images, name):
    model, batch = resnet(name), 3
    assert not running_layers(model)
    plain = evaluate(model, images)
    logits = batch_logits(model, images, batch)
    # float64, then float32 for storage
    torch.testing.assert_close(logits.float(), plain.logits_NK, rtol=1e-5, atol=1e-5)
    given = other_scores(model, images, batch, plain=plain)
    assert all(scores is plain for scores in given.values())
    model.train().stage1.eval()
    with no_trace(model):
        scores_anew = other_scores(model, images, batch)
    for scores in scores_anew.values():
        assert scores[:2] == plain[:2]
        assert torch.equal(scores.logits_NK, plain.logits_NK)


def test_a_norm_that_mixes_examples_but_keeps_no_known_statistics_has_no_other_scores(images):
    model = net(partial(nn.BatchNorm2d, track_running_stats=False))
    assert other_scores(model, images, 2) == dict.fromkeys(STATISTICS)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_diverged_model_is_scored_with_a_loss_of_nan(images, batch):
    model = resnet("bn", torch.float32)
    with torch.no_grad():
        next(p for p in model.parameters() if p.ndim == 4).fill_(torch.nan)
    for layer in running_layers(model).values():
        layer.running_var.fill_(torch.inf)
    for scores in other_scores(model, images, batch).values():
        assert np.isnan(scores.loss)
        assert 0 <= scores.accuracy <= 1


def test_running_statistics_of_nan_do_not_spoil_what_does_not_use_them(images):
    model = net()
    for layer in running_layers(model).values():
        layer.running_mean.fill_(torch.nan)
    scores = other_scores(model, images, 1)
    assert np.isnan(evaluate(model, images).loss)
    assert all(np.isfinite(each.loss) for each in scores.values())


def test_bf16_scores_are_near_those_of_float32(images):
    model = resnet("bn", torch.float32)
    exact = other_scores(model, images, 2)
    for name, scores in other_scores(model, images, 2, "bf16").items():
        assert scores.loss == pytest.approx(exact[name].loss, rel=0.1)  # bfloat16
        assert scores.loss != exact[name].loss


def test_in_a_linear_network_they_are_the_mean_and_covariance_of_the_inputs_propagated(images):
    model = scatter(
        nn.Sequential(
            nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4),
            nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3),
        )
    ).double()  # fmt: skip
    x = train_images(images)
    pixels = x.numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    mean, covariance = pixels.mean(axis=1), np.cov(pixels, bias=True)
    with precise_statistics(model, x.split(7)) as found:
        found = {name: [s.numpy() for s in pair] for name, pair in found.items()}
    for conv, norm, name in ((0, 1, "1"), (2, 3, "3"), (4, 5, "5")):
        weight, bias = (p.detach().numpy().squeeze() for p in model[conv].parameters())
        mean, covariance = weight @ mean + bias, weight @ covariance @ weight.T
        np.testing.assert_allclose(found[name][0], mean, rtol=1e-10)  # float64
        np.testing.assert_allclose(found[name][1], np.diag(covariance), rtol=1e-10)  # float64
        gamma, beta = (p.detach().numpy() for p in model[norm].parameters())
        scale = gamma / np.sqrt(np.diag(covariance) + model[norm].eps)
        mean, covariance = beta, scale[:, None] * covariance * scale
