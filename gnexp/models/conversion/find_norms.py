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
    """A module that normalizes, or that is named in leave=; reason: why it stays, if it does."""

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
    known = search.known()
    search.refuse_shared({each.names[0] for each in known if not each.reason})
    allowed = search.stays | {each.names[0] for each in known}
    search.refuse_strays(allowed)
    sites, left, pools = [], [], set()
    for each in known:
        site = each.reason or search.site(each)
        if isinstance(site, Site):
            sites.append(site)
        else:
            left.append(Left(each.names[0], type(each.module).__name__, site))
            pools.add(each.pools)
    for name in search.traced.standardized(allowed):
        old = type(model.get_submodule(name)).__name__
        left.append(Left(name, old, "it standardizes its weights, not its input"))
    of_functions = search.traced.strays({each.names[0] for each in known if each.pools != ""})
    mixed = None if None in pools or of_functions else "".join(sorted({*"".join(pools)}))
    return Found(sites, left, search.notes, mixed)


class _Search:
    """A model and what was asked about it: its modules, each once, and a watched forward pass.

    stays: the first names of the modules that leave= is for.
    """

    def __init__(self, model: nn.Module, example: Any, only: Any, leave: Any, prefix: str) -> None:
        self.model, self.prefix, self.blind = model, prefix, example is None
        self.modules = _by_identity(model)
        self.at = {name: each for each in self.modules for name in each[0]}
        _refuse_wrapped(self.modules)
        self.leave = self._entries("leave", leave, "head")
        self.only = FAMILIES if only is None else self._entries("only", only, *KINDS)
        self.stays = {names[0] for names, _ in self.modules if self._entry(names, self.leave)}
        self.traced, self.notes = Traced(), []
        if self.blind:
            self.notes = [
                "without example= no forward pass was looked at: functions that normalize would be"
                " missed, and layer norms over the last axis are left"
            ]
            return
        try:
            self.traced = trace(model, example)
        except Exception as error:  # whatever the user's forward pass does
            raise ValueError(f"the model does not take the example: {error_text(error)}") from error

    def known(self) -> list[_Known]:
        """Return what normalizes, and what stays, in the order of the model."""
        known: dict[str, _Known] = {}
        for names, module in reversed(self.modules):  # what is inside a module comes before it
            name = names[0]
            within = any(other.startswith(f"{name}." if name else "") for other in known)
            shapes = () if within else self._shapes(name, module)
            reason, source, refused = self._stays(names), None, False
            kept = kept_as_it_is(module)
            try:
                source = None if kept else source_of(module, shapes)
            except ValueError as error:
                refused = True
                if not reason:
                    if isinstance(error, OwnRule):
                        self.refuse_strays({*known}, name)
                    why = f"{name or 'the model'} {error}"
                    raise ValueError(why + self._way_out("; ", name)) from None
            normalizes = bool(source or kept or refused)
            if normalizes or {*self.leave} & {*names}:
                pools = pools_of(module, source, shapes) if normalizes else ""
                known[name] = _Known(names, module, source, kept or reason, pools)
        return list(known.values())[::-1]

    def site(self, known: _Known) -> Site | str:
        """Return a layer that can be replaced, or why it is left."""
        names, source = known.names, known.source
        seen, last = self.traced.shapes.get(names[0], []), source.axes == "last"
        channels = channels_of(known.module)
        if channels is None:
            return "its gain is not one number per channel"
        if channels == 0:
            channels = seen[0][-1 if last else 1]
        fits = all(len(shape) > 1 and shape[-1 if last else 1] == channels for shape in seen)
        if last and not seen:
            return "what its axes mean is not known without an example that reaches it"
        if last and not fits:
            return f"its input {seen[0]} has no axis of examples before the channels"
        kind = TOKENS if last and any(len(shape) != 4 for shape in seen) else source.family
        if kind not in self.only and not self._entry(names, {*self.only} - {*KINDS}):
            if kind == TOKENS:
                includes = f"{self.prefix}only={TOKENS} includes it"
                return f"it acts on tokens, input {seen[0]} as (N, T, C); {includes}"
            return f"{self.prefix}only= does not name {kind}"
        if not fits:
            raise ValueError(
                f"{names[0] or 'the model'} got an input of shape {seen[0]}, not"
                f" (N, {channels}, ...); images need an axis of examples"
            )
        maps = source.axes == "2d" or (seen and all(len(shape) == 4 for shape in seen))
        layout = "last" if last else "2d" if maps else "first"
        old, shape = type(known.module).__name__, seen[-1] if seen else None
        convolution = self.traced.convolutions.get(names[0])
        return self._unreachable(known) or Site(
            names, old, source, channels, layout, shape, convolution
        )

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

    def _entries(self, key: str, value: Any, example: str, *kinds: str) -> tuple[str, ...]:
        """Return one name, or several, as a tuple; refuse what no module is called."""
        if not isinstance(value, Iterable):
            raise ValueError(
                f"{self.prefix}{key}={value!r} must be a name, or a list of names such as"
                f" [{example!r}]"
            )
        entries = (value,) if isinstance(value, str) else tuple(value)
        kinds = (example, *kinds) if kinds else ()
        for entry in entries:
            if entry not in kinds and not any(_is(entry, *each) for each in self.modules):
                kind = f"a kind ({', '.join(kinds)}), " if kinds else ""
                sentence = (
                    f"{self.prefix}{key}={entry} is not {kind}the name of a module of the model, a"
                    " pattern of names such as layer4.*, or a class"
                )
                classes = [type(module).__name__ for _, module in self.modules]
                valid = dict.fromkeys([*kinds, *filter(None, self.at), *classes])
                raise ValueError(unknown(sentence, entry, [*valid], listed=()))
        return entries

    def _entry(self, names: Iterable[str], entries: Iterable[str]) -> str | None:
        """Return the last of these entries that is for a module, or for one that it lies in."""
        found = None
        for entry in entries:
            for parts in (name.split(".") for name in names):
                above = (self.at.get(".".join(parts[:end])) for end in range(len(parts) + 1))
                if any(each and _is(entry, *each) for each in above):
                    found = entry
        return found

    def _shapes(self, name: str, module: nn.Module) -> list[tuple[int, ...]]:
        """Return shapes of inputs by which a module may be tried, at most two examples of each."""
        if self.blind:
            return guessed_shapes(module)
        seen = self.traced.shapes.get(name, [])[-1:] if self.traced.same.get(name) else []
        return [(min(2, shape[0]), *shape[1:]) for shape in seen if shape and 0 not in shape]

    def _stays(self, names: Iterable[str]) -> str | None:
        """Return why a module stays: it, or what it is in, is named in leave=."""
        entry = self._entry(names, self.leave)
        if entry is None:
            return None
        within = any(name.startswith(f"{entry}.") for name in names)
        it = f"it is in {entry}, which is" if within else "it is"
        return f"{it} named in {self.prefix}leave="

    def _way_out(self, link: str, name: str) -> str:
        return f"{link}{self.prefix}leave={name} leaves it as it is" if name else ""

    def _unreachable(self, known: _Known) -> str | None:
        """Return why a norm stays whose weights its parent reads, or that is in an attention.

        The latter take queries and keys, (N, heads, T, C): four axes, but no feature map.
        """
        parents = [self.model.get_submodule(name.rpartition(".")[0]) for name in known.names]
        if any(isinstance(parent, _TRANSFORMERS) for parent in parents):
            return "a transformer layer of PyTorch reads its weights by itself"
        kinds = " ".join(type(parent).__name__ for parent in parents)
        if known.source.axes == "last" and re.search("attention|attn", kinds, re.IGNORECASE):
            return "it is within an attention layer, whose queries and keys are no feature map"
        return None


def _refuse_wrapped(modules: Iterable[tuple[tuple[str, ...], nn.Module]]) -> None:
    """Refuse what holds on to the model as it was: its parameters, or its compiled code."""
    for names, module in modules:
        where = names[0] or "the model"
        if isinstance(module, DataParallel | DistributedDataParallel):
            kind = type(module).__name__
            raise ValueError(f"{where} is wrapped in {kind}: convert the model, then wrap it")
        if hasattr(module, "_orig_mod"):
            raise ValueError(f"{where} is compiled: convert the model, then compile it")


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
