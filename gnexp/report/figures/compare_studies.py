"""The figures of a comparison of two studies: accuracies side by side, and their differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.cells import Series, norm_label, norm_rank
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.accuracy import accuracy_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


def difference_vs_batch(
    rows: Sequence[Row], shown_keys: Sequence[str], names: Sequence[str]
) -> "Figure | None":
    """The difference of each matched cell against batch size, a line per norm and `shown_keys`.

    rows: of the table `comparison`. shown_keys: columns beyond the norm that make separate lines.
    """
    points = [
        {**row, "series": _label(row, shown_keys), "difference_lo": row["lo95"]}
        | {"difference_hi": row["hi95"]}
        for row in rows
    ]
    styles = style.norm_styles({point["series"]: point["norm"] for point in points})
    title = f"{names[1]} minus {names[0]}\n(points of test accuracy)"
    figure = panels.against_batch(points, "difference", styles, title)
    if figure is not None:
        figure.axes[0].axhline(0, color="#999999", linewidth=0.8, zorder=0)
    return figure


def _label(row: Row, shown_keys: Sequence[str]) -> str:
    fixed = row["update_batch"] != row["batch"]
    parts = [f"update {row['update_batch']}"] if fixed else []
    parts += [f"{key.removeprefix('norm.')}={row[key]}" for key in shown_keys]
    return ", ".join([norm_label(row), *parts])
