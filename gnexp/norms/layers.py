"""Builders of the normalization layers: like for like, from stock PyTorch modules.

Every builder returns a module on (N, C, H, W) with `weight` (gamma, ones) and `bias` (beta, zeros),
both (C,), and the same default eps: what differs between two norms is which values share a
statistic, and nothing else.

Shapes: N examples, C channels, H and W pixels; K batches of G examples.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DEFAULT_EPS = 1e-5
DEFAULT_GROUPS = 8  # divides every layer of the 6n+2 ResNets; the paper's 32 need width >= 32
DEFAULT_MOMENTUM = 0.1  # PyTorch's convention: the weight of the new batch, not of the old average
MOMENTUM_EXAMPLES = 128  # over which a momentum counts under momentum_rule=examples


def momentum_of_batch(momentum: float, batch: int) -> float:
    """Return the weight of one batch such that 128 examples together weigh `momentum`.

    1 - (1 - momentum)^(batch / 128): the running statistics then look back over the same number of
    examples at every batch size, while a fixed weight looks back over ever fewer.
    """
    return 1 - (1 - momentum) ** (batch / MOMENTUM_EXAMPLES)


def require_divisor(key: str, value: int, num_channels: int) -> None:
    """Raise ValueError, naming `key` and the valid values, unless `value` divides the channels."""
    if value < 1:
        raise ValueError(f"{key}={value} must be at least 1")
    if num_channels % value:
        valid = ", ".join(str(d) for d in range(1, num_channels + 1) if num_channels % d == 0)
        raise ValueError(f"{key}={value} does not divide {num_channels} channels; valid: {valid}")


def require_positive_eps(eps: float) -> None:
    # A dead channel has variance 0: without eps its output, and then the whole network, is NaN.
    if not eps > 0:
        raise ValueError(f"eps={eps} must be positive; the default is {DEFAULT_EPS:g}")


def require_momentum(momentum: float) -> None:
    """Raise ValueError unless the weight of the newest batch lies in (0, 1]."""
    if not 0 < momentum <= 1:
        raise ValueError(
            f"momentum={momentum} must lie in (0, 1]; the default is {DEFAULT_MOMENTUM}"
        )


def require_several(x_NRCHW: Tensor) -> int:
    """Return N * H * W, the values of a channel; raises ValueError, as BN does, when it is 1."""
    count = x_NRCHW.shape[0] * x_NRCHW.shape[-2] * x_NRCHW.shape[-1]
    if count == 1:
        shape = tuple(x_NRCHW.flatten(1, 2).shape)
        raise ValueError(
            f"Expected more than 1 value per channel when training, got input size {shape}"
        )
    return count


def batch_norm_of_parts(layer: nn.Module, x_GDHW: Tensor, count: int) -> Tensor:
    """Normalize K = `count` batches of G examples in one call, as channels of their own.

    D = K * C: the channels of batch 0, then those of batch 1, and so on. The layer's running
    statistics, if it has any, move past one batch after the other:
    r <- (1 - m) r + m s, applied to s_1 .. s_K, is (1 - m)^K r + m sum (1 - m)^(K-k) s_k.
    """
    # In float32 also under bfloat16, as gamma and beta are: a CPU refuses a mixture.
    followed = layer.running_mean is not None
    wide = torch.promote_types(x_GDHW.dtype, torch.float32)
    kind = layer.running_mean.dtype if followed else wide
    mean_D, var_D = x_GDHW.new_zeros(2, x_GDHW.shape[1], dtype=kind).unbind()
    weight_D, bias_D = (None if t is None else t.repeat(count) for t in (layer.weight, layer.bias))
    # With momentum 1 the "running" statistics are those of the batch: the variance comes out
    # unbiased and without the detour over 1 / sqrt(var + eps), which costs digits. They start at
    # zero, since 0 times what memory held before may be NaN.
    y_GDHW = F.batch_norm(x_GDHW, mean_D, var_D, weight_D, bias_D, True, 1.0, layer.eps)
    if not followed:
        return y_GDHW
    behind = torch.arange(count - 1, -1, -1, device=mean_D.device, dtype=kind)
    weights_K1 = layer.momentum * (1 - layer.momentum) ** behind[:, None]
    with torch.no_grad():
        for running_C, seen_D in ((layer.running_mean, mean_D), (layer.running_var, var_D)):
            # No matrix product: under autocast that would be one in bfloat16.
            seen_C = (weights_K1 * seen_D.view(count, -1)).sum(dim=0)
            running_C.mul_((1 - layer.momentum) ** count).add_(seen_C)
    return y_GDHW


def batch_norm(
    num_channels: int, *, eps: float = DEFAULT_EPS, momentum: float | None = DEFAULT_MOMENTUM
) -> nn.Module:
    """Normalize each channel over the batch and the pixels, N * H * W values per statistic.

    Keeps running statistics for evaluation; `momentum` is the weight of the newest batch in them,
    None averages all batches alike. At N = 1 it trains as instance norm does, as long as
    H * W > 1; PyTorch refuses a single value per channel.
    Source: Ioffe & Szegedy 2015, arXiv:1502.03167.
    """
    require_positive_eps(eps)
    if momentum is not None:
        require_momentum(momentum)
    return nn.BatchNorm2d(num_channels, eps=eps, momentum=momentum)


def group_norm(
    num_channels: int, *, eps: float = DEFAULT_EPS, num_groups: int = DEFAULT_GROUPS
) -> nn.Module:
    """Normalize each example within groups of channels, C/G * H * W values per statistic.

    Groups are consecutive channels; no running state. Raises ValueError when `num_groups` does
    not divide `num_channels`: it never rounds. Source: Wu & He 2018, arXiv:1803.08494.
    """
    require_positive_eps(eps)
    require_divisor("num_groups", num_groups, num_channels)
    return nn.GroupNorm(num_groups, num_channels, eps=eps)


def layer_norm(num_channels: int, *, eps: float = DEFAULT_EPS) -> nn.Module:
    """Normalize each example over channels and pixels, C * H * W values: GN with one group.

    The affine is per channel. `nn.LayerNorm((C, H, W))` has one gamma per value instead, hence
    another parameter count and a fixed image size, and is not what GN's paper compares with.
    Source: Ba et al. 2016, arXiv:1607.06450; as GN(1): Wu & He 2018, arXiv:1803.08494.
    """
    return group_norm(num_channels, num_groups=1, eps=eps)


def instance_norm(num_channels: int, *, eps: float = DEFAULT_EPS) -> nn.Module:
    """Normalize each channel of each example over its pixels, H * W values: GN with C groups.

    The numbers are those of `nn.InstanceNorm2d(affine=True)` (whose default has no affine), from
    the kernel that GN uses, so that speed and autocast treatment are compared alike too.
    Source: Ulyanov et al. 2016, arXiv:1607.08022; as GN(C): Wu & He 2018, arXiv:1803.08494.
    """
    return group_norm(num_channels, num_groups=num_channels, eps=eps)
