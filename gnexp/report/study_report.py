"""The report: tables, figures and one page, from whatever a study holds at this moment."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gnexp.analysis import cells as grouping
from gnexp.analysis.article_claims import article_claims
from gnexp.analysis.batch_vs_update_batch import two_batches_sentences
from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.eval_split import for_split, split_of
from gnexp.analysis.leaders import MARGIN
from gnexp.analysis.lr_search import (
    at_chosen_lr,
    split_trials,
    test_cells,
    trial_sentences,
    tuned_cells,
)
from gnexp.analysis.tables.accuracy import build_tables
from gnexp.analysis.tables.lr_search import NAMES as TUNING
from gnexp.analysis.tables.lr_search import tuning_tables
from gnexp.analysis.tables.shift_and_decomposition import NAMES as WHY
from gnexp.analysis.tables.table import Table, percent, write_table_files
from gnexp.report.figures import accuracy, batch_vs_update_batch, lr_search, style
from gnexp.report.figures.select_series import drawn_lines, rows_of
from gnexp.report.figures.shift import CAPTIONS, why_figures
from gnexp.report.fingerprint import FORMATS, files_of, formats_kept, is_fresh, stamp
from gnexp.report.page.render import render_page
from gnexp.report.text.answer import study_answer
from gnexp.report.text.decomposition import decomposition_sentences
from gnexp.report.text.summary import summary
from gnexp.store.files import write_whole
from gnexp.store.run import exclusive
from gnexp.store.study import Study, load_study

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
    **lr_search.CAPTIONS,
    **batch_vs_update_batch.CAPTIONS,
}
OPTIONAL = (*WHY, *TUNING, "two_batches", "norm_pairs")  # tables that most studies do not have


def build_report(
    study_folder: Path | str,
    reference_batch: int = 32,
    formats: Sequence[str] = FORMATS,
    margin: float = MARGIN,
) -> dict[str, Path]:
    """Write STUDY/report/ and return {file name: path}, index.html included.

    formats: of the figures' files, any of drawing.FORMATS; those that the folder holds already are
    made anew beside them. The page holds its figures itself.
    margin: the accuracy, 0..1, beyond which a lead counts in the answer.
    Works at any moment of a study; the same files in give the same bytes out, and a report that is
    those already is left as it is. Raises ValueError when there is no such study or format.
    """
    study = load_study(study_folder)
    folder = study.report_folder
    folder.mkdir(parents=study.is_zip, exist_ok=True)
    with exclusive(folder):
        formats = formats_kept(formats, folder, FIGURES)
        if is_fresh(study, reference_batch, folder, formats, margin):
            return files_of(folder)
        return _build(study, folder, reference_batch, formats, margin)


def _build(
    study: Study, folder: Path, reference_batch: int, formats: Sequence[str], margin: float
) -> dict[str, Path]:
    tuned = tuned_cells(study)
    judged = test_cells(study)
    cells = at_chosen_lr(judged, tuned)
    lines = grouping.series(cells)
    tables = build_tables(study, cells, lines, reference_batch)
    tables |= tuning_tables(tuned, judged)
    claims = article_claims(tables, lines, reference_batch)
    tables[claims.name] = claims
    written = [path for table in tables.values() for path in _write_table(table, folder)]
    exponents = tables["exponents"].rows
    shown, left_out = drawn_lines(lines)
    on = split_of(study)
    figures = _draw(cells, shown, tables, reference_batch, folder, formats, on)
    written += _figure_files(figures, folder, formats)
    of_all = [row for row in exponents if row["parameters"] == "all"]
    tables["exponents_of_all"] = dataclasses.replace(tables["exponents"], rows=of_all)
    facts = summary(
        split_trials(study)[0], lines, reference_batch, exponents, tables["noise_check"].rows
    )
    page = render_page(
        study,
        cells,
        tables,
        {name: (svg, for_split(FIGURES[name], on) + left_out) for name, svg in figures.items()},
        formats,
        answer=study_answer(study, lines, reference_batch, margin),
        summary=[
            *(for_split(fact, on) for fact in facts),
            *trial_sentences(study, tuned),
            *decomposition_sentences(tables["decomposition"].rows),
            *two_batches_sentences(tables["two_batches"].rows),
        ],
        matrix=accuracy_matrix(lines),
        reference_batch=reference_batch,
    )
    written.append(folder / "index.html")
    write_whole(written[-1], page)
    stamp(study, reference_batch, folder, written, formats, margin)
    return {path.name: path for path in written}


def _draw(
    cells: Sequence[Cell],
    shown: Sequence[Series],
    tables: Mapping[str, Table],
    reference_batch: int,
    folder: Path,
    formats: Sequence[str],
    on: str,
) -> dict[str, bytes]:
    """Write the figures of the series to be shown; return {name: its SVG}."""
    names = {cell.record.name for line in shown for cell in line.cells}
    drawn = [cell for cell in cells if cell.record.name in names]
    if len(drawn) < len(cells):
        tables = {k: t if k in TUNING else rows_of(drawn, t) for k, t in tables.items()}
    more = {
        **why_figures(drawn, shown, tables, reference_batch),
        **lr_search.lr_figures(tables),
        **batch_vs_update_batch.two_batches_figures(tables),
    }
    gradients, exponents = tables["gradient_variance"].rows, tables["exponents"].rows
    return accuracy.draw_figures(drawn, shown, gradients, exponents, folder, more, formats, on)


def _figure_files(figures: Collection[str], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Return the files of the figures, and remove others of an earlier report."""
    written = []
    for name in FIGURES:
        for kind in style.FORMATS:
            file = folder / f"{name}.{kind}"
            if name in figures and kind in formats:
                written.append(file)
            else:  # it would contradict this report
                file.unlink(missing_ok=True)
    return written


