"""The rules of single keys, which stand at their fields: `batch: int = key(32, rule=COUNT)`.

A rule returns the sentence of a broken one: it names the key, its value and the rule.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable
from typing import Any

from gnexp.config.unknown import unknown

# (key as typed, its value) -> the sentence, "" for a value that keeps the rule.
Rule = Callable[[str, Any], str]


def broken_rules(config: Any, prefix: str = "") -> list[str]:
    """Return a sentence for every key of a config whose value breaks a rule that stands at it."""
    found = []
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found += broken_rules(value, f"{name}.")
        elif value is not None or not field.metadata["null"]:
            found += broken(field.metadata["rule"], name, value)
    return found


def broken(rules: Rule | tuple[Rule, ...] | None, key: str, value: Any) -> list[str]:
    """Return the sentence of the first of these rules that a value breaks, [] if it keeps all."""
    several = rules if isinstance(rules, tuple) else (rules,) if rules else ()
    return next(([sentence] for rule in several if (sentence := rule(key, value))), [])


def must(fits: Callable[[Any], bool], rule: str) -> Rule:
    """Return the rule whose sentence is "KEY=VALUE RULE"; {key} and {value} may stand in it."""

    def check(key: str, value: Any) -> str:
        shown = "null" if value is None else value
        return "" if fits(value) else f"{key}={shown} {rule.format(key=key, value=value)}"

    return check


def one_of(*names: str) -> Rule:
    """Return the rule of a key that takes one of these names."""
    return must(lambda value: value in names, f"is not one of {', '.join(names)}")


def some_of(*names: str) -> Rule:
    """Return the rule of a key that takes one of these names, or a list of them."""
    return list_of(names.__contains__, ", ".join(names), f"{{key}}=[{names[0]}]", single=True)


def at_least(lowest: int, such: int, what: str = "") -> Rule:
    """Return the rule of a key that takes whole numbers from `lowest` up, such as `such`."""
    number = f"must be a whole number of at least {lowest}{what}, such as {{key}}={such}"
    return must(lambda value: is_whole(value) and value >= lowest, number)


def number(fits: Callable[[float], bool], rule: str) -> Rule:
    """Return the rule of a key that takes finite numbers which fit."""
    return must(lambda value: is_number(value) and fits(value), f"must be {rule}")


def list_of(fits: Callable[[Any], bool], what: str, such: str, single: bool = False) -> Rule:
    """Return the rule of a key that takes a list of distinct values; single: or one such value."""

    def listed(value: Any) -> bool:
        if not isinstance(value, list):
            return single and fits(value)
        return all(map(fits, value)) and 0 < len({*value}) == len(value)

    return must(listed, f"must be a list of {what}, each once, such as {such}")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, and not true or false."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return is_whole(value) and value >= 1


COUNT = at_least(1, 2)
POSITIVE = number(lambda value: value > 0, "a positive number, such as {key}=1")
RATE = must(
    lambda value: value == "tuned" or (is_number(value) and value > 0),
    "must be a positive number, such as lr=0.1, or lr=tuned",
)
SIZES = list_of(_is_count, "whole numbers from 1 up", "{key}=[1,2,4]")
RATES = must(
    lambda value: (
        isinstance(value, list)
        and all(is_number(rate) and rate > 0 for rate in value)
        and len({*value}) >= max(2, len(value))
    ),
    "must be a list of two or more rates, such as {key}=[0.05,0.1,0.2]",
)
NOT_NEGATIVE = number(lambda value: value >= 0, "0 or more")
PART = number(lambda value: 0 <= value < 1, "at least 0 and below 1, such as {key}=0.1")
DELTA = number(
    lambda value: 0 < value < 1,
    "above 0 and below 1, such as 1e-5, or null for N^-1.1 of N training images",
)
MARGIN = number(
    lambda value: 0 <= value < 100, "points of accuracy from 0 to below 100, such as {key}=0.5"
)
LAYERS = list_of(
    _is_text, "layers' names, patterns such as layer4.*, or classes", "[bn1]", single=True
)
SEVERITIES = list_of(
    lambda value: is_whole(value) and 1 <= value <= 5, "whole numbers from 1 to 5", "{key}=[1,3,5]"
)
HELD_OUT = must(
    lambda value: _is_count(value) or (isinstance(value, float) and 0 < value < 1),
    "must be a fraction below 1 or a number of images, such as {key}=0.1",
)
LEAST_DRAWS = 4  # of gradients: deleting one of two blocks must leave a variance
DRAWS = must(
    lambda value: value == 0 or value >= LEAST_DRAWS,
    f"must be 0 (none) or at least {LEAST_DRAWS} draws, such as 256",
)
MOST_AT = 8192  # images in a batch at which gradients are drawn: each point takes 64 of them
DRAWN_AT = list_of(
    lambda value: _is_count(value) and value <= MOST_AT,
    f"batch sizes of at most {MOST_AT}",
    "[1,2,4,8]",
)
MOST_SEEDS = 10_000  # of one run; more is a slip of the finger


def _are_seeds(value: Any) -> bool:
    if not isinstance(value, list):
        return _is_count(value) and value <= MOST_SEEDS
    named = all(is_whole(seed) and 0 <= seed < 2**63 for seed in value)  # as tables hold them
    return named and 0 < len({*value}) == len(value)


SEEDS = must(
    _are_seeds,
    f"must be how many, up to {MOST_SEEDS:,} (seeds=5), or distinct seeds by name, below 2^63"
    " (seeds=[5,6])",
)
RESERVED = ("check", "reference", "report")


def folder_name(such: str, allowed: str = "") -> tuple[Rule, ...]:
    """Return the rules of a key that names a folder of results; allowed: a reserved name."""
    rule = (
        "must be 1 to 100 letters, digits, '.', '_' and '-', without a leading dot, such as"
        f" {{key}}={such}"
    )
    pattern = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")

    def readable(key: str, name: str) -> str:
        return "" if pattern.fullmatch(name) else f"{key}={name!r} {rule}".format(key=key)

    return (
        must(
            lambda name: not name.endswith(".zip"),
            f"is the name of a file: type a folder's, such as {{key}}={such}",
        ),
        readable,
        must(
            lambda name: name == allowed or name not in RESERVED,
            "is a reserved name; choose another, such as {key}={value}-1",
        ),
    )


STUDY = folder_name("main")
FOLDER = must(bool, "must name a folder, such as {key}=results")
LOGGERS = ("tensorboard", "wandb")


def logger(key: str, value: Any) -> str:
    """Return the sentences for names of loggers that are unknown or are not installed."""
    found = []
    for name in dict.fromkeys(value if isinstance(value, list) else [value]):
        if name not in LOGGERS:
            found.append(unknown(f"{key}={name} is unknown", name, LOGGERS))
        elif importlib.util.find_spec(name) is None:
            found.append(
                f"{key}={name} needs a package that is not installed: pip install 'gnexp[{name}]'"
            )
    return "\n".join(found)


def names(such: str) -> Rule:
    """Return the rule of a key that takes a list of names, such as `such`."""
    return list_of(_is_text, "names", f"{{key}}=[{such}]")
