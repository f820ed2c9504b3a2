"""The report on two studies: OUT/report/A-vs-B/, from whatever both hold at this moment."""

import re
from collections.abc import Sequence
from pathlib import Path

from gnexp.analysis.compare_studies import StudyComparison, labelled, varies
from gnexp.analysis.tables.compare_studies import comparison_tables
from gnexp.analysis.tables.table import write_table_files
from gnexp.report.figures.compare_studies import accuracy_side_by_side, difference_vs_batch
from gnexp.report.figures.style import captions_of, write_figures
from gnexp.report.fingerprint import FORMATS, formats_kept
from gnexp.report.page.render import render
from gnexp.report.text.answer import answer
from gnexp.report.text.compare_studies import sentences, warnings
from gnexp.store.files import write_whole
from gnexp.store.run import exclusive

CAPTIONS = captions_of("compare_captions.txt")


def comparison_folder(out: Path, names: Sequence[str]) -> Path:
    """Return where the report on two studies lies: no study is called "report".

    Other studies never get the same folder: a name that may be read in two ways is written with a
    sign that names of studies do not have.
    """
    joined = "-vs-".join(names)
    one_reading = len(re.findall("(?=-vs-)", joined)) == 1
    return out / "report" / (joined if one_reading else "+vs+".join(names))


def build_comparison(
    comparison: StudyComparison, out: Path, formats: Sequence[str] = FORMATS
) -> tuple[dict[str, Path], list[str]]:
    """Write the report on two studies of `out`; return ({file name: path}, what it found).

    The same files in give the same bytes out, and no file of an earlier report stays that this one
    does not have: figures in a format that lies there are made anew. Raises ValueError when a study
    has no finished seed.
    """
    for side in comparison.sides:
        if not side.cells:
            name = side.study.name
            raise ValueError(f"study={name} has no finished seed yet: there is nothing in it")
    folder = comparison_folder(out, comparison.names)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        return _build(comparison, folder, formats_kept(formats, folder, CAPTIONS))


def _build(
    comparison: StudyComparison, folder: Path, formats: Sequence[str]
) -> tuple[dict[str, Path], list[str]]:
    names, sides, rows = comparison.names, comparison.sides, comparison.accuracy
    tables = comparison_tables(comparison)
    lines = labelled([side.series for side in sides], comparison.key)
    shown_keys = [key for key in comparison.key if varies(key, rows)]
    makers = {
        "accuracy_vs_batch": lambda: accuracy_side_by_side(*lines, names),
        "difference_vs_batch": lambda: difference_vs_batch(rows, shown_keys, names),
    }
    images, written = write_figures(makers, CAPTIONS, folder, formats)
    written += [path for table in tables.values() for path in write_table_files(table, folder)]
    found = sentences(comparison) or [tables["comparison"].empty]
    written.append(folder / "index.html")
    page = render(
        "compare.html.j2",
        images,
        names=names,
        reference_batch=sides[0].reference_batch,
        warnings=warnings(comparison),
        corrupt_files=[sentence for side in sides for sentence in side.study.corrupt_files],
        found=found,
        answers=[(side.study.name, answer(side)) for side in sides],
        tables=tables,
        formats=formats,
    )
    write_whole(written[-1], page)
    return {path.name: path for path in written}, found
