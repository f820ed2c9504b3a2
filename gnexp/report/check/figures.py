"""The figures of a check, drawn from its points: one per claim that has any.

A panel's lines have one colour per norm and one line style per series. A logarithmic axis with
values that are 0 to rounding ends in a linear piece that reaches 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.report.figures import panels, style
from gnexp.report.figures.style import Style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

ROUNDING = 1e-14  # what float64 numbers of size 1 differ by, after some sums
MARKED = 16  # points of a line up to which each has a marker


@dataclass(frozen=True)
class Panel:
    """The axes of a panel. name: of its points. x_scale, y_scale: linear, log, log2.

    series: which of the points' series are drawn, all if empty. relative: x is shown as a multiple
    of each line's first. y_limits: where lines that leave the panel would flatten all others.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x_scale: str = "log2"
    y_scale: str = "log"
    series: tuple[str, ...] = ()
    y_limits: tuple[float, float] | None = None
    relative: bool = False

    def draws(self, point: Row) -> bool:
        """Return whether a point belongs to this panel."""
        return point["panel"] == self.name and (not self.series or point["series"] in self.series)


SCOPES = {
    "each example and group": "example and\ngroup",
    "each example and channel": "example and\nchannel",
    "each example": "example",
    "each channel of the whole batch": "batch and\nchannel",
    "the whole batch": "batch",
}

_DISTANCE = ("Groups", "Distance (rel. RMS)", "log2", "linear")
_DEPTH = ("Depth (fraction)", "Gradient norm / last block's", "linear", "log")
_BLOCKS = ("Block", "Variance of the signal", "linear", "log")
_GAMMAS = (("gamma 1, depth 56", "gamma 0, depth 56"), (0.05, 100.0))
_LOSSES = ("Update", "Loss (nats)", "linear", "linear", (), (2.0, 3.5))
_FACTOR = ("Input sd sigma", "|dx| / |dy|", "log", "log", ("measured",))
_RANK = ("Rank from the smallest (fraction)", "Relative singular value", "linear", "log")
_SMALLEST = ("Times the smallest number", "Relative variance")
_NOISE, _RATIO = ("Batch size", "Gradient noise"), ("Batch size", "Noise / signal")
_CHANGE = ("Batch size", "Relative RMS change")

PANELS: dict[str, tuple[Panel, ...]] = {
    "core": (Panel("eps", "What eps leaves", "Variance s / eps", "Output variance", "log"),),
    "spectrum": (
        Panel("distance", "Alike channels", *_DISTANCE),
        Panel("distance, unlike channels", "Unlike channels", *_DISTANCE),
    ),
    "batch_independence": (
        Panel("output", "Output of one example", *_CHANGE),
        Panel("gradient", "Its input gradient", *_CHANGE),
    ),
    "train_test": (
        Panel("gap", "Training against evaluation", "Batch size", "Gap (relative RMS)"),
    ),
    "geometry": (
        Panel("singular values", "Jacobian, two examples", *_RANK, ("N = 2",)),
        Panel("radius", "Radius", "Variance s / eps", "Radius / sqrt(n)", "log"),
    ),
    "flow": (
        Panel("backward scale", "Factor on the gradient", *_FACTOR),
        Panel("scaled weights", "Weights times a", "a", "Gradient norm (ratio)", "log"),
        Panel(
            "batch size", "One example's factor", "Batch size", "Over that at 32", "log2", "linear"
        ),
        Panel("gradient by depth", "ResNet-110", *_DEPTH, ("resnet110",), (0.1, 1e3)),
        Panel("gradient by depth", "The same without shortcuts", *_DEPTH, ("plain110",)),
    ),
    "initialization": (
        Panel("article's block", "Branch ends with the norm, depth 56", *_BLOCKS, *_GAMMAS),
        Panel("post-activation", "ResNet-56", *_BLOCKS, *_GAMMAS),
        Panel("first updates, rate 0.0125", "Protocol's rate", *_LOSSES),
        Panel("first updates, rate 0.1", "8 times that rate", *_LOSSES),
    ),
    "stability": (
        Panel("one layer, gamma", "One layer, gamma", *_SMALLEST, relative=True),
        Panel("network, gamma", "ResNet-8, gamma", *_NOISE),
        Panel("network, beta", "ResNet-8, beta", *_NOISE),
        Panel("relative, gamma", "ResNet-8, gamma", *_RATIO),
        Panel("relative, beta", "ResNet-8, beta", *_RATIO),
    ),
    "isolation": (
        Panel("cross-example", "Others' logits", *_CHANGE),
        Panel(
            "sensitivity",
            "Clipped gradient sum",
            "Batch size",
            "Sensitivity / clip",
            y_scale="log2",
        ),
    ),
}


def draw_check(
    folder: Path, norms: Sequence[str], claims: Sequence[tuple[int, str, str]], points: list[Row]
) -> dict[str, Path]:
    """Write the figures that have points to show; return {claim's key: path of its SVG}."""
    written = {}
    with style.drawing():
        for number, key, _ in claims:
            here = [point for point in points if point["key"] == key]
            if here and key in (*PANELS, "invariance"):
                is_matrix = key == "invariance"
                figure = matrix_figure(here, norms) if is_matrix else line_figure(key, here, norms)
                written[key] = style.save(figure, folder / f"claim{number:02d}_{key}")
    return written


