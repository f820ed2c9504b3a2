"""Put new normalization layers into the places that `find_norms` found, and try the result.

Shapes: N examples, C channels, L positions, H and W pixels.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from gnexp.models.conversion.find_norms import Found, Site
from gnexp.models.conversion.report import Replaced
from gnexp.models.conversion.trace import trace
from gnexp.models.weight_standardization import standardize
from gnexp.norms.base import carries_activation
from gnexp.norms.module_state import copied
from gnexp.norms.stacked import hold_constant
from gnexp.norms.statistic_size import Undefined, stock_pools
from gnexp.norms.trials import error_text

Factory = Callable[[int], nn.Module]
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Mish, nn.Hardswish)
_COMPARED = ("eps", "momentum", "track_running_stats")
# What these save for their backward pass is their input, so what follows may overwrite the output.
_SAVE_THEIR_INPUT = (nn.BatchNorm2d, nn.GroupNorm)


class AsFeatureMap(nn.Module):
    """A norm of (N, C, H, W) on (N, C), (N, C, L) or more axes, or on (N, ..., C).

    All axes but N and C are pixels to it: H * W = L, or 1. The result has the shape of the input.
    """

    def __init__(self, norm: nn.Module, *, channels_last: bool = False) -> None:
        super().__init__()
        self.norm, self.channels_last = norm, channels_last

    def forward(self, x: Tensor) -> Tensor:
        if self.channels_last:
            x = x.movedim(-1, 1)
        if x.ndim == 4:
            y = self.norm(x)
        else:
            y = self.norm(x.reshape(*x.shape[:2], -1, 1)).reshape(x.shape)
        return y.movedim(1, -1) if self.channels_last else y

    def extra_repr(self) -> str:
        return "channels_last=True" if self.channels_last else ""


class NormActivation(nn.Module):
    """act(drop(norm(x))): in the place of a layer that does all three."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(self.norm(x)))


def replace_norms(
    model: nn.Module,
    found: Found,
    build: Factory,
    *,
    keep_affine: bool = True,
    weight_standardization: bool = False,
) -> tuple[nn.Module, list[Replaced], list[str]]:
    """Replace the layers of `found` in the model itself.

    found: of this model, or of another of the same architecture. keep_affine: copy gamma and beta
    where both layers have one per channel. weight_standardization: of the filters of the
    convolutions right before. Returns the model (another object only where the model is itself such
    a layer), what was replaced, and notes.

    Running statistics go to a layer that keeps the same ones. Device, dtype, training flag and
    requires_grad are those of the old layer; so is which of gamma and beta it has, while what else
    a norm learns (alpha of dyt, tau of frn, v of EvoNorm, mixtures) is the norm's own. A norm that
    carries its activation replaces the one behind it where that is sure, in an nn.Sequential or a
    layer that has both; elsewhere it comes without. Layers keep their names in state dicts unless
    they need a wrapper.
    """
    default = next(model.parameters(), torch.empty(0))
    layers = [(site, model.get_submodule(site.name)) for site in found.sites]
    built = [_built(site, build) for site, _ in layers]
    if len({id(layer) for layer in built}) < len(built):
        raise ValueError("norm must build a new layer at each call; it returned one of them twice")
    rows = []
    for (site, old), layer in zip(layers, built, strict=True):
        kept = _take_over(layer, old, keep_affine, default)
        activation, act = _activation(model, site, old, layer)
        placed, within = layer, ""
        if site.layout != "2d" and not (isinstance(layer, nn.GroupNorm) and site.layout == "first"):
            placed, within = AsFeatureMap(layer, channels_last=site.layout == "last"), "norm"
        if act is not None:
            placed, within = NormActivation(placed, old.drop, act), f"norm.{within}".rstrip(".")
        placed.training = old.training
        _refuse_single_values(site, layer)
        for parent, _, attribute in (name.rpartition(".") for name in site.names):
            if attribute:
                model.get_submodule(parent)._modules[attribute] = placed
            else:
                model = placed
        also, kind = site.names[1:], type(layer).__name__
        told = kept, activation, _changed(old, layer), also, within
        rows.append(Replaced(site.name, site.old, kind, site.channels, *told))
    own = any(type(layer) not in _SAVE_THEIR_INPUT for layer in built)
    notes = out_of_place(model) if own else []
    return model, rows, notes + (_standardize(model, found) if weight_standardization else [])


