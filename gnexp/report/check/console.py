"""The check on a terminal: one norm in full, several as a table of verdicts."""

import itertools
import shutil
import textwrap
from collections.abc import Sequence

from gnexp.analysis.check_result import CheckResult
from gnexp.report.check.report import verdict_table

WIDTHS = (44, 40, 14, 30, 20)  # of the columns of a full table, in proportion
LEAST_WIDTH, MOST_WIDTH = 80, 160
GAP = "  "


def terminal_text(result: CheckResult, width: int | None = None) -> str:
    """Return what a check prints when it is done, in lines of at most `width` characters."""
    width = width or shutil.get_terminal_size((120, 40)).columns
    width = max(LEAST_WIDTH, min(width - 1, MOST_WIDTH))
    lines = _full(result, width) if len(result.norms) == 1 else _verdicts(result, width)
    return "\n".join([*lines, *result.trouble_lines()])


def _full(result: CheckResult, width: int) -> list[str]:
    total = sum(WIDTHS)
    widths = [max(9, part * (width - len(GAP) * (len(WIDTHS) - 1)) // total) for part in WIDTHS]
    head = ("claim", "what was measured", "expected", "measured", "verdict")
    lines = _wrapped(head, widths)
    for number, _, title in result.claims:
        lines += ["", f"{number}. {title}"]
        for row in result.rows:
            if row["claim"] == number and row.get("statement"):
                cells = [row[key] for key in ("text", "what", "expected", "measured", "verdict")]
                lines += _wrapped(cells, widths)
    return lines


def _verdicts(result: CheckResult, width: int) -> list[str]:
    table = verdict_table(result, main=True)
    column = max(11, *(len(norm) for norm in result.norms))
    column = min(column, (width - 30) // len(result.norms) - len(GAP))
    first = width - len(result.norms) * (column + len(GAP))
    widths = [first, *[column] * len(result.norms)]
    lines = _wrapped(["claim", *result.norms], widths)
    for row in table.rows:
        shown = [_short(row.get(norm, "not measured")) for norm in result.norms]
        if row["title"]:
            lines += ["", row["title"]]
        lines += _wrapped([f"  {row['text']}", *shown], widths)
    rest = (
        "only: holds only under a condition; check.md names it, and has every statement and number"
    )
    return [*lines, "", rest]


def _short(verdict: str) -> str:
    return "only" if verdict.startswith("holds only") else verdict


def _wrapped(cells: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Return one row of a table as lines, each cell wrapped within its width."""
    columns = [
        textwrap.wrap(cell, w, subsequent_indent="  " if cell.startswith("  ") else "") or [""]
        for cell, w in zip(cells, widths, strict=True)
    ]
    return [
        GAP.join(text.ljust(w) for text, w in zip(line, widths)).rstrip()
        for line in itertools.zip_longest(*columns, fillvalue="")
    ]
