"""The keys of every command: their types and defaults.

The YAML files in `configs/` choose values; the dataclasses here give them types. Rules are in
`validation`, run names in `identity`.
"""

from dataclasses import dataclass, field
from typing import Any

from gnexp.config.keys import group, key, keys

CUSTOM = "custom"  # the norm and model choice that is an import path
# Of private training, where nothing may be computed from the training images for free.
PRIVATE_MEAN, PRIVATE_STD = 0.5, 0.25
DEFAULT_GROUPS = 8  # divides every layer of the 6n+2 family
TAKES_GROUPS = ("gn", "gn_ws", "evonorm_s0")  # norms that the keys about groups are for
# Norms of the table whose mean and variance can be set anew from images, by init_statistics.
KEEPS_STATISTICS = ("bn", "brn", "gbn", "syncbn", "switchable", "online", "bn_frozen", CUSTOM)
REFERENCE_BATCH = 32  # comparisons across batch sizes are against this one, fixed beforehand


TUNED = "tuned"  # the learning rate that is yet to be chosen
TUNING_SEEDS_FROM = 1000  # far from those that people name, as trainings that choose must be
RETRIED = ("failed", "infeasible", "diverged")


class UsageError(Exception):
    """A mistake in what a user typed; the text is one sentence per line."""


# The checksum of the images, or of the weights, stands for where they lie.
_BY_CHECKSUM: dict[str, Any] = {"identity": False, "compared": True}
# Keys that say where, how fast or under which name a run is made.
_AROUND: dict[str, Any] = {"identity": False, "stack": "any", "builds": ""}
# Keys that say what one call does beside the training.
_OF_A_CALL: dict[str, Any] = {"identity": False, "stored": False, "stack": "graph", "builds": ""}


@dataclass
class DataConfig:
    """The source of the images and their augmentation (group `data`)."""

    name: str = key("shapes10", **_BY_CHECKSUM)
    root: str | None = key(None, identity=False)
    train_limit: int | None = key(None, **_BY_CHECKSUM)
    test_limit: int | None = key(None, **_BY_CHECKSUM)
    size: int | None = key(None, **_BY_CHECKSUM)
    title: str | None = key(None, identity=False)
    augment: str = key("crop_flip")
    mean: list[float] | None = key(None, grid="list")
    std: list[float] | None = key(None, grid="list")
    validation: Any = key(None)
    preview: bool = key(False, identity=False)


@dataclass
class ShiftConfig:
    """The corrupted images that a trained model is tested on; null is all of them."""

    corruptions: Any = key(None, grid="list")
    severities: Any = key([1, 2, 3, 4, 5], grid="list")
    images: int | None = key(None)
    root: str | None = key(None)


@dataclass
class TuningConfig:
    """Keys of lr=tuned; `untuned` is trained beside the choice, so that the gap is measured.

    epochs, train_limit: the budget of the trials; null is the run's own.
    """

    lr: Any = key([0.025, 0.05, 0.1, 0.2, 0.4], grid="list")
    seeds: Any = key(2, grid="list")
    validation: Any = key(0.1)
    epochs: int | None = key(None)
    train_limit: int | None = key(None)
    rule: str = key("best")
    extend: int = key(2)
    untuned: Any = key(0.1)


@dataclass
class ReportOptions:
    """Keys of a report; margin: points of accuracy beyond which a lead counts."""

    format: Any = key(["png", "svg"], grid="list")
    margin: Any = key(0.5, grid="one")


@dataclass
class ModelConfig:
    """The network (group `model`): of gnexp's own table, of a library, or at an import path.

    library: "torchvision" or "timm", where `name` is looked up; null for the table. options: what
    the library's or the user's constructor takes, by name.
    """

    name: str = key("tiny")
    width: int | None = key(32)
    library: str | None = key(None)
    _target_: str | None = key(None)
    options: Any = key(None)


@dataclass
class ConvertConfig:
    """The normalization layers of an external model that norm= replaces; null is all of them."""

    only: Any = key(None, grid="list")
    leave: Any = key(None, grid="list")


@dataclass
class PrivacyConfig:
    """Differentially private training or not (group `privacy`); values of dpsgd: its YAML."""

    name: str = key("none")
    epsilon: float | None = key(None)
    delta: float | None = key(None)
    clip: float | None = key(None)
    noise: str | None = key(None)


