"""The groups of parameters that an instrument reports: all, the four kinds, and each layer."""

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

KINDS = ("gamma", "beta", "conv", "linear")
GAMMA_NAMES = ("weight", "gamma", "scale")
BETA_NAMES = ("bias", "beta", "shift")
WHOLE = "(model)"
TAKEN = ("all", *KINDS, WHOLE)  # rows that no module may hide
LAYER = "layer:"


def parameter_kinds(model: nn.Module) -> dict[str, list[str]]:
    """Names of the trainable parameters of each kind: kind -> names, in model order.

    conv and linear are everything a convolution or `nn.Linear` holds. In any other module a
    per-channel parameter called weight, gamma or scale is gamma, and bias, beta or shift is beta.
    Whatever is left has no kind. Kinds without parameters are left out.
    """
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for module, attribute, name, parameter in _owned(model):
        if isinstance(module, _ConvNd):
            kinds["conv"].append(name)
        elif isinstance(module, nn.Linear):
            kinds["linear"].append(name)
        elif _is_per_channel(parameter) and attribute in GAMMA_NAMES:
            kinds["gamma"].append(name)
        elif _is_per_channel(parameter) and attribute in BETA_NAMES:
            kinds["beta"].append(name)
    return {kind: names for kind, names in kinds.items() if names}


def reported_groups(model: nn.Module) -> dict[str, list[str]]:
    """Rows of every table of gradients: "all", the kinds the model has, its layers; in that order.

    A layer's row has the trainable parameters that it holds itself; those outside any submodule
    appear under "(model)". A layer whose name another row has, as "conv", or that begins with
    "layer:" itself, appears as "layer:NAME". Raises ValueError when the model has no trainable
    parameter.
    """
    layers: dict[str, list[str]] = {}
    for _, attribute, name, _ in _owned(model):
        layer = name.removesuffix(attribute).removesuffix(".")
        hides = layer in TAKEN or layer.startswith(LAYER)
        layers.setdefault(LAYER + layer if hides else layer or WHOLE, []).append(name)
    if not layers:
        raise ValueError("the model has no trainable parameter, so it has no gradient to measure")
    every = [name for names in layers.values() for name in names]
    return {"all": every, **parameter_kinds(model), **layers}


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with requires_grad, by name; one shared by two modules appears once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _owned(model: nn.Module) -> list[tuple[nn.Module, str, str, Tensor]]:
    """(module that holds it, attribute name, full name, parameter) of each trainable parameter."""
    owned = []
    for name, parameter in trainable_parameters(model).items():
        layer, _, attribute = name.rpartition(".")
        owned.append((model.get_submodule(layer), attribute, name, parameter))
    return owned


def _is_per_channel(parameter: Tensor) -> bool:
    # (C,) as PyTorch keeps it, or (1, C, 1, 1) as people write their own norms.
    return parameter.ndim >= 1 and sum(size > 1 for size in parameter.shape) <= 1
