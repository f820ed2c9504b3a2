"""The report's page: one file that reads, prints and answers without a network or a script."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gnexp.analysis.article_claims import tally
from gnexp.analysis.cells import NOT_PRIVATE, epsilon, is_trial
from gnexp.analysis.eval_split import TEST, VALIDATION, for_split
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Table
from gnexp.report.page.check_summary import verdict_counts
from gnexp.report.page.sections import MAIN_FIGURE, layout
from gnexp.store.study import Study

LONG, HEAVY = 400, 600_000  # rows that a table on the page has at most; bytes of a packed one
WIDE_TEXT = 42  # letters beyond which a cell breaks its line
PRIVATE = (
    "runs with an epsilon were trained with DP-SGD: each training's weights, and what follows from "
    "them, as test accuracy, are (epsilon, delta)-private for one image added to or removed "
    "from those that were trained on, whose number and choice count as public; where noise is "
    "seeded (privacy.noise), against anyone who does not know the seed; "
    "releasing several adds up, and train loss and accuracy are not covered"
)
VERSION_KEYS = ("gnexp", "commit", "python", "torch", "numpy", "device", "threads", "determinism")
MEANINGS = {
    "batch": "images that share one forward pass, hence one set of batch statistics",
    "update batch": "images per optimizer update; more than the batch means accumulation",
    "n": "seeds: independently initialized and shuffled trainings",
    "accuracy": "on the test images after the last epoch; no epoch is selected on the test set",
    "95 % interval": "for the mean over seeds, by Student's t; with one seed, Wilson's binomial "
    "interval over the test images, which says nothing about other seeds",
    "simultaneous": "of a family of comparisons: all its intervals together hold the true "
    "differences in 95 % of studies",
    "statistically tied": "which of two norms is better is not decided: their interval, which is "
    "simultaneous, holds 0; it may still be wide",
    "leads": "is better by a difference that is decided, and larger than report.margin (0.5 points "
    "unless typed)",
    "false by chance": "where all norms are equal, an answer names one of them, or calls a batch "
    "size flat, lower or higher wrongly, in at most 10 % of studies (upper 95 % bound; simulated, "
    "2,000 studies of each kind, 3 or 5 seeds; scripts/answer_errors.py); of a study with several "
    "settings this holds for each",
    "short training": "under thirty passes over the training images: a lead may shrink or turn "
    "with more of them",
    "undecided": "the interval leaves both open: neither a difference nor its absence is shown",
    "diverged": "a training whose loss stopped being finite: a result, counted at chance in "
    "comparisons, left out of means, and always shown",
    "infeasible": "a training that ran out of memory, or whose norm is undefined at its batch and "
    "image size",
    "noise": "trace of the covariance of a mini-batch gradient at fixed weights",
    "signal": "squared norm of the expected gradient; unbiased, so it may be negative",
    "noise scale": "batch x noise / signal: the batch size at which noise equals signal, in images",
    "exponent": "a in noise = c x batch^a; -1 when images contribute independently",
    "shared weights": "the same network measured at every batch size",
    "own weights": "each network measured at the batch size it was trained with",
}


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
    rows = {name for name, table in tables.items() if table.rows}
    return render(
        "page.html.j2",
        figures,
        study=study,
        on=on,
        sections=layout(figures, sorted(rows)),
        tables=tables,
        main_figure=MAIN_FIGURE,
        formats=formats,
        reference_batch=analysis.reference_batch,
        about=_about(analysis),
        unfinished=[row for row in analysis.runs if row["status"] != "complete"],
        warnings=_mixed(study),
        commands=distinct(study, "command"),
        versions={key: distinct(study, key) for key in VERSION_KEYS if distinct(study, key)},
        started=_span(study),
        meanings={word: for_split(meaning, on) for word, meaning in MEANINGS.items()},
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


def pretty(text: str) -> str:
    """Turn the ASCII of captions and cells into the signs that a browser has."""
    for plain, sign in (("+-", "\u00b1"), ("^2", "\u00b2"), (" x ", " \u00d7 ")):
        text = text.replace(plain, sign)
    return "\u221e" if text == "inf" else text.replace("inf]", "\u221e]")


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
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"pretty": pretty, "for_split": for_split}
    return environment.get_template(template).render(
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


def _about(analysis: StudyAnalysis) -> list[str]:
    """Return what was trained on what, once per data set and model."""
    parts: dict[str, None] = {}
    for record in analysis.study.runs:
        data, config = record.result.get("data", {}), record.config
        title = data.get("title") or config.get("data", {}).get("name")
        on = VALIDATION if is_trial(record) else TEST
        size = f": {data['train']} training, {data['test']} {on} images" if "test" in data else ""
        checksum = f", checksum {str(data['checksum'])[:8]}" if data.get("checksum") else ""
        model = config.get("model", {}).get("name")
        if record.result or not analysis.cells:
            parts[f"{model} on {title}{size}{checksum}"] = None
        if epsilon(config) != NOT_PRIVATE:
            parts[for_split(PRIVATE, analysis.eval_split)] = None
    return list(parts)


def _mixed(study: Study) -> list[str]:
    names = {"commit": "commits", "torch": "torch versions", "gnexp": "gnexp versions"}
    names |= {"device": "devices", "determinism": "determinism settings"}
    found = {name: distinct(study, key) for key, name in names.items()}
    return [
        f"The runs were made with different {name}: {'; '.join(values)}."
        for name, values in found.items()
        if len(values) > 1
    ]


def _span(study: Study) -> str:
    started = sorted(
        str(r.provenance["started"]) for r in study.runs if r.provenance.get("started")
    )
    return " to ".join(dict.fromkeys([started[0], started[-1]])) if started else ""
