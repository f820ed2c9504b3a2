"""The figure of two batch sizes apart: accuracies under both rules, and the parts of the fall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis.batch_vs_update_batch import PRECISE, RUNNING
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style as drawing
from gnexp.report.figures.style import PAGE_IN, Maker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "two_batches": "Images per forward pass against images per update. Left: test accuracy with "
    "the batch inside a fixed update batch (solid) and with update batch = batch (dashed, open). "
    "Middle: points lost against the fixed update batch when the statistics alone see fewer "
    "images; dotted, open: with statistics recomputed over training images. Right: what is lost "
    "beyond when the update sees fewer images too. Means over seeds with 95 % intervals (one "
    "seed: none in the middle and right panels); paired there, a diverged seed at chance. "
    "Intervals with a diverged seed may leave the panel.",
}


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of CAPTIONS."""
    return {"two_batches": lambda: two_batches(analysis.two_batches)}


def two_batches(rows: Sequence[Row]) -> "Figure | None":
    """Three panels against batch size: accuracies, the norm's part, the optimizer's part.

    rows: of the table of this name.
    """
    if not rows:
        return None
    figure, axes = drawing.axes_grid(1, 3, PAGE_IN, 2.3)
    axes[2].sharey(axes[1])
    names = list(dict.fromkeys(row["series"] for row in rows))
    styles = _styles(rows, names)
    for index, name in enumerate(names):
        running = [r for r in rows if (r["series"], r["statistics"]) == (name, RUNNING)]
        others = [r for r in rows if (r["series"], r["statistics"]) == (name, PRECISE)]
        turn, style = (index, len(names)), styles[name]
        around = [*running, {**_reference(running[0])}]
        open_style = {**style, "markerfacecolor": "white"}
        _line(axes[0], around, "fixed", turn, {**style, "label": name})
        _line(axes[0], around, "equal", turn, {**open_style, "linestyle": "--"})
        _line(axes[1], others, "norm_part", turn, {**open_style, "linestyle": ":"})
        _line(axes[1], running, "norm_part", turn, style)
        _line(axes[2], others, "optimizer_part", turn, {**open_style, "linestyle": ":"})
        _line(axes[2], running, "optimizer_part", turn, style)
    _furnish(axes, rows)
    drawing.legend_below(figure, axes)
    return figure


def _furnish(axes: "Sequence[Axes]", rows: Sequence[Row]) -> None:
    sizes = [row["batch"] for row in rows]
    updates = sorted({row["update_batch"] for row in rows})
    fixed = f"update batch {', '.join(map(str, updates))}"
    keys = {"color": "#555555", "linewidth": 1.0}
    axes[0].plot([], [], "-", **keys, label=fixed)
    axes[0].plot([], [], "--", **keys, label="update batch = batch")
    if any(row["statistics"] == PRECISE for row in rows):
        axes[1].plot([], [], ":", **keys, label="population statistics")
    titles = ("Test accuracy (%)", "Lost by the norm (points)", "Lost by the optimizer (points)")
    for axis, title in zip(axes, titles):
        drawing.size_axis(axis, [*sizes, *updates])
        axis.set_ylabel(title)
    for axis in axes[1:]:
        axis.axhline(0, color="black", linewidth=0.7)
        drawing.size_axis(axis, sizes)
    drawing.percent_axis(axes[0])
    axes[1].set_ylim(_limits(rows))


def _styles(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    norm = {row["series"]: row["norm"] for row in rows}
    styles = {}
    for name in names:
        turn = [other for other in names if norm[other] == norm[name]].index(name)
        # Line and filling tell the rules apart here, so variants of a norm differ in lightness.
        styles[name] = drawing.variant_style(norm[name], list(norm.values()), 2 * turn)
        styles[name]["linestyle"] = "-"
    return styles


def _reference(row: Row) -> Row:
    """Return the point that both rules share: batch = update batch."""
    ends = ("", "_lo", "_hi")
    levels = {f"{k}{e}": row[f"reference{e}"] for k in ("fixed", "equal") for e in ends}
    return {"batch": row["update_batch"], **levels}


def _line(
    axis: "Axes", rows: Sequence[Row], column: str, turn: tuple[int, int], style: dict[str, Any]
) -> None:
    if rows:
        x = drawing.dodge([row["batch"] for row in rows], *turn)
        y = [100 * row[column] for row in rows]
        axis.errorbar(x, y, drawing.error_bars(rows, column), elinewidth=0.9, **style)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in points that hold zero, every mean, and the intervals without divergence."""
    parts = ("norm_part", "optimizer_part")
    ends = [row[part] for row in rows for part in parts]
    steady = [row for row in rows if not row["n_at_chance"]]
    ends += [row[f"{part}{end}"] for row in steady for part in parts for end in ("_lo", "_hi")]
    finite = [100 * value for value in ends if value == value]
    low, high = min(0.0, *finite), max(0.0, *finite)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin
