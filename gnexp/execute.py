"""One run from its config to its folder: training, measuring and storing joined.

A seed goes through: build (or continue from the checkpoint), gradients at the start, then epoch
after epoch metrics, gradients where due, checkpoint; at the end logits, then the result.
"""

import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnexp import build
from gnexp.checkpoints import continue_from, load_states, state_of, to_bytes
from gnexp.config import TrainConfig, as_dict
from gnexp.data.loader import DeviceImages, draw_batches
from gnexp.measure.gradients import choose_draws, measure_gradients
from gnexp.provenance import provenance, version
from gnexp.study.files import write_whole
from gnexp.study.store import Run
from gnexp.training.evaluate import evaluate
from gnexp.training.loop import Epoch, train_epochs
from gnexp.training.step import EagerStep, matrix_precision, peak_rate

Emit = Callable[[dict[str, Any]], None]
TICK_S = 0.5  # how often a seed reports its progress within an epoch


@dataclass(frozen=True)
class Task:
    """What a worker process needs to know of a run."""

    config: TrainConfig
    name: str
    command: str

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.config.out) / self.config.study / self.name


def missing_seeds(task: Task) -> list[int]:
    """Return the seeds of a run that its result does not list yet."""
    finished = Run(task.folder).finished_seeds() if task.folder.is_dir() else []
    return [seed for seed in task.config.seeds if seed not in finished]


def run_task(task: Task, emit: Emit) -> dict[int, dict[str, str]] | str:
    """Train the missing seeds of a run; return the status of every seed, or why there are none.

    An exception in one seed is recorded with its reason and a traceback in the folder, and the
    next seed goes on. Two processes never train the same run: the second one leaves it alone.
    """
    try:
        return _run_alone(task, emit)
    except (ValueError, OSError) as error:  # a corrupt file of the store, a full disk
        return str(error)


def _run_alone(task: Task, emit: Emit) -> dict[int, dict[str, str]] | str:
    run = Run.create(task.folder)
    with run.lock() as alone:
        if not alone:
            return "another process is at work on this run"
        device = build.pick_device(task.config.device)
        known = run.config().get("seeds") or []
        seeds = sorted({*known, *task.config.seeds})
        run.write_config({**as_dict(task.config), "seeds": seeds})
        run.write_provenance(_with_earlier(provenance(device, task.command), run.provenance()))
        for seed in missing_seeds(task):
            _guarded_seed(run, task, seed, device, emit)
        return {s: v for s, v in run.statuses().items() if s in task.config.seeds}


