"""The keys of every command: their types and defaults.

The YAML files in `configs/` choose values; the dataclasses here give them types, and to each key
its own rules and policy. Rules across keys are in `validation`, run names in `identity`.
"""

from dataclasses import dataclass
from typing import Any

from gnexp.config import rules
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
AT_END = ("shift", "batches")
LIBRARIES = ("torchvision", "timm")
FORMATS = ("pdf", "svg", "png")
EXECUTIONS = ("auto", "eager", "compile", "cudagraph")


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
    train_limit: int | None = key(None, rule=rules.COUNT, **_BY_CHECKSUM)
    test_limit: int | None = key(None, rule=rules.COUNT, **_BY_CHECKSUM)
    size: int | None = key(None, **_BY_CHECKSUM)
    title: str | None = key(None, identity=False)
    augment: str = key("crop_flip", rule=rules.one_of("crop_flip", "crop", "none"))
    mean: list[float] | None = key(None, grid="list")
    std: list[float] | None = key(None, grid="list")
    validation: Any = key(None, rule=rules.HELD_OUT)
    preview: bool = key(False, identity=False)


@dataclass
class ShiftConfig:
    """The corrupted images that a trained model is tested on; null is all of them."""

    corruptions: Any = key(None, rule=rules.names("fog,contrast"), grid="list")
    severities: Any = key([1, 2, 3, 4, 5], rule=rules.SEVERITIES, grid="list")
    images: int | None = key(None, rule=rules.COUNT)
    root: str | None = key(None)


@dataclass
class TuningConfig:
    """Keys of lr=tuned; `untuned` is trained beside the choice, so that the gap is measured.

    epochs, train_limit: the budget of the trials; null is the run's own.
    """

    lr: Any = key([0.025, 0.05, 0.1, 0.2, 0.4], rule=rules.RATES, grid="list")
    seeds: Any = key(2, rule=rules.SEEDS, grid="list")
    validation: Any = key(0.1, rule=rules.HELD_OUT)
    epochs: int | None = key(None, rule=rules.COUNT)
    train_limit: int | None = key(None, rule=rules.COUNT)
    rule: str = key("best", rule=rules.one_of("best", "one_se"))
    extend: int = key(2, rule=rules.at_least(0, 2))
    untuned: Any = key(0.1, rule=rules.POSITIVE, null=True)


@dataclass
class ReportOptions:
    """Keys of a report; margin: points of accuracy beyond which a lead counts."""

    format: Any = key(["png", "svg"], rule=rules.some_of(*FORMATS), grid="list")
    margin: Any = key(0.5, rule=rules.MARGIN, grid="one")


@dataclass
class ModelConfig:
    """The network (group `model`): of gnexp's own table, of a library, or at an import path.

    library: "torchvision" or "timm", where `name` is looked up; null for the table. options: what
    the library's or the user's constructor takes, by name.
    """

    name: str = key("tiny")
    width: int | None = key(32, rule=rules.COUNT, null=True)
    library: str | None = key(None, rule=rules.one_of(*LIBRARIES))
    _target_: str | None = key(None)
    options: Any = key(None)


@dataclass
class ConvertConfig:
    """The normalization layers of an external model that norm= replaces; null is all of them."""

    only: Any = key(None, rule=rules.LAYERS, grid="list")
    leave: Any = key(None, rule=rules.LAYERS, grid="list")


@dataclass
class PrivacyConfig:
    """Differentially private training or not (group `privacy`); values of dpsgd: its YAML."""

    name: str = key("none", rule=rules.one_of("none", "dpsgd"))
    epsilon: float | None = key(None, rule=rules.POSITIVE)
    delta: float | None = key(None, rule=rules.DELTA)
    clip: float | None = key(None, rule=rules.POSITIVE)
    noise: str | None = key(None, rule=rules.one_of("seeded", "secret"))


