"""`gnexp train`: one run or a grid, from checked configs to stored runs and their report."""

import copy
import dataclasses
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from gnexp import build
from gnexp.commands.measure import measure_shared, worker_count
from gnexp.commands.report import make_report
from gnexp.config import Mistake, TrainConfig, norm_label, problems, resolve, run_name
from gnexp.data.loader import draw_batches
from gnexp.execute import Task, mark_died, missing_seeds, run_task
from gnexp.progress import Progress, duration
from gnexp.study.statistics import binomial_interval, t_interval
from gnexp.study.store import Run
from gnexp.workers import WorkerDied, run_here, run_in_processes


def train(configs: list[TrainConfig], command: str, grid: bool) -> int:
    """Train what is missing of these runs and return the exit code.

    Raises Mistake with one sentence per problem, before anything is written.
    """
    tasks = plan(configs, command)
    if configs[0].data.preview:
        _preview(configs[0])
    try:
        todo = [task for task in tasks if missing_seeds(task)]
    except ValueError as error:  # a corrupt result.json, named
        raise Mistake(str(error)) from error
    if grid:
        print(_grid_line(tasks, todo))
    elif todo:
        print(_single_line(todo[0]))
    failed = _execute(todo)
    failed += _measure_shared(tasks, {name for name, _ in failed})
    if grid:
        failed += _report(tasks[0].config)
    elif not failed:
        print(_closing_line(tasks[0]))
    for name, why in failed:
        print(f"failed: {name}: {why}")
    return 1 if failed else 0


def _report(config: TrainConfig) -> list[tuple[str, str]]:
    """Report the study; what keeps it from being reported is a failure of what was asked for."""
    try:
        print(make_report(Path(config.out), config.study, config.reference_batch))
    except Mistake as error:
        return [("report", str(error))]
    return []


def plan(configs: list[TrainConfig], command: str) -> list[Task]:
    """Return the distinct runs of a grid; raises Mistake listing all that is wrong."""
    found: list[str] = []
    good = []
    for key in ("study", "out", "reference_batch"):
        if len({getattr(config, key) for config in configs}) > 1:
            found.append(f"{key}= takes one value per grid: its runs share one report")
    for config in configs:
        wrong = problems(config)
        found += wrong
        if not wrong:
            good.append(resolve(config))
    if not found:
        found += _folder_problems(configs[0])
        for config in _distinct_builds(good):
            found += build.check(config)
    if found:
        raise Mistake("\n".join(dict.fromkeys(found)))
    tasks = {}
    for config in good:
        name = run_name(config, build.images_of(config.data).checksum, build.code_checksum(config))
        if name in tasks:  # jobs may differ in their seeds alone
            known = tasks[name].config.seeds
            seeds = [*known, *(s for s in config.seeds if s not in known)]
            config = dataclasses.replace(tasks[name].config, seeds=seeds)
        tasks[name] = Task(config, name, command)
    return list(tasks.values())


def _distinct_builds(configs: list[TrainConfig]) -> list[TrainConfig]:
    """Leave out configs that differ only in what building and checking does not look at."""
    looked_at = ("norm", "model", "data", "groups", "channels_per_group", "groups_fallback")
    looked_at += ("batch", "update_batch", "device", "precision", "zero_gamma")
    distinct = {str([getattr(c, key) for key in looked_at]): c for c in configs}
    return list(distinct.values())


def _folder_problems(config: TrainConfig) -> list[str]:
    """Return what keeps the study's folder from being written, leaving no trace of the try."""
    folder = Path(config.out) / config.study
    made: list[Path] = []
    try:
        for part in (*reversed(folder.parents), folder):
            if not part.exists():
                part.mkdir()
                made.append(part)
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        reason = error.strerror or error
        return [f"out={config.out}: {folder} cannot be written ({reason}); use another out=FOLDER"]
    finally:
        for part in reversed(made):
            part.rmdir()


