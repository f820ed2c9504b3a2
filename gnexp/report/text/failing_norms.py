"""Sentences on norms that fail at small batches, for studies of many norms."""

from collections.abc import Mapping, Sequence
from typing import Any

from gnexp.analysis.cells import Cell
from gnexp.analysis.leaders import seeds_at_chance
from gnexp.analysis.statistics import LOWER
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.text.sentences import write

Row = dict[str, Any]


def failing_sentences(analysis: StudyAnalysis) -> list[str]:
    """Return who trains at the reference batch, and for each smaller one who fails there.

    A norm fails where it is decidedly below its own accuracy at the reference (the families and
    simultaneous intervals of the table of differences), where a seed diverged, or where the
    accuracy of a seed is not above chance: its Wilson interval over the test images holds 1 / K.
    """
    at: dict[int, dict[str, Cell]] = {}
    for line in analysis.series:
        for cell in line.cells:
            at.setdefault(cell.key["batch"], {})[line.label] = cell
    reference = analysis.reference_batch
    sizes = [_at_size(size, at[size], analysis.flatness) for size in sorted(at) if size < reference]
    trained = at.get(reference, {})
    facts = {"trained": len(trained), "lost": _lost(trained), "reference": reference}
    return write("failing_norms.j2", **facts, sizes=sizes)


def _at_size(size: int, here: Mapping[str, Cell], rows: Sequence[Row]) -> Row:
    lower = []
    for label, cell in here.items():
        row = next((r for r in rows if all(r.get(k) == v for k, v in cell.key.items())), None)
        if row and row["verdict"] == LOWER:
            lower.append((label, row))
    lower.sort(key=lambda found: (found[1]["difference"], found[0]))
    counts = sorted({(row["n"], row["n_reference"]) for _, row in lower})
    return {"batch": size, "n": len(here), "lower": lower, "counts": counts, "lost": _lost(here)}


def _lost(here: Mapping[str, Cell]) -> list[tuple[str, str]]:
    """Return (series, how many of its seeds diverged or are not above chance) where any are."""
    found = []
    for label, cell in here.items():
        lost = {"diverged": len(cell.of("diverged")), "at chance": seeds_at_chance(cell)}
        every = len(cell.of("diverged")) + len(cell.accuracies)
        if any(lost.values()):
            texts = [f"{n} of {every} {what}" for what, n in lost.items() if n]
            found.append((label, ", ".join(texts)))
    return found
