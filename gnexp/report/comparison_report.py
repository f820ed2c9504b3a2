"""The report on two studies: OUT/report/A-vs-B/, from whatever both hold at this moment."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gnexp.analysis import cells as grouping
from gnexp.analysis.cells import BASE, Cell
from gnexp.analysis.compare_studies import accuracy_rows, cost_rows, labelled, match, what_differs
from gnexp.analysis.leaders import MARGIN
from gnexp.analysis.lr_search import at_chosen_lr, test_cells, tuned_cells
from gnexp.analysis.tables.compare_studies import (
    accuracy_table,
    cost_table,
    differing_table,
    sentences,
    unmatched_table,
    varies,
    warnings,
)
from gnexp.analysis.tables.table import Row, write_table_files
from gnexp.report.figures import style
from gnexp.report.figures.compare_studies import (
    CAPTIONS,
    accuracy_side_by_side,
    difference_vs_batch,
)
from gnexp.report.fingerprint import FORMATS, formats_kept
from gnexp.report.page.render import render
from gnexp.report.text.answer import study_answer
from gnexp.store.files import write_whole
from gnexp.store.run import exclusive
from gnexp.store.study import Study, load_study, study_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TABLES = ("comparison", "comparison_cost", "what_differs", "unmatched")


def comparison_folder(out: Path, names: Sequence[str]) -> Path:
    """Return where the report on two studies lies: no study is called "report".

    Other studies never get the same folder: a name that may be read in two ways is written with a
    sign that names of studies do not have.
    """
    joined = "-vs-".join(names)
    one_reading = len(re.findall("(?=-vs-)", joined)) == 1
    return out / "report" / (joined if one_reading else "+vs+".join(names))


def build_comparison(
    out: Path | str,
    names: Sequence[str],
    reference_batch: int = 32,
    formats: Sequence[str] = FORMATS,
    margin: float = MARGIN,
) -> tuple[dict[str, Path], list[str]]:
    """Write the report on two studies of `out`; return ({file name: path}, what it found).

    The same files in give the same bytes out, and no file of an earlier report stays that this one
    does not have: figures in a format that lies there are made anew. Raises ValueError when there
    is no such study, or one has no finished seed.
    """
    studies = [load_study(study_path(out, name)) for name in names]
    cells = [_cells(study) for study in studies]
    for study, found in zip(studies, cells):
        if not found:
            raise ValueError(f"study={study.name} has no finished seed yet: there is nothing in it")
    folder = comparison_folder(Path(out), [study.name for study in studies])
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        formats = formats_kept(formats, folder, CAPTIONS)
        return _build(studies, cells, folder, reference_batch, formats, margin)


def _cells(study: Study) -> list[Cell]:
    """Return a study's cells as its own report compares them: tuned ones at the chosen rate."""
    return at_chosen_lr(test_cells(study), tuned_cells(study))


def _tuned(studies: Sequence[Study]) -> list[Row]:
    """Return a row for `what_differs` where the studies differ in how many cells are tuned."""
    counts = [len(tuned_cells(study)) for study in studies]
    shown_keys = {"what": "cells whose learning rate is tuned"}
    rows = [{**shown_keys, "first": str(counts[0]), "second": str(counts[1])}]
    return rows if counts[0] != counts[1] else []


def _build(
    studies: Sequence[Study],
    cells: Sequence[Sequence[Cell]],
    folder: Path,
    reference_batch: int,
    formats: Sequence[str],
    margin: float,
) -> tuple[dict[str, Path], list[str]]:
    names = [study.name for study in studies]
    pairs, unmatched = match(*cells, names)
    rows, costs = accuracy_rows(pairs), cost_rows(pairs, reference_batch)
    lines = [grouping.series(side) for side in cells]
    tables = [
        accuracy_table(rows, names),
        cost_table(costs, names, reference_batch),
        differing_table([*what_differs(*cells), *_tuned(studies)], names),
        unmatched_table(unmatched, names),
    ]
    keys = [key for key in (pairs[0].key if pairs else ()) if key not in BASE]
    shown_keys = [key for key in keys if varies(key, rows)]
    sides = labelled(lines, keys)
    with style.drawing():
        figures = {
            "accuracy_vs_batch": accuracy_side_by_side(*sides, names),
            "difference_vs_batch": difference_vs_batch(rows, shown_keys, names),
        }
        drawn = {name: figure for name, figure in figures.items() if figure is not None}
        images, written = _save(drawn, folder, formats)
    written += [path for table in tables for path in write_table_files(table, folder)]
    found = sentences(pairs, rows, costs, names)
    written.append(folder / "index.html")
    page = render(
        "compare.html.j2",
        images,
        names=names,
        reference_batch=reference_batch,
        warnings=warnings(*cells, names),
        corrupt_files=[sentence for study in studies for sentence in study.corrupt_files],
        found=found or [tables[0].empty],
        answers=[
            (study.name, study_answer(study, of, reference_batch, margin))
            for study, of in zip(studies, lines)
        ],
        tables={table.name: table for table in tables},
        formats=formats,
    )
    write_whole(written[-1], page)
    _remove_others(folder, {path.name for path in written})
    return {path.name: path for path in written}, found or [tables[0].empty]


def _save(
    figures: "Mapping[str, Figure]", folder: Path, formats: Sequence[str]
) -> tuple[dict[str, tuple[bytes, str]], list[Path]]:
    """Write the figures in these formats; return {name: (its SVG, its caption)}, and the files."""
    images, written = {}, []
    for name, figure in figures.items():
        kinds = dict.fromkeys(["svg", *formats])
        made = {kind: style.image_bytes(figure, kind) for kind in kinds}
        for kind in formats:
            written.append(folder / f"{name}.{kind}")
            write_whole(written[-1], made[kind])
        images[name] = made["svg"], CAPTIONS[name]
    return images, written


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove files of an earlier report under names that are ours and that this one lacks."""
    ours = [f"{name}.{kind}" for name in CAPTIONS for kind in style.FORMATS]
    ours += [f"{name}.{kind}" for name in _TABLES for kind in ("csv", "md", "tex")]
    for name in set(ours) - kept:
        (folder / name).unlink(missing_ok=True)
