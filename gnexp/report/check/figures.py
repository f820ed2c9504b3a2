"""The figures of a check, drawn from its points: one per claim that has any.

A panel's lines have one colour per norm and one line style per series. A logarithmic axis with
values that are 0 to rounding ends in a linear piece that reaches 0.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.report.figures import style
from gnexp.report.figures.style import LEGEND_LINE_IN, PAGE_IN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

ROUNDING = 1e-14  # what float64 numbers of size 1 differ by, after some sums
PANEL_IN = 2.3
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
    relative: bool = False
    y_limits: tuple[float, float] | None = None


SCOPES = {
    "each example and group": "example and\ngroup",
    "each example and channel": "example and\nchannel",
    "each example": "example",
    "each channel of the whole batch": "batch and\nchannel",
    "the whole batch": "batch",
}

PANELS: dict[str, tuple[Panel, ...]] = {
    "core": (Panel("eps", "What eps leaves", "Variance s / eps", "Output variance", "log"),),
    "spectrum": (
        Panel("distance", "Alike channels", "Groups", "Distance (rel. RMS)", y_scale="linear"),
        Panel(
            "distance, unlike channels",
            "Unlike channels",
            *("Groups", "Distance (rel. RMS)"),
            y_scale="linear",
        ),
    ),
    "batch_independence": (
        Panel("output", "Output of one example", "Batch size", "Relative RMS change"),
        Panel("gradient", "Its input gradient", "Batch size", "Relative RMS change"),
    ),
    "train_test": (
        Panel("gap", "Training against evaluation", "Batch size", "Gap (relative RMS)"),
    ),
    "geometry": (
        Panel(
            "singular values",
            "Jacobian, two examples",
            *("Rank from the smallest (fraction)", "Relative singular value"),
            x_scale="linear",
            series=("N = 2",),
        ),
        Panel("radius", "Radius", "Variance s / eps", "Radius / sqrt(n)", "log"),
    ),
    "flow": (
        Panel(
            "backward scale",
            "Factor on the gradient",
            *("Input sd sigma", "|dx| / |dy|"),
            x_scale="log",
            series=("measured",),
        ),
        Panel("scaled weights", "Weights times a", "a", "Gradient norm (ratio)", "log"),
        Panel(
            "batch size", "One example's factor", "Batch size", "Over that at 32", y_scale="log2"
        ),
        Panel(
            "gradient by depth",
            "ResNet-110",
            *("Depth (fraction)", "Gradient norm / last block's"),
            x_scale="linear",
            series=("resnet110",),
            y_limits=(0.1, 1e3),
        ),
        Panel(
            "gradient by depth",
            "The same without shortcuts",
            *("Depth (fraction)", "Gradient norm / last block's"),
            x_scale="linear",
            series=("plain110",),
        ),
    ),
    "initialization": (
        Panel(
            "article's block",
            "Branch ends with the norm, depth 56",
            *("Block", "Variance of the signal"),
            x_scale="linear",
            series=("gamma 1, depth 56", "gamma 0, depth 56"),
            y_limits=(0.05, 100.0),
        ),
        Panel(
            "post-activation",
            "ResNet-56",
            *("Block", "Variance of the signal"),
            x_scale="linear",
            series=("gamma 1, depth 56", "gamma 0, depth 56"),
            y_limits=(0.05, 100.0),
        ),
        Panel(
            "first updates, rate 0.0125",
            "Protocol's rate",
            *("Update", "Loss (nats)"),
            x_scale="linear",
            y_scale="linear",
            y_limits=(2.0, 3.5),
        ),
        Panel(
            "first updates, rate 0.1",
            "8 times that rate",
            *("Update", "Loss (nats)"),
            x_scale="linear",
            y_scale="linear",
            y_limits=(2.0, 3.5),
        ),
    ),
    "stability": (
        Panel(
            "one layer, gamma",
            "One layer, gamma",
            *("Times the smallest number", "Relative variance"),
            relative=True,
        ),
        Panel("network, gamma", "ResNet-8, gamma", "Batch size", "Gradient noise"),
        Panel("network, beta", "ResNet-8, beta", "Batch size", "Gradient noise"),
        Panel("relative, gamma", "ResNet-8, gamma", "Batch size", "Noise / signal"),
        Panel("relative, beta", "ResNet-8, beta", "Batch size", "Noise / signal"),
    ),
    "isolation": (
        Panel("cross-example", "Others' logits", "Batch size", "Relative RMS change"),
        Panel(
            "sensitivity",
            "Clipped gradient sum",
            *("Batch size", "Sensitivity / clip"),
            y_scale="log2",
        ),
    ),
}

CAPTIONS = {
    "core": "What is left of a variance s around eps; measured at nine variances.",
    "spectrum": "Distance between the outputs of GN and of LN and IN, for channels alike in"
    " distribution and for halves of the channels that differ.",
    "batch_independence": "How far the output of one example, and its gradient, move when one or"
    " all of its batch-mates are replaced; 95 % intervals.",
    "train_test": "Gap between the two modes once running statistics were collected at each batch"
    " size (same data), and after the very batch passed alone (same batch), which leaves what"
    " PyTorch's unbiased running variance adds.",
    "invariance": "0 but for eps where a norm is invariant; in training mode.",
    "geometry": "Singular values of the layer's Jacobian: the lost directions are the steps on the"
    " left; and the radius of the standardized output.",
    "flow": "The factor on a gradient that passes the layer; what scaling the weights before the"
    " norm does to gradients; the factor of one example against the batch size; and gradient norms"
    " at initialization from the first block (0) to the last (1), with the range of"
    " initializations. Lines without a norm may leave a panel.",
    "initialization": "Variance of the signal behind each block at initialization, and the loss of"
    " the first updates; 95 % intervals. Lines without a norm may leave a panel.",
    "stability": "Variance of gradients, with 95 % intervals where they are bounded; noise / signal"
    " has none.",
    "isolation": "How far replacing one example moves the others' logits; how far it moves the sum"
    " of clipped gradients: the largest move that was found, a lower bound, and the proven upper"
    " bound.",
}


def draw_check(
    folder: Path, norms: Sequence[str], claims: Sequence[tuple[int, str, str]], points: list[Row]
) -> dict[str, Path]:
    """Write the figures that have points to show; return {claim's key: path of its SVG}."""
    written = {}
    with style.drawing():
        for number, key, _ in claims:
            here = [point for point in points if point["key"] == key]
            figure = None
            if here and key == "invariance":
                figure = matrix_figure(here, norms)
            elif here and key in PANELS:
                figure = line_figure(PANELS[key], here, norms)
            if figure is not None:
                written[key] = style.save(figure, folder / f"claim{number:02d}_{key}")
    return written


def line_figure(panels: Sequence[Panel], points: list[Row], norms: Sequence[str]) -> "Figure":
    """Return a figure of panels, two to a row, with one legend under them."""
    shown = [p for p in panels if any(point["panel"] == p.name for point in points)]
    columns = min(len(shown), 2 if len(shown) in (2, 4) else 3)
    rows = -(-len(shown) // columns)
    width = PAGE_IN if columns > 1 else PAGE_IN * 0.6
    figure, axes = style.axes_grid(rows, columns, width, PANEL_IN * rows)
    used: list[str] = []
    for axis, panel in zip(axes, shown):
        here = [q for q in points if _chosen(panel, q) is not None]
        here = [{**q, "series": q["series"].split(",")[0]} for q in here]  # "gamma 1, depth 56"
        series = list(dict.fromkeys(q["series"] for q in here))
        used += [name for name in series if len(series) > 1 and name not in used]
        _draw(axis, panel, here, norms, used if len(series) > 1 else series)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    _legend(figure, [n for n in norms if any(q["norm"] == n for q in points)], used)
    return figure


def matrix_figure(points: list[Row], norms: Sequence[str]) -> "Figure":
    """Return the departure from invariance as a matrix, norm x scope, with its numbers."""
    import numpy as np

    scopes = [name for name in SCOPES if any(q["series"] == name for q in points)]
    found = {(q["norm"], q["series"]): q["y"] for q in points if q["panel"] == "matrix"}
    values = np.array([[found.get((n, s), math.nan) for s in scopes] for n in norms])
    figure, (axis,) = style.axes_grid(1, 1, PAGE_IN * 0.75, 0.9 + 0.34 * len(norms))
    shades = np.log10(np.maximum(values, ROUNDING))
    image = axis.imshow(shades, cmap="cividis", aspect="auto", vmin=-6, vmax=0.5)
    for row, column in np.ndindex(values.shape):
        dark = shades[row, column] < -2.5
        text, colour = f"{values[row, column]:.1g}", "white" if dark else "black"
        axis.text(column, row, text, ha="center", va="center", color=colour)
    axis.set_xticks(range(len(scopes)), [SCOPES[s] for s in scopes])
    axis.set_yticks(range(len(norms)), norms)
    axis.set_title("Change of the standardized output under a x + b, one a > 0 and b for each ...")
    axis.tick_params(length=0)
    bar = figure.colorbar(image, ax=axis, ticks=[-6, -4, -2, 0])
    bar.ax.set_yticklabels(["1e-6", "1e-4", "1e-2", "1"])
    bar.set_label("relative RMS")
    return figure


def _chosen(panel: Panel, point: Row) -> str | None:
    """Return a point's series if it is drawn in this panel."""
    if point["panel"] != panel.name or (panel.series and point["series"] not in panel.series):
        return None
    return point["series"]


def norm_key(label: str) -> str:
    """Return the key of a norm's colour: that of the norm its label begins with."""
    names = {"BN": "bn", "GN": "gn", "LN": "ln", "IN": "in", "no norm": "none"}
    return next((key for name, key in names.items() if label.startswith(name)), label)


def _draw(
    axis: "Axes", panel: Panel, points: list[Row], norms: Sequence[str], series: Sequence[str]
) -> None:
    keys = [norm_key(norm) for norm in norms]
    for turn, norm in enumerate(norms):
        colour, marker = style.style_of(norm_key(norm), keys)
        for name in series:
            line = [q for q in points if (q["norm"], q["series"]) == (norm, name)]
            if not line:
                continue
            line.sort(key=lambda q: q["x"])
            first = line[0]["x"] if panel.relative else 1
            x = [q["x"] / first for q in line]
            look = {"color": colour, "linestyle": style.LINES[series.index(name) % 4]}
            if len(line) <= MARKED:
                look |= {"marker": marker, "markerfacecolor": "none", "markersize": 3.5}
            # Lines of norms that agree lie on each other: the later ones are thinner.
            width = 2.2 - 1.4 * turn / max(1, len(norms) - 1)
            axis.plot(x, [_seen(q["y"]) for q in line], linewidth=width, **look)
            bounds = [(_seen(q["lo"]), _seen(q["hi"])) for q in line]
            if all(math.isfinite(lo) and math.isfinite(hi) for lo, hi in bounds):
                axis.fill_between(x, *zip(*bounds), color=colour, alpha=0.15, linewidth=0)
    _axes(axis, panel, points)


def _seen(value: float) -> float:
    return 0.0 if abs(value) < ROUNDING else value


def _axes(axis: "Axes", panel: Panel, points: list[Row]) -> None:
    from matplotlib.ticker import FuncFormatter

    if panel.x_scale == "log2":
        ticks = [line.get_xdata() for line in axis.get_lines()]
        style.size_axis(axis, [round(x) for xs in ticks for x in xs], panel.x_label)
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


def _legend(figure: "Figure", norms: Sequence[str], series: Sequence[str]) -> None:
    """Draw one legend: colours for norms, line styles for series."""
    from matplotlib.lines import Line2D

    keys = [norm_key(norm) for norm in norms]
    handles = []
    for norm in norms:
        colour, marker = style.style_of(norm_key(norm), keys)
        handles.append(
            Line2D([], [], color=colour, marker=marker, markerfacecolor="none", label=norm)
        )
    if series:
        for turn, name in enumerate(series):
            line = style.LINES[turn % len(style.LINES)]
            handles.append(Line2D([], [], color="#333333", linestyle=line, label=name))
    longest = max(len(handle.get_label()) for handle in handles)
    rows = -(-len(handles) // max(1, int(figure.get_figwidth() * 17 / (longest + 7))))
    columns = -(-len(handles) // rows)
    figure.set_figheight(figure.get_figheight() + LEGEND_LINE_IN * rows)
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)
