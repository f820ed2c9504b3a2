"""The report's figures, as PNG and SVG with the same bytes for the same numbers.

One colour and one marker per norm, whatever else a figure shows (the Okabe-Ito palette, which
colour-blind readers can tell apart; markers for those who print in grey).
"""

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.study import noise, statistics
from gnexp.study.cells import Cell, Series, norm_label, norm_rank
from gnexp.study.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = {
    "bn": ("#D55E00", "o"),
    "gn": ("#0072B2", "s"),
    "ln": ("#009E73", "^"),
    "in": ("#CC79A7", "v"),
    "none": ("#555555", "X"),
}
OTHER_STYLES = (("#E69F00", "D"), ("#56B4E9", "P"), ("#000000", "*"), ("#8B6F00", "p"))
LINES = ("-", "--", ":", "-.")
COLUMN_IN, PAGE_IN = 3.5, 7.0  # widths of one printed column and of the page, inches
DPI = 200

_SETTINGS = {
    **{"font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7},
    **{"axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7},
    **{"lines.linewidth": 1.2, "lines.markersize": 4.5, "legend.frameon": False},
    **{"grid.color": "#DDDDDD", "grid.linewidth": 0.5, "axes.axisbelow": True},
    **{"svg.hashsalt": "gnexp", "svg.fonttype": "path", "figure.facecolor": "white"},
}


def draw_figures(cells: Sequence[Cell], lines: Sequence[Series], folder: Path) -> dict[str, Path]:
    """Write every figure that has something to show; return {name: path of its SVG}."""
    makers: dict[str, Callable[[], Figure | None]] = {
        "accuracy_vs_batch": lambda: accuracy_vs_batch(lines),
        "gradient_variance_vs_batch": lambda: gradient_variance_vs_batch(cells, lines, ("all",)),
        "gradient_variance_by_kind": lambda: gradient_variance_vs_batch(
            cells, lines, noise.KINDS[:-1]
        ),
        "curves": lambda: curves(lines),
        "accuracy_vs_groups": lambda: accuracy_vs_groups(cells),
        "cost": lambda: cost(lines),
    }
    written = {}
    with _drawing():
        for name, make in makers.items():
            figure = make()
            if figure is not None:
                written[name] = _save(figure, folder / name)
    return written


def accuracy_vs_batch(lines: Sequence[Series]) -> "Figure | None":
    """Mean test accuracy and 95 % interval against batch size, a line per series."""
    lines = [line for line in lines if any(cell.accuracies for cell in line.cells)]
    if not lines:
        return None
    figure, axes = _axes(1, 1, COLUMN_IN, 2.6)
    for index, line in enumerate(lines):
        points = [(c.key["batch"], c.accuracy()[0]) for c in line.cells if c.accuracies]
        x = _dodge([batch for batch, _ in points], index, len(lines))
        y = [100 * i.mean for _, i in points]
        error = [
            [100 * (i.mean - i.lo) for _, i in points],
            [100 * (i.hi - i.mean) for _, i in points],
        ]
        _errorbar(axes[0], x, y, error, line, lines)
    _batch_axis(axes[0], [c.key["batch"] for line in lines for c in line.cells])
    axes[0].set_ylabel("Test accuracy (%)")
    _legend(figure, axes)
    return figure


def gradient_variance_vs_batch(
    cells: Sequence[Cell], lines: Sequence[Series], kinds: Sequence[str]
) -> "Figure | None":
    """Gradient noise against batch size on log axes, with fits, at the first and last weights.

    Shared weights where the study has them, else each run's own. One row per kind of parameter.
    """
    shared = [cell for cell in cells if noise.has_shared(cell)]
    rows = noise.gradient_rows(shared or cells)
    if not shared:
        rows = [row for row in rows if row["at_batch"] == row["batch"]]
    rows = [row for row in rows if row["parameters"] in kinds and row["noise"] > 0]
    fits = noise.exponent_rows(shared, []) if shared else noise.exponent_rows([], lines)
    if len({row["at_batch"] for row in rows}) < 2:
        return None
    last = max(row["epoch"] for row in rows)
    epochs = sorted({min(row["epoch"] for row in rows), last})
    kinds = [kind for kind in kinds if any(row["parameters"] == kind for row in rows)]
    width = COLUMN_IN * 1.6 if len(epochs) > 1 else COLUMN_IN
    figure, axes = _axes(len(kinds), len(epochs), width, 2.3 * len(kinds), sharey="row")
    panels = [(kind, epoch) for kind in kinds for epoch in epochs]
    for axis, (kind, epoch) in zip(axes, panels):
        here = [r for r in rows if (r["parameters"], r["epoch"]) == (kind, epoch)]
        fitted = [f for f in fits if (f["parameters"], f["epoch"]) == (kind, epoch)]
        _noise_panel(axis, here, fitted)
        when = "initialization" if epoch == 0 else f"epoch {epoch}"
        axis.set_title(f"{_KIND_TITLES[kind]}, {when}")
    for axis in axes[:: len(epochs)]:
        axis.set_ylabel("Gradient noise\n(loss/parameter)$^2$")
    figure.supxlabel(
        f"Batch size ({'same weights' if shared else 'own weights'} at every batch size)"
        if shared
        else "Batch size (each network at its own weights)",
        fontsize=8,
    )
    for axis in axes:
        axis.set_xlabel("")
    return figure


def curves(lines: Sequence[Series]) -> "Figure | None":
    """Train loss and test accuracy against images seen: a row per batch size, mean and range."""
    runs = [(line, cell) for line in lines for cell in line.cells if not cell.record.metrics.empty]
    if not any(len(cell.record.metrics["epoch"].unique()) > 1 for _, cell in runs):
        return None
    batches = sorted({cell.key["batch"] for _, cell in runs})
    figure, axes = _axes(
        len(batches), 2, PAGE_IN, 0.5 + 1.5 * len(batches), sharex=True, sharey="col"
    )
    for row, batch in enumerate(batches):
        for column, (name, scale) in enumerate((("train_loss", 1), ("test_acc", 100))):
            axis = axes[2 * row + column]
            for line, cell in runs:
                if cell.key["batch"] == batch:
                    _curve(axis, cell, name, scale, line, lines)
            axis.set_title(f"batch {batch}", loc="right")
            axis.set_ylabel("Train loss (nats)" if column == 0 else "Test accuracy (%)")
            axis.grid(True)
    for axis in axes[-2:]:
        axis.set_xlabel("Images seen (thousands)")
    _legend(figure, axes)
    return figure


def accuracy_vs_groups(cells: Sequence[Cell]) -> "Figure | None":
    """Accuracy against the number of groups, or channels per group, a line per batch size."""
    panels = []
    for column, title in (("groups", "Groups"), ("channels_per_group", "Channels per group")):
        chosen = [c for c in cells if c.key.get(column) is not None and c.accuracies]
        if len({c.key[column] for c in chosen}) > 1:
            panels.append((column, title, chosen))
    if not panels:
        return None
    width = COLUMN_IN * (1 if len(panels) == 1 else 1.8)
    figure, axes = _axes(1, len(panels), width, 2.6, sharey=True)
    shades = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
    markers = "so^vDP*"
    for axis, (column, title, chosen) in zip(axes, panels):
        told = [{k: v for k, v in c.key.items() if k not in ("norm", column)} for c in chosen]
        names = [_group_line(key, told) for key in told]
        for index, name in enumerate(dict.fromkeys(names)):
            points = sorted(
                (c.key[column], c.accuracy()[0]) for c, n in zip(chosen, names) if n == name
            )
            x = _dodge([value for value, _ in points], index, len(set(names)))
            y = [100 * i.mean for _, i in points]
            low = [100 * (i.mean - i.lo) for _, i in points]
            high = [100 * (i.hi - i.mean) for _, i in points]
            axis.errorbar(
                *(x, y, [low, high]),
                **{"color": shades[index % 7], "marker": markers[index % 7]},
                **{"linestyle": LINES[index // 7 % 4], "capsize": 2, "label": name},
            )
        _batch_axis(axis, [c.key[column] for c in chosen], title)
    axes[0].set_ylabel("Test accuracy (%)")
    _legend(figure, axes)
    return figure


def cost(lines: Sequence[Series]) -> "Figure | None":
    """Training time per 1,000 images and seed, as recorded, against batch size."""
    times = {id(line): [(c.key["batch"], _cost(c)) for c in line.cells] for line in lines}
    lines = [line for line in lines if any(value.n for _, value in times[id(line)])]
    if not lines:
        return None
    figure, axes = _axes(1, 1, COLUMN_IN, 2.6)
    for index, line in enumerate(lines):
        points = [(b, i) for b, i in times[id(line)] if i.n]
        x = _dodge([b for b, _ in points], index, len(lines))
        half = [0 if math.isnan(i.hi) else i.hi - i.mean for _, i in points]
        _errorbar(axes[0], x, [i.mean for _, i in points], [half, half], line, lines)
    _batch_axis(axes[0], [c.key["batch"] for line in lines for c in line.cells])
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("Seconds per 1,000 images")
    _legend(figure, axes)
    return figure


def plot_preview(
    path: Path, x_NCHW: "np.ndarray", y_N: "np.ndarray", classes: Sequence[str], title: str
) -> None:
    """Write a contact sheet as PNG: a row per class (at most 10), its first ten images.

    x_NCHW: uint8 (N, 3, H, W); y_N: labels that index `classes`.
    """
    import numpy as np

    shown = list(classes)[:10]
    with _drawing():
        figure, _ = _axes(1, 1, 4.2, 0.35 + 0.36 * len(shown))
        axis = figure.axes[0]
        height, width = x_NCHW.shape[2:]
        sheet = np.full((len(shown) * (height + 2), 10 * (width + 2), 3), 255, dtype=np.uint8)
        for row in range(len(shown)):
            for column, image in enumerate(x_NCHW[np.flatnonzero(y_N == row)[:10]]):
                top, left = row * (height + 2) + 1, column * (width + 2) + 1
                sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
        axis.imshow(sheet, interpolation="nearest", aspect="equal")
        axis.set_yticks([(row + 0.5) * (height + 2) for row in range(len(shown))], shown)
        axis.set_xticks([])
        axis.tick_params(length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(title)
        write_whole(path, _bytes(figure, "png"))


_KIND_TITLES = {
    **{"all": "All parameters", "gamma": "Gamma", "beta": "Beta"},
    **{"conv": "Convolutions", "linear": "Linear layer"},
}


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    # Figures are made without pyplot: no global state, no window system, nothing to close.
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        yield


def _axes(
    rows: int, columns: int, width: float, height: float, **sharing: Any
) -> "tuple[Figure, list[Axes]]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **sharing).flat)


def _save(figure: "Figure", stem: Path) -> Path:
    for kind in ("png", "svg"):
        write_whole(stem.with_suffix(f".{kind}"), _bytes(figure, kind))
    return stem.with_suffix(".svg")


def _bytes(figure: "Figure", kind: str) -> bytes:
    buffer = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()


def style_of(norm: str, norms: Sequence[str]) -> tuple[str, str]:
    """Return (colour, marker); own norms take turns in the order of their names."""
    if norm in STYLES:
        return STYLES[norm]
    own = sorted({n for n in norms if n not in STYLES})
    return OTHER_STYLES[own.index(norm) % len(OTHER_STYLES)]


def _line_style(line: Series, lines: Sequence[Series]) -> dict[str, Any]:
    colour, marker = style_of(line.norm, [other.norm for other in lines])
    turn = [id(other) for other in lines if other.norm == line.norm].index(id(line))
    # Several series of one norm keep its colour and marker; line and filling tell them apart.
    return {
        **{"color": colour, "marker": marker, "linestyle": LINES[turn % len(LINES)]},
        **{"markerfacecolor": colour if turn % 2 == 0 else "white", "label": line.label},
    }


def _errorbar(
    axis: "Axes", x: Any, y: Any, error: Any, line: Series, lines: Sequence[Series]
) -> None:
    axis.errorbar(x, y, error, capsize=2, elinewidth=0.9, **_line_style(line, lines))


def _noise_panel(axis: "Axes", rows: list[dict[str, Any]], fits: list[dict[str, Any]]) -> None:
    norms = [row["norm"] for row in rows]
    labels = {row["norm"]: set() for row in rows}
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(norm_label(row), []).append(row)
        labels[row["norm"]].add(norm_label(row))
    for name, points in groups.items():
        norm = points[0]["norm"]
        colour, marker = style_of(norm, norms)
        turn = sorted(labels[norm]).index(name)
        fit = next((f for f in fits if norm_label(f) == name), None)
        text = name
        if fit and not math.isnan(fit["slope"]):
            text = f"{name}: {fit['slope']:.2f}"
            if not math.isnan(fit["hi95"]):
                text += f" [{fit['lo95']:.2f}, {fit['hi95']:.2f}]"
        apart = [p for p in points if norm == "bn" and p["at_batch"] == 1]
        for some, filling in (([p for p in points if p not in apart], colour), (apart, "white")):
            axis.errorbar(
                [p["at_batch"] for p in some],
                [p["noise"] for p in some],
                _log_error(some),
                **{"color": colour, "marker": marker, "markerfacecolor": filling, "capsize": 2},
                **{
                    "linestyle": LINES[turn % 4],
                    "label": text if some and filling == colour else None,
                },
            )
    _slope_guide(axis, rows)
    axis.set_yscale("log")
    _batch_axis(axis, [row["at_batch"] for row in rows])
    # The exponents differ from panel to panel, so each panel has its own legend, below it.
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), title="exponent [95 %]")


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


def _curve(
    axis: "Axes", cell: Cell, name: str, scale: float, line: Series, lines: Sequence[Series]
) -> None:
    seeds = [row["seed"] for row in cell.of("complete")]
    table = cell.record.metrics[cell.record.metrics["seed"].isin(seeds)]
    table = table.pivot(index="examples_seen", columns="seed", values=name)
    if table.empty:
        return
    style = {k: v for k, v in _line_style(line, lines).items() if k != "marker"}
    x = table.index.to_numpy() / 1000
    axis.plot(x, scale * table.mean(axis=1), **style)
    low, high = scale * table.min(axis=1), scale * table.max(axis=1)
    axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _cost(cell: Cell) -> statistics.Interval:
    return statistics.t_interval(
        [
            1000 * row["train_time_s"] / row["examples_seen"]
            for row in cell.of("complete")
            if row.get("train_time_s") and row.get("examples_seen")
        ]
    )


def _dodge(values: Sequence[float], index: int, count: int) -> list[float]:
    """Shift a line sideways by a few percent, so that its intervals do not hide the others'."""
    shift = 0.05 * (index - (count - 1) / 2) if count > 1 else 0.0
    return [value * 2 ** (max(-0.3, min(0.3, shift))) for value in values]


def _batch_axis(axis: "Axes", values: Sequence[int], title: str = "Batch size") -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = sorted(set(values))
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_xlim(ticks[0] / 1.3, ticks[-1] * 1.3)
    axis.set_xlabel(title)
    axis.grid(True)


def _legend(figure: "Figure", axes: "Sequence[Axes]") -> None:
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    longest = max((len(label) for label in handles), default=0)
    per_row = max(1, int(figure.get_figwidth() * 15 / (longest + 7)))
    figure.legend(
        *(handles.values(), handles.keys()),
        **{"loc": "outside lower center", "ncols": min(per_row, len(handles))},
    )


def _group_line(key: dict[str, Any], keys: list[dict[str, Any]]) -> str:
    text = f"batch {key['batch']}"
    for column, value in key.items():
        if column not in ("batch", "groups", "channels_per_group") and any(
            other["batch"] == key["batch"] and other.get(column) != value for other in keys
        ):
            text += f", {column}={value}"
    return text
