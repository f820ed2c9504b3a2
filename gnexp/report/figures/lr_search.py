"""Figures of learning rates: what each was worth, and how wide the good ones lie."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import BASE, norm_rank, series_label
from gnexp.analysis.lr_search import octaves
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style as drawing
from gnexp.report.figures.style import COLUMN_IN, PAGE_IN, Maker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USUAL_RATE = 0.1  # the protocol's, whose tick is written wherever there is room for any
CAPTIONS = {
    "accuracy_vs_lr": "Accuracy on images held out of training, after a trial's budget, against "
    "the learning rate (times update batch / 128), a panel per batch size: mean over the tuning "
    "seeds, diverged ones at chance, with 95 % t intervals, which may leave the panel where seeds "
    "are few. Large: the chosen rate; large and open: chosen, but it or the best is the smallest "
    "or largest tried, so a better one may lie beyond. Crosses: rates at which a seed diverged. "
    "The interval is not adjusted for choosing the best.",
    "good_region": "Learning rates within 2 points of the best mean accuracy on images held out, "
    "by norm and batch size, and how many octaves they span; of means over the tuning seeds, "
    "without an interval. Marker: the chosen rate (open: it or the best is the smallest or largest "
    "tried). An arrow, and >= beside the octaves: the region reaches the last rate tried and may "
    "go on, so that its octaves are a lower bound.",
}
PANELS = 4  # beside one another
BAR_IN = 0.135
TICK_PT = 6.5


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of CAPTIONS."""
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
    names = _labels(rows)
    batches = sorted({row["batch"] for row in rows})
    columns = min(len(batches), PANELS)
    high = -(-len(batches) // columns)
    width = COLUMN_IN if columns == 1 else PAGE_IN
    shape = (width, 0.3 + 1.75 * high)
    figure, axes = drawing.axes_grid(high, columns, *shape, sharex=True, sharey=True)
    styles = _styles(rows, names)
    for axis, batch in zip(axes, batches):
        for index, (name, style) in enumerate(styles.items()):
            points = [r for r, n in zip(rows, names) if n == name and r["batch"] == batch]
            _rates(axis, sorted(points, key=lambda r: r["lr"]), (index, len(styles)), style)
        axis.set_title(f"batch {batch}")
    for index, axis in enumerate(axes):
        axis.set_visible(index < len(batches))
        if index < len(batches):
            lowest = index + columns >= len(batches)
            _rate_axis(axis, [row["lr"] for row in rows], 0.72 * width / columns, lowest)
            if index % columns == 0:
                axis.set_ylabel("Validation accuracy (%)")
    axes[0].set_ylim(_limits(rows))
    _marker_key(axes[0], rows)
    drawing.legend_below(figure, axes)
    return figure


def good_region(rows: Sequence[Row]) -> "Figure | None":
    """Horizontal bars of the good learning rates, by norm and batch size, with the chosen one.

    rows: of the table `chosen_rates`: a cell's key, then lr, at_edge, good_lo, good_hi,
    good_octaves, good_open.
    """
    if not rows:
        return None
    names = _labels(rows)
    styles = _styles(rows, names)
    height = 0.62 + BAR_IN * (len(rows) + len(styles) - 1)
    figure, (axis,) = drawing.axes_grid(1, 1, COLUMN_IN, height)
    y, ticks = 0.0, []
    for name, style in styles.items():
        members = sorted((r for r, n in zip(rows, names) if n == name), key=lambda r: r["batch"])
        for row in members:
            _bar(axis, y, row, style)
            ticks.append((y, str(row["batch"])))
            y += 1
        middle = y - len(members) / 2 - 0.5
        label = drawing.wrapped(name, 0.75, 7)
        place = {"xy": (0, middle), "xycoords": axis.get_yaxis_transform(), "va": "center"}
        place |= {"xytext": (-18, 0), "textcoords": "offset points", "ha": "right"}
        axis.annotate(label, **place, color=style["color"], fontsize=7)
        y += 1
    axis.set_yticks([at for at, _ in ticks], [text for _, text in ticks], fontsize=TICK_PT)
    axis.set_ylim(y - 1.2, -0.8)
    rates = [r for row in rows for r in (row["lr"], row["good_lo"], row["good_hi"])]
    _rate_axis(axis, rates, 0.7 * COLUMN_IN, True, _octaves(rates))
    axis.grid(True, axis="x")
    axis.grid(False, axis="y")
    # A title beyond the axes would not be given room.
    head = {"xy": (1, 1), "xycoords": "axes fraction", "xytext": (3, 6), "va": "baseline"}
    axis.annotate("octaves", **head, textcoords="offset points", fontsize=TICK_PT)
    axis.set_title("batch", loc="left", fontsize=TICK_PT, x=-0.02, ha="right")
    return figure


def _bar(axis: "Axes", y: float, row: Row, style: dict[str, Any]) -> None:
    look = {"color": style["color"], "linewidth": 4.2, "alpha": 0.45, "solid_capstyle": "butt"}
    axis.plot([row["good_lo"], row["good_hi"]], [y, y], **look)
    for end, column, arrow in (("lo", "good_lo", "<"), ("hi", "good_hi", ">")):
        if row["good_open"] in (end, "both"):
            axis.plot([row[column]], [y], arrow, color=style["color"], markersize=4)
    filling = "white" if row["at_edge"] else style["color"]
    look = {"color": style["color"], "markerfacecolor": filling, "markeredgecolor": "black"}
    axis.plot([row["lr"]], [y], style["marker"], **look, markeredgewidth=0.6, zorder=4)
    place = {"xy": (1.0, y), "xycoords": axis.get_yaxis_transform(), "va": "center", "ha": "left"}
    place |= {"xytext": (3, 0), "textcoords": "offset points"}  # beside the bars, never on one
    text = octaves(row["good_octaves"], row["good_open"])
    axis.annotate(text, **place, fontsize=TICK_PT, annotation_clip=False)


def _rates(
    axis: "Axes", points: Sequence[Row], turn: tuple[int, int], style: dict[str, Any]
) -> None:
    if not points:
        return
    x = drawing.dodge([row["lr"] for row in points], *turn)
    y = [100 * row["mean"] for row in points]
    small = {**style, "markersize": 2.6, "linewidth": 1.0, "elinewidth": 0.7, "capsize": 1.8}
    ends = [{**row, "mean_lo": row["lo"], "mean_hi": row["hi"]} for row in points]
    axis.errorbar(x, y, drawing.error_bars(ends, "mean"), **small)
    for at, level, row in zip(x, y, points):
        if row["chosen"]:
            filling = "white" if row["at_edge"] else style["markerfacecolor"]
            look = {"markerfacecolor": filling, "markeredgecolor": "black", "zorder": 5}
            axis.plot(at, level, style["marker"], markersize=5, markeredgewidth=0.7, **look)
        if row["n_diverged"]:
            axis.plot(at, level, "x", color="black", markersize=3.5, zorder=6)


def _marker_key(axis: "Axes", rows: Sequence[Row]) -> None:
    look = {"linestyle": "none", "marker": "o", "markeredgecolor": "black", "color": "#777777"}
    if any(row["chosen"] and not row["at_edge"] for row in rows):
        axis.plot([], [], **look, markersize=5, label="chosen")
    if any(row["at_edge"] for row in rows):
        empty = {**look, "markerfacecolor": "white"}
        axis.plot([], [], **empty, markersize=5, label="chosen, at the edge")
    if any(row["n_diverged"] for row in rows):
        axis.plot([], [], "x", color="black", markersize=3.5, label="a seed diverged")


def _rate_axis(
    axis: "Axes", rates: Sequence[float], room: float, named: bool, ticks: Sequence[float] = ()
) -> None:
    """Make x a log2 axis with a tick at every rate, and as many of them written as have room."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    drawing.size_axis(axis, sorted(set(rates)), "Learning rate" if named else "")
    ticks = sorted(set(ticks or rates))
    span = math.log2(1.35**2 * max(rates) / min(rates))
    # A label may be as wide as the distance to the next one.
    widest = max(drawing.text_width(f"{tick:g}", TICK_PT) for tick in ticks) + 0.06
    nearest = min((math.log2(b / a) for a, b in itertools.pairwise(ticks)), default=span)
    step = max(1, math.ceil(widest / (room * nearest / span)))
    usual = min(range(len(ticks)), key=lambda i: abs(math.log(ticks[i] / USUAL_RATE)))
    axis.xaxis.set_major_locator(FixedLocator(ticks[usual % step :: step]))
    axis.xaxis.set_minor_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelsize=TICK_PT, labelbottom=named)


def _octaves(rates: Sequence[float]) -> list[float]:
    """Return the powers of two, times 0.1, that the rates span."""
    low, high = (math.log2(10 * rate) for rate in (min(rates), max(rates)))
    return [0.1 * 2**k for k in range(math.floor(low), math.ceil(high) + 1)]


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in percent that hold every mean, and intervals of the usual length."""
    halves = sorted(100 * (r["hi"] - r["lo"]) / 2 for r in rows if r["hi"] == r["hi"])
    beyond = max(2.0, min(halves[len(halves) // 2], 15.0)) if halves else 2.0
    means = [100 * row["mean"] for row in rows]
    return max(min(means) - beyond, 0.0), min(max(means) + beyond, 101.0)


def _labels(rows: Sequence[Row]) -> list[str]:
    """Return each row's label: its norm, and what tells it from others of its batch and rate."""
    columns = list(rows[0])[: list(rows[0]).index("lr")]
    keys = []
    for row in rows:
        update = row["update_batch"] if row["update_batch"] != row["batch"] else "= batch"
        extras = {k: row.get(k) for k in columns if k not in BASE}
        base = {k: row.get(k) for k in ("norm", "groups", "channels_per_group")}
        keys.append({**base, **extras, "update": update})
    return [series_label(key, keys) for key in keys]


def _styles(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return {label: style} in the usual order of the norms."""
    norm = {name: row["norm"] for row, name in zip(rows, names)}
    ordered = sorted(norm, key=lambda name: norm_rank(norm[name]))
    styles = {}
    for name in ordered:
        turn = [other for other in ordered if norm[other] == norm[name]].index(name)
        look = drawing.variant_style(norm[name], list(norm.values()), turn)
        styles[name] = {**look, "label": name}
    return styles
