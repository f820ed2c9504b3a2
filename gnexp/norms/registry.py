"""The table of norms, and the number of groups that a typed group setting stands for.

One explicit table: to add a norm, write its layer and its line here.
"""

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from torch import nn

from gnexp.config.unknown import unknown
from gnexp.norms import layers, stacked
from gnexp.norms.activating import EvoNormB0, EvoNormS0, FilterResponseNorm2d
from gnexp.norms.base import ReplicatedNorm, stack_replicated
from gnexp.norms.batch_norms import (
    BatchRenorm2d,
    FrozenBatchNorm2d,
    GhostBatchNorm2d,
    SynchronizedBatchNorm2d,
)
from gnexp.norms.online import OnlineNorm2d
from gnexp.norms.pointwise import (
    DEFAULT_ALPHA,
    ChannelAffine,
    DynamicTanh2d,
    PixelLayerNorm2d,
    PixelRMSNorm2d,
)
from gnexp.norms.switchable import SwitchableNorm2d

GAMMA_BETA = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Norm:
    """One entry of the table.

    build: called as build(num_channels, **options); the module takes (N, C, H, W).
    label: its name for people, in tables and figures. source: the paper that introduced it.
    pools: the axes, letters of "nchw", whose values share a statistic; gn pools c within a group.
    parameters: those of a layer, each with the value it starts with in every channel.
    stacked: (module type, its stacked form); without one a layer is stacked by torch.func.
    channels_last: whether training on a CPU is faster in that layout, by measurement.
    weight_standardization, initialization: what the norm asks of the network around it; see
    `gnexp.runner.build.model`.
    """

    build: Callable[..., nn.Module]
    label: str
    source: str
    pools: str
    parameters: Mapping[str, float] = field(default_factory=lambda: dict(GAMMA_BETA))
    stacked: tuple[type[nn.Module], Callable[..., nn.Module]] | None = None
    channels_last: bool = False
    weight_standardization: bool = False
    initialization: str = "he"

    @functools.cached_property
    def options(self) -> dict[str, object]:
        """The keywords that `build` takes, each with its default."""
        taken = inspect.signature(self.build).parameters.values()
        return {p.name: p.default for p in taken if p.default is not p.empty}


def _own(build: type[ReplicatedNorm], label: str, source: str, **parameters: float) -> Norm:
    """Return the entry of a layer of gnexp's own, which says itself what it pools.

    parameters: those beside gamma and beta.
    """
    stacked_form = build, stack_replicated
    return Norm(build, label, source, build.pools, {**GAMMA_BETA, **parameters}, stacked_form)


def _grouped(
    build: Callable[..., nn.Module], label: str, source: str, pools: str = "chw", **more: Any
) -> Norm:
    """Return the entry of a norm whose layers are group norms."""
    stacked_form = nn.GroupNorm, stacked.stack_group_norm
    return Norm(build, label, source, pools, stacked=stacked_form, **more)


NORMS: dict[str, Norm] = {
    "bn": Norm(
        layers.batch_norm,
        "BatchNorm",
        "Ioffe & Szegedy 2015, arXiv:1502.03167",
        pools="nhw",
        stacked=(nn.BatchNorm2d, stacked.stack_batch_norm),
        channels_last=True,
    ),
    "gn": _grouped(layers.group_norm, "GroupNorm", "Wu & He 2018, arXiv:1803.08494"),
    "ln": _grouped(layers.layer_norm, "LayerNorm", "Ba et al. 2016, arXiv:1607.06450"),
    "in": _grouped(
        layers.instance_norm, "InstanceNorm", "Ulyanov et al. 2016, arXiv:1607.08022", pools="hw"
    ),
    "ln2d": _own(PixelLayerNorm2d, "LayerNorm2d", "Liu et al. 2022, arXiv:2201.03545"),
    "rms": _own(PixelRMSNorm2d, "RMSNorm", "Zhang & Sennrich 2019, arXiv:1910.07467"),
    "dyt": _own(
        DynamicTanh2d, "Dynamic Tanh", "Zhu et al. 2025, arXiv:2503.10622", alpha=DEFAULT_ALPHA
    ),
    "frn": _own(
        FilterResponseNorm2d, "FRN with TLU", "Singh & Krishnan 2020, arXiv:1911.09737", tau=0.0
    ),
    "evonorm_b0": _own(EvoNormB0, "EvoNorm-B0", "Liu et al. 2020, arXiv:2004.02967", v=1.0),
    "evonorm_s0": _own(EvoNormS0, "EvoNorm-S0", "Liu et al. 2020, arXiv:2004.02967", v=1.0),
    "brn": replace(
        _own(BatchRenorm2d, "Batch Renorm", "Ioffe 2017, arXiv:1702.03275"), channels_last=True
    ),
    "gbn": _own(GhostBatchNorm2d, "Ghost BN", "Hoffer et al. 2017, arXiv:1705.08741"),
    "syncbn": replace(
        _own(SynchronizedBatchNorm2d, "SyncBN", "Zhang et al. 2018, arXiv:1803.08904"),
        channels_last=True,
    ),
    "switchable": _own(
        SwitchableNorm2d,
        "Switchable Norm",
        "Luo et al. 2018, arXiv:1806.10779",
        mean_weight=1.0,
        var_weight=1.0,
    ),
    "online": _own(OnlineNorm2d, "Online Norm", "Chiley et al. 2019, arXiv:1905.05894"),
    "bn_frozen": replace(
        _own(FrozenBatchNorm2d, "frozen BN", "He et al. 2015, arXiv:1512.03385"), parameters={}
    ),
    "gn_ws": _grouped(  # behind the convolutions of models.weight_standardization
        layers.group_norm,
        "GroupNorm + WS",
        "Qiao et al. 2019, arXiv:1903.10520",
        weight_standardization=True,
    ),
    "none": _own(ChannelAffine, "no norm", "control"),
    "none_fixup": replace(  # see models.initialization
        _own(ChannelAffine, "no norm, Fixup", "Zhang et al. 2019, arXiv:1901.09321"),
        initialization="fixup",
    ),
}
STACKED_FORMS = dict(entry.stacked for entry in NORMS.values() if entry.stacked)


