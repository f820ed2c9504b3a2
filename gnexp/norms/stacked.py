"""Stacked forms of the normalization layers: R replicas of a layer as one, on R * C channels.

Shapes: N examples, R replicas, C channels of one replica, K chunks of an update, H and W pixels.
A stacked tensor holds the channels of replica 0, then those of replica 1, and so on.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gnexp.norms.layers import batch_norm_of_parts

_MAY_LACK = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


def join(target: nn.Module, layers: Sequence[nn.Module]) -> nn.Module:
    """Fill `target`, a layer on R * C channels, with the tensors of R layers on C; return it.

    Tensors per channel are put one after the other; one that has no channels (BN's counter) is
    that of the first layer. Gamma and beta that the layers lack, `target` then lacks too.
    """
    for key in held_constant(layers[0]):
        hold_constant(target, key)
    states = [layer.state_dict() for layer in layers]
    like = next((t for t in states[0].values() if t.is_floating_point()), None)
    target = target.train(layers[0].training).to(like)
    with torch.no_grad():
        for name, tensor in target.state_dict().items():
            parts = [state[name] for state in states]
            tensor.copy_(torch.cat(parts) if tensor.ndim else parts[0])
    return target


class ChunkedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose examples fall into `chunks` batches, each with statistics of its own.

    (N, C, H, W) -> (N, C, H, W). Example n belongs to chunk n % chunks, so that a chunk is a slice
    with a stride and, in a contiguous tensor, folding the chunks into the channels moves no memory.
    The running statistics become what passing chunk after chunk would have made of them.
    """

    chunks = 1

    def forward(self, x_NCHW: Tensor) -> Tensor:
        if self.chunks == 1 or not self.training:
            return super().forward(x_NCHW)
        x_GDHW = x_NCHW.unflatten(0, (-1, self.chunks)).flatten(1, 2)
        if self.track_running_stats:
            self.num_batches_tracked.add_(self.chunks)
        return batch_norm_of_parts(self, x_GDHW, self.chunks).reshape(x_NCHW.shape)


def stack_batch_norm(layers: Sequence[nn.BatchNorm2d]) -> nn.Module:
    """Return batch norm over R * C channels: channels never share a statistic."""
    one = layers[0]
    # A cumulative average (momentum None) depends on a counter that lives on the device.
    kind = nn.BatchNorm2d if one.momentum is None else ChunkedBatchNorm2d
    joined = kind(
        len(layers) * one.num_features,
        eps=one.eps,
        momentum=one.momentum,
        track_running_stats=one.track_running_stats,
    )
    return join(joined, layers)


def stack_group_norm(layers: Sequence[nn.GroupNorm]) -> nn.Module:
    """Return group norm with R * G groups: groups are consecutive channels, as replicas are."""
    one, count = layers[0], len(layers)
    joined = nn.GroupNorm(count * one.num_groups, count * one.num_channels, eps=one.eps)
    return join(joined, layers)


def hold_constant(layer: nn.Module, key: str) -> None:
    """Take a parameter, gamma `weight` or beta `bias`, out of what a layer learns and stores.

    Layers of PyTorch do without it; others compute with its value from then on.
    """
    parameter = layer._parameters.get(key)
    if parameter is None:
        return  # there is none, or a frozen one is a buffer
    del layer._parameters[key]
    if isinstance(layer, _MAY_LACK):
        layer.register_parameter(key, None)
        layer.affine = layer.weight is not None
    else:
        layer.register_buffer(key, parameter.detach(), persistent=False)


def held_constant(layer: nn.Module) -> list[str]:
    """Return which of gamma and beta a layer neither learns nor stores."""
    keys = [key for key in ("weight", "bias") if layer._parameters.get(key) is None]
    stored = layer._buffers.keys() - layer._non_persistent_buffers_set
    return [key for key in keys if key not in stored]
