"""The tables and sentences of a comparison of two studies; nothing is computed here."""

import math
from collections.abc import Sequence

from gnexp.analysis.cells import BASE, Cell, is_trial, norm_label
from gnexp.analysis.compare_studies import HIGHER, LOWER, MatchedCells, UnmatchedCell, overall
from gnexp.analysis.eval_split import TEST, VALIDATION
from gnexp.analysis.inference import NO_SPREAD, TOO_FEW, UNDECIDED
from gnexp.analysis.tables.norm_comparisons import sources
from gnexp.analysis.tables.table import CellFormatter, Column, Row, Table, format_number, percent

Names = Sequence[str]
TESTED = (
    *("difference", "lo95", "hi95", "method", "se_seeds", "se_images", "images", "dof", "p"),
    *("p_holm", "family", "lo_simultaneous", "hi_simultaneous", "verdict"),
)
_TESTS = (
    "The standard error holds the spread over seeds and the sampling of test images, as in the "
    "reports of the studies. Simultaneous: all intervals of this table together hold "
    "their differences in 95 % of comparisons, and the verdict is Holm's at 5 % over this table. A "
    "diverged seed counts at chance."
)


def accuracy_table(rows: Sequence[Row], names: Names) -> Table:
    """Return the table `comparison`: both accuracies of each matched cell and their difference."""
    key = _key(rows)
    sides = [f"{side}_{k}" for side in ("first", "second") for k in _SIDE]
    shown = [
        *_key_columns(rows),
        *(c for side, name in zip(("first", "second"), names) for c in _accuracy(side, name)),
        *_difference_columns(f"{names[1]} minus {names[0]} (points)"),
    ]
    caption = (
        "Test accuracy in percent after the last epoch, mean of the seeds that did not diverge "
        f"with its 95 % interval (one seed: over test images). {_TESTS}"
    )
    empty = "The studies have no cell in common, so there is nothing to compare."
    title = f"{names[0]} and {names[1]}, cell by cell"
    return Table("comparison", title, caption, [*key, *sides, *TESTED], shown, list(rows), empty)


def cost_table(rows: Sequence[Row], names: Names, reference: int) -> Table:
    """Return the table `comparison_cost`: what a batch size costs in each, and their difference."""
    key = _key(rows)
    sides = [f"{side}_{k}" for side in ("first", "second") for k in ("n", "cost", "lo", "hi")]
    columns = ["reference_batch", *sides, *TESTED]
    shown = [
        *_key_columns(rows),
        *(
            Column(f"Cost in {name} (points)", _cost(side))
            for side, name in zip(("first", "second"), names)
        ),
        *_difference_columns("Difference of the costs (points)"),
    ]
    caption = (
        f"A cost is test accuracy minus that at batch {reference}, "
        f"with its 95 % interval; the difference is the cost in {names[1]} minus that in "
        f"{names[0]}. It says whether the studies agree on what the batch size does, whatever "
        f"their levels. {_TESTS}"
    )
    empty = (
        f"No norm has, in both studies, a cell at the reference batch {reference} and one at "
        "another batch size."
    )
    title = "Whether the studies agree on what a batch size costs"
    return Table("comparison_cost", title, caption, [*key, *columns], shown, list(rows), empty)


def unmatched_table(unmatched: Sequence[UnmatchedCell], names: Names) -> Table:
    """Return the table `unmatched`: the cells that only one study has."""
    rows = [{**a.key, "study": names[a.study], "why": a.why} for a in unmatched]
    shown = [
        Column("Study", lambda row: str(row["study"]), False),
        *_key_columns(rows, every=True),
        Column("Why", lambda row: str(row["why"]), False),
    ]
    columns = [*_key(rows), "study", "why"]
    empty = "Every cell of either study has its partner."
    caption = "Cells without a partner in the other study take no part in the comparison."
    return Table("unmatched", "Cells of one study alone", caption, columns, shown, rows, empty)


def differing_table(rows: Sequence[Row], names: Names) -> Table:
    """Return the table `what_differs`: settings, data, versions and machines."""
    shown = [
        Column("What", lambda row: str(row["what"]), False),
        Column(names[0], lambda row: str(row["first"]), False),
        Column(names[1], lambda row: str(row["second"]), False),
    ]
    caption = "Over the finished trainings of each study; what is the same in both is left out."
    empty = "Nothing that is recorded of the two studies differs."
    columns = ["what", "first", "second"]
    return Table("what_differs", "What differs", caption, columns, shown, list(rows), empty)


def warnings(first: Sequence[Cell], second: Sequence[Cell], names: Names) -> list[str]:
    """Return what keeps the accuracies of two studies from being of one task, or of test images."""
    return [*_other_images(first, second, names), *_other_tasks(first, second, names)]


