"""Wait for runs that another gnexp process has locked."""

import itertools
import time
from collections.abc import Callable

from gnexp.runner.schedule import ReplicaGroup
from gnexp.store.locks import Lock, lock_owner
from gnexp.store.run import Run

LOOK_S = 1.0  # how often a waiting call looks whether it can go on


def wait_for_locks(
    steps: list[ReplicaGroup], print_line: Callable[[str], None]
) -> tuple[list[ReplicaGroup], list[ReplicaGroup]]:
    """Wait until some of these steps are held by nobody; return (those, the others).

    Whoever held them has trained them, or is gone; a claim of another machine counts as left when
    it was not renewed in time. A wait of more than one
    look is announced by `print_line`.
    """
    # Kept from look to look: only then can a claim tell for how long it has not been renewed.
    locks = {
        replica.name: Lock(Run(replica.folder).lock_file(replica.seed))
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
    owners = {lock_owner(Run(r.folder).lock_file(r.seed)) for r in replicas} - {None}
    names = ", ".join(sorted(map(str, owners))) or "another process"
    many = f"{len(replicas)} trainings" if len(replicas) > 1 else "a training"
    return f"{many} that {names} is at work on"
