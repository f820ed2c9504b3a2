"""Accuracy per class, the gap between classes, and calibration."""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.analysis.cells import Cell
from gnexp.analysis.statistics import t_interval

Row = dict[str, Any]
_CHANCE = ("chance_gap", "chance_gap_95", "gap_p")


def class_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell whose classes or calibration were measured, as the caption says.

    worst, best: of the classes' means over n seeds. ece: over the n_ece seeds that have it.
    """
    measured = ((cell, class_accuracies(cell), cell.numbers("ece")) for cell in cells)
    return [
        {
            **cell.key,
            "n_diverged": cell.diverged,
            **_gap(cell, table),
            **t_interval([*ece.values()]).within(0, 1).columns("ece"),
            "n_ece": len(ece),
        }
        for cell, table, ece in measured
        if table or ece
    ]


def class_accuracies(cell: Cell) -> dict[int, dict[str, tuple[float, int]]]:
    """Return {seed: {class: (accuracy, images)}}, without classes that have no test image."""
    return {
        seed: {row["class"]: (row["accuracy"], row["n"]) for row in rows if row["n"]}
        for seed, rows in cell.measured("classes.csv").items()
    }


def _gap(cell: Cell, table: dict[int, dict[str, tuple[float, int]]]) -> Row:
    # Only seeds with all classes: a class missing in one would be averaged over other seeds.
    names = sorted({name for of in table.values() for name in of})
    whole = [of for of in table.values() if names and set(of) == set(names)]
    means = [math.fsum(a for a, _ in of.values()) / len(of) for of in whole]
    row = {
        **{"n": len(whole), "n_left_out": len(table) - len(whole), "classes": len(names)},
        "images_per_class": min((n for of in whole for _, n in of.values()), default=None),
        **t_interval(means).within(0, 1).columns("mean"),
        **_chance(cell, bool(whole)),
    }
    if not whole:
        return row
    of_class = {name: t_interval([of[name][0] for of in whole]).within(0, 1) for name in names}
    worst, best = (pick(names, key=lambda name: of_class[name].mean) for pick in (min, max))
    gap = of_class[best].mean - of_class[worst].mean if len(names) > 1 else None
    return {
        **row,
        **{"worst_class": worst, **of_class[worst].columns("worst")},
        **{"best_class": best, **of_class[best].columns("best"), "gap": gap},
    }


def _chance(cell: Cell, measured: bool) -> Row:
    """Return what the run stores about the gap by chance, and a note where that is not usable."""
    heads = [record.result.get("classes") or {} for record in cell.records]
    if not measured or heads == [{}]:
        note = "" if measured else "classes not measured"
    elif len(heads) > 1:
        note = "seeds from several runs: no chance gap"
    else:
        note = heads[0].get("note", "")
    usable = measured and len(heads) == 1 and "note" not in heads[0]
    return {**{name: heads[0].get(name) if usable else None for name in _CHANCE}, "note": note}
