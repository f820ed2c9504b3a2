"""`gnexp train`: one run or a grid, from checked configs to stored runs and their report."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from gnexp import build
from gnexp.checkpoints import drop_states, load_states
from gnexp.commands.measure import measure_shared, worker_count
from gnexp.commands.report import make_report
from gnexp.config import (
    Mistake,
    TrainConfig,
    as_dict,
    identity,
    is_private,
    problems,
    resolve,
    restore,
    retried,
    run_name,
)
from gnexp.execute import Task, mark_died, run_task
from gnexp.mending import is_readable, mend
from gnexp.progress import Progress
from gnexp.provenance import now
from gnexp.runs import PlannedRun, standing
from gnexp.schedule import Company, Replica, Step, layout
from gnexp.study.store import Run
from gnexp.turns import wait_for_some
from gnexp.wording import (
    alone_line,
    closing_line,
    ended_line,
    grid_line,
    privacy_lines,
    single_line,
)
from gnexp.workers import WorkerDied, run_here, run_in_processes

# Called with the numbers of the configs to train and the seeds that are missing, by run.
Launch = Callable[[list[int], dict[PlannedRun, list[int]]], None]
WORTH_A_PROCESS = 1000  # images in all; fewer are trained sooner than a second process has started


def train(
    configs: list[TrainConfig], command: str, grid: bool, launch: Launch | None = None
) -> int:
    """Train what is missing of these runs and return the exit code.

    launch: trains the configs of these numbers elsewhere, through `train_job`, and returns when all
    are done or given up. Raises Mistake with one sentence per problem, before anything is written.
    """
    started = now()
    runs = plan(configs)
    config = runs[0].config
    if config.data.preview:
        _preview(config)
    try:
        todo = _todo(runs)
        steps, reasons, workers = _steps(todo) if launch is None else _announce(todo)
    except OSError as error:
        raise Mistake(f"out={config.out}: {error}; use another out=FOLDER") from error
    for run, reason in reasons.items():
        print(alone_line(run, reason))
    if grid:
        print(grid_line(runs, list(todo), workers))
    elif todo:
        print(single_line(runs[0], steps, workers))
    for line in privacy_lines(list(todo)):
        print(line)
    if launch is None:
        failed = _execute(todo, [Task(step, command, started) for step in steps], workers)
    else:
        failed = _launch(launch, todo)
    failed += _measure_shared(runs, {name for name, _ in failed})
    if grid:
        failed += _report(config)
    elif not failed:
        print(closing_line(runs[0]))
    return _conclude(runs, dict(failed), grid)


def train_job(configs: list[TrainConfig], command: str) -> None:
    """Train what is missing of these runs, in this process and without a word: one job of many.

    What became of it is in the run folders.
    """
    runs = plan([dataclasses.replace(c, force=False, retry=None) for c in configs])
    todo = {run: seeds for run in runs if (seeds := standing(run).todo)}
    steps, _, workers = _steps(todo)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        _execute(todo, [Task(step, command, now()) for step in steps], workers)


def _announce(todo: dict[PlannedRun, list[int]]) -> tuple[list[Step], dict[PlannedRun, str], int]:
    """Write the configs of what jobs elsewhere are to train; they lay out their own steps."""
    for run in todo:
        Run.create(run.folder).write_config(as_dict(run.config))
    return [], {}, 0


def _launch(launch: Launch, todo: dict[PlannedRun, list[int]]) -> list[tuple[str, str]]:
    """Let a launcher train what is to do, and return (run, reason) for what it left undone."""
    if todo:
        launch(sorted({job for run in todo for job in run.jobs}), todo)
    left = {run.name: standing(run).todo for run in todo}
    return [(name, f"seeds {seeds}: no result came back") for name, seeds in left.items() if seeds]


def _todo(runs: list[PlannedRun]) -> dict[PlannedRun, list[int]]:
    """Return the seeds to train, by run; what is damaged is told and mended first."""
    todo = {}
    for run in runs:
        stored = Run(run.folder)
        if not run.folder.is_dir():
            todo[run] = list(run.config.seeds)
            continue
        finished = is_readable(stored) and not standing(run).todo
        for sentence in mend(stored, finished):
            print(f"damaged: {sentence}")
        stored.settle()
        found = standing(run)
        config = run.config
        again = {s: was for s, was in found.ended.items() if was in retried(config.retry)}
        for seed in config.seeds if config.force else again:
            if config.force or again[seed] != "failed":
                _forget(stored, seed)
            if found.ended.get(seed) == "failed":  # without force it goes on from its checkpoint
                stored.set_status(seed, "failed", found.why[seed], again=True)
        if seeds := [s for s in config.seeds if config.force or s in found.todo or s in again]:
            todo[run] = seeds
    return todo


def _forget(run: Run, seed: int) -> None:
    """Drop what one seed gave, so that it is trained from the start, unless somebody is at it."""
    with run.lock(seed) as claim:
        if claim:
            run.drop_seed(seed)
            run.drop_plan(seed)
            drop_states(run, [seed])


def _steps(
    todo: dict[PlannedRun, list[int]],
) -> tuple[list[Step], dict[PlannedRun, str], int]:
    """Lay the missing trainings out: steps, why the seeds of a run train apart, processes.

    The layout is written into the run folders, and followed by every later call: so one that was
    interrupted before a training began still gives it the company, and the digits, of the first.
    """
    if not todo:
        return [], {}, 1
    replicas = [
        Replica(run.config, run.name, seed) for run, seeds in todo.items() for seed in seeds
    ]
    config = replicas[0].config
    device = build.pick_device(config.device)
    names, company, reasons = {replica.name for replica in replicas}, {}, {}
    for run, seeds in todo.items():
        company |= _known_company(run, seeds, device.type)
        if reason := build.company_refusal(run.config, device):
            reasons[run] = reason
    images = sum(len(build.images_of(r.config.data).x_train) * r.config.epochs for r in replicas)
    workers = worker_count(config.workers, config.device)
    if config.workers is None and images < WORTH_A_PROCESS:
        workers = 1
    alone = {run.name for run in reasons}

    for known in set(company.values()):
        # A call that was killed while it wrote the plan has told only some of the members.
        company = {name: known for name in known.members if name in names} | company

    def laid_out() -> tuple[list[Step], int]:
        steps = layout(replicas, company, alone, device.type, workers)
        if min(workers, len(steps)) > 1:
            return steps, min(workers, len(steps))
        threads = torch.get_num_threads()
        return layout(replicas, company, alone, device.type, workers, threads), 1

    _write_plan(todo, laid_out()[0], device.type)
    for run, seeds in todo.items():  # another call may have been first
        company |= _known_company(run, seeds, device.type)
    steps, processes = laid_out()
    apart = {run: reason for run, reason in reasons.items() if len(todo[run]) > 1}
    return steps, apart, processes


def _known_company(run: PlannedRun, seeds: list[int], device_type: str) -> dict[str, Company]:
    """Return the company in which an earlier call began these trainings, or planned to."""
    stored = Run(run.folder)
    if not run.folder.is_dir():
        return {}
    states, planned, found = load_states(stored), stored.plan(), {}
    for seed in seeds:
        replica = Replica(run.config, run.name, seed)
        entry = states.get(seed)
        if entry is None and planned.get(seed, {}).get("device") == device_type:
            entry = planned[seed]
        known = Company.read(entry or {})
        if known and replica.name in known.members and len(known.lrs) == len(known.members):
            found[replica.name] = known
    return found


def _write_plan(todo: dict[PlannedRun, list[int]], steps: list[Step], device_type: str) -> None:
    """Let every run's folder say what it is to become, before the first training starts."""
    entries = {
        (replica.run, replica.seed): {**step.company.entry(), "device": device_type}
        for step in steps
        for replica in step.replicas
    }
    for run, seeds in todo.items():
        stored = Run.create(run.folder)
        with stored.writing():
            stored.write_config(as_dict(run.config))
            stored.add_plan({seed: entries[run.name, seed] for seed in seeds})


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
        for config in _distinct_builds(good):
            found += build.check(config)
    if not found:
        found += _folder_problems(configs[0])
    if found:
        raise Mistake("\n".join(dict.fromkeys(found)))
    runs: dict[str, PlannedRun] = {}
    for number, config in enumerate(good):
        checksums = build.images_of(config.data).checksum, build.code_checksum(config)
        name = run_name(config, *checksums)
        if other := _other_config(config, name, checksums):
            raise Mistake(other)
        jobs: tuple[int, ...] = (number,)
        if name in runs:  # jobs may differ in their seeds alone
            known = runs[name].config.seeds
            seeds = [*known, *(s for s in config.seeds if s not in known)]
            config = dataclasses.replace(runs[name].config, seeds=seeds)
            jobs = (*runs[name].jobs, number)
        runs[name] = PlannedRun(config, name, jobs)
    return list(runs.values())


