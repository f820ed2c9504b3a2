"""Residual networks for small images, and plain ones, with the norm passed in as a callable.

Each network is an `nn.Sequential` of named modules (conv1, norm1, relu, stage1, ..., pool, flatten,
fc; with pre-activation norm_out and relu_out before pool instead of relu), each stage one of
blocks. Every operation that depends on the number of channels is a module, and nothing is done in
place: see `blocks`.

Shapes: N examples, H and W pixels.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gnexp.config.unknown import unknown
from gnexp.models.blocks import (
    BasicBlock,
    Bottleneck,
    NormFactory,
    Place,
    PlainBlock,
    PreActivationBlock,
    ResidualBlock,
    conv,
    norm_relu,
    norm_without_relu,
    outside,
    padded_shortcut,
    projection_shortcut,
)

Block = type[ResidualBlock] | type[PlainBlock]


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
    blocks_per_stage: Sequence[int],
    block: Block,
    shortcut: Callable[[Place, int], nn.Module],
) -> nn.Sequential:
    """Stack stem, stages and classifier; each stage after the first doubles channels and stride."""
    for key, value in (("width", width), ("num_classes", num_classes)):
        if value < 1:
            raise ValueError(f"{key}={value} must be at least 1")
    net = OrderedDict(conv1=conv(3, width, 3))
    if block.activated:
        net["norm1"], net["relu"] = norm_relu(_named(norm, "norm1"), width)
    else:  # each block's branch starts with a ReLU
        net["norm1"] = norm_without_relu(_named(norm, "norm1"), width)
    channels_in = width
    for i, depth in enumerate(blocks_per_stage):
        stage = net[f"stage{i + 1}"] = nn.Sequential()
        for j in range(depth):
            stride, layer_norm = 2 if i > 0 and j == 0 else 1, _named(norm, f"stage{i + 1}.{j}")
            stage.append(block(Place(channels_in, width * 2**i, stride, layer_norm, shortcut)))
            channels_in = width * 2**i * block.expansion
    if not block.activated:
        net["norm_out"], net["relu_out"] = norm_relu(_named(norm, "norm_out"), channels_in)
    net["pool"] = nn.AdaptiveAvgPool2d(1)
    net["flatten"] = nn.Flatten()
    net["fc"] = nn.Linear(channels_in, num_classes)
    return nn.Sequential(net)


def cifar_resnet(
    depth: int,
    norm: NormFactory,
    num_classes: int = 10,
    width: int = 16,
    block: Block = BasicBlock,
) -> nn.Sequential:
    """Return the CIFAR ResNet of `depth` = 6n+2: (N, 3, H, W) -> logits (N, classes).

    Three stages of n blocks with width, 2 width, 4 width channels and parameter-free shortcuts.
    `block`: BasicBlock; PreActivationBlock, with a norm and a ReLU before pooling; or PlainBlock,
    the plain network of the same layers. Any H, W >= 8. Weights come from torch's global
    generator; see `initialize`.
    Source: He et al. 2015, arXiv:1512.03385.
    """
    blocks = [(depth - 2) // 6] * 3
    return _resnet(norm, num_classes, width, blocks, block, padded_shortcut)


_IMAGENET_STAGES: dict[int, tuple[list[int], Block]] = {
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
    `initialize`. Stages: He et al. 2015, arXiv:1512.03385.
    """
    blocks, block = _IMAGENET_STAGES[depth]
    return _resnet(norm, num_classes, width, blocks, block, projection_shortcut)


# Called as build(norm, num_classes=..., width=...); each holds its own width.
MODELS: dict[str, Callable[..., nn.Sequential]] = {
    "tiny": partial(cifar_resnet, 8, width=32),
    **{f"resnet{d}": partial(cifar_resnet, d) for d in (8, 20, 32, 44, 56, 110)},
    **{f"resnet{d}": partial(imagenet_resnet_cifar_stem, d) for d in _IMAGENET_STAGES},
    **{
        f"{family}{d}": partial(cifar_resnet, d, block=block)
        for family, block in (("preresnet", PreActivationBlock), ("plain", PlainBlock))
        for d in (8, 20, 56, 110)
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
        raise ValueError(unknown(f"model={name} is unknown", name, MODELS))
    typed = {} if width is None else {"width": width}
    return MODELS[name](norm, num_classes=num_classes, **typed)


def stages_of(model: nn.Sequential) -> list[nn.Sequential]:
    """Return the stages of a network of the table, each a sequence of blocks."""
    return [child for name, child in model.named_children() if name.startswith("stage")]


def zero_last_gamma(model: nn.Module) -> list[str]:
    """Set the last gamma of each residual branch to zero; return the parameters' names.

    Each block then starts as relu(shortcut(x)), with pre-activation as shortcut(x). The norm of a
    projection shortcut keeps its gamma. Raises ValueError, before anything is changed, when there
    is no residual block or when a block's last norm has no `weight`.
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


def initialize(model: nn.Module, generator: torch.Generator, norms: Collection[str] = ()) -> None:
    """Draw all convolution and linear weights from `generator`, in module order.

    Convolutions: normal with variance 2 / fan_out, biases 0. Linear: weight and bias uniform in
    +-1/sqrt(fan_in), PyTorch's default. Other modules stay as built, and so do the layers named in
    `norms` with all that is in them. Drawn in float32 on the generator's device, so that the same
    seed gives the same weights everywhere.
    Source: He et al. 2015, arXiv:1502.01852.
    """

    at = {"generator": generator, "device": generator.device, "dtype": torch.float32}

    def uniform(parameter: Tensor, bound: float) -> None:
        parameter.copy_(bound * (2 * torch.rand(parameter.shape, **at) - 1))

    with torch.no_grad():
        for _, module in outside(model, norms):
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
