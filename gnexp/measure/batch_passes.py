"""Test images evaluated in batches of given images, by running statistics or each batch's own.

Shapes: N images, C channels, H, W pixels, K classes, M batches of B images, m of one pass.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.measure.precise_bn import running_layers
from gnexp.norms.module_state import copied
from gnexp.training.precision import autocast
from gnexp.training.stack import Stack, why_not_stackable

Passes = Callable[[Tensor], Tensor]  # index_MB -> logits (M, B, K) in float64


def batch_passes(
    model: nn.Module,
    images: DeviceDataset,
    precision: str,
    *,
    own_statistics: bool = False,
    most: int = 0,
) -> Passes:
    """Return a function that evaluates batches of test images.

    own_statistics: layers with running statistics are in training mode, so that they normalize by
    the batch, and update nothing; all others in evaluation mode. most: images in a pass of several
    batches, each with its own statistics, where the model stacks; else they pass one after the
    other. Changes the model's mode; see `preserve_state`.
    """
    dtype, device = next(model.parameters()).dtype, images.x_test.device
    shared = batches_together(model, images.x_test.shape[1:]) if own_statistics and most else None
    layers = list(running_layers(model.eval()).values()) if own_statistics else []
    for layer in layers:
        layer.train()
    buffers = [(layer, *item) for layer in layers for item in layer._buffers.items()]
    kept = [(layer, name, b, b.clone()) for layer, name, b in buffers if b is not None]

    def passes(index_MB: Tensor) -> Tensor:
        parts = []
        together = max(1, most // index_MB.shape[1]) if shared else 1
        for index_mB in index_MB.to(device).split(together):
            order_Bm = index_mB.T  # image n of a pass belongs to batch n % m
            if shared:
                shared.net.set_chunks(len(index_mB))
            x_NCHW = normalize(images.x_test[order_Bm.flatten()], images.mean, images.std, dtype)
            with autocast(device, precision):
                logits_NK = (shared or model)(x_NCHW)
            parts.append(logits_NK.unflatten(0, order_Bm.shape).transpose(0, 1))
            # A layer may use its running statistics in training mode too; it shall find the same.
            for layer, name, buffer, value in kept if not shared else ():
                layer._buffers[name] = buffer.copy_(value)
        return torch.cat(parts).double()

    return passes


class _OneByOne(nn.Module):
    """A stack of one model, called as the model is: (N, C, H, W) -> (N, K)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.net = Stack([model])

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return self.net(x_NCHW[:, None])[:, 0]


def batches_together(model: nn.Module, shape: Sequence[int]) -> _OneByOne | None:
    """Return the model as a stack whose passes may hold several batches; None if it takes none."""
    trial = copied(model)
    for layer in trial.modules():
        # A cumulative average would have to follow the batches one by one; here none is wanted.
        if type(layer) is nn.BatchNorm2d:
            layer.momentum = 0.0
    with torch.enable_grad():  # the check compares gradients too
        refused = why_not_stackable([copied(trial).cpu()], shape, chunks=2)
    if refused:
        return None
    one_by_one = _OneByOne(trial).eval()
    for layer in one_by_one.modules():
        # Those of a stack that tell batches apart, which they do in training mode. What a mapped
        # module holds stays in evaluation mode: having no buffers, it has no running statistics.
        if hasattr(layer, "chunks"):
            layer.training = True
    return one_by_one
