"""What training costs in memory: bytes per batch size, and the largest batch that fits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnexp.analysis.cells import norm_label
from gnexp.analysis.tables.table import Column, Table, to_csv, to_markdown
from gnexp.config.schema import CostConfig, TrainConfig, cost_run, resolve
from gnexp.config.validation import cost_problems, problems
from gnexp.measure.memory import largest_batch, training_bytes
from gnexp.norms.registry import NORMS
from gnexp.runner.build import data
from gnexp.runner.build import model as networks
from gnexp.store.files import write_whole

COLUMNS = ("model", "width", "size", "norm", "groups", "memory_bytes", "largest_batch", "counted")
MOST = 4096  # beyond which a largest batch is not looked for
CLASSES = 10


def problems_of(cost: CostConfig, device: str) -> list[str]:
    """Return what is wrong with the keys of the cost, their model and norms included."""
    if found := cost_problems(cost):
        return found
    try:
        data.pick_device(device)
    except ValueError as error:
        return [str(error)]
    for norm in cost.norms:
        if norm not in NORMS:
            found.append(f"cost.norms: {norm} is unknown; valid: {', '.join(NORMS)}")
            continue
        run = cost_run(cost, norm)
        try:
            found += problems(run)
            networks.norm_sites(resolve(run))
            networks.groups_per_layer(resolve(run))
        except ValueError as error:
            found.append(f"cost: {error}")
    return list(dict.fromkeys(found))


def measure_cost(cost: CostConfig, device: str, folder: Path) -> str:
    """Count (on CUDA: measure) and write what every norm costs; return what to print."""
    place = data.pick_device(device)
    rows = [_row(cost, resolve(cost_run(cost, norm)), place) for norm in cost.norms]
    table = _table(cost, rows, place)
    write_whole(folder / "cost.csv", to_csv(table))
    write_whole(folder / "cost.md", to_markdown(table))
    lines = ["  ".join(f"{text:>18}" for text in texts) for texts in table.texts()]
    head = "  ".join(f"{column.header:>18}" for column in table.shown)
    return "\n".join([table.title, head, *lines, f"cost: {folder / 'cost.md'}"])


def _row(cost: CostConfig, run: TrainConfig, device: torch.device) -> dict[str, Any]:
    def model() -> nn.Module:
        return networks.seeded_model(run, CLASSES, seed=0).to(device)

    shape = (3, cost.size, cost.size)
    return {
        **{"model": run.model.name, "width": run.model.width, "size": cost.size},
        **{"norm": run.norm["name"], "groups": run.groups},
        "memory_bytes": round(cost.memory_gb * 2**30),
        "largest_batch": largest_batch(model, shape, round(cost.memory_gb * 2**30), MOST),
        "counted": "measured" if device.type == "cuda" else "counted",
        **{_column(batch): _bytes(model, shape, batch) for batch in cost.batches},
    }


def _bytes(model: Callable[[], nn.Module], shape: tuple[int, ...], batch: int) -> int | None:
    try:
        return training_bytes(model(), shape, batch)
    except torch.OutOfMemoryError:
        return None


def _column(batch: int) -> str:
    return f"batch_{batch}_bytes"


def _table(cost: CostConfig, rows: list[dict[str, Any]], device: torch.device) -> Table:
    def megabytes(batch: int) -> Callable[[dict[str, Any]], str]:
        def text(row: dict[str, Any]) -> str:
            value = row[_column(batch)]
            return "does not fit" if value is None else f"{value / 2**20:,.1f}"

        return text

    shown = [
        Column("norm", norm_label, False),
        *(Column(f"batch {batch} (MiB)", megabytes(batch)) for batch in cost.batches),
        Column(f"fits {cost.memory_gb:g} GiB", lambda row: _largest(row["largest_batch"])),
    ]
    how = "the peak of PyTorch's allocator" if device.type == "cuda" else "counted tensor by tensor"
    caption = (
        f"Memory of one training update in float32, {how}: weights, momentum, gradients and what"
        " the backward pass needs; without what an allocator rounds up."
    )
    title = f"{cost.model}, images of {cost.size}x{cost.size}: memory of one training update"
    columns = [*COLUMNS, *(_column(batch) for batch in cost.batches)]
    return Table("cost", title, caption, columns, shown, rows)


def _largest(batch: int) -> str:
    if batch == MOST:
        return f"{MOST} or more"
    return str(batch) if batch else "not even 1"
