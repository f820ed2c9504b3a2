"""One claim measured on one norm, and all of them joined to a result."""

import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from gnexp.analysis.check_result import CheckResult
from gnexp.checks.from_config import label_of, subject_from_config
from gnexp.checks.registry import Claim, measure_claim
from gnexp.checks.subject import NormError, Subject
from gnexp.checks.verdicts import NOT_MEASURED
from gnexp.config.schema import CheckConfig
from gnexp.norms.trials import first_line
from gnexp.runner.process_pool import Emit


@dataclass(frozen=True)
class ClaimTask:
    """One claim to be measured on one norm."""

    config: CheckConfig
    claim: Claim


@dataclass(frozen=True)
class Outcome:
    """The rows and points of one measured claim, or the reason why there are none."""

    rows: list[dict[str, Any]]
    points: list[dict[str, Any]]
    why: str = ""
    trace: str = ""


def joined(
    found: dict[tuple[str, str], Outcome], labels: list[str], claims: list[Claim]
) -> CheckResult:
    """Return what was found, by (norm's label, claim's key), in the order of norms and claims."""
    result = CheckResult(
        norms=labels,
        claims=[(c.number, c.key, c.title) for c in claims],
        main={(c.key, statement) for c in claims for statement in c.main},
    )
    for norm in labels:
        for claim in claims:
            outcome = found[norm, claim.key]
            head = {"norm": norm, "claim": claim.number, "key": claim.key, "title": claim.title}
            head["section"] = claim.section
            result.rows += [{**head, **row} for row in outcome.rows]
            result.points += [{**head, **point} for point in outcome.points]
            if outcome.why:
                result.rows.append({**head, "verdict": NOT_MEASURED, "note": outcome.why})
                result.trouble.setdefault((norm, outcome.why), []).append(claim.number)
            if outcome.trace:
                result.traces.append(f"{norm}, claim {claim.number}\n{outcome.trace}")
    return result


def measure_task(task: ClaimTask, emit: Emit) -> Outcome:
    """Measure one claim on one norm of a config."""
    return outcome_of(task.claim, label_of(task.config), lambda: subject_from_config(task.config))


def outcome_of(claim: Claim, label: str, subject: Callable[[], Subject]) -> Outcome:
    """Measure one claim on one norm; whatever the norm does, the other claims still run."""
    try:
        findings, points = measure_claim(claim.key, subject())
    except NormError as error:
        cause = error.__cause__
        trace = "".join(traceback.format_exception(cause)) if cause else ""
        return Outcome([], [], first_line(error), trace)
    except Exception as error:  # raised by the norm's backward pass, say
        why = f"{label} raised {type(error).__name__}: {first_line(error)}"
        return Outcome([], [], why, traceback.format_exc())
    return Outcome([asdict(f) for f in findings], [asdict(p) for p in points])
