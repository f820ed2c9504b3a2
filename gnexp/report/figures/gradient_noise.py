"""The figures of gradient noise against batch size, with the fitted exponents."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gnexp.analysis import gradient_noise
from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import style as drawing
from gnexp.report.figures.style import COLUMN_IN, LEGEND_LINE_IN, PAGE_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FIT_PT = 6.5  # of the fitted exponents


def noise_vs_batch(
    gradients: Sequence[Row], exponents: Sequence[Row], kinds: Sequence[str]
) -> "Figure | None":
    """Gradient noise against batch size on log axes, with fits, at the first and last weights.

    Shared weights where the study has them, else each run's own. A panel per kind and epoch.
    """
    shared = any(row["weights"] == gradient_noise.SHARED for row in gradients)
    weights = gradient_noise.SHARED if shared else gradient_noise.OWN
    rows = [r for r in gradients if r["weights"] == weights and r["parameters"] in kinds]
    rows = [r for r in rows if r["noise"] > 0]
    if len({row["at_batch"] for row in rows}) < 2:
        return None
    epochs = sorted({min(r["epoch"] for r in rows), max(r["epoch"] for r in rows)})
    kinds = [kind for kind in kinds if any(row["parameters"] == kind for row in rows)]
    panels = [(kind, epoch) for epoch in epochs for kind in kinds]
    shown_keys = _distinguishing_keys(rows, shared)
    names = {_noise_label(row, shown_keys) for row in rows}
    columns = len(kinds) if len(kinds) > 1 else len(epochs)
    # Kinds stand beside one another where the exponents in their legends leave room for it.
    widest = max(drawing.text_width(f"{n}: -0.00 [-0.00, -0.00]", FIT_PT) for n in names) + 0.35
    width = COLUMN_IN if len(panels) == 1 else PAGE_IN
    columns = min(columns, max(1, int(width / widest)))
    height = 1.9 + LEGEND_LINE_IN * (len(names) + 2)
    rows_of = -(-len(panels) // columns)
    figure, axes = drawing.axes_grid(rows_of, columns, width, height * rows_of)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    for axis, (kind, epoch) in zip(axes, panels):
        here = [r for r in rows if (r["parameters"], r["epoch"]) == (kind, epoch)]
        wanted = (weights, kind, epoch)
        fits = [f for f in exponents if (f["weights"], f["parameters"], f["epoch"]) == wanted]
        _noise_panel(axis, here, fits, shown_keys)
        when = "initialization" if epoch == 0 else f"epoch {epoch}"
        whose = weights if columns < 3 else ""  # no room
        axis.tick_params(axis="x", labelsize=8 if columns < 3 else FIT_PT)
        axis.set_title(f"{_KIND_TITLES[kind]}, {when}" + f" ({whose})" * bool(whose))
    return figure


_KIND_TITLES = {
    **{"all": "All parameters", "gamma": "Gamma", "beta": "Beta"},
    **{"conv": "Convolutions", "linear": "Linear layer"},
}


def _noise_panel(axis: "Axes", rows: list[Row], fits: list[Row], shown_keys: list[str]) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(_noise_label(row, shown_keys), []).append(row)
    for index, (name, points) in enumerate(groups.items()):
        norm = points[0]["norm"]
        variants = [n for n, other in groups.items() if other[0]["norm"] == norm]
        style = drawing.variant_style(norm, [r["norm"] for r in rows], variants.index(name))
        apart = [p for p in points if norm == "bn" and p["at_batch"] == 1]
        fitted = [p for p in points if p not in apart]
        fit = next((f for f in fits if _noise_label(f, shown_keys) == name), None)
        labelled = {**style, "label": _fit_label(name, fit)}
        _noise_line(axis, fitted, index, len(groups), labelled)
        open_marker = {**style, "markerfacecolor": "white", "zorder": 5}
        _noise_line(axis, apart, index, len(groups), open_marker)
    _slope_guide(axis, rows)
    axis.set_yscale("log")
    drawing.size_axis(axis, [row["at_batch"] for row in rows], "Measured at batch size")
    if axis.get_subplotspec().is_first_col():
        axis.set_ylabel("Gradient noise\n(loss/parameter)\u00b2")
    # The exponents differ from panel to panel, so each panel has its own legend, below it.
    place = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.24), "fontsize": FIT_PT}
    axis.legend(**place, title="exponent [95 % interval]", title_fontsize=FIT_PT)


def _noise_line(
    axis: "Axes", points: list[Row], index: int, count: int, style: dict[str, Any]
) -> None:
    if points:
        points = sorted(points, key=lambda p: p["at_batch"])  # their rates may differ
        x = drawing.dodge([p["at_batch"] for p in points], index, count)
        y = [p["noise"] for p in points]
        axis.errorbar(x, y, _log_error(points), elinewidth=0.9, **style)


def _distinguishing_keys(rows: list[Row], shared: bool) -> list[str]:
    """Keys beyond the norm by which rows at one measured batch size differ, and so make lines."""
    keys = list(rows[0])[: list(rows[0]).index("epoch")]
    fixed = ("norm", "groups", "channels_per_group", *(() if shared else ("batch", "update_batch")))
    places: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        place = (norm_label(row), row["at_batch"], row["epoch"], row["parameters"])
        places.setdefault(place, []).append(row)
    return [
        k
        for k in keys
        if k not in fixed and any(len({str(r[k]) for r in same}) > 1 for same in places.values())
    ]


def _noise_label(row: Row, shown_keys: list[str]) -> str:
    return norm_label(row) + "".join(f", {key}={row.get(key)}" for key in shown_keys)


def _fit_label(name: str, fit: Row | None) -> str:
    if fit is None or math.isnan(fit["slope"]):
        return name
    bounds = "" if math.isnan(fit["hi95"]) else f" [{fit['lo95']:.2f}, {fit['hi95']:.2f}]"
    return f"{name}: {fit['slope']:.2f}{bounds}"


def _slope_guide(axis: "Axes", rows: list[dict[str, Any]]) -> None:
    batches = sorted({row["at_batch"] for row in rows})
    if len(batches) > 1:
        top = max(r["noise"] * r["at_batch"] for r in rows) * 1.8
        ends = [batches[0], batches[-1]]
        axis.plot(ends, [top / b for b in ends], color="#999999", linewidth=0.8, label="slope -1")


def _log_error(points: list[dict[str, Any]]) -> list[list[float]]:
    # A lower limit at or below zero has no place on a log axis: the bar is cut a decade below.
    low = [p["noise"] - max(p["noise_lo"], p["noise"] / 10) for p in points]
    return [[max(v, 0.0) for v in low], [max(p["noise_hi"] - p["noise"], 0.0) for p in points]]
