"""The sentence for an unknown name, with the nearest valid one: the same words everywhere."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches


def unknown(
    sentence: str,
    word: object,
    valid: Iterable[str],
    listed: Iterable[str] | None = None,
    also: Mapping[str, str] | None = None,
) -> str:
    """Return "SENTENCE; did you mean NEAREST? Valid: ALL", without a question if none is valid.

    word: the unknown name that the sentence is about. listed: the names after "Valid", if other
    than all valid ones; () for no list. also: other spellings of valid names, as {spelling: name}.
    """
    names = list(valid)
    by_lower = {s.lower(): name for s, name in (also or {}).items()}
    by_lower |= {name.lower(): name for name in names}
    near = get_close_matches(str(word).lower(), by_lower, n=1, cutoff=0.0)
    text = f"{sentence}; did you mean {by_lower[near[0]]}?" if near else sentence
    shown = ", ".join(names if listed is None else listed)
    return f"{text} Valid: {shown}" if shown else text
