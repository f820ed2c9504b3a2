"""Execute a replica group: lock its trainings, train them, record complete, failed or busy."""

import contextlib
import dataclasses
import itertools
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gnexp.config.identity import as_dict
from gnexp.runner.build.code_digest import code_digests
from gnexp.runner.prepared_run import PreparedRun
from gnexp.runner.provenance import now, provenance
from gnexp.runner.ranks import on_every_rank
from gnexp.runner.schedule import Replica, ReplicaGroup, group_of
from gnexp.runner.trainer import Emit, GroupTrainer, progress_of, result_head, stored_states
from gnexp.store.disk import disk_failure
from gnexp.store.files import CorruptFile
from gnexp.store.locks import Lock, LockLost, lock_owner, require_locks
from gnexp.store.run import Run
from gnexp.training.ranks import out_of_memory

LOOK_S = 1.0  # how often a waiting call looks whether it can go on
Outcome = dict[str, Any]  # its "status", "why", ...
Outcomes = dict[tuple[str, int], Outcome]  # of (run, seed)


@dataclass(frozen=True)
class Task:
    """A task of a worker process: the trainings of one replica group, and their call."""

    step: ReplicaGroup
    command: str
    started: str
    low_memory: bool = False


def run_task(task: Task, emit: Emit) -> Outcomes:
    """Train what the step holds and return what became of each.

    An exception is recorded with its reason and a traceback in the folder. Where several share the
    step, its halves are tried first: so one that fails, or too little memory for all, harms none
    of the others. A disk that fails ends them all, to go on in the same group. Two processes
    never train the same seed of a run: the second leaves it alone, and says that it is "busy".
    """
    outcomes: Outcomes = {}
    with contextlib.ExitStack() as held, _threads(task.step.spec.threads):
        for replica in task.step.replicas:
            if any(outcome["status"] == "busy" for outcome in outcomes.values()):
                # Whoever has one of them trains the others too, and may not have come to them yet.
                why = "another process is at work on its step"
                outcomes[replica.key] = {"status": "busy", "why": why}
            elif outcome := _lock(replica, held):
                outcomes[replica.key] = outcome
        free = task.step.part(lambda replica: replica.key not in outcomes)
        if free:
            try:
                outcomes |= _guarded(dataclasses.replace(task, step=free), emit)
            except LockLost as error:
                emit({"kind": "note", "text": f"{_names(free.replicas)}: {error}"})
                busy = {"status": "busy", "why": str(error)}
                outcomes |= {replica.key: busy for replica in free.replicas}
    return outcomes


def _lock(replica: Replica, held: contextlib.ExitStack) -> Outcome | None:
    """Lock a training as long as `held` is open; return why that is not possible."""
    try:
        run = Run.create(replica.run.folder)
        if held.enter_context(run.lock(replica.seed)):
            return None
    except OSError as error:  # a full disk, a folder that is gone
        why = disk_failure(error, replica.run.folder.parent) or str(error)
        return {"status": "failed", "why": why, "again": True, "disk": True}
    who = lock_owner(run.lock_file(replica.seed)) or "another process"
    return {"status": "busy", "why": f"{who} is at work on this run (seed {replica.seed})"}


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Train with as many threads as were planned, which decides the last digits on a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _guarded(task: Task, emit: Emit) -> Outcomes:
    """Train what is unfinished of the step; on an exception its halves, at last one by one.

    Raises LockLost when another process has one of its trainings.
    """
    replicas = list(task.step.replicas)
    try:
        if todo := task.step.part(lambda r: r.seed not in r.run.stored.finished_seeds()):
            unfinished = dataclasses.replace(task, step=todo)
            _prepare(unfinished)
            _train(unfinished, emit)
        return {replica.key: _outcome(replica) for replica in replicas}
    except LockLost:
        raise
    except Exception as error:
        require_locks()  # what went wrong then is no failure of the training
        why = disk_failure(error, replicas[0].run.folder.parent)
        if why or isinstance(error, CorruptFile):
            return {r.key: _stopped(r, why or str(error), bool(why)) for r in replicas}
        # Its frames hold the models that did not fit, beside which halves would not fit either.
        traceback.clear_frames(error.__traceback__)
        if len(replicas) > 1:
            emit({"kind": "note", "text": f"{_names(replicas)}: {_reason(error)}; trying halves"})
            middle = len(replicas) // 2
            halves = replicas[:middle], replicas[middle:]
            steps = [group_of(half, task.step.spec.threads) for half in halves]
            first, second = (_guarded(dataclasses.replace(task, step=step), emit) for step in steps)
            return first | second
        if out_of_memory(error) and not task.low_memory:
            return _guarded(dataclasses.replace(task, low_memory=True), emit)
        return {replicas[0].key: _record_failure(replicas[0], error)}


def _stopped(replica: Replica, why: str, disk: bool) -> Outcome:
    """Return what became of a training whose folder could not be written, or read: it goes on.

    That is recorded where it can be; else the status still says that the training was running.
    """
    run = replica.run.stored
    with contextlib.suppress(ValueError, OSError):
        if replica.seed in run.finished_seeds():
            return _outcome(replica)
        run.set_status(replica.seed, "failed", why, again=True)
    return {"status": "failed", "why": why, "again": True, "disk": disk}


def _outcome(replica: Replica) -> Outcome:
    run = replica.run.stored
    numbers = run.result()["seeds"][str(replica.seed)]
    why = run.statuses().get(replica.seed, {}).get("why", "")
    return {"status": numbers["status"], "why": why}


