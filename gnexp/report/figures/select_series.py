"""Select the series of a figure: all, or those of one setting where there are too many."""

import dataclasses
from collections.abc import Sequence

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.comparisons import settings
from gnexp.analysis.tables.table import Table
from gnexp.report.text import phrases

MOST = 40  # series in one figure


def drawn_lines(lines: Sequence[Series]) -> tuple[list[Series], str]:
    """Return the series to draw, and a sentence for the captions on what is left out, or "".

    Of more than MOST, those of the setting that the answer is about: that with most cells. Of a
    setting with more than MOST, the first.
    """
    if len(lines) <= MOST:
        return list(lines), ""
    found = settings(lines)
    main = max(found, key=lambda one: sum(len(line.cells) for line in one.lines))
    shown = main.lines[:MOST]
    of = f"the {len(shown)} {phrases.setting(main, found)}"
    return shown, f" Of {len(lines)} series {of} are drawn; the tables have all."


def rows_of(cells: Sequence[Cell], table: Table) -> Table:
    """Return a table with only the rows of these cells' series."""
    wanted: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    names = [name for name in (cells[0].key if cells else ()) if name not in _SIZES]
    rows = []
    for row in table.rows:
        here = tuple(name for name in names if name in row)
        if here not in wanted:
            wanted[here] = {tuple(repr(c.key.get(name)) for name in here) for c in cells}
        if tuple(repr(row[name]) for name in here) in wanted[here]:
            rows.append(row)
    return dataclasses.replace(table, rows=rows)


_SIZES = ("batch", "update_batch")
