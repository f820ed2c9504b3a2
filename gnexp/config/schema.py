"""What a user may type: the keys of every command, their types, defaults and rules, and run names.

The YAML files in `configs/` choose values; the dataclasses here give them types. Rules that need
no data and no model are checked here, so that a whole grid is refused before torch is imported.
"""

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

CUSTOM = "custom"  # the norm and model choice that is an import path
# Of private training, where nothing may be computed from the training images for free.
PRIVATE_MEAN, PRIVATE_STD = 0.5, 0.25
DEFAULT_GROUPS = 8  # divides every layer of the 6n+2 family
TAKES_GROUPS = ("gn", "gn_ws", "evonorm_s0")  # norms that the keys about groups are for
# Norms of the table whose mean and variance can be set anew from images, by init_statistics.
KEEPS_STATISTICS = ("bn", "brn", "gbn", "syncbn", "switchable", "online", "bn_frozen", CUSTOM)
REFERENCE_BATCH = 32  # comparisons across batch sizes are against this one, fixed beforehand

# Options of norms that were added later, with the value under which a norm is as it was before.
NORM_ADDED_LATER = {"momentum_rule": "batches"}

# What cannot change a run's numbers, or only says where things lie, stays out of its name.
NOT_IDENTITY = {
    *("device", "execution", "seeds", "study", "out", "workers", "stack"),
    *("reference_batch", "gradients_at", "covariance", "together"),
    *("checkpoint_minutes", "force", "retry"),
}
# Not of a run: they are not stored with it.
OF_A_CALL = ("force", "retry", "measure", "shift", "tuning", "logger", "report")
TUNED = "tuned"  # the learning rate that is yet to be chosen
TUNING_SEEDS_FROM = 1000  # far from those that people name, as trainings that choose must be
RETRIED = ("failed", "infeasible", "diverged")
# Keys added after the first release: absent from the hash while they hold the value that
# reproduces earlier behaviour, so that old runs keep their names.
ADDED_LATER: dict[str, Any] = {
    "weight_standardization": False,
    "initialization": "he",
    "init_statistics": "keep",
    "devices": 1,
}


class Mistake(Exception):
    """What a user typed cannot be done; the text is one sentence per line."""


@dataclass
class DataConfig:
    """Where the images come from and how they are augmented (group `data`)."""

    name: str = "shapes10"
    root: str | None = None
    train_limit: int | None = None
    test_limit: int | None = None
    size: int | None = None
    title: str | None = None
    augment: str = "crop_flip"
    mean: list[float] | None = None
    std: list[float] | None = None
    validation: Any = None
    preview: bool = False


@dataclass
class ShiftConfig:
    """What corrupted images a trained model is tested on; null is all of them."""

    corruptions: Any = None
    severities: Any = field(default_factory=lambda: [1, 2, 3, 4, 5])
    images: int | None = None
    root: str | None = None


@dataclass
class TuningConfig:
    """Keys of lr=tuned; `untuned` is trained beside the choice, so that the gap is measured.

    epochs, train_limit: the budget of the trials; null is the run's own.
    """

    lr: Any = field(default_factory=lambda: [0.025, 0.05, 0.1, 0.2, 0.4])
    seeds: Any = 2
    validation: Any = 0.1
    epochs: int | None = None
    train_limit: int | None = None
    rule: str = "best"
    extend: int = 2
    untuned: Any = 0.1


@dataclass
class ReportOptions:
    """Keys of a report; margin: points of accuracy beyond which a lead counts."""

    format: Any = field(default_factory=lambda: ["png", "svg"])
    margin: Any = 0.5


@dataclass
class ModelConfig:
    """Which network (group `model`): of gnexp's own table, of a library, or at an import path.

    library: "torchvision" or "timm", where `name` is looked up; null for the table. options: what
    the library's or the user's constructor takes, by name.
    """

    name: str = "tiny"
    width: int | None = 32
    library: str | None = None
    _target_: str | None = None
    options: Any = None


