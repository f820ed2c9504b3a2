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
    **options: object,
) -> Conversion:
    """Return a copy of the model with every normalization layer replaced by `norm`, and the report.

    norm: a name of gnexp's table or of a plug-in, whose `options` may follow; or a function from a
    number of channels to a layer of (N, C, H, W). groups, channels_per_group, fallback: as in
    `group_count`; by default 8 groups. example: an input of the model, a tensor or its arguments,
    by which calls of functions that normalize are found, layer norms over the last axis are
    understood, and the result is tried; strongly advised. only, leave: what to replace and what
    stays, see `find_norms`. What passes to the new layers, such as gamma and beta: see
    `replace_norms`.

    Raises ValueError, naming the layer, for what cannot be replaced or might be missed: channels
    that the groups do not divide, layers that normalize by an unknown rule (a trial shows what an
    unknown layer does), functions that normalize, scripted, fused and quantized modules.
    """
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be an nn.Module, not {type(model).__name__}")
    counts = {"groups": groups, "channels_per_group": channels_per_group, "fallback": fallback}
    build = _factory(norm, {k: v for k, v in counts.items() if v is not None}, options)
    if lazy := lazy_tensors(model):
        raise ValueError(f"the model has a lazy layer ({lazy[0]}); pass a batch through it first")
    found = find_norms(model, example, only=only, leave=leave)
    standardized = isinstance(norm, str) and norm in NORMS and NORMS[norm].weight_standardization
    if standardized and example is None:
        raise ValueError(f"norm={norm} standardizes convolutions before it; give example= to see")
    try:
        copy = copied(model)
    except Exception as error:
        raise ValueError(f"the model cannot be copied: {error_text(error)}") from error
    new, replaced, notes = replace_norms(copy, found, build, weight_standardization=standardized)
    if example is not None:
        try_example(new, found, example)
    return Conversion(new, replaced, found.left, [*found.notes, *notes])


def _factory(norm: object, counts: dict[str, Any], options: dict[str, object]) -> Factory:
    """Return what builds a layer; counts: the arguments of `group_count` that were given."""
    if not isinstance(norm, str):
        if isinstance(norm, nn.Module) or not callable(norm):
            raise ValueError(
                f"norm={norm!r} must be a name, or a function from a number of channels to a layer"
            )
        if counts or options:
            raise ValueError("groups and options belong to the function that builds your norm")
        return norm
    for key, value in counts.items():
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        if key != "fallback" and not whole:
            raise ValueError(f"{key}={value!r} must be a whole number")
    if norm not in NORMS and norm not in plugins.usable(NORMS):
        raise ValueError(plugins.unknown_norm(norm, list(NORMS)))
    build, why = functools.partial(build_named, norm, **options), ""
    if norm not in NORMS:
        why = "takes its groups from its options"
    elif "num_groups" not in NORMS[norm].options:
        why = "has no groups"
    elif "num_groups" in options:
        why = "takes its groups from num_groups"
    if not why:
        return lambda channels: build(channels, num_groups=group_count(channels, **counts))
    if counts:
        key, value = next(iter(counts.items()))
        raise ValueError(f"{key}={value}: norm={norm} {why}")
    return build