def _write_table(table: Table, folder: Path) -> list[Path]:
    """Write a table's files; of one of OPTIONAL without rows, remove those of an earlier report."""
    if table.rows or table.name not in OPTIONAL:
        return write_table_files(table, folder)
    for suffix in ("csv", "md", "tex"):
        (folder / f"{table.name}.{suffix}").unlink(missing_ok=True)
    return []


def plain_summary(study: Study, reference_batch: int, margin: float = MARGIN) -> str:
    """Return the accuracies as aligned text, and the answer under them, a sentence a line."""
    lines = grouping.series(at_chosen_lr(test_cells(study), tuned_cells(study)))
    if not lines:
        return "no seed is finished yet"
    table = _plain_table(lines, split_of(study))
    return "\n".join([table, *study_answer(study, lines, reference_batch, margin)])


def _plain_table(lines: Sequence[Series], on: str) -> str:
    """Return a row per norm, a column per batch size."""
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
        f"; one seed: interval over {on} images"
        if any(cell.n == 1 for _, row in rows for cell in row if cell)
        else ""
    )
    title = f"{on} accuracy in percent, last epoch, mean +- half of the 95 % interval{n}{single}"
    return "\n".join([title, *text])


class MatrixCell:
    """One accuracy for a norm x batch matrix."""

    def __init__(self, cell: Cell):
        interval, _ = cell.accuracy()
        self.n, self.diverged = interval.n, len(cell.of("diverged"))
        self.infeasible = bool(cell.of("infeasible"))
        self.mean = percent(interval.mean)
        half = (interval.hi - interval.lo) / 2
        # Beyond what an accuracy can be a half would be false: both ends are shown instead.
        within = interval.mean - half >= 0 and interval.mean + half <= 1
        self.half = percent(half) if within else ""
        ends = interval.lo == interval.lo and not within
        self.ends = f"[{percent(interval.lo)}, {percent(interval.hi)}]" if ends else ""

    def text(self, with_n: bool = True) -> str:
        """Return '78.3+-0.4 (3)', or what became of the seeds if none survived."""
        if not self.n:
            lost = f"{self.diverged} diverged" if self.diverged else "-"
            return "infeasible" if self.infeasible and not self.diverged else lost
        lost = f", {self.diverged} of {self.n + self.diverged} diverged" if self.diverged else ""
        number = self.mean + (f"+-{self.half}" if self.half else f" {self.ends}" * bool(self.ends))
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
