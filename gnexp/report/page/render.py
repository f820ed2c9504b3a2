"""The report's page: one file that reads, prints and answers without a network or a script."""

import csv
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnexp.analysis.article_claims import tally
from gnexp.analysis.compared_keys import NOT_PRIVATE, epsilon, is_trial
from gnexp.analysis.eval_split import TEST, VALIDATION
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Table
from gnexp.report import templates
from gnexp.report.templates import pretty
from gnexp.store.study import Study

LONG, HEAVY = 400, 600_000  # rows that a table on the page has at most; bytes of a packed one
WIDE_TEXT = 42  # letters beyond which a cell breaks its line
CHECK = Path("check") / "check.csv"  # below the folder that holds the studies
MAIN_FIGURE = "accuracy_vs_batch"  # above the sections
_OF_A_MACHINE = ("commit", "torch", "gnexp", "device", "determinism")  # should be one
VERSION_KEYS = ("gnexp", "commit", "python", "torch", "numpy", "device", "threads", "determinism")


def render_page(
    analysis: StudyAnalysis,
    tables: Mapping[str, Table],
    figures: Mapping[str, tuple[bytes, str]],
    formats: Sequence[str],
    **context: Any,
) -> str:
    """Return index.html.

    figures: {name: (its SVG, its caption)}, embedded whatever `formats`, the files to link to, are.
    context: answer, summary, matrix.
    """
    study, on, checks = analysis.study, analysis.eval_split, analysis.noise_check
    return render(
        "page.html.j2",
        figures,
        study=study,
        on=on,
        tables=tables,
        main_figure=MAIN_FIGURE,
        formats=formats,
        reference_batch=analysis.reference_batch,
        trained=_trained(analysis),
        private=any(epsilon(record.config) != NOT_PRIVATE for record in study.runs),
        unfinished=[row for row in analysis.runs if row["status"] != "complete"],
        distinct={key: distinct(study, key) for key in _OF_A_MACHINE},
        commands=distinct(study, "command"),
        versions={key: distinct(study, key) for key in VERSION_KEYS if distinct(study, key)},
        started=_span(study),
        verdicts=tally(analysis.article_claims, lambda row: row["verdict"]),
        check_counts=verdict_counts(study.out),
        agreed=(sum(bool(row["agree"]) for row in checks), len(checks)),
        **context,
    )


def pack(table: Table) -> str:
    """Return a long table as JSON, each column's distinct texts once; "" when it is too heavy."""
    columns = []
    texts = table.texts()
    for index, column in enumerate(table.shown):
        values: dict[str, int] = {}
        which: list[int] | int = [
            values.setdefault(pretty(row[index]), len(values)) for row in texts
        ]
        if len(values) == 1:
            which = 0  # of every row
        head = {"header": pretty(column.header), "numeric": column.numeric}
        columns.append({**head, "values": list(values), "which": which})
    packed = {"title": table.title, "rows": len(texts), "columns": columns}
    text = json.dumps(packed, separators=(",", ":")).replace("<", "\\u003c")
    return text if len(text) <= HEAVY else ""


def distinct(study: Study, key: str) -> list[str]:
    """Return the values of a provenance key, in the order of the runs, once each."""
    values = []
    calls = [c for r in study.runs for c in (*r.provenance.get("earlier", []), r.provenance)]
    for call in calls:
        value = call.get(key)
        if value is not None and value != "":
            dirty = key == "commit" and call.get("dirty")
            values.append(f"{value}{' with uncommitted changes' if dirty else ''}")
    return list(dict.fromkeys(values))


def render(template: str, figures: Mapping[str, tuple[bytes, str]], **context: Any) -> str:
    """Return a page from a template of this folder, with the looks that all pages share.

    figures: {name: (its SVG, its caption)}.
    """
    return templates.render(
        f"page/{template}",
        figures={name: _figure(*found) for name, found in figures.items()},
        css=_source("page.css"),
        js=_source("page.js"),
        pack=pack,
        LONG=LONG,
        WIDE_TEXT=WIDE_TEXT,
        **context,
    )


def _source(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


# Where a line goes, in points, of which a hundredth is no ink.
_PLACES, _MORE = re.compile(r' (?:d|x|y)="[^"]*"'), re.compile(r"(\.\d\d)\d+")


def _figure(svg: bytes, caption: str) -> Mapping[str, str]:
    from markupsafe import Markup

    # An SVG is text: escaped it is a quarter smaller than in base64.
    text = " ".join(_PLACES.sub(lambda found: _MORE.sub(r"\1", found[0]), svg.decode()).split())
    source = quote(text.replace('"', "'"), safe=" !$'*+,-./:;=?@[]_{|}~")
    alt = caption.split(": ")[0].split(". ")[0].rstrip(".")
    # Nothing in it ends an attribute in double quotes, and ' escaped would be most of its bytes.
    return {
        "src": Markup(f"data:image/svg+xml,{source}"),
        "caption": caption,
        "alt": f"Figure: {alt}",
    }


def _trained(analysis: StudyAnalysis) -> list[dict[str, Any]]:
    """Return what was trained on what, once per data set and model."""
    found = []
    for record in analysis.study.runs:
        data, config = record.result.get("data", {}), record.config
        one = {
            "model": config.get("model", {}).get("name"),
            "title": data.get("title") or config.get("data", {}).get("name"),
            "judged_on": VALIDATION if is_trial(record) else TEST,
            **{key: data.get(key) for key in ("train", "test", "checksum")},
        }
        if one not in found and (record.result or not analysis.cells):
            found.append(one)
    return found


def _span(study: Study) -> str:
    started = sorted(
        str(r.provenance["started"]) for r in study.runs if r.provenance.get("started")
    )
    return " to ".join(dict.fromkeys([started[0], started[-1]])) if started else ""


def verdict_counts(out: Path) -> dict[str, Any]:
    """Return norms, claims and counts {(claim, norm, verdict): n}; nothing if none was checked.

    out: the folder of the studies, under which `gnexp check` writes too.
    """
    try:
        with open(out / CHECK, newline="", encoding="utf-8") as file:
            rows = [r for r in csv.DictReader(file) if r.get("verdict") and r.get("statement")]
    except (OSError, ValueError, csv.Error):
        return {}
    if not rows:
        return {}
    return {
        "norms": list(dict.fromkeys(row["norm"] for row in rows)),
        "claims": sorted({(int(row["claim"]), row["title"]) for row in rows}),
        "counts": Counter((int(r["claim"]), r["norm"], _kind(r["verdict"])) for r in rows),
    }


def _kind(verdict: str) -> str:
    return "holds only when" if verdict.startswith("holds only when") else verdict
