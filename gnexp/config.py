"""What a user may type: the keys of every command, their types, defaults and rules, and run names.

The YAML files in `configs/` choose values; the dataclasses here give them types. Rules that need
no data and no model are checked here, so that a whole grid is refused before torch is imported.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
from dataclasses import dataclass, field
from typing import Any

CUSTOM = "custom"  # the norm and model choice that is an import path
LR_RULES = ("linear", "sqrt", "none")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "tf32", "bf16")
EXECUTIONS = ("auto", "eager", "compile", "cudagraph")
AUGMENTS = ("crop_flip", "crop", "none")
PRIVACIES = ("none", "dpsgd")
# Of private training, where nothing may be computed from the training images for free.
PRIVATE_MEAN, PRIVATE_STD = 0.5, 0.25
DEFAULT_GROUPS = 8  # divides every layer of the 6n+2 family
LEAST_DRAWS = 4  # of gradients: deleting one of two blocks must leave a variance
RESERVED_STUDIES = ("check", "reference", "report")
REFERENCE_BATCH = 32  # comparisons across batch sizes are against this one, fixed beforehand

# What cannot change a run's numbers, or only says where things lie, stays out of its name.
NOT_IDENTITY = {
    *("device", "execution", "seeds", "study", "out", "workers", "stack"),
    *("reference_batch", "gradients_at", "covariance", "together"),
    *("checkpoint_minutes", "force", "retry"),
}
OF_A_CALL = ("force", "retry")  # not of a run: they are not stored with it
RETRIED = ("failed", "infeasible", "diverged")
# Keys added after the first release: absent from the hash while they hold the value that
# reproduces earlier behaviour, so that old runs keep their names.
ADDED_LATER: dict[str, Any] = {}


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
    preview: bool = False


@dataclass
class ModelConfig:
    """Which network (group `model`)."""

    name: str = "tiny"
    width: int = 32


@dataclass
class PrivacyConfig:
    """Whether training is differentially private (group `privacy`); values of dpsgd: its YAML."""

    name: str = "none"
    epsilon: float | None = None
    delta: float | None = None
    clip: float | None = None


ADDED_LATER["privacy"] = dataclasses.asdict(PrivacyConfig())


@dataclass
class TrainConfig:
    """Everything `gnexp train` reads; one instance is one run with all its seeds."""

    norm: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    privacy: PrivacyConfig = field(default_factory=PrivacyConfig)
    groups: int | None = None
    channels_per_group: int | None = None
    groups_fallback: str | None = None
    batch: int = 32
    update_batch: int | None = None
    seeds: Any = 1
    epochs: int = 4
    lr: Any = 0.1
    lr_rule: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    schedule: str = "cosine"
    zero_gamma: bool = False
    precision: str = "fp32"
    execution: str = "auto"
    device: str = "auto"
    workers: int | None = None
    stack: int | None = None
    gradients: int | None = None
    gradients_augment: bool = False
    gradients_at: Any = None
    covariance: bool = False
    reference_batch: int = REFERENCE_BATCH
    together: Any = None
    checkpoint_minutes: float = 10.0
    force: bool = False
    retry: Any = None
    study: str = "main"
    out: str = "results"


@dataclass
class ReportConfig:
    """Everything `gnexp report` reads."""

    study: str = "main"
    out: str = "results"
    reference_batch: int = REFERENCE_BATCH


@dataclass
class StatusConfig:
    """Everything `gnexp status` reads."""

    study: str = "main"
    out: str = "results"


@dataclass
class MeasureConfig:
    """Everything `gnexp measure` reads."""

    study: str = "main"
    out: str = "results"
    what: Any = field(default_factory=lambda: ["gradients"])
    gradients: int | None = None
    gradients_at: Any = field(default_factory=lambda: [1, 2, 4, 8, 16, 32, 64])
    device: str = "auto"
    workers: int | None = None
    reference_batch: int = REFERENCE_BATCH


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
}


def expand(config: TrainConfig) -> list[TrainConfig]:
    """Return one config per learning rate, with the keys typed under `together=` set.

    Raises Mistake when `together` names a key that no run has.
    """
    if config.together:
        if not isinstance(config.together, dict):
            raise Mistake(f"together={config.together} must be a mapping such as {{groups:4}}")
        names = {f.name for f in dataclasses.fields(TrainConfig)}
        names -= {"norm", "model", "data", "privacy"}
        unknown = sorted(set(config.together) - names)
        if unknown:
            raise Mistake(f"together={{{unknown[0]}:...}} is not a key of a run")
        config = dataclasses.replace(config, **config.together, together=None)
    if isinstance(config.lr, list) and config.lr:
        return [dataclasses.replace(config, lr=rate) for rate in config.lr]
    return [config]


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the config with every default filled in, and what its norm ignores set to None."""
    if is_private(config):
        config = _spending_on_updates_alone(config)
    is_gn = config.norm.get("name") == "gn"
    sized = config.channels_per_group is not None
    groups = config.groups if config.groups is not None or sized else DEFAULT_GROUPS
    return dataclasses.replace(
        config,
        groups=groups if is_gn else None,
        channels_per_group=config.channels_per_group if is_gn else None,
        groups_fallback=config.groups_fallback if is_gn else None,
        update_batch=config.batch if config.update_batch is None else config.update_batch,
        lr=float(config.lr),
        seeds=list(range(config.seeds)) if isinstance(config.seeds, int) else config.seeds,
    )


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


