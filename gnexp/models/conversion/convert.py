"""Every normalization layer of any model, replaced by one of the table: `convert`.

Shapes: N examples, C channels, H and W pixels.
"""

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from gnexp.models.conversion.find_norms import Found, Site, find_norms
from gnexp.models.conversion.report import Conversion, Replaced
from gnexp.models.conversion.trace import trace
from gnexp.models.conversion.wrappers import AsFeatureMap, NormActivation
from gnexp.models.weight_standardization import StandardizedConv2d
from gnexp.norms import plugins
from gnexp.norms.base import carries_activation
from gnexp.norms.constant_affine import hold_constant
from gnexp.norms.copying import copied, lazy_tensors
from gnexp.norms.registry import NORMS, group_count
from gnexp.norms.smoke_test import error_text
from gnexp.norms.statistic_size import Undefined, stock_pools
from gnexp.norms.user_code import build_named

Factory = Callable[[int], nn.Module]
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish)
_COMPARED = ("eps", "momentum", "track_running_stats")
_ABSENT = object()
# What these save for their backward pass is their input, so what follows may overwrite the output.
_SAVE_THEIR_INPUT = (nn.BatchNorm2d, nn.GroupNorm)


def convert(
    model: nn.Module,
    norm: str | Factory = "gn",
    *,
    groups: int | None = None,
    channels_per_group: int | None = None,
    fallback: str | None = None,
    example: Any = None,
    only: str | Sequence[str] | None = None,
    leave: str | Sequence[str] = (),
    affine: str = "keep",
    eps: float | str | None = None,
    inplace: bool = False,
    **options: object,
) -> Conversion:
    """Return the model with every normalization layer replaced by `norm`, and the report.

    norm: a name of gnexp's table or of a plug-in, whose `options` may follow; or a function from a
    number of channels to a layer of (N, C, H, W). groups, channels_per_group, fallback: as in
    `group_count`; by default 8 groups. example: an input of the model, a tensor or its arguments,
    by which calls of functions that normalize are found, layer norms over the last axis are
    understood, and the result is tried; strongly advised. only: what to replace: kinds, of "batch",
    "group", "instance", "layer" (on feature maps), "tokens" (layer norms of (N, T, C)), and names,
    as in leave; default: all kinds but tokens. leave: modules that stay with all that is in them:
    names, patterns of names such as "layer4.*", or classes; one, or a list. affine: "keep" copies
    gamma and beta where both layers have one per channel, "reset" does not. eps: None is the norm's
    own, "keep" that of each old layer. inplace: change this model, not a copy.

    Running statistics go to a layer that keeps the same ones. Device, dtype, training flag and
    requires_grad are those of the old layer; so is which of gamma and beta it has, while what else
    a norm learns (alpha of dyt, tau of frn, v of EvoNorm, mixtures) is the norm's own. A norm that
    carries its activation replaces the one behind it where that is sure, in an nn.Sequential or a
    layer that has both; elsewhere it comes without. Layers of the old names keep their names in
    state dicts unless they need a wrapper.

    Raises ValueError, naming the layer, for what cannot be replaced or might be missed, before
    anything is changed: channels that the groups do not divide, layers that normalize by an unknown
    rule (a trial shows what an unknown layer does), functions that normalize, scripted, fused and
    quantized modules.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, not {type(model).__name__}")
    if not isinstance(norm, str) and (isinstance(norm, nn.Module) or not callable(norm)):
        raise ValueError(
            f"norm={norm!r} must be a name, or a function from a number of channels to a layer"
        )
    if affine not in ("keep", "reset"):
        raise ValueError(f"affine={affine} is unknown; valid: keep, reset")
    if isinstance(eps, str) and eps != "keep":
        raise ValueError(f'eps={eps} must be a positive number, None, or "keep"')
    if eps not in (None, "keep"):
        options["eps"] = eps
    if isinstance(eps, bool):
        raise ValueError(f'eps={eps} must be a positive number, None, or "keep"')
    build = _factory(norm, groups, channels_per_group, fallback, options)
    if lazy := lazy_tensors(model):
        raise ValueError(f"the model has a lazy layer ({lazy[0]}); pass a batch through it first")
    found = find_norms(model, example, only=only, leave=leave)
    entry = NORMS.get(norm) if isinstance(norm, str) else None
    if entry and entry.weight_standardization and example is None:
        raise ValueError(f"norm={norm} standardizes convolutions before it; give example= to see")
    new = _copy(model)  # whatever is refused, is refused before the model is changed
    how = {"affine": affine, "keep_eps": eps == "keep"}
    new, replaced, notes = replace_norms(new, found, build, **how)
    if entry and entry.weight_standardization:
        notes += standardize_before(new, found.sites)
    if example is not None:
        try_example(new, found, example)
    if inplace:
        if any(site.name == "" for site in found.sites):
            raise ValueError("inplace=True cannot replace the model itself; use inplace=False")
        new, *_ = replace_norms(model, found, build, **how)
        if entry and entry.weight_standardization:
            standardize_before(new, found.sites)
    return Conversion(new, replaced, found.left, [*found.notes, *notes])


def _copy(model: nn.Module) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise ValueError(
            f"the model cannot be copied, on which a conversion is tried: {error_text(error)}"
        ) from error


def _factory(
    norm: str | Factory,
    groups: int | None,
    channels_per_group: int | None,
    fallback: str | None,
    options: dict[str, object],
) -> Factory:
    counts = {"groups": groups, "channels_per_group": channels_per_group}
    for key, value in counts.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral)):
            raise ValueError(f"{key}={value!r} must be a whole number")
    counts = {**counts, "fallback": fallback}
    typed = [f"{key}={value}" for key, value in counts.items() if value is not None]
    if not isinstance(norm, str):
        if typed or options:
            raise ValueError("groups and options belong to the function that builds your norm")
        return norm
    if norm not in NORMS and norm not in plugins.usable(NORMS):
        raise ValueError(plugins.unknown_norm(norm, list(NORMS)))
    build = functools.partial(build_named, norm, **options)
    if norm in NORMS and "num_groups" not in NORMS[norm].options:
        if typed:
            raise ValueError(f"{typed[0]}: norm={norm} has no groups")
        return build
    if norm not in NORMS or "num_groups" in options:
        if typed:
            its = "its options" if norm not in NORMS else "num_groups"
            raise ValueError(f"{typed[0]}: norm={norm} takes its groups from {its}")
        return build
    return lambda channels: build(
        channels, num_groups=group_count(channels, groups, channels_per_group, fallback)
    )


def replace_norms(
    model: nn.Module,
    found: Found,
    build: Factory,
    *,
    affine: str = "keep",
    keep_eps: bool = False,
) -> tuple[nn.Module, list[Replaced], list[str]]:
    """Replace the layers of `found` in the model itself; see `convert`.

    found: of this model, or of another of the same architecture. Returns the model (another object
    only where the model is itself such a layer), what was replaced, and notes.
    """
    rows, notes, own = [], [], False
    default = next((t for t in model.parameters()), torch.empty(0))
    layers = [(site, model.get_submodule(site.name)) for site in found.sites]
    built = [_named(site, build) for site, _ in layers]
    if len({id(layer) for layer in built}) < len(built):
        raise ValueError("norm must build a new layer at each call; it returned one of them twice")
    for (site, old), layer in zip(layers, built, strict=True):
        if keep_eps and hasattr(layer, "eps") and getattr(old, "eps", None) is not None:
            layer.eps = old.eps
        kept = _take_over(layer, old, affine, default)
        activation, act = _activation(model, site, old, layer)
        placed, within = layer, ""
        direct = isinstance(layer, nn.GroupNorm) and site.layout == "first"
        if site.layout != "2d" and not direct:
            placed = AsFeatureMap(layer, channels_last=site.layout == "last")
            within = "norm"
        if act is not None:
            placed, within = NormActivation(placed, old.drop, act), f"norm.{within}".rstrip(".")
        placed.training = old.training
        _refuse_single_values(site, layer)
        for name in site.names:
            model = _put(model, name, placed)
        own = own or type(layer) not in _SAVE_THEIR_INPUT
        kind, changed = type(layer).__name__, _changed(old, layer)
        also = site.names[1:]
        rows.append(
            Replaced(
                site.name, site.old, kind, site.channels, kept, activation, changed, also, within
            )
        )
    if own:
        notes += out_of_place(model)
    return model, rows, notes


def _named(site: Site, build: Factory) -> nn.Module:
    where = f"layer {site.name or '(the model)'}"
    try:
        layer = build(site.channels)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    except Exception as error:
        raise ValueError(
            f"{where}: building the norm for {site.channels} channels raised {error_text(error)}"
        ) from error
    if not isinstance(layer, nn.Module):
        kind = type(layer).__name__
        raise ValueError(f"{where}: norm must build an nn.Module, not {kind}")
    return layer


def _put(model: nn.Module, name: str, layer: nn.Module) -> nn.Module:
    if not name:
        return layer
    parent, _, attribute = name.rpartition(".")
    model.get_submodule(parent)._modules[attribute] = layer
    return model


def _take_over(layer: nn.Module, old: nn.Module, affine: str, default: Tensor) -> str:
    """Give a new layer the place, dtype, mode and tensors of the old; return its affine's fate."""
    tensors = [*old.parameters(recurse=False), *old.buffers(recurse=False)]
    like = next((t for t in tensors if t.is_floating_point()), default)
    layer.to(device=like.device, dtype=like.dtype if like.is_floating_point() else None)
    layer.train(old.training)
    kept, had = [], []
    with torch.no_grad():
        for key in ("weight", "bias"):
            mine, its = getattr(layer, key, None), getattr(old, key, None)
            if not isinstance(mine, Tensor):
                continue
            if not isinstance(its, Tensor):
                if mine.ndim == 1:  # what else a user's norm calls so is no gamma
                    hold_constant(layer, key)
                continue
            had.append(key)
            if isinstance(mine, nn.Parameter):  # frozen ones are buffers
                mine.requires_grad_(its.requires_grad)
            if mine.shape == its.shape and affine == "keep":
                mine.copy_(its)
                kept.append(key)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            mine, its = layer._buffers.get(key), old._buffers.get(key)
            if mine is not None and its is not None and mine.shape == its.shape:
                mine.copy_(its)
    if not had:
        return "absent"
    only_one = f", {' and '.join(had)} alone" * (len(had) == 1)
    return ("kept" if kept else "reset") + only_one


