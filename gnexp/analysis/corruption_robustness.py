"""Accuracy on corrupted test images: per condition, in sum, and relative to a reference norm.

A network that is worse on clean images is not for that less robust. So beside the accuracy stands
the rise: the error on corrupted images minus that network's error on the same clean ones. A network
near chance cannot rise by much: beside the rise stands the share lost, the rise over the accuracy
above chance on clean images, (clean - corrupted) / (clean - 1 / classes).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import NORM_LABELS, Cell, accuracy_interval, norm_label
from gnexp.analysis.statistics import Interval

Row = dict[str, Any]
Condition = tuple[str, int]  # corruption, severity
Accuracies = Mapping[Condition, float]  # of one seed

# The 15 of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019); others stand apart.
STANDARD = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
CLEAN: Condition = ("clean", 0)
NOT_MEASURED = statistics.t_interval([])
REFERENCE_NORM = "bn"  # what mCE is relative to
_OF_THE_NORM = ("norm", "groups", "channels_per_group")


def condition_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell and condition: accuracy, loss (nats), rise and share lost.

    With 95 % intervals, over the n complete seeds measured there; rise and share over those with
    clean images too (n_rise), paired. A diverged seed has no network to measure and is left out.
    """
    rows = []
    for cell in cells:
        seeds = {seed: _conditions(found) for seed, found in cell.measured("shift.csv").items()}
        for condition in sorted({c for of in seeds.values() for c in of}, key=_order):
            here = {seed: of[condition] for seed, of in seeds.items() if condition in of}
            images = min(row["n"] for row in here.values())
            accuracy, over = accuracy_interval([r["accuracy"] for r in here.values()], images)
            loss = statistics.t_interval([row["loss"] for row in here.values()])
            pairs = [
                (seeds[seed][CLEAN]["accuracy"], row["accuracy"])
                for seed, row in here.items()
                if CLEAN in seeds[seed]
            ]
            rise = statistics.t_interval([clean - found for clean, found in pairs]).within(-1, 1)
            row = {**cell.key, "corruption": condition[0], "severity": condition[1]}
            row |= {"n": accuracy.n, "images": images}
            row |= {"n_diverged": len(cell.of("diverged"))}
            row |= accuracy.columns("accuracy") | {"interval": over}
            row |= loss.columns("loss_nats")
            if condition != CLEAN:
                row |= rise.columns("rise") | {"n_rise": rise.n}
                row |= share_lost(pairs, cell.classes).columns("share_lost")
            rows.append(row)
    return rows


