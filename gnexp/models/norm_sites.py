"""Where a foreign model has its normalization layers, and which of them another norm can replace.

Shapes: N examples, C channels, T tokens, H and W pixels.
"""

import re
from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gnexp.models.conversion_report import Left
from gnexp.models.norm_sources import FAMILIES, Source, channels_of, left_alone, source_of
from gnexp.models.norm_tracing import Traced, trace
from gnexp.norms.trial import told

TOKENS = "tokens"  # layer norms of (N, T, C), which have no pixels
KINDS = (*FAMILIES, TOKENS)


@dataclass(frozen=True)
class Site:
    """One normalization layer that can be replaced.

    names: its places in the model. layout: "2d" where it takes (N, C, H, W), "first" for other
    (N, C, ...), "last" for (N, ..., C). shape: of an input, None if none was seen. convolution: the
    name of the one whose output it takes, where that is known.
    """

    names: tuple[str, ...]
    old: str
    source: Source
    channels: int
    layout: str
    shape: tuple[int, ...] | None = None
    convolution: str | None = None

    @property
    def name(self) -> str:
        """Its first place."""
        return self.names[0]


@dataclass(frozen=True)
class Found:
    """The layers of a model: those to replace, those left with the reason, what else to know."""

    sites: list[Site]
    left: list[Left]
    notes: list[str]


def find_norms(
    model: nn.Module,
    example: Any = None,
    *,
    only: str | Sequence[str] | None = None,
    leave: Collection[str] = (),
    advice: bool = True,
) -> Found:
    """Return the normalization layers of a model; nothing is changed.

    example: an input, passed through a copy, in both modes: it finds calls of functions that
    normalize, and shows what layer norms act on. only: kinds to replace, of KINDS; by default all
    but "tokens". leave: names of modules that stay with all that is in them, or one. advice:
    whether sentences name only= and leave=, for who can type them. Raises ValueError, naming the
    module, for what may normalize and is not known.
    """
    kinds = _kinds(only)
    leave = _names("leave", leave, "head")
    modules = _by_identity(model)
    _refuse_wrapped(modules)
    unknown = [name for name in leave if name not in {n for names, _ in modules for n in names}]
    if unknown:
        raise ValueError(f"leave={unknown[0]} is not the name of a module of the model")
    known = {}
    notes = []
    for names, module in modules:
        stays = _stays(names, leave)
        try:
            reason = left_alone(module)
            source = None if reason else source_of(module)
        except ValueError as error:
            if stays:
                known[names[0]] = (names, module, None, stays)
                continue
            raise ValueError(
                f"{names[0] or 'the model'} {error}"
                + (f". leave=[{names[0]!r}] leaves it as it is" if advice else "")
            ) from None
        if source or reason or {*names} & {*leave}:
            known[names[0]] = (names, module, None if stays else source, reason or stays)
    _refuse_shared(modules, {names[0] for names, _, source, _ in known.values() if source})
    traced = None
    if example is None:
        notes.append(
            "without example= no forward pass was looked at: functions that normalize would be"
            " missed, and layer norms over the last axis are left"
        )
    else:
        traced = _traced(model, {*known}, example)
        _refuse_strays(traced)
    sites, left = [], []
    for names, module, source, reason in known.values():
        old = type(module).__name__
        found = reason
        if source is not None:
            found = _site(names, module, source, traced, kinds, advice)
        if isinstance(found, str):
            left.append(Left(names[0], old, found))
        else:
            sites.append(found)
    for name in dict.fromkeys(traced.standardized) if traced else ():
        old = type(model.get_submodule(name)).__name__
        left.append(Left(name, old, "it standardizes its weights, not its input"))
    return Found(_replaceable(model, sites, left), left, notes)


def _traced(model: nn.Module, norms: Set[str], example: Any) -> Traced:
    try:
        return trace(model, norms, example)
    except Exception as error:  # whatever the user's forward pass does
        raise ValueError(f"the model does not take the example: {told(error)}") from error


def _names(key: str, value: str | Iterable[str], example: str) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
    if not isinstance(value, Iterable):
        raise ValueError(
            f"{key}={value!r} must be a name, or a list of names such as [{example!r}]"
        )
    return (value,) if isinstance(value, str) else tuple(value)


def _kinds(only: str | Sequence[str] | None) -> tuple[str, ...]:
    if only is None:
        return FAMILIES
    kinds = _names("only", only, KINDS[0])
    for kind in kinds:
        if kind not in KINDS:
            near = get_close_matches(str(kind), KINDS, n=1, cutoff=0.0)[0]
            raise ValueError(f"only={kind} is unknown; nearest: {near}; valid: {', '.join(KINDS)}")
    return kinds