@dataclass
class ConvertConfig:
    """Which normalization layers of a foreign model norm= replaces; null is `gnexp.convert`'s."""

    only: Any = None
    leave: Any = None


@dataclass
class PrivacyConfig:
    """Whether training is differentially private (group `privacy`); values of dpsgd: its YAML."""

    name: str = "none"
    epsilon: float | None = None
    delta: float | None = None
    clip: float | None = None
    noise: str | None = None


ADDED_LATER["privacy"] = dataclasses.asdict(PrivacyConfig())
ADDED_LATER["convert"] = dataclasses.asdict(ConvertConfig())


@dataclass
class TrainConfig:
    """Everything `gnexp train` reads; one instance is one run with all its seeds."""

    norm: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    convert: ConvertConfig = field(default_factory=ConvertConfig)
    data: DataConfig = field(default_factory=DataConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    groups: int | None = None
    channels_per_group: int | None = None
    groups_fallback: str | None = None
    batch: int = 32
    update_batch: int | None = None
    seeds: Any = 1
    epochs: int = 4
    updates: int | None = None
    lr: Any = 0.1
    tuning: TuningConfig = field(default_factory=TuningConfig)
    lr_rule: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    schedule: str = "cosine"
    zero_gamma: bool = False
    weight_standardization: bool = False
    initialization: str = "he"
    init_from: str | None = None
    init_checksum: str | None = None
    init_statistics: str = "keep"
    devices: int = 1
    precision: str = "fp32"
    execution: str = "auto"
    device: str = "auto"
    workers: int | None = None
    stack: int | None = None
    gradients: int | None = None
    gradients_augment: bool = False
    gradients_at: Any = None
    covariance: bool = False
    measure: Any = None
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    reference_batch: int = REFERENCE_BATCH
    together: Any = None
    checkpoint_minutes: float = 10.0
    force: bool = False
    retry: Any = None
    logger: Any = None
    report: ReportOptions = field(default_factory=ReportOptions)
    study: str = "main"
    out: str = "results"


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
class CostConfig:
    """Of what the memory is counted: a network, its norms, images and batch sizes."""

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
}


def expand(config: TrainConfig) -> list[TrainConfig]:
    """Return one config per learning rate typed, with the keys typed under `together=` set.

    Raises Mistake when `together` names a key that no run has, and for a rate typed twice.
    """
    if config.together:
        if not isinstance(config.together, dict):
            raise Mistake(f"together={config.together} must be a mapping such as {{groups:4}}")
        names = {f.name for f in dataclasses.fields(TrainConfig)}
        names -= {"norm", "model", "convert", "data", "privacy", "shift", "tuning", "report"}
        unknown = sorted(set(config.together) - names)
        if unknown:
            raise Mistake(f"together={{{unknown[0]}:...}} is not a key of a run")
        config = dataclasses.replace(config, **config.together, together=None)
    if isinstance(config.lr, list) and config.lr:
        if twice := [rate for rate in config.lr if config.lr.count(rate) > 1]:
            raise Mistake(f"lr={config.lr} names {twice[0]} twice; type each rate once")
        return [dataclasses.replace(config, lr=rate) for rate in config.lr]
    return [config]


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the config with every default filled in, and what its norm ignores set to None."""
    if is_private(config):
        config = _spending_on_updates_alone(config)
    takes_groups = config.norm.get("name") in TAKES_GROUPS
    sized = config.channels_per_group is not None
    groups = config.groups if config.groups is not None or sized else DEFAULT_GROUPS
    keeps = config.norm.get("name") in KEEPS_STATISTICS
    return dataclasses.replace(
        config,
        init_statistics=config.init_statistics if keeps else "keep",
        model=_named_model(config.model),
        groups=groups if takes_groups else None,
        channels_per_group=config.channels_per_group if takes_groups else None,
        groups_fallback=config.groups_fallback if takes_groups else None,
        update_batch=config.update_batch or config.batch * config.devices,
        lr=float(config.lr),
        seeds=named_seeds(config.seeds),
    )


def _named_model(model: ModelConfig) -> ModelConfig:
    """Return the user's own model under the last part of its import path, which tables show."""
    named = model
    if model._target_ is not None and model.name == CUSTOM:
        last = model._target_.rsplit(".", 1)[-1]
        named = dataclasses.replace(model, name=re.sub(r"[^A-Za-z0-9_]", "", last) or CUSTOM)
    return dataclasses.replace(named, options=named.options or None)