def _activation(
    model: nn.Module, site: Site, old: nn.Module, layer: nn.Module
) -> tuple[str, nn.Module | None]:
    """Return what became of the activation, and the one that is to follow in a wrapper.

    Takes the layer's own activation out, or the one behind it, where it carries one.
    """
    carries = carries_activation(layer)
    if site.source.activated:
        if carries and not isinstance(old.act, nn.Identity):
            return f"its own for {type(old.act).__name__}", nn.Identity()
        if carries:
            layer.without_activation()
        return f"{type(old.act).__name__} kept", old.act
    if not carries:
        return "", None
    behind = [_behind(model, name) for name in site.names]
    if all(behind):
        replaced = type(behind[0][0][behind[0][1]]).__name__
        for sequence, index in behind:
            sequence[index] = nn.Identity()
        return f"its own for {replaced}", None
    layer.without_activation()
    if _only_scales(layer, site.channels):
        raise ValueError(
            f"layer {site.name or '(the model)'}: {type(layer).__name__} is a norm and an"
            " activation in one, and whether one follows here cannot be told; put the layer and"
            " its activation into an nn.Sequential, or choose a norm such as gn"
        )
    return "without its own, as what follows is not known", None


def _behind(model: nn.Module, name: str) -> tuple[nn.Sequential, int] | None:
    """Return the sequence and the index of the activation right behind a layer, if it is one."""
    parent, _, attribute = name.rpartition(".")
    sequence = model.get_submodule(parent)
    if not isinstance(sequence, nn.Sequential) or not name:
        return None
    if type(sequence).forward is not nn.Sequential.forward:
        return None
    index = list(sequence._modules).index(attribute) + 1
    found = index < len(sequence) and isinstance(sequence[index], ACTIVATIONS)
    return (sequence, index) if found else None


