"""`gnexp train`: one run or a grid, from checked configs to stored runs and their report."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from gnexp.cli.commands.report import make_report, require_folder
from gnexp.cli.console import (
    choice_lines,
    closing_line,
    ended_line,
    grid_line,
    passed_over_lines,
    privacy_lines,
    single_line,
    start_lines,
    tuning_lines,
    unstackable_line,
)
from gnexp.cli.progress import Progress
from gnexp.config.identity import as_dict
from gnexp.config.schema import TrainConfig, UsageError, is_tuned
from gnexp.runner.build.data import forget, images_of, train_settings
from gnexp.runner.execute import Task, mark_died, record_undefined, run_task, wait_for_locks
from gnexp.runner.loggers import export_all, viewing_lines
from gnexp.runner.lr_search import chosen_runs, record, wanted
from gnexp.runner.measure_stored import SHARED, measure_stored
from gnexp.runner.plan import plan
from gnexp.runner.prepared_run import PreparedRun, seed_progress
from gnexp.runner.process_pool import WorkerDied, run_tasks
from gnexp.runner.provenance import now
from gnexp.runner.ranks import ranks_end
from gnexp.runner.resume import missing, replica_groups
from gnexp.runner.schedule import ReplicaGroup
from gnexp.runner.strange_code import named_code, remember
from gnexp.store.disk import disk_failure
from gnexp.store.locks import LockLost
from gnexp.store.run import Run
from gnexp.store.study import only_zip

Launch = Callable[[dict[PreparedRun, list[int]]], None]  # called with the missing seeds by run


@ranks_end()
def train(
    configs: list[TrainConfig], command: str, grid: bool, launch: Launch | None = None
) -> int:
    """Train what is missing of these runs and return the exit code.

    launch: trains missing seeds elsewhere, through `train_job`, and returns when all
    are done or given up. Raises UsageError, one sentence per problem, before anything is written.
    """
    forget()
    study = Path(configs[0].out) / configs[0].study
    if path := only_zip(study):
        require_folder(path, "gnexp train")
    started = now()
    grid = grid or any(map(is_tuned, configs))
    if configs[0].data.preview:
        plan(configs=[c for _, c in wanted(configs)])  # refuses what is wrong
        _preview(configs[0])
    runs, failed = [], []
    try:
        for fresh in _rounds(configs):
            if not runs:
                for line in tuning_lines(configs) + passed_over_lines(run.data for run in fresh):
                    print(line)
            runs += fresh
            failed += _train(fresh, (command, started), launch, grid)
    except OSError as error:  # nothing more can be written
        if why := error.args[0] if isinstance(error, _DiskFailed) else disk_failure(error, study):
            return _conclude(runs, {f"study={study.name}": why}, grid)
        raise
    failed += _close(configs, runs, {name for name, _ in failed}, grid)
    for line in viewing_lines(study, runs[0].config.logger):
        print(line)
    return _conclude(runs, dict(failed), grid)


def _close(
    configs: list[TrainConfig], runs: list[PreparedRun], failed: set[str], grid: bool
) -> list[tuple[str, str]]:
    """Measure at shared weights, export and report; return (which, why) of failures."""
    config = runs[0].config
    for line in choice_lines(configs):
        print(line)
    more = _measure_shared(configs, [run for run in runs if run.name not in failed])
    more += export_all([run.folder for run in runs], config.logger)
    if grid:
        try:
            print(
                make_report(Path(config.out), config.study, config.reference_batch, config.report)
            )
        except UsageError as error:  # what keeps a study from being reported is a failure too
            more.append(("report", str(error)))
    elif runs[0].name not in {*failed, *dict(more)} and not runs[0].undefined:
        print(closing_line(runs[0]))
    return more


class _DiskFailed(OSError):
    """The disk under a study, not a training, failed; the text is a sentence."""


def _rounds(configs: list[TrainConfig]) -> Iterator[list[PreparedRun]]:
    """Yield the runs that are asked for, then those that follow from what these gave, and so on."""
    known: set[str] = set()
    planned: list[tuple[int, TrainConfig]] = []
    while fresh := [pair for pair in wanted(configs) if pair not in planned]:
        numbers, now_wanted = zip(*fresh, strict=True)
        runs = [run for run in plan(list(now_wanted), numbers) if run.name not in known]
        record(configs)
        planned += fresh
        known |= {run.name for run in runs}
        if runs:
            yield runs
    record(configs)


def _train(
    runs: list[PreparedRun], call: tuple[str, str], launch: Launch | None, grid: bool
) -> list[tuple[str, str]]:
    """Train what is missing, and tell of it; return (run, reason) of failures; call: what, when."""
    try:
        todo = missing(runs)
        for run in [run for run in todo if run.undefined]:
            record_undefined(run, todo.pop(run), *call)
        if launch is None:
            steps, reasons, workers = replica_groups(todo)
        else:  # jobs elsewhere lay out their own steps
            steps, reasons, workers = [], {}, 0
            for run in todo:
                Run.create(run.folder).write_config(as_dict(run.config))
    except LockLost:
        raise
    except OSError as error:
        out = runs[0].config.out
        raise UsageError(f"out={out}: {error}; use another out=FOLDER") from error
    for run, reason in reasons.items():
        print(unstackable_line(run, reason))
    if grid:
        print(grid_line(runs, list(todo), workers))
    elif todo:
        print(single_line(runs[0], steps, workers))
    for line in [*start_lines(list(todo)), *privacy_lines(list(todo))]:
        print(line)
    if why := remember((run.folder, run.config) for run in runs):
        print(f"gnexp measure will ask for trust=true: {why}")
    if launch is None:
        return _execute(todo, [Task(step, *call) for step in steps], workers)
    if todo:
        launch(todo)
    left = {run.name: seed_progress(run).todo for run in todo}
    return [(name, f"seeds {seeds}: no result came back") for name, seeds in left.items() if seeds]


@ranks_end()
def train_job(configs: list[TrainConfig], command: str) -> None:
    """Train what is missing of these runs, in this process and without a word: one job of many."""
    forget()  # a launcher's process may have done a job of an earlier call
    configs = [dataclasses.replace(c, force=False, retry=None) for c in configs]
    for runs in _rounds(configs):
        todo = {run: seeds for run in runs if (seeds := seed_progress(run).todo)}
        steps, _, workers = replica_groups(todo)
        silent = contextlib.suppress(_DiskFailed)
        with silent, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            _execute(todo, [Task(step, command, now()) for step in steps], workers)


def _execute(
    todo: dict[PreparedRun, list[int]], tasks: list[Task], workers: int
) -> list[tuple[str, str]]:
    """Run the tasks and return (run, reason) of failures; a run is announced when complete.

    What another call is at work on comes last, when that call has done it or is gone. Raises
    _DiskFailed when the study's folder cannot be written to.
    """
    if not tasks:
        return []
    runs = {run.name: run for run in todo}
    waiting = {run.name: set(seeds) for run, seeds in todo.items()}
    failed: dict[str, str] = {}
    with Progress({run.name: size(run, seeds) for run, seeds in todo.items()}) as progress:

        def ended(run: str, seed: int, why: str | None) -> None:
            waiting[run].discard(seed)
            if why:
                failed.setdefault(run, why)
            if not waiting[run]:
                line = f"{run}: {failed[run]}" if run in failed else closing_line(runs[run])
                progress.run_done(run, line, run in failed)

        held: list[ReplicaGroup] = []
        call = tasks[0]
        while tasks or held:
            held += _round(tasks, workers, progress, ended)
            free, held = wait_for_locks(held, progress.print_line) if held else ([], [])
            tasks = [dataclasses.replace(call, step=step) for step in free]
    return list(failed.items())


def _round(
    tasks: list[Task],
    workers: int,
    progress: Progress,
    ended: Callable[[str, int, str | None], None],
) -> list[ReplicaGroup]:
    """Run the tasks once, and tell of each training that ended; return those that others have."""
    full: list[str] = []  # of the disk
    busy = []
    results = run_tasks(tasks, run_task, progress.event, workers, lambda: bool(full))
    for index, outcome in results:
        step = tasks[index].step
        if isinstance(outcome, WorkerDied):
            mark_died(step, outcome.why)
            died = {"status": "failed", "why": outcome.why}
            outcome = {replica.key: died for replica in step.replicas}
        full += [state["why"] for state in outcome.values() if state.get("disk")]
        for (run, seed), state in outcome.items():
            if state["status"] != "busy" and not state.get("disk"):
                ended(run, seed, state["why"] if state["status"] == "failed" else None)
        held = step.part(lambda r, o=outcome: o[r.key]["status"] == "busy")
        if held:
            busy.append(held)
    if full:
        raise _DiskFailed(full[0])
    return busy


def size(run: PreparedRun, seeds: list[int]) -> tuple[int, int]:
    """Return (images to train, images of an update) for the progress bar."""
    config = run.config
    images = train_settings(config).examples_seen(config.epochs, run.data.train_size)
    return images * len(seeds), config.update_batch


def _conclude(runs: list[PreparedRun], failed: dict[str, str], grid: bool) -> int:
    found = {run: seed_progress(run) for run in runs if run.folder.is_dir()}
    for status in ("diverged", "infeasible"):
        for run, now_is in found.items():
            if (grid or run.undefined) and (line := ended_line(run, now_is, status)):
                print(line)
    before = 0
    for run, now_is in found.items():
        if now_is.failed and run.name not in failed:
            failed[run.name] = next(iter(now_is.failed.values()))
            before += 1
    for name, why in failed.items():
        print(f"failed: {name}: {why}")
    if before:
        print("what failed in an earlier call is tried again with retry=failed")
    return 1 if failed else 0


def _measure_shared(configs: list[TrainConfig], runs: list[PreparedRun]) -> list[tuple[str, str]]:
    """Measure at shared weights where asked for: at those of each family's largest batch."""
    if any(map(is_tuned, configs)):  # trials, and rates that were not chosen, are in no table of it
        chosen = chosen_runs(configs)
        runs = [run for run in runs if run.name in chosen]
    config = runs[0].config if runs else None
    if not config or not (config.gradients_at or config.covariance):
        return []
    # `gradients` is for a run's own points; shared ones are fitted and need their own number.
    return measure_stored(
        [run.folder for run in runs],
        SHARED if config.covariance else SHARED[:1],
        config.device,
        config.workers,
        trusted=tuple(sorted({code for run in runs for code in named_code(run.config)})),
        batches=tuple(config.gradients_at or ()),
    )


def _preview(config: TrainConfig) -> None:
    from gnexp.report.figures.accuracy import plot_preview

    images = images_of(config.data)
    path = Path(config.out) / config.study / "preview.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_preview(path, images.x_train, images.y_train, images.classes, images.title)
    print(f"ten images of each class: {path}")
