"""The tables of a comparison of two studies."""

from collections.abc import Sequence

from gnexp.analysis.cells import norm_label
from gnexp.analysis.compare_studies import StudyComparison, varies
from gnexp.analysis.compared_keys import BASE
from gnexp.analysis.tables.build import table
from gnexp.analysis.tables.columns import column
from gnexp.analysis.tables.table import Column, Row, Table

_NOT_KEYS = ("label", "study", "why", "reference_batch")


def comparison_tables(comparison: StudyComparison) -> dict[str, Table]:
    """Return the tables of a comparison by name."""
    names, reference = comparison.names, comparison.sides[0].reference_batch
    facts = {"first": names[0], "second": names[1], "reference": reference}
    tables = [
        _of_cells("comparison", comparison.accuracy, False, facts),
        _of_cells("comparison_cost", comparison.costs, False, facts),
        table("what_differs", comparison.differing, **facts),
        _of_cells("unmatched", comparison.unmatched, True, facts),
    ]
    return {each.name: each for each in tables}


def _of_cells(name: str, rows: Sequence[Row], every: bool, facts: dict[str, object]) -> Table:
    return table(name, rows, key_of(rows), _key_columns(rows, every), **facts)


def key_of(rows: Sequence[Row]) -> list[str]:
    """Return the columns that identify the cell of a row: BASE and the keys that differ."""
    columns = list(rows[0]) if rows else list(BASE)
    key = columns[: columns.index("label")] if "label" in columns else columns
    return [column for column in key if column not in _NOT_KEYS]


def _key_columns(rows: Sequence[Row], every: bool) -> list[Column]:
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
        column("Batch | number batch"),
        *[column("Update batch | number update_batch")] * update,
        *(column(f"{key} | words {key}") for key in others),
    ]
