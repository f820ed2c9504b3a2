"""Accuracy on corrupted test images: per condition, in sum, and relative to a reference norm.

A network that is worse on clean images is not for that less robust. So beside the accuracy stands
the rise: the error on corrupted images minus that network's error on the same clean ones. A network
near chance cannot rise by much: beside the rise stands the share lost, the rise over the accuracy
above chance on clean images, (clean - corrupted) / (clean - 1 / classes).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnexp.analysis.cells import NORM_LABELS, Cell, measured_columns, norm_label
from gnexp.analysis.statistics import Interval, jackknife, ratio_interval, shared, t_interval

Row = dict[str, Any]
Condition = tuple[str, int]  # corruption, severity
Accuracies = Mapping[Condition, float]  # of one seed
Table = Mapping[int, Accuracies]  # of each seed

# The 15 of ImageNet-C and CIFAR-10-C (Hendrycks & Dietterich 2019); others stand apart.
STANDARD = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
CLEAN: Condition = ("clean", 0)
NOT_MEASURED = t_interval([])
REFERENCE_NORM = "bn"  # what mCE is relative to
_OF_THE_NORM = ("norm", "groups", "channels_per_group")


def condition_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell and condition: accuracy, loss (nats), rise and share lost.

    Rise and share are paired over the n_rise seeds with clean images too.
    """
    rows = []
    for cell in cells:
        found: dict[Condition, dict[int, Row]] = {}
        for seed, of_seed in cell.measured("shift.csv").items():
            for row in of_seed:
                found.setdefault((row["corruption"], row["severity"]), {})[seed] = row
        clean = found.get(CLEAN, {})
        rows += [_condition_row(cell, c, found[c], clean) for c in sorted(found, key=_order)]
    return rows


def _condition_row(
    cell: Cell, condition: Condition, here: Mapping[int, Row], clean: Mapping[int, Row]
) -> Row:
    row = {**cell.key, "corruption": condition[0], "severity": condition[1]}
    row |= measured_columns(cell, [*here.values()])
    if condition == CLEAN:
        return row
    pairs = [(clean[s]["accuracy"], r["accuracy"]) for s, r in here.items() if s in clean]
    return row | _rise_and_share(pairs, cell.classes) | {"n_rise": len(pairs)}


def summary_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return one row per cell: clean and mean corrupted accuracy, rise, share lost, mCE and more.

    Over the n seeds with every standard condition; n_left_out lack some. mce: mean over corruptions
    of sum_s error / sum_s error of REFERENCE_NORM in the same cell but for the norm, relative_mce
    the same of the rises, paired over n_shared seeds (jackknife), nan where a rise of the reference
    is not positive. rise_NAME: of a corruption that is not standard.
    After Hendrycks & Dietterich 2019, whose reference is AlexNet.
    """
    tables = {id(cell): accuracies(cell) for cell in cells}
    measured = {name for of in tables.values() for a in of.values() for name, _ in a}
    apart = sorted(measured - {*STANDARD, CLEAN[0]})
    return [_summary_row(cell, cells, tables, apart) for cell in cells if tables[id(cell)]]


def _summary_row(
    cell: Cell, cells: Sequence[Cell], tables: Mapping[int, Table], apart: Sequence[str]
) -> Row:
    whole, conditions = _whole(tables[id(cell)])
    row = {
        **{**cell.key, "n": len(whole), "n_left_out": len(tables[id(cell)]) - len(whole)},
        "n_diverged": cell.diverged,
        **_levels([*whole.values()], conditions, cell.classes),
        **_relative(cell, conditions, whole, cells, tables),
    }
    row["note"] = "; ".join(filter(None, (_unbounded(row), row["note"])))
    for name in apart:
        pairs = _of_corruption(tables[id(cell)], name)
        row |= _rise_and_share(pairs, cell.classes, f"_{name}") | {f"n_rise_{name}": len(pairs)}
    return row


def accuracies(cell: Cell) -> Table:
    """Return {seed: {(corruption, severity): accuracy}} of the complete seeds."""
    return {
        seed: {(row["corruption"], row["severity"]): row["accuracy"] for row in rows}
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
    return t_interval([a - b for a, b in pairs]).within(-1, 1)


def _rise_and_share(pairs: Sequence[tuple[float, float]], classes: int, end: str = "") -> Row:
    share = share_lost(pairs, classes)
    return _rise(pairs).columns(f"rise{end}") | share.columns(f"share_lost{end}")


def _of_corruption(table: Table, corruption: str) -> list[tuple[float, float]]:
    """Return (clean, corrupted) accuracy of every seed, the latter's mean over severities."""
    seeds = [a for a in table.values() if CLEAN in a]
    wanted = {c for a in seeds for c in a if c[0] == corruption}
    whole = [a for a in seeds if wanted and wanted <= a.keys()]
    return [(a[CLEAN], _mean(a[c] for c in wanted)) for a in whole]


def share_lost(pairs: Sequence[tuple[float, float]], classes: int) -> Interval:
    """Return the share of the accuracy above chance that is lost, sums over seeds, Fieller's 95 %.

    pairs: (clean, corrupted) accuracy of each seed; chance is 1 / classes. Below 0 corruption
    helps, above 1 it ends below chance. nan where clean accuracy is not above chance.
    """
    return ratio_interval([(a - b, a - 1 / classes) for a, b in pairs])


