"""Images on the training device, their order and augmentation from seeds, and batches of them.

Shapes: N images, C colours, H, W pixels.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gnexp.config.unknown import unknown
from gnexp.data.seeding import generator
from gnexp.data.sources import Dataset

AUGMENTATIONS = {"crop_flip": (4, True), "crop": (4, False), "none": (0, False)}  # pad, flip


class DeviceDataset:
    """A data set held on one device: uint8 (N, C, H, W) images, int64 (N,) labels.

    mean, std: float32 (1, C, 1, 1), of pixel values divided by 255.
    """

    def __init__(
        self,
        images: Dataset,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Copy `images` to `device`; a mean or std of None is that of the training images.

        Raises ValueError when mean or std does not hold one value per channel, or a std is not
        positive.
        """
        if mean is None or std is None:
            own_mean, own_std = channel_statistics(images.x_train)
            mean, std = own_mean if mean is None else mean, own_std if std is None else std
        self.mean = _per_channel("mean", mean, device)
        self.std = _per_channel("std", std, device)
        arrays = (images.x_train, images.y_train, images.x_test, images.y_test)
        tensors = (torch.from_numpy(array).to(device) for array in arrays)
        self.x_train, self.y_train, self.x_test, self.y_test = tensors
        self.classes, self.summary = images.classes, images.summary


def channel_statistics(x_NCHW: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel of uint8 images, divided by 255.

    From exact histograms: the result depends neither on the order of the images nor on threads.
    """
    values = np.arange(256)
    mean, std = [], []
    for channel in range(x_NCHW.shape[1]):
        counts = np.bincount(x_NCHW[:, channel].ravel(), minlength=256)
        average = float(counts @ values) / counts.sum()
        mean.append(average / 255)
        std.append(float(np.sqrt(counts @ (values - average) ** 2 / counts.sum())) / 255)
    return mean, std


def _per_channel(name: str, values: Sequence[float], device: torch.device | str) -> Tensor:
    values = [float(value) for value in values]
    if len(values) != 3 or not np.isfinite(values).all():
        raise ValueError(f"data.{name}={values} must be three numbers, one per colour")
    if name == "std" and min(values) <= 0:
        raise ValueError(
            f"data.std={values} must be positive: a colour that never varies needs a std of 1"
        )
    return torch.tensor(values, dtype=torch.float32, device=device).reshape(1, 3, 1, 1)


def augmentation(name: str) -> tuple[int, bool]:
    """Return (pad, flip) of an augmentation: pixels of zero padding before the crop, and whether
    to mirror. Raises ValueError for a name that is not in AUGMENTATIONS."""
    if name not in AUGMENTATIONS:
        raise ValueError(unknown(f"data.augment={name} is unknown", name, AUGMENTATIONS))
    return AUGMENTATIONS[name]


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order (n,) int64, on the CPU, in which this epoch visits the images."""
    return torch.randperm(n, generator=generator(seed, "order", epoch))


def epoch_augmentation(
    n: int, seed: int, epoch: int, pad: int, flip: bool
) -> tuple[Tensor, Tensor]:
    """Return crop offsets (n, 2) int64 in 0..2*pad and flips (n,) bool, on the CPU.

    A row belongs to the image of that index, so that what an image looks like in an epoch depends
    neither on the order nor on the batch size. Without flips the offsets are the same.
    """
    return _draw_augmentation(n, pad, flip, generator(seed, "augmentation", epoch))


def _draw_augmentation(
    n: int, pad: int, flip: bool, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    offsets_N2 = torch.randint(0, 2 * pad + 1, (n, 2), generator=source)
    flips_N = torch.randint(0, 2, (n,), generator=source).bool()
    return offsets_N2, flips_N if flip else torch.zeros_like(flips_N)


def crop_flip(x_NCHW: Tensor, offsets_N2: Tensor, flips_N: Tensor, pad: int) -> Tensor:
    """Return each image cut from its zero-padded self at its (row, column) offset, then mirrored
    left to right where flips say so.

    Any dtype; offsets in 0..2*pad and flips must lie on x's device, where all of it happens
    without waiting for the host. Zeros are put in before normalization, so they are black.
    """
    count, channels, height, width = x_NCHW.shape
    padded = F.pad(x_NCHW, (pad, pad, pad, pad))
    rows_NH = offsets_N2[:, :1] + torch.arange(height, device=x_NCHW.device)
    columns_W = torch.arange(width, device=x_NCHW.device)
    columns_NW = torch.where(flips_N[:, None], width - 1 - columns_W, columns_W) + offsets_N2[:, 1:]
    flat = rows_NH[:, :, None] * (width + 2 * pad) + columns_NW[:, None, :]
    index = flat.reshape(count, 1, height * width).expand(-1, channels, -1)
    return padded.flatten(2).gather(2, index).reshape(x_NCHW.shape)


def augmented(x_NCHW: Tensor, augment: str, source: torch.Generator) -> Tensor:
    """Return the images, each cropped and mirrored as drawn from `source`, in their dtype.

    augment: a name of AUGMENTATIONS; with "none" nothing is drawn. source: a CPU generator.
    """
    pad, flip = augmentation(augment)
    if not (pad or flip):
        return x_NCHW
    offsets_N2, flips_N = _draw_augmentation(len(x_NCHW), pad, flip, source)
    return crop_flip(x_NCHW, offsets_N2.to(x_NCHW.device), flips_N.to(x_NCHW.device), pad)


def normalize(
    x_NCHW: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return (x / 255 - mean) / std in `dtype`, from uint8 x; mean and std: (1, C, 1, 1)."""
    return (x_NCHW.to(dtype) / 255 - mean.to(dtype)) / std.to(dtype)


def training_images(
    images: DeviceDataset,
    at_M: Tensor,
    offsets_M2: Tensor,
    flips_M: Tensor,
    augment: str,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return training images by their indices, (M, C, H, W), augmented as drawn and normalized."""
    x_MCHW, (pad, flip) = images.x_train[at_M], augmentation(augment)
    if pad or flip:
        x_MCHW = crop_flip(x_MCHW, offsets_M2, flips_M, pad)
    return normalize(x_MCHW, images.mean, images.std, dtype)


def draw_batches(
    images: DeviceDataset, batch: int, k: int, seed: int, purpose: str, augment: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield k batches (x normalized (batch, C, H, W) float32, y (batch,)) of training images,
    drawn independently and with replacement.

    A larger k begins with the same batches, and another `augment` has the same images.
    """
    choice = generator(seed, purpose)
    crops = generator(seed, f"{purpose} augmentation")
    device = images.x_train.device
    for _ in range(k):
        index = torch.randint(0, len(images.y_train), (batch,), generator=choice).to(device)
        x_NCHW = augmented(images.x_train[index], augment, crops)
        yield normalize(x_NCHW, images.mean, images.std), images.y_train[index]