def _other_config(config: TrainConfig, name: str, checksums: tuple[str, str | None]) -> str:
    """Return a sentence if the folder of this name holds another config, "" if it does not."""
    run = Run(Path(config.out) / config.study / name)
    try:
        stored = run.result().get("config")
        if not stored or identity(restore(stored), *checksums) == identity(config, *checksums):
            return ""
    except (ValueError, TypeError, KeyError):  # damaged: that is for mending
        return ""
    return f"{run.folder} holds a run of another config: move it away, or choose another study="


def _distinct_builds(configs: list[TrainConfig]) -> list[TrainConfig]:
    """Leave out configs that differ only in what building and checking does not look at."""
    looked_at = ("norm", "model", "data", "groups", "channels_per_group", "groups_fallback")
    looked_at += ("batch", "update_batch", "device", "precision", "zero_gamma", "privacy")
    budgeted = ("epochs",)  # by private training
    distinct = {
        str([getattr(c, key) for key in looked_at + budgeted * is_private(c)]): c for c in configs
    }
    return list(distinct.values())


def _folder_problems(config: TrainConfig) -> list[str]:
    """Make the study's folder; return what keeps it from being written, then without a trace."""
    folder = Path(config.out) / config.study
    made = [part for part in (folder, *folder.parents) if not part.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)  # another call may do so at the same time
        with tempfile.TemporaryFile(dir=folder):
            return []
    except OSError as error:
        for part in made:
            with contextlib.suppress(OSError):  # never made, or in use by another call
                part.rmdir()
        reason = error.strerror or error
        return [f"out={config.out}: {folder} cannot be written ({reason}); use another out=FOLDER"]


