"""Replicas that share a step: each gets exactly what it would get alone, in any execution."""

import copy
import functools
import json
import math
from pathlib import Path

import pytest
import torch
from replicas import distance, started
from torch import nn
from torch.nn import functional as F

from gnexp.data.device_images import (
    DeviceDataset,
    crop_flip,
    epoch_augmentation,
    epoch_order,
    normalize,
)
from gnexp.data.seeding import generator
from gnexp.data.sources import load_images
from gnexp.data.update_blocks import update_blocks
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS, build_norm
from gnexp.training.cuda_graph import GraphStep
from gnexp.training.loop import TrainSettings, train_epochs
from gnexp.training.lr_schedule import peak_rate
from gnexp.training.stack import draws_random_numbers, why_not_stackable
from gnexp.training.stacked_step import StackedStep

FLOAT64 = 1e-10  # relative, after 8 updates
UPDATES = 8  # momentum and decay show after three
SHAPE = (3, 16, 16)


class OwnNorm(nn.Module):
    """A user's norm with a running scale, which torch.func must stack."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, x):
        if self.training:
            scale = x.square().mean((0, 2, 3)).add(1e-5).sqrt()
            self.scale = 0.9 * self.scale + 0.1 * scale.detach()  # rebound, not in place
        else:
            scale = self.scale
        return (x / scale[:, None, None]) * self.weight[:, None, None] + self.bias[:, None, None]


class NestedNorm(nn.Module):
    """A user's norm around a stock one, whose running statistics change in place."""

    def __init__(self, channels):
        super().__init__()
        self.inner = nn.BatchNorm2d(channels)
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return self.inner(x) * self.gain[:, None, None]


class StatelessNorm(nn.Module):
    """A user's norm that pools over the batch and keeps nothing."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x / x.abs().mean((0, 2, 3), keepdim=True) * self.weight[:, None, None]


OWN = {"own": OwnNorm, "nested": NestedNorm, "stateless": StatelessNorm}
EVERY = [*NORMS, *OWN]
# BN is told apart into chunks; see ChunkedBatchNorm2d.
AT_ONCE = ["bn", *(name for name in NORMS if "n" not in NORMS[name].pools)]


def net(norm, seed, model="resnet8", dtype=torch.float64):
    return started(OWN.get(norm, norm), seed, model, dtype, num_classes=4, width=8)


def data(replicas, updates, n, dtype=torch.float64):
    draws = torch.Generator().manual_seed(n)
    x = torch.randn(replicas, updates, n, *SHAPE, generator=draws, dtype=dtype)
    return x, torch.randint(0, 4, (replicas, updates, n), generator=draws)


def train(step, x, y, lrs):
    """Train with the protocol's linear rule and return every replica's state."""
    rates = [peak_rate(lr, "linear", x.shape[2]) for lr in lrs]
    step.run(x, y, [rates] * x.shape[1])
    return [copy.deepcopy(step.model(r).state_dict()) for r in range(len(lrs))]


def stacked(models, batch, **more):
    return StackedStep(models, batch, momentum=0.9, weight_decay=5e-4, **more)


@functools.cache
def trained_alone(norm, batch, update_batch, replicas=3, model="resnet8"):
    """The oracle: each model by itself, with PyTorch's own modules, batch after batch."""
    x, y = data(replicas, UPDATES, update_batch)
    states = []
    for r, lr in enumerate(LRS[:replicas]):
        one = net(norm, r, model).train()
        rate = lr * update_batch / 128
        slow = [norm == "none_fixup" and "norm" in name for name, _ in one.named_parameters()]
        groups = [
            {"params": [p], "lr": rate / 10 if is_slow else rate}
            for p, is_slow in zip(one.parameters(), slow, strict=True)
        ]
        optimizer = torch.optim.SGD(groups, rate, 0.9, weight_decay=5e-4, nesterov=True)
        for x_N, y_N in zip(x[r], y[r], strict=True):
            optimizer.zero_grad()
            count = update_batch // batch
            for k in range(count):
                (F.cross_entropy(one(x_N[k::count]), y_N[k::count]) / count).backward()
            optimizer.step()
        states.append(one.state_dict())
    return states


