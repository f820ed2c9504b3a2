"""`gnexp check`: the norm passport, every claim of the article measured on any norm."""

import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from gnexp.checks.finding import NOT_MEASURED
from gnexp.checks.from_config import label_of, subject_of
from gnexp.checks.registry import CLAIMS, Claim, measure_claim
from gnexp.checks.subject import Misbehaved, Subject
from gnexp.cli.console import passed_over_lines
from gnexp.cli.progress import duration
from gnexp.config.schema import CUSTOM, CheckConfig, Mistake, check_run, resolve
from gnexp.config.validation import check_problems
from gnexp.norms import user_code
from gnexp.norms.reference.oracle import REFERENCES
from gnexp.report.check.console import terminal_text
from gnexp.report.check.report import Passport, write_passport
from gnexp.runner.build import data, model
from gnexp.runner.plan import output_folder
from gnexp.runner.process_pool import Emit, WorkerDied, run_here, run_in_processes
from gnexp.runner.provenance import now, provenance
from gnexp.store.files import write_json

ERRORS = "errors.txt"


@dataclass(frozen=True)
class ClaimTask:
    """One claim to be measured on one norm."""

    config: CheckConfig
    claim: Claim


@dataclass(frozen=True)
class Outcome:
    """What measuring a claim gave: rows and points, or why it gave none and where that arose."""

    rows: list[dict[str, Any]]
    points: list[dict[str, Any]]
    why: str = ""
    trace: str = ""


def check(configs: list[CheckConfig], command: str) -> int:
    """Measure every claim on every norm, write tables and figures; the exit code.

    Raises Mistake with one sentence per problem, before anything is written.
    """
    claims = plan(configs)
    for line in passed_over_lines(config.data for config in configs):
        print(line)
    folder = output_folder(configs[0].out, configs[0].name)
    started, clock = now(), time.monotonic()
    tasks = [ClaimTask(config, claim) for claim in claims for config in configs]
    tasks.sort(key=lambda task: not task.claim.networks)  # the long ones first, to end together
    passport = _measured(tasks, configs, claims)
    made = provenance(torch.device("cpu"), command, started)
    try:
        write_json(folder / "provenance.json", made)
        write_passport(folder, passport, made)
        _write_traces(folder, passport.traces)
    except OSError as error:
        print(terminal_text(passport))
        reason = error.strerror or error
        print(
            f"gnexp: out={configs[0].out}: {folder} cannot be written ({reason})", file=sys.stderr
        )
        return 1
    print(terminal_text(passport))
    print(f"check: {folder / 'check.md'} ({duration(time.monotonic() - clock)})")
    return 1 if passport.trouble else 0


def plan(configs: list[CheckConfig]) -> list[Claim]:
    """Return the claims to measure; raises Mistake listing all that is wrong."""
    data.forget()
    found: list[str] = []
    for key in ("out", "name", "claims", "draws", "channels", "seed", "workers"):
        if len({str(getattr(config, key)) for config in configs}) > 1:
            found.append(f"{key}= takes one value per check: its norms share one table")
    for config in configs:
        wrong = check_problems(config)
        found += wrong or _norm_problems(config)
    first = configs[0]
    for claim in first.claims if isinstance(first.claims, list) else ():
        if claim not in CLAIMS:
            near = get_close_matches(str(claim), CLAIMS, n=1, cutoff=0.0)[0]
            valid = ", ".join(CLAIMS)
            found.append(f"claims=[{claim}] is unknown; did you mean {near}? Valid: {valid}")
    if found:
        raise Mistake("\n".join(dict.fromkeys(found)))
    return [claim for key, claim in CLAIMS.items() if not first.claims or key in first.claims]


