"""Figures of accuracy, training curves and cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.gradient_noise import KINDS
from gnexp.analysis.statistics import Interval
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.figures import style as drawing
from gnexp.report.figures.gradient_noise import noise_vs_batch
from gnexp.report.figures.line_labels import name_lines
from gnexp.report.figures.style import COLUMN_IN, PAGE_HEIGHT_IN, PAGE_IN, Maker
from gnexp.store.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

CAPTIONS = {
    "accuracy_vs_batch": "Test accuracy of the last epoch against batch size: mean of the seeds "
    "that did not diverge, with its 95 % interval (one seed: over test images). Points are moved "
    "sideways a little so that intervals stay visible.",
    "accuracy_vs_groups": "Test accuracy against the number of groups (or channels per group), "
    "with 95 % intervals.",
    "gradient_variance_vs_batch": "Gradient noise against batch size on logarithmic axes, mean "
    "over seeds with 95 % interval, and fitted exponents; grey: slope -1. An open BN marker at "
    "batch 1 is instance norm and not part of the fit.",
    "gradient_variance_by_kind": "The same for each kind of parameter.",
    "curves": "Train loss and test accuracy against images seen: mean over the "
    "complete seeds, and their range.",
    "cost": "Training time as recorded, per seed and 1,000 images, with 95 % intervals over seeds. "
    "Seeds trained in one step share its time; see execution, seeds per step and device among the "
    "runs.",
}
PREVIEW_CLASSES = 100  # more rows than that no picture viewer likes


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of CAPTIONS."""
    lines, gradients, exponents = analysis.series, analysis.gradient_variance, analysis.exponents
    return {
        "accuracy_vs_batch": lambda: accuracy_vs_batch(lines),
        "gradient_variance_vs_batch": lambda: noise_vs_batch(gradients, exponents, ("all",)),
        "gradient_variance_by_kind": lambda: noise_vs_batch(gradients, exponents, KINDS[:-1]),
        "curves": lambda: curves(lines, analysis.curves),
        "accuracy_vs_groups": lambda: accuracy_vs_groups(analysis.cells),
        "cost": lambda: cost(lines, analysis.seconds_per_1000),
    }


def accuracy_vs_batch(lines: Sequence[Series]) -> "Figure | None":
    """Mean test accuracy and 95 % interval against batch size, a line per series."""
    lines = [line for line in lines if any(cell.accuracies for cell in line.cells)]
    if not lines:
        return None
    figure, axes = drawing.axes_grid(1, 1, COLUMN_IN, 2.4)
    for index, line in enumerate(lines):
        points = [(c.key["batch"], c.accuracy[0]) for c in line.cells if c.accuracies]
        x = drawing.dodge([batch for batch, _ in points], index, len(lines))
        _intervals(axes[0], x, [i for _, i in points], 100, drawing.line_style(line, lines))
    drawing.size_axis(axes[0], [c.key["batch"] for line in lines for c in line.cells])
    axes[0].set_ylabel("Test accuracy (%)")
    drawing.percent_axis(axes[0])
    name_lines(figure, axes[0])
    return figure


def curves(
    lines: Sequence[Series], known: Mapping[int, Mapping[str, "pd.DataFrame"]]
) -> "Figure | None":
    """Train loss and test accuracy against images seen: a row per batch size, mean and range.

    known: as training_curves has them.
    """
    runs = [(line, cell) for line in lines for cell in line.cells if id(cell) in known]
    if not runs:
        return None
    batches = sorted({cell.key["batch"] for _, cell in runs})
    height = min(0.5 + 1.5 * len(batches), PAGE_HEIGHT_IN)
    figure, axes = drawing.axes_grid(len(batches), 2, PAGE_IN, height, sharex=True, sharey="col")
    for row, batch in enumerate(batches):
        for column, (name, scale) in enumerate((("train_loss", 1), ("test_acc", 100))):
            axis = axes[2 * row + column]
            for line, cell in runs:
                if cell.key["batch"] == batch and name in known[id(cell)]:
                    _curve(axis, known[id(cell)][name], scale, line, lines)
            axis.set_title(f"batch {batch}", loc="right")
            axis.set_ylabel("Train\nloss (nats)" if column == 0 else "Test\naccuracy (%)")
            axis.grid(True)
    for axis in axes[-2:]:
        axis.set_xlabel("Images seen (thousands)")
    drawing.legend_below(figure, axes)
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
    names = _names_without_groups([cell for _, _, chosen in panels for cell in chosen])
    order = list(dict.fromkeys(names.values()))
    width = COLUMN_IN if len(panels) == 1 else PAGE_IN
    figure, axes = drawing.axes_grid(1, len(panels), width, 2.3, sharey=True)
    for axis, (column, title, chosen) in zip(axes, panels):
        for index, name in enumerate(order):
            members = sorted(
                (c for c in chosen if names[id(c)] == name), key=lambda c: c.key[column]
            )
            x = drawing.dodge([c.key[column] for c in members], index, len(order))
            style = {**drawing.sequence_style(index), "label": name}
            if members:
                _intervals(axis, x, [c.accuracy[0] for c in members], 100, style)
        drawing.size_axis(axis, [c.key[column] for c in chosen], title)
    axes[0].set_ylabel("Test accuracy (%)")
    drawing.legend_below(figure, axes)
    return figure


