"""The figure of the accuracy lost to a batch size: in training, in evaluation, in sum."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.cells import Series
from gnexp.analysis.decomposition import PARTS
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style
from gnexp.report.figures.style import COLUMN_IN, PAGE_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels beside one another on a page
UPRIGHT = 3  # labels of the bars apart that still stand beside one another


def decomposition(
    rows: Sequence[Row], lines: Sequence[Series], reference_batch: int
) -> "Figure | None":
    """Bars of the training and evaluation part per batch size, a panel per series, one scale.

    Bars stand side by side, since parts of opposite sign have no honest stack. What stands apart
    (see decomposition_rows) or holds diverged seeds would hide the rest: a last panel, own scale.
    """
    split = [r for r in rows if r["n_shared"] and r["batch"] != reference_batch]
    if not split:
        return None
    owners = {line.label: line for line in lines}
    apart = [r for r in split if r["apart"] or r["n_at_chance"]]
    usual = {
        label: [r for r in split if r["series"] == label and r not in apart] for label in owners
    }
    shown = [label for label in owners if usual[label]]
    count = len(shown) + bool(apart)
    columns = min(count, COLUMNS)
    size = (COLUMN_IN if columns == 1 else PAGE_IN, 0.2 + 1.9 * -(-count // columns))
    figure, axes = style.axes_grid(-(-count // columns), columns, *size)
    limits = _limits([r for label in shown for r in usual[label]])
    for axis, label in zip(axes, shown):
        _bars(axis, usual[label], [str(r["batch"]) for r in usual[label]], owners, lines)
        axis.set_ylim(limits)
        axis.set_title(label)
        axis.set_xlabel("Batch size")
    if apart:
        _apart(axes[len(shown)], apart, owners, lines)
    for index, axis in enumerate(axes):
        axis.set_visible(index < count)
        if index % columns == 0 or index == len(shown):
            axis.set_ylabel(f"Points lost\nagainst batch {reference_batch}")
    _legend(figure)
    return figure


def _apart(
    axis: "Axes", rows: Sequence[Row], owners: dict[str, Series], lines: Sequence[Series]
) -> None:
    ticks = []
    room = 1.7 / len(rows) if len(rows) <= UPRIGHT else 1.5
    for row in rows:
        diverged = f"\n{row['n_at_chance']} diverged" if row["n_at_chance"] else ""
        ticks.append(f"{style.wrapped(row['series'], room)}\nbatch {row['batch']}{diverged}")
    _bars(axis, rows, ticks, owners, lines)
    if len(rows) > UPRIGHT:
        axis.tick_params(axis="x", rotation=90)
    axis.set_ylim(_limits(rows))
    axis.set_title("apart, own scale")
    axis.set_facecolor("#F3F3F3")


def _bars(
    axis: "Axes",
    rows: Sequence[Row],
    ticks: Sequence[str],
    owners: dict[str, Series],
    lines: Sequence[Series],
) -> None:
    bars = {"ecolor": "black", "elinewidth": 0.7, "capsize": 1.5}
    for x, row in enumerate(rows):
        colour = style.line_style(owners[row["series"]], lines)["color"]
        for part, left, look in (
            ("training", -0.21, {"facecolor": colour}),
            ("evaluation", 0.21, {"facecolor": "white", "hatch": "/////"}),
        ):
            column = f"{part}_damage"
            place = {"width": 0.32, "edgecolor": colour, "linewidth": 0.8}
            axis.bar(x + left, 100 * row[column], **place, **look)
            error = style.error_bars([row], column)
            axis.errorbar(x + left, 100 * row[column], error, fmt="none", **bars)
        look = {"marker": "D", "markersize": 3.2, "color": "black", "markerfacecolor": "white"}
        error = style.error_bars([row], "total_damage")
        axis.errorbar(x, 100 * row["total_damage"], error, linestyle="none", **look, **bars)
    axis.set_xticks(range(len(rows)), ticks)
    axis.set_xlim(-0.6, len(rows) - 0.4)
    axis.axhline(0, color="black", linewidth=0.7)
    axis.grid(True, axis="y")


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    total = Line2D([], [], color="black", marker="D", markersize=3.2, label="total")
    total.set(markerfacecolor="white", linestyle="none")
    handles = [
        Patch(facecolor="#777777", edgecolor="#777777", label="in training"),
        Patch(facecolor="white", edgecolor="#777777", hatch="/////", label="in evaluation"),
        total,
    ]
    figure.set_figheight(figure.get_figheight() + style.LEGEND_LINE_IN)
    figure.legend(handles=handles, loc="outside lower center", ncols=3)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in points that hold zero, every bar, and the intervals without diverged seeds.

    An interval of a few seeds of which one diverged is so long that it would hide every bar.
    """
    ends = [row[f"{part}_damage"] for row in rows for part in PARTS]
    ends += [
        row[f"{part}_damage{end}"]
        for row in rows
        if not row["n_at_chance"]
        for part in PARTS
        for end in ("_lo", "_hi")
    ]
    finite = [100 * value for value in ends if math.isfinite(value)]
    low, high = min(0.0, *finite), max(0.0, *finite)
    margin = 0.06 * (high - low) or 1.0
    return (low - margin if low < 0 else 0.0), high + margin