def _other_images(first: Sequence[Cell], second: Sequence[Cell], names: Names) -> list[str]:
    on = [
        VALIDATION if all(is_trial(cell.record) for cell in cells) else TEST
        for cells in (first, second)
    ]
    if on == [TEST, TEST]:
        return []
    if on == [VALIDATION, VALIDATION]:
        return [
            "Every accuracy here is of images held out of the training set, not of test images."
        ]
    return [
        f"Accuracies of {names[0]} are of {on[0]} images, those of {names[1]} of {on[1]} images: "
        "their trainings saw other images too."
    ]


def _other_tasks(first: Sequence[Cell], second: Sequence[Cell], names: Names) -> list[str]:
    tasks = [sorted({(c.test_images, c.classes) for c in cells}) for cells in (first, second)]
    if not all(tasks) or tasks[0] == tasks[1]:
        return []
    texts = [
        f"{' and '.join(f'{n} images of {k} classes' for n, k in task)} in {name}"
        for task, name in zip(tasks, names)
    ]
    unlike = {k for _, k in tasks[0]} != {k for _, k in tasks[1]}
    chance = ", whose chance levels differ" if unlike else ""
    return [
        f"The test sets differ: {texts[0]}, {texts[1]}{chance}. Differences are those of two tasks."
    ]


def sentences(
    pairs: Sequence[MatchedCells], rows: Sequence[Row], costs: Sequence[Row], names: Names
) -> list[str]:
    """Return what the comparison found, and what it leaves undecided; never more than it shows."""
    if not rows:
        return []
    return [_overall(pairs, names), _counted(rows, names), *_on_costs(costs, names)]


def _overall(pairs: Sequence[MatchedCells], names: Names) -> str:
    found, second, first = overall(pairs)
    cells = f"the {len(pairs)} cells of both" if len(pairs) > 1 else "the one cell of both"
    lacking = [name for name, n in zip(names, (first, second)) if not n]
    if lacking:
        return f"No seed of {' or of '.join(lacking)} has {cells}, so there is no mean over them."
    n = f"n = {first} seed{'s' * (first != 1)} of {names[0]} and {second} of {names[1]}"
    text = f"{names[1]} minus {names[0]}, mean over {cells}: {_signed(found.difference)} points"
    if found.p != found.p:
        why = TOO_FEW if min(first, second) < 2 else NO_SPREAD
        return f"{text} ({n}); no interval: {why}."
    bounds = f"[{percent(found.lo, 2)}, {percent(found.hi, 2)}]"
    return f"{text}, 95 % interval over seeds {bounds} ({n})."


def _counted(rows: Sequence[Row], names: Names) -> str:
    decided, undecided, untested = _by_decision(rows)
    if not decided:
        return _none(rows, ("cell", "compared"), "between the studies")
    largest = max(decided, key=lambda row: abs(row["difference"]))
    if len(rows) == 1:
        of = f"in the one cell compared (Holm, 5 %): {_difference(largest)}"
        return f"{names[1]} is {largest['verdict']} {of}."
    counts = [(v, sum(row["verdict"] == v for row in decided)) for v in (HIGHER, LOWER)]
    texts = " and ".join(f"{verdict} in {n}" for verdict, n in counts if n)
    found = [f"{names[1]} is {texts} (Holm, 5 %)", *_open(undecided, untested)]
    return (
        f"Of {len(rows)} cells compared, {', '.join(found)}; the largest difference is that of "
        f"{_cell(largest, rows)}: {_difference(largest)}."
    )


def _on_costs(rows: Sequence[Row], names: Names) -> list[str]:
    if not rows:
        return []
    reference = rows[0]["reference_batch"]
    decided, undecided, untested = _by_decision(rows)
    if not decided:
        between = f"between {names[0]} and {names[1]}"
        text = _none(rows, ("cost", f"against batch {reference}"), between)
        if undecided:
            widest = max(undecided, key=_width)
            text += (
                f" A difference of up to {percent(_width(widest), 1)} points would not be excluded"
                f" at {_cell(widest, rows)}."
            )
        return [text]
    largest = max(decided, key=lambda row: abs(row["difference"]))
    of = f"{len(decided)} of {len(rows)} comparisons" if len(rows) > 1 else "the one comparison"
    found = [f"differs between the studies in {of} (Holm, 5 %)", *_open(undecided, untested)]
    return [
        f"What a batch costs against batch {reference} {', '.join(found)}; "
        f"{'most ' * (len(decided) > 1)}at {_cell(largest, rows)}: "
        f"{_signed(largest['first_cost'])} points in {names[0]}, "
        f"{_signed(largest['second_cost'])} in {names[1]}; {_difference(largest)}."
    ]


