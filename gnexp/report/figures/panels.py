"""The parts that figures are made of: grids of panels, lines with intervals, heat maps, legends."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Series
from gnexp.report.figures.style import COLUMN_IN, PAGE_IN, Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Row = Mapping[str, Any]


def panel_grid(
    count: int, columns: int, height: float, **sharing: Any
) -> "tuple[Figure, list[Axes]]":
    """Return a figure and its panels, each `height` inches, at most `columns` beside one another.

    It is as wide as a printed column where panels stand below one another, else as the page.
    """
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = -(-count // columns)
    size = (COLUMN_IN if columns == 1 else PAGE_IN, height * rows)
    figure = Figure(figsize=size, layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)
    for axis in axes[count:]:
        axis.remove()
    return figure, axes[:count]


def edge_labels(axes: "Sequence[Axes]", x: str, y: str) -> None:
    """Write y at the first panel of each row, and x under the last panel of each column."""
    columns = axes[0].get_gridspec().ncols
    for index, axis in enumerate(axes):
        axis.set_ylabel(y if index % columns == 0 else "")
        axis.set_xlabel(x if index + columns >= len(axes) else "")


def interval_lines(
    axis: "Axes",
    rows: Sequence[Row],
    x: str,
    y: str,
    styles: Mapping[str, Style],
    scale: float = 100,
    **look: Any,
) -> dict[str, tuple[list[float], list[Row]]]:
    """Draw a line for each series of rows: y with its interval (y_lo, y_hi) against x.

    styles: {series: style}; look: what all lines differ in from it. Lines are moved sideways by a
    few percent, so that no interval hides another. Rows without a number are left out, and so is
    the end of an interval that is none. Returns {series: (its places on x, its rows)}.
    """
    drawn: dict[str, tuple[list[float], list[Row]]] = {}
    members = {name: [r for r in rows if r["series"] == name and _finite(r[y])] for name in styles}
    members = {name: sorted(of, key=lambda row: row[x]) for name, of in members.items() if of}
    step = min(0.07, 0.45 / max(len(members), 1))
    for index, (name, points) in enumerate(members.items()):
        moved = 2 ** (step * (index - (len(members) - 1) / 2))
        places = [row[x] * moved for row in points]
        values = [scale * row[y] for row in points]
        axis.errorbar(
            places,
            values,
            error_bars(points, y, scale),
            **{"elinewidth": 0.9, **styles[name], **look},
        )
        drawn[name] = places, points
    return drawn


def against_batch(
    rows: Sequence[Row],
    y: str,
    styles: Mapping[str, Style],
    title: str,
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    scale: float = 100,
    keys: Sequence[Any] = (),
) -> "Figure | None":
    """Return a figure of y against batch size, a line per series; None without numbers.

    within: what the axis is cut to: intervals of two or three seeds may reach beyond by far.
    """
    rows = [row for row in rows if _finite(row.get(y))]
    if not rows:
        return None
    figure, (axis,) = panel_grid(1, 1, 2.4)
    interval_lines(axis, rows, "batch", y, styles, scale)
    size_axis(axis, [row["batch"] for row in rows])
    axis.set_ylabel(title)
    limit(axis, *within)
    legend_below(figure, keys)
    return figure


def of_series(rows: Sequence[Row], lines: Sequence[Series]) -> list[Row]:
    """Return the rows of the cells of these series, each with the name of its series.

    A cell may belong to two series.
    """
    return [
        {**row, "series": line.label}
        for line in lines
        for cell in line.cells
        for row in rows
        if all(row.get(key) == value for key, value in cell.key.items())
    ]


def error_bars(rows: Sequence[Row], y: str, scale: float = 100) -> list[list[float]] | None:
    """Return the lengths of the bars from y to y_lo and y_hi, 0 where an end is no number.

    None where no row has any.
    """

    def length(row: Row, end: str, sign: int) -> float:
        value = row.get(f"{y}_{end}")
        return max(scale * sign * (value - row[y]), 0.0) if _finite(value) else 0.0

    lengths = [[length(row, end, sign) for row in rows] for end, sign in (("lo", -1), ("hi", 1))]
    return lengths if any(map(any, lengths)) else None


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def band_line(
    axis: "Axes", x: Sequence[float], band: Sequence[Sequence[float]], style: Style
) -> None:
    """Draw a line of middles within lower and upper ends, where all of those are finite."""
    middle, low, high = band
    axis.plot(x, middle, **style)
    if all(map(math.isfinite, (*low, *high))):
        axis.fill_between(x, low, high, color=style["color"], alpha=0.16, linewidth=0)


def heat_map(
    axis: "Axes",
    shades: Sequence[Sequence[float]],
    texts: Sequence[Sequence[str]],
    white_within: tuple[float, float],
    **look: Any,
) -> Any:
    """Draw a matrix of shades with a text in each field, white on shades in `white_within`."""
    image = axis.imshow(shades, aspect="auto", **look)
    place = {"ha": "center", "va": "center", "linespacing": 0.9, "fontsize": SMALL_PT}
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            dark = white_within[0] < shades[row][column] < white_within[1]
            axis.text(column, row, text, color="white" if dark else "black", **place)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    return image


SMALL_PT = 6.5  # the smallest type that is legible in print


def folded(label: str, letters: int) -> str:
    """Break a label into short lines, at spaces and after = and _ only."""
    wrapper = textwrap.TextWrapper(letters, break_long_words=False)
    wrapper.wordsep_re = re.compile(r"(\s+)|(?<=[=_])")
    return wrapper.fill(label)


def size_axis(
    axis: "Axes", values: Sequence[float], title: str = "Batch size", most: int = 12
) -> None:
    """Make x a log2 axis with a tick at every value, of which at most about `most` are written."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    ticks = sorted(set(values))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks, nbins=most))
    axis.xaxis.set_minor_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlim(ticks[0] / 1.35, ticks[-1] * 1.35)
    axis.set_xlabel(title)
    axis.grid(True)


