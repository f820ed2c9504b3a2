"""The figure of the accuracy lost to a batch size: in training, in evaluation, in sum."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.cells import Series
from gnexp.analysis.decomposition import PARTS
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels beside one another on a page
UPRIGHT = 3  # labels of the bars apart that still stand beside one another
DAMAGES = [f"{part}_damage" for part in PARTS]
TOTAL = {"marker": "D", "markersize": 3.2, "markerfacecolor": "white", "linestyle": "none"}
TOTAL |= {"color": "black"}
HATCHED = {"facecolor": "white", "hatch": "/////"}


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
    apart = [r for r in split if r["apart"] or r["n_at_chance"]]
    usual = [r for r in split if r not in apart]
    styles = style.series_styles(lines)
    shown = [label for label in styles if any(r["series"] == label for r in usual)]
    figure, axes = panels.panel_grid(len(shown) + bool(apart), COLUMNS, 1.9)
    panels.edge_labels(axes, "Batch size", f"Points lost\nagainst batch {reference_batch}")
    for axis, label in zip(axes, shown):
        here = [r for r in usual if r["series"] == label]
        _bars(axis, here, [str(r["batch"]) for r in here], styles)
        axis.set_ylim(panels.steady_limits(usual, DAMAGES))
        axis.set_title(panels.folded(label, 36))
    if apart:
        _apart(axes[-1], apart, styles)
    panels.legend_below(figure, _keys())
    return figure


def _apart(axis: "Axes", rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    letters = 20 // len(rows) if len(rows) <= UPRIGHT else 24
    diverged = [f"\n{r['n_at_chance']} diverged" * bool(r["n_at_chance"]) for r in rows]
    ticks = [
        f"{panels.folded(r['series'], letters)}\nbatch {r['batch']}{lost}"
        for r, lost in zip(rows, diverged)
    ]
    _bars(axis, rows, ticks, styles)
    axis.tick_params(axis="x", rotation=0 if len(rows) <= UPRIGHT else 90)
    axis.set_ylim(panels.steady_limits(rows, DAMAGES))
    axis.set(title="apart, own scale", facecolor="#F3F3F3", xlabel="")


def _bars(
    axis: "Axes", rows: Sequence[Row], ticks: Sequence[str], styles: Mapping[str, Style]
) -> None:
    whiskers = {"ecolor": "black", "elinewidth": 0.7, "capsize": 1.5}
    for x, row in enumerate(rows):
        colour = styles[row["series"]]["color"]
        for column, left, look in (
            ("training_damage", -0.21, {"facecolor": colour}),
            ("evaluation_damage", 0.21, HATCHED),
        ):
            bar = {"width": 0.32, "edgecolor": colour, "linewidth": 0.8, **look}
            axis.bar(x + left, 100 * row[column], **bar)
            bars = panels.error_bars([row], column)
            axis.errorbar(x + left, 100 * row[column], bars, fmt="none", **whiskers)
        total = 100 * row["total_damage"]
        axis.errorbar(x, total, panels.error_bars([row], "total_damage"), **TOTAL, **whiskers)
    axis.set_xticks(range(len(rows)), ticks)
    axis.set_xlim(-0.6, len(rows) - 0.4)
    axis.axhline(0, color="black", linewidth=0.7)
    axis.grid(True, axis="y")


def _keys() -> list[object]:
    from matplotlib.patches import Patch

    grey = {"edgecolor": "#777777"}
    return [
        Patch(label="in training", facecolor="#777777", **grey),
        Patch(label="in evaluation", **HATCHED, **grey),
        panels.key_entry("total", **TOTAL),
    ]