def _execute(todo: list[Task]) -> list[tuple[str, str]]:
    """Run the tasks and return (run, reason) for what failed."""
    if not todo:
        return []
    sizes = {}
    for task in todo:
        images = len(build.images_of(task.config.data).x_train) * task.config.epochs
        sizes[task.name] = images * len(missing_seeds(task)), task.config.batch
    # The longest first, or the last one would run alone at the end.
    todo = sorted(todo, key=lambda task: -sizes[task.name][0] / task.config.batch)
    workers = min(worker_count(todo[0].config.workers, todo[0].config.device), len(todo))
    failed: list[tuple[str, str]] = []
    with Progress(sizes) as progress:
        if workers > 1:
            results = run_in_processes(todo, run_task, progress.event, workers)
        else:
            results = run_here(todo, run_task, progress.event)
        for index, statuses in results:
            task = todo[index]
            whys = _failures(task, statuses)
            failed += [(task.name, why) for why in whys]
            progress.run_done(
                f"{task.name}: {whys[0]}" if whys else _closing_line(task), bool(whys)
            )
    return failed


def _failures(task: Task, statuses: Any) -> list[str]:
    if isinstance(statuses, str):
        return [statuses]
    if isinstance(statuses, WorkerDied):
        mark_died(task, statuses.why)
        return [statuses.why]
    return [v["why"] for v in statuses.values() if v["status"] == "failed"]


def _measure_shared(tasks: list[Task], failed: set[str]) -> list[tuple[str, str]]:
    """Measure at shared weights where asked for: at those of each family's largest batch."""
    config = tasks[0].config
    if not (config.gradients_at or config.covariance):
        return []
    folders = [task.folder for task in tasks if task.name not in failed]
    # `gradients` is for a run's own points; shared ones are fitted and need their own number.
    return measure_shared(
        folders,
        batches=config.gradients_at or [],
        draws=None,
        covariance=config.covariance,
        device=config.device,
        workers=config.workers,
    )


def _preview(config: TrainConfig) -> None:
    from gnexp.study.plots import plot_preview

    images = build.images_of(config.data)
    path = Path(config.out) / config.study / "preview.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_preview(path, images.x_train, images.y_train, images.classes, images.title)
    print(f"ten images of each class: {path}")


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


def _single_line(task: Task) -> str:
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


def _expected_time(config: TrainConfig, updates: int = 6) -> float:
    """Return the seconds one seed will take, from a few updates of a throw-away copy."""
    device = build.pick_device(config.device)
    images = build.device_images(config.data, device)
    model = copy.deepcopy(build.seeded_model(config, len(images.classes), 0)).to(device)
    step = build.step_of(config, model.train())
    batches = draw_batches(images, config.update_batch, 2 * updates, 0, "timing", "none")
    start = 0.0
    for index, (x, y) in enumerate(batches):
        if index == updates:  # the first ones warm up
            step.take_sums()
            start = time.perf_counter()
        step(x, y, 0.0)
    step.take_sums()
    per_update = (time.perf_counter() - start) / updates
    used = build.recipe(config).examples_per_epoch(len(images.x_train))
    measuring = 1.0 if config.gradients == 0 else 1.12
    return per_update * config.epochs * used / config.update_batch * measuring


def _grid_line(tasks: list[Task], todo: list[Task]) -> str:
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
    workers = min(worker_count(config.workers, config.device), max(1, len(todo)))
    where = f"{_device_text(config, workers)} | {_data_text(config)}"
    return f"{len(tasks)} runs: {', '.join(parts)} | {where}"


def _numbers(task: Task) -> dict[int, dict[str, Any]]:
    """Return the final numbers of the seeds asked for, as far as they have any."""
    seeds = Run(task.folder).result().get("seeds", {}).items()
    return {int(seed): v for seed, v in seeds if int(seed) in task.config.seeds}


def _closing_line(task: Task) -> str:
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