def problems(config: TrainConfig) -> list[str]:
    """Return one sentence for every rule that an expanded config breaks, before it is resolved."""
    found = list(_study_problems(config.study, config.out))
    counts = ("batch", "update_batch", "epochs", "groups", "channels_per_group", "workers", "stack")
    typed = {key: getattr(config, key) for key in (*counts, "reference_batch")}
    found += count_problems({**typed, "model.width": config.model.width})
    for key in ("train_limit", "test_limit"):
        value = getattr(config.data, key)
        if value is not None and value < 1:
            found.append(f"data.{key}={value} must be at least 1, or null for all images")
    found += _choice_problems(config)
    found += _number_problems(config)
    found += _seed_problems(config.seeds)
    found += _retry_problems(config.retry)
    found += gradient_problems(config.gradients, config.gradients_at)
    found += _privacy_problems(config)
    if not found and config.update_batch and config.update_batch % config.batch:
        near = config.batch * max(1, round(config.update_batch / config.batch))
        found.append(
            f"update_batch={config.update_batch} must be a multiple of batch={config.batch},"
            f" such as update_batch={near}"
        )
    if config.covariance and config.gradients_augment:
        found.append(
            "covariance=true needs gradients_augment=false: it holds for the images as they are"
        )
    if config.groups is not None and config.channels_per_group is not None:
        found.append("groups= and channels_per_group= exclude each other: type one of them")
    return found


def count_problems(typed: dict[str, Any]) -> list[str]:
    """Return one sentence for every value that is neither None nor a whole number from 1 up."""
    return [
        f"{key}={value} must be a whole number of at least 1, such as {key}=2"
        for key, value in typed.items()
        if value is not None and (not _is_whole(value) or value < 1)
    ]


def gradient_problems(draws: int | None, batches: Any) -> list[str]:
    """Return what is wrong with `gradients=` and `gradients_at=`."""
    found = []
    if draws is not None and draws != 0 and draws < LEAST_DRAWS:
        found.append(
            f"gradients={draws} must be 0 (none) or at least {LEAST_DRAWS} draws, such as 256"
        )
    listed = isinstance(batches, list) and batches and all(_is_whole(b) for b in batches)
    if batches is not None and not (listed and min(batches) >= 1):
        found.append(f"gradients_at={batches} must be a list of batch sizes, such as [1,2,4,8]")
    return found


