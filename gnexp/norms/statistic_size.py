"""The number of values that each normalization layer of a model averages over.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from gnexp.norms.base import ReplicatedNorm

# By exact type: a subclass may pool over other axes, so it counts as unknown.
STOCK_POOLS: dict[type[nn.Module], str] = {
    nn.BatchNorm2d: "nhw",
    nn.GroupNorm: "chw",
    nn.InstanceNorm2d: "hw",
}


def stock_pools(module: nn.Module) -> str | None:
    """Return the axes that share a statistic in a layer of the table; None for any other module."""
    if isinstance(module, ReplicatedNorm):
        return module.pools
    return STOCK_POOLS.get(type(module))


class Undefined(ValueError):
    """A norm is not defined at this batch and image size; with others it may be."""


class StatisticSize(NamedTuple):
    """One call of one norm layer: its name, values per statistic, and number of channels."""

    layer: str
    values: int
    channels: int


def values_per_statistic(
    model: nn.Module,
    input_shape: tuple[int, ...],
    batch: int,
) -> list[StatisticSize]:
    """Return, in order of execution, how many values share one statistic in each norm layer.

    input_shape: one example without the batch axis, (C, H, W). batch: the N to count for.
    Modules whose pooled axes are not known (see `stock_pools`), or that have none, are left out.
    Where c is pooled, a layer's `num_groups` divides it.

    A size of 1 means that training cannot work: BN raises, GN outputs beta whatever it is given.
    Weights, buffers, training flags and random state are left as they were.
    """
    first = next(model.parameters(), torch.empty(0))
    # Two examples, whatever `batch` is: PyTorch refuses one value per channel even in evaluation
    # for some norms, and the sizes asked about are exactly such. N is scaled back below.
    x_NCHW = torch.zeros(2, *input_shape, device=first.device, dtype=first.dtype)
    sizes: list[StatisticSize] = []

    def recorder(layer: str, pools: str) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            axis = dict(zip("nchw", args[0].shape))
            channels = axis["c"]
            examples = axis["n"] * batch // 2
            axis["n"] = min(examples, getattr(module, "ghost_batch", examples))
            axis["c"] = channels // getattr(module, "num_groups", 1)
            sizes.append(StatisticSize(layer, math.prod(axis.get(a, 1) for a in pools), channels))

        return record

    with evaluating(model), torch.no_grad():
        handles = [
            module.register_forward_pre_hook(recorder(name, pools))
            for name, module in model.named_modules()
            if (pools := stock_pools(module))
        ]
        try:
            model(x_NCHW)
        finally:
            for handle in handles:
                handle.remove()
    return sizes


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode; afterwards give each module its own flag back."""
    # model.train(was_training) would not do: a user may have frozen some layers.
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag
