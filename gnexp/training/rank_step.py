"""One optimizer update over several ranks, each of which passes whole batches of its own.

Weights, momentum and buffers are the same on all ranks after every update.

Shapes: R replicas, U updates, N images of one update, D ranks, C channels, H, W pixels.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from gnexp.data.seeding import derived_seed
from gnexp.norms.all_reduce import synchronized
from gnexp.training.ranks import Ranks
from gnexp.training.stacked_step import StackedStep, Tick, no_tick


class RankStep(StackedStep):
    """The part of one rank in every update: its share of the images, then the mean over ranks.

    Running statistics (every buffer of floating point numbers) become the mean over ranks too,
    after each update. That of a mean is the mean over all images; DistributedDataParallel takes
    those of its first rank alone. Counters count what one rank sees, the same on each. A model
    that draws random numbers in a forward pass has a stream of its own on each rank.
    """

    def __init__(self, ranks: Ranks, models: Sequence[nn.Module], *args: Any, **options: Any):
        super().__init__(models, *args, **options)
        self.ranks = ranks
        self._running = [b for b in self.stack.buffers() if b.is_floating_point()]

    def run(
        self,
        x_RUNCHW: Tensor,
        y_RUN: Tensor,
        rates_UR: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates with this rank's share; `tick` hears of the images of all ranks.

        N must be a multiple of batch * D. The sums grow by those of all ranks.
        """
        x, y = (share(t, self.batch, self.ranks.rank, self.ranks.count) for t in (x_RUNCHW, y_RUN))
        self._draw_apart()
        before_2R = torch.stack([self.loss_sum_R, self.hits_R.double()])
        self.loss_sum_R.zero_()
        self.hits_R.zero_()
        with synchronized():
            super().run(x, y, rates_UR, lambda images: tick(images * self.ranks.count))
        sums_2R = torch.stack([self.loss_sum_R, self.hits_R.double()])
        distributed.all_reduce(sums_2R)
        self.loss_sum_R.copy_(before_2R[0] + sums_2R[0])
        self.hits_R.copy_(before_2R[1] + sums_2R[1])
        self.ranks.barrier()

    def _draw_apart(self) -> None:
        """Give this rank's forward passes a stream that follows from rank 0's.

        Rank 0's generator goes with a checkpoint, so a resumed training has the same streams.
        """
        on_cuda = self.device.type == "cuda"
        state = torch.cuda.get_rng_state(self.device) if on_cuda else torch.get_rng_state()
        digest = hashlib.sha256(self.ranks.share_bytes(state).numpy().tobytes()).digest()
        if self.ranks.rank:
            stream = int.from_bytes(digest[:7], "big")
            torch.manual_seed(derived_seed(stream, "device", self.ranks.rank))

    def update(self, x_NCHW: Tensor, y_NR: Tensor, rates_R: Sequence[float] | Tensor) -> None:
        """Update each replica's weights once, by the mean loss of all ranks' images.

        x_NCHW, y_NR: this rank's share, of the same size on each; see StackedStep.update.
        """
        self._before = [buffer.clone() for buffer in self._running]
        super().update(x_NCHW, y_NR, rates_R)

    @torch.no_grad()
    def _descend(self, rates_R: Sequence[float] | Tensor) -> None:
        gradients = [gradient for gradient in self.stack.gradients() if gradient is not None]
        # Of a buffer its change is averaged: one that stays as it is must not be rounded.
        changes = [now - old for now, old in zip(self._running, self._before, strict=True)]
        tensors = [*gradients, *changes]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        parts = (flat / self.ranks.count).split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))
        for buffer, old, change in zip(self._running, self._before, changes, strict=True):
            torch.add(old, change, out=buffer)
        super()._descend(rates_R)


def share(tensor: Tensor, batch: int, rank: int, count: int) -> Tensor:
    """Return a rank's part of (R, U, N, ...) as (R, U, N / count, ...), in whole batches.

    Example n is of batch n % (N / batch), here and there. Raises ValueError when N is not a
    multiple of batch * count.
    """
    images = tensor.shape[2]
    if images % (batch * count):
        raise ValueError(f"an update of {images} images is no multiple of {batch} x {count}")
    parts = tensor.unflatten(2, (batch, -1)).chunk(count, dim=3)
    return parts[rank].flatten(2, 3).contiguous()