def _norm_problems(config: CheckConfig) -> list[str]:
    """Return what keeps the norm from being named or built, as far as the user's keys cause it."""
    valid = ", ".join(REFERENCES)
    if config.reference not in (None, *REFERENCES):
        near = get_close_matches(str(config.reference), REFERENCES, n=1, cutoff=0.0)[0]
        return [f"reference={config.reference} is unknown; did you mean {near}? Valid: {valid}"]
    try:
        data.images_of(config.data)
        if config.norm["name"] == CUSTOM:
            user_code.import_target(config.norm["_target_"])
        else:
            model.norm_factory(resolve(check_run(config)))(config.channels)
        label_of(config)
    except ValueError as error:
        text = str(error)
        if "does not divide" in text:
            text = f"channels={config.channels}: {text}; or choose another channels="
        return [text]
    return []


def _measured(tasks: list[ClaimTask], configs: list[CheckConfig], claims: list[Claim]) -> Passport:
    """Measure everything on several processes and return it in the order of norms and claims."""
    first = configs[0]
    workers = min(data.worker_count(first.workers, "cpu"), len(tasks))
    labels = list(dict.fromkeys(label_of(config) for config in configs))
    print(
        f"checking {len(claims)} claim{'s' * (len(claims) > 1)} on {', '.join(labels)}"
        f" | cpu, {workers} process{'es' * (workers > 1)} | {first.channels} channels,"
        f" {first.draws} draws",
        flush=True,
    )
    answers = (
        run_in_processes(tasks, measure_task, lambda event: None, workers)
        if workers > 1
        else run_here(tasks, measure_task, lambda event: None)
    )
    found: dict[tuple[str, str], Outcome] = {}
    with tqdm(total=len(tasks), leave=False, disable=not sys.stderr.isatty(), unit="claim") as bar:
        for index, answer in answers:
            task = tasks[index]
            if isinstance(answer, WorkerDied):
                answer = Outcome([], [], answer.why)
            found[label_of(task.config), task.claim.key] = answer
            bar.update()
    return joined(found, labels, claims)


def joined(
    found: dict[tuple[str, str], Outcome], labels: list[str], claims: list[Claim]
) -> Passport:
    """Return what was found, by (norm's label, claim's key), in the order of norms and claims."""
    passport = Passport(
        norms=labels,
        claims=[(c.number, c.key, c.title) for c in claims],
        main={(c.key, statement) for c in claims for statement in c.main},
    )
    for norm in labels:
        for claim in claims:
            outcome = found[norm, claim.key]
            head = {"norm": norm, "claim": claim.number, "key": claim.key, "title": claim.title}
            head["section"] = claim.section
            passport.rows += [{**head, **row} for row in outcome.rows]
            passport.points += [{**head, **point} for point in outcome.points]
            if outcome.why:
                passport.rows.append({**head, "verdict": NOT_MEASURED, "note": outcome.why})
                passport.trouble.setdefault((norm, outcome.why), []).append(claim.number)
            if outcome.trace:
                passport.traces.append(f"{norm}, claim {claim.number}\n{outcome.trace}")
    return passport


def measure_task(task: ClaimTask, emit: Emit) -> Outcome:
    """Measure one claim on one norm of a config."""
    return outcome_of(task.claim, label_of(task.config), lambda: subject_of(task.config))


def outcome_of(claim: Claim, label: str, subject: Callable[[], Subject]) -> Outcome:
    """Measure one claim on one norm; whatever the norm does, the other claims still run."""
    try:
        measured = measure_claim(claim.key, subject())
    except Misbehaved as error:
        cause = error.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause else ""
        return Outcome([], [], _one_line(error), trace)
    except Exception as error:  # raised by the norm's backward pass, say
        why = f"{label} raised {type(error).__name__}: {_one_line(error)}"
        return Outcome([], [], why, traceback.format_exc())
    return Outcome([asdict(f) for f in measured.findings], [asdict(p) for p in measured.points])


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return " ".join(line.strip() for line in lines[:1]) or type(error).__name__


def _write_traces(folder: Path, traces: list[str]) -> None:
    path = folder / ERRORS
    path.unlink(missing_ok=True)
    if traces:
        path.write_text("\n".join(traces))
