"""The identity of a run: which keys can change its numbers, its name, and its config as a dict."""

import dataclasses
import hashlib
import json
import re
from typing import Any

from gnexp.config.schema import (
    CUSTOM,
    KEYS,
    ConvertConfig,
    DataConfig,
    ModelConfig,
    PrivacyConfig,
    TrainConfig,
    _changes,
    is_foreign,
    is_private,
)

# Options of norms that were added later, with the value under which a norm is as it was before.
NORM_ADDED_LATER = {"momentum_rule": "batches"}


# Keys added after the first release: absent from the hash while they hold the value that
# reproduces earlier behaviour, so that old runs keep their names.
ADDED_LATER: dict[str, Any] = {
    "weight_standardization": False,
    "initialization": "he",
    "init_statistics": "keep",
    "devices": 1,
}


ADDED_LATER["privacy"] = dataclasses.asdict(PrivacyConfig())


ADDED_LATER["convert"] = dataclasses.asdict(ConvertConfig())


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a resolved config as plain JSON-ready values, without what concerns a call alone."""
    stored = {name.partition(".")[0] for name, key in KEYS.items() if key.stored}
    return {k: v for k, v in dataclasses.asdict(config).items() if k in stored}


def identity(config: TrainConfig, data_checksum: str, code_checksum: str | None) -> dict[str, Any]:
    """Return everything that can change the numbers of a run, for hashing.

    Data, imported code and the weights to start from enter by checksum: moving the images changes
    no number, while editing the user's norm under the same import path may.
    """
    hashed = {name.partition(".")[0] for name, key in KEYS.items() if key.identity}
    keys = {k: v for k, v in as_dict(config).items() if k in hashed and v is not None}
    keys = {k: v for k, v in keys.items() if k not in ADDED_LATER or v != ADDED_LATER[k]}
    later = ("library", "_target_", "options")
    keys["model"] = {k: v for k, v in keys["model"].items() if v is not None or k not in later}
    data = keys.pop("data")
    own = {k: v for k, v in data.items() if KEYS[f"data.{k}"].identity}
    keys["data"] = {k: v for k, v in own.items() if v is not None}
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
