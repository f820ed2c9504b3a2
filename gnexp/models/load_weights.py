"""Stored weights into a model whose norms, or whose classes, may be others.

Norm layers of the same name share gamma and beta whatever they pool; what else a norm keeps is
taken where both have it. Everything else must fit exactly.
"""

import dataclasses
from collections import Counter
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
    kinds: Counter[str] = Counter()
    layers: dict[str, set[str]] = {}
    for name in names:
        layer, _, kind = name.rpartition(".")
        if kind != COUNTS:
            kind = "running statistics" if kind in _STATISTICS else kind
            layers.setdefault(kind, set()).add(layer)
    kinds.update({kind: len(of) for kind, of in layers.items()})
    return [f"{kind} of {count} layer{'s' * (count > 1)}" for kind, count in kinds.items()]


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
    within = tuple(f"{layer}." for layer in norm_layers)
    classifier = _other_classes(model, own, stored, source, num_classes)
    _refuse_shapes(own, stored, {n: s for n, s in source.items() if n not in classifier})
    missing = [name for name in own if name not in source and name not in classifier]
    used = set(source.values())
    left = [name for name in stored if name not in used]
    _refuse("lack", [name for name in missing if not name.startswith(within)])
    _refuse("hold beside what this model has", [n for n in left if not n.startswith(within)])
    loaded = [name for name in own if name in source and name not in classifier]
    with torch.no_grad():
        for name in loaded:
            own[name].copy_(stored[source[name]])
    return Transfer(tuple(loaded), tuple(missing), tuple(left), tuple(classifier))


def _matched(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the stored name of each of the model's tensors that is stored."""
    source = {name: name for name in own if name in stored}
    unused = {_without_wrapper(name): name for name in stored if name not in own}
    for name in own:
        if name not in source and _without_wrapper(name) in unused:
            source[name] = unused.pop(_without_wrapper(name))
    return source


def _without_wrapper(name: str) -> str:
    return name.replace(".norm.", ".")


def _other_classes(
    model: nn.Module,
    own: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    source: Mapping[str, str],
    num_classes: int,
) -> list[str]:
    """Return the names of the tensors of linear layers that were stored for other classes."""
    found = []
    for layer, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module.out_features != num_classes:
            continue
        names = [n for n in (f"{layer}.weight", f"{layer}.bias") if n in own and n in source]
        other = [stored[source[n]] for n in names if stored[source[n]].shape != own[n].shape]
        like = all(stored[source[n]].shape[1:] == own[n].shape[1:] for n in names)
        if other and like:
            found += names
    return found


def _refuse_shapes(
    own: Mapping[str, Tensor], stored: Mapping[str, Tensor], source: Mapping[str, str]
) -> None:
    for name, other in source.items():
        its, mine = tuple(stored[other].shape), tuple(own[name].shape)
        if its != mine:
            raise ValueError(
                f"the stored {other} has shape {its}, and {mine} in this model; choose the model="
                " (and model.width=) that the weights are of"
            )


def _refuse(what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ValueError(
            f"the stored weights {what}: {', '.join(names[:_NAMED])}{more}; choose the model= that"
            " they are of"
        )
