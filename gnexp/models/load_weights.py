"""Stored weights into a model whose norms, or whose classes, may be others.

Norm layers of the same name share gamma and beta whatever they pool; what else a norm keeps is
taken where both have it. Everything else must fit exactly.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

COUNTS = "num_batches_tracked"  # which no formula but that of momentum=None reads
_STATISTICS = ("running_mean", "running_var")
_NAMED = 3  # tensors that a sentence about a mistake names


@dataclass(frozen=True)
class Transfer:
    """The outcome of loading stored weights, by the names of tensors.

    loaded: now in the model. fresh: of the model's norm layers, not stored, so as built. dropped:
    stored, of norm layers, not in the model. classifier: as drawn, for another number of classes.
    """

    loaded: tuple[str, ...]
    fresh: tuple[str, ...]
    dropped: tuple[str, ...]
    classifier: tuple[str, ...]

    def record(self) -> dict[str, object]:
        """Return it for a JSON file: the number of tensors loaded, the names of all others."""
        named = {k: list(v) for k, v in dataclasses.asdict(self).items()}
        return {**named, "loaded": len(self.loaded)}

    def sentence(self) -> str:
        """Return it for people, in one line."""
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{what} dropped" for what in _by_kind(self.dropped)]
        parts += [f"{what} not stored, as in a new network" for what in _by_kind(self.fresh)]
        if self.classifier:
            layers = dict.fromkeys(name.rpartition(".")[0] for name in self.classifier)
            parts.append(f"{', '.join(layers)} drawn anew, for another number of classes")
        return "; ".join(parts)


def _by_kind(names: Collection[str]) -> list[str]:
    """Return "running statistics of 7 layers" and the like, one for each kind of tensor."""
    layers: dict[str, set[str]] = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if kind != COUNTS:
            kind = "running statistics" if kind in _STATISTICS else kind
            layers.setdefault(kind, set()).add(layer)
    return [f"{kind} of {len(of)} layer{'s' * (len(of) > 1)}" for kind, of in layers.items()]


def transfer(
    model: nn.Module, stored: Mapping[str, Tensor], norm_layers: Collection[str], num_classes: int
) -> Transfer:
    """Copy stored weights into a newly built model by name and shape; return the outcome.

    norm_layers: the names of the model's norm layers (wrappers included), which alone may lack
    tensors or leave some out. A linear layer of `num_classes` outputs that was stored with another
    number stays as drawn. A wrapper named `norm` around a layer is looked through.

    Raises ValueError, before anything is changed, naming the first tensors that do not fit.
    """
    own = model.state_dict()
    source = _matched(own, stored)
    found = {name: stored[other] for name, other in source.items()}
    within = tuple(f"{layer}." for layer in norm_layers)
    classifier = _other_classes(model, own, found, num_classes)
    loaded = [name for name in own if name in found and name not in classifier]
    for name in loaded:
        its, mine = tuple(found[name].shape), tuple(own[name].shape)
        if its != mine:
            raise ValueError(
                f"the stored {source[name]} has shape {its}, and {mine} in this model; choose the"
                " model= (and model.width=) that the weights are of"
            )
    missing = [name for name in own if name not in {*found, *classifier}]
    left = [name for name in stored if name not in {*source.values()}]
    _refuse("lack", [name for name in missing if not name.startswith(within)])
    _refuse("hold beside what this model has", [n for n in left if not n.startswith(within)])
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(found[name])
    return Transfer(tuple(loaded), tuple(missing), tuple(left), tuple(classifier))


def _matched(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the stored name of each of the model's tensors that is stored."""

    def without_wrapper(name: str) -> str:
        return name.replace(".norm.", ".")

    source = {name: name for name in own if name in stored}
    unused = {without_wrapper(name): name for name in stored if name not in own}
    for name in own:
        if name not in source and without_wrapper(name) in unused:
            source[name] = unused.pop(without_wrapper(name))
    return source


def _other_classes(
    model: nn.Module, own: Mapping[str, Tensor], found: Mapping[str, Tensor], num_classes: int
) -> list[str]:
    """Return the names of the tensors of linear layers that were stored for other classes."""
    names = []
    for layer, module in model.named_modules():
        if isinstance(module, nn.Linear) and module.out_features == num_classes:
            both = [n for n in (f"{layer}.weight", f"{layer}.bias") if n in own and n in found]
            other = any(found[n].shape != own[n].shape for n in both)
            alike = all(found[n].shape[1:] == own[n].shape[1:] for n in both)
            names += both if other and alike else []
    return names


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(
            f"the stored weights {what}: {', '.join(names[:_NAMED])}{more}; choose the model= that"
            " they are of"
        )
