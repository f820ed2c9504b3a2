"""Norms whose statistics are of one pixel, over its channels, and those without any statistic.

Shapes: N examples, R replicas, C channels of one replica, H and W pixels.
"""

import math

import torch
from torch import Tensor, nn

from gnexp.norms.base import ReplicatedNorm, StandardizingNorm

DEFAULT_ALPHA = 0.5  # of Dynamic Tanh, as in the source


class PixelLayerNorm2d(StandardizingNorm):
    """Normalize each pixel over its channels, C values per statistic: ConvNeXt's layer norm.

    `ln` pools over the pixels too. Source: Ba et al. 2016, arXiv:1607.06450; per pixel of a
    convolutional network: Liu et al. 2022, arXiv:2201.03545.
    """

    pools = "c"

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        centered = x_NRCHW - x_NRCHW.mean(dim=2, keepdim=True)
        variance = centered.square().mean(dim=2, keepdim=True)  # var_mean: 6 times the time
        return self.affine(centered * (variance + self.eps).rsqrt())


class PixelRMSNorm2d(StandardizingNorm):
    """Divide each pixel by the root mean square of its channels, without centring.

    The source has no beta; it is here so that every norm has the same affine part.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    pools = "c"

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        mean_square = x_NRCHW.square().mean(dim=2, keepdim=True)
        return self.affine(x_NRCHW * (mean_square + self.eps).rsqrt())


class DynamicTanh2d(ReplicatedNorm):
    """Squash each value by tanh(alpha x) with a learned alpha per layer; no statistic at all.

    alpha: what it starts with. Source: Zhu et al. 2025, arXiv:2503.10622.
    """

    pools = ""

    def __init__(self, num_channels: int, *, alpha: float = DEFAULT_ALPHA) -> None:
        super().__init__(num_channels)
        if not (alpha > 0 and math.isfinite(alpha)):
            raise ValueError(f"alpha={alpha} must be positive; the default is {DEFAULT_ALPHA}")
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))  # of one replica
        self.add_affine()

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.alpha[:, None, None, None] * x_NRCHW))


class ChannelAffine(ReplicatedNorm):
    """Standardize nothing and keep the per-channel gamma and beta: the control.

    Under autocast a bfloat16 input stays bfloat16, as it does under batch norm, with gamma, beta
    and the arithmetic in float32.
    """

    pools = ""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.add_affine()

    def forward(self, x_NCHW: Tensor) -> Tensor:
        weight_C11, bias_C11 = self.weight[:, None, None], self.bias[:, None, None]
        if x_NCHW.dtype == weight_C11.dtype:
            return torch.addcmul(bias_C11, x_NCHW, weight_C11)
        # No addcmul: CUDA's autocast would keep a float32 copy of x for the backward pass.
        return (x_NCHW * weight_C11 + bias_C11).to(x_NCHW.dtype)
