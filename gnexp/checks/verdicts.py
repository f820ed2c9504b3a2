"""Verdicts: their words, and the rule by which an interval gets one."""

import math

HOLDS, FAILS, UNDECIDED, NOT_MEASURED = "holds", "fails", "undecided", "not measured"
VACUOUS = "holds vacuously"  # for want of what the sentence speaks of


def conditional(condition: str) -> str:
    """Return the verdict of a claim that holds under a condition only: "holds only when ..."."""
    return f"{HOLDS} only when {condition}"


def inside(lo: float, hi: float, low: float, high: float) -> str:
    """Return the verdict on a 95 % interval [lo, hi] that must lie within [low, high].

    It holds when all of it does, fails when none of it does, and else the draws do not decide.
    """
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return UNDECIDED
    if low <= lo and hi <= high:
        return HOLDS
    return FAILS if hi < low or lo > high else UNDECIDED


def worst(verdicts: list[str]) -> str:
    """Return the verdict on a claim about several numbers: the worst of theirs."""
    return next((v for v in (FAILS, UNDECIDED) if v in verdicts), HOLDS)


def notes(*parts: str) -> str:
    """Return the parts that are not empty, joined by semicolons."""
    return "; ".join(filter(None, parts))