def bench_problems(config: BenchConfig) -> list[str]:
    """Return one sentence for every rule that a bench breaks; its norms are not looked up."""
    found = _study_problems(config.name, config.out, "name", "bench")
    found += _list_problems("norms", config.norms, "[bn,gn]", "names of norms")
    found += _list_problems("batches", config.batches, "[1,2,4,8]", "whole numbers from 1 up")
    found += count_problems({"seeds": config.seeds, "repeats": config.repeats})
    if not (math.isfinite(config.seconds) and config.seconds > 0):
        found.append(f"seconds={config.seconds} must be a positive number, such as seconds=3")
    if found:
        return found
    return problems(bench_run(config, config.norms[0], config.batches[0]))


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


def check_problems(config: CheckConfig) -> list[str]:
    """Return one sentence for every rule that a check breaks; its claims are not looked up."""
    found = _study_problems(config.name, config.out, "name", "check")
    if config.claims is not None:
        found += _list_problems("claims", config.claims, "[core,geometry]", "names of claims")
    found += count_problems({"channels": config.channels})
    if not _is_whole(config.draws) or config.draws < LEAST_DRAWS:
        found.append(
            f"draws={config.draws} must be a whole number of at least {LEAST_DRAWS}, such as 64"
        )
    if not _is_whole(config.seed) or config.seed < 0:
        found.append(f"seed={config.seed} must be a whole number from 0 up")
    return found + problems(check_run(config))


def _list_problems(key: str, value: Any, example: str, of: str) -> list[str]:
    def fits(item: Any) -> bool:
        named = key in ("norms", "claims")
        return isinstance(item, str) if named else _is_whole(item) and item >= 1

    if fits(value):
        return [f"{key}={value} must be a list, such as {key}=[{value}]"]
    if not (isinstance(value, list) and value and all(fits(item) for item in value)):
        return [f"{key}={value} must be a list of {of}, such as {key}={example}"]
    once = list(dict.fromkeys(value))
    if once != value:
        shown = ",".join(map(str, once))
        return [f"{key}={value} names one of them twice; type {key}=[{shown}]"]
    return []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _study_problems(study: str, out: str, key: str = "study", example: str = "main") -> list[str]:
    rule = "letters, digits, '.', '_' and '-', without a leading dot"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", study or ""):
        return [f"{key}={study!r} must be 1 to 100 {rule}, such as {key}={example}"]
    if study in RESERVED_STUDIES and (key, study) != ("name", "check"):
        return [f"{key}={study} is a reserved name; choose another, such as {key}={study}-1"]
    return [] if out else ["out= must name a folder, such as out=results"]


def study_problems(config: ReportConfig | MeasureConfig | StatusConfig) -> list[str]:
    """Return what is wrong with the study's name or folder."""
    return _study_problems(config.study, config.out)


def _choice_problems(config: TrainConfig) -> list[str]:
    choices = {
        "lr_rule": (config.lr_rule, LR_RULES),
        "schedule": (config.schedule, SCHEDULES),
        "precision": (config.precision, PRECISIONS),
        "execution": (config.execution, EXECUTIONS),
        "data.augment": (config.data.augment, AUGMENTS),
        "groups_fallback": (config.groups_fallback, (None, "gcd")),
    }
    return [
        f"{key}={value} is not one of {', '.join(str(v) for v in valid if v is not None)}"
        for key, (value, valid) in choices.items()
        if value not in valid
    ]


def _number_problems(config: TrainConfig) -> list[str]:
    ranges: dict[str, tuple[Any, float, float, str]] = {
        "lr": (config.lr, 0, math.inf, "a positive number, such as lr=0.1"),
        "momentum": (config.momentum, -1, 1, "at least 0 and below 1, such as momentum=0.9"),
        "weight_decay": (config.weight_decay, -1, math.inf, "0 or more, such as 0.0005"),
        "warmup": (config.warmup, -1, 1, "a fraction of training from 0 to below 1"),
        "checkpoint_minutes": (config.checkpoint_minutes, -1, math.inf, "0 or more, such as 10"),
    }
    found = []
    for key, (value, low, high, rule) in ranges.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        zero_allowed = low < 0 and number and value == 0
        if not (number and math.isfinite(value) and (max(low, 0) < value < high or zero_allowed)):
            found.append(f"{key}={value} must be {rule}")
    options = {k: v for k, v in config.norm.items() if k != "name"}
    for key, value in options.items() if config.norm.get("name") != CUSTOM else ():
        if not (isinstance(value, int | float) and value > 0 and math.isfinite(value)):
            found.append(f"norm.{key}={value} must be a positive number, such as norm.eps=1e-5")
    return found


