"""Find the normalization layers of an external model, and those that another norm can replace.

Shapes: N examples, C channels, T tokens, H and W pixels.
"""

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from gnexp.config.unknown import unknown
from gnexp.models.conversion.norm_kinds import (
    FAMILIES,
    OwnRule,
    Source,
    channels_of,
    guessed_shapes,
    kept_as_it_is,
    pools_of,
    source_of,
)
from gnexp.models.conversion.report import Left
from gnexp.models.conversion.trace import Traced, trace
from gnexp.norms.smoke_test import error_text

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
    """The layers of a model: those to replace, those left with the reason, what else to know.

    pools: the axes, letters of "nchw", that share a statistic in those left; None if not known.
    """

    sites: list[Site]
    left: list[Left]
    notes: list[str]
    pools: str | None = ""


@dataclass(frozen=True)
class _Known:
    """A module that normalizes, or that is named in leave=; source: None where it stays."""

    names: tuple[str, ...]
    module: nn.Module
    source: Source | None
    reason: str | None
    pools: str | None = ""


def find_norms(
    model: nn.Module,
    example: Any = None,
    *,
    only: str | Sequence[str] | None = None,
    leave: str | Sequence[str] = (),
    prefix: str = "",
) -> Found:
    """Return the normalization layers of a model; nothing is changed.

    example: an input, passed through a copy, in both modes: it finds calls of functions that
    normalize, and shows what unknown layers do and what layer norms act on. only: what to replace:
    kinds, of KINDS, and layers as in leave; by default all kinds but "tokens". leave: modules that
    stay with all that is in them: names, patterns of names such as "layer4.*", or classes. prefix:
    of the keys that sentences name. Raises ValueError, naming the module, for what normalizes and
    cannot be replaced.
    """
    modules = _by_identity(model)
    _refuse_wrapped(modules)
    leave = _names(f"{prefix}leave", leave, "head")
    only = FAMILIES if only is None else _names(f"{prefix}only", only, KINDS[0])
    stays = _matching(modules, leave)
    wanted = _matching(modules, [each for each in only if each not in KINDS])
    _refuse_unmatched(modules, leave, only, prefix)
    traced = None if example is None else _traced(model, example)
    notes = []
    if traced is None:
        notes.append(
            "without example= no forward pass was looked at: functions that normalize would be"
            " missed, and layer norms over the last axis are left"
        )
    known = _known(modules, traced, stays, leave, prefix)
    _refuse_shared(modules, {each.names[0] for each in known if each.source})
    allowed = {each.names[0] for each in known} | {*stays}
    _refuse_strays(traced, allowed, prefix)
    kinds = [each for each in only if each in KINDS]
    sites, left = [], []
    for each in known:
        found = each.reason
        if each.source is not None:
            found = _site(each, traced, None if each.names[0] in wanted else kinds, prefix)
        if isinstance(found, str):
            left.append(Left(each.names[0], type(each.module).__name__, found))
        else:
            sites.append(found)
    for name in traced.standardized(allowed) if traced else ():
        old = type(model.get_submodule(name)).__name__
        left.append(Left(name, old, "it standardizes its weights, not its input"))
    sites = _replaceable(model, sites, left)
    pools = [each.pools for each in known if each.names[0] in {row.name for row in left}]
    of_functions = traced and traced.strays({each.names[0] for each in known if each.pools != ""})
    unknown = None in pools or bool(of_functions)
    return Found(sites, left, notes, None if unknown else "".join(sorted({*"".join(pools)})))


def _known(
    modules: list[tuple[tuple[str, ...], nn.Module]],
    traced: Traced | None,
    stays: Mapping[str, str],
    leave: Sequence[str],
    prefix: str,
) -> list[_Known]:
    """Return what normalizes, and what stays, in the order of the model."""
    known: dict[str, _Known] = {}
    for names, module in reversed(modules):  # what is inside a module comes before it
        name = names[0]
        within = any(other.startswith(f"{name}." if name else "") for other in known)
        shapes = () if within else _shapes(name, module, traced)
        reason = _stays(names, stays, prefix)
        try:
            kept_reason = kept_as_it_is(module)
            source = None if kept_reason else source_of(module, shapes)
        except ValueError as error:
            if not reason:
                if isinstance(error, OwnRule):
                    _refuse_strays(traced, {*known}, prefix, name)
                raise ValueError(f"{name or 'the model'} {error}" + _out(name, prefix)) from None
            known[name] = _Known(names, module, None, reason, pools_of(module, shapes))
            continue
        if source or kept_reason:
            pools = pools_of(module, shapes)
            known[name] = _Known(
                names, module, None if reason else source, kept_reason or reason, pools
            )
        elif {*names} & {*leave}:
            known[name] = _Known(names, module, None, reason)
    return list(known.values())[::-1]


def _shapes(name: str, module: nn.Module, traced: Traced | None) -> list[tuple[int, ...]]:
    """Return shapes of inputs by which a module may be tried, at most two examples of each."""
    if traced is None:
        return guessed_shapes(module)
    seen = traced.shapes.get(name, [])[-1:] if traced.same.get(name) else []
    return [(min(2, shape[0]), *shape[1:]) for shape in seen if shape and 0 not in shape]


