"""The training protocol: rates, what a seed fixes, what counts as an example."""

import pytest
import torch

from gnexp.config.resolve import resolve
from gnexp.config.schema import TrainConfig
from gnexp.data.seeding import derived_seed, generator
from gnexp.runner.build import model as networks
from gnexp.training.loop import TrainSettings
from gnexp.training.lr_schedule import learning_rate, peak_rate


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