def build_norm(name: str, num_channels: int, **options: object) -> nn.Module:
    """Return the layer `name` of the table for (N, C, H, W) inputs with C = `num_channels`.

    Options left out take the table's defaults. Raises ValueError for an unknown name or option,
    naming the nearest valid one, for values that are no numbers, and for those the builder refuses.
    """
    if not isinstance(name, str) or name not in NORMS:
        labels = {entry.label: known for known, entry in NORMS.items()}
        raise ValueError(unknown(f"norm={name} is unknown", name, NORMS, also=labels))
    entry = NORMS[name]
    for option in options:
        if option not in entry.options:
            sentence = f"{option} is not an option of norm={name}"
            raise ValueError(unknown(sentence, option, entry.options))
    require_channels(num_channels)
    for option, value in options.items():
        averages_all = name == "bn" and option == "momentum" and value is None
        if not averages_all:
            _require_kind(option, value, entry.options[option])
    return entry.build(num_channels, **{**entry.options, **options})


def require_channels(num_channels: object) -> None:
    """Raise ValueError unless it is a whole number of at least 1."""
    whole = isinstance(num_channels, Integral) and not isinstance(num_channels, bool)
    if not whole or num_channels < 1:
        raise ValueError(f"num_channels={num_channels!r} must be a whole number from 1 up")


def _require_kind(option: str, value: object, usual: object) -> None:
    """Raise ValueError unless an option is a number as its usual value is, or None if that may be.

    What numbers are valid is for the builder to say.
    """
    kind, called = (Integral, "a whole number") if isinstance(usual, int) else (Real, "a number")
    absent = value is None and usual is None
    if not absent and (isinstance(value, bool) or not isinstance(value, kind)):
        such = f", such as {usual:g}" if isinstance(usual, Real) else ""
        raise ValueError(f"{option}={value!r} must be {called}{such}")


def group_count(
    num_channels: int,
    groups: int | None = None,
    channels_per_group: int | None = None,
    fallback: str | None = None,
) -> int:
    """Return the number of groups for a layer of `num_channels` channels.

    Give `groups` or `channels_per_group`, not both; neither means 8 groups. A value that does not
    divide the channels raises ValueError with the valid ones, unless fallback="gcd" asks for the
    greatest common divisor of the value and the channels; whoever asks records the result.
    """
    if groups is not None and channels_per_group is not None:
        raise ValueError(
            f"groups={groups} and channels_per_group={channels_per_group} exclude each other; "
            "give one of them"
        )
    if fallback not in (None, "gcd"):
        raise ValueError(f"groups_fallback={fallback} is unknown; valid: gcd, or null for none")
    by_size = channels_per_group is not None
    key = "channels_per_group" if by_size else "groups"
    value = channels_per_group if by_size else groups
    if value is None:
        value = layers.DEFAULT_GROUPS
    if fallback == "gcd" and value >= 1:
        value = math.gcd(value, num_channels)
    layers.require_divisor(key, value, num_channels)
    return num_channels // value if by_size else value
