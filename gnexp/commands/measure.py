"""`gnexp measure`: instruments on stored runs, without training again."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnexp import build
from gnexp.commands.report import make_report, stored_study
from gnexp.config import (
    MeasureConfig,
    Mistake,
    TrainConfig,
    gradient_problems,
    restore,
    study_problems,
)
from gnexp.data.loader import DeviceImages, normalize
from gnexp.execute import checkpoint_weights, gradients_at
from gnexp.measure.per_example import find_mixing_layer, per_example_covariance
from gnexp.norms.probes import values_per_statistic
from gnexp.study.store import Run
from gnexp.workers import Emit, WorkerDied, run_here, run_in_processes

INSTRUMENTS = ("gradients", "covariance")
IMAGES_PER_POINT = 4096  # draws x batch: after training the tails of gradients are heavy
LEAST_DRAWS = 64


@dataclass(frozen=True)
class SharedTask:
    """What to measure at the weights of one stored run."""

    folder: Path
    batches: tuple[int, ...]
    draws: int | None
    covariance: bool
    device: str


def measure(config: MeasureConfig) -> int:
    """Measure stored runs of a study at shared weights, refresh its report; the exit code."""
    found = study_problems(config) + gradient_problems(config.gradients, config.gradients_at)
    what = config.what if isinstance(config.what, list) else [config.what]
    for name in what:
        if name not in INSTRUMENTS:
            found.append(f"what={name} is not one of {', '.join(INSTRUMENTS)}")
    try:
        build.pick_device(config.device)
    except ValueError as error:
        found.append(str(error))
    if found:
        raise Mistake("\n".join(found))
    folders = [record.folder for record in stored_study(config.out, config.study).runs]
    batches = config.gradients_at if "gradients" in what else []
    measure_shared(
        folders, batches, config.gradients, "covariance" in what, config.device, config.workers
    )
    print(make_report(Path(config.out), config.study, config.reference_batch))
    return 0


def measure_shared(
    folders: list[Path],
    batches: list[int],
    draws: int | None,
    covariance: bool,
    device: str,
    workers: int | None = None,
) -> None:
    """Measure every batch size at the same weights: the first and last of the largest-batch runs.

    At equal weights only the batch differs, so noise ~ 1/B is a law for norms that do not mix
    examples. Raises Mistake for a run whose checkpoint is gone.
    """
    tasks = [
        SharedTask(folder, tuple(batches), draws, covariance, device)
        for folder in largest_batch_runs(folders)
    ]
    count = min(len(tasks), workers or _default_workers(device))
    runner: Callable = run_in_processes if count > 1 else run_here
    extra = (count,) if count > 1 else ()
    print(f"measuring gradients at shared weights: {len(tasks)} runs", flush=True)
    for index, answer in runner(tasks, measure_run, _say, *extra):
        if isinstance(answer, WorkerDied | str):
            why = answer.why if isinstance(answer, WorkerDied) else answer
            raise Mistake(f"{tasks[index].folder}: {why}")


def _say(event: dict[str, Any]) -> None:
    print(event["text"], flush=True)


def _default_workers(device: str) -> int:
    return 1 if build.pick_device(device).type == "cuda" else os.cpu_count() or 1


def largest_batch_runs(folders: list[Path]) -> list[Path]:
    """Return, of runs that differ only in their batch sizes, the one with the largest batch."""
    families: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        stored = Run(folder).result()
        if not stored.get("config"):
            continue  # not finished: it has no last weights
        config = stored["config"]
        ignored = ("batch", "update_batch", "seeds")
        family = str(sorted((k, str(v)) for k, v in config.items() if k not in ignored))
        best = families.get(family)
        if best is None or config["batch"] > best[0]:
            families[family] = config["batch"], folder
    return [folder for _, folder in families.values()]


def measure_run(task: SharedTask, emit: Emit) -> str | None:
    """Measure one stored run, every complete seed; return what went wrong, None if nothing did."""
    run = Run(task.folder)
    result = run.result()
    config = restore(result["config"])
    device = build.pick_device(task.device)
    images = build.device_images(config.data, device)
    if build.images_of(config.data).checksum != result["data"]["checksum"]:
        return "its images are no longer those it was trained on"
    weights = checkpoint_weights(run)
    seeds = [int(s) for s, v in result["seeds"].items() if v["status"] == "complete"]
    for seed in seeds:
        if seed not in weights:
            return f"it has no checkpoint of seed {seed}; train it again to measure it"
        for epoch in (0, config.epochs):
            model = build.seeded_model(config, len(images.classes), seed)
            if epoch:
                model.load_state_dict(weights[seed])
            _measure_point(run, task, config, model.to(device), images, seed, epoch)
            emit({"text": f"{run.name}, seed {seed}, epoch {epoch}: measured"})
    return None


def _measure_point(
    run: Run,
    task: SharedTask,
    config: TrainConfig,
    model: nn.Module,
    images: DeviceImages,
    seed: int,
    epoch: int,
) -> None:
    augment = config.data.augment if config.gradients_augment else "none"
    shape = tuple(images.x_train.shape[1:])
    batches = tuple(
        batch
        for batch in task.batches
        if all(size.values > 1 for size in values_per_statistic(model, shape, batch))
    )

    def draws_of(batch: int) -> int:
        return task.draws or max(LEAST_DRAWS, IMAGES_PER_POINT // batch)

    run.add_gradients(gradients_at(model, images, batches, draws_of, seed, epoch, augment))
    x_NCHW = normalize(images.x_train, images.mean, images.std, torch.float32)
    if task.covariance and find_mixing_layer(model, x_NCHW[:8]) is None:
        rows = per_example_covariance(model, x_NCHW, images.y_train)
        run.add_covariance([{"seed": seed, "epoch": epoch, **row} for row in rows])
