"""Figures on the causes of lost accuracy; each is None where nothing was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.batch_composition import SAME_IMAGES, STATISTICS
from gnexp.analysis.cells import Series
from gnexp.analysis.corruption_robustness import NOT_MEASURED, STANDARD
from gnexp.analysis.decomposition import PARTS
from gnexp.analysis.statistics import Interval
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Maker, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COMPOSITION_COLUMNS = 5  # panels beside one another
HEAT_COLUMNS = 5  # norms beyond which the heat maps stand below one another
UPRIGHT = 10  # letters of a name that still stands beside others
DAMAGE_COLUMNS = 3  # panels beside one another on a page
UPRIGHT_BARS = 3  # labels of the bars apart that still stand beside one another
DAMAGES = [f"{part}_damage" for part in PARTS]
TOTAL = {"marker": "D", "markersize": 3.2, "markerfacecolor": "white", "linestyle": "none"}
TOTAL |= {"color": "black"}
HATCHED = {"facecolor": "white", "hatch": "/////"}


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of this file."""
    lines, reference = analysis.series, analysis.reference_batch
    robustness = panels.of_series(analysis.shift_summary, lines)
    classes = panels.of_series(analysis.classes, lines)
    batches = panels.of_series(analysis.batches, lines)
    return {
        "decomposition": lambda: decomposition(analysis.decomposition, lines, reference),
        "shift": lambda: shift(robustness, lines),
        "shift_share": lambda: shift_share(robustness, lines),
        "shift_by_corruption": lambda: shift_by_corruption(
            lines, analysis.corruption_rises, reference
        ),
        "classes": lambda: class_gaps(classes, lines),
        "batches": lambda: in_other_batches(batches, lines, reference),
    }


