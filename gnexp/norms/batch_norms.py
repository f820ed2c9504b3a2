"""Batch norm with other statistics: renormalized, of ghost batches, of all processes, frozen.

All keep running statistics as `nn.BatchNorm2d` does: the momentum is the weight of the new value,
and the running variance is unbiased, while a batch is standardized by its biased one.

Shapes: N examples of this process, G of a ghost batch, K ghost batches, C channels, H and W pixels.
"""

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gnexp.norms.all_reduce import all_sum, group_size
from gnexp.norms.base import ReplicatedNorm, StandardizingNorm
from gnexp.norms.layers import (
    DEFAULT_EPS,
    DEFAULT_MOMENTUM,
    batch_norm_of_parts,
    require_momentum,
    require_positive_eps,
)

DEFAULT_GHOST_BATCH = 8


class RunningNorm(StandardizingNorm):
    """A norm with an affine and running statistics, by which it normalizes in evaluation."""

    counts_batches: ClassVar[bool] = True

    def __init__(
        self, num_channels: int, *, eps: float = DEFAULT_EPS, momentum: float = DEFAULT_MOMENTUM
    ) -> None:
        super().__init__(num_channels, eps=eps)
        require_momentum(momentum)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))
        if self.counts_batches:
            self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def by_running_statistics(self, x_NCHW: Tensor) -> Tensor:
        """Return what batch norm gives in evaluation."""
        return F.batch_norm(x_NCHW, *self._tensors(), False, 0.0, self.eps)

    def by_batch_statistics(self, x_NCHW: Tensor) -> Tensor:
        """Return what batch norm gives in training, and move the running statistics.

        Raises ValueError for a single value per channel.
        """
        return F.batch_norm(x_NCHW, *self._tensors(), True, self.momentum, self.eps)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.running_mean, self.running_var, self.weight, self.bias