def line_figure(key: str, points: list[Row], norms: Sequence[str]) -> "Figure":
    """Return the figure of a claim's panels, with one legend under them."""
    shown = [(p, [q for q in points if p.draws(q)]) for p in PANELS[key]]
    shown = [(panel, found) for panel, found in shown if found]
    figure, axes = panels.panel_grid(len(shown), 2 if len(shown) in (2, 4) else 3, 2.3)
    keys = [norm_key(norm) for norm in norms]
    looks = {n: dict(zip(("color", "marker"), style.style_of(norm_key(n), keys))) for n in norms}
    dashes: dict[str, str] = {}
    for axis, (panel, found) in zip(axes, shown):
        found = [{**q, "series": q["series"].split(",")[0]} for q in found]  # "gamma 1, depth 56"
        series = list(dict.fromkeys(q["series"] for q in found))
        for name in series if len(series) > 1 else ():
            dashes.setdefault(name, style.LINES[len(dashes) % len(style.LINES)])
        _draw(axis, panel, found, looks, dashes if len(series) > 1 else {series[0]: "-"})
    used = [norm for norm in norms if any(q["norm"] == norm for q in points)]
    entries = [panels.key_entry(norm, **looks[norm], markerfacecolor="none") for norm in used]
    entries += [panels.key_entry(name, linestyle=dash) for name, dash in dashes.items()]
    panels.legend_below(figure, entries)
    return figure


def matrix_figure(points: list[Row], norms: Sequence[str]) -> "Figure":
    """Return the departure from invariance as a matrix, norm x scope, with its numbers."""
    scopes = [name for name in SCOPES if any(q["series"] == name for q in points)]
    found = {(q["norm"], q["series"]): q["y"] for q in points if q["panel"] == "matrix"}
    values = [[found.get((norm, scope), math.nan) for scope in scopes] for norm in norms]
    shades = [[math.log10(max(value, ROUNDING)) for value in row] for row in values]
    figure, (axis,) = panels.panel_grid(1, 1, 0.9 + 0.34 * len(norms))
    figure.set_figwidth(5.25)
    texts = [[f"{value:.1g}" for value in row] for row in values]
    scale = {"cmap": "cividis", "vmin": -6, "vmax": 0.5}
    image = panels.heat_map(axis, shades, texts, (-math.inf, -2.5), **scale)
    axis.set_xticks(range(len(scopes)), [SCOPES[scope] for scope in scopes])
    axis.set_yticks(range(len(norms)), norms)
    axis.set_title("Change of the standardized output under a x + b, one a > 0 and b for each ...")
    bar = figure.colorbar(image, ax=axis, ticks=[-6, -4, -2, 0])
    bar.ax.set_yticklabels(["1e-6", "1e-4", "1e-2", "1"])
    bar.set_label("relative RMS")
    return figure


def norm_key(label: str) -> str:
    """Return the key of a norm's colour: that of the norm its label begins with."""
    names = {"BN": "bn", "GN": "gn", "LN": "ln", "IN": "in", "no norm": "none"}
    return next((key for name, key in names.items() if label.startswith(name)), label)


def _draw(
    axis: "Axes",
    panel: Panel,
    points: list[Row],
    looks: dict[str, Style],
    dashes: dict[str, str],
) -> None:
    """Draw a line for each norm and series. Lines that agree lie on each other: later: thinner."""
    for turn, (norm, look) in enumerate(looks.items()):
        width = 2.2 - 1.4 * turn / max(1, len(looks) - 1)
        for name, dash in dashes.items():
            line = [q for q in points if (q["norm"], q["series"]) == (norm, name)]
            if not line:
                continue
            line.sort(key=lambda q: q["x"])
            first = line[0]["x"] if panel.relative else 1
            band = [[_seen(q[end]) for q in line] for end in ("y", "lo", "hi")]
            dots = {"marker": look["marker"] if len(line) <= MARKED else "", "markersize": 3.5}
            own = {**look, **dots, "markerfacecolor": "none", "linestyle": dash}
            x = [q["x"] / first for q in line]
            panels.band_line(axis, x, band, {**own, "linewidth": width})
    _axes(axis, panel, points)


def _seen(value: float) -> float:
    return 0.0 if abs(value) < ROUNDING else value


def _axes(axis: "Axes", panel: Panel, points: list[Row]) -> None:
    from matplotlib.ticker import FuncFormatter

    if panel.x_scale == "log2":
        ticks = [line.get_xdata() for line in axis.get_lines()]
        panels.size_axis(axis, [round(x) for xs in ticks for x in xs], panel.x_label)
    else:
        axis.set_xscale(panel.x_scale)
        axis.set_xlabel(panel.x_label)
        axis.grid(True)
    axis.set_ylabel(panel.y_label)
    axis.set_title(panel.title)
    values = [_seen(q["y"]) for q in points if math.isfinite(q["y"])]
    positive = [y for y in values if y > 0]
    if panel.y_scale == "linear" or not positive:
        axis.set_ylim(*((None, None) if positive else (-0.05, 1.0)))
    elif panel.y_scale == "log2":
        axis.set_yscale("log", base=2)
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    elif min(values) > 0:
        axis.set_yscale("log")
    else:
        threshold = 10.0 ** math.floor(math.log10(min(positive)))
        axis.set_yscale("symlog", linthresh=threshold)
        axis.set_ylim(-0.15 * threshold, 2 * max(positive))
    if panel.y_limits:
        axis.set_ylim(*panel.y_limits)