def _built(site: Site, build: Factory) -> nn.Module:
    try:
        layer = build(site.channels)
    except Exception as error:
        raised = f"building the norm for {site.channels} channels raised {error_text(error)}"
        why = error if isinstance(error, ValueError) else raised
        raise ValueError(f"{_where(site)}: {why}") from error
    if not isinstance(layer, nn.Module):
        kind = type(layer).__name__
        raise ValueError(f"{_where(site)}: norm must build an nn.Module, not {kind}")
    return layer


def _where(site: Site) -> str:
    return f"layer {site.name or '(the model)'}"


def _take_over(layer: nn.Module, old: nn.Module, keep_affine: bool, default: Tensor) -> str:
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
            if mine.shape == its.shape and keep_affine:
                mine.copy_(its)
                kept.append(key)
        for key in ("running_mean", "running_var", "num_batches_tracked"):
            mine, its = layer._buffers.get(key), old._buffers.get(key)
            if mine is not None and its is not None and mine.shape == its.shape:
                mine.copy_(its)
    if not had:
        return "absent"
    only_one = f", {had[0]} alone" if len(had) == 1 else ""
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
            f"{_where(site)}: {type(layer).__name__} is a norm and an"
            " activation in one, and whether one follows here cannot be told; put the layer and"
            " its activation into an nn.Sequential, or choose a norm such as gn"
        )
    return "without its own, as what follows is not known", None


def _behind(model: nn.Module, name: str) -> tuple[nn.Sequential, int] | None:
    """Return the sequence and the index of the activation right behind a layer, if it is one."""
    parent, _, attribute = name.rpartition(".")
    sequence = model.get_submodule(parent)
    if not name or getattr(type(sequence), "forward", None) is not nn.Sequential.forward:
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
    pixels = math.prod(site.shape) // site.shape[0] // site.channels
    values = pixels if "h" in pools else 1
    if "c" in pools:
        values *= site.channels // getattr(layer, "num_groups", 1)
    if values < 2:
        shape = site.shape if site.layout != "last" else (site.shape[0], site.shape[-1])
        raise Undefined(
            f"{_where(site)}: {type(layer).__name__} would have one value per"
            f" statistic at its input of shape {tuple(shape)}, so its output would be constant;"
            " use larger images, fewer groups, or another norm"
        )


def _changed(old: nn.Module, layer: nn.Module) -> tuple[str, ...]:
    both = [key for key in _COMPARED if hasattr(old, key) and hasattr(layer, key)]
    pairs = [(key, getattr(old, key), getattr(layer, key)) for key in both]
    return tuple(f"{key} {its} -> {mine}" for key, its, mine in pairs if its != mine)


def out_of_place(model: nn.Module) -> list[str]:
    """Let no module overwrite its input; the numbers stay. Return a note, [] if none did."""
    changed = [m for m in model.modules() if getattr(m, "inplace", False) is True]
    for module in changed:
        module.inplace = False
    note = f"{len(changed)} in-place activations made out-of-place: the numbers are the same"
    return [note] if changed else []


def _standardize(model: nn.Module, found: Found) -> list[str]:
    """Standardize the filters of the plain convolutions right before the layers; return notes.

    Other kinds keep theirs. Raises ValueError when there is no such convolution.
    """
    names = dict.fromkeys(site.convolution for site in found.sites if site.convolution)
    plain = standardize(model, names)
    others = [
        f"{name} ({type(model.get_submodule(name)).__name__})"
        for name in names
        if name not in plain
    ]
    if not plain:
        here = f"right before them is {others[0]}" if others else "this model has none"
        raise ValueError(
            "weight standardization needs an nn.Conv2d right before a normalization layer, and"
            f" {here}; use a norm without, such as norm=gn"
        )
    notes = [f"the filters of {len(plain)} convolutions right before a norm are standardized"]
    return notes + ([f"those of other kinds are not: {', '.join(others)}"] if others else [])


def try_example(model: nn.Module, found: Found, example: Any, prefix: str = "") -> None:
    """Pass the example through the converted model; nothing of the old norms may be reached.

    prefix: as in `find_norms`.
    """
    names = {each.name for each in (*found.sites, *found.left)}
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
