"""The base class of gnexp's own layers: replicas side by side, and an activation to carry.

Shapes: N examples, R replicas, C channels of one replica, H and W pixels.
"""

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gnexp.norms.layers import DEFAULT_EPS, require_positive_eps


class ReplicatedNorm(nn.Module):
    """A normalization layer of R replicas at once, (N, R * C, H, W) -> (N, R * C, H, W).

    Subclasses write `normalize` for (N, R, C, H, W), so that what they pool over C stays within a
    replica, and hold tensors whose first axis is that of one layer repeated R times: (R * C,), or
    (R * K,) for K numbers of a layer. A counter without axes is the same for all replicas.
    Low-precision inputs are computed with in float32 and come out as they came in.

    pools: the axes, letters of "nchw", whose values share a statistic. reads_state: whether a
    training pass computes with what earlier ones left in the buffers. carries_activation: whether
    the nonlinearity is a part of it, which then stands for the ReLU behind it.
    """

    pools: ClassVar[str]
    reads_state: ClassVar[bool] = False
    carries_activation: ClassVar[bool] = False

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.num_channels = num_channels  # of one replica
        self.replicas = 1

    def add_affine(self) -> None:
        """Give the layer gamma `weight`, ones, and beta `bias`, zeros, of (C,)."""
        self.weight = nn.Parameter(torch.ones(self.num_channels))
        self.bias = nn.Parameter(torch.zeros(self.num_channels))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        kind = torch.promote_types(x_NCHW.dtype, torch.float32)
        x_NRCHW = x_NCHW.to(kind).unflatten(1, (self.replicas, -1))
        return self.normalize(x_NRCHW).flatten(1, 2).to(x_NCHW.dtype)

    def normalize(self, x_NRCHW: Tensor) -> Tensor:
        """Return the layer's output for (N, R, C, H, W), of the same shape."""
        raise NotImplementedError

    def spread(self, of_channels: Tensor) -> Tensor:
        """Return numbers per channel, (R * C,), as (R, C, 1, 1)."""
        return of_channels.unflatten(0, (self.replicas, -1))[..., None, None]

    def affine(self, x_NRCHW: Tensor) -> Tensor:
        """Return gamma_c x + beta_c."""
        return torch.addcmul(self.spread(self.bias), x_NRCHW, self.spread(self.weight))

    def extra_repr(self) -> str:
        return str(self.replicas * self.num_channels)


class StandardizingNorm(ReplicatedNorm):
    """A layer with an eps beside its variances, and with gamma and beta."""

    def __init__(self, num_channels: int, *, eps: float = DEFAULT_EPS) -> None:
        super().__init__(num_channels)
        require_positive_eps(eps)
        self.eps = eps
        self.add_affine()


class ActivatedNorm(StandardizingNorm):
    """A layer that normalizes and activates; `without_activation` gives one that only normalizes.

    Subclasses read `activated`. of_activation: the tensors that serve the activation alone.
    pools_without: the axes that share a statistic in a layer without it.
    """

    carries_activation: ClassVar[bool] = True
    of_activation: ClassVar[tuple[str, ...]]
    pools_without: ClassVar[str] = ""
    activated = True

    def without_activation(self) -> "ActivatedNorm":
        """Return this layer, normalizing only: for places that no ReLU follows."""
        self.activated, self.pools = False, self.pools_without
        for key in self.of_activation:
            setattr(self, key, None)
        return self


def stack_replicated(layers: Sequence[ReplicatedNorm]) -> nn.Module:
    """Return one layer of R * replicas, with the tensors of all side by side."""
    joined = copy.deepcopy(layers[0])
    joined.replicas = sum(layer.replicas for layer in layers)
    for held, kind in ((joined._parameters, nn.Parameter), (joined._buffers, Tensor.detach)):
        for name, tensor in held.items():
            if tensor is not None and tensor.ndim:
                parts = [getattr(layer, name).detach() for layer in layers]
                held[name] = kind(torch.cat(parts))
    return joined


def carries_activation(layer: nn.Module) -> bool:
    """Return whether a norm replaces the ReLU behind it: it then has `without_activation`."""
    return bool(getattr(layer, "carries_activation", False))
