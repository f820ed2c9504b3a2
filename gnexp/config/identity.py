"""The identity of a run: which keys can change its numbers, its name, and its config as a dict."""

import dataclasses
import hashlib
import json
import re
from typing import Any

from gnexp.config.files import norm_defaults
from gnexp.config.keys import value_of, with_value
from gnexp.config.resolve import resolve
from gnexp.config.schema import CUSTOM, KEYS, ModelConfig, TrainConfig, is_external, is_private


def as_dict(config: TrainConfig) -> dict[str, Any]:
    """Return a resolved config as JSON types, without the keys of a call."""
    stored = {name.partition(".")[0] for name, key in KEYS.items() if key.stored}
    return {k: v for k, v in dataclasses.asdict(config).items() if k in stored}


def identity(config: TrainConfig, data_checksum: str, code_checksum: str | None) -> dict[str, Any]:
    """Return everything that can change the numbers of a run and is not a default, for hashing.

    A key holds its default when the config would be the same without it: a key that is added later
    renames no run. Data, imported code and the weights to start from enter by checksum: moving the
    images changes no number, while editing the user's norm under the same import path may.
    """
    config, found = resolve(config), {"data.checksum": data_checksum}
    for name, key in KEYS.items():
        value = value_of(config, name)
        if key.identity and name != "norm" and value != key.default:
            without = with_value(config, name, key.default)
            if resolve(without) != config:
                found[name] = value
    usual = norm_defaults(config.norm["name"])
    found |= {f"norm.{k}": v for k, v in config.norm.items() if k not in usual or usual[k] != v}
    if code_checksum:
        found["code"] = code_checksum
        if config.norm["name"] == CUSTOM:
            found["norm._target_"] = norm_label(config.norm)
        if config.model._target_ is not None:
            found["model._target_"] = config.model._target_.rsplit(".", 1)[-1]
    return {name: _as_written(value) for name, value in found.items()}


def _as_written(value: Any) -> Any:
    """Return a value with whole numbers as such: 3.0 is 3."""
    if isinstance(value, dict):
        return {key: _as_written(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_as_written(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


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
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)[:60] if is_external(model) else name


def norm_label(norm: dict[str, Any]) -> str:
    """Return the name a norm goes by in tables: its own, or the last part of its import path."""
    name = str(norm.get("name"))
    target = str(norm.get("_target_", "")).rsplit(".", 1)[-1]
    return re.sub(r"[^A-Za-z0-9_]", "", target) or name if name == CUSTOM else name


def restore(stored: dict[str, Any]) -> TrainConfig:
    """Return the config that a run folder holds; raises ValueError for a key of another gnexp."""
    try:
        groups = {
            field.name: field.type(**stored[field.name])
            for field in dataclasses.fields(TrainConfig)
            if dataclasses.is_dataclass(field.type) and field.name in stored
        }
        return TrainConfig(**{**stored, **groups})
    except TypeError as error:
        raise ValueError(f"a stored config is not of this gnexp: {error}") from error
