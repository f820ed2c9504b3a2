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

_SUMMED: ContextVar[bool] = ContextVar("summed", default=False)


@contextmanager
def synchronized() -> Iterator[None]:
    """Sum statistics over all processes of the default group within the context.

    Every process of the group must then pass forward and backward through the same layers, each
    with one example or more; their numbers may differ.
    """
    token = _SUMMED.set(True)
    try:
        yield
    finally:
        _SUMMED.reset(token)


def group_size() -> int:
    """Return over how many processes `all_sum` sums: 1 outside `synchronized`."""
    return distributed.get_world_size() if _SUMMED.get() else 1


def all_sum(tensor: Tensor) -> Tensor:
    """Return the sum of a tensor over the processes of `synchronized`, the tensor itself outside.

    Differentiable: the slope of what all processes minimize together, the sum of their losses.
    """
    return _AllSum.apply(tensor) if _SUMMED.get() else tensor


class _AllSum(torch.autograd.Function):
    """Each process's value enters the sum in every process, so gradients are summed likewise.

    Backward passes on CUDA run in a thread without the context, so they do not ask for it.
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _summed(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(tensor: Tensor) -> Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
