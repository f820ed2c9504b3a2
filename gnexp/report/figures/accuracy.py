"""Figures of accuracy, training curves and cost."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.analysis.cells import Cell, Series, line_names
from gnexp.analysis.gradient_noise import KINDS
from gnexp.analysis.statistics import Interval
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.figures import panels, style
from gnexp.report.figures.gradient_noise import noise_vs_batch
from gnexp.report.figures.style import Maker, Style
from gnexp.store.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]

PREVIEW_CLASSES = 100  # more rows than that no picture viewer likes


def makers(analysis: StudyAnalysis) -> dict[str, Maker]:
    """Return {name: maker} of the figures of this file."""
    lines, gradients, exponents = analysis.series, analysis.gradient_variance, analysis.exponents
    return {
        "accuracy_vs_batch": lambda: accuracy_vs_batch(lines),
        "gradient_variance_vs_batch": lambda: noise_vs_batch(gradients, exponents, ("all",)),
        "gradient_variance_by_kind": lambda: noise_vs_batch(gradients, exponents, KINDS[:-1]),
        "curves": lambda: curves(lines, analysis.curves),
        "accuracy_vs_groups": lambda: accuracy_vs_groups(analysis.cells),
        "cost": lambda: cost(lines, analysis.seconds_per_1000),
    }


def accuracy_points(lines: Sequence[Series]) -> list[Row]:
    """Return the accuracy of each cell with its interval, by series and batch."""
    return [
        {"series": line.label, **cell.key, **cell.accuracy[0].columns("accuracy")}
        for line in lines
        for cell in line.cells
        if cell.accuracies
    ]


def accuracy_vs_batch(lines: Sequence[Series]) -> "Figure | None":
    """Mean test accuracy and 95 % interval against batch size, a line per series."""
    points, styles = accuracy_points(lines), style.series_styles(lines)
    return panels.against_batch(points, "accuracy", styles, "Test accuracy (%)", within=(0, 101))


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
    height = min(1.5 + 0.5 / len(batches), style.PAGE_HEIGHT_IN / len(batches))
    figure, axes = panels.panel_grid(2 * len(batches), 2, height, sharex=True, sharey="col")
    styles = style.series_styles(lines)
    for row, batch in enumerate(batches):
        for axis, name, scale, title in (
            (axes[2 * row], "train_loss", 1, "Train\nloss (nats)"),
            (axes[2 * row + 1], "test_acc", 100, "Test\naccuracy (%)"),
        ):
            for turn, (line, cell) in enumerate(runs):
                if cell.key["batch"] == batch and name in known[id(cell)]:
                    _curve(axis, known[id(cell)][name], scale, styles[line.label], turn)
            axis.set_title(f"batch {batch}", loc="right")
            axis.set_ylabel(title)
            axis.grid(True)
    for axis in axes[-2:]:
        axis.set_xlabel("Images seen (thousands)")
    panels.legend_below(figure)
    return figure


def _curve(axis: "Axes", curve: "pd.DataFrame", scale: float, style: Style, turn: int) -> None:
    x = curve.index.to_numpy() / 1000
    # A few markers, which another line's do not cover: for those who print in grey.
    step = max(1, len(x) // 6)
    look = {**style, "markersize": 3.2, "linewidth": 1.0, "markevery": (turn % step, step)}
    panels.band_line(axis, x, [scale * curve[name] for name in ("mean", "low", "high")], look)


def accuracy_vs_groups(cells: Sequence[Cell]) -> "Figure | None":
    """Accuracy against the number of groups, or channels per group, a line per batch size."""
    found = []
    for column, title in (("groups", "Groups"), ("channels_per_group", "Channels per group")):
        chosen = [c for c in cells if c.key.get(column) is not None and c.accuracies]
        if len({c.key[column] for c in chosen}) > 1:
            found.append((column, title, chosen))
    if not found:
        return None
    shown = [cell for _, _, chosen in found for cell in chosen]
    labels = line_names([cell.key for cell in shown], ("groups", "channels_per_group"))
    names = {id(cell): label for cell, label in zip(shown, labels)}
    styles = style.sequence_styles(list(dict.fromkeys(labels)))
    figure, axes = panels.panel_grid(len(found), 2, 2.3, sharey=True)
    for axis, (column, title, chosen) in zip(axes, found):
        points = [
            {"series": names[id(c)], **c.key, **c.accuracy[0].columns("accuracy")} for c in chosen
        ]
        panels.interval_lines(axis, points, column, "accuracy", styles)
        panels.size_axis(axis, [c.key[column] for c in chosen], title)
    axes[0].set_ylabel("Test accuracy (%)")
    panels.legend_below(figure)
    return figure


def cost(lines: Sequence[Series], known: Mapping[int, Interval]) -> "Figure | None":
    """Training time per 1,000 images and seed, as recorded, against batch size.

    known: the seconds by id(cell).
    """
    points = [
        {"series": line.label, **cell.key, **known[id(cell)].columns("seconds")}
        for line in lines
        for cell in line.cells
    ]
    title = "Seconds per 1,000 images"
    figure = panels.against_batch(points, "seconds", style.series_styles(lines), title, scale=1)
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def plot_preview(
    path: Path, x_NCHW: "np.ndarray", y_N: "np.ndarray", classes: Sequence[str], title: str
) -> None:
    """Write a contact sheet as PNG: a row per class (the first 100), its first ten images.

    x_NCHW: uint8 (N, 3, H, W); y_N: labels that index `classes`.
    """
    import numpy as np

    shown = list(classes)[:PREVIEW_CLASSES]
    with style.drawing():
        figure, (axis,) = panels.panel_grid(1, 1, 0.35 + 0.36 * len(shown))
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
        write_whole(path, style.image_bytes(figure, "png"))
