"""The report: tables, figures and one page, from whatever a study holds at this moment."""

import base64
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gnexp.study import cells as grouping
from gnexp.study import plots
from gnexp.study.cells import Cell, Series
from gnexp.study.damage import damage_sentences
from gnexp.study.files import write_whole
from gnexp.study.freshness import files_of, is_fresh, stamp
from gnexp.study.headline import headline
from gnexp.study.rendering import Table, percent, write_table_files
from gnexp.study.store import Study, alone_in, load_study
from gnexp.study.tables import build_tables
from gnexp.study.tuning import judged_cells, settled, tuned_cells
from gnexp.study.tuning_tables import NAMES as TUNING
from gnexp.study.tuning_tables import tuning_tables
from gnexp.study.why_plots import CAPTIONS, why_figures
from gnexp.study.why_tables import NAMES as WHY

FIGURES = {
    "accuracy_vs_batch": "Test accuracy of the last epoch against batch size: mean of the seeds "
    "that did not diverge, with its 95 % interval (one seed: over test images). Points are moved "
    "sideways a little so that intervals stay visible.",
    "accuracy_vs_groups": "Test accuracy against the number of groups (or channels per group), "
    "with 95 % intervals.",
    "gradient_variance_vs_batch": "Gradient noise against batch size on logarithmic axes, mean "
    "over seeds with 95 % interval, and fitted exponents; grey: slope -1. An open BN marker at "
    "batch 1 is instance norm and not part of the fit.",
    "gradient_variance_by_kind": "The same for each kind of parameter.",
    "curves": "Train loss and test accuracy against images seen: mean over the "
    "complete seeds, and their range.",
    "cost": "Training time as recorded, per seed and 1,000 images, with 95 % intervals over seeds. "
    "Seeds trained in one step share its time; see execution, seeds per step and device among the "
    "runs.",
    **CAPTIONS,
}
OPTIONAL = (*WHY, *TUNING)  # tables that most studies do not have
PRIVATE = (
    "runs with an epsilon were trained with DP-SGD: each training's weights, and what follows from "
    "them, as test accuracy, are (epsilon, delta)-private for one image added or removed; "
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
    "diverged": "a training whose loss stopped being finite: a result, counted at chance in "
    "comparisons, left out of means, and always shown",
    "noise": "trace of the covariance of a mini-batch gradient at fixed weights",
    "signal": "squared norm of the expected gradient; unbiased, so it may be negative",
    "noise scale": "batch x noise / signal: the batch size at which noise equals signal, in images",
    "exponent": "a in noise = c x batch^a; -1 when images contribute independently",
    "shared weights": "the same network measured at every batch size",
    "own weights": "each network measured at the batch size it was trained with",
}


def build_report(study_folder: Path | str, reference_batch: int = 32) -> dict[str, Path]:
    """Write STUDY/report/ and return {file name: path}, index.html included.

    Works at any moment of a study; the same files in give the same bytes out, and a report that is
    those already is left as it is. Raises ValueError when there is no such study.
    """
    study = load_study(study_folder)
    folder = study.folder / "report"
    folder.mkdir(exist_ok=True)
    with alone_in(folder):
        if is_fresh(study, reference_batch, folder):
            return files_of(folder)
        return _build(study, folder, reference_batch)


def _build(study: Study, folder: Path, reference_batch: int) -> dict[str, Path]:
    tuned = tuned_cells(study)
    judged = judged_cells(study)
    cells = settled(judged, tuned)
    lines = grouping.series(cells)
    tables = build_tables(study, cells, lines, reference_batch)
    tables |= tuning_tables(tuned, judged)
    written = [path for table in tables.values() for path in _write_table(table, folder)]
    gradients, exponents = tables["gradient_variance"].rows, tables["exponents"].rows
    damages = tables["decomposition"].rows
    why = why_figures(cells, lines, tables, reference_batch)
    figures = plots.draw_figures(cells, lines, gradients, exponents, folder, why)
    for name in FIGURES:
        files = [folder / f"{name}.png", folder / f"{name}.svg"]
        if name in figures:
            written += files
        else:  # of an earlier report: it would contradict this one
            for file in files:
                file.unlink(missing_ok=True)
    written.append(folder / "index.html")
    page = _render(
        study=study,
        headline=[
            *headline(study, lines, reference_batch, exponents, tables["noise_check"].rows),
            *damage_sentences(damages),
        ],
        tables=tables,
        exponents_of_all=dataclasses.replace(
            tables["exponents"], rows=[row for row in exponents if row["parameters"] == "all"]
        ),
        matrix=accuracy_matrix(lines),
        figures={name: _figure(name, path) for name, path in figures.items()},
        about=_about(study, cells),
        unfinished=[row for row in tables["runs"].rows if row["status"] != "complete"],
        warnings=_mixed(study),
        damage=study.damage,
        commands=_distinct(study, "command"),
        versions={key: _distinct(study, key) for key in VERSION_KEYS if _distinct(study, key)},
        started=_span(study),
        meanings=MEANINGS,
        why=any(tables[name].rows for name in WHY),
        reference_batch=reference_batch,
    )
    write_whole(written[-1], page)
    stamp(study, reference_batch, folder, written)
    return {path.name: path for path in written}


