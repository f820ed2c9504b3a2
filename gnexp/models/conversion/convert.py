"""Every normalization layer of any model, replaced by one of the table: `convert`."""

import functools
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from torch import nn

from gnexp.models.conversion.find_norms import find_norms
from gnexp.models.conversion.replace_norms import Factory, replace_norms, try_example
from gnexp.models.conversion.report import Conversion
from gnexp.norms import plugins
from gnexp.norms.module_state import copied, lazy_tensors
from gnexp.norms.registry import NORMS, group_count
from gnexp.norms.trials import error_text
from gnexp.norms.user_code import build_named


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
    understood, and the result is tried; strongly advised. only, leave: what to replace and what
    stays, see `find_norms`. affine: "keep" copies gamma and beta where both layers have one per
    channel, "reset" does not. eps: None is the norm's own, "keep" that of each old layer. inplace:
    change this model, not a copy. What passes to the new layers: see `replace_norms`.

    Raises ValueError, naming the layer, for what cannot be replaced or might be missed, before
    anything is changed: channels that the groups do not divide, layers that normalize by an unknown
    rule (a trial shows what an unknown layer does), functions that normalize, scripted, fused and
    quantized modules.
    """
    _require_arguments(model, norm, affine, eps)
    if eps not in (None, "keep"):
        options["eps"] = eps
    build = _factory(norm, groups, channels_per_group, fallback, options)
    if lazy := lazy_tensors(model):
        raise ValueError(f"the model has a lazy layer ({lazy[0]}); pass a batch through it first")
    found = find_norms(model, example, only=only, leave=leave)
    entry = NORMS.get(norm) if isinstance(norm, str) else None
    standardize = bool(entry and entry.weight_standardization)
    if standardize and example is None:
        raise ValueError(f"norm={norm} standardizes convolutions before it; give example= to see")
    if inplace and any(site.name == "" for site in found.sites):
        raise ValueError("inplace=True cannot replace the model itself; use inplace=False")
    how: Any = {"affine": affine, "keep_eps": eps == "keep", "standardize": standardize}
    # Of a copy first: whatever is refused, is refused before the model is changed.
    new, replaced, notes = replace_norms(_copy(model), found, build, **how)
    if example is not None:
        try_example(new, found, example)
    if inplace:
        new, *_ = replace_norms(model, found, build, **how)
    return Conversion(new, replaced, found.left, [*found.notes, *notes])


def _require_arguments(model: object, norm: object, affine: str, eps: object) -> None:
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, not {type(model).__name__}")
    if not isinstance(norm, str) and (isinstance(norm, nn.Module) or not callable(norm)):
        raise ValueError(
            f"norm={norm!r} must be a name, or a function from a number of channels to a layer"
        )
    if affine not in ("keep", "reset"):
        raise ValueError(f"affine={affine} is unknown; valid: keep, reset")
    if isinstance(eps, bool) or (isinstance(eps, str) and eps != "keep"):
        raise ValueError(f'eps={eps} must be a positive number, None, or "keep"')


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
    why = ""
    if norm not in NORMS:
        why = "takes its groups from its options"
    elif "num_groups" not in NORMS[norm].options:
        why = "has no groups"
    elif "num_groups" in options:
        why = "takes its groups from num_groups"
    if why and typed:
        raise ValueError(f"{typed[0]}: norm={norm} {why}")
    if why:
        return build
    return lambda channels: build(
        channels, num_groups=group_count(channels, groups, channels_per_group, fallback)
    )