def _with_earlier(now: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return this call's provenance with those of the calls that trained other seeds of the run."""
    earlier = before.pop("earlier", [])
    return {**now, "earlier": [*earlier, before]} if before else now


def mark_died(task: Task, why: str) -> None:
    """Record that the process of a run ended while it trained, unless another took it over."""
    run = Run(task.folder)
    with run.lock() as alone:
        for seed, status in run.statuses().items() if alone else ():
            if status["status"] == "running":
                run.set_status(seed, "failed", why)


def _guarded_seed(run: Run, task: Task, seed: int, device: torch.device, emit: Emit) -> None:
    run.set_status(seed, "running")
    try:
        status, why = train_seed(run, task.config, seed, device, emit)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".splitlines()[0]
        status = "infeasible" if _out_of_memory(error) else "failed"
        if status == "infeasible":
            run.add_result(seed, {"status": status}, **_head(task.config, run))
        else:
            write_whole(run.folder / f"traceback-{seed}.txt", traceback.format_exc())
    run.set_status(seed, status, why)


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: on CUDA, in Python, or in PyTorch's allocator on a CPU."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: " in str(error)


def train_seed(
    run: Run, config: TrainConfig, seed: int, device: torch.device, emit: Emit
) -> tuple[str, str]:
    """Train one seed to its end and store everything; return its status and the reason."""
    images = build.device_images(config.data, device)
    model = build.seeded_model(config, len(images.classes), seed).to(device)
    step = build.step_of(config, model)
    recipe = build.recipe(config)
    stored = load_states(run)
    first = continue_from(run, step, stored, seed)
    points = {0, max(1, config.epochs // 2), config.epochs}
    if first == 1:
        _measure(run, config, model, images, seed, 0)
    last: Epoch | None = None
    tick = _ticker(emit, run.name, seed, step)
    for last in train_epochs(step, images, recipe, seed, first, tick):
        run.add_metrics([_row(last, seed)])
        emit({"kind": "epoch", "run": run.name, "seed": seed, **_row(last, seed)})
        if last.diverged:
            break
        if last.epoch in points:
            _measure(run, config, model, images, seed, last.epoch)
        stored[seed] = state_of(step, last.epoch, keep_optimizer=last.epoch < config.epochs)
        run.write_checkpoint(to_bytes(stored))
    diverged = last is not None and last.diverged
    if last is None:  # killed between the last checkpoint and the result
        with matrix_precision(config.precision):
            logits = evaluate(model, images, precision=config.precision).logits_NK
    else:
        logits = last.logits_NK
    run.add_logits(seed, logits.cpu().numpy())
    numbers = _numbers(run, config, seed, "diverged" if diverged else "complete", device)
    run.add_result(seed, numbers, **_head(config, run, model))
    why = f"the loss was not finite in epoch {last.epoch}" if diverged else ""
    return ("diverged" if diverged else "complete"), why


def _ticker(emit: Emit, name: str, seed: int, step: EagerStep) -> Callable[[int], None]:
    """Return a tick that reports the images since the last report, at most every TICK_S."""
    since = {"examples": 0, "time": time.monotonic()}

    def tick(examples: int) -> None:
        since["examples"] += examples
        now = time.monotonic()
        if now - since["time"] >= TICK_S:
            emit({"kind": "tick", "run": name, "seed": seed, "examples": since["examples"]})
            since.update(examples=0, time=now)

    return tick


def _measure(
    run: Run, config: TrainConfig, model: nn.Module, images: DeviceImages, seed: int, epoch: int
) -> None:
    """Measure the gradient variance at this point at the run's own batch size, and store it."""
    draws = config.gradients
    if draws is None:
        used = build.recipe(config).examples_per_epoch(len(images.x_train))
        draws = choose_draws(config.epochs * used // config.batch)
    if draws:
        at = (config.batch,)
        augment = config.data.augment if config.gradients_augment else "none"
        rows = gradients_at(
            model, images, at, lambda batch: draws, seed, epoch, augment, config.precision
        )
        run.add_gradients(rows)


def gradients_at(
    model: nn.Module,
    images: DeviceImages,
    batches: tuple[int, ...],
    draws_of: Callable[[int], int],
    seed: int,
    epoch: int,
    augment: str,
    precision: str,
) -> list[dict[str, Any]]:
    """Return rows of gradients.csv: the gradient noise at the model's weights per batch size.

    The precision is that of training, except that bf16 runs are measured in float32: rounding
    would count as noise.
    """
    rows = []
    for batch in batches:
        k = draws_of(batch)
        purpose = f"gradients-{epoch}-{batch}"
        drawn = draw_batches(images, batch, k, seed, purpose, augment)
        with matrix_precision(precision):
            measured = measure_gradients(model, drawn, k, batch)
        for row in measured:
            rows.append({"seed": seed, "epoch": epoch, "at_batch": batch, **row})
    return rows


def _row(epoch: Epoch, seed: int) -> dict[str, Any]:
    keys = ("epoch", "examples_seen", "lr", "train_loss", "train_acc")
    keys += ("test_loss", "test_acc", "time_s")
    return {"seed": seed, **{key: getattr(epoch, key) for key in keys}}


def _numbers(
    run: Run, config: TrainConfig, seed: int, status: str, device: torch.device
) -> dict[str, Any]:
    """Return the final numbers of a seed; the last epoch counts, none is selected."""
    rows = [row for row in run.metrics() if row["seed"] == seed]
    last = rows[-1]
    return {
        "status": status,
        "test_acc": last["test_acc"],
        "test_acc_median5": statistics.median(row["test_acc"] for row in rows[-5:]),
        "test_loss": last["test_loss"],
        "train_loss": last["train_loss"],
        "train_acc": last["train_acc"],
        "epochs": last["epoch"],
        "examples_seen": last["examples_seen"],
        "train_time_s": sum(row["time_s"] for row in rows),
        "decay_per_epoch": _decay_per_epoch(config, last["examples_seen"] / last["epoch"]),
        "device": device.type,
        "execution": "eager",
        "stack": 1,
    }


def _decay_per_epoch(config: TrainConfig, used: float) -> float:
    """Return peak rate x weight decay x updates: only the linear rule keeps it over batch sizes."""
    peak = peak_rate(config.lr, config.lr_rule, config.update_batch)
    return peak * config.weight_decay * used / config.update_batch


def _head(config: TrainConfig, run: Run, model: nn.Module | None = None) -> dict[str, Any]:
    """Return what result.json says of the run as a whole."""
    images = build.images_of(config.data)
    head: dict[str, Any] = {
        "run": run.name,
        "gnexp": version(),
        "config": run.config(),
        "groups_per_layer": build.groups_per_layer(config),
        "data": {
            "title": images.title,
            "checksum": images.checksum,
            "train": len(images.x_train),
            "test": len(images.x_test),
            "classes": list(images.classes),
        },
    }
    if model is not None:
        head["parameters"] = sum(p.numel() for p in model.parameters())
    return head
