"""The report: tables, figures and one page, from whatever a study holds at this moment."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from gnexp.analysis.eval_split import for_split
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.build import LR_TABLES, WHY_TABLES, build_tables
from gnexp.analysis.tables.table import write_table_files
from gnexp.report.figures import accuracy, batch_vs_update_batch, lr_search, shift
from gnexp.report.figures.style import captions_of, write_figures
from gnexp.report.fingerprint import FORMATS, files_of, fingerprint, formats_kept, is_fresh, stamp
from gnexp.report.page.render import render_page
from gnexp.report.text import phrases
from gnexp.report.text.accuracy_matrix import accuracy_matrix
from gnexp.report.text.answer import answer
from gnexp.report.text.summary import summary
from gnexp.store.files import write_whole
from gnexp.store.run import exclusive

FIGURES = (accuracy, shift, lr_search, batch_vs_update_batch)
CAPTIONS = captions_of("captions.txt")
# Tables that most studies do not have.
OPTIONAL = (*WHY_TABLES, *LR_TABLES, "two_batches", "norm_pairs")
MOST_SERIES = 40  # in one figure


def build_report(analysis: StudyAnalysis, formats: Sequence[str] = FORMATS) -> dict[str, Path]:
    """Write STUDY/report/ and return {file name: path}, index.html included.

    formats: of the figures' files, any of style.FORMATS; those that the folder holds already are
    made anew beside them. The page holds its figures itself.
    Works at any moment of a study; the same files in give the same bytes out, and a report that is
    those already is left as it is. Raises ValueError for another format.
    """
    study = analysis.study
    folder = study.report_folder
    folder.mkdir(parents=study.is_zip, exist_ok=True)
    with exclusive(folder):
        formats = formats_kept(formats, folder, CAPTIONS)
        inputs = fingerprint(analysis, formats)
        if is_fresh(folder, inputs):
            return files_of(folder)
        written = _build(analysis, folder, formats)
        stamp(folder, inputs, written)
    return {path.name: path for path in written}


def _build(analysis: StudyAnalysis, folder: Path, formats: Sequence[str]) -> list[Path]:
    """Write all files of the report and return their paths."""
    tables = build_tables(analysis)
    written = []
    for table in tables.values():
        if table.rows or table.name not in OPTIONAL:
            written += write_table_files(table, folder)
        else:  # of an earlier report
            for suffix in ("csv", "md", "tex"):
                (folder / f"{table.name}.{suffix}").unlink(missing_ok=True)
    drawn, left_out = _to_draw(analysis)
    makers = {name: make for module in FIGURES for name, make in module.makers(drawn).items()}
    captions = {
        name: for_split(text, drawn.eval_split) + left_out for name, text in CAPTIONS.items()
    }
    figures, files = write_figures(makers, captions, folder, formats, drawn.eval_split)
    of_all = [row for row in analysis.exponents if row["parameters"] == "all"]
    tables["exponents_of_all"] = dataclasses.replace(tables["exponents"], rows=of_all)
    page = render_page(
        analysis,
        tables,
        figures,
        formats,
        answer=answer(analysis),
        summary=summary(analysis),
        matrix=accuracy_matrix(analysis.series),
    )
    index = folder / "index.html"
    write_whole(index, page)
    return [*written, *files, index]


def _to_draw(analysis: StudyAnalysis) -> tuple[StudyAnalysis, str]:
    """Return the analysis of the series to draw, and a sentence on what is left out, or "".

    Of more than MOST_SERIES, those of the setting that the answer is about: that with most cells,
    and of these the first MOST_SERIES.
    """
    if len(analysis.series) <= MOST_SERIES:
        return analysis, ""
    found = analysis.comparison_groups
    main = max(found, key=lambda one: sum(len(line.cells) for line in one.lines))
    shown = main.lines[:MOST_SERIES]
    of = f"the {len(shown)} {phrases.setting(main, found)}"
    left_out = f" Of {len(analysis.series)} series {of} are drawn; the tables have all."
    return analysis.of_series(shown), left_out
