"""Measure a model without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put back, bit by bit and also after an exception, all that a forward pass may change.

    That is: weights, buffers (BN's running statistics and its counter), `.grad`, requires_grad,
    each module's training flag, and PyTorch's global random state on the CPU and on the CUDA
    devices the model lies on.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    modes = [(module, module.training) for module in model.modules()]
    # The objects as well as their values: a forward pass may update a buffer in place or rebind it.
    # A tied parameter is met once per owner; restoring it twice does no harm.
    owners = [owner for module, _ in modes for owner in (module._parameters, module._buffers)]
    kept = [(owner, name, *_kept(t)) for owner in owners for name, t in owner.items()]
    grads = [(p, p.requires_grad, *_kept(p.grad)) for p in model.parameters()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, training in modes:
                    module.training = training
                for owner, name, tensor, copy in kept:
                    owner[name] = tensor if tensor is None else tensor.copy_(copy)
                for parameter, requires_grad, grad, copy in grads:
                    parameter.requires_grad_(requires_grad)
                    parameter.grad = grad if grad is None else grad.copy_(copy)


def _kept(tensor: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return tensor, None if tensor is None else tensor.detach().clone()
