"""The figure of two batch sizes apart: accuracies under both rules, and the parts of the fall."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.batch_vs_update_batch import ENDS, PRECISE, RUNNING
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Maker

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of this file."""
    return {"two_batches": lambda: two_batches(analysis.two_batches)}


def two_batches(rows: Sequence[Row]) -> "Figure | None":
    """Three panels against batch size: accuracies, the norm's part, the optimizer's part.

    rows: of the table of this name.
    """
    if not rows:
        return None
    figure, (levels, *parts) = panels.panel_grid(3, 3, 2.3)
    parts[1].sharey(parts[0])
    # Line and filling tell the rules apart here, so variants of a norm differ in lightness.
    styles = style.norm_styles({row["series"]: row["norm"] for row in rows}, step=2)
    styles = {name: {**style, "linestyle": "-"} for name, style in styles.items()}
    running = [row for row in rows if row["statistics"] == RUNNING]
    precise = [row for row in rows if row["statistics"] == PRECISE]
    shared = {row["series"]: _shared_point(row) for row in reversed(running)}
    around = [*running, *shared.values()]
    other = {"markerfacecolor": "white", "label": None}
    panels.interval_lines(levels, around, "batch", "fixed", styles)
    panels.interval_lines(levels, around, "batch", "equal", styles, linestyle="--", **other)
    for axis, column in zip(parts, ("norm_part", "optimizer_part")):
        panels.interval_lines(axis, running, "batch", column, styles)
        panels.interval_lines(axis, precise, "batch", column, styles, linestyle=":", **other)
        axis.axhline(0, color="black", linewidth=0.7)
    sizes, updates = ({row[key] for row in rows} for key in ("batch", "update_batch"))
    titles = ("Test accuracy (%)", "Lost by the norm (points)", "Lost by the optimizer (points)")
    for axis, title in zip((levels, *parts), titles):
        panels.size_axis(axis, sizes if axis in parts else sizes | updates)
        axis.set_ylabel(title)
    panels.limit(levels, 0, 101)
    parts[0].set_ylim(panels.steady_limits(rows, ("norm_part", "optimizer_part")))
    keys = [panels.key_entry(f"update batch {', '.join(map(str, sorted(updates)))}")]
    keys.append(panels.key_entry("update batch = batch", linestyle="--"))
    keys += [panels.key_entry("population statistics", linestyle=":")] * bool(precise)
    panels.legend_below(figure, keys)
    return figure


def _shared_point(row: Row) -> Row:
    """Return the point that both rules share: batch = update batch."""
    levels = {f"{k}{e}": row[f"reference{e}"] for k in ("fixed", "equal") for e in ENDS}
    return {"series": row["series"], "batch": row["update_batch"], **levels}
