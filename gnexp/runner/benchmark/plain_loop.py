"""The loop that we are compared with: PyTorch and torchvision as their tutorials use them.

It is given what a user might not have thought of: the images are PIL images before the clock
starts, loader workers outlive an epoch, transfers do not block, and no loss is read in the loop.

Shapes: N images, C colours, H, W pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gnexp.runner.benchmark.timer import Window
from gnexp.training.precision import matrix_precision

LOADER_WORKERS = 2


class PilImages(Dataset):
    """Images as PIL images, with a transform: what torchvision's data sets hand to a loader."""

    def __init__(self, x_NCHW: np.ndarray, y_N: np.ndarray, transform: Any) -> None:
        """x_NCHW: uint8 (N, 3, H, W)."""
        self.images = [Image.fromarray(np.ascontiguousarray(x.transpose(1, 2, 0))) for x in x_NCHW]
        self.labels = y_N.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def plain_transform(
    size: int, pad: int, flip: bool, mean: Sequence[float], std: Sequence[float]
) -> Any:
    """Return crop, flip, conversion and normalization of one PIL image of `size` pixels."""
    from torchvision import transforms

    steps: list[Any] = [transforms.RandomCrop(size, padding=pad)] if pad else []
    steps += [transforms.RandomHorizontalFlip()] if flip else []
    return transforms.Compose(
        [*steps, transforms.ToTensor(), transforms.Normalize(list(mean), list(std))]
    )


def plain_loader(images: Dataset, batch: int, seed: int, device: torch.device) -> DataLoader:
    """Return the shuffling loader with two workers; it ends them when it is deleted."""
    return DataLoader(
        images,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=LOADER_WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(seed),
    )


def plain_optimizer(
    model: nn.Module, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return PyTorch's SGD with Nesterov momentum, in the implementation it chooses itself."""
    return torch.optim.SGD(
        model.parameters(), lr=lr, momentum=momentum, nesterov=True, weight_decay=weight_decay
    )


def plain_update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    x_NCHW: Tensor,
    y_N: Tensor,
    precision: str = "fp32",
) -> None:
    """Update the weights once, by the mean cross entropy of one batch."""
    optimizer.zero_grad()
    with torch.autocast(x_NCHW.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(model(x_NCHW), y_N)
    loss.backward()
    optimizer.step()


def train_plain(
    model: nn.Module,
    loader: DataLoader,
    optimizer: torch.optim.Optimizer,
    window: Window,
    precision: str = "fp32",
) -> None:
    """Train one model until the timer ends, warmed up."""
    device = next(model.parameters()).device
    model.train()
    batches = _endless(loader, device)
    with matrix_precision(precision):
        warm = False
        while not warm:
            plain_update(model, optimizer, *next(batches), precision)
            warm = window.warm()
        window.open()
        enough = False
        while not enough:
            x_NCHW, y_N = next(batches)
            plain_update(model, optimizer, x_NCHW, y_N, precision)
            enough = window.tick(len(y_N))


def _endless(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        for x_NCHW, y_N in loader:
            yield x_NCHW.to(device, non_blocking=True), y_N.to(device, non_blocking=True)