def limit(axis: "Axes", low: float, high: float) -> None:
    """Cut y to a range."""
    bottom, top = axis.get_ylim()
    axis.set_ylim(max(bottom, low), min(top, high))


def steady_limits(rows: Sequence[Row], columns: Sequence[str]) -> tuple[float, float]:
    """Return limits in points that hold zero, every value, and the intervals without divergence.

    An interval of a few seeds of which one diverged is so long that it would hide every value.
    """
    ends = [row[column] for row in rows for column in columns]
    steady = [row for row in rows if not row["n_at_chance"]]
    ends += [
        row[f"{column}{end}"] for row in steady for column in columns for end in ("_lo", "_hi")
    ]
    finite = [100 * value for value in ends if math.isfinite(value)]
    low, high = min(0.0, *finite), max(0.0, *finite)
    margin = 0.06 * (high - low) or 1.0
    return low - margin if low < 0 else 0.0, high + margin


def key_entry(label: str, **look: Any) -> "Line2D":
    """Return an entry of a legend that stands for no line of its own."""
    from matplotlib.lines import Line2D

    return Line2D([], [], label=label, **{"color": "#555555", **look})


def legend_below(figure: "Figure", keys: Sequence[Any] = ()) -> None:
    """Put one legend for all panels under them, keys last; make the figure taller by as much."""
    from matplotlib.container import Container

    found = [each for axis in figure.axes for each in axis.get_legend_handles_labels()[0]]
    found.sort(key=lambda each: not isinstance(each, Container))  # measured lines come first
    entries = [*{each.get_label(): each for each in found}.values(), *keys]
    rows = 1
    while entries:
        columns = -(-len(entries) // rows)
        legend = figure.legend(handles=entries, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        over = box.width / figure.bbox.width
        if columns == 1 or over <= 1:
            figure.set_figheight(figure.get_figheight() + box.height / figure.dpi)
            return
        legend.remove()
        rows = max(rows + 1, math.ceil(rows * over))  # fewer are sure not to do
