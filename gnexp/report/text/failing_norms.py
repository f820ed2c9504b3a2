"""Sentences on norms that fail at small batches, for studies of many norms."""

from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell
from gnexp.analysis.leaders import seeds_at_chance
from gnexp.analysis.statistics import LOWER
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import percent
from gnexp.report.text.phrases import seeds

Row = dict[str, Any]


def failing_sentences(analysis: StudyAnalysis) -> list[str]:
    """Return who trains at the reference batch, and for each smaller one who fails there.

    A norm fails where it is decidedly below its own accuracy at the reference (the families and
    simultaneous intervals of the table of differences), where a seed diverged, or where the
    accuracy of a seed is not above chance: its Wilson interval over the test images holds 1 / K.
    """
    reference = analysis.reference_batch
    at = {line.label: {c.key["batch"]: c for c in line.cells} for line in analysis.series}
    found = [_at_reference(at, reference)]
    sizes = sorted({size for cells in at.values() for size in cells if size < reference})
    for size in sizes:
        here = {label: cells[size] for label, cells in at.items() if size in cells}
        found.append(_at_size(here, analysis.flatness, size, reference))
    return [sentence for sentence in found if sentence]


def _at_reference(at: dict[str, dict[int, Cell]], reference: int) -> str:
    here = {label: cells[reference] for label, cells in at.items() if reference in cells}
    if not here:
        return ""
    lost = [f"{label} ({why})" for label, cell in here.items() if (why := _lost(cell))]
    who = f"all {len(here)} series" if not lost else f"{len(here) - len(lost)} of {len(here)}"
    but = f"; not {', '.join(lost)}" if lost else ""
    return (
        f"Above chance at batch {reference}, each seed by its Wilson interval over the test "
        f"images: {who}{but}."
    )


def _at_size(here: dict[str, Cell], rows: Sequence[Row], size: int, reference: int) -> str:
    lower: list[tuple[float, str, Row]] = []
    for label, cell in here.items():
        row = next((r for r in rows if all(r.get(k) == v for k, v in cell.key.items())), None)
        if row and row["verdict"] == LOWER:
            lower.append((row["difference"], label, row))
    counts = {seeds(row["n"], row["n_reference"]) for *_, row in lower}
    n = f", {next(iter(counts))}" if len(counts) == 1 else ""
    lost = [f"{label} ({why})" for label, cell in here.items() if (why := _lost(cell))]
    parts = []
    if lower:
        falls = [_fall(*one, not n) for one in sorted(lower, key=lambda one: one[:2])]
        parts.append(
            f"{len(lower)} of {len(here)} are below their own accuracy at batch {reference}, "
            f"worst first: {', '.join(falls)} points (simultaneous 95 % intervals{n})"
        )
    else:
        parts.append(f"none of {len(here)} is decidedly below its own accuracy at {reference}")
    if lost:
        parts.append(f"not above chance: {', '.join(lost)}")
    return f"At batch {size}, {'; '.join(parts)}."


def _lost(cell: Cell) -> str:
    """Return how many seeds diverged or are not above chance, "" if none."""
    diverged = len(cell.of("diverged"))
    chance, every = seeds_at_chance(cell), diverged + len(cell.accuracies)
    parts = [
        f"{n} of {every} {what}" for n, what in ((diverged, "diverged"), (chance, "at chance")) if n
    ]
    return ", ".join(parts)


def _fall(difference: float, label: str, row: Row, with_n: bool) -> str:
    lo, hi = percent(row["lo_simultaneous"]), percent(row["hi_simultaneous"])
    n = f" ({seeds(row['n'], row['n_reference'])})" * with_n
    return f"{label} {percent(difference)} [{lo}, {hi}]{n}"
