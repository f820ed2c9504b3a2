"""Findings: a verdict on a claim, with the number and the tolerance behind it.

No name of a norm enters a verdict. A number without chance in it is held against a tolerance; one
with chance in it holds only when its whole interval lies inside the tolerance, so that few draws
decide nothing.
"""

import math
from dataclasses import dataclass, field, replace

HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "fails", "undecided", "not measured"
VACUOUS = "holds vacuously"  # for want of what the sentence speaks of


def conditional(condition: str) -> str:
    """Return the verdict of a claim that holds under a condition only: "holds only when ..."."""
    return f"{HOLDS} only when {condition}"


def verdict_below(value: float, tolerance: float) -> str:
    """Return the verdict on a number without chance in it that may be at most `tolerance`."""
    return HOLDS if value <= tolerance else FAILS  # nan fails


def inside(lo: float, hi: float, low: float, high: float) -> str:
    """Return the verdict on a 95 % interval [lo, hi] that must lie within [low, high].

    It holds when all of it does, fails when none of it does, and else the draws do not decide.
    """
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return UNDECIDED
    if low <= lo and hi <= high:
        return HOLDS
    return FAILS if hi < low or lo > high else UNDECIDED


@dataclass(frozen=True)
class Finding:
    """One row of the check.

    statement: its key within the claim, the same for every norm. text: what is claimed, for people.
    what: what was measured, and on what. expected, measured: for people, with units. value: the
    number that was judged; lo, hi: its 95 % interval, nan where no chance is in it. tolerance: the
    rule of the verdict in words. n: independent draws behind the value. note: what a reader must
    know to read it right.
    """

    statement: str
    text: str
    what: str
    expected: str
    measured: str
    verdict: str
    value: float = math.nan
    lo: float = math.nan
    hi: float = math.nan
    tolerance: str = ""
    n: int | None = None
    note: str = ""


def vacuous(finding: Finding, why: str) -> Finding:
    """Return a row that holds for want of what it speaks of, with the reason in its note.

    A row that does not hold is returned as it is.
    """
    if finding.verdict != HOLDS:
        return finding
    return replace(finding, verdict=VACUOUS, note="; ".join(filter(None, (why, finding.note))))


@dataclass(frozen=True)
class Point:
    """One point of a claim's figure: in a panel, on the line of this norm called `series`."""

    panel: str
    series: str
    x: float
    y: float
    lo: float = math.nan
    hi: float = math.nan


@dataclass
class Measured:
    """The findings and points of one claim, measured on one norm."""

    findings: list[Finding] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