def _unbounded(row: Row) -> str:
    if math.isnan(row["share_lost"]):
        unknown = math.isnan(row["rise"])
        return "" if unknown else "clean accuracy is not above chance: no share lost"
    if row["n"] > 1 and math.isnan(row["share_lost_lo"]):
        return "clean accuracy is not decidedly above chance: no interval of the share lost"
    return ""


def _levels(whole: Sequence[Accuracies], conditions: Sequence[Condition], classes: int) -> Row:
    clean = [a[CLEAN] for a in whole]
    corrupted = [_mean(a[c] for c in conditions) for a in whole if conditions]
    return {
        "corruptions": len({name for name, _ in conditions}),
        "severities": " ".join(map(str, sorted({severity for _, severity in conditions}))),
        **t_interval(clean).within(0, 1).columns("clean"),
        **t_interval(corrupted).within(0, 1).columns("corrupted"),
        **_rise_and_share(list(zip(clean, corrupted)), classes),
        "chance": 1 / classes,
    }


def _relative(
    cell: Cell,
    conditions: Sequence[Condition],
    whole: Table,
    cells: Sequence[Cell],
    tables: Mapping[int, Table],
) -> Row:
    """Return mce and relative_mce with intervals, what they are relative to, and a note."""
    row = {**NOT_MEASURED.columns("mce"), **NOT_MEASURED.columns("relative_mce")}
    row |= {"reference": "", "n_shared": 0}
    found = [other for other in cells if tables[id(other)] and _is_reference(other, cell)]
    if len(found) > 1:  # variants of it: the one that is as it comes
        found = [c for c in found if c.key.get("norm.momentum_rule", "batches") == "batches"]
    if not conditions:
        return row | {"note": "no standard corruption: no mCE"}
    if len(found) != 1:
        bn = NORM_LABELS[REFERENCE_NORM]
        return row | {"note": f"{len(found) or 'no'} measured {bn} to refer to: no mCE"}
    (reference,) = found
    pairs = [*shared(whole, _whole(tables[id(reference)])[0]).values()]
    common = [c for c in conditions if all(c in theirs for _, theirs in pairs)]
    row["reference"] = f"{norm_label(reference.key)}, batch {reference.key['batch']}"
    row["n_shared"] = len(pairs)
    if not pairs or not common:
        return row | {"note": "no seed or condition in common with the reference: no mCE"}
    if reference is cell:
        return row | {"mce": 1.0, "relative_mce": 1.0, "note": "the reference of mCE"}
    row |= _ratio(pairs, common, less_clean=False).columns("mce")
    row |= _ratio(pairs, common, less_clean=True).columns("relative_mce")
    notes = ["one shared seed: no interval of mCE"] * (len(pairs) == 1)
    notes += ["not every condition is shared with the reference"] * (len(common) < len(conditions))
    if math.isnan(row["relative_mce"]):
        notes.append("a corruption does not raise the reference's error: no relative mCE")
    elif len(pairs) > 1 and math.isnan(row["relative_mce_lo"]):
        notes.append("a rise of the reference hangs on one seed: no interval of relative mCE")
    return row | {"note": "; ".join(notes)}


def _ratio(
    pairs: Sequence[tuple[Accuracies, Accuracies]],
    conditions: Sequence[Condition],
    less_clean: bool,
) -> Interval:
    """Return the mean over corruptions of summed errors, mine over the reference's, over seeds."""
    corruptions = dict.fromkeys(name for name, _ in conditions)

    def errors(chosen: Sequence[int], side: int, corruption: str) -> float:
        seeds = [pairs[i][side] for i in chosen]
        of = [c for c in conditions if c[0] == corruption]
        return sum((a[CLEAN] if less_clean else 1.0) - a[c] for a in seeds for c in of)

    def ratio(chosen: Sequence[int]) -> float:
        sums = [(errors(chosen, 0, name), errors(chosen, 1, name)) for name in corruptions]
        positive = all(theirs > 0 for _, theirs in sums)
        return _mean(mine / theirs for mine, theirs in sums) if positive else math.nan

    return jackknife(len(pairs), ratio)


def _whole(everything: Table) -> tuple[dict[int, Accuracies], list[Condition]]:
    """Return the seeds that have every standard condition of any, clean included, and those."""
    conditions = sorted({c for a in everything.values() for c in a if c[0] in STANDARD}, key=_order)
    wanted = {CLEAN, *conditions}
    return {seed: a for seed, a in everything.items() if wanted <= a.keys()}, conditions


def _is_reference(other: Cell, cell: Cell) -> bool:
    def rest(key: Mapping[str, Any]) -> Row:
        return {k: v for k, v in key.items() if k not in _OF_THE_NORM and not k.startswith("norm.")}

    return other.key["norm"] == REFERENCE_NORM and rest(other.key) == rest(cell.key)


def _order(condition: Condition) -> tuple[int, str, int]:
    known = (CLEAN[0], *STANDARD)
    name, severity = condition
    return known.index(name) if name in known else len(known), name, severity


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)
