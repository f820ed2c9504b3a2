"""Waiting for trainings that another call of gnexp, here or on another machine, is at work on."""

import itertools
import time
from collections.abc import Callable

from gnexp.runner.schedule import Step
from gnexp.store.locks import Claim, holder
from gnexp.store.run import Run

LOOK_S = 1.0  # how often a waiting call looks whether it can go on


def wait_for_some(steps: list[Step], say: Callable[[str], None]) -> tuple[list[Step], list[Step]]:
    """Wait until some of these steps are held by nobody; return (those, the others).

    Whoever held them has trained them, or is gone; a claim of another machine counts as left when
    it was not renewed in time. `say` hears whom the wait is for, if it takes longer than a look.
    """
    # Kept from look to look: only then can a claim tell for how long it has not been renewed.
    claims = {
        replica.name: Claim(Run(replica.folder).lock_file(replica.seed))
        for step in steps
        for replica in step.replicas
    }
    for look in itertools.count():
        free = [s for s in steps if all(_is_free(claims[r.name]) for r in s.replicas)]
        if free:
            return free, [step for step in steps if step not in free]
        if look == 1:
            say(f"waiting for {_waited_for(steps)}")
        time.sleep(LOOK_S)
    raise AssertionError


def _is_free(claim: Claim) -> bool:
    if not claim.take():
        return False
    claim.drop()
    return True


def _waited_for(steps: list[Step]) -> str:
    replicas = [replica for step in steps for replica in step.replicas]
    holders = {holder(Run(r.folder).lock_file(r.seed)) for r in replicas} - {None}
    names = ", ".join(sorted(map(str, holders))) or "another process"
    many = f"{len(replicas)} trainings" if len(replicas) > 1 else "a training"
    return f"{many} that {names} is at work on"
