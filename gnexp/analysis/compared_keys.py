"""The keys that tell a study's runs apart: the policy of the config's keys, and what varies."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from gnexp.store.study import Record

BASE = ("norm", "groups", "channels_per_group", "batch", "update_batch")

# A key that is in no list here tells cells apart. The lists repeat the policy of the keys (a test
# compares), because a study is read without the config package: also one of another machine.
_NOT_COMPARED = {
    *("study", "seeds", "out", "workers", "stack", "device", "execution", "together"),
    *("reference_batch", "checkpoint_minutes", "init_checksum"),
    *("gradients", "gradients_at", "covariance", "data.root", "data.title", "data.preview"),
}
# Keys with a column, or a rule, of their own.
_OTHERWISE_COMPARED = {
    *("norm.name", *BASE, "data.validation"),
    *("privacy.name", "privacy.epsilon"),  # both are in `epsilon`
}
NOT_PRIVATE = "none"
_RENAMED = {"model.name": "model", "data.name": "data"}
# Private runs have their own: these count only when they differ among the private or the others.
_WITH_PRIVACY = ("privacy.", "data.mean", "data.std")
# Trials may have a part of the budget of the runs that they choose a rate for.
_OF_A_BUDGET = ("epochs", "updates", "data.train_limit", "data.checksum")
OF_A_NORM = ("norm.", "init_statistics")  # and so compared among runs of one norm alone
_NOT_TYPED = "default"  # what an option of the user's own norm is, if it was not typed
_OF_A_MODEL = "model.code"  # and so compared among runs of one model alone


def is_trial(record: Record) -> bool:
    """Return whether a run is judged on images held out of its training set, not on test images."""
    return record.config.get("data", {}).get("validation") is not None


def varying(runs: Sequence[Record]) -> list[str]:
    """Return the config keys, beyond BASE, that take several values among the runs.

    A norm's own keys count only when they differ within one norm, and those of private training
    within it. An option of the user's own norm that was not typed counts as such. The budget of
    trials counts only where there is nothing but trials.
    """
    judged = not all(map(is_trial, runs))
    values: dict[tuple[str, str], list[str]] = {}
    for record in runs:
        for key, value in _compared(record).items():
            if not (key in _OF_A_BUDGET and judged and is_trial(record)):
                within = (key, _within(key, record.config))
                values.setdefault(within, []).append(repr(value))
    own = Counter(norm_name(record.config) for record in runs if _is_own(record.config))
    return sorted(
        {
            key
            for (key, within), seen in values.items()
            if len(set(seen)) > 1 or (_is_option(key) and own[within] > len(seen))
        }
    )


def _within(key: str, config: Mapping[str, Any]) -> str:
    """Return the kind of runs among which a key's values are compared, "" for all."""
    if key.startswith(OF_A_NORM):
        return norm_name(config)
    if key == _OF_A_MODEL:
        return key_text(config.get("model"))
    if key.startswith(_WITH_PRIVACY):
        return "others" if epsilon(config) == NOT_PRIVATE else "private"
    return ""


def cell_key(record: Record, extras: Collection[str]) -> dict[str, Any]:
    """Return what identifies the record's cell: BASE, then the extra keys."""
    config, compared = record.config, _compared(record)
    if _is_own(config):
        compared = {**dict.fromkeys(filter(_is_option, extras), _NOT_TYPED), **compared}
    batch = config.get("batch")
    return {
        "norm": norm_name(config),
        "groups": config.get("groups"),
        "channels_per_group": config.get("channels_per_group"),
        "batch": batch,
        "update_batch": config.get("update_batch") or batch,
        **{extra: compared.get(extra) for extra in extras},
    }


def _is_own(config: Mapping[str, Any]) -> bool:
    """Return whether the norm is the user's own."""
    return "_target_" in _norm_of(config)


def _is_option(key: str) -> bool:
    return key.startswith("norm.") and key != "norm.code"


def norm_name(config: Mapping[str, Any]) -> str:
    """Return the norm's name; for an own norm the last part of its import path."""
    norm = _norm_of(config)
    target = norm.get("_target_")
    return str(target).rsplit(".", 1)[-1] if target else str(norm.get("name"))


def _norm_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    norm = config.get("norm") or {}
    return {"name": norm} if isinstance(norm, str) else norm


def _compared(record: Record) -> dict[str, Any]:
    flat = {
        k: v for k, v in _flatten(record.config) if k not in _NOT_COMPARED | _OTHERWISE_COMPARED
    }
    checksum = record.result.get("data", {}).get("checksum")
    if checksum:
        flat["data.checksum"] = str(checksum)[:8]
    flat["epsilon"] = epsilon(record.config)
    if flat.get("updates"):
        flat.pop("epochs", None)  # which follow from the updates
    for part, digest in record.provenance.get("code", {}).items():
        flat[f"{part}.code"] = digest[:6]
    if flat.get("init_from"):
        flat["init_from"] = start_name(record.config)
    return {_RENAMED.get(key, key): value for key, value in flat.items()}


def start_name(config: Mapping[str, Any]) -> str:
    """Return what a run started from: the name of its run or file, and which weights these were."""
    path = PurePath(config["init_from"])
    path = path.parent if path.name == "checkpoint.pt" else path
    shown = "/".join(path.parts[-2:] if path.name.startswith("seed-") else path.parts[-1:])
    return f"{shown} ({str(config.get('init_checksum'))[:6]})"


def epsilon(config: Mapping[str, Any]) -> Any:
    """Return the epsilon of the config, NOT_PRIVATE without one."""
    privacy = config.get("privacy") or {}
    if privacy.get("name", "none") == "none":
        return NOT_PRIVATE
    asked = float(privacy["epsilon"])
    return int(asked) if asked.is_integer() else asked


def _flatten(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, key_text(value) if isinstance(value, (list, tuple)) else value


def key_text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
