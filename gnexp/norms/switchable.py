"""Switchable norm: each layer learns a mixture of the statistics of three norms.

Shapes: N examples, R replicas, C channels, H and W pixels; 1 where an axis is pooled.
"""

import torch
from torch import Tensor, nn

from gnexp.norms.batch_norms import RunningNorm
from gnexp.norms.layers import DEFAULT_EPS, DEFAULT_MOMENTUM, require_several


class SwitchableNorm2d(RunningNorm):
    """Normalize by mixtures of the statistics of instance, layer and batch norm.

        y = gamma (x - sum_k w_k mu_k) / sqrt(sum_k v_k var_k + eps) + beta,  k = IN, LN, BN,

    with w and v the softmax of three learned numbers each, all 1 at the start, of a layer. Batch
    norm's part is by running statistics in evaluation (the paper averages over a few batches).
    All variances are biased in training, and the running one is unbiased, as in nn.BatchNorm2d.
    Raises ValueError when a training batch has one value per channel.
    Source: Luo et al. 2018, arXiv:1806.10779.
    """

    pools = "nchw"

    def __init__(
        self, num_channels: int, *, eps: float = DEFAULT_EPS, momentum: float = DEFAULT_MOMENTUM
    ) -> None:
        super().__init__(num_channels, eps=eps, momentum=momentum)
        self.mean_weight = nn.Parameter(torch.ones(3))
        self.var_weight = nn.Parameter(torch.ones(3))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        in_mean = x_NRCHW.mean(dim=(3, 4), keepdim=True)
        centered = x_NRCHW - in_mean
        in_var = centered.square().mean(dim=(3, 4), keepdim=True)  # var_mean: 20 times the time
        # The variance of a union: the mean of the variances and the variance of the means. The
        # paper's E[var + mean^2] - E[mean]^2 is the same number, but cancels.
        ln_mean = in_mean.mean(dim=2, keepdim=True)
        ln_var = (in_var + (in_mean - ln_mean).square()).mean(dim=2, keepdim=True)
        if self.training:
            count = require_several(x_NRCHW)
            bn_mean = in_mean.mean(dim=0, keepdim=True)
            bn_var = (in_var + (in_mean - bn_mean).square()).mean(dim=0, keepdim=True)
            self._follow(bn_mean, bn_var * (count / (count - 1)))
        else:
            bn_mean, bn_var = self.spread(self.running_mean), self.spread(self.running_var)
        mean = _mixture(self.mean_weight, (in_mean, ln_mean, bn_mean))
        var = _mixture(self.var_weight, (in_var, ln_var, bn_var))
        scale = self.spread(self.weight) * (var + self.eps).rsqrt()
        shift = torch.addcmul(self.spread(self.bias), in_mean - mean, scale)
        return torch.addcmul(shift, centered, scale)

    @torch.no_grad()
    def _follow(self, mean: Tensor, var: Tensor) -> None:
        for running, seen in ((self.running_mean, mean), (self.running_var, var)):
            # The layer's dtype may be lower than that of statistics.
            running.lerp_(seen.flatten().to(running.dtype), self.momentum)
        self.num_batches_tracked.add_(1)


def _mixture(weights: Tensor, statistics: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Return the mixture (N, R, C, 1, 1) by weights (3 * R,), whose softmax is over the three."""
    parts_3R = weights.view(-1, 3).softmax(dim=1).unbind(dim=1)
    return sum(
        part_R[:, None, None, None] * statistic
        for part_R, statistic in zip(parts_3R, statistics, strict=True)
    )
