"""The lines a person reads before and after training."""

import time
from collections import Counter
from typing import Any

import torch

from gnexp import build
from gnexp.config import TrainConfig, norm_label
from gnexp.data.loader import draw_batches
from gnexp.execute import Task, missing_seeds
from gnexp.progress import duration, image_cost
from gnexp.study.statistics import binomial_interval, t_interval
from gnexp.study.store import Run
from gnexp.training.evaluate import CHUNK

WARM_UP, MOST_TIMED = 3, 200  # updates of the estimate


def describe_norm(config: TrainConfig) -> str:
    """Return a resolved config's norm for people: "gn (32 groups)"."""
    label = norm_label(config.norm)
    if config.channels_per_group:
        return f"{label} ({config.channels_per_group} channels per group)"
    return f"{label} ({config.groups} groups)" if config.groups else label


def _device_text(config: TrainConfig, workers: int) -> str:
    device = build.pick_device(config.device)
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if workers > 1:
        return f"cpu, {workers} processes of one thread"
    return f"cpu, {torch.get_num_threads()} threads"


def _data_text(config: TrainConfig) -> str:
    images = build.images_of(config.data)
    return (
        f"{images.title}: {len(images.x_train):,} training and {len(images.x_test):,} test images"
    )


def single_line(task: Task) -> str:
    """Return the line that says what will run and about how long it takes."""
    config = task.config
    images = build.images_of(config.data)
    parameters = sum(p.numel() for p in build.seeded_model(config, 2, 0).parameters())
    used = build.recipe(config).examples_per_epoch(len(images.x_train))
    seeds = missing_seeds(task)
    updates = config.epochs * used // config.update_batch
    accumulated = (
        "" if config.update_batch == config.batch else f" in updates of {config.update_batch}"
    )
    many = f" x {len(seeds)} seeds" if len(seeds) > 1 else ""
    return (
        f"{_device_text(config, 1)} | {_data_text(config)} | {config.model.name} with"
        f" {describe_norm(config)}, {parameters:,} parameters | batch {config.batch}{accumulated},"
        f" {config.epochs} epoch{'s' * (config.epochs > 1)}, {updates:,} updates{many}"
        f"{_expected_text(config, len(seeds))}"
    )


def _expected_text(config: TrainConfig, seeds: int) -> str:
    try:
        return f" | about {duration(_expected_time(config) * seeds)}"
    except Exception:  # training meets the same error, and records it
        return ""


def _expected_time(config: TrainConfig, limit_s: float = 1.0) -> float:
    """Return the seconds one seed will take, from about `limit_s` of updates of a throw-away copy.

    An evaluation is counted as a third of training its images in large batches.
    """
    device = build.pick_device(config.device)
    images = build.device_images(config.data, device)
    step = build.step_of(config, build.seeded_model(config, len(images.classes), 0).to(device))
    step.model.train()
    draws = WARM_UP + MOST_TIMED
    batches = draw_batches(images, config.update_batch, draws, 0, "timing", config.data.augment)
    start, timed = 0.0, 0
    for index, (x, y) in enumerate(batches):
        if index == WARM_UP:
            step.take_sums()
            start = time.perf_counter()
        step(x, y, 0.0)
        timed = index + 1 - WARM_UP
        if timed > 2 and time.perf_counter() - start > limit_s:
            break
    step.take_sums()
    per_image = (time.perf_counter() - start) / timed / config.update_batch
    tested = len(images.x_test) * image_cost(CHUNK) / image_cost(config.batch) / 3
    trained = build.recipe(config).examples_per_epoch(len(images.x_train))
    measuring = 1.0 if config.gradients == 0 else 1.1
    return per_image * config.epochs * (trained * measuring + tested)


def grid_line(tasks: list[Task], todo: list[Task], workers: int) -> str:
    """Return the line that says how much of a grid there is to do."""
    config = tasks[0].config
    counts: Counter[str] = Counter()
    for task in tasks:
        if task in todo:
            counts["to train"] += 1
        else:
            states = {v["status"] for v in _numbers(task).values()}
            counts[states.pop() if len(states) == 1 else "complete"] += 1
    kinds = ("complete", "diverged", "infeasible", "to train")
    parts = [f"{counts[k]} {k}" for k in kinds if counts[k]]
    where = f"{_device_text(config, workers)} | {_data_text(config)}"
    return f"{len(tasks)} run{'s' * (len(tasks) > 1)}: {', '.join(parts)} | {where}"


def _numbers(task: Task) -> dict[int, dict[str, Any]]:
    """Return the final numbers of the seeds asked for, as far as they have any."""
    seeds = Run(task.folder).result().get("seeds", {}).items()
    return {int(seed): v for seed, v in seeds if int(seed) in task.config.seeds}


def closing_line(task: Task) -> str:
    """Return the line that says what came out, with its interval, and where it lies."""
    config = task.config
    seeds = _numbers(task)
    good = [v["test_acc"] for v in seeds.values() if v["status"] == "complete"]
    lost = Counter(v["status"] for v in seeds.values() if v["status"] != "complete")
    lost.update({"unfinished": len(config.seeds) - len(seeds)})
    trouble = "".join(f", {n} of {len(config.seeds)} {k}" for k, n in lost.items() if n)
    head = f"{describe_norm(config)}, batch {config.batch}"
    if not good:
        return f"{head}: no seed completed{trouble} | {task.folder}"
    if len(good) == 1:
        tests = len(build.images_of(config.data).x_test)
        lo, hi = binomial_interval(good[0], tests)
        mean, basis = good[0], f"over {tests:,} test images, one seed"
    else:
        interval = t_interval(good)
        mean, lo, hi, basis = interval.mean, interval.lo, interval.hi, f"over {len(good)} seeds"
    return (
        f"{head}: {100 * mean:.1f} % test accuracy"
        f" (95 % CI {100 * lo:.1f} to {100 * hi:.1f} {basis}{trouble}) | {task.folder}"
    )
