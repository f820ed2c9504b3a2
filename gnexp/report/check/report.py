"""The check as files, all rows, verdicts, a page and figures, and on a terminal."""

import itertools
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.check_result import POINT_COLUMNS, ROW_COLUMNS, CheckResult, Row
from gnexp.analysis.tables.columns import column
from gnexp.analysis.tables.table import Column, Table, to_csv, to_markdown
from gnexp.report.check.figures import draw_check
from gnexp.report.templates import render
from gnexp.store.files import write_whole

WIDTHS = (44, 40, 14, 30, 20)  # of the columns of a full table, in proportion
LEAST_WIDTH, MOST_WIDTH = 80, 160
GAP = "  "


def write_check(folder: Path, result: CheckResult, made: Mapping[str, Any]) -> None:
    """Write check.csv, points.csv, summary.md, check.md and the figures; made: provenance."""
    rows = Table("check", "", "", ROW_COLUMNS, [], result.rows)
    points = Table("points", "", "", POINT_COLUMNS, [], result.points)
    write_whole(folder / "check.csv", to_csv(rows))
    write_whole(folder / "points.csv", to_csv(points))
    write_whole(folder / "summary.md", to_markdown(verdict_table(result, main=True)))
    for old in folder.glob("claim*.*"):
        old.unlink()
    figures = draw_check(folder, result.norms, result.claims, result.points)
    write_whole(folder / "check.md", page(result, figures, made))


def verdict_table(result: CheckResult, main: bool = False) -> Table:
    """Return the table of verdicts: a row per statement or main statement, a column per norm."""
    rows: list[Row] = []
    for (number, _), its_rows in _by_statement(result.rows).items():
        first = its_rows[0]
        if main and (first["key"], first["statement"]) not in result.main:
            continue
        begins = not rows or rows[-1]["claim"] != number
        verdicts = {row["norm"]: row["verdict"] for row in its_rows}
        head = {"claim": number, "title": f"{number}. {first['title']}" if begins else ""}
        rows.append({**head, "text": first["text"], **verdicts})
    shown = [
        column("Claim | words title"),
        column("In a sentence | words text"),
        *(Column(n, lambda row, n=n: row.get(n, "not measured"), False) for n in result.norms),
    ]
    title = "What the article claims, what was measured"
    return Table("verdicts", title, "", ["claim", "text", *result.norms], shown, rows)


def _by_statement(rows: list[Row]) -> dict[tuple[int, str], list[Row]]:
    """Return the measured rows of each statement, claim by claim in their first order."""
    found: dict[tuple[int, str], list[Row]] = {}
    for row in rows:
        if row.get("statement"):
            found.setdefault((row["claim"], row["statement"]), []).append(row)
    numbers = sorted({claim for claim, _ in found})
    return {key: found[key] for number in numbers for key in found if key[0] == number}


def page(result: CheckResult, figures: Mapping[str, Path], made: Mapping[str, Any]) -> str:
    """Return check.md."""
    claims = []
    for number, key, title in result.claims:
        rows = [row for row in result.rows if row["claim"] == number]
        picture = figures[key].with_suffix(".png").name if key in figures else ""
        claim = {"number": number, "key": key, "title": title, "picture": picture}
        claim["section"] = rows[0]["section"] if rows else ""
        claim["statements"] = [_statement(of) for of in _by_statement(rows).values()]
        claims.append(claim)
    verdicts = to_markdown(verdict_table(result))
    return render("check/check.md.j2", result=result, made=made, verdicts=verdicts, claims=claims)


def _statement(rows: Sequence[Row]) -> dict[str, Any]:
    """Return a statement's table, a row per norm, and {note: the norms that it is of}."""
    tolerances = dict.fromkeys(row["tolerance"] for row in rows if row["tolerance"])
    caption = _sentence("; or ".join(dict.fromkeys(row["what"] for row in rows)))
    caption += f" Tolerance: {'; or '.join(tolerances)}." if tolerances else ""
    table = Table("", rows[0]["text"], caption, (), _SHOWN, rows)
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(_sentence(row["note"]), []).append(row["norm"])
    return {"table": to_markdown(table), "notes": notes}


_TEXTS = ("norm", "expected", "measured", "verdict")
_SHOWN = [column(f"{name.capitalize()} | words {name}") for name in _TEXTS]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


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
