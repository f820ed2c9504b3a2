"""Evaluation in batches of any size and composition: who meets whom, and what that changes."""

import copy
import functools

import numpy as np
import pytest
import torch
from no_trace import no_trace
from torch import nn
from torch.nn import functional as F

from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.data.sources import Dataset
from gnexp.measure.batch_shift import compose, measure_batches
from gnexp.measure.precise_bn import running_layers
from gnexp.norms.registry import NORMS, build_norm

FLOAT64 = 1e-10
FLOAT32 = 1e-5  # a convolution rounds differently at another batch size
ONCE = ("iid", "skewed", "one_class")
SHIFTS = ("label_shift", "label_shift_extreme")
LABELS = torch.tensor([0] * 7 + [1] * 20 + [2] * 13 + [5] * 21)[
    torch.randperm(61, generator=torch.Generator().manual_seed(0))
]


def images(n=61, classes=4, seed=0):
    draws = np.random.default_rng(seed)
    y = draws.integers(0, classes, n)
    x = draws.integers(0, 256, (n, 3, 8, 8))
    x = (x // 2 + 30 * y[:, None, None, None]).astype(np.uint8)
    names = tuple("abcdefgh"[:classes])
    return DeviceDataset(Dataset(x, y, x.copy(), y.copy(), names, title="t", checksum="c"))


class Stateless(nn.Module):
    """Pools over the batch, in every mode, and keeps nothing."""

    def __init__(self, channels):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x / x.abs().mean((0, 2, 3), keepdim=True) * self.gain[:, None, None]


class Renorm(nn.BatchNorm2d):
    """Normalizes by the mean of running and batch statistics in training mode."""

    def forward(self, x):
        running = F.batch_norm(
            *(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0)
        )
        return (running + super().forward(x)) / 2


def net(factory):
    layers = (nn.Conv2d(3, 8, 3, padding=1), factory(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2))
    last = (factory(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    return nn.Sequential(*layers, *last)


OWN = {"stateless": Stateless, "renorm": Renorm}


@functools.cache
def trained(norm, dtype=torch.float64):
    """A small network in evaluation mode whose running statistics have seen some images."""
    torch.manual_seed(0)
    factory = OWN.get(norm) or functools.partial(build_norm, norm)
    model = net(factory).to(dtype)
    seen, draws = images(seed=1), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _ in range(20):
            at = torch.randint(0, 61, (16,), generator=draws)
            model.train()(normalize(seen.x_train[at], seen.mean, seen.std, dtype))
    return model.eval()


def table(rows):
    return {(row["statistics"], row["composition"], row["at_batch"]): row for row in rows}


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize("composition", ONCE)
def test_every_image_counts_once_in_batches_of_exactly_the_size(composition, size):
    index, weight = compose(composition, LABELS, size, seed=3)
    assert index.shape == weight.shape
    assert index.shape[1] == size
    counted = weight > 0
    assert sorted(index[counted].tolist()) == list(range(61))
    assert torch.equal(weight, counted.double())


@pytest.mark.parametrize("size", [3, 64])
def test_a_skewed_batch_has_half_of_one_class_and_a_one_class_batch_nothing_else(size):
    for batch in LABELS[compose("skewed", LABELS, size, seed=0).index_MB]:
        assert len(batch[: size // 2].unique()) == 1
    rest = LABELS[compose("skewed", LABELS, size, seed=0).index_MB[:, size // 2 :]]
    assert len(rest.unique()) == 4
    for batch in LABELS[compose("one_class", LABELS, size, seed=0).index_MB]:
        assert len(batch.unique()) == 1


@pytest.mark.parametrize("size", [1, 16, 100])
@pytest.mark.parametrize("composition", SHIFTS)
def test_under_label_shift_a_class_counts_and_appears_as_much_as_its_prior(composition, size):
    index, weight = compose(composition, LABELS, size, seed=0)
    priors = {"label_shift": [0.1, 0.2, 0.3, 0.4]}.get(composition)
    if priors is None:
        powers = [100 ** (k / 3) for k in range(4)]
        priors = [power / sum(powers) for power in powers]
    places = index.numel()
    assert 61 <= places < 61 + max(size, 61)
    drawn = [(LABELS[index] == label).sum().item() for label in (0, 1, 2, 5)]
    for label, prior, count in zip((0, 1, 2, 5), priors, drawn, strict=True):
        assert abs(count - prior * places) <= 1
        share = (weight[LABELS[index] == label].sum() / weight.sum()).item()
        whole = sum(p for p, c in zip(priors, drawn, strict=True) if c)
        assert share == pytest.approx(prior / whole if count else 0, abs=1e-12)


def test_a_seed_gives_the_same_batches_and_another_seed_others():
    for composition in (*ONCE, *SHIFTS):
        first, again, other = (compose(composition, LABELS, 4, seed).index_MB for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def answers_one_by_one(model, data, statistics, index):
    """The oracle: every batch through a fresh copy of the model, alone."""
    logits = []
    for batch in index:
        fresh = copy.deepcopy(model).eval()
        for layer in fresh.modules():
            if statistics == "batch" and isinstance(layer, nn.BatchNorm2d):
                layer.train()
        x = (data.x_test[batch].double() / 255 - data.mean.double()) / data.std.double()
        with torch.no_grad():
            logits.append(fresh(x))
    return torch.stack(logits)


@pytest.mark.parametrize("statistics", ["running", "batch"])
@pytest.mark.parametrize("norm", ["bn", "gn", "renorm", "stateless"])
def test_the_numbers_are_those_of_batches_that_pass_alone_through_fresh_copies(norm, statistics):
    model, data = trained(norm), images()
    rows = table(measure_batches(model, data, (1, 8, 70), seed=2))
    y = data.y_test
    usual = answers_one_by_one(model, data, "running", torch.arange(61)[None])[0]
    iid_hits = {}
    for size in (1, 8, 70):
        for composition in (*ONCE, *(SHIFTS if statistics == "batch" else ())):
            index, weight = compose(composition, y, size, seed=2)
            logits = answers_one_by_one(model, data, statistics, index)
            weight = weight / weight.sum()
            losses, total, loss, expected, change = -logits.log_softmax(2), 0.0, 0.0, 0.0, 0.0
            for m, b in (weight > 0).nonzero().tolist():
                i, w = index[m, b].item(), weight[m, b].item()
                hit = logits[m, b].argmax().item() == y[i].item()
                if composition == "iid":
                    iid_hits[size, i] = hit
                total += w * hit
                loss += w * losses[m, b, y[i]].item()
                usual_hit = usual[i].argmax().item() == y[i].item()
                expected += w * (usual_hit if composition == "iid" else iid_hits[size, i])
                change = max(change, (logits[m, b] - usual[i]).abs().max().item())
            row = rows[statistics, composition, size]
            assert row["n"] == (weight > 0).sum()
            assert row["accuracy"] == pytest.approx(total, abs=FLOAT64)
            assert row["loss"] == pytest.approx(loss, abs=FLOAT64)
            assert row["expected"] == pytest.approx(expected, abs=FLOAT64)
            rms = usual.square().mean().sqrt().item()
            assert row["logit_change"] == pytest.approx(change / rms, abs=FLOAT64)


@pytest.mark.parametrize(
    ("norm", "dtype", "tolerance"),
    [*((norm, torch.float64, 1e-12) for norm in NORMS), ("bn", torch.float32, FLOAT32)],
)
def test_with_running_statistics_or_none_the_other_images_change_nothing_but_rounding(
    norm, dtype, tolerance
):
    rows = measure_batches(trained(norm, dtype), images(), (1, 2, 16))
    keeps = bool(running_layers(build_norm(norm, 8)))
    still = [row for row in rows if row["statistics"] == "running" or not keeps]
    assert len(still) == (11 if keeps else 11 + 15)
    for row in still:
        assert row["logit_change"] <= tolerance
        assert row["accuracy"] == pytest.approx(row["expected"], abs=1e-12)


def test_many_small_batches_with_statistics_of_their_own_share_a_pass(monkeypatch):
    passes = []

    def watched(x, *rest):
        passes.append(len(x))
        return normalize(x, *rest)

    monkeypatch.setattr("gnexp.measure.batch_passes.normalize", watched)
    measure_batches(trained("bn"), images(), (2,))
    assert passes[-5:] == [62] * 5, "under batch statistics: one pass per composition"
    assert 62 not in passes[:-5], "as evaluation comes it really is in batches of 2"
    assert passes.count(2) >= 3 * 31


@pytest.mark.parametrize("norm", ["bn", "renorm"])
def test_measuring_leaves_no_trace(norm):
    model = copy.deepcopy(trained(norm)).train()
    model[1].eval()
    with no_trace(model):
        measure_batches(model, images(), (1, 4))


def test_a_size_that_a_layer_refuses_to_normalize_is_left_out_and_the_others_are_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 4))
    rows = table(measure_batches(model, images(), (1, 2)))
    assert ("running", "one_class", 1) in rows
    assert ("batch", "iid", 2) in rows
    assert not any(key[0] == "batch" and key[2] == 1 for key in rows)


def test_a_diverged_model_has_rows_without_a_loss():
    model = copy.deepcopy(trained("bn"))
    with torch.no_grad():
        model[-1].weight.fill_(float("nan"))
    for row in measure_batches(model, images(), (2,)):
        assert np.isnan(row["loss"])
        assert np.isnan(row["logit_change"])


def test_a_limit_takes_the_first_test_images():
    data = images()
    rows = measure_batches(trained("bn"), data, (5,), limit=30)
    assert {row["n"] for row in rows if row["composition"] in ONCE} == {30}
    data.x_test, data.y_test = data.x_test[:30], data.y_test[:30]
    assert measure_batches(trained("bn"), data, (5,)) == rows