def is_tuned(config: TrainConfig) -> bool:
    """Return whether the learning rate is yet to be chosen."""
    return config.lr == TUNED


def tested_on(config: TrainConfig) -> str:
    """Return what images the accuracies of a run are of: "test", or "validation"."""
    return "test" if config.data.validation is None else "validation"


def named_seeds(seeds: Any, first: int = 0) -> list[int]:
    """Return the seeds that a number of them, counted from `first`, or their list stands for."""
    return list(range(first, first + seeds)) if isinstance(seeds, int) else seeds


def trial(config: TrainConfig, rate: float) -> TrainConfig:
    """Return the run by which a rate is judged: on images held out, with seeds of its own."""
    tuning = config.tuning
    limit = config.data.train_limit if tuning.train_limit is None else tuning.train_limit
    data = dataclasses.replace(config.data, validation=tuning.validation, train_limit=limit)
    epochs = config.epochs if tuning.epochs is None else tuning.epochs
    seeds = named_seeds(tuning.seeds, TUNING_SEEDS_FROM)
    kept = {"gradients": 0, "gradients_at": None, "covariance": False, "measure": None}
    return dataclasses.replace(config, lr=rate, data=data, epochs=epochs, seeds=seeds, **kept)


def is_foreign(model: ModelConfig) -> bool:
    """Return whether a network is a library's or the user's own, not of gnexp's table."""
    return model.library is not None or model._target_ is not None


def is_private(config: TrainConfig) -> bool:
    """Return whether the run is trained with DP-SGD."""
    return config.privacy.name != "none"


def _spending_on_updates_alone(config: TrainConfig) -> TrainConfig:
    """Return a private config without what would look at the training images beside the updates.

    That is their mean and std, which are constants unless typed, and the measured gradients.
    """
    mean = [PRIVATE_MEAN] * 3 if config.data.mean is None else config.data.mean
    std = [PRIVATE_STD] * 3 if config.data.std is None else config.data.std
    data = dataclasses.replace(config.data, mean=mean, std=std)
    return dataclasses.replace(config, data=data, gradients=0)


def bench_run(config: BenchConfig, norm: str, batch: int) -> TrainConfig:
    """Return the run that one cell of a bench times, not yet resolved."""
    return TrainConfig(
        norm={"name": norm},
        model=config.model,
        data=config.data,
        groups=config.groups,
        batch=batch,
        seeds=config.seeds,
        epochs=1000,  # so long that trying both layouts of a captured graph is worth it
        precision=config.precision,
        device=config.device,
        workers=config.workers,
    )


def cost_run(cost: CostConfig, norm: str) -> TrainConfig:
    """Return a run of the network whose memory is counted, not yet resolved."""
    model = ModelConfig(cost.model, cost.width)  # without a width the network's own
    return TrainConfig(norm={"name": norm}, model=model, groups=cost.groups)


def check_run(config: CheckConfig) -> TrainConfig:
    """Return a run with the norm under test, whose building and rules are those of training."""
    return TrainConfig(
        norm=config.norm,
        groups=config.groups,
        channels_per_group=config.channels_per_group,
        groups_fallback=config.groups_fallback,
        data=config.data,
        workers=config.workers,
    )


def asked_for(measured: Any) -> list[str]:
    """Return the instruments that `measure=` names."""
    if measured is None:
        return []
    return measured if isinstance(measured, list) else [measured]


