"""A run as a command plans it: its config, its folder's name, and how far its seeds are."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gnexp.config.schema import TrainConfig
from gnexp.store.run import Run


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One config with all the seeds that are asked for.

    undefined: why its norm is not defined at its batch and image size, "" where it is.
    """

    config: TrainConfig
    name: str
    jobs: tuple[int, ...] = ()  # the numbers of the configs, of a call's, that it comes from
    undefined: str = ""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out) / self.config.study / self.name


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
        """The reasons of the seeds that failed."""
        return {seed: self.why[seed] for seed, status in self.ended.items() if status == "failed"}


def seed_progress(run: PlannedRun) -> SeedProgress:
    """Return how far a run is, from what its folder holds."""
    found = SeedProgress()
    stored = Run(run.folder)
    results: dict[str, Any] = stored.result().get("seeds", {})
    statuses = stored.statuses()
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
