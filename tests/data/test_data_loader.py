"""Augmentation, order, normalization and drawn batches."""

import numpy as np
import pytest
import torch

from gnexp.data.device_images import (
    AUGMENTATIONS,
    DeviceDataset,
    augmentation,
    crop_flip,
    draw_batches,
    epoch_augmentation,
    epoch_order,
    normalize,
)
from gnexp.data.sources import Dataset


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (60, 3, 12, 12), dtype=np.uint8)
    y = np.arange(60) % 4
    return Dataset(x[:40], y[:40], x[40:], y[40:], ("a", "b", "c", "d"), "random", "")


def naive_crop_flip(x, offsets, flips, pad):
    """One image, one pixel at a time, by the definition."""
    cut = np.zeros_like(x)
    count, _, height, width = x.shape
    for n in range(count):
        for row in range(height):
            for column in range(width):
                source_row = row + offsets[n][0] - pad
                shift = offsets[n][1] - pad
                source_column = (width - 1 - column if flips[n] else column) + shift
                if 0 <= source_row < height and 0 <= source_column < width:
                    cut[n, :, row, column] = x[n, :, source_row, source_column]
    return cut


@pytest.mark.parametrize("pad", [0, 1, 4])
@pytest.mark.parametrize("shape", [(9, 3, 12, 12), (5, 1, 8, 11)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_crop_flip_equals_padding_cutting_and_mirroring_each_image_alone(pad, shape, dtype):
    x = torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    offsets, flips = epoch_augmentation(len(x), seed=0, epoch=pad, pad=pad, flip=True)
    expected = naive_crop_flip(x.numpy(), offsets.tolist(), flips.tolist(), pad)
    cut = crop_flip(x, offsets, flips, pad)
    assert cut.dtype == dtype
    np.testing.assert_array_equal(cut.numpy(), expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_crop_flip_on_cuda_equals_the_cpu_and_never_waits_for_the_host():
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    offsets, flips = epoch_augmentation(64, seed=0, epoch=0, pad=4, flip=True)
    arguments = [each.cuda() for each in (x, offsets, flips)]
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        cut = crop_flip(*arguments, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(cut.cpu(), crop_flip(x, offsets, flips, 4))


def test_an_epoch_order_visits_every_image_once_and_differs_by_seed_and_epoch():
    order = epoch_order(100, seed=1, epoch=2)
    assert torch.equal(order.sort().values, torch.arange(100))
    assert torch.equal(order, epoch_order(100, seed=1, epoch=2))
    assert not torch.equal(order, epoch_order(100, seed=1, epoch=3))
    assert not torch.equal(order, epoch_order(100, seed=2, epoch=2))


def test_augmentation_is_reproducible_and_takes_nothing_from_the_global_random_state():
    before = torch.random.get_rng_state()
    first = epoch_augmentation(50, seed=1, epoch=2, pad=4, flip=True)
    epoch_order(50, seed=1, epoch=2)
    second = epoch_augmentation(50, seed=1, epoch=2, pad=4, flip=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(torch.random.get_rng_state(), before)
    other = epoch_augmentation(50, seed=1, epoch=3, pad=4, flip=True)
    assert not torch.equal(first[0], other[0])


def test_every_offset_occurs_and_about_half_the_images_are_flipped():
    offsets, flips = epoch_augmentation(4000, seed=0, epoch=0, pad=4, flip=True)
    assert offsets.shape == (4000, 2)
    assert offsets.unique().tolist() == list(range(9))
    assert 0.45 < flips.float().mean() < 0.55  # sd 0.008
    unflipped = epoch_augmentation(4000, seed=0, epoch=0, pad=4, flip=False)
    assert torch.equal(unflipped[0], offsets)
    assert not unflipped[1].any()


def test_normalized_training_images_have_mean_0_and_deviation_1(images):
    device_images = DeviceDataset(images)
    x = normalize(device_images.x_train, device_images.mean, device_images.std, dtype=torch.float64)
    assert x.dtype == torch.float64
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3).double(), rtol=0, atol=1e-6)
    deviation = x.var((0, 2, 3), unbiased=False).sqrt()
    torch.testing.assert_close(deviation, torch.ones(3).double(), rtol=0, atol=1e-6)


def test_given_statistics_are_used_as_given(images):
    device_images = DeviceDataset(images, mean=[0.1, 0.2, 0.3], std=[0.5, 1, 2])
    torch.testing.assert_close(device_images.mean.flatten(), torch.tensor([0.1, 0.2, 0.3]))
    assert device_images.std.shape == (1, 3, 1, 1)
    x = torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)
    result = normalize(x, device_images.mean, device_images.std).flatten()
    torch.testing.assert_close(result, torch.tensor([0.9 / 0.5, 0.8, 0.7 / 2]))


@pytest.mark.parametrize(
    ("statistics", "words"),
    [
        ({"mean": [0.5]}, "data.mean"),
        ({"std": [0.5, 0.5, 0.0]}, "data.std"),
        ({"std": [0.5, float("nan"), 0.5]}, "data.std"),
    ],
)
def test_statistics_that_cannot_normalize_are_refused_by_name(images, statistics, words):
    with pytest.raises(ValueError, match=words):
        DeviceDataset(images, **statistics)


def test_drawn_batches_are_normalized_training_images_with_their_labels(images):
    device_images = DeviceDataset(images)
    everything = normalize(device_images.x_train, device_images.mean, device_images.std)
    for x, y in draw_batches(device_images, 41, 2, seed=0, purpose="noise", augment="none"):
        assert x.shape == (41, 3, 12, 12)
        assert len(x.flatten(1).unique(dim=0)) < 40  # drawn with replacement
        for image, label in zip(x, y):
            matches = (everything == image).flatten(1).all(1).nonzero()
            assert device_images.y_train[matches.item()] == label


def test_more_draws_begin_with_the_same_batches_and_other_purposes_differ(images):
    def draw(k, purpose, augment="crop_flip"):
        return list(draw_batches(DeviceDataset(images), 4, k, 0, purpose, augment))

    few, many, other = draw(2, "noise"), draw(5, "noise"), draw(2, "shift")
    assert all(torch.equal(a[0], b[0]) for a, b in zip(few, many))
    assert not torch.equal(few[0][0], other[0][0])
    plain = draw(2, "noise", "none")
    assert all(torch.equal(a[1], b[1]) for a, b in zip(few, plain))
    assert not torch.equal(few[0][0], plain[0][0])


def test_an_unknown_augmentation_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"data\.augment=crop_flp.*crop_flip"):
        augmentation("crop_flp")
    assert augmentation("none") == AUGMENTATIONS["none"] == (0, False)
