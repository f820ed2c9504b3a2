"""A study may be a stranger's: its code is called if this user trained it here, or says so."""

import dataclasses
import importlib
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from gnexp.config.schema import CUSTOM, LIBRARIES, TrainConfig
from gnexp.models.external import is_constructor
from gnexp.store import trusted_runs

# Where the layers of each library are that a norm may be.
_LAYERS = {"gnexp": "gnexp.norms", "torchvision": "torchvision.ops", "timm": "timm.layers"}
# Options of a library's models that fetch or read a file.
_READING = ("weights", "weights_backbone", "pretrained", "pretrained_cfg")
_READING += ("pretrained_cfg_overlay", "checkpoint_path", "cache_dir")


def named_code(config: TrainConfig) -> list[str]:
    """Return what a config has called beyond constructors of gnexp, torchvision and timm.

    As it is typed, such as "norm._target_=my_norm.Mine". None of it is imported to find out.
    """
    model = config.model
    norm = str(config.norm.get("_target_")) if config.norm.get("name") == CUSTOM else None
    whole = None if model._target_ is None else str(model._target_)
    found = []
    for path in filter(None, (norm, whole, model.library)):
        package = path.partition(".")[0]
        if package in LIBRARIES and _lies_here(package):
            return [f"{package} of this folder"]
    if norm is not None and not _is_layer(norm):
        found.append(f"norm._target_={norm}")
    if whole is not None and not is_constructor(whole):
        found.append(f"model._target_={whole}")
    options = model.options if isinstance(model.options, dict) else {}
    return found + [f"model.options.{key}={options[key]}" for key in _READING if key in options]


def _lies_here(package: str) -> bool:
    """Return whether a package would be imported from the current folder, as `python -m` does."""
    origin = getattr(find_spec(package), "origin", None)
    return bool(origin) and Path.cwd() in [*Path(origin).resolve().parents][:2]


def _is_layer(path: str) -> bool:
    module, _, name = path.rpartition(".")
    package = _LAYERS.get(path.partition(".")[0], "none")
    if not f"{module}.".startswith(f"{package}."):
        return False
    try:
        importlib.import_module(package)  # and with it all modules that have layers
    except ImportError:
        return False
    found = vars(sys.modules.get(module, object)).get(name)
    is_a_layer = isinstance(found, type) and issubclass(found, nn.Module)
    return is_a_layer and f"{found.__module__}.".startswith(f"{package}.")


def strange_code(folder: Path, config: TrainConfig) -> list[str]:
    """Return the code that a stored run names, [] if this user trained it here with that code."""
    found = named_code(config)
    return [] if found and trusted_runs.is_trusted(folder, _code(config)) else found


def remember(runs: Iterable[tuple[Path, TrainConfig]]) -> str:
    """Note which runs this user trains with code of her own; return why that failed, or ""."""
    try:
        trusted_runs.trust({f: _code(config) for f, config in runs if named_code(config)})
    except (OSError, RuntimeError) as error:
        return str(error)
    return ""


def _code(config: TrainConfig) -> list[Any]:
    return [config.norm, dataclasses.asdict(config.model)]


def strangers_sentence(code: Iterable[str]) -> str:
    """Return why code that a stored run names is not called, and how it may be."""
    return (
        f"it names {', '.join(sorted(code))}: code that is not of gnexp, torchvision or timm, and"
        " that you did not train with here; if you know it, type trust=true with gnexp measure"
    )
