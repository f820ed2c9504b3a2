"""Figures on the causes of lost accuracy; each is None where nothing was measured."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis import batch_composition
from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.corruption_robustness import NOT_MEASURED, STANDARD
from gnexp.analysis.statistics import Interval
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style as drawing
from gnexp.report.figures.decomposition import decomposition
from gnexp.report.figures.line_labels import name_lines
from gnexp.report.figures.style import COLUMN_IN, PAGE_IN, Maker

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CAPTIONS = {
    "decomposition": "Accuracy lost against the reference batch: training damage (filled), "
    "evaluation damage (hatched) and their sum (diamond), paired means over seeds with 95 % "
    "intervals (one seed: none); below zero the batch size helps. Apart, on its own scale: batch 1 "
    "of norms that pool over the batch, which trains on single images, as instance norm, and what "
    "contains diverged seeds, counted at chance, whose intervals may leave the panel.",
    "shift": "Rise of the error on corrupted images over the clean error of the same networks, "
    "mean over the standard corruptions measured, against batch size, with 95 % intervals over "
    "seeds (one seed: none). A network whose clean accuracy is near chance has little to lose.",
    "shift_share": "The same rise as a share of the clean accuracy above chance (1 / classes), all "
    "that a network has to lose: sums over seeds with Fieller's 95 % interval (one seed: none). "
    "Cells whose clean accuracy is not decidedly above chance are left out.",
    "shift_by_corruption": "The rise in points under each corruption, mean over its severities, "
    "at the smallest and at the reference batch; small: half of the 95 % interval over seeds "
    "(absent: one seed). Below the line: corruptions that are not standard.",
    "classes": "Gap between best and worst class, each averaged over seeds first, against batch "
    "size. Dotted, of the same colour: the 95 % quantile of the gap by chance alone, if all "
    "classes were equally hard. A gap is an extreme and has no interval.",
    "batches": "Accuracy of the same test images evaluated in batches of other sizes and "
    "compositions, with running and with the batch's own statistics; 95 % intervals over seeds "
    "(one seed: over test images). Lines that coincide are moved sideways a little.",
}
COMPOSITION_COLUMNS = 5  # panels beside one another
HEAT_COLUMNS = 5  # norms beyond which the heat maps stand below one another


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of CAPTIONS."""
    lines, reference, summary = analysis.series, analysis.reference_batch, analysis.shift_summary
    return {
        "decomposition": lambda: decomposition(analysis.decomposition, lines, reference),
        "shift": lambda: shift(summary, lines),
        "shift_share": lambda: shift_share(summary, lines),
        "shift_by_corruption": lambda: shift_by_corruption(
            lines, analysis.corruption_rises, reference
        ),
        "classes": lambda: class_gaps(analysis.classes, lines),
        "batches": lambda: in_other_batches(analysis.batches, lines, reference),
    }


