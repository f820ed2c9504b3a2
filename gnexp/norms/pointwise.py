"""Norms whose statistics are of one pixel, over its channels, and one without any statistic.

Shapes: N examples, R replicas, C channels of one replica, H and W pixels.
"""

import math

import torch
from torch import Tensor, nn

from gnexp.norms.base import ReplicatedNorm
from gnexp.norms.layers import DEFAULT_EPS, require_positive_eps

DEFAULT_ALPHA = 0.5  # of Dynamic Tanh, as in the source


class PixelLayerNorm2d(ReplicatedNorm):
    """(x - mean) / sqrt(var + eps) with mean and variance over the channels of each pixel."""

    pools = "c"

    def __init__(self, num_channels: int, eps: float) -> None:
        super().__init__(num_channels)
        self.eps = eps
        self.add_affine()

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        centered = x_NRCHW - x_NRCHW.mean(dim=2, keepdim=True)
        variance = centered.square().mean(dim=2, keepdim=True)  # var_mean: 6 times the time
        return self.affine(centered * (variance + self.eps).rsqrt())


class PixelRMSNorm2d(ReplicatedNorm):
    """x / sqrt(mean(x^2) + eps) with the mean over the channels of each pixel."""

    pools = "c"

    def __init__(self, num_channels: int, eps: float) -> None:
        super().__init__(num_channels)
        self.eps = eps
        self.add_affine()

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        mean_square = x_NRCHW.square().mean(dim=2, keepdim=True)
        return self.affine(x_NRCHW * (mean_square + self.eps).rsqrt())


class DynamicTanh2d(ReplicatedNorm):
    """tanh(alpha x) with one learned alpha per layer."""

    pools = ""

    def __init__(self, num_channels: int, alpha: float) -> None:
        super().__init__(num_channels)
        self.alpha = nn.Parameter(torch.full((1,), float(alpha)))  # of one replica
        self.add_affine()

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.alpha[:, None, None, None] * x_NRCHW))


def pixel_layer_norm(num_channels: int, *, eps: float = DEFAULT_EPS) -> nn.Module:
    """Normalize each pixel over its channels, C values per statistic: ConvNeXt's layer norm.

    `ln` pools over the pixels too. Source: Ba et al. 2016, arXiv:1607.06450; per pixel of a
    convolutional network: Liu et al. 2022, arXiv:2201.03545.
    """
    require_positive_eps(eps)
    return PixelLayerNorm2d(num_channels, eps)


def rms_norm(num_channels: int, *, eps: float = DEFAULT_EPS) -> nn.Module:
    """Divide each pixel by the root mean square of its channels, without centring.

    The source has no beta; it is here so that every norm has the same affine part.
    Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    """
    require_positive_eps(eps)
    return PixelRMSNorm2d(num_channels, eps)


def dynamic_tanh(num_channels: int, *, alpha: float = DEFAULT_ALPHA) -> nn.Module:
    """Squash each value by tanh(alpha x) with a learned alpha per layer; no statistic at all.

    alpha: what it starts with. Source: Zhu et al. 2025, arXiv:2503.10622.
    """
    if not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"alpha={alpha} must be positive; the default is {DEFAULT_ALPHA}")
    return DynamicTanh2d(num_channels, alpha)
