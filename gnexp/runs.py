"""A run as a command plans it: its config and its folder's name."""

from dataclasses import dataclass
from pathlib import Path

from gnexp.config import TrainConfig
from gnexp.study.store import Run


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One config with all the seeds that are asked for."""

    config: TrainConfig
    name: str

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out) / self.config.study / self.name


def missing_seeds(run: PlannedRun) -> list[int]:
    """Return the seeds of a run that its result does not list yet."""
    finished = Run(run.folder).finished_seeds() if run.folder.is_dir() else []
    return [seed for seed in run.config.seeds if seed not in finished]
