"""`gnexp status`: what of a study is complete, running, failed or missing."""

from collections import Counter

from gnexp.commands.report import stored_study
from gnexp.config import Mistake, StatusConfig, study_problems


def status(config: StatusConfig) -> int:
    """Print a line per run of the study and the sums; returns the exit code."""
    if found := study_problems(config):
        raise Mistake("\n".join(found))
    study = stored_study(config.out, config.study)
    counts: Counter[str] = Counter()
    width = max(len(run.name) for run in study.runs)
    for run in study.runs:
        seeds = Counter(state["status"] for state in run.statuses.values())
        counts += seeds
        reasons = dict.fromkeys(s["why"] for s in run.statuses.values() if s["why"])
        text = ", ".join(f"{n} {name}" for name, n in sorted(seeds.items()))
        print(f"{run.name:<{width}}  {text}" + "".join(f"; {why}" for why in reasons))
    total = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
    print(f"{len(study.runs)} runs; seeds: {total}")
    return 0
