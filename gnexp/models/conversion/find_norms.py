"""Find the normalization layers of an external model, and those that another norm can replace.

Shapes: N examples, C channels, T tokens, H and W pixels.
"""

import re
from collections.abc import Iterable, Sequence, Set
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
from gnexp.norms.trials import error_text

TOKENS = "tokens"  # layer norms of (N, T, C), which have no pixels
KINDS = (*FAMILIES, TOKENS)
_TRANSFORMERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


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
    pools: str | None


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
    search = _Search(model, example, only, leave, prefix)
    known, traced = search.known(), search.traced
    search.refuse_shared({each.names[0] for each in known if each.source})
    allowed = {each.names[0] for each in known} | {*search.stays}
    search.refuse_strays(allowed)
    sites, left = [], []
    for each in known:
        site = each.reason if each.source is None else search.site(each)
        if isinstance(site, Site):
            sites.append(site)
        else:
            left.append(Left(each.names[0], type(each.module).__name__, site))
    for name in traced.standardized(allowed):
        old = type(model.get_submodule(name)).__name__
        left.append(Left(name, old, "it standardizes its weights, not its input"))
    names_left = {row.name for row in left}
    pools = [each.pools for each in known if each.names[0] in names_left]
    of_functions = traced.strays({each.names[0] for each in known if each.pools != ""})
    mixed = None if None in pools or of_functions else "".join(sorted({*"".join(pools)}))
    return Found(sites, left, search.notes, mixed)