def summary_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell: clean and mean corrupted accuracy, rise, share lost, mCE and more.

    Over the standard corruptions x severities that were measured, and over the n seeds that have
    all of these; n_left_out lack some. mce is the mean over corruptions of
    sum_s error / sum_s error of the reference; relative_mce the same of the rises; both paired
    over the n_shared seeds of cell and reference, sums over seeds first, jackknife intervals.
    The reference is REFERENCE_NORM in the same cell but for the norm, where there is one. nan where
    a rise of the reference is not positive. rise_NAME, share_lost_NAME: of each corruption that is
    not standard.
    After Hendrycks & Dietterich 2019, whose reference is AlexNet.
    """
    tables = {id(cell): accuracies(cell) for cell in cells}
    apart = sorted({c for of in tables.values() for a in of.values() for c, _ in a} - {CLEAN[0]})
    apart = [name for name in apart if name not in STANDARD]
    rows = []
    for cell in cells:
        if not tables[id(cell)]:
            continue
        whole, conditions = _whole(tables[id(cell)])
        row = {**cell.key, "n": len(whole), "n_left_out": len(tables[id(cell)]) - len(whole)}
        row |= {"n_diverged": len(cell.of("diverged"))}
        row |= _levels(list(whole.values()), conditions, cell.classes)
        row |= _relative(cell, conditions, whole, cells, tables)
        row["note"] = "; ".join(filter(None, (_unbounded(row), row["note"])))
        for name in apart:
            pairs = _of_corruption(tables[id(cell)], name)
            rise = _rise(pairs)
            row |= rise.columns(f"rise_{name}") | {f"n_rise_{name}": rise.n}
            row |= share_lost(pairs, cell.classes).columns(f"share_lost_{name}")
        rows.append(row)
    return rows


def accuracies(cell: Cell) -> dict[int, Accuracies]:
    """Return {seed: {(corruption, severity): accuracy}} of the complete seeds."""
    return {
        seed: {condition: row["accuracy"] for condition, row in _conditions(rows).items()}
        for seed, rows in cell.measured("shift.csv").items()
    }


def corruption_rises(cells: Iterable[Cell]) -> dict[int, dict[str, Interval]]:
    """Return {id(cell): {corruption: rise of the error}} of the measured cells.

    A rise is the mean over a corruption's severities, with its interval over seeds.
    """
    found = {}
    for cell in cells:
        if table := accuracies(cell):
            names = {name for of in table.values() for name, _ in of} - {CLEAN[0]}
            found[id(cell)] = {name: _rise(_of_corruption(table, name)) for name in names}
    return found


def _rise(pairs: Sequence[tuple[float, float]]) -> Interval:
    return statistics.t_interval([a - b for a, b in pairs]).within(-1, 1)


def _of_corruption(table: Mapping[int, Accuracies], corruption: str) -> list[tuple[float, float]]:
    """Return (clean, corrupted) accuracy of every seed, the latter's mean over severities."""
    seeds = [a for a in table.values() if CLEAN in a]
    wanted = {c for a in seeds for c in a if c[0] == corruption}
    whole = [a for a in seeds if wanted and wanted <= a.keys()]
    return [(a[CLEAN], _mean(a[c] for c in wanted)) for a in whole]


def share_lost(pairs: Sequence[tuple[float, float]], classes: int) -> Interval:
    """Return the share of the accuracy above chance that is lost, sums over seeds, Fieller's 95 %.

    pairs: (clean, corrupted) accuracy of each seed; chance is 1 / classes. 0: nothing is lost, 1:
    all above chance is; below 0 corruption helps, above 1 it ends below chance. nan where the mean
    clean accuracy is not above chance; no interval where that is not decided (or one seed).
    """
    return statistics.ratio_interval([(a - b, a - 1 / classes) for a, b in pairs])


def _unbounded(row: Row) -> str:
    if row["share_lost"] != row["share_lost"] and row["rise"] == row["rise"]:
        return "clean accuracy is not above chance: no share lost"
    if row["n"] > 1 and row["share_lost"] == row["share_lost"] and math.isnan(row["share_lost_lo"]):
        return "clean accuracy is not decidedly above chance: no interval of the share lost"
    return ""


def _levels(
    whole: Sequence[Mapping[Condition, float]], conditions: Sequence[Condition], classes: int
) -> Row:
    row: Row = {"corruptions": len({name for name, _ in conditions})}
    row["severities"] = " ".join(map(str, sorted({s for _, s in conditions})))
    clean = [a[CLEAN] for a in whole]
    corrupted = [_mean(a[c] for c in conditions) for a in whole if conditions]
    rise = [a - b for a, b in zip(clean, corrupted)]  # shorter where nothing standard is measured
    for name, values in (("clean", clean), ("corrupted", corrupted), ("rise", rise)):
        least = -1 if name == "rise" else 0
        row |= statistics.t_interval(values).within(least, 1).columns(name)
    row |= share_lost(list(zip(clean, corrupted)), classes).columns("share_lost")
    return row | {"chance": 1 / classes}


