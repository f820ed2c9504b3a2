"""Layers without gamma or beta: what a norm builds with both, in the place of one that has not."""

from torch import nn

_MAY_LACK = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)


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