def _execute(
    todo: dict[PlannedRun, list[int]], tasks: list[Task], workers: int
) -> list[tuple[str, str]]:
    """Run the tasks and return (run, reason) for what failed; a run is told of when it is whole.

    What another call is at work on comes last, when that call has done it or is gone.
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

        held: list[Step] = []
        call = tasks[0]
        while tasks or held:
            held += _round(tasks, workers, progress, ended)
            free, held = wait_for_some(held, progress.say) if held else ([], [])
            tasks = [dataclasses.replace(call, step=step) for step in free]
    return list(failed.items())


def _round(
    tasks: list[Task],
    workers: int,
    progress: Progress,
    ended: Callable[[str, int, str | None], None],
) -> list[Step]:
    """Run the tasks once, and tell of each training that ended; return those that others have."""
    if workers > 1:
        results = run_in_processes(tasks, run_task, progress.event, min(workers, len(tasks)))
    else:
        results = run_here(tasks, run_task, progress.event)
    busy = []
    for index, outcome in results:
        step = tasks[index].step
        if isinstance(outcome, WorkerDied):
            mark_died(step, outcome.why)
            died = {"status": "failed", "why": outcome.why}
            outcome = {(replica.run, replica.seed): died for replica in step.replicas}
        for (run, seed), state in outcome.items():
            if state["status"] != "busy":
                ended(run, seed, state["why"] if state["status"] == "failed" else None)
        held = step.part(lambda r, o=outcome: o[r.run, r.seed]["status"] == "busy")
        if held:
            busy.append(held)
    return busy


def size(run: PlannedRun, seeds: list[int]) -> tuple[int, int]:
    """Return (images to train, images of an update) for the progress bar."""
    images = len(build.images_of(run.config.data).x_train) * run.config.epochs
    return images * len(seeds), run.config.update_batch


def _conclude(runs: list[PlannedRun], failed: dict[str, str], grid: bool) -> int:
    """List what diverged, did not fit or failed; return the exit code."""
    found = {run: standing(run) for run in runs if run.folder.is_dir()}
    for status in ("diverged", "infeasible") if grid else ():
        for run, now_is in found.items():
            if line := ended_line(run, now_is, status):
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