@torch.no_grad()
def _only_scales(layer: nn.Module, channels: int) -> bool:
    """Return whether a layer is an affine map of each value, and so standardizes nothing."""
    trial = copied(layer).double().cpu().train()
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 4, 4, generator=draw, dtype=torch.float64)
    zero, one, two = (trial(scale * x) for scale in (0.0, 1.0, 2.0))
    return torch.allclose(two - zero, 2 * (one - zero))


def _refuse_single_values(site: Site, layer: nn.Module) -> None:
    """Refuse a layer whose statistic, at the size that was seen, would be of one value."""
    pools = stock_pools(layer)
    if site.shape is None or not pools or "n" in pools:
        return
    shape = site.shape if site.layout != "last" else (site.shape[0], site.shape[-1])
    pixels = math.prod(site.shape) // site.shape[0] // site.channels
    values = pixels if "h" in pools else 1
    if "c" in pools:
        values *= site.channels // getattr(layer, "num_groups", 1)
    if values < 2:
        raise Undefined(
            f"layer {site.name or '(the model)'}: {type(layer).__name__} would have one value per"
            f" statistic at its input of shape {tuple(shape)}, so its output would be constant;"
            " use larger images, fewer groups, or another norm"
        )


def _changed(old: nn.Module, layer: nn.Module) -> tuple[str, ...]:
    pairs = [(key, getattr(old, key, _ABSENT), getattr(layer, key, _ABSENT)) for key in _COMPARED]
    return tuple(
        f"{key} {its} -> {mine}"
        for key, its, mine in pairs
        if its is not _ABSENT and mine is not _ABSENT and its != mine
    )