@dataclass
class TrainConfig:
    """Everything `gnexp train` reads; one instance is one run with all its seeds."""

    norm: dict[str, Any] = key({}, stack="graph")
    model: ModelConfig = group(ModelConfig, stack="graph")
    convert: ConvertConfig = group(ConvertConfig, stack="graph")
    data: DataConfig = group(DataConfig)
    privacy: PrivacyConfig = group(PrivacyConfig, stack="graph")
    groups: int | None = key(None, rule=rules.COUNT, stack="graph")
    channels_per_group: int | None = key(None, rule=rules.COUNT, stack="graph")
    groups_fallback: str | None = key(None, rule=rules.one_of("gcd"), stack="graph")
    batch: int = key(32, rule=rules.COUNT, builds="step")
    update_batch: int | None = key(None, rule=rules.COUNT, builds="step")
    seeds: Any = key(1, rule=rules.SEEDS, identity=False, stack="any", builds="step", grid="list")
    epochs: int = key(4, rule=rules.COUNT, builds="step")
    updates: int | None = key(None, rule=rules.COUNT, builds="")
    lr: Any = key(0.1, rule=rules.RATE, stack="any", builds="", grid="list")
    tuning: TuningConfig = group(TuningConfig, **_OF_A_CALL)
    lr_rule: str = key("linear", rule=rules.one_of("linear", "sqrt", "none"), builds="")
    momentum: float = key(0.9, rule=rules.PART, stack="graph", builds="")
    weight_decay: float = key(5e-4, rule=rules.NOT_NEGATIVE, stack="graph", builds="")
    warmup: float = key(0.05, rule=rules.PART, builds="")
    schedule: str = key("cosine", rule=rules.one_of("cosine", "constant"), builds="")
    zero_gamma: bool = key(False, stack="graph")
    weight_standardization: bool = key(False, stack="graph")
    initialization: str = key("he", rule=rules.one_of("he", "fixup"), stack="graph")
    init_from: str | None = key(None, **_BY_CHECKSUM, stack="graph")
    init_checksum: str | None = key(None, compared=False, stack="graph")
    init_statistics: str = key("keep", rule=rules.one_of("keep", "reestimate"), stack="graph")
    devices: int = key(1, rule=rules.COUNT, builds="step")
    precision: str = key("fp32", rule=rules.one_of("fp32", "tf32", "bf16"), builds="step")
    execution: str = key("auto", rule=rules.one_of(*EXECUTIONS), identity=False, builds="step")
    device: str = key("auto", identity=False, builds="step")
    workers: int | None = key(None, rule=rules.COUNT, **_AROUND)
    stack: int | None = key(None, rule=rules.COUNT, **_AROUND)
    gradients: int | None = key(None, rule=rules.DRAWS, compared=False, stack="graph", builds="")
    gradients_augment: bool = key(False, stack="graph", builds="")
    gradients_at: Any = key(None, rule=rules.DRAWN_AT, **_AROUND, grid="list")
    covariance: bool = key(False, **_AROUND)
    measure: Any = key(None, rule=rules.some_of(*AT_END), **_OF_A_CALL, grid="list")
    shift: ShiftConfig = group(ShiftConfig, **_OF_A_CALL)
    reference_batch: int = key(REFERENCE_BATCH, rule=rules.COUNT, **_AROUND, grid="one")
    together: Any = key(None, **_AROUND)
    checkpoint_minutes: float = key(10.0, rule=rules.NOT_NEGATIVE, **_AROUND)
    force: bool = key(False, **_OF_A_CALL)
    retry: Any = key(None, rule=rules.some_of(*RETRIED), **_OF_A_CALL, grid="list")
    logger: Any = key(None, rule=rules.logger, **_OF_A_CALL, grid="list")
    report: ReportOptions = group(ReportOptions, **_OF_A_CALL)
    study: str = key("main", rule=rules.STUDY, **_AROUND, grid="one")
    out: str = key("results", rule=rules.FOLDER, **_AROUND, grid="one")


