"""The check as files: all rows, a table of verdicts, a page, and figures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnexp.analysis.check_result import POINT_COLUMNS, ROW_COLUMNS, CheckResult, Row
from gnexp.analysis.tables.table import Column, Table, to_csv, to_markdown
from gnexp.report.check.figures import CAPTIONS, draw_check
from gnexp.store.files import write_whole

READING = """\
A verdict is what a number says, never what a norm is called: a number without chance in it is held
against the tolerance of its row; one with chance in it *holds* only when its whole 95 % interval
lies inside the tolerance, *fails* when none of it does, and is *undecided* between. *holds only
when ...* names the condition under which the sentence is true; *holds vacuously* says that the norm
has nothing of what the sentence speaks of, as its note tells. Layers are measured in float64 and
training mode, as black boxes; a network's claim says what it was measured on."""


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
        Column("Claim", lambda row: row["title"], False),
        Column("In a sentence", lambda row: row["text"], False),
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
    parts = [
        f"# Norm check: {', '.join(result.norms)}",
        _facts(made),
        READING,
        *result.trouble_lines(),
        to_markdown(verdict_table(result)),
    ]
    for number, key, title in result.claims:
        rows = [row for row in result.rows if row["claim"] == number]
        parts.append(_claim_part(number, title, rows))
        if key in figures:
            picture = f"![{title}]({figures[key].with_suffix('.png').name})"
            parts.append(f"{picture}\n\n{CAPTIONS[key]}")
    return "\n\n".join(part.rstrip() for part in parts if part) + "\n"


def _facts(made: Mapping[str, Any]) -> str:
    changed = ", with changes" if made.get("dirty") else ""
    commit = f" ({str(made['commit'])[:10]}{changed})" if made.get("commit") else ""
    return (
        f"`{made['command']}`\n\ngnexp {made['gnexp']}{commit}, Python {made['python']}, PyTorch"
        f" {made['torch']}, {made['device']}."
    )


def _claim_part(number: int, title: str, rows: list[Row]) -> str:
    """Return the section of one claim: a table per statement, a row per norm."""
    parts = [f"## {number}. {title}"]
    if rows:
        parts[0] += f" [{rows[0]['section']}]"
    for its_rows in _by_statement(rows).values():
        first = its_rows[0]
        shown = [
            Column("Norm", lambda row: row["norm"], False),
            Column("Expected", lambda row: row["expected"], False),
            Column("Measured", lambda row: row["measured"], False),
            Column("Verdict", lambda row: row["verdict"], False),
        ]
        tolerances = list(dict.fromkeys(row["tolerance"] for row in its_rows if row["tolerance"]))
        whats = list(dict.fromkeys(row["what"] for row in its_rows))
        caption = f"{_sentence('; or '.join(whats))}"
        if tolerances:
            caption += f" Tolerance: {'; or '.join(tolerances)}."
        table = to_markdown(Table("", first["text"], caption, (), shown, its_rows))
        parts.append("#" + table.rstrip())
        parts += [_note(note, norms) for note, norms in _notes(its_rows).items()]
    return "\n\n".join(parts)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _notes(rows: list[Row]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(row["norm"])
    return notes


def _note(note: str, norms: list[str]) -> str:
    return f"*{', '.join(norms)}*: {_sentence(note)}"
