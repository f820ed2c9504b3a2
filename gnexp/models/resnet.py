"""Residual networks for small images, with the norm passed in as a callable.

Each network is an `nn.Sequential` of named modules (conv1, norm1, relu, stage1, ..., pool, flatten,
fc), each stage one of blocks: every operation that depends on the number of channels is a module,
so that a network can be transformed by walking its tree. Nothing is done in place, because hooks
that collect per-example gradients fail on it.

Shapes: N examples, C channels (D after a stage's first block), H and W pixels.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NormFactory = Callable[[int], nn.Module]


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False
    )


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


def padded_shortcut(
    in_channels: int, out_channels: int, stride: int, norm: NormFactory
) -> nn.Module:
    """Return the parameter-free shortcut of the CIFAR ResNets."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return PaddedShortcut(in_channels, out_channels, stride)


def projection_shortcut(
    in_channels: int, out_channels: int, stride: int, norm: NormFactory
) -> nn.Module:
    """Return the shortcut of the ImageNet ResNets: conv 1x1 and norm where the shape changes."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    conv = _conv(in_channels, out_channels, 1, stride)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm(out_channels)))


class ResidualBlock(nn.Module):
    """relu(branch(x) + shortcut(x)). Subclasses state `expansion` and `last_norm`."""

    expansion: int  # output channels of the block over its `channels`
    last_norm: str  # the attribute whose gamma scales the whole branch
    shortcut: nn.Module

    def branch(self, x_NCHW: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.relu_out(self.branch(x_NCHW) + self.shortcut(x_NCHW))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions, the first with the stride."""

    expansion = 1
    last_norm = "norm2"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: NormFactory,
        shortcut: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = _conv(in_channels, channels, 3, stride)
        self.norm1 = norm(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 3)
        self.norm2 = norm(channels)
        self.shortcut = shortcut(in_channels, channels, stride, norm)
        self.relu_out = nn.ReLU()

    def branch(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.relu1(self.norm1(self.conv1(x_NCHW)))
        return self.norm2(self.conv2(x_NCHW))


class Bottleneck(ResidualBlock):
    """1x1, 3x3, 1x1 convolutions. The 3x3 has the stride, as in torchvision; He et al. put it
    on the first 1x1, which reads only a quarter of its input."""

    expansion = 4
    last_norm = "norm3"

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        norm: NormFactory,
        shortcut: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = _conv(in_channels, channels, 1)
        self.norm1 = norm(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(channels, channels, 3, stride)
        self.norm2 = norm(channels)
        self.relu2 = nn.ReLU()
        self.conv3 = _conv(channels, out_channels, 1)
        self.norm3 = norm(out_channels)
        self.shortcut = shortcut(in_channels, out_channels, stride, norm)
        self.relu_out = nn.ReLU()

    def branch(self, x_NCHW: Tensor) -> Tensor:
        x_NCHW = self.relu1(self.norm1(self.conv1(x_NCHW)))
        x_NCHW = self.relu2(self.norm2(self.conv2(x_NCHW)))
        return self.norm3(self.conv3(x_NCHW))


def _named(norm: NormFactory, layer: str) -> NormFactory:
    """Return `norm` with the place in the network put before what it refuses."""

    def build(num_channels: int) -> nn.Module:
        try:
            return norm(num_channels)
        except ValueError as error:
            raise ValueError(f"{layer}: {error}") from error

    return build


def _resnet(
    norm: NormFactory,
    num_classes: int,
    width: int,
    in_channels: int,
    blocks_per_stage: Sequence[int],
    block: type[ResidualBlock],
    shortcut: Callable[..., nn.Module],
) -> nn.Sequential:
    """Stack stem, stages and classifier; each stage after the first doubles channels and stride."""
    for key, value in (("width", width), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{key}={value} must be at least 1")
    net = OrderedDict(
        conv1=_conv(in_channels, width, 3), norm1=_named(norm, "norm1")(width), relu=nn.ReLU()
    )
    channels_in = width
    for i, depth in enumerate(blocks_per_stage):
        stage = nn.Sequential()
        for j in range(depth):
            stride = 2 if i > 0 and j == 0 else 1
            layer_norm = _named(norm, f"stage{i + 1}.{j}")
            stage.append(block(channels_in, width * 2**i, stride, layer_norm, shortcut))
            channels_in = width * 2**i * block.expansion
        net[f"stage{i + 1}"] = stage
    net["pool"] = nn.AdaptiveAvgPool2d(1)
    net["flatten"] = nn.Flatten()
    net["fc"] = nn.Linear(channels_in, num_classes)
    return nn.Sequential(net)


def cifar_resnet(
    depth: int, norm: NormFactory, num_classes: int = 10, width: int = 16, in_channels: int = 3
) -> nn.Sequential:
    """Return the CIFAR ResNet of `depth` = 6n+2: (N, in_channels, H, W) -> logits (N, classes).

    Three stages of n basic blocks with width, 2 width, 4 width channels and parameter-free
    shortcuts. Any H, W >= 8. Weights come from torch's global generator; see `initialize`.
    Raises ValueError for another depth. Source: He et al. 2015, arXiv:1512.03385.
    """
    n = (depth - 2) // 6
    if n < 1 or depth != 6 * n + 2:
        nearest = 6 * max(1, round((depth - 2) / 6)) + 2
        raise ValueError(f"depth={depth} must be 6n+2 with n >= 1; nearest: {nearest}")
    return _resnet(norm, num_classes, width, in_channels, [n] * 3, BasicBlock, padded_shortcut)


_IMAGENET_STAGES: dict[int, tuple[list[int], type[ResidualBlock]]] = {
    18: ([2, 2, 2, 2], BasicBlock),
    34: ([3, 4, 6, 3], BasicBlock),
    50: ([3, 4, 6, 3], Bottleneck),
}


def imagenet_resnet_cifar_stem(
    depth: int, norm: NormFactory, num_classes: int = 10, width: int = 64
) -> nn.Sequential:
    """Return ResNet-18, -34 or -50 for small images: (N, 3, H, W) -> logits (N, classes).

    The stem is one 3x3 convolution of stride 1, without max-pooling, so 32x32 images reach the
    last stage as 4x4 maps. Any H, W >= 8. Weights come from torch's global generator; see
    `initialize`. Raises ValueError for another depth. Stages: He et al. 2015, arXiv:1512.03385.
    """
    if depth not in _IMAGENET_STAGES:
        valid = ", ".join(map(str, _IMAGENET_STAGES))
        raise ValueError(f"depth={depth} is not a known ImageNet ResNet; valid: {valid}")
    blocks, block = _IMAGENET_STAGES[depth]
    return _resnet(norm, num_classes, width, 3, blocks, block, projection_shortcut)


@dataclass(frozen=True)
class Model:
    """One entry of the table: build(norm, num_classes=..., width=...) and the default width."""

    build: Callable[..., nn.Sequential]
    width: int


MODELS: dict[str, Model] = {
    "tiny": Model(partial(cifar_resnet, 8), width=32),
    **{f"resnet{d}": Model(partial(cifar_resnet, d), width=16) for d in (8, 20, 32, 44, 56, 110)},
    **{
        f"resnet{d}": Model(partial(imagenet_resnet_cifar_stem, d), width=64)
        for d in _IMAGENET_STAGES
    },
}


def build_model(
    name: str, norm: NormFactory, num_classes: int, width: int | None = None
) -> nn.Sequential:
    """Return model `name` of the table for 3-channel images, with its own width if None.

    Raises ValueError for an unknown name, naming the nearest, and for what the norm refuses,
    naming the layer.
    """
    if name not in MODELS:
        nearest = get_close_matches(str(name).lower(), MODELS, n=1, cutoff=0.0)[0]
        raise ValueError(f"model={name} is unknown; nearest: {nearest}; valid: {', '.join(MODELS)}")
    entry = MODELS[name]
    width = entry.width if width is None else width
    return entry.build(norm, num_classes=num_classes, width=width)


def zero_last_gamma(model: nn.Module) -> list[str]:
    """Set the last gamma of each residual branch to zero; return the parameters' names.

    Each block then starts as relu(shortcut(x)). The norm of a projection shortcut keeps its
    gamma. Raises ValueError, before anything is changed, when there is no residual block or
    when a block's last norm has no `weight`.
    """
    gammas: dict[str, Tensor] = {}
    for name, block in model.named_modules():
        if not isinstance(block, ResidualBlock):
            continue
        layer = f"{name}.{block.last_norm}".lstrip(".")
        norm = block.get_submodule(block.last_norm)
        gamma = getattr(norm, "weight", None)
        if gamma is None:
            raise ValueError(
                f"zero_gamma=true needs a norm with a weight, and {layer} ({type(norm).__name__}) "
                "has none; use zero_gamma=false"
            )
        gammas[f"{layer}.weight"] = gamma
    if not gammas:
        raise ValueError("zero_gamma=true needs a model with residual blocks; use zero_gamma=false")
    with torch.no_grad():
        for gamma in gammas.values():
            gamma.zero_()
    return list(gammas)


def initialize(model: nn.Module, generator: torch.Generator) -> None:
    """Draw all convolution and linear weights anew, from `generator` alone, in module order.

    Convolutions: normal with variance 2 / fan_out, biases 0. Linear: weight and bias uniform in
    +-1/sqrt(fan_in), PyTorch's default. Other modules, norms among them, stay as built. Drawn in
    float32 on the generator's device, so that the same seed gives the same weights everywhere.
    Source: He et al. 2015, arXiv:1502.01852.
    """

    at = {"generator": generator, "device": generator.device, "dtype": torch.float32}

    def uniform(parameter: Tensor, bound: float) -> None:
        parameter.copy_(bound * (2 * torch.rand(parameter.shape, **at) - 1))

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * math.prod(module.kernel_size)
                module.weight.copy_(math.sqrt(2 / fan_out) * torch.randn(module.weight.shape, **at))
                if module.bias is not None:
                    module.bias.zero_()
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                uniform(module.weight, bound)
                if module.bias is not None:
                    uniform(module.bias, bound)
