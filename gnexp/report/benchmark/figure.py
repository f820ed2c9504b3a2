"""The picture of a bench: throughput of both ways against batch size, and their ratio."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import format_number
from gnexp.report.benchmark.aggregate import GNEXP, PLAIN, Row
from gnexp.report.figures import panels, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_bench(rows: Sequence[Row], ratios: Sequence[Row], stem: Path, title: str) -> None:
    """Write STEM.png and STEM.svg from the rows of bench.csv and ratios.csv."""
    counted = [row for row in rows if row["counted"]]
    # A norm's own colour and marker: filled and solid for gnexp, else open and dashed.
    styles = style.norm_styles(
        {f"{norm_label(row)}, {way}": row["norm"] for way in (GNEXP, PLAIN) for row in counted}
    )
    sweeps = [row for row in ratios if row["scope"] == "norm"]
    shown = ", ".join(f"{norm_label(row)} {format_number(row['ratio'])}" for row in sweeps)
    with style.drawing():
        figure, (rates, times) = panels.panel_grid(2, 2, 2.5)
        points = [_point(row, "examples_per_s", row["way"]) for row in counted]
        panels.interval_lines(rates, points, "batch", "examples_per_s", styles, 1)
        points = [_point(row, "ratio", GNEXP) for row in ratios if row["scope"] == "cell"]
        panels.interval_lines(times, points, "batch", "ratio", styles, 1)
        times.axhline(1, color="#777777", linewidth=0.8)
        times.set_title(f"whole sweep: {shown}", loc="right")
        for axis, label in ((rates, "Images per second, all seeds"), (times, "gnexp / plain")):
            panels.size_axis(axis, [row["batch"] for row in counted])
            axis.set_ylabel(label)
            _log_scale(axis)
        figure.suptitle(title, fontsize=7, color="#444444")
        panels.legend_below(figure)
        style.save(figure, stem)


def _point(row: Row, key: str, way: str) -> Row:
    """Return a median as the point of a line, with bars from the smallest to the largest repeat."""
    ends = {f"{key}_lo": row[f"{key}_min"], f"{key}_hi": row[f"{key}_max"]}
    return {**row, **ends, "series": f"{norm_label(row)}, {way}"}


def _log_scale(axis: "Axes") -> None:
    """Make y a log axis with ticks at 1, 2, 5, 10 ... (in a short range also 3), written out."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5) if high < 20 * low else (1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
