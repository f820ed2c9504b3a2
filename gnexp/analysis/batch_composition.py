"""Accuracy against the composition of the test batches."""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell, measured_columns
from gnexp.analysis.statistics import t_interval

Row = dict[str, Any]

STATISTICS = ("running", "batch")
SAME_IMAGES = ("iid", "skewed", "one_class")  # each test image counts once
COMPOSITIONS = (*SAME_IMAGES, "label_shift", "label_shift_extreme")


def batch_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell, statistics, composition and evaluation batch size.

    expected, change: over the n_change seeds that have both, else as the table's caption says.
    """
    rows = []
    for cell in cells:
        places: dict[tuple[str, str, int], list[Row]] = {}
        for row in (row for of_seed in cell.measured("batches.csv").values() for row in of_seed):
            place = (row["statistics"], row["composition"], row["at_batch"])
            places.setdefault(place, []).append(row)
        rows += [_row(cell, place, places[place]) for place in sorted(places, key=_order)]
    return rows


def _row(cell: Cell, place: tuple[str, str, int], here: Sequence[Row]) -> Row:
    known = [row for row in here if math.isfinite(row["expected"])]
    change = t_interval([row["accuracy"] - row["expected"] for row in known]).within(-1, 1)
    changes = [row["logit_change"] for row in here if math.isfinite(row["logit_change"])]
    return {
        **cell.key,
        **dict(zip(("statistics", "composition", "at_batch"), place)),
        **measured_columns(cell, here),
        "expected": t_interval([row["expected"] for row in known]).mean,
        **change.columns("change"),
        "n_change": change.n,
        "logit_change": max(changes, default=math.nan),
    }


def _order(place: tuple[str, str, int]) -> tuple[Any, ...]:
    kind, composition, at_batch = place
    return _rank(kind, STATISTICS), _rank(composition, COMPOSITIONS), at_batch


def _rank(value: str, known: Sequence[str]) -> tuple[int, str]:
    return known.index(value) if value in known else len(known), value
