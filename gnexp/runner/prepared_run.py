"""A run as it is prepared once, before anything is trained, and how far its seeds are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gnexp.config.schema import TrainConfig
from gnexp.data.sources import DataSummary
from gnexp.store.run import Run


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """One config with all the seeds that are asked for, and everything decided before it trains.

    `plan` makes it, and all that follows is handed it, also in a worker process: it holds no array.
    network: what result.json says of the network. code: digests of the user's own, by "norm" and
    "model". jobs: the numbers of the typed configs that the run comes from. start: a sentence on
    what it takes of `init_from`, "" without. undefined: why the norm is not defined at the batch
    and image size, "" where it is.
    """

    config: TrainConfig
    name: str
    device: torch.device
    data: DataSummary
    network: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    code: dict[str, str] = field(default_factory=dict)
    jobs: tuple[int, ...] = ()
    start: str = ""
    undefined: str = ""

    @property
    def folder(self) -> Path:
        return Path(self.config.out) / self.config.study / self.name

    @property
    def stored(self) -> Run:
        return Run(self.folder)


@dataclass
class SeedProgress:
    """The progress of the seeds that a config names.

    ended: {seed: status} of those that have a result (complete, diverged, infeasible) or failed by
    themselves; todo: the others, be they new, interrupted, or stopped by what was not their fault.
    """

    ended: dict[int, str] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)
    todo: list[int] = field(default_factory=list)

    @property
    def failed(self) -> dict[int, str]:
        return {seed: self.why[seed] for seed, status in self.ended.items() if status == "failed"}


def seed_progress(run: PreparedRun) -> SeedProgress:
    """Return how far a run is, from what its folder holds."""
    found = SeedProgress()
    results: dict[str, Any] = run.stored.result().get("seeds", {})
    statuses = run.stored.statuses()
    for seed in run.config.seeds:
        status = statuses.get(seed, {})
        if str(seed) in results:
            found.ended[seed] = results[str(seed)]["status"]
            found.why[seed] = status.get("why", "")
        elif status.get("status") == "failed" and not status.get("again"):
            found.ended[seed], found.why[seed] = "failed", status.get("why", "")
        else:
            found.todo.append(seed)
    return found
