"""The figures of gradient noise against batch size, with the fitted exponents."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from gnexp.analysis.cells import norm_label
from gnexp.analysis.gradient_noise import OWN, SHARED
from gnexp.analysis.tables.table import Row
from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KIND_TITLES = {
    **{"all": "All parameters", "gamma": "Gamma", "beta": "Beta"},
    **{"conv": "Convolutions", "linear": "Linear layer"},
}


def noise_vs_batch(
    gradients: Sequence[Row], exponents: Sequence[Row], kinds: Sequence[str]
) -> "Figure | None":
    """Gradient noise against batch size on log axes, with fits, at the first and last weights.

    Shared weights where the study has them, else each run's own. A panel per kind and epoch.
    """
    shared = any(row["weights"] == SHARED for row in gradients)
    weights = SHARED if shared else OWN
    rows = [r for r in gradients if r["weights"] == weights and r["parameters"] in kinds]
    rows = [r for r in rows if r["noise"] > 0]
    if len({row["at_batch"] for row in rows}) < 2:
        return None
    shown_keys = _distinguishing_keys(rows, shared)
    rows = [{**row, "series": _noise_label(row, shown_keys)} for row in rows]
    styles = style.norm_styles({row["series"]: row["norm"] for row in rows})
    fits = {
        (_noise_label(f, shown_keys), f["parameters"], f["epoch"]): _fit_text(f)
        for f in exponents
        if f["weights"] == weights
    }
    epochs = sorted({min(r["epoch"] for r in rows), max(r["epoch"] for r in rows)})
    kinds = [kind for kind in kinds if any(row["parameters"] == kind for row in rows)]
    shown = [(kind, epoch) for epoch in epochs for kind in kinds]
    columns = len(kinds) if len(kinds) > 1 else len(epochs)
    figure, axes = panels.panel_grid(len(shown), columns, 2.3 + 0.14 * len(styles))
    for axis, (kind, epoch) in zip(axes, shown):
        here = [r for r in rows if (r["parameters"], r["epoch"]) == (kind, epoch)]
        _noise_panel(axis, here, styles, {name: fits.get((name, kind, epoch)) for name in styles})
        when = "initialization" if epoch == 0 else f"epoch {epoch}"
        axis.set_title(f"{_KIND_TITLES[kind]},\n{when}")
        axis.tick_params(axis="x", labelsize=panels.SMALL_PT)
    figure.suptitle(f"Measured at {weights}", fontsize=8)
    axes[0].set_ylabel("Gradient noise\n(loss/parameter)\u00b2")
    panels.legend_below(figure)
    return figure


def _noise_panel(
    axis: "Axes",
    rows: Sequence[Row],
    styles: Mapping[str, Style],
    fits: Mapping[str, str | None],
) -> None:
    # A lower limit at or below zero has no place on a log axis: the bar is cut a decade below.
    rows = [{**r, "noise_lo": max(r["noise_lo"], r["noise"] / 10)} for r in rows]
    apart = [r for r in rows if r["norm"] == "bn" and r["at_batch"] == 1]
    fitted = [r for r in rows if r not in apart]
    panels.interval_lines(axis, fitted, "at_batch", "noise", styles, 1)
    look = {"markerfacecolor": "white", "zorder": 5, "label": None}
    panels.interval_lines(axis, apart, "at_batch", "noise", styles, 1, **look)
    batches = sorted({row["at_batch"] for row in rows})
    top = max(r["noise"] * r["at_batch"] for r in rows) * 1.8
    guide = {"color": "#999999", "linewidth": 0.8, "label": "slope -1"}
    axis.plot(batches, [top / b for b in batches], **guide)
    axis.set_yscale("log")
    panels.size_axis(axis, batches)
    # The exponents differ from panel to panel, so each panel has its own below it.
    handles = {c.get_label(): c for c in axis.containers}
    told = {name: text for name, text in fits.items() if text and name in handles}
    if told:
        place = {"loc": "upper center", "bbox_to_anchor": (0.45, -0.24), "handlelength": 1.5}
        size = {"fontsize": panels.SMALL_PT, "title_fontsize": panels.SMALL_PT}
        entries = [handles[name] for name in told]
        axis.legend(entries, told.values(), **place, **size, title="exponent [95 % interval]")


def _distinguishing_keys(rows: Sequence[Row], shared: bool) -> list[str]:
    """Keys beyond the norm by which rows at one measured batch size differ, and so make lines."""
    import pandas as pd

    keys = list(rows[0])[: list(rows[0]).index("epoch")]
    fixed = ("norm", "groups", "channels_per_group", *(() if shared else ("batch", "update_batch")))
    frame = pd.DataFrame(rows).map(str)
    place = [[norm_label(row) for row in rows], *(frame[k] for k in _PLACE)]
    return [k for k in keys if k not in fixed and frame.groupby(place)[k].nunique().max() > 1]


_PLACE = ("at_batch", "epoch", "parameters")


def _noise_label(row: Row, shown_keys: Sequence[str]) -> str:
    return ", ".join([norm_label(row), *(f"{key}={row.get(key)}" for key in shown_keys)])


def _fit_text(fit: Row) -> str | None:
    """Return the exponent and its interval, where there was one to fit."""
    if math.isnan(fit["slope"]):
        return None
    bounds = "" if math.isnan(fit["hi95"]) else f" [{fit['lo95']:.2f}, {fit['hi95']:.2f}]"
    return f"{fit['slope']:.2f}{bounds}"
