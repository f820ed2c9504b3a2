"""Convolutions whose filters are standardized before they are applied.

Shapes: D output channels, C input channels of a filter, h and w pixels of a kernel.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn

EPS = 1e-6  # of the weights, as in timm's StdConv2d; that of the norms is for activations


class StandardizedConv2d(nn.Conv2d):
    """A convolution with (W_d - mean(W_d)) / sqrt(var(W_d) + eps) in place of each filter W_d.

    Mean and (biased) variance are over the C * h * w weights of one output channel; the parameter
    stays W, so that state dicts are those of a plain convolution. The output has the variance of
    the fan-in, so a layer that standardizes must follow. Source: Qiao et al. 2019,
    arXiv:1903.10520, which divides by std + eps; with eps inside the root as in timm.
    """

    def forward(self, x_NCHW: Tensor) -> Tensor:
        # Statistics in float32 under autocast, which casts the convolution itself.
        variance, mean = torch.var_mean(self.weight, dim=(1, 2, 3), correction=0, keepdim=True)
        weight_DChw = (self.weight - mean) * (variance + EPS).rsqrt()
        return self._conv_forward(x_NCHW, weight_DChw, self.bias)


def standardize(model: nn.Module, names: Collection[str]) -> list[str]:
    """Turn the plain convolutions among these modules into standardized ones; return their names.

    Weights, biases and names stay.
    """
    found = [name for name in names if type(model.get_submodule(name)) is nn.Conv2d]
    for name in found:
        # The class alone differs: hooks, flags, device and layout stay as they are.
        model.get_submodule(name).__class__ = StandardizedConv2d
    return found
