"""The training protocol: rates, accumulation, what a seed fixes, what counts as an example."""

import math

import pytest
import torch
from torch.nn import functional as F

from gnexp.config.resolve import resolve
from gnexp.config.schema import TrainConfig
from gnexp.data.seeding import derived_seed, generator
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS, build_norm
from gnexp.runner.build import model as networks
from gnexp.training.loop import TrainSettings
from gnexp.training.lr_schedule import learning_rate, peak_rate
from gnexp.training.stacked_step import StackedStep

FLOAT64 = 1e-10


def small_net(norm, seed=0):
    model = build_model("resnet8", lambda c: build_norm(norm, c), num_classes=4, width=8)
    initialize(model, generator(seed, "test"))
    return model.double()


def batch_of(n, seed=1):
    draws = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 3, 16, 16, generator=draws, dtype=torch.float64)
    return x, torch.randint(0, 4, (n,), generator=draws)


def update_of(n):
    """The same for a step of one replica, whose labels have an axis of replicas."""
    x, y = batch_of(n)
    return x, y[:, None]


def test_the_linear_rule_keeps_weight_decay_per_epoch_the_same_at_every_update_size():
    # Decay per epoch is rate x decay x number of updates, for 6,400 images.
    per_epoch = {u: peak_rate(0.1, "linear", u) * 6400 / u for u in (1, 2, 32, 64, 128)}
    assert per_epoch == pytest.approx(dict.fromkeys(per_epoch, 0.1 * 50))


def test_the_rate_is_as_typed_at_128_images_under_every_rule():
    for rule in ("linear", "sqrt", "none"):
        assert peak_rate(0.1, rule, 128) == pytest.approx(0.1)
    assert peak_rate(0.1, "sqrt", 32) == pytest.approx(0.05)
    assert peak_rate(0.1, "none", 2) == 0.1


def test_warm_up_and_cosine_follow_examples_so_every_batch_size_sees_the_same_curve():
    def curve(update):
        return {s: learning_rate(s, 3200, 1.0, 0.1, "cosine") for s in range(0, 3200, update)}

    large, small = curve(64), curve(2)
    assert {seen: small[seen] for seen in large} == large
    rising = [small[s] for s in range(0, 320, 2)]
    falling = [small[s] for s in range(320, 3200, 2)]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    assert rising[0] > 0
    assert falling[0] == pytest.approx(1.0)
    assert falling[-1] < 1e-5


def test_a_constant_schedule_stays_at_the_peak_after_warm_up():
    assert learning_rate(900, 1000, 0.5, 0.1, "constant") == 0.5
    assert learning_rate(0, 1000, 0.5, 0.0, "constant") == 0.5


def test_the_last_partial_update_of_an_epoch_is_dropped():
    train_settings = TrainSettings(batch=2, update_batch=8, epochs=1)
    assert train_settings.examples_per_epoch(30) == 24
    assert train_settings.examples_per_epoch(32) == 32


@pytest.mark.parametrize("norm", NORMS)
def test_accumulation_changes_the_update_exactly_when_the_norm_pools_over_n(norm):
    x, y = update_of(8)
    weights = []
    for batch in (2, 8):
        model = small_net(norm).train()
        step = StackedStep([model], batch, momentum=0.9, weight_decay=5e-4)
        step.update(x, y, [0.01])
        step.update(x, y, [0.01])
        trained = step.model(0)
        weights.append(torch.cat([p.detach().flatten() for p in trained.parameters()]))
    same = torch.allclose(*weights, rtol=0, atol=FLOAT64)
    assert same == ("n" not in NORMS[norm].pools)


def test_an_update_is_nesterov_sgd_with_decay_on_the_mean_loss():
    # The oracle writes the update out; the loss is the mean over all eight examples.
    x, y = batch_of(8)
    model, by_hand = small_net("gn"), small_net("gn")
    step = StackedStep([model], batch=2, momentum=0.9, weight_decay=0.01)
    velocity = [torch.zeros_like(p) for p in by_hand.parameters()]
    for rate in (0.05, 0.02):
        step.update(x, y[:, None], [rate])
        by_hand.zero_grad()
        F.cross_entropy(by_hand(x), y).backward()
        with torch.no_grad():
            for v, p in zip(velocity, by_hand.parameters(), strict=True):
                gradient = p.grad + 0.01 * p
                v.mul_(0.9).add_(gradient)
                p.sub_(rate * (gradient + 0.9 * v))
    for a, b in zip(step.model(0).parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=FLOAT64)


def test_a_step_sums_the_loss_and_the_hits_of_every_example():
    x, y = batch_of(8)
    model = small_net("ln").train()
    step = StackedStep([model], batch=4, momentum=0.0, weight_decay=0.0)
    with torch.no_grad():
        logits = model(x)
    step.update(x, y[:, None], [0.0])
    ((loss, hits),) = step.take_sums()
    assert loss == pytest.approx(F.cross_entropy(logits, y, reduction="sum").item(), rel=1e-12)
    assert hits == (logits.argmax(1) == y).sum()
    assert step.take_sums() == [(0.0, 0)]


def test_bf16_trains_with_float32_weights():
    model = build_model("resnet8", lambda c: build_norm("gn", c), num_classes=4, width=8).train()
    step = StackedStep([model], batch=4, momentum=0.9, weight_decay=0.0, precision="bf16")
    x, y = update_of(4)
    step.update(x.float(), y, [0.1])
    assert math.isfinite(step.take_sums()[0][0])
    assert {p.dtype for p in step.model(0).parameters()} == {torch.float32}


def test_streams_of_different_purposes_and_counters_are_different_and_repeatable():
    names = [(0, "order", 1), (0, "order", 2), (1, "order", 1), (0, "augment", 1), (0, "order")]
    assert len({derived_seed(*name) for name in names}) == len(names)
    draws = [torch.rand(4, generator=generator(0, "order", 1)) for _ in range(2)]
    assert torch.equal(*draws)


@pytest.mark.parametrize(("batch", "momentum"), [(1, 0.000822784), (32, 0.0259963), (128, 0.1)])
def test_under_momentum_rule_examples_128_examples_weigh_what_a_batch_weighed(batch, momentum):
    bn = {"name": "bn", "eps": 1e-5, "momentum": 0.1, "momentum_rule": "examples"}
    layer = networks.norm_factory(resolve(TrainConfig(norm=bn, batch=batch)))(8)
    assert layer.momentum == pytest.approx(momentum, rel=1e-5)
    layer = networks.norm_factory(resolve(TrainConfig(norm={**bn, "momentum_rule": "batches"})))(8)
    assert layer.momentum == 0.1


def test_batches_of_bn_share_a_pass_under_bf16_too(gnexp):
    small = ("model=resnet8", "model.width=8", "data.train_limit=40", "data.test_limit=20")
    words = ("norm=bn", "batch=2", "update_batch=8", "precision=bf16", "epochs=1", "gradients=0")
    answer = gnexp("train", *words, *small)
    assert answer.code == 0, answer.out
