"""The figure of two batch sizes apart: accuracies under both rules, and the parts of the fall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.batch_vs_update_batch import ENDS, PRECISE, RUNNING
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures.panels import (
    interval_lines,
    key_entry,
    legend_below,
    limit,
    panel_grid,
    size_axis,
    steady_limits,
)
from gnexp.report.figures.style import Maker, norm_styles

if TYPE_CHECKING:
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
    figure, (levels, *parts) = panel_grid(3, 3, 2.3)
    parts[1].sharey(parts[0])
    # Line and filling tell the rules apart here, so variants of a norm differ in lightness.
    styles = norm_styles({row["series"]: row["norm"] for row in rows}, step=2)
    styles = {name: {**style, "linestyle": "-"} for name, style in styles.items()}
    running = [row for row in rows if row["statistics"] == RUNNING]
    precise = [row for row in rows if row["statistics"] == PRECISE]
    shared = {row["series"]: _shared_point(row) for row in reversed(running)}
    around = [*running, *shared.values()]
    other = {"markerfacecolor": "white", "label": None}
    interval_lines(levels, around, "batch", "fixed", styles)
    interval_lines(levels, around, "batch", "equal", styles, linestyle="--", **other)
    for axis, column in zip(parts, ("norm_part", "optimizer_part")):
        interval_lines(axis, running, "batch", column, styles)
        interval_lines(axis, precise, "batch", column, styles, linestyle=":", **other)
        axis.axhline(0, color="black", linewidth=0.7)
    sizes, updates = ({row[key] for row in rows} for key in ("batch", "update_batch"))
    titles = ("Test accuracy (%)", "Lost by the norm (points)", "Lost by the optimizer (points)")
    for axis, title in zip((levels, *parts), titles):
        size_axis(axis, sizes if axis in parts else sizes | updates)
        axis.set_ylabel(title)
    limit(levels, 0, 101)
    parts[0].set_ylim(steady_limits(rows, ("norm_part", "optimizer_part")))
    keys = [key_entry(f"update batch {', '.join(map(str, sorted(updates)))}")]
    keys.append(key_entry("update batch = batch", linestyle="--"))
    keys += [key_entry("population statistics", linestyle=":")] * bool(precise)
    legend_below(figure, keys)
    return figure


def _shared_point(row: Row) -> Row:
    """Return the point that both rules share: batch = update batch."""
    levels = {f"{k}{e}": row[f"reference{e}"] for k in ("fixed", "equal") for e in ENDS}
    return {"series": row["series"], "batch": row["update_batch"], **levels}