def out_of_place(model: nn.Module) -> list[str]:
    """Let no module overwrite its input; the numbers stay. Return a note, [] if none did."""
    changed = [m for m in model.modules() if getattr(m, "inplace", False) is True]
    for module in changed:
        module.inplace = False
    if not changed:
        return []
    return [f"{len(changed)} in-place activations made out-of-place: the numbers are the same"]


def standardize_before(model: nn.Module, sites: Sequence[Site]) -> list[str]:
    """Standardize the filters of the plain convolutions right before these layers.

    Others keep theirs, since nothing behind them takes the scale back. Returns a note; raises
    ValueError when there is no such convolution.
    """
    names = dict.fromkeys(site.convolution for site in sites if site.convolution)
    kinds = {name: type(model.get_submodule(name)) for name in names}
    found = [name for name, kind in kinds.items() if kind is nn.Conv2d]
    others = {name: kind.__name__ for name, kind in kinds.items() if kind is not nn.Conv2d}
    if not found:
        (name, kind), *_ = *others.items(), ("", "")
        here = f"the one before is a {kind} ({name})" if name else "this model has none"
        raise ValueError(
            "weight standardization needs an nn.Conv2d right before a normalization layer, and"
            f" {here}; use a norm without, such as norm=gn"
        )
    for name in found:
        model.get_submodule(name).__class__ = StandardizedConv2d
    notes = [f"the filters of {len(found)} convolutions right before a norm are standardized"]
    if others:
        which = ", ".join(f"{name} ({kind})" for name, kind in others.items())
        notes.append(f"those of other kinds are not: {which}")
    return notes


def try_example(model: nn.Module, found: Found, example: Any, prefix: str = "") -> None:
    """Pass the example through the converted model; nothing of the old norms may be reached.

    prefix: as in `find_norms`.
    """
    names = {site.name for site in found.sites} | {left.name for left in found.left}
    try:
        traced = trace(model, example)
    except Exception as error:
        raise ValueError(
            f"the converted model does not take the example: {error_text(error)}; name the layer it"
            f" concerns in {prefix}leave="
        ) from error
    for name, called in traced.strays(names)[:1]:
        raise ValueError(
            f"{name or 'the model'} still calls {called} of a layer that was replaced: it holds the"
            " layer outside of its submodules, as in a list; use nn.ModuleList"
        )
