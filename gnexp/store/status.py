"""The status of a study: the state of every seed, the process at work on it, the time left."""

import dataclasses
import statistics
from collections import Counter
from dataclasses import dataclass

from gnexp.store.locks import LockOwner, lock_owner
from gnexp.store.run import Run
from gnexp.store.study import Record, Study

# "interrupted" is a training that was running and whose process is gone.
STATES = ("complete", "diverged", "infeasible", "failed", "running", "interrupted", "missing")
UNFINISHED = ("running", "interrupted", "missing")


@dataclass(frozen=True)
class SeedState:
    """One seed of a run: one of STATES, the reason, and where it stands."""

    seed: int
    state: str
    why: str = ""
    again: bool = False  # a failure that the next call tries again by itself
    epoch: int = 0  # of those that are done
    lock_owner: LockOwner | None = None
    since: str = ""

    @property
    def to_do(self) -> bool:
        """Return True when the seed is training, or the next call of the same command trains it."""
        return self.state in UNFINISHED or self.again


def seed_states(record: Record) -> list[SeedState]:
    """Return the state of every seed that was asked for, in their order."""
    done = Counter[int]()
    for row in record.rows("metrics.csv"):
        done[row["seed"]] = max(done[row["seed"]], row["epoch"])
    states = []
    for seed, stored in record.statuses.items():
        state = SeedState(seed, stored["status"], stored.get("why", ""), epoch=done[seed])
        if state.state == "failed":
            state = dataclasses.replace(state, again=bool(stored.get("again")))
        if state.state in ("running", "missing", "failed"):
            # The mark of who is at work says more than a status, which a killed process left.
            if by := lock_owner(Run(record.folder).lock_file(seed)):
                since = str(stored.get("since", ""))
                state = SeedState(seed, "running", epoch=done[seed], lock_owner=by, since=since)
            elif state.state == "running":
                state = dataclasses.replace(state, state="interrupted")
        states.append(state)
    return states


def time_left_s(study: Study, states: dict[str, list[SeedState]]) -> float | None:
    """Return the seconds of training that are left, at the speed so far; None if there is none.

    states: `seed_states` by run. Those that are at work now share the work; where nobody is, one
    process does all of it. Runs that have not begun are taken to cost what others did per image,
    small batches being dearer, see `image_cost`.
    """
    begun = {r.name: rows for r in study.runs if (rows := r.rows("metrics.csv"))}
    if not begun:
        return None
    images = {name: rows[0]["examples_seen"] / rows[0]["epoch"] for name, rows in begun.items()}
    usual, total = max(images.values()), 0.0
    speeds: dict[str, float] = {}  # seconds per unit of `image_cost`
    costs = {}  # of an epoch
    for name, config in ((record.name, record.config) for record in study.runs):
        batch = config.get("update_batch") or config.get("batch") or 1
        costs[name] = images.get(name, usual) * image_cost(batch)
        if name in begun:
            speeds[name] = statistics.median(row["time_s"] for row in begun[name]) / costs[name]
    for record in study.runs:
        epochs = int(record.config.get("epochs") or 0)
        left = sum(max(0, epochs - s.epoch) for s in states[record.name] if s.to_do)
        speed = speeds.get(record.name) or statistics.median(speeds.values())
        total += left * costs[record.name] * speed
    at_work = {s.lock_owner for by_run in states.values() for s in by_run if s.lock_owner}
    return total / max(1, len(at_work))


def duration(seconds: float) -> str:
    """Return a time as text: "48 s", "2 min 05 s", "1 h 20 min"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60:02d} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"


def image_cost(batch: int) -> float:
    """Return the relative cost of an image: small batches are overhead, not arithmetic.

    Fitted to the throughput of ResNet-20 on two cores at batch 1 to 64; only bars use it.
    """
    return 1 + 4.5 / batch
