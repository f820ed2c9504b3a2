"""Stored runs, opened to be measured: their images, and their models at their last weights.

A study may be a stranger's. Code that it names is called if this user trained it here, or says so.
"""

import dataclasses
import importlib
import sys
from collections.abc import Iterable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from gnexp.config.identity import restore, run_name
from gnexp.config.schema import CUSTOM, LIBRARIES, TrainConfig
from gnexp.models.external import is_constructor
from gnexp.norms.module_state import put_state
from gnexp.runner.build.code_digest import code_checksum
from gnexp.runner.build.data import device_images, pick_device
from gnexp.runner.build.initial_model import load_initial_model
from gnexp.runner.build.model import seeded_model
from gnexp.runner.checkpoint import State, load_states
from gnexp.store import trusted_runs
from gnexp.store.run import Run
from gnexp.training.attributes import put_attributes

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


class StoredRun:
    """A finished run with what it was trained on.

    Raises ValueError when that is gone or is no longer the same, and before any code is called that
    is neither `trusted`, as `named_code` names it, nor this user's.
    """

    def __init__(self, run: Run, device: str, trusted: Iterable[str] = ()) -> None:
        result = run.result()
        if "config" not in result:
            raise ValueError("it is not finished: no seed of it has a result")
        self.run, self.config = run, restore(result["config"])
        if strange := set(strange_code(run.folder, self.config)) - {*trusted}:
            raise ValueError(strangers_sentence(strange))
        self.numbers: dict[int, dict[str, Any]] = {int(s): v for s, v in result["seeds"].items()}
        self.device = pick_device(device)
        self.images = device_images(self.config.data, self.device)
        checksums = self.images.summary.checksum, code_checksum(self.config)
        if run_name(self.config, *checksums) != run.name:
            raise ValueError(
                "its images, or the code of its norm, are no longer those it was trained with"
            )

    @property
    def seeds(self) -> list[int]:
        return [seed for seed, v in sorted(self.numbers.items()) if v["status"] == "complete"]

    @cached_property
    def _states(self) -> dict[int, State]:
        return load_states(self.run)

    def model(self, seed: int, trained: bool = True) -> nn.Module:
        """Return the model of a seed, as it ended or as it was initialized, on the device.

        Raises ValueError when its weights are gone.
        """
        if not trained:
            return load_initial_model(self.config, self.images, seed)[0]
        model = seeded_model(self.config, self.images.summary, seed)
        if seed not in self._states:
            raise ValueError(f"there is no checkpoint of seed {seed}, so its weights are gone")
        put_state(model, self._states[seed]["model"])
        put_attributes(model, self._states[seed].get("attributes", {}))
        return model.to(self.device)


def strangers_sentence(code: Iterable[str]) -> str:
    """Return why code that a stored run names is not called, and how it may be."""
    return (
        f"it names {', '.join(sorted(code))}: code that is not of gnexp, torchvision or timm, and"
        " that you did not train with here; if you know it, type trust=true with gnexp measure"
    )
