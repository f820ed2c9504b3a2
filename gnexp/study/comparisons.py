"""Differences of mean accuracy: each batch size against the reference, and norm against norm."""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.study import statistics
from gnexp.study.cells import BASE, Cell, Series


def flatness_rows(lines: Sequence[Series], reference_batch: int) -> list[dict[str, Any]]:
    """Return one row per series and batch size other than the reference, which was fixed before.

    Diverged seeds count at chance. The standard deviation is pooled over the series' cells; a
    comparison with diverged seeds, or a series whose cells scatter too unequally to pool, uses
    the two cells' own spreads (Welch). `differs`: other settings that differ from the reference.
    A series without a cell at the reference batch gives no row.
    """
    rows = []
    for line in lines:
        reference = next((c for c in line.cells if c.key["batch"] == reference_batch), None)
        if reference is None:
            continue
        steady = [c.scored for c in line.cells if not c.of("diverged")]
        sd, dof = statistics.pooled_sd(steady)
        poolable = not statistics.spreads_differ(steady)
        for cell in line.cells:
            if cell is reference:
                continue
            pool = poolable and not cell.of("diverged") and not reference.of("diverged")
            spread = (sd, dof) if pool else None
            comparison, method, used = _compare(cell, reference, spread)
            rows.append(
                {
                    **cell.key,
                    "reference_batch": reference_batch,
                    "reference_update_batch": reference.key["update_batch"],
                    "n": len(cell.scored),
                    "n_reference": len(reference.scored),
                    "n_diverged": len(cell.of("diverged")) + len(reference.of("diverged")),
                    **{k: v for k, v in vars(comparison).items() if k != "verdict"},
                    **{"sd": used[0], "dof": used[1], "method": method},
                    "verdict": comparison.verdict,
                    "differs": ", ".join(_differing(cell, reference)),
                }
            )
    return rows


def between(a: Cell, b: Cell) -> statistics.Comparison:
    """Compare two cells' mean accuracy, a minus b, by Welch; diverged seeds count at chance."""
    return _compare(a, b, None)[0]


def _compare(
    a: Cell, b: Cell, pooled: tuple[float, int] | None
) -> tuple[statistics.Comparison, str, tuple[float, float]]:
    x, y = a.scored, b.scored
    difference = sum(x) / len(x) - sum(y) / len(y) if x and y else math.nan
    if min(len(x), len(y)) < 2:
        return statistics.compare_means(difference, math.nan, 0), "", (math.nan, 0)
    if pooled is not None:
        sd, dof = pooled
        se = sd * math.sqrt(1 / len(x) + 1 / len(y))
        return statistics.compare_means(difference, se, dof), "pooled sd", (sd, dof)
    se, dof = statistics.welch(x, y)
    own_sd = statistics.t_interval(x).sd
    return statistics.compare_means(difference, se, dof), "Welch", (own_sd, dof)


def _differing(cell: Cell, reference: Cell) -> list[str]:
    return [k for k, v in cell.key.items() if k not in BASE and v != reference.key.get(k)]
