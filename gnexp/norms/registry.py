"""The table of norms, and the number of groups that a typed group setting stands for.

One explicit table: to add a norm, write its builder in `layers.py` and its line here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real

from torch import nn

from gnexp.config.unknown import unknown
from gnexp.norms import (
    activating,
    batch_norms,
    layers,
    online,
    pointwise,
    stacked,
    switchable,
    sync_batch_norm,
)
from gnexp.norms.base import stack_replicated

GAMMA_BETA = {"weight": 1.0, "bias": 0.0}


@dataclass(frozen=True)
class Norm:
    """One entry of the table.

    build: called as build(num_channels, **options); the module takes (N, C, H, W).
    options: the keywords `build` takes, each with its default.
    pools: the axes, letters of "nchw", whose values share a statistic; gn pools c within a group.
    source: the paper that introduced it. label: its name for people, in tables and figures.
    parameters: those of a layer, each with the value it starts with in every channel.
    stacked: (module type, its stacked form); without one a layer is stacked by torch.func.
    channels_last: whether training on a CPU is faster in that layout, by measurement.
    weight_standardization, initialization: what the norm asks of the network around it; see
    `gnexp.runner.build.model`.
    """

    build: Callable[..., nn.Module]
    pools: str
    source: str
    label: str
    options: dict[str, object] = field(default_factory=dict)
    parameters: Mapping[str, float] = field(default_factory=lambda: dict(GAMMA_BETA))
    stacked: tuple[type[nn.Module], Callable[..., nn.Module]] | None = None
    channels_last: bool = False
    weight_standardization: bool = False
    initialization: str = "he"


_GROUP_NORM = (nn.GroupNorm, stacked.stack_group_norm)
_CHANNEL_AFFINE = (layers.ChannelAffine, stacked.stack_channel_affine)
_OF_BATCH_NORM = {"eps": layers.DEFAULT_EPS, "momentum": layers.DEFAULT_MOMENTUM}

NORMS: dict[str, Norm] = {
    "bn": Norm(
        layers.batch_norm,
        pools="nhw",
        source="Ioffe & Szegedy 2015, arXiv:1502.03167",
        label="BatchNorm",
        options={"eps": layers.DEFAULT_EPS, "momentum": layers.DEFAULT_MOMENTUM},
        stacked=(nn.BatchNorm2d, stacked.stack_batch_norm),
        channels_last=True,
    ),
    "gn": Norm(
        layers.group_norm,
        pools="chw",
        source="Wu & He 2018, arXiv:1803.08494",
        label="GroupNorm",
        options={"eps": layers.DEFAULT_EPS, "num_groups": layers.DEFAULT_GROUPS},
        stacked=_GROUP_NORM,
    ),
    "ln": Norm(
        layers.layer_norm,
        pools="chw",
        source="Ba et al. 2016, arXiv:1607.06450",
        label="LayerNorm",
        options={"eps": layers.DEFAULT_EPS},
        stacked=_GROUP_NORM,
    ),
    "in": Norm(
        layers.instance_norm,
        pools="hw",
        source="Ulyanov et al. 2016, arXiv:1607.08022",
        label="InstanceNorm",
        options={"eps": layers.DEFAULT_EPS},
        stacked=_GROUP_NORM,
    ),
    "ln2d": Norm(
        pointwise.pixel_layer_norm,
        pools="c",
        source="Liu et al. 2022, arXiv:2201.03545",
        label="LayerNorm2d",
        options={"eps": layers.DEFAULT_EPS},
        stacked=(pointwise.PixelLayerNorm2d, stack_replicated),
    ),
    "rms": Norm(
        pointwise.rms_norm,
        pools="c",
        source="Zhang & Sennrich 2019, arXiv:1910.07467",
        label="RMSNorm",
        options={"eps": layers.DEFAULT_EPS},
        stacked=(pointwise.PixelRMSNorm2d, stack_replicated),
    ),
    "dyt": Norm(
        pointwise.dynamic_tanh,
        pools="",
        source="Zhu et al. 2025, arXiv:2503.10622",
        label="Dynamic Tanh",
        options={"alpha": pointwise.DEFAULT_ALPHA},
        parameters={**GAMMA_BETA, "alpha": pointwise.DEFAULT_ALPHA},
        stacked=(pointwise.DynamicTanh2d, stack_replicated),
    ),
    "frn": Norm(
        activating.filter_response_norm,
        pools="hw",
        source="Singh & Krishnan 2020, arXiv:1911.09737",
        label="FRN with TLU",
        options={"eps": layers.DEFAULT_EPS},
        parameters={**GAMMA_BETA, "tau": 0.0},
        stacked=(activating.FilterResponseNorm2d, stack_replicated),
    ),
    "evonorm_b0": Norm(
        activating.evonorm_b0,
        pools="nhw",
        source="Liu et al. 2020, arXiv:2004.02967",
        label="EvoNorm-B0",
        options={"eps": layers.DEFAULT_EPS, "momentum": layers.DEFAULT_MOMENTUM},
        parameters={**GAMMA_BETA, "v": 1.0},
        stacked=(activating.EvoNormB0, stack_replicated),
    ),
    "evonorm_s0": Norm(
        activating.evonorm_s0,
        pools="chw",
        source="Liu et al. 2020, arXiv:2004.02967",
        label="EvoNorm-S0",
        options={"eps": layers.DEFAULT_EPS, "num_groups": layers.DEFAULT_GROUPS},
        parameters={**GAMMA_BETA, "v": 1.0},
        stacked=(activating.EvoNormS0, stack_replicated),
    ),
    "brn": Norm(
        batch_norms.batch_renorm,
        pools="nhw",
        source="Ioffe 2017, arXiv:1702.03275",
        label="Batch Renorm",
        options={**_OF_BATCH_NORM, **batch_norms.RENORM_DEFAULTS, "total_examples": None},
        stacked=(batch_norms.BatchRenorm2d, stack_replicated),
        channels_last=True,
    ),
    "gbn": Norm(
        batch_norms.ghost_batch_norm,
        pools="nhw",
        source="Hoffer et al. 2017, arXiv:1705.08741",
        label="Ghost BN",
        options={**_OF_BATCH_NORM, "ghost_batch": batch_norms.DEFAULT_GHOST_BATCH},
        stacked=(batch_norms.GhostBatchNorm2d, stack_replicated),
    ),
    "syncbn": Norm(
        sync_batch_norm.synchronized_batch_norm,
        pools="nhw",
        source="Zhang et al. 2018, arXiv:1803.08904",
        label="SyncBN",
        options=_OF_BATCH_NORM,
        stacked=(sync_batch_norm.SynchronizedBatchNorm2d, stack_replicated),
        channels_last=True,
    ),
    "switchable": Norm(
        switchable.switchable_norm,
        pools="nchw",
        source="Luo et al. 2018, arXiv:1806.10779",
        label="Switchable Norm",
        options=_OF_BATCH_NORM,
        parameters={**GAMMA_BETA, "mean_weight": 1.0, "var_weight": 1.0},
        stacked=(switchable.SwitchableNorm2d, stack_replicated),
    ),
    "online": Norm(
        online.online_norm,
        pools="nhw",
        source="Chiley et al. 2019, arXiv:1905.05894",
        label="Online Norm",
        options={"eps": layers.DEFAULT_EPS, "alpha_f": online.ALPHA_F, "alpha_b": online.ALPHA_B},
        stacked=(online.OnlineNorm2d, stack_replicated),
    ),
    "bn_frozen": Norm(
        batch_norms.frozen_batch_norm,
        pools="",
        source="He et al. 2015, arXiv:1512.03385",
        label="frozen BN",
        options={"eps": layers.DEFAULT_EPS},
        parameters={},
        stacked=(batch_norms.FrozenBatchNorm2d, stack_replicated),
    ),
    "gn_ws": Norm(
        layers.group_norm_ws,
        pools="chw",
        source="Qiao et al. 2019, arXiv:1903.10520",
        label="GroupNorm + WS",
        options={"eps": layers.DEFAULT_EPS, "num_groups": layers.DEFAULT_GROUPS},
        stacked=_GROUP_NORM,
        weight_standardization=True,
    ),
    "none": Norm(
        layers.no_norm,
        pools="",
        source="control",
        label="no norm",
        stacked=_CHANNEL_AFFINE,
    ),
    "none_fixup": Norm(
        layers.no_norm_fixup,
        pools="",
        source="Zhang et al. 2019, arXiv:1901.09321",
        label="no norm, Fixup",
        stacked=_CHANNEL_AFFINE,
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
