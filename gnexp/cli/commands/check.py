"""`gnexp check`: every claim of the article, measured on any norm."""

import sys
import time

import torch
from tqdm import tqdm

from gnexp.analysis.check_result import CheckResult
from gnexp.checks.from_config import label_of
from gnexp.checks.registry import CLAIMS, Claim
from gnexp.checks.run import ClaimTask, Outcome, joined, measure_task
from gnexp.cli.console import passed_over_lines
from gnexp.config.resolve import check_run, resolve
from gnexp.config.schema import CUSTOM, CheckConfig, UsageError
from gnexp.config.unknown import unknown
from gnexp.norms import user_code
from gnexp.norms.reference.table import REFERENCES
from gnexp.report.check.report import terminal_text, write_check
from gnexp.runner.build import data, model
from gnexp.runner.plan import output_folder
from gnexp.runner.process_pool import WorkerDied, run_tasks
from gnexp.runner.provenance import now, provenance
from gnexp.store.files import write_json
from gnexp.store.status import duration

ERRORS = "errors.txt"


def check(configs: list[CheckConfig], command: str) -> int:
    """Measure every claim on every norm, write tables and figures; the exit code."""
    claims = plan(configs)
    for line in passed_over_lines(data.images_of(each.data).summary for each in configs):
        print(line)
    folder = output_folder(configs[0].out, configs[0].name)
    started, clock = now(), time.monotonic()
    tasks = [ClaimTask(config, claim) for claim in claims for config in configs]
    tasks.sort(key=lambda task: not task.claim.networks)  # the long ones first, to end together
    result = _measured(tasks, configs, claims)
    made = provenance(torch.device("cpu"), command, started)
    try:
        write_json(folder / "provenance.json", made)
        write_check(folder, result, made)
        (folder / ERRORS).unlink(missing_ok=True)
        if result.traces:
            (folder / ERRORS).write_text("\n".join(result.traces))
    except OSError as error:
        print(terminal_text(result))
        reason = error.strerror or error
        print(
            f"gnexp: out={configs[0].out}: {folder} cannot be written ({reason})", file=sys.stderr
        )
        return 1
    print(terminal_text(result))
    print(f"check: {folder / 'check.md'} ({duration(time.monotonic() - clock)})")
    return 1 if result.trouble else 0


def plan(configs: list[CheckConfig]) -> list[Claim]:
    """Return the claims to measure; raises UsageError listing all that is wrong."""
    data.forget()
    found: list[str] = []
    for key in ("out", "name", "claims", "draws", "channels", "seed", "workers"):
        if len({str(getattr(config, key)) for config in configs}) > 1:
            found.append(f"{key}= takes one value per check: its norms share one table")
    for config in configs:
        found += _norm_problems(config)
    first = configs[0]
    for claim in first.claims if isinstance(first.claims, list) else ():
        if claim not in CLAIMS:
            found.append(unknown(f"claims=[{claim}] is unknown", claim, CLAIMS))
    if found:
        raise UsageError("\n".join(dict.fromkeys(found)))
    return [claim for key, claim in CLAIMS.items() if not first.claims or key in first.claims]


def _norm_problems(config: CheckConfig) -> list[str]:
    """Return what keeps the norm from being named or built, as far as the user's keys cause it."""
    if config.reference not in (None, *REFERENCES):
        sentence = f"reference={config.reference} is unknown"
        return [unknown(sentence, config.reference, REFERENCES)]
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


def _measured(
    tasks: list[ClaimTask], configs: list[CheckConfig], claims: list[Claim]
) -> CheckResult:
    first = configs[0]
    workers = min(data.worker_count(first.workers, "cpu"), len(tasks))
    labels = list(dict.fromkeys(label_of(config) for config in configs))
    print(
        f"checking {len(claims)} claim{'s' * (len(claims) > 1)} on {', '.join(labels)}"
        f" | cpu, {workers} process{'es' * (workers > 1)} | {first.channels} channels,"
        f" {first.draws} draws",
        flush=True,
    )
    answers = run_tasks(tasks, measure_task, lambda event: None, workers)
    found: dict[tuple[str, str], Outcome] = {}
    with tqdm(total=len(tasks), leave=False, disable=not sys.stderr.isatty(), unit="claim") as bar:
        for index, answer in answers:
            task = tasks[index]
            if isinstance(answer, WorkerDied):
                answer = Outcome([], [], answer.why)
            found[label_of(task.config), task.claim.key] = answer
            bar.update()
    return joined(found, labels, claims)