def _relative(
    cell: Cell,
    conditions: Sequence[Condition],
    whole: Mapping[int, Accuracies],
    cells: Sequence[Cell],
    tables: Mapping[int, Mapping[int, Accuracies]],
) -> Row:
    """Return mce and relative_mce with intervals, what they are relative to, and a note."""
    none = statistics.t_interval([])
    row = {"reference": "", "n_shared": 0, **none.columns("mce"), **none.columns("relative_mce")}
    found = [other for other in cells if tables[id(other)] and _is_reference(other, cell)]
    if len(found) > 1:  # variants of it: the one that is as it comes
        found = [other for other in found if _is_as_it_comes(other)]
    if not conditions or len(found) != 1:
        why = f"{len(found) or 'no'} measured {NORM_LABELS[REFERENCE_NORM]} to refer to"
        return {**row, "note": f"{why if conditions else 'no standard corruption'}: no mCE"}
    other, _ = _whole(tables[id(found[0])])
    shared = sorted(whole.keys() & other.keys())
    common = [c for c in conditions if all(c in other[seed] for seed in shared)]
    row["reference"] = f"{norm_label(found[0].key)}, batch {found[0].key['batch']}"
    row["n_shared"] = len(shared)
    if not shared or not common:
        return {**row, "note": "no seed or condition in common with the reference: no mCE"}
    if found[0] is cell:
        return {**row, "mce": 1.0, "relative_mce": 1.0, "note": "the reference of mCE"}
    pairs = [(whole[seed], other[seed]) for seed in shared]
    for name, clean_error in (("mce", False), ("relative_mce", True)):
        interval = _ratio(pairs, common, less_clean=clean_error)
        row |= interval.columns(name)
    notes = ["one shared seed: no interval of mCE"] * (len(shared) == 1)
    notes += ["not every condition is shared with the reference"] * (len(common) < len(conditions))
    if math.isnan(row["relative_mce"]):
        notes.append("a corruption does not raise the reference's error: no relative mCE")
    elif len(shared) > 1 and math.isnan(row["relative_mce_lo"]):
        notes.append("a rise of the reference hangs on one seed: no interval of relative mCE")
    return {**row, "note": "; ".join(notes)}


def _ratio(
    pairs: Sequence[tuple[Accuracies, Accuracies]],
    conditions: Sequence[Condition],
    less_clean: bool,
) -> Interval:
    """Return the mean over corruptions of summed errors, mine over the reference's, over seeds."""

    def error(a: Accuracies, condition: Condition) -> float:
        return (a[CLEAN] if less_clean else 1.0) - a[condition]

    def ratio(chosen: Sequence[int]) -> float:
        sums: dict[str, list[float]] = {}
        for i in chosen:
            for condition in conditions:
                total = sums.setdefault(condition[0], [0.0, 0.0])
                total[0] += error(pairs[i][0], condition)
                total[1] += error(pairs[i][1], condition)
        positive = all(theirs > 0 for _, theirs in sums.values())
        return _mean(mine / theirs for mine, theirs in sums.values()) if positive else math.nan

    return statistics.jackknife(len(pairs), ratio)


def _whole(
    everything: Mapping[int, Accuracies],
) -> tuple[dict[int, Accuracies], list[Condition]]:
    """Return the seeds that have every standard condition of any, clean included, and those."""
    conditions = sorted({c for a in everything.values() for c in a if c[0] in STANDARD}, key=_order)
    wanted = {CLEAN, *conditions}
    return {seed: a for seed, a in everything.items() if wanted <= a.keys()}, conditions


def _is_as_it_comes(cell: Cell) -> bool:
    return cell.key.get("norm.momentum_rule", "batches") == "batches"


def _is_reference(other: Cell, cell: Cell) -> bool:
    def rest(key: Mapping[str, Any]) -> Row:
        return {k: v for k, v in key.items() if k not in _OF_THE_NORM and not k.startswith("norm.")}

    return other.key["norm"] == REFERENCE_NORM and rest(other.key) == rest(cell.key)


def _conditions(rows: Sequence[Row]) -> dict[Condition, Row]:
    return {(row["corruption"], row["severity"]): row for row in rows}


def _order(condition: Condition) -> tuple[Any, ...]:
    name, severity = condition
    rank = -1 if condition == CLEAN else STANDARD.index(name) if name in STANDARD else len(STANDARD)
    return rank, name, severity


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
