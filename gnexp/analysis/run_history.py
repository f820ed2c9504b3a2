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
    if not any(len(cell.record.metrics["epoch"].unique()) > 1 for cell in known):
        return {}
    return {id(cell): _curves(cell) for cell in known}


def _curves(cell: Cell) -> "dict[str, pd.DataFrame]":
    import pandas as pd

    metrics = cell.record.metrics
    metrics = metrics[metrics["seed"].isin([row["seed"] for row in cell.of("complete")])]
    if metrics.empty:
        return {}
    tables = {c: metrics.pivot(index="examples_seen", columns="seed", values=c) for c in CURVES}
    return {
        name: pd.DataFrame(
            {"mean": by_seed.mean(axis=1), "low": by_seed.min(axis=1), "high": by_seed.max(axis=1)}
        )
        for name, by_seed in tables.items()
    }


def seconds_per_1000(cells: Iterable[Cell]) -> dict[int, statistics.Interval]:
    """Return {id(cell): seconds of training per 1,000 images}, mean over the complete seeds."""
    return {
        id(cell): statistics.t_interval(
            [
                1000 * row["train_time_s"] / row["examples_seen"]
                for row in cell.of("complete")
                if row.get("train_time_s") and row.get("examples_seen")
            ]
        )
        for cell in cells
    }