def _record_failure(replica: Replica, error: Exception) -> Outcome:
    run, why = replica.run.stored, _reason(error)
    # Of a file or a connection, not of the model: worth another try without being asked.
    again = {"again": True} if isinstance(error, OSError) else {}
    try:
        if out_of_memory(error):
            asked = _bytes_asked(str(error))
            if asked:
                why = f"out of memory: {asked / 2**30:.4g} GiB asked for ({asked:,} bytes)"
            _record_infeasible(replica, why, bytes_asked=asked)
            return {"status": "infeasible", "why": why}
        run.write_traceback(replica.seed, traceback.format_exc())
        run.set_status(replica.seed, "failed", why, **again)
    except LockLost:
        raise
    except (ValueError, OSError) as worse:  # a corrupt file of the store, a full disk
        reason = disk_failure(worse, replica.run.folder.parent) or str(worse)
        why = f"{why}; and it cannot be recorded: {reason}"
        return {"status": "failed", "why": why, "again": True, "disk": True}
    return {"status": "failed", "why": why, **again}


def record_undefined(run: PreparedRun, seeds: Sequence[int], command: str, started: str) -> None:
    """Write down that these seeds are infeasible, since the norm is undefined for the run."""
    for seed in seeds:
        replica = Replica(run, seed)
        with Run.create(run.folder).lock(seed) as lock:
            if lock:
                _prepare(Task(group_of([replica], 1), command, started))
                _record_infeasible(replica, run.undefined)


def _record_infeasible(replica: Replica, why: str, **numbers: Any) -> None:
    run, numbers = replica.run.stored, {"status": "infeasible", "why": why, **numbers}
    run.add_result(replica.seed, numbers, **result_head(replica.run))
    run.set_status(replica.seed, "infeasible", why)


def _reason(error: Exception) -> str:
    if isinstance(error, ValueError | OSError):
        return str(error)
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _names(replicas: Sequence[Replica]) -> str:
    return ", ".join(replica.name for replica in replicas)


def mark_died(step: ReplicaGroup, why: str) -> None:
    """Record that the process of a step ended while it trained, unless another took it over."""
    for replica in step.replicas:
        run = replica.run.stored
        if not run.folder.is_dir():
            continue
        with contextlib.suppress(ValueError, OSError), run.lock(replica.seed) as lock:
            if lock and run.statuses().get(replica.seed, {}).get("status") == "running":
                run.set_status(replica.seed, "failed", why, again=True)


def _bytes_asked(message: str) -> int | None:
    """Return the bytes requested, read from an allocator's message, None without a number."""
    found = re.search(r"allocate ([\d.]+) (?:bytes|([KMGT])iB)", message)
    return round(float(found[1]) * 1024 ** " KMGT".index(found[2] or " ")) if found else None


def _prepare(task: Task) -> None:
    """Write what the run folders hold before any number: configs, provenance, statuses."""
    for replica in task.step.replicas:
        run, stored = replica.run, replica.run.stored
        stored.write_config(as_dict(run.config))
        if code_digests(run.config) != run.code:
            raise ValueError(
                f"the code of its {' or '.join(run.code)} was edited after this call had begun:"
                " call again"
            )
        stored.write_provenance(provenance(run.device, task.command, task.started, run.code))
        stored.set_status(replica.seed, "running", since=now())


def _train(task: Task, emit: Emit) -> None:
    """Train a replica group; trainings that stopped at different points go one after another."""
    states = stored_states(task.step.replicas)
    places = {
        replica.name: progress_of(states.get(replica.name, {})) for replica in task.step.replicas
    }
    for place in sorted(set(places.values())):
        part = task.step.part(lambda replica, place=place: places[replica.name] == place)
        with on_every_rank(part, task.low_memory) as ranks:
            GroupTrainer(part, states, task.low_memory, emit, ranks).run()


def wait_for_locks(
    steps: list[ReplicaGroup], print_line: Callable[[str], None]
) -> tuple[list[ReplicaGroup], list[ReplicaGroup]]:
    """Wait until no other process has locked some of these steps; return (those, the others).

    The other process has trained them, or is gone; a lock of another machine counts as left when
    it was not renewed in time. `print_line` gets a line on who is waited for, after the first look.
    """
    # Kept from look to look: only then can a lock tell for how long it has not been renewed.
    locks = {
        replica.name: Lock(replica.run.stored.lock_file(replica.seed))
        for step in steps
        for replica in step.replicas
    }
    for look in itertools.count():
        free = [s for s in steps if all(_is_free(locks[r.name]) for r in s.replicas)]
        if free:
            return free, [step for step in steps if step not in free]
        if look == 1:
            print_line(f"waiting for {_waited_for(steps)}")
        time.sleep(LOOK_S)
    raise AssertionError


def _is_free(lock: Lock) -> bool:
    if not lock.take():
        return False
    lock.drop()
    return True


def _waited_for(steps: list[ReplicaGroup]) -> str:
    replicas = [replica for step in steps for replica in step.replicas]
    owners = {lock_owner(r.run.stored.lock_file(r.seed)) for r in replicas} - {None}
    names = ", ".join(sorted(map(str, owners))) or "another process"
    many = f"{len(replicas)} trainings" if len(replicas) > 1 else "a training"
    return f"{many} that {names} is at work on"