def shift(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Rise of the error under the standard corruptions against batch size, a line per series."""
    figure = _against_batch(rows, lines, "rise", "Rise of the error under\ncorruption (points)")
    if figure is not None:
        name_lines(figure, figure.axes[0])
    return figure


def shift_share(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Share of the accuracy above chance that the standard corruptions take, against batch size."""
    bounded = [row for row in rows if row["n"] == 1 or _is_number(row["share_lost_lo"])]
    title = "Accuracy above chance lost\nunder corruption (%)"
    figure = _against_batch(bounded, lines, "share_lost", title)
    if figure is not None:
        low, high = figure.axes[0].get_ylim()
        figure.axes[0].set_ylim(max(low, -20), min(high, 120))
        name_lines(figure, figure.axes[0])
    return figure


def class_gaps(rows: Sequence[Row], lines: Sequence[Series]) -> "Figure | None":
    """Gap between best and worst class against batch size, with the level reached by chance."""
    figure = _against_batch(rows, lines, "gap", "Best minus worst class (points)")
    if figure is None:
        return None
    axis, highest = figure.axes[0], 0.0
    for line in lines:
        found = [(c.key["batch"], r.get("chance_gap_95")) for c in line.cells for r in _of(c, rows)]
        levels = [(batch, level) for batch, level in found if _is_number(level)]
        if levels:
            style = {"color": drawing.line_style(line, lines)["color"], "linestyle": ":"}
            batch, level = zip(*levels)
            axis.plot(batch, [100 * v for v in level], linewidth=0.9, marker="_", **style)
            highest = max(highest, 100 * max(level))
    axis.set_ylim(bottom=0)
    place = {"xy": (0.99, highest), "xycoords": axis.get_yaxis_transform()}
    place |= {"xytext": (0, 2), "textcoords": "offset points", "ha": "right"}
    axis.annotate("dotted: 95 % by chance", **place, fontsize=6.5, color="#555555")
    name_lines(figure, axis)
    return figure


def shift_by_corruption(
    lines: Sequence[Series], known: Mapping[int, Mapping[str, Interval]], reference_batch: int
) -> "Figure | None":
    """Heat maps of the rise, corruption x series, at the smallest and the reference batch.

    known: {id(cell): {corruption: rise}}.
    """
    measured = {id(line): [c for c in line.cells if id(c) in known] for line in lines}
    sizes = sorted({c.key["batch"] for found in measured.values() for c in found})
    panels = []
    for batch in dict.fromkeys([*sizes[:1], *(b for b in sizes if b == reference_batch)]):
        chosen = [
            (line.label, next(c for c in measured[id(line)] if c.key["batch"] == batch))
            for line in lines
            if any(c.key["batch"] == batch for c in measured[id(line)])
        ]
        panels.append((batch, [label for label, _ in chosen], [c for _, c in chosen]))
    found = {name for _, _, cells in panels for cell in cells for name in known[id(cell)]}
    names = [n for n in STANDARD if n in found] + sorted(found - set(STANDARD))
    if not names:
        return None
    rises = [
        [[known[id(cell)].get(name, NOT_MEASURED) for cell in cells] for name in names]
        for _, _, cells in panels
    ]
    means = [i.mean for panel in rises for row in panel for i in row if i.n]
    if not means:
        return None
    wide = max(len(labels) for _, labels, _ in panels) <= HEAT_COLUMNS
    shape = (1, len(panels)) if wide else (len(panels), 1)
    height = (0.8 + 0.27 * len(names)) * shape[0]
    figure, axes = drawing.axes_grid(*shape, PAGE_IN, height, sharey=wide)
    for axis, (batch, labels, _), values in zip(axes, panels, rises):
        _heat(axis, values, labels, [n.replace("_", " ") for n in names], max(means))
        is_reference = " (reference)" if batch == reference_batch else ""
        axis.set_title(f"batch {batch}{is_reference}")
        standard = sum(n in STANDARD for n in names)
        if 0 < standard < len(names):
            axis.axhline(standard - 0.5, color="black", linewidth=1.2)
    return figure


def in_other_batches(
    rows: Sequence[Row], lines: Sequence[Series], reference_batch: int
) -> "Figure | None":
    """Accuracy against evaluation batch, a column per series, a panel per training batch.

    Of each series the smallest measured batch and the reference.
    """
    rows = [r for r in rows if r["composition"] in batch_composition.SAME_IMAGES]
    measured = [(line, [c for c in line.cells if _of(c, rows)]) for line in lines]
    smallest = [(line, found[0]) for line, found in measured if found]
    others = [(line, c) for line, found in measured for c in found[1:]]
    panels = smallest + [(line, c) for line, c in others if c.key["batch"] == reference_batch]
    if not panels:
        return None
    columns = min(len(smallest), COMPOSITION_COLUMNS)
    height = 0.2 + 1.75 * -(-len(panels) // columns)
    width = COLUMN_IN if columns == 1 else PAGE_IN
    figure, axes = drawing.axes_grid(
        -(-len(panels) // columns), columns, width, height, sharey=True
    )
    panel = 0.85 * width / columns
    for axis, (line, cell) in zip(axes, panels):
        _compositions(axis, _of(cell, rows))
        axis.set_title(f"{drawing.wrapped(line.label, panel)}\ntrained at {cell.key['batch']}")
    for index, axis in enumerate(axes):
        axis.set_visible(index < len(panels))
        if index % columns == 0:
            axis.set_ylabel("Test accuracy (%)")
    low, high = axes[0].get_ylim()  # shared; of two seeds, t may leave [0, 100] by far
    axes[0].set_ylim(max(low, -2), min(high, 102))
    drawing.legend_below(figure, axes)
    return figure


def _compositions(axis: "Axes", rows: Sequence[Row]) -> None:
    looks = [
        (kind, of) for kind in batch_composition.STATISTICS for of in batch_composition.SAME_IMAGES
    ]
    for turn, (kind, composition) in enumerate(looks):
        points = [r for r in rows if (r["statistics"], r["composition"]) == (kind, composition)]
        style = {**_composition_style(kind, composition), "markersize": 3.2, "linewidth": 1.0}
        _line(axis, points, "at_batch", "accuracy", (turn, len(looks)), style)
    sizes = sorted({r["at_batch"] for r in rows})
    drawing.size_axis(axis, sizes, "Evaluated at batch")
    axis.set_xticks(sizes[:: 1 if len(sizes) < 6 else 2])


def _against_batch(
    rows: Sequence[Row], lines: Sequence[Series], column: str, title: str
) -> "Figure | None":
    """Draw a column of fractions in percent against batch size, a line per series."""
    found = [(line, [r for c in line.cells for r in _of(c, rows)]) for line in lines]
    found = [(line, [r for r in of if _is_number(r.get(column))]) for line, of in found]
    found = [(line, of) for line, of in found if of]
    if not found:
        return None
    figure, axes = drawing.axes_grid(1, 1, COLUMN_IN, 2.4)
    for index, (line, points) in enumerate(found):
        style = drawing.line_style(line, lines)
        _line(axes[0], points, "batch", column, (index, len(found)), style)
    drawing.size_axis(axes[0], [r["batch"] for _, of in found for r in of])
    axes[0].set_ylabel(title)
    return figure


def _line(
    axis: "Axes",
    points: Sequence[Row],
    across: str,
    column: str,
    turn: tuple[int, int],
    style: dict[str, Any],
) -> None:
    if points:
        x = drawing.dodge([row[across] for row in points], *turn)
        y = [100 * row[column] for row in points]
        axis.errorbar(x, y, drawing.error_bars(points, column), elinewidth=0.9, **style)


def _heat(
    axis: "Axes",
    values: Sequence[Sequence[Interval]],
    columns: Sequence[str],
    rows: Sequence[str],
    top: float,
) -> None:
    """Draw intervals (of fractions) as a heat map from 0 to `top`, with the numbers in points."""
    means = [[100 * interval.mean for interval in row] for row in values]
    axis.imshow(means, cmap="Blues", vmin=0, vmax=max(100 * top, 1.0), aspect="auto")
    for y, row in enumerate(values):
        for x, interval in enumerate(row):
            if not interval.n:
                continue
            dark = interval.mean > 0.6 * top
            half = 50 * (interval.hi - interval.lo)
            text = f"{round(100 * interval.mean, 1) + 0.0:.1f}" + (
                f"\n\u00b1{half:.1f}" if half == half else ""
            )
            place = {"ha": "center", "va": "center", "linespacing": 0.9}
            axis.text(x, y, text, fontsize=6.5, color="white" if dark else "black", **place)
    room = axis.figure.get_figwidth() / (len(columns) * len(axis.figure.axes) + 2)
    names = [drawing.wrapped(c, room, 6.5) for c in columns]
    lines = [part for name in names for part in name.split("\n")]
    upright = all(drawing.text_width(part, 6.5) <= room for part in lines)
    names = names if upright else [drawing.wrapped(c, 1.2, 6.5) for c in columns]
    turned = {"rotation": 0 if upright else 90}
    axis.set_xticks(range(len(columns)), names, fontsize=6.5, **turned)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def _composition_style(kind: str, composition: str) -> dict[str, Any]:
    """Statistics by colour, line and filling, compositions by marker."""
    own = kind != "running"
    colour = drawing.sequence_style(1 if own else 0)["color"]
    return {
        "color": colour,
        "marker": "so^"[batch_composition.SAME_IMAGES.index(composition)],
        "linestyle": "--" if own else "-",
        "markerfacecolor": "white" if own else colour,
        "label": f"{'the batch' if own else kind}, {composition.replace('_', ' ')}",
    }


def _of(cell: Cell, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of one cell."""
    return [row for row in rows if all(row.get(k) == v for k, v in cell.key.items())]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
