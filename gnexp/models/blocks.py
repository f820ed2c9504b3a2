"""The parts of the networks: convolutions, shortcuts and blocks, with the norm passed in.

Every operation that depends on the number of channels is a module, so that a network can be
transformed by walking its tree. Nothing is done in place, because hooks that collect per-example
gradients fail on it.

Shapes: N examples, C channels (D after a stage's first block), H and W pixels.
"""

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.norms.base import carries_activation

NormFactory = Callable[[int], nn.Module]


class Place(NamedTuple):
    """A block's place in a network. shortcut: builds what is added to a branch, see below."""

    in_channels: int
    channels: int
    stride: int
    norm: NormFactory
    shortcut: Callable[["Place", int], nn.Module]


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """Return a convolution without bias that pads to keep H and W, before the stride."""
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
    )


def outside(model: nn.Module, layers: Collection[str]) -> Iterator[tuple[str, nn.Module]]:
    """Yield (name, module) of all modules that neither are nor lie within the named layers."""
    within = tuple(f"{layer}." for layer in layers)
    for name, module in model.named_modules():
        if not f"{name}.".startswith(within):
            yield name, module


def norm_relu(norm: NormFactory, channels: int) -> tuple[nn.Module, nn.Module]:
    """Return a norm and the ReLU behind it, or behind a norm that carries its own an identity."""
    layer = norm(channels)
    return layer, nn.Identity() if carries_activation(layer) else nn.ReLU()


def norm_without_relu(norm: NormFactory, channels: int) -> nn.Module:
    """Return a norm for a place without a ReLU; one that carries its own comes without it."""
    layer = norm(channels)
    return layer.without_activation() if carries_activation(layer) else layer


class PaddedShortcut(nn.Module):
    """Subsample pixels by `stride` and append zero channels: (N, C, H, W) -> (N, D, H/s, W/s).

    No parameters. Source: "option A" of He et al. 2015, arXiv:1512.03385.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride

    def forward(self, x_NCHW: Tensor) -> Tensor:
        extra = self.out_channels - self.in_channels
        return F.pad(x_NCHW[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, extra))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def padded_shortcut(at: Place, out_channels: int) -> nn.Module:
    """Return the parameter-free shortcut of the CIFAR ResNets."""
    if at.stride == 1 and at.in_channels == out_channels:
        return nn.Identity()
    return PaddedShortcut(at.in_channels, out_channels, at.stride)


def projection_shortcut(at: Place, out_channels: int) -> nn.Module:
    """Return the shortcut of the ImageNet ResNets: conv 1x1 and norm where the shape changes."""
    if at.stride == 1 and at.in_channels == out_channels:
        return nn.Identity()
    projection = conv(at.in_channels, out_channels, 1, at.stride)
    norm = norm_without_relu(at.norm, out_channels)
    return nn.Sequential(OrderedDict(conv=projection, norm=norm))


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)). Subclasses state `expansion` and `last_norm`."""

    expansion: int  # output channels of the block over its `channels`
    last_norm: str  # the attribute whose gamma scales the whole branch
    activated = True  # whether a ReLU follows the sum
    shortcut: nn.Module

    def branch(self, x_NCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.relu_out(self.branch(x_NCHW) + self.shortcut(x_NCHW))


class TwoConvolutions(nn.Module):
    """Two 3x3 convolutions, the first with the stride, each followed by a norm."""

    expansion = 1
    last_norm = "norm2"
    ends_in_relu = False  # whether a ReLU follows the second norm itself, and not a sum

    def __init__(self, at: Place) -> None:
        super().__init__()
        self.conv1 = conv(at.in_channels, at.channels, 3, at.stride)
        self.norm1, self.relu1 = norm_relu(at.norm, at.channels)
        self.conv2 = conv(at.channels, at.channels, 3)
        if self.ends_in_relu:
            self.norm2, self.relu_out = norm_relu(at.norm, at.channels)
        else:
            self.norm2 = norm_without_relu(at.norm, at.channels)

    def branch(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.relu1(self.norm1(self.conv1(x_NCHW)))
        return self.norm2(self.conv2(x_NCHW))


class BasicBlock(TwoConvolutions, ResidualBlock):
    """The block of the CIFAR ResNets: relu(branch(x) + shortcut(x))."""

    def __init__(self, at: Place) -> None:
        super().__init__(at)
        self.shortcut = at.shortcut(at, at.channels)
        self.relu_out = nn.ReLU()


class PreActivationBlock(TwoConvolutions, ResidualBlock):
    """shortcut(x) + branch(x), with the branch relu, conv, norm, relu, conv, norm.

    Nothing follows the sum, and the branch ends with the norm whose gamma scales it: at gamma 0
    the block is its shortcut, elsewhere the variance of the branch is gamma^2. This is not the
    full pre-activation of He et al. 2016, arXiv:1603.05027 (norm, relu, conv, norm, relu, conv),
    whose branch ends with a convolution.
    """

    activated = False

    def __init__(self, at: Place) -> None:
        super().__init__(at)
        self.relu_in = nn.ReLU()
        self.shortcut = at.shortcut(at, at.channels)

    def branch(self, x_NCHW: Tensor) -> Tensor:
        return super().branch(self.relu_in(x_NCHW))

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.branch(x_NCHW) + self.shortcut(x_NCHW)


class PlainBlock(TwoConvolutions):
    """The layers of `BasicBlock` without its shortcut: no residual block."""

    activated = True
    ends_in_relu = True

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.relu_out(self.branch(x_NCHW))


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions. The 3x3 has the stride, as in torchvision; He et al. put it
    on the first 1x1, which reads only a quarter of its input."""

    expansion = 4
    last_norm = "norm3"

    def __init__(self, at: Place) -> None:
        super().__init__()
        out_channels = at.channels * self.expansion
        self.conv1 = conv(at.in_channels, at.channels, 1)
        self.norm1, self.relu1 = norm_relu(at.norm, at.channels)
        self.conv2 = conv(at.channels, at.channels, 3, at.stride)
        self.norm2, self.relu2 = norm_relu(at.norm, at.channels)
        self.conv3 = conv(at.channels, out_channels, 1)
        self.norm3 = norm_without_relu(at.norm, out_channels)
        self.shortcut = at.shortcut(at, out_channels)
        self.relu_out = nn.ReLU()

    def branch(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.relu1(self.norm1(self.conv1(x_NCHW)))
        x_NCHW = self.relu2(self.norm2(self.conv2(x_NCHW)))
        return self.norm3(self.conv3(x_NCHW))
