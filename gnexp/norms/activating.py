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
    require_positive_eps,
    require_several,
)


def _variance(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Return the biased variance, axes kept: in two means, since torch.var is slower on a CPU."""
    return (x - x.mean(dim=axes, keepdim=True)).square().mean(dim=axes, keepdim=True)


class FilterResponseNorm2d(ActivatedNorm):
    """max(gamma x / sqrt(mean(x^2) + eps) + beta, tau), the mean over each example's channel."""

    pools = "hw"

    def __init__(self, num_channels: int, eps: float) -> None:
        super().__init__(num_channels)
        self.eps = eps
        self.add_affine()
        self.tau = nn.Parameter(torch.zeros(num_channels))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        mean_square = x_NRCHW.square().mean(dim=(3, 4), keepdim=True)
        y_NRCHW = self.affine(x_NRCHW * (mean_square + self.eps).rsqrt())
        return torch.maximum(y_NRCHW, self.spread(self.tau)) if self.activated else y_NRCHW

    def _drop(self) -> None:
        self.tau = None


class EvoNormB0(ActivatedNorm):
    """gamma x / max(sqrt(var_nhw + eps), v x + sqrt(var_hw + eps)) + beta."""

    pools = "nhw"

    def __init__(self, num_channels: int, eps: float, momentum: float) -> None:
        super().__init__(num_channels)
        self.eps, self.momentum = eps, momentum
        self.add_affine()
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

    def _drop(self) -> None:
        self.v = None
        self.running_var = None
        self.pools = ""  # the affine alone has no statistic


class EvoNormS0(ActivatedNorm):
    """gamma x sigmoid(v x) / sqrt(var + eps) + beta, the variance over each example's group."""

    pools = "chw"

    def __init__(self, num_channels: int, num_groups: int, eps: float) -> None:
        super().__init__(num_channels)
        self.num_groups, self.eps = num_groups, eps
        self.add_affine()
        self.v = nn.Parameter(torch.ones(num_channels))

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        if not self.activated:
            return self.affine(x_NRCHW)
        grouped = x_NRCHW.unflatten(2, (self.num_groups, -1))
        variance = _variance(grouped, (3, 4, 5))
        deviation = (variance + self.eps).sqrt().expand_as(grouped).flatten(2, 3)
        swish = x_NRCHW * torch.sigmoid(self.spread(self.v) * x_NRCHW)
        return self.affine(swish / deviation)

    def _drop(self) -> None:
        self.v = None
        self.pools = ""


def filter_response_norm(num_channels: int, *, eps: float = DEFAULT_EPS) -> nn.Module:
    """Divide each channel of each example by its root mean square, then max(y, tau): FRN with TLU.

    The thresholded linear unit, with a learned tau per channel, is the activation; where no ReLU
    follows, the layer is without it. Source: Singh & Krishnan 2020, arXiv:1911.09737.
    """
    require_positive_eps(eps)
    return FilterResponseNorm2d(num_channels, eps)


def evonorm_b0(
    num_channels: int, *, eps: float = DEFAULT_EPS, momentum: float = DEFAULT_MOMENTUM
) -> nn.Module:
    """Divide by the larger of the batch's deviation and v x plus the example's: searched, with BN's
    running variance.

    It is its own activation; where no ReLU follows, it is the affine alone, as in timm. In
    evaluation the batch's variance is the running one, whose newest batch weighs `momentum`.
    Source: Liu et al. 2020, arXiv:2004.02967.
    """
    require_positive_eps(eps)
    require_momentum(momentum)
    return EvoNormB0(num_channels, eps, momentum)


def evonorm_s0(
    num_channels: int, *, num_groups: int = DEFAULT_GROUPS, eps: float = DEFAULT_EPS
) -> nn.Module:
    """Divide x sigmoid(v x) by the deviation of the example's group: searched, without a batch.

    It is its own activation; where no ReLU follows, it is the affine alone, as in timm. Raises
    ValueError when `num_groups` does not divide `num_channels`.
    Source: Liu et al. 2020, arXiv:2004.02967.
    """
    require_positive_eps(eps)
    require_divisor("num_groups", num_groups, num_channels)
    return EvoNormS0(num_channels, num_groups, eps)
