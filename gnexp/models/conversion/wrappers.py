"""Layers for (N, C, H, W) where a model hands over something else, or wants an activation too.

Shapes: N examples, C channels, L positions, H and W pixels.
"""

from torch import Tensor, nn


class AsFeatureMap(nn.Module):
    """A norm of (N, C, H, W) on (N, C), (N, C, L) or more axes, or on (N, ..., C).

    All axes but N and C are pixels to it: H * W = L, or 1. The result has the shape of the input.
    """

    def __init__(self, norm: nn.Module, *, channels_last: bool = False) -> None:
        super().__init__()
        self.norm, self.channels_last = norm, channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.movedim(-1, 1)
        if x.ndim == 4:
            y = self.norm(x)
        else:
            y = self.norm(x.reshape(*x.shape[:2], -1, 1)).reshape(x.shape)
        return y.movedim(1, -1) if self.channels_last else y

    def extra_repr(self) -> str:
        return "channels_last=True" if self.channels_last else ""


class NormActivation(nn.Module):
    """act(drop(norm(x))): in the place of a layer that does all three."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.norm(x)))
