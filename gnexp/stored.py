"""Stored runs, opened to be measured: their images, and their models at their last weights."""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from gnexp import build, networks, own_code, starting
from gnexp.checkpoints import stored_weights
from gnexp.config import restore, run_name
from gnexp.study.store import Run
from gnexp.workers import Emit, WorkerDied, run_here, run_in_processes


class Task(Protocol):
    """What is to be measured of one stored run, on which device."""

    @property
    def folder(self) -> Path: ...

    @property
    def device(self) -> str: ...


class StoredRun:
    """A finished run with what it was trained on.

    Raises ValueError when that is gone or is no longer the same.
    """

    def __init__(self, run: Run, device: str) -> None:
        result = run.result()
        if "config" not in result:
            raise ValueError("it is not finished: no seed of it has a result")
        self.run, self.config = run, restore(result["config"])
        self.numbers: dict[int, dict[str, Any]] = {int(s): v for s, v in result["seeds"].items()}
        self.device = build.pick_device(device)
        self.images = build.device_images(self.config.data, self.device)
        checksum = build.images_of(self.config.data).checksum
        if run_name(self.config, checksum, own_code.code_checksum(self.config)) != run.name:
            raise ValueError(
                "its images, or the code of its norm, are no longer those it was trained with"
            )

    @property
    def seeds(self) -> list[int]:
        """The seeds that completed."""
        return [seed for seed, v in sorted(self.numbers.items()) if v["status"] == "complete"]

    @cached_property
    def _weights(self) -> dict[int, dict[str, torch.Tensor]]:
        return stored_weights(self.run)

    def model(self, seed: int, trained: bool = True) -> nn.Module:
        """Return the model of a seed, as it ended or as it was initialized, on the device.

        Raises ValueError when its weights are gone.
        """
        if not trained:
            return starting.starting_model(self.config, self.images, seed)[0]
        model = networks.seeded_model(self.config, len(self.images.classes), seed)
        if seed not in self._weights:
            raise ValueError(f"there is no checkpoint of seed {seed}, so its weights are gone")
        model.load_state_dict(self._weights[seed])
        return model.to(self.device)


def measure_all(
    tasks: Sequence[Task],
    work: Callable[[Any, Emit], str | None],
    workers: int | None,
    device: str,
) -> list[tuple[str, str]]:
    """Measure runs, several at once where that helps; return (run, reason) for what failed."""
    count = min(len(tasks), build.worker_count(workers, device))
    answers = run_in_processes(tasks, work, say, count) if count > 1 else run_here(tasks, work, say)
    failed = []
    for index, answer in answers:
        why = answer.why if isinstance(answer, WorkerDied) else answer
        if why:
            failed.append((tasks[index].folder.name, why))
    return failed


def say(event: dict[str, Any]) -> None:
    """Print what a measurement tells."""
    print(event["text"], flush=True)


def alone_with(task: Task, work: Callable[[Run], str | None]) -> str | None:
    """Measure one stored run while no other process does; return what went wrong, if anything."""
    run = Run(task.folder)
    try:
        with run.lock() as alone:
            return work(run) if alone else "another process is at work on it"
    except (ValueError, OSError) as error:  # its images, a norm or a file of the store is gone
        return str(error)
    except Exception as error:  # of one run's model or memory: the other runs are measured
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
