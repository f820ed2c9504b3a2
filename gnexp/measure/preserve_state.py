"""Measure a model without leaving a trace in it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Put back, bit by bit and also after an exception, all that a forward pass may change.

    That is: weights, buffers (BN's running statistics and its counter), `.grad`, requires_grad,
    each module's training flag, and PyTorch's global random state on the CPU and on the CUDA
    devices the model lies on.
    """
    tensors = [*model.parameters(), *model.buffers()]
    devices = sorted({t.device.index for t in tensors if t.device.type == "cuda"})
    modules = [_saved_module(module) for module in model.modules()]
    # A tied parameter is met once per owner; restoring it twice does no harm.
    parameters = [(p, p.requires_grad, _saved_tensor(p.grad)) for p in model.parameters()]
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for module in modules:
                    _restore_module(*module)
                for parameter, requires_grad, (grad, grad_copy) in parameters:
                    parameter.requires_grad_(requires_grad)
                    _restore_tensor(grad, grad_copy)
                    parameter.grad = grad


def _saved_tensor(tensor: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return tensor, None if tensor is None else tensor.detach().clone()


def _saved_module(module: nn.Module) -> tuple:
    # The objects as well as their values: a forward pass may update a buffer in place or rebind it.
    parameters = {name: _saved_tensor(p) for name, p in module._parameters.items()}
    buffers = {name: _saved_tensor(b) for name, b in module._buffers.items()}
    return module, module.training, parameters, buffers


def _restore_module(module: nn.Module, training: bool, parameters: dict, buffers: dict) -> None:
    module.training = training
    for owner, saved in ((module._parameters, parameters), (module._buffers, buffers)):
        for name, (tensor, copy) in saved.items():
            _restore_tensor(tensor, copy)
            owner[name] = tensor


def _restore_tensor(tensor: torch.Tensor | None, copy: torch.Tensor | None) -> None:
    if tensor is not None and copy is not None:
        tensor.copy_(copy)