def _by_decision(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the rows that are decided, those that are undecided, and those that have no test."""
    decided = [row for row in rows if row["verdict"] in (HIGHER, LOWER)]
    undecided = [row for row in rows if row["verdict"] == UNDECIDED]
    return decided, undecided, [r for r in rows if r["verdict"] not in (HIGHER, LOWER, UNDECIDED)]


def _open(undecided: Sequence[Row], untested: Sequence[Row]) -> list[str]:
    """Return how many are undecided and how many are not tested, of which there are any."""
    texts = [f"{len(undecided)} {_are(undecided)} undecided"] if undecided else []
    if untested:
        texts.append(f"{len(untested)} {_are(untested)} not tested ({_reasons(untested)})")
    return texts


def _none(rows: Sequence[Row], what: tuple[str, str], between: str) -> str:
    """Return that none of these differ, or that none is tested; what: a noun, and what follows."""
    _, undecided, untested = _by_decision(rows)
    one = len(rows) == 1
    what_text = f"The one {' '.join(what)} is" if one else f"Of {len(rows)} {what[0]}s {what[1]}"
    if not undecided:
        return f"{what_text}{' not' if one else ', none is'} tested: {_reasons(untested)}."
    shown = f"{' not' if one else ', none is'} shown to differ {between} (Holm, 5 %)"
    parts = f": {', '.join(_open(undecided, untested))}" if untested else ""
    return f"{what_text}{shown}{parts}."


def _are(rows: Sequence[Row]) -> str:
    return "is" if len(rows) == 1 else "are"


def _reasons(untested: Sequence[Row]) -> str:
    return " or ".join(dict.fromkeys(row["verdict"].partition(": ")[2] for row in untested))


def _width(row: Row) -> float:
    return max(abs(row["lo_simultaneous"]), abs(row["hi_simultaneous"]))


def _difference(row: Row) -> str:
    n = f"n = {row['first_n']} and {row['second_n']}"
    bounds = f"[{percent(row['lo_simultaneous'], 2)}, {percent(row['hi_simultaneous'], 2)}]"
    return f"{_signed(row['difference'])} points, simultaneous 95 % interval {bounds} ({n})"


def _cell(row: Row, rows: Sequence[Row]) -> str:
    texts = [f"{norm_label(row)} at batch {row['batch']}"]
    if row["update_batch"] != row["batch"]:
        texts.append(f"update batch {row['update_batch']}")
    texts += [f"{key} {row[key]}" for key in _key(rows) if key not in BASE and varies(key, rows)]
    return ", ".join(texts)


_SIDE = ("n", "mean", "lo", "hi", "n_diverged", "interval")
_NOT_KEYS = ("label", "study", "why", "reference_batch")


def _key(rows: Sequence[Row]) -> list[str]:
    """Return the columns that identify the cell of a row: BASE and the keys that differ."""
    columns = list(rows[0]) if rows else list(BASE)
    key = columns[: columns.index("label")] if "label" in columns else columns
    return [column for column in key if column not in _NOT_KEYS]


def _key_columns(rows: Sequence[Row], every: bool = False) -> list[Column]:
    """Return what is shown of the key; every: also what is the same in all rows of a norm."""
    columns = [
        Column("Norm", norm_label, False),
        Column("Batch", lambda row: str(row["batch"])),
    ]
    if any(row["update_batch"] != row["batch"] for row in rows):
        columns.append(Column("Update batch", lambda row: str(row["update_batch"])))
    for key in _key(rows):
        known = any(row.get(key) is not None for row in rows)
        if key not in BASE and (varies(key, rows) or (every and known)):
            columns.append(Column(key, lambda row, key=key: format_number(row[key]), False))
    return columns


def varies(key: str, rows: Sequence[Row]) -> bool:
    """Return whether a key tells rows of one norm apart."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        seen.setdefault(row["norm"], set()).add(str(row.get(key)))
    return any(len(values) > 1 for values in seen.values())


def _accuracy(side: str, name: str) -> list[Column]:
    def text(row: Row) -> str:
        n, diverged = row[f"{side}_n"], row[f"{side}_n_diverged"]
        lost = f"{diverged} of {n + diverged} diverged" if diverged else ""
        if not n:
            return lost
        bounds = _bounds(row, f"{side}_lo", f"{side}_hi")
        more = ", ".join(filter(None, [f"n = {n}", lost]))
        return f"{percent(row[f'{side}_mean'], 2)} {bounds} ({more})"

    return [Column(f"{name} (%)", text)]


def _cost(side: str) -> CellFormatter:
    def text(row: Row) -> str:
        bounds = _bounds(row, f"{side}_lo", f"{side}_hi")
        numbers = (_signed(row[f"{side}_cost"]), bounds, f"(n = {row[f'{side}_n']})")
        return " ".join(filter(None, numbers))

    return text


def _difference_columns(header: str) -> list[Column]:
    return [
        Column(header, _points("difference")),
        Column("Verdict", lambda row: str(row["verdict"]), False),
        Column("95 % interval", lambda row: _bounds(row, "lo95", "hi95")),
        Column("Simultaneous", lambda row: _bounds(row, "lo_simultaneous", "hi_simultaneous")),
        Column("Holm's p", lambda row: format_number(row["p_holm"], 2)),
        Column("Standard error: seeds, images", sources, False),
    ]


def _points(column: str) -> CellFormatter:
    return lambda row: _signed(row[column])


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}" if math.isfinite(value) else ""


def _bounds(row: Row, lo: str, hi: str) -> str:
    low, high = percent(row[lo], 2), percent(row[hi], 2)
    return f"[{low}, {high}]" if low and high else ""