def retried(retry: Any) -> list[str]:
    """Return the statuses that `retry=` names."""
    if retry is None:
        return []
    return retry if isinstance(retry, list) else [retry]


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a resolved config as plain JSON-ready values, without what concerns a call alone."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in OF_A_CALL}


def identity(config: TrainConfig, data_checksum: str, code_checksum: str | None) -> dict[str, Any]:
    """Return everything that can change the numbers of a run, for hashing.

    Data, imported code and the weights to start from enter by checksum: moving the images changes
    no number, while editing the user's norm under the same import path may.
    """
    keys = {k: v for k, v in as_dict(config).items() if k not in NOT_IDENTITY and v is not None}
    keys.pop("init_from", None)  # init_checksum stands for it
    keys = {k: v for k, v in keys.items() if k not in ADDED_LATER or v != ADDED_LATER[k]}
    later = ("library", "_target_", "options")
    keys["model"] = {k: v for k, v in keys["model"].items() if v is not None or k not in later}
    data = keys.pop("data")
    own = ("augment", "mean", "std", "validation")
    keys["data"] = {k: data[k] for k in own if data[k] is not None}
    keys["data"]["checksum"] = data_checksum
    later = NORM_ADDED_LATER.items() if config.norm.get("name") != CUSTOM else ()
    keys["norm"] = {k: v for k, v in keys["norm"].items() if (k, v) not in later}
    if changes := _changes(config):
        keys["changes"] = changes
    if code_checksum:
        keys["code"] = code_checksum
        if config.norm.get("name") == CUSTOM:
            keys["norm"]["_target_"] = norm_label(config.norm)
        if config.model._target_ is not None:
            keys["model"]["_target_"] = config.model._target_.rsplit(".", 1)[-1]
    return keys


def _changes(config: TrainConfig) -> list[str]:
    """Return what gives other numbers than when runs of these keys were first named.

    Part of the hash, so that a run is never taken for one that was stored before the change.
    """
    norm = config.norm.get("name")
    without_a_norm = norm in ("none", "none_fixup")
    made = {
        "scalars at a tenth": norm == "none_fixup" or config.initialization == "fixup",
        "controls keep bfloat16": without_a_norm and config.precision == "bf16",
    }
    return [change for change, concerns in made.items() if concerns]


def run_name(config: TrainConfig, data_checksum: str, code_checksum: str | None = None) -> str:
    """Return the folder name of a resolved config: a readable slug and eight hex digits."""
    canonical = json.dumps(identity(config, data_checksum, code_checksum), sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    groups = f"-g{config.groups}" if config.groups else ""
    if config.channels_per_group:
        groups = f"-m{config.channels_per_group}"
    update = "" if config.update_batch == config.batch else f"-u{config.update_batch}"
    norm = norm_label(config.norm)[:40]  # file systems end names at 255 bytes
    private = f"-eps{config.privacy.epsilon:g}" if is_private(config) else ""
    return f"{norm}{groups}-b{config.batch}{update}-{model_label(config.model)}{private}-{digest}"


def model_label(model: ModelConfig) -> str:
    """Return the name a model goes by in folders: its own, after its library's if it has one."""
    name = f"{model.library}-{model.name}" if model.library else model.name
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:60] if is_foreign(model) else name


def norm_label(norm: dict[str, Any]) -> str:
    """Return the name a norm goes by in tables: its own, or the last part of its import path."""
    name = str(norm.get("name"))
    target = str(norm.get("_target_", "")).rsplit(".", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_]", "", target) or name if name == CUSTOM else name


def restore(stored: dict[str, Any]) -> TrainConfig:
    """Return the config that a run folder holds, of this version or an earlier one."""
    known = {f.name for f in dataclasses.fields(TrainConfig)}
    values = {key: value for key, value in stored.items() if key in known}
    values["model"] = ModelConfig(**stored["model"])
    values["data"] = DataConfig(**stored["data"])
    values["privacy"] = PrivacyConfig(**stored.get("privacy", {}))
    values["convert"] = ConvertConfig(**stored.get("convert", {}))
    return TrainConfig(**values)