class _Search:
    """A model and what was asked about it: its modules, each once, and a watched forward pass.

    stays, wanted: the names of modules that leave= and only= are for, each with its entry.
    """

    def __init__(self, model: nn.Module, example: Any, only: Any, leave: Any, prefix: str) -> None:
        self.model, self.prefix = model, prefix
        self.modules = _by_identity(model)
        self._refuse_wrapped()
        leave = self._entries("leave", leave, "head")
        only = FAMILIES if only is None else self._entries("only", only, KINDS[0])
        self._refuse_unmatched("leave", leave, ())
        self._refuse_unmatched("only", only, KINDS)
        self.named, self.stays = {*leave}, self._matching(leave)
        self.kinds = [each for each in only if each in KINDS]
        self.wanted = self._matching([each for each in only if each not in KINDS])
        self.blind = example is None
        self.traced = Traced() if self.blind else _traced(model, example)
        blind = (
            "without example= no forward pass was looked at: functions that normalize would be"
            " missed, and layer norms over the last axis are left"
        )
        self.notes = [blind] if self.blind else []

    def known(self) -> list[_Known]:
        """Return what normalizes, and what stays, in the order of the model."""
        known: dict[str, _Known] = {}
        for names, module in reversed(self.modules):  # what is inside a module comes before it
            name = names[0]
            within = any(other.startswith(f"{name}." if name else "") for other in known)
            shapes = () if within else self._shapes(name, module)
            reason = self._stays(names)
            try:
                kept = kept_as_it_is(module)
                source = None if kept else source_of(module, shapes)
                normalizes = bool(source or kept)
            except ValueError as error:
                if not reason:
                    if isinstance(error, OwnRule):
                        self.refuse_strays({*known}, name)
                    why = f"{name or 'the model'} {error}"
                    raise ValueError(why + self._way_out("; ", name)) from None
                source, kept, normalizes = None, None, True
            if normalizes or self.named.intersection(names):
                pools = pools_of(module, shapes) if normalizes else ""
                source = None if reason else source
                known[name] = _Known(names, module, source, kept or reason, pools)
        return list(known.values())[::-1]

    def site(self, known: _Known) -> Site | str:
        """Return a layer that can be replaced, or why it is left."""
        names, module, source = known.names, known.module, known.source
        channels, seen = channels_of(module), self.traced.shapes.get(names[0], [])
        if channels is None:
            return "its gain is not one number per channel"
        if channels == 0:
            channels = seen[0][1 if source.axes != "last" else -1]
        layout = _layout(source, channels, seen)
        if source.axes == "last" and not seen:
            return "what its axes mean is not known without an example that reaches it"
        if source.axes == "last" and layout is None:
            return f"its input {seen[0]} has no axis of examples before the channels"
        tokens = source.axes == "last" and any(len(shape) != 4 for shape in seen)
        if names[0] not in self.wanted and (TOKENS if tokens else source.family) not in self.kinds:
            if tokens:
                includes = f"{self.prefix}only={TOKENS} includes it"
                return f"it acts on tokens, input {seen[0]} as (N, T, C); {includes}"
            return f"{self.prefix}only= does not name {source.family}"
        if layout is None:
            raise ValueError(
                f"{names[0] or 'the model'} got an input of shape {seen[0]}, not"
                f" (N, {channels}, ...); images need an axis of examples"
            )
        shape, convolution = (seen or [None])[-1], self.traced.convolutions.get(names[0])
        site = Site(names, type(module).__name__, source, channels, layout, shape, convolution)
        return self._unreachable(site) or site

    def refuse_shared(self, norms: Set[str]) -> None:
        """Refuse norms whose gamma or beta is another module's too: the new ones would not be."""
        owners: dict[int, str] = {}
        for (name, *_), module in self.modules:
            for key, parameter in module.named_parameters(recurse=False):
                other = owners.setdefault(id(parameter), name)
                if other != name and norms & {other, name}:
                    raise ValueError(
                        f"{name} and {other} share their {key}, which another norm would not;"
                        " give each its own"
                    )

    def refuse_strays(self, allowed: Set[str], within: str | None = None) -> None:
        """Refuse calls that normalize outside of `allowed`: those of one module, or all."""
        for name, called in self.traced.strays(allowed):
            if within in (None, name):
                raise ValueError(
                    f"{name or 'the model'} normalizes by a call of {called} in its forward pass,"
                    " which no layer can replace; make it a layer, such as torch.nn.BatchNorm2d"
                    + self._way_out(", or ", name)
                )

    def _refuse_wrapped(self) -> None:
        """Refuse what holds on to the model as it was: its parameters, or its compiled code."""
        for names, module in self.modules:
            where = names[0] or "the model"
            if isinstance(module, DataParallel | DistributedDataParallel):
                kind = type(module).__name__
                raise ValueError(f"{where} is wrapped in {kind}: convert the model, then wrap it")
            if hasattr(module, "_orig_mod"):
                raise ValueError(f"{where} is compiled: convert the model, then compile it")

    def _refuse_unmatched(self, key: str, entries: Sequence[str], kinds: Sequence[str]) -> None:
        """Refuse what no module of the model is called, with the nearest."""
        names = [*dict.fromkeys(n for each, _ in self.modules for n in each if n)]
        names += dict.fromkeys(type(module).__name__ for _, module in self.modules)
        for entry in entries:
            if entry not in kinds and not any(_is(entry, *each) for each in self.modules):
                kind = f"a kind ({', '.join(kinds)}), " if kinds else ""
                sentence = (
                    f"{self.prefix}{key}={entry} is not {kind}the name of a module of the model, a"
                    " pattern of names such as layer4.*, or a class"
                )
                raise ValueError(unknown(sentence, entry, [*kinds, *names], listed=()))

    def _entries(self, key: str, value: Any, example: str) -> tuple[str, ...]:
        """Return one name, or several, as a tuple."""
        if not isinstance(value, Iterable):
            raise ValueError(
                f"{self.prefix}{key}={value!r} must be a name, or a list of names such as"
                f" [{example!r}]"
            )
        return (value,) if isinstance(value, str) else tuple(value)

    def _matching(self, entries: Iterable[str]) -> dict[str, str]:
        """Return the names of the modules that entries are for, and of all in them."""
        found = {}
        for entry in entries:
            chosen = {name for names, m in self.modules if _is(entry, names, m) for name in names}
            for names, _ in self.modules:
                for name in names:
                    parts = name.split(".")
                    within = (".".join(parts[:end]) for end in range(1, len(parts) + 1))
                    if "" in chosen or not chosen.isdisjoint(within):
                        found.update(dict.fromkeys(names, entry))
        return found

    def _shapes(self, name: str, module: nn.Module) -> list[tuple[int, ...]]:
        """Return shapes of inputs by which a module may be tried, at most two examples of each."""
        if self.blind:
            return guessed_shapes(module)
        seen = self.traced.shapes.get(name, [])[-1:] if self.traced.same.get(name) else []
        return [(min(2, shape[0]), *shape[1:]) for shape in seen if shape and 0 not in shape]

    def _stays(self, names: Iterable[str]) -> str | None:
        """Return why a module stays: it, or what it is in, is named in leave=."""
        entry = next((self.stays[name] for name in names if name in self.stays), None)
        if entry is None:
            return None
        within = any(name.startswith(f"{entry}.") for name in names)
        it = f"it is in {entry}, which is" if within else "it is"
        return f"{it} named in {self.prefix}leave="

    def _way_out(self, link: str, name: str) -> str:
        return f"{link}{self.prefix}leave={name} leaves it as it is" if name else ""

    def _unreachable(self, site: Site) -> str | None:
        """Return why a norm stays whose weights its parent reads, or that is in an attention.

        The latter take queries and keys, (N, heads, T, C): four axes, but no feature map.
        """
        parents = [self.model.get_submodule(name.rpartition(".")[0]) for name in site.names]
        if any(isinstance(parent, _TRANSFORMERS) for parent in parents):
            return "a transformer layer of PyTorch reads its weights by itself"
        kinds = " ".join(type(parent).__name__ for parent in parents)
        if site.source.axes == "last" and re.search("attention|attn", kinds, re.IGNORECASE):
            return "it is within an attention layer, whose queries and keys are no feature map"
        return None


def _traced(model: nn.Module, example: Any) -> Traced:
    try:
        return trace(model, example)
    except Exception as error:  # whatever the user's forward pass does
        raise ValueError(f"the model does not take the example: {error_text(error)}") from error


def _is(entry: str, names: tuple[str, ...], module: nn.Module) -> bool:
    """Return whether an entry is a module's name, a pattern of it, or its class."""
    return type(module).__name__ == entry or any(fnmatchcase(name, str(entry)) for name in names)


def _by_identity(model: nn.Module) -> list[tuple[tuple[str, ...], nn.Module]]:
    """Return every module once, with all names it goes by; parametrizations are no layers."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if "parametrizations" not in name.split("."):
            names.setdefault(module, []).append(name)
    return [(tuple(each), module) for module, each in names.items()]


def _layout(source: Source, channels: int, seen: list[tuple[int, ...]]) -> str | None:
    """Return the layout of a site, None where an input does not fit its channels."""
    if source.axes == "last":
        return "last" if all(len(s) > 1 and s[-1] == channels for s in seen) else None
    if any(len(shape) < 2 or shape[1] != channels for shape in seen):
        return None
    if source.axes == "2d" or (seen and all(len(shape) == 4 for shape in seen)):
        return "2d"
    return "first"
