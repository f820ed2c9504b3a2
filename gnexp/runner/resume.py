"""List the seeds that are still to be trained, and plan their replica groups and processes."""

import torch

from gnexp.config.identity import as_dict
from gnexp.config.schema import listed
from gnexp.config.torchrun import launched
from gnexp.runner.build.data import worker_count
from gnexp.runner.build.step import why_seeds_train_apart
from gnexp.runner.checkpoint import drop_states, load_states
from gnexp.runner.prepared_run import PreparedRun, seed_progress
from gnexp.runner.repair import is_readable, repair_run
from gnexp.runner.schedule import Replica, ReplicaGroup, ReplicaGroupSpec, layout
from gnexp.store.run import Run

WORTH_A_PROCESS = 1000  # images in all; fewer are trained sooner than a second process has started


def missing(runs: list[PreparedRun]) -> dict[PreparedRun, list[int]]:
    """Return the seeds to train, by run; corrupt files are reported and repaired first."""
    todo = {}
    for run in runs:
        stored = run.stored
        if not run.folder.is_dir():
            todo[run] = list(run.config.seeds)
            continue
        finished = is_readable(stored) and not seed_progress(run).todo
        for sentence in repair_run(stored, finished):
            print(f"corrupt: {sentence}")
        stored.settle()
        found = seed_progress(run)
        config = run.config
        again = {s: was for s, was in found.ended.items() if was in listed(config.retry)}
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
    with run.lock(seed) as lock:
        if lock:
            run.drop_seed(seed)
            run.drop_plan(seed)
            drop_states(run, [seed])


def replica_groups(
    todo: dict[PreparedRun, list[int]],
) -> tuple[list[ReplicaGroup], dict[PreparedRun, str], int]:
    """Plan the missing trainings: replica groups, reasons why seeds train apart, processes.

    The layout is written into the run folders, and followed by every later call: so one that was
    interrupted before a training began still gives it the group, and the digits, of the first.
    """
    if not todo:
        return [], {}, 1
    replicas = [Replica(run, seed) for run, seeds in todo.items() for seed in seeds]
    # One training shares its step with none; finding out takes longer than a few updates.
    asked = todo if len(replicas) > 1 else ()
    why = {run: why_seeds_train_apart(run.config, run.data, run.device) for run in asked}
    reasons = {run: reason for run, reason in why.items() if reason}
    workers = _workers(replicas)

    def laid_out() -> tuple[list[ReplicaGroup], int]:
        how = _known_specs(todo), {run.name for run in reasons}, workers
        steps = layout(replicas, *how)
        if min(workers, len(steps)) > 1:
            return steps, min(workers, len(steps))
        threads = torch.get_num_threads()
        if (devices := max(run.config.devices for run in todo)) > 1 and not launched():
            threads = max(1, threads // devices)  # which a launcher divides itself
        return layout(replicas, *how, threads), 1

    _write_plan(todo, laid_out()[0])
    steps, processes = laid_out()  # by what another call may have written first
    apart = {run: reason for run, reason in reasons.items() if len(todo[run]) > 1}
    return steps, apart, processes


def _workers(replicas: list[Replica]) -> int:
    config = replicas[0].config
    images = sum(r.run.data.train_size * r.config.epochs for r in replicas)
    few = config.workers is None and images < WORTH_A_PROCESS
    if few or any(replica.config.devices > 1 for replica in replicas):
        return 1
    return worker_count(config.workers, config.device)


def _known_specs(todo: dict[PreparedRun, list[int]]) -> dict[str, ReplicaGroupSpec]:
    """Return the replica groups in which earlier calls began or planned trainings, by name.

    A call that was killed while it wrote the plan has written it for some members only.
    """
    found: dict[str, ReplicaGroupSpec] = {}
    others: dict[str, ReplicaGroupSpec] = {}
    for run in filter(lambda run: run.folder.is_dir(), todo):
        states, planned = load_states(run.stored), run.stored.plan()
        for seed in todo[run]:
            name, entry = Replica(run, seed).name, states.get(seed)
            if entry is None and planned.get(seed, {}).get("device") == run.device.type:
                entry = planned[seed]
            if entry and name in (known := ReplicaGroupSpec.read(entry)).members:
                found[name] = known
                others |= dict.fromkeys(known.members, known)
    return others | found


def _write_plan(todo: dict[PreparedRun, list[int]], steps: list[ReplicaGroup]) -> None:
    entries = {
        replica.key: {**step.spec.entry(), "device": replica.run.device.type}
        for step in steps
        for replica in step.replicas
    }
    for run, seeds in todo.items():
        stored = Run.create(run.folder)
        with stored.writing():
            stored.write_config(as_dict(run.config))
            stored.add_plan({seed: entries[run.name, seed] for seed in seeds})
