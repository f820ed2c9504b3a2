"""What an answer leaves out: norms that are missing, have too few seeds, or were not tuned."""

from collections.abc import Iterable, Sequence
from typing import Any

from gnexp.study import answer_words as words
from gnexp.study.cells import Cell, Series
from gnexp.study.comparisons import Setting
from gnexp.study.inference import TOO_FEW, UNTESTED

MOST = 3  # clauses of one kind; the tables have them all


def missing(lines: Sequence[Series]) -> list[str]:
    """Return which series lack which of the batch sizes that any of them has."""
    every = sorted({cell.key["batch"] for line in lines for cell in line.cells})
    told: dict[str, list[str]] = {}
    for line in lines:
        mine = [cell.key["batch"] for cell in line.cells]
        lost = [batch for batch in every if batch not in mine]
        if lost:
            few = len(mine) <= len(lost)
            text = f"trained only at batch {words.spelled(mine)}"
            text = text if few else f"missing at batch {words.spelled(lost)}"
            told.setdefault(text, []).append(words.name(line))
    if len(told) > MOST:
        names = words.some([name for names in told.values() for name in names])
        return [f"{names} were not trained at every batch size"]
    return [f"{words.some(names)} {_were(names, text)}" for text, names in told.items()]


def _were(names: Sequence[str], text: str) -> str:
    if text.startswith("missing"):
        return f"{'is' if len(names) == 1 else 'are'} {text}"
    return f"{'was' if len(names) == 1 else 'were'} {text}"


def untested(setting: Setting) -> list[str]:
    """Return which comparisons with BN have no p: one seed, or no spread between seeds."""
    bn = {c.key["batch"] for c in setting.bn.cells if len(c.scored) < 2}
    one_seed: dict[str, list[str]] = {}
    no_spread: dict[str, list[str]] = {}
    for line, pairs in setting.pairs:
        lost = [one for one in pairs if one.adjusted.verdict == UNTESTED and one.batch not in bn]
        few = [one.batch for one in lost if one.difference.why == TOO_FEW]
        if few:
            whole = len(few) == len(pairs)
            where = "" if whole else f"at batch {words.spelled(few)} "
            one_seed.setdefault(where, []).append(words.name(line))
        alike = [one.batch for one in lost if one.batch not in few]
        if alike:
            where = f"at batch {words.spelled(alike)}"
            no_spread.setdefault(where, []).append(words.name(line))
    told = []
    for where, names in one_seed.items():
        one = len(names) == 1
        text = (
            f"{'has' if one else 'have'} one seed {where}and {'is' if one else 'are'} not compared"
        )
        if not where:
            text = f"{'was' if one else 'were'} trained with one seed and "
            text += f"{'is' if one else 'are'} not compared"
        told.append(f"{words.some(names)} {text}{' there' * bool(where)}")
    told += [
        f"{where} {words.some(names)} cannot be compared with BN (no spread between seeds)"
        for where, names in no_spread.items()
    ]
    if bn:
        told.append(f"BN has one seed at batch {words.spelled(sorted(bn))}, so nothing is compared")
        told[-1] += " there"
    if len(told) > MOST:
        names = [name for group in (one_seed, no_spread) for of in group.values() for name in of]
        names = words.some([*dict.fromkeys(names), *["BN"] * bool(bn)])
        return [f"{names} were not trained with enough seeds at every batch size to be compared"]
    return told


def untuned(lines: Iterable[Series]) -> str:
    """Return whose learning rates were not tuned where others' were, "" if all are alike."""
    lines = list(lines)
    seen = {_tuned(cell, line) for line in lines for cell in line.cells}
    if not {True, False} <= seen:
        return ""
    told: dict[str, list[str]] = {}
    for line in lines:
        lost = [cell.key["batch"] for cell in line.cells if _tuned(cell, line) is False]
        if lost:
            whole = len(lost) == len(line.cells)
            where = "" if whole else f" at batch {words.spelled(lost)}"
            told.setdefault(where, []).append(words.name(line))
    parts = [
        f"the rate{'s' * (len(names) > 1)} of {words.some(names)} "
        f"{'were' if len(names) > 1 else 'was'} not tuned{where}"
        for where, names in told.items()
    ]
    return "; ".join(parts)


def _tuned(cell: Cell, line: Series) -> Any:
    return cell.key.get("tuned", line.key.get("tuned"))
