"""`gnexp train`: one run or a grid, from checked configs to stored runs and their report."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gnexp import build
from gnexp.commands.measure import measure_shared, worker_count
from gnexp.commands.report import make_report
from gnexp.config import Mistake, TrainConfig, problems, resolve, run_name
from gnexp.execute import Task, mark_died, missing_seeds, run_task
from gnexp.progress import Progress
from gnexp.wording import closing_line, grid_line, single_line
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
    config = tasks[0].config
    workers = min(worker_count(config.workers, config.device), max(1, len(todo)))
    if grid:
        print(grid_line(tasks, todo, workers))
    elif todo:
        print(single_line(todo[0]))
    failed = _execute(todo, workers)
    failed += _measure_shared(tasks, {name for name, _ in failed})
    if grid:
        failed += _report(config)
    elif not failed:
        print(closing_line(tasks[0]))
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


def _execute(todo: list[Task], workers: int) -> list[tuple[str, str]]:
    """Run the tasks and return (run, reason) for what failed."""
    if not todo:
        return []
    sizes = {}
    for task in todo:
        images = len(build.images_of(task.config.data).x_train) * task.config.epochs
        sizes[task.name] = images * len(missing_seeds(task)), task.config.batch
    # The longest first, or the last one would run alone at the end.
    todo = sorted(todo, key=lambda task: -sizes[task.name][0] / task.config.batch)
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
            progress.run_done(f"{task.name}: {whys[0]}" if whys else closing_line(task), bool(whys))
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