def shift(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Rise of the error under the standard corruptions against batch size, a line per series."""
    title = "Rise of the error under\ncorruption (points)"
    return panels.against_batch(rows, "rise", style.series_styles(lines), title)


def shift_share(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Share of the accuracy above chance that the standard corruptions take, against batch size."""
    bounded = [row for row in rows if row["n"] == 1 or math.isfinite(row["share_lost_lo"])]
    title = "Accuracy above chance lost\nunder corruption (%)"
    return panels.against_batch(
        bounded, "share_lost", style.series_styles(lines), title, within=(-20, 120)
    )


def class_gaps(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Gap between best and worst class against batch size, with the level reached by chance."""
    keys = [panels.key_entry("95 % by chance", linestyle=":")]
    styles = style.series_styles(lines)
    figure = panels.against_batch(rows, "gap", styles, "Best minus worst class (points)", keys=keys)
    if figure is not None:
        look = {"linestyle": ":", "linewidth": 0.9, "marker": "_", "label": None}
        panels.interval_lines(figure.axes[0], rows, "batch", "chance_gap_95", styles, **look)
        figure.axes[0].set_ylim(bottom=0)
    return figure


def shift_by_corruption(
    lines: Sequence[Series], known: Mapping[int, Mapping[str, Interval]], reference_batch: int
) -> "Figure | None":
    """Heat maps of the rise, corruption x series, at the smallest and the reference batch.

    known: {id(cell): {corruption: rise}}.
    """
    measured = [(line.label, c) for line in lines for c in line.cells if id(c) in known]
    sizes = sorted({cell.key["batch"] for _, cell in measured})
    sizes = list(dict.fromkeys([*sizes[:1], *(b for b in sizes if b == reference_batch)]))
    maps = [[(label, c) for label, c in measured if c.key["batch"] == size] for size in sizes]
    found = {name for panel in maps for _, cell in panel for name in known[id(cell)]}
    names = [n for n in STANDARD if n in found] + sorted(found - set(STANDARD))
    rises = [
        [[known[id(cell)].get(name, NOT_MEASURED) for _, cell in panel] for name in names]
        for panel in maps
    ]
    means = [i.mean for panel in rises for row in panel for i in row if i.n]
    if not means:
        return None
    wide = max(map(len, maps)) <= HEAT_COLUMNS
    height = 0.8 + 0.27 * len(names)
    figure, axes = panels.panel_grid(len(maps), 2 if wide else 1, height, sharey=wide)
    figure.set_figwidth(style.PAGE_IN)
    upright = wide and all(len(label) <= UPRIGHT for panel in maps for label, _ in panel)
    for axis, size, panel, values in zip(axes, sizes, maps, rises):
        _rises(axis, values, max(means))
        labels = [panels.folded(label, 24) for label, _ in panel]
        axis.set_xticks(
            range(len(panel)), labels, fontsize=panels.SMALL_PT, rotation=0 if upright else 90
        )
        axis.set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
        axis.set_title(f"batch {size}" + " (reference)" * (size == reference_batch))
        standard = sum(n in STANDARD for n in names)
        if 0 < standard < len(names):
            axis.axhline(standard - 0.5, color="black", linewidth=1.2)
    return figure


def _rises(axis: "Axes", values: Sequence[Sequence[Interval]], top: float) -> None:
    shades = [[100 * interval.mean for interval in row] for row in values]
    texts = [[_rise(interval) for interval in row] for row in values]
    scale = {"cmap": "Blues", "vmin": 0, "vmax": max(100 * top, 1.0)}
    panels.heat_map(axis, shades, texts, (60 * top, math.inf), **scale)


def _rise(interval: Interval) -> str:
    """Return the mean in points, and half of its interval under it."""
    if not interval.n:
        return ""
    half = 50 * (interval.hi - interval.lo)
    mean = f"{round(100 * interval.mean, 1) + 0.0:.1f}"
    return mean + (f"\n\u00b1{half:.1f}" if math.isfinite(half) else "")


def in_other_batches(
    rows: Sequence[Row], lines: Sequence[Series], reference_batch: int
) -> "Figure | None":
    """Accuracy against evaluation batch, a column per series, a panel per training batch.

    Of each series the smallest measured batch and the reference.
    """
    rows = [r for r in rows if r["composition"] in SAME_IMAGES]
    batches = {
        line.label: sorted({r["batch"] for r in rows if r["series"] == line.label})
        for line in lines
    }
    shown = [(label, found[0]) for label, found in batches.items() if found]
    columns = min(len(shown), COMPOSITION_COLUMNS)
    shown += [
        (label, reference_batch) for label, found in batches.items() if reference_batch in found[1:]
    ]
    if not shown:
        return None
    figure, axes = panels.panel_grid(len(shown), columns, 1.75, sharey=True)
    for axis, (label, batch) in zip(axes, shown):
        here = [r for r in rows if (r["series"], r["batch"]) == (label, batch)]
        here = [{**r, "series": (r["statistics"], r["composition"])} for r in here]
        look = {"markersize": 3.2, "linewidth": 1.0}
        panels.interval_lines(axis, here, "at_batch", "accuracy", _COMPOSITIONS, **look)
        panels.size_axis(axis, [r["at_batch"] for r in here], most=5)
        axis.set_title(f"{panels.folded(label, 90 // columns)}\ntrained at {batch}")
    panels.edge_labels(axes, "Evaluated at batch", "Test accuracy (%)")
    panels.limit(axes[0], -2, 102)  # shared
    panels.legend_below(figure)
    return figure


def _composition_style(kind: str, composition: str) -> Style:
    """Statistics by colour, line and filling, compositions by marker."""
    own = kind != "running"
    return {
        "color": style.SEQUENCE[own],
        "marker": "so^"[SAME_IMAGES.index(composition)],
        "linestyle": "--" if own else "-",
        "markerfacecolor": "white" if own else style.SEQUENCE[own],
        "label": f"{'the batch' if own else kind}, {composition.replace('_', ' ')}",
    }


_COMPOSITIONS = {
    (kind, composition): _composition_style(kind, composition)
    for kind in STATISTICS
    for composition in SAME_IMAGES
}


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
    figure, axes = panels.panel_grid(len(shown) + bool(apart), DAMAGE_COLUMNS, 1.9)
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
    letters = 20 // len(rows) if len(rows) <= UPRIGHT_BARS else 24
    diverged = [f"\n{r['n_at_chance']} diverged" * bool(r["n_at_chance"]) for r in rows]
    ticks = [
        f"{panels.folded(r['series'], letters)}\nbatch {r['batch']}{lost}"
        for r, lost in zip(rows, diverged)
    ]
    _bars(axis, rows, ticks, styles)
    axis.tick_params(axis="x", rotation=0 if len(rows) <= UPRIGHT_BARS else 90)
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
