"""The tables of a comparison of two studies."""

import math
from collections.abc import Sequence

from gnexp.analysis.cells import BASE, norm_label
from gnexp.analysis.compare_studies import StudyComparison, UnmatchedCell, varies
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


def comparison_tables(comparison: StudyComparison) -> dict[str, Table]:
    """Return the tables of a comparison by name."""
    names, reference = comparison.names, comparison.sides[0].reference_batch
    tables = [
        accuracy_table(comparison.accuracy, names),
        cost_table(comparison.costs, names, reference),
        differing_table(comparison.differing, names),
        unmatched_table(comparison.unmatched, names),
    ]
    return {table.name: table for table in tables}


def accuracy_table(rows: Sequence[Row], names: Names) -> Table:
    """Return the table `comparison`: both accuracies of each matched cell and their difference."""
    key = key_of(rows)
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
    key = key_of(rows)
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
    columns = [*key_of(rows), "study", "why"]
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


_SIDE = ("n", "mean", "lo", "hi", "n_diverged", "interval")
_NOT_KEYS = ("label", "study", "why", "reference_batch")


def key_of(rows: Sequence[Row]) -> list[str]:
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
    for key in key_of(rows):
        known = any(row.get(key) is not None for row in rows)
        if key not in BASE and (varies(key, rows) or (every and known)):
            columns.append(Column(key, lambda row, key=key: format_number(row[key]), False))
    return columns


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
        numbers = (signed(row[f"{side}_cost"]), bounds, f"(n = {row[f'{side}_n']})")
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
    return lambda row: signed(row[column])


def signed(value: float) -> str:
    """Return a fraction in points with its sign; '' for what is unknown."""
    return f"{100 * value:+.2f}" if math.isfinite(value) else ""


def _bounds(row: Row, lo: str, hi: str) -> str:
    low, high = percent(row[lo], 2), percent(row[hi], 2)
    return f"[{low}, {high}]" if low and high else ""
