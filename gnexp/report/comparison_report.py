"""The report on two studies: OUT/report/A-vs-B/, from whatever both hold at this moment."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gnexp.analysis.cells import BASE, Series, line_names, norm_label, norm_rank
from gnexp.analysis.compare_studies import StudyComparison, labelled, varies
from gnexp.analysis.eval_split import TEST
from gnexp.analysis.inference import NO_SPREAD, TOO_FEW, UNDECIDED
from gnexp.analysis.statistics import HIGHER, LOWER
from gnexp.analysis.tables.build import comparison_tables, key_of
from gnexp.analysis.tables.table import Row, write_table_files
from gnexp.report.figures import panels, style
from gnexp.report.figures.accuracy import accuracy_points
from gnexp.report.fingerprint import FORMATS, formats_kept
from gnexp.report.page.render import render
from gnexp.report.templates import write
from gnexp.report.text.answer import answer
from gnexp.store.files import write_whole
from gnexp.store.run import exclusive

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CAPTIONS = style.captions_of("compare_captions.txt")


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
    makers = {
        "accuracy_vs_batch": lambda: accuracy_side_by_side(*lines, names),
        "difference_vs_batch": lambda: difference_vs_batch(rows, names),
    }
    images, written = style.write_figures(makers, CAPTIONS, folder, formats)
    written += [path for table in tables.values() for path in write_table_files(table, folder)]
    found = findings(comparison) or [tables["comparison"].empty]
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


def warnings(comparison: StudyComparison) -> list[str]:
    """Return what keeps the accuracies of two studies from being of one task, or of test images."""
    tasks = [sorted({(c.test_images, c.classes) for c in s.cells}) for s in comparison.sides]
    splits = [side.eval_split for side in comparison.sides]
    return write(
        "compare_warnings.j2",
        names=comparison.names,
        splits=splits,
        all_test=set(splits) == {TEST},
        tasks=tasks,
        other_tasks=all(tasks) and tasks[0] != tasks[1],
        other_chance={k for _, k in tasks[0]} != {k for _, k in tasks[1]},
    )


def findings(comparison: StudyComparison) -> list[str]:
    """Return what the comparison found, and what it leaves undecided; never more than it shows."""
    if not comparison.accuracy:
        return []
    (found, second, first), names = comparison.overall, comparison.names
    overall = {"found": found, "first": first, "second": second, "pairs": len(comparison.pairs)}
    overall["lacking"] = [name for name, n in zip(names, (first, second)) if not n]
    too_few = TOO_FEW if min(first, second) < 2 else NO_SPREAD
    return write(
        "compare_studies.j2",
        names=tuple(names),
        overall={**overall, "why": too_few if found.p != found.p else ""},
        accuracy=_decisions(comparison.accuracy),
        costs=_decisions(comparison.costs),
        reference_batch=comparison.sides[0].reference_batch,
    )


def _decisions(rows: Sequence[Row]) -> dict[str, object]:
    """Return the rows by what is decided of them; largest: the largest difference decided.

    cell: that of the largest difference or, where none is decided, of the widest interval, whose
    width is the difference that is not excluded. reasons: why some have no test.
    """
    decided = [row for row in rows if row["verdict"] in (HIGHER, LOWER)]
    undecided = [row for row in rows if row["verdict"] == UNDECIDED]
    untested = [row for row in rows if row["verdict"] not in (HIGHER, LOWER, UNDECIDED)]
    largest = max(decided, key=lambda row: abs(row["difference"]), default=None)
    widest = max(undecided, key=_width, default=None)
    told = largest or widest
    return {
        **{"rows": rows, "decided": decided, "undecided": undecided, "untested": untested},
        "largest": largest,
        "counts": Counter(row["verdict"] for row in decided),
        "width": _width(widest) if widest else 0.0,
        "cell": _cell(told, rows) if told else "",
        "reasons": " or ".join(dict.fromkeys(r["verdict"].partition(": ")[2] for r in untested)),
    }


def _width(row: Row) -> float:
    return max(abs(row["lo_simultaneous"]), abs(row["hi_simultaneous"]))


def _cell(row: Row, rows: Sequence[Row]) -> str:
    texts = [f"{norm_label(row)} at batch {row['batch']}"]
    if row["update_batch"] != row["batch"]:
        texts.append(f"update batch {row['update_batch']}")
    texts += [f"{key} {row[key]}" for key in key_of(rows) if key not in BASE and varies(key, rows)]
    return ", ".join(texts)


def accuracy_side_by_side(
    first: Sequence[Series], second: Sequence[Series], names: Sequence[str]
) -> "Figure | None":
    """Two panels of mean accuracy against batch size, with one scale and one style per series."""
    sides = [accuracy_points(lines) for lines in (first, second)]
    if not any(sides):
        return None
    styles = style.series_styles(sorted((*first, *second), key=lambda line: norm_rank(line.norm)))
    figure, axes = panels.panel_grid(2, 2, 2.4, sharey=True)
    for axis, points, name in zip(axes, sides, names):
        panels.interval_lines(axis, points, "batch", "accuracy", styles)
        panels.size_axis(axis, [point["batch"] for side in sides for point in side])
        axis.set_title(name)
    axes[0].set_ylabel("Test accuracy (%)")
    panels.legend_below(figure)
    return figure


def difference_vs_batch(rows: Sequence[Row], names: Sequence[str]) -> "Figure | None":
    """The difference of each matched cell against batch size; rows: of the table `comparison`."""
    labels = line_names([{k: row[k] for k in key_of(rows)} for row in rows], ("batch",))
    points = [
        {**row, "series": label, "difference_lo": row["lo95"], "difference_hi": row["hi95"]}
        for row, label in zip(rows, labels)
    ]
    styles = style.norm_styles({point["series"]: point["norm"] for point in points})
    title = f"{names[1]} minus {names[0]}\n(points of test accuracy)"
    figure = panels.against_batch(points, "difference", styles, title)
    if figure is not None:
        figure.axes[0].axhline(0, color="#999999", linewidth=0.8, zorder=0)
    return figure
