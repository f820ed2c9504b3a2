"""Sentences on norms that the answer leaves out: missing, too few seeds, not tuned."""

from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell
from gnexp.analysis.comparisons import ComparisonGroup
from gnexp.analysis.leaders import BatchVerdict
from gnexp.report.text import phrases

MOST = 3  # clauses of one kind; the tables have them all


def gaps(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], names: Sequence[str]
) -> list[str]:
    """Return in a list the sentence on what the answer leaves out; empty where that is nothing."""
    parts = [*_bn(setting), *_missing(setting, names), *_untested(setting, found, names)]
    parts += _untuned(setting, names)
    return [f"{phrases.capital('; '.join(parts))}."] if parts else []


def _bn(setting: ComparisonGroup) -> list[str]:
    if setting.bn:
        return []
    # At other learning rates it may have been trained.
    return [f"BN was not {'tuned' if setting.key.get('lr') == 'tuned' else 'trained'}"]


def _missing(setting: ComparisonGroup, names: Sequence[str]) -> list[str]:
    """Return which series lack which of the batch sizes that any of them has."""
    batches = [[c.key["batch"] for c in line.cells if c.scored] for line in setting.lines]
    every = sorted({batch for mine in batches for batch in mine})
    parts: dict[str, list[str]] = {}
    for name, mine in zip(names, batches):
        lost = [batch for batch in every if batch not in mine]
        if lost:
            few = len(mine) <= len(lost)
            text = f"trained only at batch {phrases.spelled(mine)}"
            text = text if few else f"missing at batch {phrases.spelled(lost)}"
            text = text if mine else "without a finished seed"
            parts.setdefault(text, []).append(name)
    if len(parts) > MOST:
        all_of_them = phrases.some([name for names in parts.values() for name in names])
        return [f"{all_of_them} were not trained at every batch size"]
    return [f"{phrases.some(names)} {_were(names, text)}" for text, names in parts.items()]


def _were(names: Sequence[str], text: str) -> str:
    if not text.startswith("trained"):
        return f"{'is' if len(names) == 1 else 'are'} {text}"
    return f"{'was' if len(names) == 1 else 'were'} {text}"


def _untested(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], names: Sequence[str]
) -> list[str]:
    """Return which norms were compared with none where they were trained beside others, and why."""
    one_seed: dict[str, list[str]] = {}
    no_spread: dict[str, list[str]] = {}
    for i, name in enumerate(names):
        here = [place for place in found if i in place.cells]
        few = [place.batch for place in here if len(place.cells[i].scored) < 2]
        if few:
            where = "" if len(few) == len(here) else f"at batch {phrases.spelled(few)} "
            one_seed.setdefault(where, []).append(name)
        alike = [p.batch for p in here if p.over and i not in p.compared and p.batch not in few]
        if alike:
            no_spread.setdefault(f"at batch {phrases.spelled(alike)}", []).append(name)
    parts = []
    for where, of in one_seed.items():
        is_are, was_were = ("is", "was") if len(of) == 1 else ("are", "were")
        text = (
            f"{'has' if len(of) == 1 else 'have'} one seed {where}and {is_are} not compared there"
        )
        if not where:
            text = f"{was_were} trained with one seed and {is_are} not compared"
        parts.append(f"{phrases.some(of)} {text}")
    parts += [
        f"{where} {phrases.some(of)} cannot be compared (no spread between seeds)"
        for where, of in no_spread.items()
    ]
    if len(parts) > MOST:
        every = [name for group in (one_seed, no_spread) for of in group.values() for name in of]
        return [f"{phrases.some([*dict.fromkeys(every)])} lack seeds to be compared everywhere"]
    return parts


def _untuned(setting: ComparisonGroup, names: Sequence[str]) -> list[str]:
    """Return whose learning rates were not tuned where others' were; empty if all are alike."""
    if not {True, False} <= {_tuned(cell) for line in setting.lines for cell in line.cells}:
        return []
    parts: dict[str, list[str]] = {}
    for name, line in zip(names, setting.lines):
        lost = [cell.key["batch"] for cell in line.cells if _tuned(cell) is False]
        if lost:
            whole = len(lost) == len(line.cells)
            where = "" if whole else f" at batch {phrases.spelled(lost)}"
            parts.setdefault(where, []).append(name)
    return [
        f"the rate{'s' * (len(of) > 1)} of {phrases.some(of)} "
        f"{'were' if len(of) > 1 else 'was'} not tuned{where}"
        for where, of in parts.items()
    ]


def _tuned(cell: Cell) -> Any:
    return cell.key.get("tuned")
