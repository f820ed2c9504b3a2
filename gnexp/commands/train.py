"""`gnexp train`: one run or a grid, from checked configs to stored runs and their report."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from gnexp import build
from gnexp.checkpoints import load_states
from gnexp.commands.measure import measure_shared, worker_count
from gnexp.commands.report import make_report
from gnexp.config import Mistake, TrainConfig, problems, resolve, run_name
from gnexp.execute import Task, mark_died, run_task
from gnexp.progress import Progress
from gnexp.provenance import now
from gnexp.runs import PlannedRun, missing_seeds
from gnexp.schedule import Replica, Step, layout
from gnexp.study.store import Run
from gnexp.wording import alone_line, closing_line, grid_line, single_line
from gnexp.workers import WorkerDied, run_here, run_in_processes

WORTH_A_PROCESS = 1000  # images in all; fewer are trained sooner than a second process has started


def train(configs: list[TrainConfig], command: str, grid: bool) -> int:
    """Train what is missing of these runs and return the exit code.

    Raises Mistake with one sentence per problem, before anything is written.
    """
    started = now()
    runs = plan(configs)
    if configs[0].data.preview:
        _preview(configs[0])
    try:
        todo = {run: seeds for run in runs if (seeds := missing_seeds(run))}
        steps, reasons, workers = _steps(todo)
    except ValueError as error:  # a corrupt result.json, named
        raise Mistake(str(error)) from error
    config = runs[0].config
    for run, reason in reasons.items():
        print(alone_line(run, reason))
    if grid:
        print(grid_line(runs, list(todo), workers))
    elif todo:
        print(single_line(runs[0], steps, workers))
    failed = _execute(todo, [Task(step, command, started) for step in steps], workers)
    failed += _measure_shared(runs, {name for name, _ in failed})
    if grid:
        failed += _report(config)
    elif not failed:
        print(closing_line(runs[0]))
    for name, why in failed:
        print(f"failed: {name}: {why}")
    return 1 if failed else 0


def _steps(
    todo: dict[PlannedRun, list[int]],
) -> tuple[list[Step], dict[PlannedRun, str], int]:
    """Lay the missing trainings out: steps, why the seeds of a run train apart, processes."""
    if not todo:
        return [], {}, 1
    replicas, company, reasons = [], {}, {}
    for run, seeds in todo.items():
        states = load_states(Run(run.folder), say=lambda text: None) if run.folder.is_dir() else {}
        for seed in seeds:
            replica = Replica(run.config, run.name, seed)
            replicas.append(replica)
            if members := states.get(seed, {}).get("step"):
                company[replica.name] = tuple(members)
        if reason := build.company_refusal(run.config, build.pick_device(run.config.device)):
            reasons[run] = reason
    config = replicas[0].config
    device = build.pick_device(config.device)
    images = sum(len(build.images_of(r.config.data).x_train) * r.config.epochs for r in replicas)
    workers = worker_count(config.workers, config.device)
    if config.workers is None and images < WORTH_A_PROCESS:
        workers = 1
    steps = layout(replicas, company, {run.name for run in reasons}, device.type, workers)
    apart = {run: reason for run, reason in reasons.items() if len(todo[run]) > 1}
    return steps, apart, min(workers, len(steps))


def _report(config: TrainConfig) -> list[tuple[str, str]]:
    """Report the study; what keeps it from being reported is a failure of what was asked for."""
    try:
        print(make_report(Path(config.out), config.study, config.reference_batch))
    except Mistake as error:
        return [("report", str(error))]
    return []


def plan(configs: list[TrainConfig]) -> list[PlannedRun]:
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
    runs: dict[str, PlannedRun] = {}
    for config in good:
        name = run_name(config, build.images_of(config.data).checksum, build.code_checksum(config))
        if name in runs:  # jobs may differ in their seeds alone
            known = runs[name].config.seeds
            seeds = [*known, *(s for s in config.seeds if s not in known)]
            config = dataclasses.replace(runs[name].config, seeds=seeds)
        runs[name] = PlannedRun(config, name)
    return list(runs.values())


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


def _execute(
    todo: dict[PlannedRun, list[int]], tasks: list[Task], workers: int
) -> list[tuple[str, str]]:
    """Run the tasks and return (run, reason) for what failed; a run is told of when it is whole."""
    if not tasks:
        return []
    runs = {run.name: run for run in todo}
    sizes, waiting = {}, {}
    for run, seeds in todo.items():
        images = len(build.images_of(run.config.data).x_train) * run.config.epochs
        sizes[run.name] = images * len(seeds), run.config.update_batch
        waiting[run.name] = set(seeds)
    failed: list[tuple[str, str]] = []
    with Progress(sizes) as progress:
        if workers > 1:
            results = run_in_processes(tasks, run_task, progress.event, workers)
        else:
            results = run_here(tasks, run_task, progress.event)
        for index, outcome in results:
            step = tasks[index].step
            troubles = _failures(step, outcome)
            failed += troubles
            for replica in step.replicas:
                waiting[replica.run].discard(replica.seed)
            for name in dict.fromkeys(replica.run for replica in step.replicas):
                if not waiting[name]:
                    whys = [why for run, why in failed if run == name]
                    line = f"{name}: {whys[0]}" if whys else closing_line(runs[name])
                    progress.run_done(line, bool(whys))
    return failed


def _failures(step: Step, outcome: Any) -> list[tuple[str, str]]:
    """Return (run, reason) for what failed, each reason of a run once."""
    if isinstance(outcome, WorkerDied):
        mark_died(step, outcome.why)
        return list(dict.fromkeys((replica.run, outcome.why) for replica in step.replicas))
    whys = [(run, v["why"]) for (run, _), v in outcome.items() if v["status"] in ("failed", "busy")]
    return list(dict.fromkeys(whys))


def _measure_shared(runs: list[PlannedRun], failed: set[str]) -> list[tuple[str, str]]:
    """Measure at shared weights where asked for: at those of each family's largest batch."""
    config = runs[0].config
    if not (config.gradients_at or config.covariance):
        return []
    folders = [run.folder for run in runs if run.name not in failed]
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
