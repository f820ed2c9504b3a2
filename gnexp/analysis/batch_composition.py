"""Accuracy against the composition of the test batches."""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell, accuracy_interval

Row = dict[str, Any]

STATISTICS = ("running", "batch")
SAME_IMAGES = ("iid", "skewed", "one_class")  # each test image counts once
COMPOSITIONS = (*SAME_IMAGES, "label_shift", "label_shift_extreme")


def batch_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell, statistics, composition and evaluation batch size.

    accuracy (0..1) and loss_nats: mean over the n seeds, 95 % intervals. expected: mean of what
    the accuracy would be if only the size of the batch mattered; change: accuracy - expected,
    paired over the n_change seeds that have both. logit_change: the largest of any seed. Diverged
    seeds are left out.
    """
    rows = []
    for cell in cells:
        seeds = {
            seed: {_place(row): row for row in found}
            for seed, found in cell.measured("batches.csv").items()
        }
        for place in sorted({p for of in seeds.values() for p in of}, key=_order):
            here = [of[place] for of in seeds.values() if place in of]
            rows.append({**cell.key, **_row(cell, place, here)})
    return rows


def _row(cell: Cell, place: tuple[str, str, int], here: Sequence[Row]) -> Row:
    kind, composition, at_batch = place
    images = min(row["n"] for row in here)
    accuracy, over = accuracy_interval([row["accuracy"] for row in here], images)
    known = [row for row in here if math.isfinite(row["expected"])]
    change = statistics.t_interval([row["accuracy"] - row["expected"] for row in known])
    change = change.within(-1, 1)
    changes = [row["logit_change"] for row in here if math.isfinite(row["logit_change"])]
    return {
        **{"statistics": kind, "composition": composition, "at_batch": at_batch},
        **{"n": accuracy.n, "images": images, "n_diverged": len(cell.of("diverged"))},
        **accuracy.columns("accuracy"),
        "interval": over,
        "expected": statistics.t_interval([row["expected"] for row in known]).mean,
        **change.columns("change"),
        "n_change": change.n,
        **statistics.t_interval([row["loss"] for row in here]).columns("loss_nats"),
        "logit_change": max(changes, default=math.nan),
    }


def _place(row: Row) -> tuple[str, str, int]:
    return row["statistics"], row["composition"], row["at_batch"]


def _order(place: tuple[str, str, int]) -> tuple[Any, ...]:
    kind, composition, at_batch = place

    def rank(value: str, known: Sequence[str]) -> tuple[int, str]:
        return (known.index(value) if value in known else len(known), value)

    return rank(kind, STATISTICS), rank(composition, COMPOSITIONS), at_batch