def cost(lines: Sequence[Series], known: Mapping[int, Interval]) -> "Figure | None":
    """Training time per 1,000 images and seed, as recorded, against batch size.

    known: the seconds by id(cell).
    """
    times = [[(c.key["batch"], known[id(c)]) for c in line.cells] for line in lines]
    if not any(interval.n for points in times for _, interval in points):
        return None
    figure, axes = drawing.axes_grid(1, 1, COLUMN_IN, 2.4)
    for index, (line, points) in enumerate(zip(lines, times)):
        points = [(batch, interval) for batch, interval in points if interval.n]
        x = drawing.dodge([batch for batch, _ in points], index, len(lines))
        _intervals(axes[0], x, [i for _, i in points], 1, drawing.line_style(line, lines))
    drawing.size_axis(axes[0], [c.key["batch"] for line in lines for c in line.cells])
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("Seconds per 1,000 images")
    name_lines(figure, axes[0])
    return figure


def plot_preview(
    path: Path, x_NCHW: "np.ndarray", y_N: "np.ndarray", classes: Sequence[str], title: str
) -> None:
    """Write a contact sheet as PNG: a row per class (the first 100), its first ten images.

    x_NCHW: uint8 (N, 3, H, W); y_N: labels that index `classes`.
    """
    import numpy as np

    shown = list(classes)[:PREVIEW_CLASSES]
    with drawing.drawing():
        figure, _ = drawing.axes_grid(1, 1, 4.2, 0.35 + 0.36 * len(shown))
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
        write_whole(path, drawing.image_bytes(figure, "png"))


def _intervals(
    axis: "Axes",
    x: Sequence[float],
    intervals: Sequence[Interval],
    scale: float,
    style: dict[str, Any],
) -> None:
    """Draw means with error bars, or without where there is no interval."""
    mean = [scale * i.mean for i in intervals]
    down = [scale * (i.mean - i.lo) if i.lo == i.lo else 0.0 for i in intervals]
    up = [scale * (i.hi - i.mean) if i.hi == i.hi else 0.0 for i in intervals]
    axis.errorbar(x, mean, [down, up], elinewidth=0.9, **style)


def _curve(
    axis: "Axes", curve: "pd.DataFrame", scale: float, line: Series, lines: Sequence[Series]
) -> None:
    x = curve.index.to_numpy() / 1000
    # A few markers, which another line's do not cover: for those who print in grey.
    step, turn = max(1, len(x) // 6), [id(other) for other in lines].index(id(line))
    style = {**drawing.line_style(line, lines), "markersize": 3.2, "linewidth": 1.0}
    axis.plot(x, scale * curve["mean"], markevery=(turn % step, step), **style)
    low, high = scale * curve["low"], scale * curve["high"]
    axis.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)


def _names_without_groups(cells: Sequence[Cell]) -> dict[int, str]:
    """Name each cell (by id) by its batch size and whatever else varies, groups apart."""

    def line_key(cell: Cell) -> Row:
        key = {k: v for k, v in cell.key.items() if k not in ("groups", "channels_per_group")}
        same = key.pop("update_batch") == key["batch"]
        return {**key, "update": "= batch" if same else str(cell.key["update_batch"])}

    keys = [line_key(cell) for cell in cells]
    varies = [k for k in keys[0] if len({str(key.get(k)) for key in keys}) > 1]
    varies = [k for k in varies if k not in ("batch", "norm")]
    norms = {key["norm"] for key in keys}
    return {
        id(cell): (f"{key['norm']}, " if len(norms) > 1 else "")
        + f"batch {key['batch']}"
        + "".join(f", {k}{' ' if k == 'update' else '='}{key.get(k)}" for k in varies)
        for cell, key in zip(cells, keys)
    }
