"""Training over time: curves against images seen, and seconds per image."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell

if TYPE_CHECKING:
    import pandas as pd

CURVES = ("train_loss", "test_acc")  # nats; 0..1


def training_curves(cells: Iterable[Cell]) -> "dict[int, dict[str, pd.DataFrame]]":
    """Return {id(cell): {name: curve}} of the cells with metrics, for CURVES.

    A curve has columns mean, low and high, over the complete seeds, by images seen. Empty where no
    seed has two epochs; {} for a cell without a complete seed.
    """
    known = [cell for cell in cells if not cell.record.metrics.empty]
    if not any(cell.record.metrics["epoch"].nunique() > 1 for cell in known):
        return {}
    found: dict[int, dict[str, pd.DataFrame]] = {}
    for cell in known:
        metrics = cell.record.metrics
        metrics = metrics[metrics["seed"].isin([row["seed"] for row in cell.of("complete")])]
        by_images = metrics.groupby("examples_seen")
        curves = {name: by_images[name].agg(mean="mean", low="min", high="max") for name in CURVES}
        found[id(cell)] = {} if metrics.empty else curves
    return found


def seconds_per_1000(cells: Iterable[Cell]) -> dict[int, statistics.Interval]:
    """Return {id(cell): seconds of training per 1,000 images}, mean over the complete seeds."""
    found = {}
    for cell in cells:
        both = statistics.shared(cell.numbers("train_time_s"), cell.numbers("examples_seen"))
        rates = [1000 * seconds / images for seconds, images in both.values() if seconds and images]
        found[id(cell)] = statistics.t_interval(rates)
    return found
