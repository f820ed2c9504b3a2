"""Sums over the processes that train one model together, for statistics of all their examples.

They are asked for by a context, not by the layer: outside of it a sum is that of this process
alone, so one process may evaluate or measure while the others are busy elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, distributed

_GROUP: ContextVar[distributed.ProcessGroup | None] = ContextVar("group", default=None)


@contextmanager
def synchronized(group: distributed.ProcessGroup | None = None) -> Iterator[None]:
    """Sum statistics over all processes of `group`, by default all there are, within the context.

    Every process of the group must then pass forward and backward through the same layers, each
    with one example or more; their numbers may differ.
    """
    token = _GROUP.set(distributed.group.WORLD if group is None else group)
    try:
        yield
    finally:
        _GROUP.reset(token)


def group_size() -> int:
    """Return over how many processes `all_sum` sums: 1 outside `synchronized`."""
    group = _GROUP.get()
    return 1 if group is None else distributed.get_world_size(group)


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes of `synchronized`, the tensor itself outside.

    Differentiable: the slope of what all processes minimize together, the sum of their losses.
    """
    group = _GROUP.get()
    return tensor if group is None else _AllSum.apply(tensor, group)


class _AllSum(torch.autograd.Function):
    """Each process's value enters the sum in every process, so gradients are summed likewise."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: distributed.ProcessGroup) -> Tensor:
        ctx.group = group  # backward passes on CUDA run in a thread without the context
        return _summed(tensor, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _summed(gradient, ctx.group), None


def _summed(tensor: Tensor, group: distributed.ProcessGroup) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total, group=group)
    return total
