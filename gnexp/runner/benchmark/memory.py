"""The memory of training: bytes per batch size, and the largest batch that fits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from gnexp.config.resolve import cost_run, resolve
from gnexp.config.rules import broken_rules
from gnexp.config.schema import CostConfig, TrainConfig
from gnexp.config.validation import problems
from gnexp.data.sources import DataSummary
from gnexp.measure.memory import largest_batch, training_bytes
from gnexp.norms.registry import NORMS
from gnexp.runner.build.model import groups_per_layer, norm_sites, seeded_model

MOST = 4096  # beyond which a largest batch is not looked for
CLASSES = tuple("0123456789")
TRAIN_SIZE = 50_000  # of which no byte depends


def problems_of(cost: CostConfig) -> list[str]:
    """Return what is wrong with the keys of the cost, their model and norms included."""
    if found := broken_rules(cost, "cost."):
        return found
    for norm in cost.norms:
        if norm not in NORMS:
            found.append(f"cost.norms: {norm} is unknown; valid: {', '.join(NORMS)}")
            continue
        run = cost_run(cost, norm)
        try:
            found += problems(run)
            norm_sites(resolve(run), _images(cost))
            groups_per_layer(resolve(run), _images(cost))
        except ValueError as error:
            found.append(f"cost: {error}")
    return list(dict.fromkeys(found))


def memory_row(cost: CostConfig, run: TrainConfig, device: torch.device) -> dict[str, Any]:
    """Return the bytes of one update per batch size, and the largest batch that fits."""

    def model() -> nn.Module:
        return seeded_model(run, _images(cost), seed=0).to(device)

    shape, memory_bytes = _images(cost).shape, round(cost.memory_gb * 2**30)
    return {
        **{"model": run.model.name, "width": run.model.width, "size": cost.size},
        **{"norm": run.norm["name"], "groups": run.groups, "memory_bytes": memory_bytes},
        "largest_batch": largest_batch(model, shape, memory_bytes, MOST),
        "counted": "measured" if device.type == "cuda" else "counted",
        **{batch_column(batch): _bytes(model, shape, batch) for batch in cost.batches},
    }


def _images(cost: CostConfig) -> DataSummary:
    return DataSummary("", "", CLASSES, (3, cost.size, cost.size), TRAIN_SIZE, TRAIN_SIZE)


def _bytes(model: Callable[[], nn.Module], shape: tuple[int, ...], batch: int) -> int | None:
    try:
        return training_bytes(model(), shape, batch)
    except torch.OutOfMemoryError:
        return None


def batch_column(batch: int) -> str:
    """Return the name of the column of a batch size's bytes."""
    return f"batch_{batch}_bytes"
