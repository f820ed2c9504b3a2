"""A dict of keys and values as the words that would be typed after `gnexp train`.

So a call from Python and a command line are the same thing: same defaults, rules and sentences.
"""

import numbers
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gnexp.cli.argv import quoted
from gnexp.config.schema import KEYS, UsageError

# Keys whose value is a list by itself; a list for any other key is an axis of a grid.
TAKES_A_LIST = {name for name, key in KEYS.items() if key.grid == "list"}
SECTIONS = {"norm", *(name.partition(".")[0] for name in KEYS if "." in name)}
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_RESERVED = ("true", "false", "null", "nan", "inf")  # words that Hydra reads as other things


def overrides(config: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Return the words for a config: {"norm": ["bn", "gn"]} gives ["norm=bn,gn", "--multirun"].

    config: keys as typed ("norm.eps") or nested ({"data": {"name": "npz", "root": "my.npz"}}), or
    the words themselves. A list is an axis of a grid, except for the keys in TAKES_A_LIST; a list
    of lists is an axis for those too. A class or function for `norm` or `model` stands for its
    import path. Raises UsageError for what cannot be typed.
    """
    if not isinstance(config, Mapping):
        listed = isinstance(config, Sequence) and not isinstance(config, str)
        if not listed or not all(isinstance(word, str) for word in config):
            raise UsageError(
                f"config={config!r} must be a dict, or a list of words such as ['norm=gn']"
            )
        return list(config)
    words, grid = [], False
    for key, value in _flat(config):
        value = _plain(value)
        if _is_axis(key, value):
            if not value:
                raise UsageError(f"{key}=[] is an axis of a grid without a value; give it some")
            grid = grid or len(value) > 1
            words.append(f"{key}={','.join(_word(key, each) for each in value)}")
        else:
            words.append(f"{key}={_word(key, value)}")
    return [*words, "--multirun"] if grid else words


def _flat(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if not isinstance(key, str):
            raise UsageError(f"{key!r} is not a key of gnexp train; keys are words such as 'norm'")
        if key in SECTIONS and isinstance(value, Mapping):
            yield from _of_section(key, value)
        elif key in ("norm", "model") and callable(value):
            yield f"{key}._target_", import_path(key, value)
        else:
            yield key, value


def _of_section(section: str, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is typed for a nested section, whose `name` is the choice that is made in it."""
    values = {key: value for key, value in values.items() if value is not None or key != "_target_"}
    library = values.pop("library", None)
    if library is not None:
        yield section, library
    elif "name" in values:
        name = values.pop("name")
        if "_target_" not in values:
            yield section, name
    for key, value in values.items():
        if key == "_target_" and callable(value):
            value = import_path(section, value)
        yield f"{section}.{key}", value


def import_path(key: str, target: Any) -> str:
    """Return "module.Name" for a class or function; raises UsageError if there is none."""
    if hasattr(target, "forward") and not isinstance(target, type):
        kind = type(target).__name__
        raise UsageError(
            f"{key}={kind}(...) is built already: give {key}={kind}, or its import path"
        )
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if module in (None, "__main__", "builtins") or not name.isidentifier():
        raise UsageError(
            f"{key}={name or type(target).__name__} has no import path, by which other processes"
            f" and later calls find it: put it, under a name, into a file such as my_{key}.py, and"
            f" give {key}._target_='my_{key}.NAME'"
        )
    return f"{module}.{name}"


def _is_axis(key: str, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    nested = bool(value) and all(isinstance(each, list) for each in value)
    return nested or key not in TAKES_A_LIST


def _plain(value: Any) -> Any:
    """Return arrays and all kinds of lists as lists, and numbers of NumPy as Python's."""
    if hasattr(value, "tolist") and not isinstance(value, type):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_plain(each) for each in value]
    return value


def _word(key: str, value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, numbers.Real):
        return repr(value)
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED:
            return text
        return quoted(text)
    if isinstance(value, list):
        return f"[{','.join(_word(key, each) for each in value)}]"
    if isinstance(value, Mapping):
        inner = (f"{name}:{_word(key, _plain(each))}" for name, each in value.items())
        return f"{{{','.join(inner)}}}"
    raise UsageError(
        f"{key}={value!r} is a {type(value).__name__}: give a word, a number or a list"
    )
