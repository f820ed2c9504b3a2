"""The two loops that are compared: PyTorch's as tutorials have it, and that of `gnexp train`.

The plain one is given what a user might not have thought of: the images are PIL images before the
clock starts, loader workers outlive an epoch, transfers do not block, and no loss is read in it.

Shapes: R replicas, U updates, N images of one update, C colours, H, W pixels.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from gnexp.data.device_images import DeviceDataset
from gnexp.data.update_blocks import update_blocks
from gnexp.runner.benchmark.timer import Tick
from gnexp.training.cuda_graph import GraphStep
from gnexp.training.stacked_step import StackedStep

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


def plain_loop(
    model: nn.Module, loader: DataLoader, optimizer: torch.optim.Optimizer, precision: str
) -> Callable[[Tick], None]:
    """Return the endless training of one model; see `time_updates`."""
    device = next(model.parameters()).device
    model.train()
    batches = (batch for _ in itertools.count() for batch in loader)

    def train(tick: Tick) -> None:
        for x_NCHW, y_N in batches:
            x_NCHW, y_N = (tensor.to(device, non_blocking=True) for tensor in (x_NCHW, y_N))
            plain_update(model, optimizer, x_NCHW, y_N, precision)
            tick(len(y_N))

    return train


def gnexp_loop(
    step: StackedStep | GraphStep,
    images: DeviceDataset,
    seeds: Sequence[int],
    batch: int,
    augment: str,
    rate: float,
) -> Callable[[Tick], None]:
    """Return the endless training of all models of a step, fed from the device.

    A block of updates counts from its preparation on, also when it is left in its middle.
    """

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        for epoch in itertools.count(1):
            yield from update_blocks(images, seeds, epoch, batch, batch, augment)

    blocks = endless()

    def train(tick: Tick) -> None:
        for x_RUNCHW, y_RUN in blocks:
            step.run(x_RUNCHW, y_RUN, [[rate] * step.replicas] * y_RUN.shape[1], tick)

    return train