KEYS = keys(TrainConfig)


@dataclass
class ReportConfig:
    """Everything `gnexp report` reads; two studies are compared."""

    study: Any = key("main")
    out: str = key("results", rule=rules.FOLDER)
    reference_batch: int = key(REFERENCE_BATCH, rule=rules.COUNT)
    report: ReportOptions = group(ReportOptions)
    logger: Any = key(None, rule=rules.logger)


@dataclass
class StatusConfig:
    """Everything `gnexp status` reads."""

    study: str = key("main")
    out: str = key("results", rule=rules.FOLDER)


@dataclass
class VerifyConfig(StatusConfig):
    """Everything `gnexp verify` reads; record: give files without a digest that of today."""

    record: bool = key(False)


@dataclass
class ExportConfig(StatusConfig):
    """Everything `gnexp export` reads."""


@dataclass
class CostConfig:
    """The keys of a memory table: a network, its norms, image and batch sizes."""

    model: str = key("resnet20")
    width: int | None = key(None, rule=rules.COUNT)
    norms: Any = key(["bn", "gn", "ln", "in", "none"], rule=rules.names("bn,gn"))
    groups: int | None = key(None, rule=rules.COUNT)
    size: int = key(32, rule=rules.at_least(8, 128, " pixels"))
    batches: Any = key([1, 2, 4, 8], rule=rules.SIZES)
    memory_gb: float = key(8.0, rule=rules.POSITIVE)


@dataclass
class MeasureConfig:
    """Everything `gnexp measure` reads; trust: call code of a study that was trained elsewhere."""

    study: str = key("main")
    out: str = key("results", rule=rules.FOLDER)
    what: Any = key(["gradients"])
    gradients: int | None = key(None, rule=rules.DRAWS)
    gradients_at: Any = key([1, 2, 4, 8, 16, 32, 64], rule=rules.DRAWN_AT, null=True)
    shift: ShiftConfig = group(ShiftConfig)
    cost: CostConfig = group(CostConfig)
    device: str = key("auto")
    workers: int | None = key(None, rule=rules.COUNT)
    reference_batch: int = key(REFERENCE_BATCH, rule=rules.COUNT)
    trust: bool = key(False)


@dataclass
class BenchConfig:
    """Everything `gnexp bench` reads."""

    norms: Any = key(["bn", "gn"], rule=rules.names("bn,gn"))
    batches: Any = key([1, 2, 4, 8, 16, 32, 64], rule=rules.SIZES)
    seeds: int = key(5, rule=rules.COUNT)
    model: ModelConfig = group(lambda: ModelConfig("resnet20", 16))
    data: DataConfig = group(DataConfig)
    groups: int | None = key(None)
    device: str = key("auto")
    precision: str = key("fp32")
    workers: int | None = key(None)
    repeats: int = key(3, rule=rules.COUNT)
    seconds: float = key(3.0, rule=rules.POSITIVE)
    out: str = key("results", rule=rules.FOLDER)
    name: str = key("bench", rule=rules.folder_name("bench"))


@dataclass
class CheckConfig:
    """Everything `gnexp check` reads; one instance is one norm under test."""

    norm: dict[str, Any] = key({})
    groups: int | None = key(None)
    channels_per_group: int | None = key(None)
    groups_fallback: str | None = key(None)
    reference: str | None = key(None)
    claims: Any = key(None, rule=rules.names("core,geometry"))
    channels: int = key(64, rule=rules.COUNT)
    draws: int = key(64, rule=rules.at_least(rules.LEAST_DRAWS, 64))
    seed: int = key(0, rule=rules.at_least(0, 1))
    data: DataConfig = group(DataConfig)
    workers: int | None = key(None)
    out: str = key("results", rule=rules.FOLDER)
    name: str = key("check", rule=rules.folder_name("check", allowed="check"))


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


def listed(value: Any) -> list[Any]:
    """Return what a key names that takes a name, a list of them, or null."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
