"""Figures of learning rates: what each was worth, and how wide the good ones lie."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import line_names, norm_rank
from gnexp.analysis.lr_search import octaves
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Maker, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = 4  # beside one another
BAR_IN = 0.135
DIVERGED = {"marker": "x", "color": "black", "markersize": 3.5, "linestyle": "none"}


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of this file."""
    return {
        "accuracy_vs_lr": lambda: accuracy_vs_lr(analysis.tuning),
        "good_region": lambda: good_region(analysis.chosen_rates),
    }


def accuracy_vs_lr(rows: Sequence[Row]) -> "Figure | None":
    """Validation accuracy against learning rate, a panel per batch size, a line per norm.

    rows: of the table `tuning`: a cell's key, then lr, n, n_diverged, mean, lo, hi (0..1), chosen,
    at_edge.
    """
    if not rows:
        return None
    rows, styles = _lines_of(rows)
    rows = [{**row, "mean_lo": row["lo"], "mean_hi": row["hi"]} for row in rows]
    batches = sorted({row["batch"] for row in rows})
    figure, axes = panels.panel_grid(len(batches), PANELS, 2.1, sharey=True)
    small = {"markersize": 2.6, "linewidth": 1.0, "elinewidth": 0.7, "capsize": 1.8}
    for axis, batch in zip(axes, batches):
        here = [row for row in rows if row["batch"] == batch]
        for name, drawn in panels.interval_lines(axis, here, "lr", "mean", styles, **small).items():
            _mark(axis, *drawn, styles[name])
        _rate_axis(axis, [row["lr"] for row in rows])
        axis.set_title(f"batch {batch}")
    panels.edge_labels(axes, "Learning rate", "Validation accuracy (%)")
    axes[0].set_ylim(_limits(rows))
    panels.legend_below(figure, _marker_keys(rows))
    return figure


def _mark(axis: "Axes", places: Sequence[float], rows: Sequence[Row], style: Style) -> None:
    """Mark the chosen rate of a line, and the rates at which a seed diverged."""
    for x, row in zip(places, rows):
        y = 100 * row["mean"]
        if row["chosen"]:
            axis.plot(x, y, style["marker"], **_chosen(row, style), markersize=5, zorder=5)
        if row["n_diverged"]:
            axis.plot(x, y, **DIVERGED, zorder=6)


def _chosen(row: Row, style: Style) -> Style:
    """Return the look of a chosen rate: open where a better one may lie beyond those tried."""
    filling = "white" if row["at_edge"] else style["color"]
    return {"markerfacecolor": filling, "markeredgecolor": "black", "markeredgewidth": 0.7}


def _marker_keys(rows: Sequence[Row]) -> list[Any]:
    look = {"linestyle": "none", "marker": "o", "markeredgecolor": "black", "markersize": 5}
    edged = {row["at_edge"] for row in rows if row["chosen"]}
    keys = [panels.key_entry("chosen", **look, color="#777777")] * (False in edged)
    keys += [panels.key_entry("chosen, at the edge", **look, color="white")] * (True in edged)
    diverged = any(row["n_diverged"] for row in rows)
    return keys + [panels.key_entry("a seed diverged", **DIVERGED)] * diverged


def _rate_axis(axis: "Axes", rates: Sequence[float]) -> None:
    panels.size_axis(axis, rates)
    axis.tick_params(axis="x", labelsize=panels.SMALL_PT, rotation=90)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in percent that hold every mean, and intervals of the usual length."""
    halves = sorted(100 * (r["hi"] - r["lo"]) / 2 for r in rows if r["hi"] == r["hi"])
    beyond = max(2.0, min(halves[len(halves) // 2], 15.0)) if halves else 2.0
    means = [100 * row["mean"] for row in rows]
    return max(min(means) - beyond, 0.0), min(max(means) + beyond, 101.0)


def good_region(rows: Sequence[Row]) -> "Figure | None":
    """Horizontal bars of the good learning rates, a panel per norm, a bar per batch size.

    rows: of the table `chosen_rates`: a cell's key, then lr, at_edge, good_lo, good_hi,
    good_octaves, good_open.
    """
    if not rows:
        return None
    rows, styles = _lines_of(rows)
    members = {name: [row for row in rows if row["series"] == name] for name in styles}
    heights = [2 + len(of) for of in members.values()]
    figure, axes = panels.panel_grid(
        len(styles), 1, BAR_IN * sum(heights) / len(styles), sharex=True, height_ratios=heights
    )
    figure.set_figheight(figure.get_figheight() + 1)  # of the axis of rates
    for axis, (name, of) in zip(axes, members.items()):
        of.sort(key=lambda row: row["batch"])
        for y, row in enumerate(of):
            _bar(axis, y, row, styles[name])
        axis.set_yticks(range(len(of)), [str(row["batch"]) for row in of], fontsize=panels.SMALL_PT)
        axis.set_ylim(len(of) - 0.4, -0.6)
        axis.set_title(panels.folded(name, 50), loc="left", color=styles[name]["color"], fontsize=7)
    axes[0].set_title("octaves", loc="right", fontsize=panels.SMALL_PT)
    axes[0].set_ylabel("batch", fontsize=panels.SMALL_PT)
    ends = [math.log2(10 * row[k]) for row in rows for k in ("lr", "good_lo", "good_hi")]
    _rate_axis(
        axes[-1], [0.1 * 2**k for k in range(math.floor(min(ends)), math.ceil(max(ends)) + 1)]
    )
    axes[-1].set_xlabel("Learning rate")
    for axis in axes:
        axis.grid(True, axis="x")
        axis.grid(False, axis="y")
    return figure


def _bar(axis: "Axes", y: float, row: Row, style: Style) -> None:
    look = {"color": style["color"], "linewidth": 4.2, "alpha": 0.45, "solid_capstyle": "butt"}
    axis.plot([row["good_lo"], row["good_hi"]], [y, y], **look)
    for end, column, arrow in (("lo", "good_lo", "<"), ("hi", "good_hi", ">")):
        if row["good_open"] in (end, "both"):
            axis.plot(row[column], y, arrow, color=style["color"], markersize=4)
    axis.plot(row["lr"], y, style["marker"], **_chosen(row, style), zorder=4)
    text, beside = octaves(row["good_octaves"], row["good_open"]), axis.get_yaxis_transform()
    axis.text(1.02, y, text, transform=beside, va="center", fontsize=panels.SMALL_PT)


def _lines_of(rows: Sequence[Row]) -> tuple[list[Row], Mapping[str, Style]]:
    """Return the rows with the name of their line, and the lines' styles in the order of norms.

    A line's name: its norm, and what tells it from others of its batch and rate.
    """
    columns = list(rows[0])[: list(rows[0]).index("lr")]
    names = line_names([{k: row.get(k) for k in columns} for row in rows], ("batch",))
    named = [{**row, "series": name} for row, name in zip(rows, names)]
    ordered = sorted(named, key=lambda row: norm_rank(row["norm"]))
    return named, style.norm_styles({row["series"]: row["norm"] for row in ordered})
