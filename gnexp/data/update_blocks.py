"""Blocks of augmented, normalized updates for the replicas of one step.

Shapes: R replicas, U updates, N images of one update, M = U * N images, C colours, H, W pixels.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gnexp.data.device_images import (
    DeviceDataset,
    augmentation,
    epoch_augmentation,
    epoch_order,
    training_images,
)
from gnexp.data.seeding import generator, secret_uniform

BLOCK = 256  # images of one replica that are augmented at once: a batch of 1 would be all overhead


def update_blocks(
    images: DeviceDataset,
    seeds: Sequence[int],
    epoch: int,
    batch: int,
    update_batch: int,
    augment: str,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    last: int | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the epoch's updates as (x_RUNCHW, y_RUN), about BLOCK images of each replica at a time.

    first: the update to begin with; where a block began, the blocks are the same as from the start.
    last: the number of updates after which to end, if the epoch is not to be used up.

    A replica gets the order and the augmentation of its own (seed, epoch). Within an update example
    n belongs to batch n % (update_batch / batch): a batch is a slice with a stride. The images of
    the last partial update are left out. Nothing waits for the device.
    """
    size, device = len(images.x_train), images.x_train.device
    count = size // update_batch
    order_RUN = torch.stack([epoch_order(size, seed, epoch) for seed in seeds])
    order_RUN = order_RUN[:, : count * update_batch].unflatten(1, (count, -1, batch))
    order_RUN = order_RUN.transpose(2, 3).flatten(2).to(device)
    draws = [epoch_augmentation(size, seed, epoch, *augmentation(augment)) for seed in seeds]
    offsets_RM2, flips_RM = (torch.stack(each).to(device) for each in zip(*draws, strict=True))
    replica_R1 = torch.arange(len(seeds), device=device)[:, None]
    for at_RUN in order_RUN[:, first:last].split(max(1, BLOCK // update_batch), dim=1):
        at_RM = at_RUN.flatten(1)
        offsets, flips = offsets_RM2[replica_R1, at_RM], flips_RM[replica_R1, at_RM]
        drawn = offsets.flatten(0, 1), flips.flatten()
        x = training_images(images, at_RM.flatten(), *drawn, augment, dtype)
        yield x.unflatten(0, at_RUN.shape), images.y_train[at_RUN]


def poisson_updates(
    images: DeviceDataset,
    seed: int,
    epoch: int,
    update_batch: int,
    augment: str,
    dtype: torch.dtype = torch.float32,
    first: int = 0,
    secret: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the epoch's updates of one replica one by one as (x_1UNCHW, y_1UN), U = 1, any N >= 0.

    Each of the size // update_batch updates of an epoch holds every training image with probability
    update_batch / size, independently of the others and of the updates before: the sampling that
    the privacy accounting of DP-SGD assumes. What is drawn depends on (seed, epoch, update) alone,
    or where it is secret on the system's entropy; an image's augmentation on (seed, epoch). first:
    the update to begin with.
    """
    size, device = len(images.x_train), images.x_train.device
    offsets_M2, flips_M = epoch_augmentation(size, seed, epoch, *augmentation(augment))
    for update in range(first, size // update_batch):
        # In float64 a rate is met to 1e-16; float32 has too few values between 0 and a small rate.
        if secret:
            uniform_M = secret_uniform(size)
        else:
            source = generator(seed, "poisson", epoch, update)
            uniform_M = torch.rand(size, generator=source, dtype=torch.float64)
        drawn_M = uniform_M < update_batch / size
        at_N = drawn_M.nonzero().flatten()
        of_drawn = (each[at_N].to(device) for each in (offsets_M2, flips_M))
        at_N = at_N.to(device)
        x = training_images(images, at_N, *of_drawn, augment, dtype)
        yield x[None, None], images.y_train[at_N][None, None]