def _write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table's files; of one of OPTIONAL without rows, remove those of an earlier report."""
    if table.rows or table.name not in OPTIONAL:
        return write_table_files(table, folder)
    for suffix in ("csv", "md", "tex"):
        (folder / f"{table.name}.{suffix}").unlink(missing_ok=True)
    return []


def plain_table(study: Study) -> str:
    """Return the accuracies as aligned text: a row per norm, a column per batch size."""
    lines = grouping.series(settled(judged_cells(study), tuned_cells(study)))
    if not lines:
        return "no seed is finished yet"
    batches, rows = accuracy_matrix(lines)
    same = {cell.n for _, row in rows for cell in row if cell}
    alike = len(same) == 1 and not any(cell.diverged for _, row in rows for cell in row if cell)
    table = [["batch", *map(str, batches)]]
    for label, row in rows:
        table.append([label, *(cell.text(with_n=not alike) if cell else "-" for cell in row)])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    text = [
        "  ".join(t.ljust(w) if i == 0 else t.rjust(w) for i, (t, w) in enumerate(zip(row, widths)))
        for row in table
    ]
    n = f", n = {same.pop()}" if alike else ", (n seeds)"
    single = (
        "; one seed: interval over test images"
        if any(cell.n == 1 for _, row in rows for cell in row if cell)
        else ""
    )
    title = f"test accuracy in percent, last epoch, mean +- half of the 95 % interval{n}{single}"
    return "\n".join([title, *text])


class MatrixCell:
    """One accuracy for a norm x batch matrix."""

    def __init__(self, cell: Cell):
        interval, _ = cell.accuracy()
        self.n, self.diverged = interval.n, len(cell.of("diverged"))
        self.mean = percent(interval.mean)
        self.half = percent((interval.hi - interval.lo) / 2)

    def text(self, with_n: bool = True) -> str:
        """Return '78.3+-0.4 (3)', or what became of the seeds if none survived."""
        if not self.n:
            return f"{self.diverged} diverged" if self.diverged else "-"
        lost = f", {self.diverged} of {self.n + self.diverged} diverged" if self.diverged else ""
        number = self.mean + (f"+-{self.half}" if self.half else "")
        return number + (f" ({self.n}{lost})" if with_n or lost else "")


def accuracy_matrix(
    lines: Sequence[Series],
) -> tuple[list[int], list[tuple[str, list[MatrixCell | None]]]]:
    """Return (batch sizes, [(series label, a MatrixCell or None per batch size)])."""
    batches = sorted({cell.key["batch"] for line in lines for cell in line.cells})
    rows = []
    for line in lines:
        by_batch = {cell.key["batch"]: MatrixCell(cell) for cell in line.cells}
        rows.append((line.label, [by_batch.get(batch) for batch in batches]))
    return batches, rows


def _render(**context: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pretty"] = _pretty
    return environment.get_template("page.html.j2").render(**context)


def _pretty(text: str) -> str:
    """Turn the ASCII of captions and cells into the signs that a browser has."""
    for plain, sign in (("+-", "\u00b1"), ("^2", "\u00b2"), (" x ", " \u00d7 "), ("inf", "\u221e")):
        text = text.replace(plain, sign) if plain != "inf" else _infinite(text, sign)
    return text


def _infinite(text: str, sign: str) -> str:
    return text.replace("inf]", f"{sign}]") if text != "inf" else sign


def _figure(name: str, path: Path) -> dict[str, str]:
    encoded = base64.b64encode(path.read_bytes()).decode()
    return {"src": f"data:image/svg+xml;base64,{encoded}", "caption": FIGURES[name]}


def _about(study: Study, cells: Sequence[Cell]) -> list[str]:
    """Return what was trained on what, once per data set and model."""
    told: dict[str, None] = {}
    for record in study.runs:
        data, config = record.result.get("data", {}), record.config
        title = data.get("title") or config.get("data", {}).get("name")
        size = f": {data['train']} training, {data['test']} test images" if "test" in data else ""
        checksum = f", checksum {str(data['checksum'])[:8]}" if data.get("checksum") else ""
        model = config.get("model", {}).get("name")
        if record.result or not cells:
            told[f"{model} on {title}{size}{checksum}"] = None
        if grouping.epsilon(config) != grouping.NOT_PRIVATE:
            told[PRIVATE] = None
    return list(told)


def _distinct(study: Study, key: str) -> list[str]:
    """Return the values of a provenance key, in the order of the runs, once each."""
    values = []
    calls = [c for r in study.runs for c in (*r.provenance.get("earlier", []), r.provenance)]
    for call in calls:
        value = call.get(key)
        if value is not None and value != "":
            dirty = key == "commit" and call.get("dirty")
            values.append(f"{value}{' with uncommitted changes' if dirty else ''}")
    return list(dict.fromkeys(values))


def _mixed(study: Study) -> list[str]:
    names = {"commit": "commits", "torch": "torch versions", "gnexp": "gnexp versions"}
    names |= {"device": "devices", "determinism": "determinism settings"}
    return [
        f"The runs were made with different {name}: {'; '.join(_distinct(study, key))}."
        for key, name in names.items()
        if len(_distinct(study, key)) > 1
    ]


def _span(study: Study) -> str:
    started = sorted(
        str(r.provenance["started"]) for r in study.runs if r.provenance.get("started")
    )
    return " to ".join(dict.fromkeys([started[0], started[-1]])) if started else ""