class BatchRenorm2d(RunningNorm):
    """Batch norm that is corrected towards its running statistics mu, sigma:

        y = gamma (xhat_B r + d) + beta,  xhat_B = (x - mu_B) / sigma_B,
        r = sigma_B / sigma within [1 / rmax, rmax],  d = (mu_B - mu) / sigma within [-dmax, dmax]

    Where no limit is met this is (x - mu) / sigma, which evaluation computes. Gradients pass
    through mu_B and sigma_B and take r and d for constants. sigma is from the running variance,
    that of nn.BatchNorm2d; the paper averages sigma_B itself.

    Until the part `warmup` of `total_examples` has passed, r = 1 and d = 0, which is batch norm;
    then both limits widen linearly, to the full at `rmax_at` and `dmax_at`. Without a total they
    are in full from the start. The paper trains with batch norm for 5,000 steps and reaches rmax at
    40,000 and dmax at 25,000: 0.03, 0.25 and 0.16 of 160,000, which are taken here for its whole.
    `examples_seen` counts the examples of training passes, of one replica.
    Source: Ioffe 2017, arXiv:1702.03275.
    """

    pools = "nhw"
    reads_state = True
    counts_batches = False

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = DEFAULT_EPS,
        momentum: float = DEFAULT_MOMENTUM,
        rmax: float = 3.0,
        dmax: float = 5.0,
        warmup: float = 0.03,
        rmax_at: float = 0.25,
        dmax_at: float = 0.16,
        total_examples: int | None = None,
    ) -> None:
        super().__init__(num_channels, eps=eps, momentum=momentum)
        whole = 0 <= warmup < 1
        for key, value, valid, rule in (
            ("rmax", rmax, rmax >= 1, "at least 1, which is batch norm; the default is 3"),
            ("dmax", dmax, dmax >= 0, "0 or more; the default is 5"),
            ("warmup", warmup, whole, "a part of training from 0 to below 1, as 0.03"),
            ("warmup", warmup, warmup < rmax_at, f"less than rmax_at={rmax_at}, where it ends"),
            ("warmup", warmup, warmup < dmax_at, f"less than dmax_at={dmax_at}, where it ends"),
        ):
            if not valid:
                raise ValueError(f"{key}={value} must be {rule}")
        if total_examples is not None and total_examples < 1:
            raise ValueError(f"total_examples={total_examples} must be at least 1, or None")
        self.rmax, self.dmax, self.total_examples = rmax, dmax, total_examples
        self.warmup, self.rmax_at, self.dmax_at = warmup, rmax_at, dmax_at
        self.register_buffer("examples_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return self.by_running_statistics(x_NCHW)
        r_C, d_C = self._corrections(x_NCHW)
        weight_C, bias_C = self.weight * r_C, torch.addcmul(self.bias, self.weight, d_C)
        running = self.running_mean, self.running_var
        y_NCHW = F.batch_norm(x_NCHW, *running, weight_C, bias_C, True, self.momentum, self.eps)
        self.examples_seen.add_(len(x_NCHW))
        return y_NCHW

    def limits(self) -> tuple[Tensor, Tensor]:
        """Return the limits (rmax, dmax) for the next batch, without axes, on the device."""
        if self.total_examples is None:
            full = self.running_mean.new_full
            return full((), self.rmax), full((), self.dmax)
        seen = self.examples_seen.to(self.running_mean.dtype) / self.total_examples
        r_part, d_part = (
            ((seen - self.warmup) / (end - self.warmup)).clamp(0, 1)
            for end in (self.rmax_at, self.dmax_at)
        )
        return 1 + (self.rmax - 1) * r_part, self.dmax * d_part

    @torch.no_grad()  # constants for the gradient, by the paper's definition
    def _corrections(self, x_NCHW: Tensor) -> tuple[Tensor, Tensor]:
        rmax, dmax = self.limits()
        x_NCHW = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        mean_C = x_NCHW.mean(dim=(0, 2, 3))
        # torch.var_mean is 20 times slower on a CPU.
        var_C = (x_NCHW - mean_C[:, None, None]).square_().mean(dim=(0, 2, 3))
        sigma_C = (self.running_var + self.eps).sqrt()
        r_C = ((var_C + self.eps).sqrt() / sigma_C).clamp(1 / rmax, rmax)
        d_C = ((mean_C - self.running_mean) / sigma_C).clamp(-dmax, dmax)
        return r_C.to(self.weight.dtype), d_C.to(self.weight.dtype)


class GhostBatchNorm2d(RunningNorm):
    """Batch norm whose statistics are each of `ghost_batch` consecutive examples, the last of fewer
    where they do not divide the batch.

    The running statistics follow ghost batch after ghost batch: `momentum` is the weight of one.
    Batches of no more than `ghost_batch` examples are normalized as by batch norm.
    Source: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741.
    """

    pools = "nhw"

    def __init__(
        self,
        num_channels: int,
        *,
        eps: float = DEFAULT_EPS,
        momentum: float = DEFAULT_MOMENTUM,
        ghost_batch: int = DEFAULT_GHOST_BATCH,
    ) -> None:
        super().__init__(num_channels, eps=eps, momentum=momentum)
        if ghost_batch != int(ghost_batch) or ghost_batch < 1:
            raise ValueError(
                f"ghost_batch={ghost_batch} must be a whole number of examples from 1 up; the"
                f" default is {DEFAULT_GHOST_BATCH}"
            )
        self.ghost_batch = int(ghost_batch)

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return self.by_running_statistics(x_NCHW)
        ghosts = -(-len(x_NCHW) // self.ghost_batch)
        self.num_batches_tracked.add_(ghosts)
        whole = len(x_NCHW) // self.ghost_batch
        if ghosts == 1:
            return self.by_batch_statistics(x_NCHW)
        first = self._of_ghosts(x_NCHW[: whole * self.ghost_batch], whole)
        if whole == ghosts:
            return first
        return torch.cat([first, self.by_batch_statistics(x_NCHW[whole * self.ghost_batch :])])

    def _of_ghosts(self, x_NCHW: Tensor, count: int) -> Tensor:
        """Normalize `count` ghost batches of equal size in one call, as channels of their own."""
        x_GDHW = x_NCHW.unflatten(0, (count, -1)).transpose(0, 1).flatten(1, 2)
        y_GKCHW = batch_norm_of_parts(self, x_GDHW, count).unflatten(1, (count, -1))
        # Into the memory format of the input, which folding ghosts into the channels has lost.
        y_NCHW = torch.empty_like(x_NCHW)
        y_NCHW.unflatten(0, (count, -1)).copy_(y_GKCHW.transpose(0, 1))
        return y_NCHW


class SynchronizedBatchNorm2d(RunningNorm):
    """Batch norm over the batches of all devices together; on one device it is batch norm.

    The function of nn.SyncBatchNorm, which PyTorch has on CUDA alone. The devices are those of
    `all_reduce.synchronized`.
    Source: Zhang et al. 2018, arXiv:1803.08904 (as "synchronized cross-GPU batch normalization").
    """

    pools = "nhw"

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if not self.training:
            return self.by_running_statistics(x_NCHW)
        self.num_batches_tracked.add_(1)
        if group_size() == 1:
            return self.by_batch_statistics(x_NCHW)
        return self._by_statistics_of_all(x_NCHW)

    def _by_statistics_of_all(self, x_NCHW: Tensor) -> Tensor:
        x = x_NCHW.to(torch.promote_types(x_NCHW.dtype, torch.float32))
        values = x.new_full((1,), x.shape[0] * x.shape[2] * x.shape[3])
        # One exchange for both: the processes may hold different numbers of examples.
        sums = all_sum(torch.cat([x.sum(dim=(0, 2, 3)), values]))
        mean_C, values = sums[:-1] / sums[-1], sums[-1].detach()
        centered = x - mean_C[:, None, None]
        # From the deviations, in a second exchange: E[x^2] - E[x]^2 would cancel.
        var_C = all_sum(centered.square().sum(dim=(0, 2, 3))) / values
        with torch.no_grad():
            self.running_mean.lerp_(mean_C, self.momentum)
            self.running_var.lerp_(var_C * (values / (values - 1)), self.momentum)
        scale_C = self.weight * (var_C + self.eps).rsqrt()
        y = torch.addcmul(self.bias[:, None, None], centered, scale_C[:, None, None])
        return y.to(x_NCHW.dtype)


class FrozenBatchNorm2d(ReplicatedNorm):
    """Batch norm by stored statistics and a stored affine, none of which training changes.

    Of a new network it is the identity, to 1 / sqrt(1 + eps): it is meant for weights that were
    trained with batch norm before, and loads what `nn.BatchNorm2d` saves but its count of batches.
    The function of torchvision.ops.FrozenBatchNorm2d.
    Source: He et al. 2015, arXiv:1512.03385, who fix the statistics for detection.
    """

    pools = ""

    def __init__(self, num_channels: int, *, eps: float = DEFAULT_EPS) -> None:
        super().__init__(num_channels)
        require_positive_eps(eps)
        self.eps = eps
        starts = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
        for key, value in starts.items():
            self.register_buffer(key, torch.full((num_channels,), value))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        # Written out, since then the backward pass needs no activation, only the scale.
        scale_C = self.weight * (self.running_var + self.eps).rsqrt()
        shift_C = self.bias - self.running_mean * scale_C
        return torch.addcmul(self.spread(shift_C), x_NRCHW, self.spread(scale_C))

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *rest: object) -> None:
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)