def _by_identity(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Return every module once, with all names it goes by; parametrizations are no layers."""
    names: dict[int, list[str]] = {}
    modules = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in name.split("."):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    return [(tuple(names[key]), module) for key, module in modules.items()]


def _stays(names: tuple[str, ...], leave: Collection[str]) -> str | None:
    """Return why a module stays: it, or what it is in, is named in leave=."""
    if {*names} & {*leave}:
        return "it is named in leave="
    around = (each for each in leave if any(name.startswith(f"{each}.") for name in names))
    return next((f"it is in {each}, which is named in leave=" for each in around), None)


def _refuse_wrapped(modules: list[tuple[tuple[str, ...], nn.Module]]) -> None:
    """Refuse what holds on to the model as it was: its parameters, or its compiled code."""
    for names, module in modules:
        where = names[0] or "the model"
        if isinstance(module, DataParallel | DistributedDataParallel):
            kind = type(module).__name__
            raise ValueError(f"{where} is wrapped in {kind}: convert the model, then wrap it")
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"{where} is compiled: convert the model, then compile it")


def _refuse_shared(modules: list[tuple[tuple[str, ...], nn.Module]], norms: Set[str]) -> None:
    """Refuse norms whose gamma or beta is another module's too: the new ones would not be."""
    owners: dict[int, str] = {}
    for names, module in modules:
        for key, parameter in module.named_parameters(recurse=False):
            other = owners.setdefault(id(parameter), names[0])
            if other != names[0] and norms & {other, names[0]}:
                raise ValueError(
                    f"{names[0]} and {other} share their {key}, which another norm would not;"
                    " give each its own"
                )


def _refuse_strays(traced: Traced) -> None:
    if traced.strays:
        name, called = traced.strays[0]
        raise ValueError(
            f"{name or 'the model'} normalizes by a call of {called} in its forward pass, which no"
            f" layer can replace; make it a layer, such as torch.nn.BatchNorm2d"
        )


def _site(
    names: tuple[str, ...],
    module: nn.Module,
    source: Source,
    traced: Traced | None,
    kinds: tuple[str, ...],
    advice: bool,
) -> Site | str:
    """Return a layer that can be replaced, or why it is left."""
    channels = channels_of(module)
    if channels is None:
        return "its gain is not one number per channel"
    seen = [] if traced is None else traced.shapes.get(names[0], [])
    layout = _layout(source, channels, seen)
    if source.axes == "last":
        if not seen:
            return "what its axes mean is not known without an example that reaches it"
        if layout is None:
            return f"its input {seen[0]} has no axis of examples before the channels"
        if any(len(shape) != 4 for shape in seen):
            if TOKENS not in kinds:
                includes = f"; only={TOKENS} includes it" if advice else ""
                return f"it acts on tokens, input {seen[0]} as (N, T, C){includes}"
        elif source.family not in kinds:
            return f"only= does not name {source.family}"
    elif source.family not in kinds:
        return f"only= does not name {source.family}"
    if layout is None:
        raise ValueError(
            f"{names[0] or 'the model'} got an input of shape {seen[0]}, not (N, {channels}, ...);"
            " images need an axis of examples"
        )
    convolution = traced.convolutions.get(names[0]) if traced else None
    shape = seen[-1] if seen else None
    return Site(names, type(module).__name__, source, channels, layout, shape, convolution)


def _layout(source: Source, channels: int, seen: list[tuple[int, ...]]) -> str | None:
    """Return the layout of a site, None where an input does not fit its channels."""
    if source.axes == "last":
        return "last" if all(len(s) > 1 and s[-1] == channels for s in seen) else None
    if any(len(shape) < 2 or shape[1] != channels for shape in seen):
        return None
    if source.axes == "2d" or (seen and all(len(shape) == 4 for shape in seen)):
        return "2d"
    return "first"


def _replaceable(model: nn.Module, sites: list[Site], left: list[Left]) -> list[Site]:
    """Leave the norms of layers that read their weights themselves, and those of attention.

    The latter take queries and keys, (N, heads, T, C): four axes, but no feature map.
    """
    kinds = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
    kept = []
    for site in sites:
        parents = [model.get_submodule(name.rpartition(".")[0]) for name in site.names]
        if any(isinstance(parent, kinds) for parent in parents):
            reason = "a transformer layer of PyTorch reads its weights by itself"
            left.append(Left(site.name, site.old, reason))
        elif site.source.axes == "last" and any(
            re.search("attention|attn", type(parent).__name__, re.IGNORECASE) for parent in parents
        ):
            reason = "it is within an attention layer, whose queries and keys are no feature map"
            left.append(Left(site.name, site.old, reason))
        else:
            kept.append(site)
    return kept
