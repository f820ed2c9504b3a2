"""Our way of training, as `gnexp train` does it: a step of all seeds, fed from the device.

Shapes: R replicas, U updates, N images of one update, C colours, H, W pixels.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from gnexp.data.device_images import DeviceDataset
from gnexp.data.update_blocks import update_blocks
from gnexp.runner.benchmark.timer import Window
from gnexp.training.cuda_graph import GraphStep
from gnexp.training.precision import matrix_precision
from gnexp.training.stacked_step import StackedStep

Block = tuple[Tensor, Tensor]


def endless_blocks(
    images: DeviceDataset, seeds: Sequence[int], batch: int, augment: str
) -> Iterator[Block]:
    """Yield (x_RUNCHW, y_RUN) of epoch after epoch, prepared when they are asked for."""
    for epoch in itertools.count(1):
        yield from update_blocks(images, seeds, epoch, batch, batch, augment)


class _Enough(Exception):
    """Leaves a step in the middle of a block."""


def train_grid(
    step: StackedStep | GraphStep,
    blocks: Iterator[Block],
    rate: float,
    window: Window,
    precision: str = "fp32",
) -> None:
    """Train all models of the step until the timer ends, warmed up.

    A block counts from its preparation on, also when the window ends in the middle of it.
    """
    with matrix_precision(precision):
        _train(step, blocks, rate, lambda _: window.warm())
        window.open()
        _train(step, blocks, rate, window.tick)


def _train(
    step: StackedStep | GraphStep,
    blocks: Iterator[Block],
    rate: float,
    enough: Callable[[int], bool],
) -> None:
    """Train with block after block until `enough`, called with the images of each update."""

    def tick(examples: int) -> None:
        if enough(examples):
            raise _Enough

    with contextlib.suppress(_Enough):
        for x_RUNCHW, y_RUN in blocks:
            step.run(x_RUNCHW, y_RUN, [[rate] * step.replicas] * y_RUN.shape[1], tick)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
