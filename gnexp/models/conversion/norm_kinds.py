"""Recognize normalization layers among the modules of an external model, and their axes.

Known types go by the path of their class, so that no library is imported to recognize its layers;
all others by a trial. A module that normalizes by an unknown rule is refused: it is never missed in
silence.

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor, nn
from torch.jit import ScriptModule

from gnexp.norms.base import ReplicatedNorm, carries_activation
from gnexp.norms.trials import TENSORS, known_rule, normalizes, pooled_axes

FAMILIES = ("batch", "group", "instance", "layer")


class OwnRule(ValueError):
    """A module normalizes, by a rule that is not known."""


@dataclass(frozen=True)
class Source:
    """One kind of normalization layer.

    family: of FAMILIES; frozen batch statistics are "batch", root mean squares are "layer".
    axes: "2d" for (N, C, H, W), "first" for (N, C, ...), "last" for (..., C). activated: whether
    it goes on with `drop` and `act`, modules of its own.
    """

    family: str
    axes: str = "first"
    activated: bool = False


_TORCH, _TIMM = "torch.nn.modules.", "timm.layers."
_ALIKE = (
    (Source("batch"), f"{_TORCH}batchnorm", "BatchNorm1d BatchNorm3d SyncBatchNorm"),
    (Source("batch", "2d"), f"{_TORCH}batchnorm", "BatchNorm2d"),
    (Source("batch", "2d"), "torchvision.ops.misc", "FrozenBatchNorm2d"),
    (Source("group"), f"{_TORCH}normalization", "GroupNorm"),
    (Source("instance"), f"{_TORCH}instancenorm", "InstanceNorm1d InstanceNorm2d InstanceNorm3d"),
    (Source("layer", "last"), f"{_TORCH}normalization", "LayerNorm RMSNorm"),
    (Source("layer", "2d"), "torchvision.models.convnext", "LayerNorm2d"),
    (Source("group"), f"{_TIMM}norm", "GroupNorm GroupNorm1"),
    (Source("layer", "last"), f"{_TIMM}norm", "LayerNorm RmsNorm SimpleNorm"),
    (Source("layer", "last"), f"{_TIMM}norm", "LayerNormFp32 RmsNormFp32 SimpleNormFp32"),
    (Source("layer", "2d"), f"{_TIMM}norm", "LayerNorm2d RmsNorm2d SimpleNorm2d LayerNormExp2d"),
    (Source("layer", "2d"), f"{_TIMM}norm", "LayerNorm2dFp32 RmsNorm2dFp32 SimpleNorm2dFp32"),
    (Source("batch", "2d", True), f"{_TIMM}norm_act", "BatchNormAct2d SyncBatchNormAct"),
    (Source("batch", "2d", True), f"{_TIMM}norm_act", "FrozenBatchNormAct2d"),
    (Source("group", "first", True), f"{_TIMM}norm_act", "GroupNormAct GroupNorm1Act"),
    (Source("layer", "last", True), f"{_TIMM}norm_act", "LayerNormAct LayerNormActFp32"),
    (Source("layer", "last", True), f"{_TIMM}norm_act", "RmsNormAct RmsNormActFp32"),
    (Source("layer", "2d", True), f"{_TIMM}norm_act", "LayerNormAct2d LayerNormAct2dFp32"),
    (Source("layer", "2d", True), f"{_TIMM}norm_act", "RmsNormAct2d RmsNormAct2dFp32"),
)
SOURCES = {f"{at}.{name}": source for source, at, names in _ALIKE for name in names.split()}
# They divide by something, but standardize nothing that another norm could stand for.
KEPT_AS_IT_IS = {
    f"{_TORCH}normalization.LocalResponseNorm": "it divides by neighbouring channels",
    f"{_TORCH}normalization.CrossMapLRN2d": "it divides by neighbouring channels",
    f"{_TIMM}grn.GlobalResponseNorm": "it gates channels by their norms",
}
_POOLS = {"batch": "nhw", "group": "chw", "instance": "hw", "layer": "c"}
_BASES = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_FUSED = ("torch.ao.nn.", "torch.nn.intrinsic", "torch.nn.quantized", "torch.nn.qat")


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def kept_as_it_is(module: nn.Module) -> str | None:
    """Return why a layer that is called a norm is not one, None for every other module."""
    return KEPT_AS_IT_IS.get(_path(type(module)))


def pools_of(
    module: nn.Module, source: Source | None, shapes: Sequence[tuple[int, ...]]
) -> str | None:
    """Return the axes, letters of "nchw", that share a statistic in a layer that was left.

    None where that is not known. source, shapes: as in `source_of`; without a source by a trial.
    """
    if kept_as_it_is(module):
        return "chw" if type(module).__name__ == "GlobalResponseNorm" else "c"
    if source is None:
        maps = [shape for shape in shapes if len(shape) == 4]
        try:
            return pooled_axes(module, maps[0][1])
        except Exception:  # whatever a layer does with what it was not built for
            return None
    over_maps = source.family == "layer" and len(getattr(module, "normalized_shape", ())) > 1
    return "chw" if over_maps else _POOLS[source.family]


def source_of(module: nn.Module, shapes: Sequence[tuple[int, ...]] = ()) -> Source | None:
    """Return what kind of normalization layer a module is, None if it is none.

    shapes: of inputs, each of which may show by a trial what an unknown module does; see
    `norms.trials`. Raises ValueError, saying why, for what normalizes and cannot be replaced.
    """
    if isinstance(module, ScriptModule):
        raise ValueError("is a ScriptModule, whose layers are compiled; convert the Python model")
    kind = type(module)
    if _path(kind).startswith(_FUSED):
        raise ValueError(f"is a fused or quantized {kind.__name__}; convert before fusing")
    if isinstance(module, ReplicatedNorm):
        if carries_activation(module) and getattr(module, "activated", True):
            raise ValueError(f"is a {kind.__name__} with an activation of its own")
        return Source("batch" if "n" in module.pools else "group", "2d")
    for known in kind.__mro__:
        if source := SOURCES.get(_path(known)):
            if kind.forward is not known.forward or "forward" in vars(module):
                source = _by_trial(module, shapes)
                if source is None:
                    name = known.__name__
                    raise ValueError(f"is a {kind.__name__}: a {name} with a forward of its own")
            _refuse_variant(module, known)
            return source
    if kind.__module__.startswith("torch.nn.modules.") and not isinstance(module, _BASES):
        return None
    divides = any(normalizes(module, shape) for shape in shapes)
    # With or without a forward pass that shows it: the running statistics of batch norm.
    follows = all(isinstance(getattr(module, key, None), Tensor) for key in TENSORS[2:])
    source = _by_trial(module, shapes) if divides or follows else None
    if source is not None:
        _refuse_variant(module, nn.Module)
    elif divides:
        raise OwnRule(
            f"is a {kind.__name__}, which normalizes by a rule of its own: the scale of its input"
            " does not change its output"
        )
    elif isinstance(module, _BASES):
        raise ValueError(f"is a {kind.__name__}, whose rule of normalization is not known")
    return source


def _by_trial(module: nn.Module, shapes: Sequence[tuple[int, ...]]) -> Source | None:
    rules = (known_rule(module, shape) for shape in shapes)
    return next((Source(*rule) for rule in rules if rule), None)


def guessed_shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Return shapes that a module with tensors of its own may take, where none was seen."""
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    sizes = [max(tensor.shape) for tensor in own if tensor.ndim]
    channels = channels_of(module) or (sizes[0] if sizes else 0)
    return [(2, channels, 4, 4), (2, 3, channels), (2, channels)] if channels else []


def _refuse_variant(module: nn.Module, known: type[nn.Module]) -> None:
    kind = type(module)
    if kind.train is not known.train or "train" in vars(module):
        raise ValueError(f"is a {kind.__name__}: a {known.__name__} with a train() of its own")
    if hasattr(module, "parametrizations"):
        raise ValueError(f"is a {known.__name__} whose parameters are parametrized")
    own = module.parameters(recurse=False)
    hooks = [getattr(module, key) for key in _HOOKS]
    if any(hooks) or any(p._backward_hooks or p._post_accumulate_grad_hooks for p in own):
        raise ValueError(f"is a {known.__name__} with hooks, which would be lost; remove them")


def channels_of(module: nn.Module) -> int | None:
    """Return the C of a normalization layer, None where its gain is not one number per channel.

    0 is of a layer without tensors that takes any number of channels.
    """
    for key in ("num_features", "num_channels"):
        if isinstance(value := getattr(module, key, None), Integral):
            return int(value)
    shape = getattr(module, "normalized_shape", None)
    if shape is not None:
        return shape[0] if len(shape) == 1 else None
    weight = getattr(module, "weight", None)
    if weight is None:
        return None if [*module.parameters(recurse=False)] else 0
    return len(weight) if weight.ndim == 1 else None
