"""Find the YAML files of `configs` and list the keys of a command."""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from gnexp.config.schema import CUSTOM, UsageError


def config_folder() -> Path:
    """Return the YAML folder of a checkout or a wheel; raises UsageError where none can be read."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package.parent / "configs", package / "config" / "yaml"):
        if os.access(folder / "norm", os.R_OK | os.X_OK) and os.access(folder, os.R_OK):
            return folder
    raise UsageError(f"the configs of gnexp cannot be read in {package}: install it for this user")


def norm_names() -> list[str]:
    """Return the names of gnexp's own norms, without importing them."""
    names = sorted(path.stem for path in (config_folder() / "norm").glob("*.yaml"))
    return [name for name in names if name != CUSTOM]


@functools.cache
def norm_defaults(name: str) -> dict[str, Any]:
    """Return the options of a norm of gnexp with their defaults; {} for one that is not gnexp's."""
    if name not in norm_names():
        return {}
    options = OmegaConf.load(config_folder() / "norm" / f"{name}.yaml")
    return {key: value for key, value in options.items() if key != "name"}


def norm_options(name: str) -> list[str]:
    """Return the options of a norm of gnexp, as they are typed."""
    return [f"norm.{key}" for key in norm_defaults(name)]


def keys_of(schema: type, kind: type | None = None, prefix: str = "") -> list[str]:
    """Return the names of all keys of a config, or of those of a type; nested ones with dots."""
    names = []
    for field in dataclasses.fields(schema):
        if kind in (None, field.type):
            names.append(prefix + field.name)
        if dataclasses.is_dataclass(field.type):
            names += keys_of(field.type, kind, f"{prefix}{field.name}.")
    return names
