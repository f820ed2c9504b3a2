"""Norms that carry their own nonlinearity, which stands for the ReLU behind them.

Conventions are those of timm's layers: variances are biased, eps is inside the root, and an EvoNorm
without its activation is the affine alone.

Shapes: N examples, R replicas, C channels of one replica, H and W pixels; G groups of channels.
"""

import torch
from torch import Tensor, nn

from gnexp.norms.base import ActivatedNorm
from gnexp.norms.layers import (
    DEFAULT_EPS,
    DEFAULT_GROUPS,
    DEFAULT_MOMENTUM,
    require_divisor,
    require_momentum,
    require_several,
)


def _variance(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the biased variance, axes kept: in two means, since torch.var is slower on a CPU."""
    return (x - x.mean(dim=axes, keepdim=True)).square().mean(dim=axes, keepdim=True)


class FilterResponseNorm2d(ActivatedNorm):
    """Divide each channel of each example by its root mean square, then max(y, tau): FRN with TLU.

    max(gamma x / sqrt(mean(x^2) + eps) + beta, tau). The thresholded linear unit, with a learned
    tau per channel, is the activation; where no ReLU follows, the layer is without it.
    Source: Singh & Krishnan 2020, arXiv:1911.09737.
    """

    pools = pools_without = "hw"
    of_activation = ("tau",)

    def __init__(self, num_channels: int, *, eps: float = DEFAULT_EPS) -> None:
        super().__init__(num_channels, eps=eps)
        self.tau = nn.Parameter(torch.zeros(num_channels))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        mean_square = x_NRCHW.square().mean(dim=(3, 4), keepdim=True)
        y_NRCHW = self.affine(x_NRCHW * (mean_square + self.eps).rsqrt())
        return torch.maximum(y_NRCHW, self.spread(self.tau)) if self.activated else y_NRCHW


class EvoNormB0(ActivatedNorm):
    """Divide by the larger of the batch's deviation and v x plus the example's: searched, with BN's
    running variance.

    gamma x / max(sqrt(var_nhw + eps), v x + sqrt(var_hw + eps)) + beta. It is its own activation;
    where no ReLU follows, it is the affine alone, as in timm. In evaluation the batch's variance is
    the running one, whose newest batch weighs `momentum`. Source: Liu et al. 2020,
    arXiv:2004.02967.
    """

    pools = "nhw"
    of_activation = ("v", "running_var")

    def __init__(
        self, num_channels: int, *, eps: float = DEFAULT_EPS, momentum: float = DEFAULT_MOMENTUM
    ) -> None:
        super().__init__(num_channels, eps=eps)
        require_momentum(momentum)
        self.momentum = momentum
        self.v = nn.Parameter(torch.ones(num_channels))
        self.register_buffer("running_var", torch.ones(num_channels))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        if not self.activated:
            return self.affine(x_NRCHW)
        if self.training:
            variance_RC = _variance(x_NRCHW, (0, 3, 4))[0, ..., 0, 0]
            self._follow(variance_RC, x_NRCHW)
        else:
            variance_RC = self.running_var.unflatten(0, (self.replicas, -1))
        of_batch = (variance_RC[..., None, None] + self.eps).sqrt()
        of_example = (_variance(x_NRCHW, (3, 4)) + self.eps).sqrt()
        divisor = torch.maximum(of_batch, self.spread(self.v) * x_NRCHW + of_example)
        return self.affine(x_NRCHW / divisor)

    @torch.no_grad()
    def _follow(self, variance_RC: Tensor, x_NRCHW: Tensor) -> None:
        count = require_several(x_NRCHW)
        unbiased = variance_RC.flatten() * (count / (count - 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class EvoNormS0(ActivatedNorm):
    """Divide x sigmoid(v x) by the deviation of the example's group: searched, without a batch.

    gamma x sigmoid(v x) / sqrt(var + eps) + beta. It is its own activation; where no ReLU follows,
    it is the affine alone, as in timm. Raises ValueError when `num_groups` does not divide
    `num_channels`. Source: Liu et al. 2020, arXiv:2004.02967.
    """

    pools = "chw"
    of_activation = ("v",)

    def __init__(
        self, num_channels: int, *, eps: float = DEFAULT_EPS, num_groups: int = DEFAULT_GROUPS
    ) -> None:
        super().__init__(num_channels, eps=eps)
        require_divisor("num_groups", num_groups, num_channels)
        self.num_groups = num_groups
        self.v = nn.Parameter(torch.ones(num_channels))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        if not self.activated:
            return self.affine(x_NRCHW)
        grouped = x_NRCHW.unflatten(2, (self.num_groups, -1))
        variance = _variance(grouped, (3, 4, 5))
        deviation = (variance + self.eps).sqrt().expand_as(grouped).flatten(2, 3)
        swish = x_NRCHW * torch.sigmoid(self.spread(self.v) * x_NRCHW)
        return self.affine(swish / deviation)
