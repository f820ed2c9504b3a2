"""Accuracy per class, the gap between classes, and calibration."""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell

Row = dict[str, Any]


def class_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell whose classes or calibration were measured.

    mean: average of the class accuracies; worst, best: classes by their accuracy averaged over
    the n seeds; gap: best minus worst after that averaging, since the gap of a single seed is
    larger by chance. chance_gap, chance_gap_95 and gap_p as stored with the run: mean and 95 %
    quantile of the gap if all classes were equally hard, and how often chance gives this gap.
    ece: expected calibration error over the n_ece seeds that have it. Diverged seeds are left out.
    """
    rows = []
    for cell in cells:
        ece = [r["ece"] for r in cell.of("complete") if r.get("ece") is not None]
        table = class_accuracies(cell)
        if not table and not ece:
            continue
        calibration = statistics.t_interval(ece).within(0, 1)
        row = {**cell.key, "n_diverged": len(cell.of("diverged")), **_gap(cell, table)}
        row |= calibration.columns("ece") | {"n_ece": calibration.n}
        rows.append(row)
    return rows


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
    mean = statistics.t_interval(means).within(0, 1)
    row = {"n": len(whole), "n_left_out": len(table) - len(whole), "classes": len(names)}
    images = [count for of in whole for _, count in of.values()]
    row |= {"images_per_class": min(images) if images else None}
    row |= mean.columns("mean")
    of_class = {
        name: statistics.t_interval([of[name][0] for of in whole]).within(0, 1) for name in names
    }
    if whole:
        worst = min(names, key=lambda name: of_class[name].mean)
        best = max(names, key=lambda name: of_class[name].mean)
        row |= {"worst_class": worst, **of_class[worst].columns("worst")}
        row |= {"best_class": best, **of_class[best].columns("best")}
        if len(names) > 1:
            row["gap"] = of_class[best].mean - of_class[worst].mean
    return {**row, **_chance(cell, bool(whole))}


def _chance(cell: Cell, measured: bool) -> Row:
    """Return what the run stores about the gap by chance, and a note where that is not usable."""
    names = ("chance_gap", "chance_gap_95", "gap_p")
    heads = [record.result.get("classes") or {} for record in cell.records]
    if measured and len(heads) == 1 and "note" in heads[0]:
        return {**dict.fromkeys(names), "note": heads[0]["note"]}
    if not measured or len(heads) != 1 or not heads[0]:
        several = "seeds from several runs: no chance gap" if len(heads) > 1 else ""
        return {**dict.fromkeys(names), "note": several if measured else "classes not measured"}
    return {**{name: heads[0].get(name) for name in names}, "note": ""}
