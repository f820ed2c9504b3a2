"""Accuracy under distribution shift: rows, evaluation mode, shared images, an untouched model."""

import gc

import numpy as np
import pytest
import torch
from no_trace import no_trace
from torch import nn
from torch.nn import functional as F

from gnexp.data.corruptions.cifar_c import load_cifar_c
from gnexp.data.corruptions.table import corrupt
from gnexp.data.device_images import DeviceDataset
from gnexp.data.sources import Dataset, load_images
from gnexp.data.subsets import fixed_test_order
from gnexp.measure import corruption_shift
from gnexp.measure.corruption_shift import corrupted_test, measure_shift


@pytest.fixture
def images() -> DeviceDataset:
    return DeviceDataset(load_images("shapes10", train_limit=10, test_limit=60))


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5)
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    model[1].running_mean.fill_(0.1)
    return model


def score(model, images, x, y):
    """Return accuracy and loss, one image at a time, without gnexp."""
    model.eval()
    with torch.no_grad():
        z = torch.cat([model((each[None] / 255 - images.mean) / images.std) for each in x])
    return (z.argmax(1) == y).double().mean().item(), F.cross_entropy(z.double(), y).item()


def test_rows_are_clean_first_and_then_every_name_and_severity_on_the_first_images(images, model):
    rows = measure_shift(model, images, ["fog", "contrast"], [1, 5], seed=3, limit=20)
    keys = [(row["corruption"], row["severity"], row["n"]) for row in rows]
    pairs = [("fog", 1), ("fog", 5), ("contrast", 1), ("contrast", 5)]
    assert keys == [("clean", 0, 20), *((*pair, 20) for pair in pairs)]
    assert set(rows[0]) == {"corruption", "severity", "n", "accuracy", "loss"}
    x, y = images.x_test[:20], images.y_test[:20]
    for row, pair in zip(rows, [None, *pairs]):
        accuracy, loss = score(model, images, corrupt(x, *pair, 3) if pair else x, y)
        assert row["accuracy"] == accuracy
        assert row["loss"] == pytest.approx(loss, rel=1e-5)  # float32
    assert len({row["loss"] for row in rows}) == 5


def test_the_model_its_modes_and_the_random_state_stay_as_they_were(images, model):
    model.train()
    model[1].eval()  # a model whose modules differ in mode
    x_test = images.x_test.clone()
    with no_trace(model):
        rows = measure_shift(model, images, ["snow"], [3], limit=1000)
    assert [row["n"] for row in rows] == [60, 60], "no more than there are"
    assert torch.equal(images.x_test, x_test)


def test_a_second_model_is_shown_the_same_images_without_making_them_again(
    images, model, monkeypatch
):
    made = []

    def counted(x, name, severity, seed):
        made.append((name, severity))
        return corrupt(x, name, severity, seed)

    monkeypatch.setattr(corruption_shift, "corrupt", counted)
    first = measure_shift(model, images, ["fog", "snow"], [1, 2])
    assert measure_shift(model, images, ["fog", "snow"], [1, 2]) == first
    assert len(made) == 4
    measure_shift(model, images, ["fog"], [1], seed=1)  # other draws, another number of images,
    measure_shift(model, images, ["fog"], [1], limit=30)
    measure_shift(model, images, ["contrast"], [1])
    assert len(made) == 7
    other = DeviceDataset(load_images("shapes10", train_limit=10, test_limit=50))
    measure_shift(model, other, ["fog"], [1])  # other images
    assert len(made) == 8


def test_no_more_is_kept_than_the_bound_and_the_numbers_do_not_depend_on_it(
    images, model, monkeypatch
):
    one = images.x_test.nbytes
    already = sum(x.nbytes for each in corruption_shift._KEPT.values() for x in each.values())
    monkeypatch.setattr(corruption_shift, "KEPT_BYTES", already + 2 * one)
    rows = measure_shift(model, images, ["fog", "frost"], [1, 2])
    assert len(corruption_shift._KEPT[images]) == 2
    assert measure_shift(model, images, ["fog", "frost"], [1, 2]) == rows


def test_images_that_nobody_holds_are_not_kept():
    images = DeviceDataset(load_images("shapes10", train_limit=10, test_limit=10))
    corrupted_test(images, "fog", 1, 0, 10)
    count = len(corruption_shift._KEPT)
    del images
    gc.collect()
    assert len(corruption_shift._KEPT) == count - 1


@pytest.fixture
def published(tmp_path):
    """Ten thousand grey test images as data=cifar10 loads them, and release files of two names."""
    labels = np.random.default_rng(0).integers(0, 10, 10_000)
    order = fixed_test_order(10_000)
    grey = (np.arange(10_000) % 251).astype(np.uint8)  # in the published order
    x_test = np.broadcast_to(grey[order][:, None, None, None], (10_000, 3, 32, 32)).copy()
    parts = x_test[:10], labels[:10], x_test, labels[order]
    images = DeviceDataset(Dataset(*parts, tuple("abcdefghij"), "grey", ""), std=(1, 1, 1))
    for name, add in (("fog", 1), ("spatter", 2)):
        shape = (50_000, 32, 32, 3)
        file = np.lib.format.open_memmap(tmp_path / f"{name}.npy", "w+", np.uint8, shape)
        file[10_000 + order[:5]] = grey[order[:5], None, None, None] + add  # severity 2
    np.save(tmp_path / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return images, tmp_path


def test_published_images_are_matched_to_the_test_images_and_other_names_are_computed(
    published, model
):
    images, root = published
    release = load_cifar_c(root, ["fog", "spatter", "pure_brightness"])
    assert torch.equal(corrupted_test(images, "fog", 2, 0, 5, release), images.x_test[:5] + 1)
    assert torch.equal(corrupted_test(images, "spatter", 2, 0, 5, release), images.x_test[:5] + 2)
    computed = corrupt(images.x_test[:5], "pure_brightness", 2, 0)
    assert torch.equal(corrupted_test(images, "pure_brightness", 2, 0, 5, release), computed)
    assert not torch.equal(corrupted_test(images, "fog", 2, 0, 5), images.x_test[:5] + 1)
    rows = measure_shift(model, images, ["spatter", "fog"], [2], limit=5, cifar_c=release)
    assert [row["n"] for row in rows] == [5, 5, 5]
    y = images.y_test[:5]
    expected = score(model, images, images.x_test[:5] + 2, y)
    assert (rows[1]["accuracy"], rows[1]["loss"]) == pytest.approx(expected, rel=1e-5)  # float32


def test_files_that_belong_to_other_images_are_refused_before_any_evaluation(
    published, images, model
):
    release = load_cifar_c(published[1], ["fog"])
    with pytest.raises(ValueError, match=r"shift\.root=.* does not fit the data"):
        measure_shift(model, images, ["fog"], [2], cifar_c=release)
