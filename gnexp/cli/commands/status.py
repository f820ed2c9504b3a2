"""`gnexp status`: what of a study is complete, running, failed or missing, and the time left."""

from collections import Counter

from gnexp.cli.commands.report import stored_study
from gnexp.config.schema import StatusConfig
from gnexp.store.status import STATES, SeedState, duration, seed_states, time_left_s


def status(config: StatusConfig) -> int:
    """Print a line per run of the study, the sums and the time left; returns the exit code."""
    study = stored_study(config.out, config.study)
    states = {record.name: seed_states(record) for record in study.runs}
    width = max(len(name) for name in states)
    epochs = {record.name: record.config.get("epochs") for record in study.runs}
    for name, seeds in states.items():
        print(f"{name:<{width}}  {_run_text(seeds, epochs[name])}")
    counts = Counter(seed.state for seeds in states.values() for seed in seeds)
    many = f"{len(states)} run{'s' * (len(states) > 1)}"
    print(f"{many}; seeds: {counts_text(counts)}")
    left = time_left_s(study, states)
    if any(seed.to_do for seeds in states.values() for seed in seeds):
        at_work = {
            seed.lock_owner for seeds in states.values() for seed in seeds if seed.lock_owner
        }
        who = f"with {len(at_work)} at work" if at_work else "no process trains it"
        print(f"{'time left unknown' if left is None else f'about {duration(left)} left'}, {who}")
    failed = (s for seeds in states.values() for s in seeds if s.state == "failed")
    if not all(seed.again for seed in failed):
        print("what failed is tried again by the same command with retry=failed")
    return 0


def counts_text(counts: Counter[str]) -> str:
    """Return "2 complete, 1 missing"."""
    return ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])


def _run_text(seeds: list[SeedState], epochs: int | None) -> str:
    """Return "2 complete, 1 running (process 7 on host, since ..., epoch 3 of 5)"."""
    parts = []
    for state in STATES:
        some = [seed for seed in seeds if seed.state == state]
        if not some:
            continue
        details = dict.fromkeys(_detail(seed, epochs) for seed in some)
        text = "; ".join(detail for detail in details if detail)
        parts.append(f"{len(some)} {state}" + (f" ({text})" if text else ""))
    return ", ".join(parts)


def _detail(seed: SeedState, epochs: int | None) -> str:
    if seed.state == "running":
        since = f", since {seed.since}" if seed.since else ""
        at = f"epoch {seed.epoch + 1} of {epochs}" if seed.epoch != epochs else "measuring its end"
        return f"{seed.lock_owner}{since}, {at}"
    if seed.state == "interrupted":
        return f"after epoch {seed.epoch} of {epochs}"
    if seed.state == "failed":
        return f"seed {seed.seed}: {seed.why}{', will be tried again' if seed.again else ''}"
    return seed.why if seed.state in ("diverged", "infeasible") else ""