LRS = (0.1, 0.1, 0.3)


# (batch, update_batch, options of the step)
SHAPES = {
    "batch 1": (1, 1, {}),
    "accumulated": (2, 8, {}),  # in one pass where the norm allows it
    "channels_last": (4, 4, {"channels_last": True}),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("norm", EVERY)
def test_updates_of_a_stack_are_those_of_each_model_alone(norm, shape):
    batch, update_batch, options = SHAPES[shape]
    x, y = data(3, UPDATES, update_batch)
    step = stacked([net(norm, r) for r in range(3)], batch, lrs=LRS, **options)
    alone = trained_alone(norm, batch, update_batch)
    for ours, theirs in zip(train(step, x, y, LRS), alone, strict=True):
        assert distance(ours, theirs) < FLOAT64
    if shape == "batch 1":
        assert why_not_stackable([net(norm, r) for r in range(2)], SHAPE) is None
        assert step.stack.mapped == (norm in OWN)


@pytest.mark.parametrize("norm", EVERY)
def test_a_stack_that_goes_on_from_stored_states_ends_as_one_that_never_stopped(norm):
    x, y = data(3, UPDATES, 4)
    whole = train(stacked([net(norm, r) for r in range(3)], 4, lrs=LRS), x, y, LRS)
    first = stacked([net(norm, r) for r in range(3)], 4, lrs=LRS)
    train(first, x[:, :3], y[:, :3], LRS)
    states = [copy.deepcopy(first.state(r)) for r in range(3)]
    second = stacked([net(norm, r + 5) for r in range(3)], 4, lrs=LRS)  # other weights until loaded
    for r, state in enumerate(states):
        second.load(r, state)
    for ours, theirs in zip(train(second, x[:, 3:], y[:, 3:], LRS), whole, strict=True):
        assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_projection_shortcuts_and_bottlenecks_stack_too(model):
    x, y = data(2, UPDATES, 2)
    together = train(stacked([net("gn", r, model) for r in range(2)], 2), x, y, LRS[:2])
    for ours, theirs in zip(together, trained_alone("gn", 2, 2, 2, model), strict=True):
        assert distance(ours, theirs) < FLOAT64


@pytest.mark.parametrize("norm", ["bn", "gn", "brn", *OWN])
def test_parallel_branches_are_the_models_alone(norm):
    # What a CUDA graph captures, run eagerly; tests/training/test_cuda.py has the captured one.
    x, y = data(3, UPDATES, 4)
    pair, single = stacked([net(norm, 0), net(norm, 1)], 4), stacked([net(norm, 2)], 4)
    states = train(GraphStep([pair, single]), x, y, LRS)
    for ours, theirs in zip(states, trained_alone(norm, 4, 4), strict=True):
        assert distance(ours, theirs) < FLOAT64


@pytest.mark.parametrize("norm", NORMS)
def test_an_update_is_one_pass_where_no_statistic_follows_batch_after_batch(norm):
    step = stacked([net(norm, 0)], 2)
    passes = []
    step.stack.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    step.run(*data(1, 1, 8), [[0.1]])
    assert passes == ([8] if norm in AT_ONCE else [2] * 4)


def test_an_update_larger_than_a_pass_is_cut_into_equal_passes(monkeypatch):
    monkeypatch.setattr("gnexp.training.stacked_step.MOST_IMAGES", 4)
    x, y = data(3, UPDATES, 8)
    step = stacked([net("bn", r) for r in range(3)], 2, lrs=LRS)
    for ours, theirs in zip(train(step, x, y, LRS), trained_alone("bn", 2, 8), strict=True):
        assert distance(ours, theirs) < FLOAT64


def test_sums_are_of_every_example_since_they_were_last_taken():
    step, (x, y) = stacked([net("gn", 0)], 2), data(1, 1, 8)
    step.run(x, y, [[0.05]])
    logits = net("gn", 0)(x[0, 0])
    ((loss, hits),) = step.take_sums()
    theirs = F.cross_entropy(logits, y[0, 0], reduction="sum").item()
    assert (loss, hits) == (pytest.approx(theirs, rel=1e-9), (logits.argmax(1) == y[0, 0]).sum())
    assert step.take_sums() == [(0.0, 0)]


def test_bf16_trains_with_float32_weights():
    step = stacked([net("gn", 0, dtype=torch.float32)], 4, precision="bf16")
    step.run(*data(1, 1, 4, torch.float32), [[0.1]])
    assert math.isfinite(step.take_sums()[0][0])
    assert {p.dtype for p in step.model(0).parameters()} == {torch.float32}


@pytest.mark.parametrize("norm", EVERY)
def test_a_replica_that_diverges_leaves_the_others_as_they_are_to_the_last_bit(norm):
    place, dtype = 1, torch.float32
    x, y = data(4, 3, 4, dtype)
    finite, broken = ([net(norm, r, dtype=dtype) for r in range(4)] for _ in range(2))
    with torch.no_grad():
        broken[place].conv1.weight.fill_(float("nan"))
    layout = NORMS[norm].channels_last if norm in NORMS else False
    steps = [stacked(models, 2, channels_last=layout) for models in (finite, broken)]
    states = [train(step, x, y, [0.1] * 4) for step in steps]
    sums = [step.take_sums() for step in steps]
    assert math.isnan(sums[1][place][0])
    for r in {0, 1, 2, 3} - {place}:
        assert sums[0][r] == sums[1][r]
        for name, tensor in states[0][r].items():
            assert torch.equal(tensor, states[1][r][name]), (r, name)


def test_a_compiled_stack_is_the_eager_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, y = data(2, UPDATES, 2)

    def step(compiled):
        draws = torch.Generator().manual_seed(0)
        models = []
        for _ in range(2):
            layers = (nn.Conv2d(3, 4, 3, bias=False), build_norm("bn", 4), nn.ReLU())
            models.append(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double())
            initialize(models[-1], draws)
        return stacked(models, 2, compiled=compiled)

    try:
        states = train(step(True), x, y, LRS[:2])
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")
    for ours, theirs in zip(states, train(step(False), x, y, LRS[:2]), strict=True):
        assert distance(ours, theirs) < FLOAT64


def test_a_compiler_that_does_not_work_gives_way_to_eager_with_the_reason(gnexp, monkeypatch):
    def refuse(module):
        raise RuntimeError("no compiler here\nfurther lines")

    monkeypatch.setattr(torch, "compile", refuse)
    words = ("model=resnet8", "model.width=8", "data.train_limit=20", "data.test_limit=10")
    words += ("epochs=1", "batch=10", "gradients=0", "execution=compile")
    assert gnexp("train", *words).code == 0
    (path,) = Path("results/main").glob("*/result.json")
    seed = json.loads(path.read_text())["seeds"]["0"]
    reason = "torch.compile failed (no compiler here), so execution fell back to eager"
    assert (seed["execution"], seed["note"]) == ("eager", reason)


class Drawing(StatelessNorm):
    def forward(self, x):
        return super().forward(x + torch.rand_like(x))


class Deciding(StatelessNorm):
    def forward(self, x):
        return super().forward(x) if x.mean() > 100 else x


class Counting(StatelessNorm):
    """State that torch.func does not see: a plain attribute."""

    def forward(self, x):
        self.seen = getattr(self, "seen", 0.0) + x.detach().mean()
        return x * self.weight[:, None, None] + self.seen


class Numbering(StatelessNorm):
    """State that no tensor shows: how often it was called."""

    calls = 0

    def __init__(self, channels):
        super().__init__(channels)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / min(self.calls, 1)


@pytest.mark.parametrize("norm", [Drawing, Deciding, Counting, Numbering])
def test_what_cannot_be_stacked_is_refused_with_a_reason(norm):
    models = [build_model("resnet8", norm, 4, 8) for _ in range(2)]
    reason = why_not_stackable(models, SHAPE)
    assert reason
    assert "\n" not in reason


def test_a_shared_parameter_and_a_watched_layer_are_refused():
    models = [net("gn", r) for r in range(2)]
    for model in models:
        model.stage1[0].norm1.weight = model.stage1[0].norm2.weight
    assert "share a parameter" in why_not_stackable(models, SHAPE)
    models = [net("gn", r) for r in range(2)]
    models[0].fc.register_forward_hook(lambda *call: None)
    assert "hook" in why_not_stackable(models, SHAPE)


def test_random_numbers_in_a_forward_pass_are_noticed():
    assert draws_random_numbers(build_model("resnet8", Drawing, 4, 8), SHAPE)
    assert not draws_random_numbers(net("bn", 0, dtype=torch.float32), SHAPE)


@pytest.fixture(scope="module")
def images():
    return DeviceDataset(load_images("shapes10", train_limit=50, test_limit=20))


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_a_replica_is_fed_its_own_order_and_augmentation_in_batches_of_its_order(images, batch):
    seeds, epoch, update_batch = (3, 0), 2, 8
    blocks = list(update_blocks(images, seeds, epoch, batch, update_batch, "crop_flip"))
    x = torch.cat([x for x, _ in blocks], dim=1)
    y = torch.cat([y for _, y in blocks], dim=1)
    assert x.shape == (2, 6, 8, 3, 32, 32), "the last 2 of 50 images make no whole update"
    for r, seed in enumerate(seeds):
        order = epoch_order(50, seed, epoch)
        offsets, flips = epoch_augmentation(50, seed, epoch, 4, True)
        seen = normalize(crop_flip(images.x_train, offsets, flips, 4), images.mean, images.std)
        for update in range(6):
            for k in range(8 // batch):
                at = order[update * 8 + k * batch :][:batch]
                assert torch.equal(y[r, update, k :: 8 // batch], images.y_train[at])
                assert torch.equal(x[r, update, k :: 8 // batch], seen[at])


def test_an_epoch_in_blocks_is_the_epoch(images, monkeypatch):
    whole = list(update_blocks(images, [1], 1, 2, 4, "crop_flip"))
    monkeypatch.setattr("gnexp.data.update_blocks.BLOCK", 10)
    blocks = list(update_blocks(images, [1], 1, 2, 4, "crop_flip"))
    assert (len(whole), len(blocks)) == (1, 6)
    assert torch.equal(torch.cat([x for x, _ in blocks], dim=1), whole[0][0])


def test_training_yields_every_replica_and_ends_when_all_have_diverged(images):
    train_settings = TrainSettings(batch=5, update_batch=5, epochs=3, lr_rule="none")
    models = [build_model("resnet8", lambda c: build_norm("gn", c), 10, 8) for _ in range(2)]
    for r, model in enumerate(models):
        initialize(model, generator(r, "test"))
    apart = stacked(models, 5, lrs=(1e30, 1e-4))
    epochs = list(train_epochs(apart, images, train_settings, (0, 1), (1e30, 1e-4)))
    assert len(epochs) == 3
    assert [e.diverged for e in epochs[-1]] == [True, False]
    assert math.isfinite(epochs[-1][1].test_loss)
    both = list(train_epochs(stacked(models, 5), images, train_settings, (0, 1), (1e30, 1e30)))
    assert len(both) == 1


def saved_bytes(step, x, y):
    """What lives at once: the tensors of the step and what forward keeps for backward."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.run(x, y, [[0.1] * step.replicas])
    tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in step.tensors()}
    return sum(storages.values()) + sum(tensors.values())


@pytest.mark.parametrize("norm", EVERY)
def test_replicas_that_share_a_step_use_the_memory_of_as_many_alone(norm):
    x, y = data(4, 1, 8, torch.float32)
    models = [net(norm, r, dtype=torch.float32) for r in range(4)]
    one = saved_bytes(stacked(models[:1], 8), x[:1], y[:1])
    assert saved_bytes(stacked(models, 8), x, y) <= 1.2 * 4 * one


@pytest.mark.parametrize("norm", NORMS)
def test_accumulation_changes_the_update_exactly_when_the_norm_pools_over_n(norm):
    x, y = data(1, 2, 8)
    weights = []
    for batch in (2, 8):
        step = stacked([net(norm, 0)], batch)
        step.run(x, y, [[0.01]] * 2)
        weights.append(torch.cat([p.detach().flatten() for p in step.model(0).parameters()]))
    same = torch.allclose(*weights, rtol=0, atol=FLOAT64)
    assert same == ("n" not in NORMS[norm].pools)