@dataclass
class TrainConfig:
    """Everything `gnexp train` reads; one instance is one run with all its seeds."""

    norm: dict[str, Any] = key({}, stack="graph")
    model: ModelConfig = group(ModelConfig, stack="graph")
    convert: ConvertConfig = group(ConvertConfig, stack="graph")
    data: DataConfig = group(DataConfig)
    privacy: PrivacyConfig = group(PrivacyConfig, stack="graph")
    groups: int | None = key(None, stack="graph")
    channels_per_group: int | None = key(None, stack="graph")
    groups_fallback: str | None = key(None, stack="graph")
    batch: int = key(32, builds="step")
    update_batch: int | None = key(None, builds="step")
    seeds: Any = key(1, identity=False, stack="any", builds="step", grid="list")
    epochs: int = key(4, builds="step")
    updates: int | None = key(None, builds="")
    lr: Any = key(0.1, stack="any", builds="", grid="list")
    tuning: TuningConfig = group(TuningConfig, **_OF_A_CALL)
    lr_rule: str = key("linear", builds="")
    momentum: float = key(0.9, stack="graph", builds="")
    weight_decay: float = key(5e-4, stack="graph", builds="")
    warmup: float = key(0.05, builds="")
    schedule: str = key("cosine", builds="")
    zero_gamma: bool = key(False, stack="graph")
    weight_standardization: bool = key(False, stack="graph")
    initialization: str = key("he", stack="graph")
    init_from: str | None = key(None, **_BY_CHECKSUM, stack="graph")
    init_checksum: str | None = key(None, compared=False, stack="graph")
    init_statistics: str = key("keep", stack="graph")
    devices: int = key(1, builds="step")
    precision: str = key("fp32", builds="step")
    execution: str = key("auto", identity=False, builds="")
    device: str = key("auto", identity=False, builds="step")
    workers: int | None = key(None, **_AROUND)
    stack: int | None = key(None, **_AROUND)
    gradients: int | None = key(None, compared=False, stack="graph", builds="")
    gradients_augment: bool = key(False, stack="graph", builds="")
    gradients_at: Any = key(None, **_AROUND, grid="list")
    covariance: bool = key(False, **_AROUND)
    measure: Any = key(None, **_OF_A_CALL, grid="list")
    shift: ShiftConfig = group(ShiftConfig, **_OF_A_CALL)
    reference_batch: int = key(REFERENCE_BATCH, **_AROUND, grid="one")
    together: Any = key(None, **_AROUND)
    checkpoint_minutes: float = key(10.0, **_AROUND)
    force: bool = key(False, **_OF_A_CALL)
    retry: Any = key(None, **_OF_A_CALL, grid="list")
    logger: Any = key(None, **_OF_A_CALL, grid="list")
    report: ReportOptions = group(ReportOptions, **_OF_A_CALL)
    study: str = key("main", **_AROUND, grid="one")
    out: str = key("results", **_AROUND, grid="one")


KEYS = keys(TrainConfig)


@dataclass
class ReportConfig:
    """Everything `gnexp report` reads; two studies are compared."""

    study: Any = "main"
    out: str = "results"
    reference_batch: int = REFERENCE_BATCH
    report: ReportOptions = field(default_factory=ReportOptions)
    logger: Any = None


@dataclass
class StatusConfig:
    """Everything `gnexp status` reads."""

    study: str = "main"
    out: str = "results"


@dataclass
class VerifyConfig:
    """Everything `gnexp verify` reads."""

    study: str = "main"
    out: str = "results"
    record: bool = False  # give files that have no digest the one that they have now


@dataclass
class ExportConfig:
    """Everything `gnexp export` reads."""

    study: str = "main"
    out: str = "results"


@dataclass
class CostConfig:
    """The keys of a memory table: a network, its norms, image and batch sizes."""

    model: str = "resnet20"
    width: int | None = None
    norms: Any = field(default_factory=lambda: ["bn", "gn", "ln", "in", "none"])
    groups: int | None = None
    size: int = 32
    batches: Any = field(default_factory=lambda: [1, 2, 4, 8])
    memory_gb: float = 8.0


@dataclass
class MeasureConfig:
    """Everything `gnexp measure` reads; trust: call code of a study that was trained elsewhere."""

    study: str = "main"
    out: str = "results"
    what: Any = field(default_factory=lambda: ["gradients"])
    gradients: int | None = None
    gradients_at: Any = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    device: str = "auto"
    workers: int | None = None
    reference_batch: int = REFERENCE_BATCH
    trust: bool = False


@dataclass
class BenchConfig:
    """Everything `gnexp bench` reads."""

    norms: Any = field(default_factory=lambda: ["bn", "gn"])
    batches: Any = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    seeds: int = 5
    model: ModelConfig = field(default_factory=lambda: ModelConfig("resnet20", 16))
    data: DataConfig = field(default_factory=DataConfig)
    groups: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    workers: int | None = None
    repeats: int = 3
    seconds: float = 3.0
    out: str = "results"
    name: str = "bench"


@dataclass
class CheckConfig:
    """Everything `gnexp check` reads; one instance is one norm under test."""

    norm: dict[str, Any] = field(default_factory=dict)
    groups: int | None = None
    channels_per_group: int | None = None
    groups_fallback: str | None = None
    reference: str | None = None
    claims: Any = None
    channels: int = 64
    draws: int = 64
    seed: int = 0
    data: DataConfig = field(default_factory=DataConfig)
    workers: int | None = None
    out: str = "results"
    name: str = "check"


COMMANDS: dict[str, type] = {
    "train": TrainConfig,
    "check": CheckConfig,
    "report": ReportConfig,
    "measure": MeasureConfig,
    "bench": BenchConfig,
    "status": StatusConfig,
    "verify": VerifyConfig,
    "export": ExportConfig,
}


def is_tuned(config: TrainConfig) -> bool:
    """Return whether the learning rate is yet to be chosen."""
    return config.lr == TUNED


def tested_on(config: TrainConfig) -> str:
    """Return what images the accuracies of a run are of: "test", or "validation"."""
    return "test" if config.data.validation is None else "validation"


def is_external(model: ModelConfig) -> bool:
    """Return whether a network is a library's or the user's own, not of gnexp's table."""
    return model.library is not None or model._target_ is not None


def is_private(config: TrainConfig) -> bool:
    """Return whether the run is trained with DP-SGD."""
    return config.privacy.name != "none"


def instruments(measured: Any) -> list[str]:
    """Return the instruments that `measure=` names."""
    if measured is None:
        return []
    return measured if isinstance(measured, list) else [measured]


def retry_statuses(retry: Any) -> list[str]:
    """Return the statuses that `retry=` names."""
    if retry is None:
        return []
    return retry if isinstance(retry, list) else [retry]
