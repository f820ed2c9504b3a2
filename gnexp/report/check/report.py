"""The check as files: all rows, a table of verdicts, a page, and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gnexp.analysis.check_result import POINT_COLUMNS, ROW_COLUMNS, CheckResult, Row
from gnexp.analysis.tables.columns import column
from gnexp.analysis.tables.table import Column, Table, to_csv, to_markdown
from gnexp.report.check.figures import draw_check
from gnexp.report.templates import render
from gnexp.store.files import write_whole


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
