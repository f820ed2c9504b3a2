"""Sentences on norms that the answer leaves out: missing, too few seeds, not tuned."""

from collections.abc import Sequence

from gnexp.analysis.comparisons import ComparisonGroup
from gnexp.analysis.leaders import BatchVerdict
from gnexp.report.text import phrases
from gnexp.report.text.sentences import write

MOST = 3  # clauses of one kind; the tables have them all
Batches = tuple[int, ...]  # empty: all of them


def gaps(
    setting: ComparisonGroup, found: Sequence[BatchVerdict], names: Sequence[str]
) -> list[str]:
    """Return in a list the sentence on what the answer leaves out; empty where that is nothing."""
    missing = _missing(setting, names)
    one_seed, no_spread = _untested(found, names)
    untested = dict.fromkeys(
        name for kind in (one_seed, no_spread) for of in kind.values() for name in of
    )
    clauses = write(
        "gaps.j2",
        MOST=MOST,
        with_bn=setting.bn,
        tuned=setting.key.get("lr") == "tuned",  # at other rates BN may have been trained
        missing=missing,
        everyone_missing=[name for of in missing.values() for name in of],
        one_seed=one_seed,
        no_spread=no_spread,
        everyone_untested=list(untested),
        untuned=_untuned(setting, names),
    )
    return [f"{phrases.capital('; '.join(clauses))}."] if clauses else []


def _missing(
    setting: ComparisonGroup, names: Sequence[str]
) -> dict[tuple[str, Batches], list[str]]:
    """Return who lacks which of the batch sizes that any has, or was trained at which only."""
    batches = [tuple(c.key["batch"] for c in line.cells if c.scored) for line in setting.lines]
    every = sorted({batch for mine in batches for batch in mine})
    found: dict[tuple[str, Batches], list[str]] = {}
    for name, mine in zip(names, batches):
        lost = tuple(batch for batch in every if batch not in mine)
        kind = ("only", mine) if len(mine) <= len(lost) else ("missing", lost)
        if lost:
            found.setdefault(kind if mine else ("without", ()), []).append(name)
    return found


def _untested(
    found: Sequence[BatchVerdict], names: Sequence[str]
) -> tuple[dict[Batches, list[str]], dict[Batches, list[str]]]:
    """Return who has one seed, and who has no spread, where they were trained beside others."""
    one_seed: dict[Batches, list[str]] = {}
    no_spread: dict[Batches, list[str]] = {}
    for i, name in enumerate(names):
        here = [place for place in found if i in place.cells]
        few = tuple(place.batch for place in here if len(place.cells[i].scored) < 2)
        if few:
            one_seed.setdefault(() if len(few) == len(here) else few, []).append(name)
        alike = (p.batch for p in here if p.over and i not in p.compared and p.batch not in few)
        if batches := tuple(alike):
            no_spread.setdefault(batches, []).append(name)
    return one_seed, no_spread


def _untuned(setting: ComparisonGroup, names: Sequence[str]) -> dict[Batches, list[str]]:
    """Return whose learning rates were not tuned where others' were; empty if all are alike."""
    tuned = {cell.key.get("tuned") for line in setting.lines for cell in line.cells}
    found: dict[Batches, list[str]] = {}
    for name, line in zip(names, setting.lines) if {True, False} <= tuned else ():
        lost = tuple(c.key["batch"] for c in line.cells if c.key.get("tuned") is False)
        if lost:
            found.setdefault(() if len(lost) == len(line.cells) else lost, []).append(name)
    return found
