"""The picture of a bench: throughput of both ways against batch size, and their ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import format_number
from gnexp.report.benchmark.aggregate import GNEXP, PLAIN, Row
from gnexp.report.figures import style as drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT_IN = 2.5


def draw_bench(rows: Sequence[Row], ratios: Sequence[Row], stem: Path, title: str) -> None:
    """Write STEM.png and STEM.svg from the rows of bench.csv and ratios.csv."""
    counted = [row for row in rows if row["counted"]]
    cells = [row for row in ratios if row["scope"] == "cell"]
    with drawing.drawing():
        figure, (rates, times) = drawing.axes_grid(1, 2, drawing.PAGE_IN, HEIGHT_IN)
        _rates(rates, counted)
        _ratios(times, cells, [row for row in ratios if row["scope"] == "norm"])
        for axis in (rates, times):
            drawing.size_axis(axis, [row["batch"] for row in counted])
        figure.suptitle(title, fontsize=7, color="#444444")
        drawing.legend_below(figure, [rates])
        drawing.save(figure, stem)


def _style(norm: str, norms: Sequence[str], way: str) -> dict[str, Any]:
    """Return a norm's own colour and marker: filled and solid for gnexp, else open and dashed."""
    return drawing.variant_style(norm, norms, 0 if way == GNEXP else 1)


def _rates(axis: "Axes", rows: Sequence[Row]) -> None:
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    lines = [(norm, way) for way in (GNEXP, PLAIN) for norm in norms]
    for index, (norm, way) in enumerate(lines):
        points = [row for row in rows if (row["norm"], row["way"]) == (norm, way)]
        if points:
            label = f"{norm_label(points[0])}, {way}"
            style = {**_style(norm, norms, way), "label": label}
            _bars(axis, points, "examples_per_s", index, len(lines), style)
    _log_scale(axis)
    axis.set_ylabel("Images per second, all seeds")


def _log_scale(axis: "Axes") -> None:
    """Make y a log axis with ticks at 1, 2, 5, 10 ... (in a short range also 3), written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 20 * low else (1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _ratios(axis: "Axes", cells: Sequence[Row], sweeps: Sequence[Row]) -> None:
    norms = list(dict.fromkeys(row["norm"] for row in cells))
    for index, norm in enumerate(norms):
        points = [row for row in cells if row["norm"] == norm]
        _bars(axis, points, "ratio", index, len(norms), _style(norm, norms, GNEXP))
    axis.axhline(1, color="#777777", linewidth=0.8)
    _log_scale(axis)
    axis.set_ylabel("gnexp / plain")
    text = ", ".join(f"{norm_label(row)} {format_number(row['ratio'])}" for row in sweeps)
    axis.set_title(f"whole sweep: {text}", loc="right")


def _bars(
    axis: "Axes", rows: Sequence[Row], key: str, index: int, count: int, style: dict[str, Any]
) -> None:
    """Draw medians with bars from the smallest to the largest repeat."""
    rows = sorted(rows, key=lambda row: row["batch"])
    middle = [row[key] for row in rows]
    down = [row[key] - row[f"{key}_min"] for row in rows]
    up = [row[f"{key}_max"] - row[key] for row in rows]
    x = drawing.dodge([row["batch"] for row in rows], index, count)
    axis.errorbar(x, middle, [down, up], capsize=2, elinewidth=0.9, **style)
