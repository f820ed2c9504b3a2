"""Tables in four forms: raw numbers as CSV, and for people as Markdown, LaTeX and text cells."""

import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnexp.analysis.tables.latex import latex_table
from gnexp.store.files import write_whole

Row = dict[str, Any]
Unit = Callable[[Any], str]  # how a number is written

PRINTED = 1_000  # rows of a LaTeX table at most: thirty pages
READ = 5_000  # of a Markdown table, which beyond is shown by nothing


@dataclass(frozen=True)
class Column:
    """A column for people: its header (with unit) and how a row's text is made."""

    header: str
    text: Callable[[Row], str]
    numeric: bool = True


@dataclass
class Table:
    """Rows with every raw column, the columns shown to people, and what they mean.

    empty: why there is no row, in a sentence.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[str]
    shown: Sequence[Column]
    rows: list[Row] = field(default_factory=list)
    empty: str = "Nothing was measured for this table."

    def texts(self) -> list[list[str]]:
        """Return the shown cells as text, row by row."""
        return [[column.text(row) for column in self.shown] for row in self.rows]


def write_table_files(table: Table, folder: Path) -> list[Path]:
    """Write NAME.csv, NAME.md and NAME.tex and return their paths."""
    written = []
    for suffix, render in (("csv", to_csv), ("md", to_markdown), ("tex", to_latex)):
        written.append(folder / f"{table.name}.{suffix}")
        write_whole(written[-1], render(table))
    return written


def to_csv(table: Table) -> str:
    """Return all columns, accuracies 0..1, floats exact; what is unknown is empty."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([_raw(row.get(column)) for column in table.columns])
    return buffer.getvalue()


def to_markdown(table: Table) -> str:
    """Return the shown columns as a Markdown table under the title, with the caption."""
    lines = [f"## {table.title}", "", table.caption if table.rows else table.empty, ""]
    if len(table.rows) > READ:
        lines.append(f"{len(table.rows)} rows: see {table.name}.csv.")
    elif table.rows:
        lines.append("| " + " | ".join(c.header for c in table.shown) + " |")
        lines.append("| " + " | ".join("---:" if c.numeric else "---" for c in table.shown) + " |")
        for texts in table.texts():
            lines.append(markdown_row(texts))
    return "\n".join(lines).rstrip() + "\n"


def markdown_row(texts: Sequence[str]) -> str:
    """Return a row of a Markdown table; no text ends a cell or begins another style."""
    return "| " + " | ".join(text.translate(_MARKDOWN) for text in texts) + " |"


def to_latex(table: Table) -> str:
    """Return the shown columns as LaTeX with booktabs; a comment where there is no row.

    And where there are more than PRINTED, which no paper prints.
    """
    if not table.rows:
        return f"% {table.title}: {table.empty}\n"
    if len(table.rows) > PRINTED:
        return f"% {table.title}: {len(table.rows)} rows, too many to print; see {table.name}.csv\n"
    heads, numeric = [c.header for c in table.shown], [c.numeric for c in table.shown]
    return latex_table(table.name, table.caption, heads, table.texts(), numeric)


def format_number(value: Any, digits: int = 3) -> str:
    """Return a number with `digits` significant digits; '' for what is unknown, 'inf' as such."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def percent(value: float | None, digits: int = 1) -> str:
    """Return a fraction as percent without the sign; '' for what is unknown."""
    return "" if value is None or not math.isfinite(value) else f"{100 * value:.{digits}f}"


def fixed(value: float | None) -> str:
    """Return a number with three decimals; '' for what is unknown."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def points(value: float | None) -> str:
    """Return a fraction as percent, or points of it, with two decimals."""
    return percent(value, 2)


def bounds(lo: float | None, hi: float | None, unit: Unit = points) -> str:
    """Return '[lo, hi]'; '' without both ends."""
    low, high = unit(lo), unit(hi)
    return f"[{low}, {high}]" if low and high else ""


def estimate(row: Row, column: str, unit: Unit = points, n: str = "n") -> str:
    """Return 'mean [lo, hi]', without the interval where there is none.

    n: the column that counts its seeds, shown where it is not the row's n.
    """
    mean, whole = unit(row.get(column)), row.get("n")
    seeds = f" (n = {row[n]})" if mean and row.get(n, whole) != whole else ""
    interval = bounds(row.get(f"{column}_lo"), row.get(f"{column}_hi"), unit)
    return f"{mean} {interval}".rstrip() + seeds


def signed(value: float) -> str:
    """Return a fraction in points with its sign; '' for what is unknown."""
    return f"{100 * value:+.2f}" if math.isfinite(value) else ""


def _raw(value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(float(value)) if isinstance(value, float) else value


_MARKDOWN = str.maketrans({"\n": " "} | {sign: f"\\{sign}" for sign in "|*_<>`\\"})
