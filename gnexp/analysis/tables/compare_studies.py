"""The tables of a comparison of two studies."""

import math
from collections.abc import Sequence

from gnexp.analysis.cells import BASE, norm_label
from gnexp.analysis.compare_studies import StudyComparison, UnmatchedCell, varies
from gnexp.analysis.tables.norm_comparisons import sources
from gnexp.analysis.tables.table import (
    Column,
    Row,
    Table,
    bounds,
    format_number,
    interval,
    names,
    number,
    points,
    words,
)

Names = Sequence[str]
TESTED = names(
    "difference lo95 hi95 method se_seeds se_images images dof p p_holm family lo_simultaneous "
    "hi_simultaneous verdict"
)
_TESTS = (
    "The standard error holds the spread over seeds and the sampling of test images, as in the "
    "reports of the studies. Simultaneous: all intervals of this table together hold "
    "their differences in 95 % of comparisons, and the verdict is Holm's at 5 % over this table. A "
    "diverged seed counts at chance."
)


def comparison_tables(comparison: StudyComparison) -> dict[str, Table]:
    """Return the tables of a comparison by name."""
    studies, reference = comparison.names, comparison.sides[0].reference_batch
    tables = [
        accuracy_table(comparison.accuracy, studies),
        cost_table(comparison.costs, studies, reference),
        differing_table(comparison.differing, studies),
        unmatched_table(comparison.unmatched, studies),
    ]
    return {table.name: table for table in tables}


def accuracy_table(rows: Sequence[Row], studies: Names) -> Table:
    """Return the table `comparison`: both accuracies of each matched cell and their difference."""
    first, second = studies
    sides = [f"{side}_{k}" for side in ("first", "second") for k in _SIDE]
    return Table(
        "comparison",
        f"{first} and {second}, cell by cell",
        "Test accuracy in percent after the last epoch, mean of the seeds that did not diverge "
        f"with its 95 % interval (one seed: over test images). {_TESTS}",
        [*key_of(rows), *sides, *TESTED],
        [
            *_key_columns(rows),
            Column(f"{first} (%)", lambda row: _accuracy(row, "first")),
            Column(f"{second} (%)", lambda row: _accuracy(row, "second")),
            number(f"{second} minus {first} (points)", "difference", signed),
            *_DIFFERENCE,
        ],
        list(rows),
        "The studies have no cell in common, so there is nothing to compare.",
    )


def cost_table(rows: Sequence[Row], studies: Names, reference: int) -> Table:
    """Return the table `comparison_cost`: what a batch size costs in each, and their difference."""
    first, second = studies
    return Table(
        "comparison_cost",
        "Whether the studies agree on what a batch size costs",
        f"A cost is test accuracy minus that at batch {reference}, "
        f"with its 95 % interval; the difference is the cost in {second} minus that in "
        f"{first}. It says whether the studies agree on what the batch size does, whatever "
        f"their levels. {_TESTS}",
        [
            *(*key_of(rows), *names("reference_batch first_n first_cost first_lo first_hi")),
            *(*names("second_n second_cost second_lo second_hi"), *TESTED),
        ],
        [
            *_key_columns(rows),
            Column(f"Cost in {first} (points)", lambda row: _cost(row, "first")),
            Column(f"Cost in {second} (points)", lambda row: _cost(row, "second")),
            number("Difference of the costs (points)", "difference", signed),
            *_DIFFERENCE,
        ],
        list(rows),
        f"No norm has, in both studies, a cell at the reference batch {reference} and one at "
        "another batch size.",
    )


def unmatched_table(unmatched: Sequence[UnmatchedCell], studies: Names) -> Table:
    """Return the table `unmatched`: the cells that only one study has."""
    rows = [{**a.key, "study": studies[a.study], "why": a.why} for a in unmatched]
    return Table(
        "unmatched",
        "Cells of one study alone",
        "Cells without a partner in the other study take no part in the comparison.",
        [*key_of(rows), "study", "why"],
        [words("Study", "study"), *_key_columns(rows, every=True), words("Why", "why")],
        rows,
        "Every cell of either study has its partner.",
    )


def differing_table(rows: Sequence[Row], studies: Names) -> Table:
    """Return the table `what_differs`: settings, data, versions and machines."""
    return Table(
        "what_differs",
        "What differs",
        "Over the finished trainings of each study; what is the same in both is left out.",
        ["what", "first", "second"],
        [words("What", "what"), words(studies[0], "first"), words(studies[1], "second")],
        list(rows),
        "Nothing that is recorded of the two studies differs.",
    )


_SIDE = ("n", "mean", "lo", "hi", "n_diverged", "interval")
_NOT_KEYS = ("label", "study", "why", "reference_batch")


def key_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that identify the cell of a row: BASE and the keys that differ."""
    columns = list(rows[0]) if rows else list(BASE)
    key = columns[: columns.index("label")] if "label" in columns else columns
    return [column for column in key if column not in _NOT_KEYS]


def _key_columns(rows: Sequence[Row], every: bool = False) -> list[Column]:
    """Return what is shown of the key; every: also what is the same in all rows of a norm."""
    update = any(row["update_batch"] != row["batch"] for row in rows)
    others = [
        key
        for key in key_of(rows)
        if key not in BASE
        and (varies(key, rows) or (every and any(row.get(key) is not None for row in rows)))
    ]
    return [
        Column("Norm", norm_label, False),
        number("Batch", "batch"),
        *[number("Update batch", "update_batch")] * update,
        *(words(key, key) for key in others),
    ]


def _accuracy(row: Row, side: str) -> str:
    n, diverged = row[f"{side}_n"], row[f"{side}_n_diverged"]
    lost = f"{diverged} of {n + diverged} diverged" if diverged else ""
    if not n:
        return lost
    more = ", ".join(filter(None, [f"n = {n}", lost]))
    return f"{points(row[f'{side}_mean'])} {_interval(row, side)} ({more})"


def _cost(row: Row, side: str) -> str:
    numbers = (signed(row[f"{side}_cost"]), _interval(row, side), f"(n = {row[f'{side}_n']})")
    return " ".join(filter(None, numbers))


def _interval(row: Row, side: str) -> str:
    return bounds(row[f"{side}_lo"], row[f"{side}_hi"])


def signed(value: float) -> str:
    """Return a fraction in points with its sign; '' for what is unknown."""
    return f"{100 * value:+.2f}" if math.isfinite(value) else ""


_DIFFERENCE = (
    words("Verdict", "verdict"),
    interval("95 % interval", "lo95", "hi95"),
    interval("Simultaneous", "lo_simultaneous", "hi_simultaneous"),
    Column("Holm's p", lambda row: format_number(row["p_holm"], 2)),
    Column("Standard error: seeds, images", sources, False),
)