def _out(name: str, prefix: str) -> str:
    return f"; {prefix}leave={name} leaves it as it is" if name else ""


def _traced(model: nn.Module, example: Any) -> Traced:
    try:
        return trace(model, example)
    except Exception as error:  # whatever the user's forward pass does
        raise ValueError(f"the model does not take the example: {error_text(error)}") from error


def _names(key: str, value: str | Iterable[str], example: str) -> tuple[str, ...]:
    """Return one name, or several, as a tuple."""
    if not isinstance(value, Iterable):
        raise ValueError(
            f"{key}={value!r} must be a name, or a list of names such as [{example!r}]"
        )
    return (value,) if isinstance(value, str) else tuple(value)


def _matching(
    modules: list[tuple[tuple[str, ...], nn.Module]], entries: Iterable[str]
) -> dict[str, str]:
    """Return the names of the modules that entries are for, and of all in them, with the entry."""
    found = {}
    for entry in entries:
        chosen = {name for names, module in modules if _is(entry, names, module) for name in names}
        for names, _ in modules:
            for name in names:
                parts = name.split(".")
                within = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
                if "" in chosen or not chosen.isdisjoint(within):
                    found.update(dict.fromkeys(names, entry))
    return found


def _is(entry: str, names: tuple[str, ...], module: nn.Module) -> bool:
    """Return whether an entry is a module's name, a pattern of it, or its class."""
    return type(module).__name__ == entry or any(fnmatchcase(name, str(entry)) for name in names)


def _refuse_unmatched(
    modules: list[tuple[tuple[str, ...], nn.Module]],
    leave: Sequence[str],
    only: Sequence[str],
    prefix: str,
) -> None:
    """Refuse what no module of the model is called, with the nearest."""
    names = [*dict.fromkeys(n for each, _ in modules for n in each if n)]
    names += dict.fromkeys(type(module).__name__ for _, module in modules)
    for key, entries, valid in (("leave", leave, names), ("only", only, [*KINDS, *names])):
        for entry in entries:
            if entry in KINDS and key == "only":
                continue
            if not any(_is(entry, each, module) for each, module in modules):
                kinds = f"a kind ({', '.join(KINDS)}), " if key == "only" else ""
                sentence = (
                    f"{prefix}{key}={entry} is not {kinds}the name of a module of the model, a"
                    " pattern of names such as layer4.*, or a class"
                )
                raise ValueError(unknown(sentence, entry, valid, listed=()))


def _by_identity(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Return every module once, with all names it goes by; parametrizations are no layers."""
    names: dict[int, list[str]] = {}
    modules = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in name.split("."):
            names.setdefault(id(module), []).append(name)
            modules[id(module)] = module
    return [(tuple(names[key]), module) for key, module in modules.items()]


def _stays(names: tuple[str, ...], stays: Mapping[str, str], prefix: str) -> str | None:
    """Return why a module stays: it, or what it is in, is named in leave=."""
    entry = next((stays[name] for name in names if name in stays), None)
    if entry is None:
        return None
    within = any(name.startswith(f"{entry}.") for name in names)
    it = f"it is in {entry}, which is" if within else "it is"
    return f"{it} named in {prefix}leave="


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


def _refuse_strays(
    traced: Traced | None, allowed: Set[str], prefix: str, within: str | None = None
) -> None:
    """Refuse calls that normalize outside of `allowed`: those of one module, or all."""
    for name, called in traced.strays(allowed) if traced else ():
        if within in (None, name):
            raise ValueError(
                f"{name or 'the model'} normalizes by a call of {called} in its forward pass, which"
                " no layer can replace; make it a layer, such as torch.nn.BatchNorm2d"
                + _out(name, prefix).replace("; ", ", or ")
            )


def _site(
    known: _Known, traced: Traced | None, kinds: Sequence[str] | None, prefix: str
) -> Site | str:
    """Return a layer that can be replaced, or why it is left. kinds: None takes any."""
    names, module, source = known.names, known.module, known.source
    channels = channels_of(module)
    if channels is None:
        return "its gain is not one number per channel"
    seen = [] if traced is None else traced.shapes.get(names[0], [])
    if channels == 0:
        channels = seen[0][1 if source.axes != "last" else -1]
    layout = _layout(source, channels, seen)
    if source.axes == "last" and not seen:
        return "what its axes mean is not known without an example that reaches it"
    if source.axes == "last" and layout is None:
        return f"its input {seen[0]} has no axis of examples before the channels"
    tokens = source.axes == "last" and any(len(shape) != 4 for shape in seen)
    kind = TOKENS if tokens else source.family
    if kinds is not None and kind not in kinds:
        if tokens:
            includes = f"; {prefix}only={TOKENS} includes it"
            return f"it acts on tokens, input {seen[0]} as (N, T, C){includes}"
        return f"{prefix}only= does not name {source.family}"
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
