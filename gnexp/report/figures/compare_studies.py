"""The figures of a comparison of two studies: accuracies side by side, and their differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Series, norm_label, norm_rank
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style as drawing
from gnexp.report.figures.style import COLUMN_IN, PAGE_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "accuracy_vs_batch": "Test accuracy of the last epoch against batch size in either study: mean "
    "of the seeds that did not diverge, with its 95 % interval (one seed: over test images). "
    "Points are moved sideways a little so that intervals stay visible.",
    "difference_vs_batch": "Difference of test accuracy against batch size, with the 95 % interval "
    "of each comparison alone (all together: the table has simultaneous ones); a diverged seed "
    "counts at chance.",
}


def accuracy_side_by_side(
    first: Sequence[Series], second: Sequence[Series], names: Sequence[str]
) -> "Figure | None":
    """Two panels of mean accuracy against batch size, with one scale and one style per series."""
    sides = [[s for s in lines if any(c.accuracies for c in s.cells)] for lines in (first, second)]
    if not any(sides):
        return None
    every = sorted((line for lines in sides for line in lines), key=lambda s: norm_rank(s.norm))
    known = {line.label: line for line in every}
    styles = {
        label: drawing.line_style(line, list(known.values())) for label, line in known.items()
    }
    figure, axes = drawing.axes_grid(1, 2, PAGE_IN, 2.4, sharey=True)
    batches = [c.key["batch"] for lines in sides for line in lines for c in line.cells]
    for axis, lines, name in zip(axes, sides, names):
        for line in lines:
            points = [
                {"batch": cell.key["batch"], **cell.accuracy[0].columns("mean")}
                for cell in line.cells
                if cell.accuracies
            ]
            turn = list(known).index(line.label)
            x = drawing.dodge([p["batch"] for p in points], turn, len(known))
            y = [100 * p["mean"] for p in points]
            bars = drawing.error_bars(points, "mean")
            axis.errorbar(x, y, bars, capsize=2, elinewidth=0.9, **styles[line.label])
        drawing.size_axis(axis, batches)
        axis.set_title(name)
    axes[0].set_ylabel("Test accuracy (%)")
    drawing.legend_below(figure, axes)
    return figure


def difference_vs_batch(
    rows: Sequence[Row], shown_keys: Sequence[str], names: Sequence[str]
) -> "Figure | None":
    """The difference of each matched cell against batch size, a line per norm and `shown_keys`.

    rows: of the table `comparison`. shown_keys: columns beyond the norm that make separate lines.
    """
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row["difference"] == row["difference"]:
            lines.setdefault(_label(row, shown_keys), []).append(row)
    if not lines:
        return None
    figure, axes = drawing.axes_grid(1, 1, COLUMN_IN, 2.6)
    norms = [members[0]["norm"] for members in lines.values()]
    for index, (label, members) in enumerate(lines.items()):
        style = drawing.variant_style(norms[index], norms, norms[:index].count(norms[index]))
        _differences(axes[0], members, index, len(lines), {**style, "label": label})
    axes[0].axhline(0, color="#999999", linewidth=0.8, zorder=0)
    drawing.size_axis(axes[0], [row["batch"] for row in rows])
    axes[0].set_ylabel(f"{names[1]} minus {names[0]}\n(points of test accuracy)")
    drawing.legend_below(figure, axes)
    return figure


def _differences(
    axis: "Axes", rows: Sequence[Row], index: int, count: int, style: dict[str, Any]
) -> None:
    rows = sorted(rows, key=lambda row: row["batch"])
    x = drawing.dodge([row["batch"] for row in rows], index, count)
    y = [100 * row["difference"] for row in rows]
    ends = [{**row, "difference_lo": row["lo95"], "difference_hi": row["hi95"]} for row in rows]
    bars = drawing.error_bars(ends, "difference")
    axis.errorbar(x, y, bars, capsize=2, elinewidth=0.9, **style)


def _label(row: Row, shown_keys: Sequence[str]) -> str:
    fixed = row["update_batch"] != row["batch"]
    parts = [f"update {row['update_batch']}"] if fixed else []
    parts += [f"{key.removeprefix('norm.')}={row[key]}" for key in shown_keys]
    return ", ".join([norm_label(row), *parts])
