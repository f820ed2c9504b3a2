"""The words of the answer: names of norms and settings, lists, differences with n."""

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from gnexp.analysis.cells import NORM_LABELS, Series, chosen, norm_label, telling
from gnexp.analysis.comparisons import ComparisonGroup
from gnexp.analysis.tables import table
from gnexp.analysis.tables.table import signed


def names(setting: ComparisonGroup) -> list[str]:
    """Return the setting's norms as a person would call them: 'BN', 'GN with 8 groups'."""
    keys = [line.key for line in setting.lines]
    return ["BN" if line is setting.bn else name(line, keys) for line in setting.lines]


def name(line: Series, keys: Sequence[Mapping[str, Any]]) -> str:
    """Return 'GN with 8 groups', and what else tells the series from those with these keys."""
    plain = NORM_LABELS.get(line.norm, line.norm)
    groups, width = line.key.get("groups"), line.key.get("channels_per_group")
    if line.norm == "none":  # "no norm leads BN" would say something else
        plain = "none (no normalization)"
    elif width is not None:
        plain = f"{plain} with {width} channels per group"
    elif groups is not None:
        plain = f"{plain} with {groups} group{'s' * (groups != 1)}"
    return plain + _more(line, keys)


def _more(line: Series, keys: Sequence[Mapping[str, Any]]) -> str:
    parts = [
        chosen(column, line.key[column], [key.get(column) for key in keys])
        for column in telling(line.key, keys)
        if column != "tuned" and line.key[column] != "tuned"  # told of all of them together
    ]
    return f" ({', '.join(parts)})" if parts else ""


def setting(one: ComparisonGroup, among: Sequence[ComparisonGroup]) -> str:
    """Return what tells a setting from the others: 'with model=resnet8', 'trained from scratch'."""
    parts, start = [], ""
    for key in dict.fromkeys(key for other in among for key in other.key):
        values = [other.key.get(key) for other in among]
        if len(set(map(repr, values))) < 2 or (key == "lr" and key not in one.key):
            continue
        text = chosen(key, one.key.get(key), values)
        if key == "init_from":
            start = f"trained {text}"
        else:
            parts.append(text)
    with_all = f"with {spelled(parts)}" if parts else ""
    if not (start or with_all):
        return "with the rates that were tuned"
    return " ".join(filter(None, (start, with_all)))


def spelled(items: Sequence[object], last: str = "and") -> str:
    """Return '1, 2 and 4'."""
    texts = [str(item) for item in items]
    return f" {last} ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def some(items: Sequence[str], most: int = 3, last: str = "and") -> str:
    """Return '1, 2 and 4', of more than `most` the first of them 'and 9 more'; all but one: all."""
    more = len(items) - most
    return spelled(items if more <= 1 else [*items[:most], f"{more} more"], last)


def either(items: Sequence[str], most: int = 3, among_them: str = "") -> str:
    """Return 'LN, IN or 2 more'; 'LN, IN or 2 more, BN among them' where that one is not named."""
    parts = some(items, most, "or")
    hidden = len(items) > most + 1 and among_them in items[most:]
    return f"{parts}, {among_them} among them" if hidden else parts


def seeds(a: int, b: int) -> str:
    """Return 'n = 5 each', or 'n = 5 and 3'."""
    return f"n = {a} each" if a == b else f"n = {a} and {b}"


def points(difference: float) -> str:
    """Return '12.3 points' of a difference 0..1."""
    return f"{100 * difference if abs(difference) >= 5e-4 else 0.0:.1f} points"


def margin(value: float) -> str:
    """Return '0.5 points' of a margin 0..1."""
    return f"{100 * value:g} points"


def bounds(lo: float, hi: float) -> str:
    """Return '10.9 to 13.7', in points; 'above 0 to 5.2' where the end at 0 is Holm's decision."""
    below, above = ("0.0" if abs(end) < 5e-4 else f"{100 * end:.1f}" for end in (lo, hi))
    return f"{'above 0' if lo == 0 else below} to {'below 0' if hi == 0 else above}"


def plural(n: int, noun: str, many: str = "") -> str:
    """Return '1 seed', '2 seeds', '2 passes'."""
    return f"{n} {noun if n == 1 else many or noun + 's'}"


def verb(items: Sized, one: str, many: str) -> str:
    """Return the verb of one item, or of many."""
    return one if len(items) == 1 else many


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def lowered(text: str) -> str:
    """Return a sentence as it goes on after a colon; a norm's name keeps its capitals."""
    return text[0].lower() + text[1:] if text.startswith(_STARTS) else text


_STARTS = ("At ", "From ", "Up ", "One ", "Every ", "Each ", "Only ", "Nothing ", "Train")


_FUNCTIONS = (spelled, some, either, seeds, points, margin, bounds, plural, verb, signed)
_FUNCTIONS += (norm_label, table.percent, table.estimate)
FUNCTIONS = {function.__name__: function for function in _FUNCTIONS}
FUNCTIONS |= {"table_bounds": table.bounds, "is_finite": math.isfinite}