def _privacy_problems(config: TrainConfig) -> list[str]:
    typed = dataclasses.asdict(config.privacy)
    name = typed.pop("name")
    if name not in PRIVACIES:
        near = difflib.get_close_matches(str(name), PRIVACIES, n=1, cutoff=0.0)[0]
        return [f"privacy={name} is unknown; did you mean {near}? Valid: {', '.join(PRIVACIES)}"]
    if name == "none":
        return [
            f"privacy.{key}={value} needs privacy=dpsgd: without it training is not private"
            for key, value in typed.items()
            if value is not None
        ]
    found = []
    ranges = {
        "epsilon": (math.inf, "a positive number, such as 8"),
        "delta": (1, "above 0 and below 1, such as 1e-5, or null for 1 / training images"),
        "clip": (math.inf, "a positive number, such as 1.0"),
    }
    for key, (high, rule) in ranges.items():
        value = typed[key]
        if value is None and key == "delta":
            continue
        if value is None or not 0 < value < high:
            found.append(f"privacy.{key}={value} must be {rule}")
    return found + _outside_budget(config)


def _outside_budget(config: TrainConfig) -> list[str]:
    """Return what private training does not do, of what is typed."""
    measured = {key: getattr(config, key) for key in ("gradients", "gradients_at", "covariance")}
    found = [
        f"{key}={value} excludes privacy=dpsgd: gradients of the training images that are measured"
        " and stored are outside the privacy budget; leave it out"
        for key, value in measured.items()
        if value
    ]
    if config.precision == "bf16":
        found.append("precision=bf16 excludes privacy=dpsgd; use precision=fp32")
    if config.execution in ("compile", "cudagraph"):
        found.append(
            f"execution={config.execution} excludes privacy=dpsgd, whose gradients come from hooks;"
            " use execution=auto"
        )
    return found


def _seed_problems(seeds: Any) -> list[str]:
    if _is_whole(seeds) and seeds >= 1:
        return []
    listed = isinstance(seeds, list) and seeds and all(_is_whole(s) and s >= 0 for s in seeds)
    if listed and len(set(seeds)) == len(seeds):
        return []
    return [f"seeds={seeds} must be how many (seeds=5) or distinct seeds by name (seeds=[5,6])"]


def _retry_problems(retry: Any) -> list[str]:
    named = retried(retry)
    if all(isinstance(name, str) and name in RETRIED for name in named):
        return []
    return [f"retry={retry} must be {', '.join(RETRIED)} or a list of them, such as retry=failed"]


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

    Data and imported code enter by checksum: moving the images changes no number, while editing
    the user's norm under the same import path may.
    """
    keys = {k: v for k, v in as_dict(config).items() if k not in NOT_IDENTITY and v is not None}
    keys = {k: v for k, v in keys.items() if k not in ADDED_LATER or v != ADDED_LATER[k]}
    data = keys.pop("data")
    keys["data"] = {k: data[k] for k in ("augment", "mean", "std") if data[k] is not None}
    keys["data"]["checksum"] = data_checksum
    if code_checksum:
        keys["code"] = code_checksum
        keys["norm"] = {**keys["norm"], "_target_": norm_label(config.norm)}
    return keys


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
    return f"{norm}{groups}-b{config.batch}{update}-{config.model.name}{private}-{digest}"


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
    return TrainConfig(**values)
