"""The policy of each key of `gnexp train`, which stands at its field: `lr: Any = key(0.1, ...)`."""

import copy
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Key:
    """A key's default and policy. A policy that is not given is the careful one.

    identity: the key can change a run's numbers, so it is part of the run's name.
    compared: the key tells cells of a study apart, and is a hyperparameter for loggers; None: as
    identity.
    stored: a run's folder holds the key; otherwise the key concerns one call.
    stack: trainings that differ in the key may share a step never ("same"), in one CUDA graph
    ("graph"), or also in one stack ("any").
    builds: the network, its first weights or its images follow from the key ("network"); the checks
    before training look at the key ("step"); neither ("").
    grid: a list of values is an axis of a grid ("axis") or one value ("list"); all runs of a grid
    must have the same value ("one").
    """

    default: Any
    identity: bool = True
    compared: bool | None = None
    stored: bool = True
    stack: Literal["same", "graph", "any"] = "same"
    builds: Literal["network", "step", ""] = "network"
    grid: Literal["axis", "list", "one"] = "axis"

    def __post_init__(self) -> None:
        if self.compared is None:
            object.__setattr__(self, "compared", self.identity)


def key(default: Any, *, rule: Any = None, null: bool = False, **policy: Any) -> Any:
    """Return the dataclass field of a key; policy: as of Key.

    rule: of `rules`, or several, that its values keep. null: that null is a value beside them, as
    it is where it is the default.
    """
    metadata = {"policy": policy, "rule": rule, "null": null or default is None}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(schema: type, **policy: Any) -> Any:
    """Return the dataclass field of a group of keys; its policy is that of keys that give none."""
    return dataclasses.field(default_factory=schema, metadata={"policy": policy})


def keys(schema: type) -> dict[str, Key]:
    """Return every key as typed ("data.augment"); raises KeyError for a field without a policy."""
    return dict(_keys(schema(), "", {}))


def _keys(config: Any, prefix: str, of_group: dict[str, Any]) -> Iterator[tuple[str, Key]]:
    for field in dataclasses.fields(config):
        name, default = prefix + field.name, getattr(config, field.name)
        policy = {**of_group, **field.metadata["policy"]}
        if dataclasses.is_dataclass(default):
            yield from _keys(default, f"{name}.", policy)
        else:
            yield name, Key(default, **policy)


def value_of(config: Any, name: str) -> Any:
    """Return the value that a config has for a key."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def with_value(config: Any, name: str, value: Any) -> Any:
    """Return the config with another value for a key."""
    first, _, rest = name.partition(".")
    if rest:
        value = with_value(getattr(config, first), rest, value)
    return dataclasses.replace(config, **{first: value})
