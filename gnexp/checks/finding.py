"""Statements of the article as rows of a table, and findings: a verdict with the number behind it.

No name of a norm enters a verdict. A number without chance in it is held against a tolerance; one
with chance in it holds only when its whole interval lies inside the tolerance, so that few draws
decide nothing.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gnexp.analysis.statistics import Interval
from gnexp.checks.verdicts import FAILS, HOLDS, VACUOUS, inside, notes

TEXTS = ("statement", "text", "what", "expected", "measured", "tolerance", "note")
NO_STATISTIC = "no value of the output depends on another one of the input: there is no statistic"


@dataclass(frozen=True)
class Finding:
    """One row of the check, its texts for people.

    statement: its key within the claim, the same for every norm. text: what is claimed. what: what
    was measured, and on what. value: the number that was judged; lo, hi: its 95 % interval, nan
    where no chance is in it. n: independent draws behind the value.
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


def vacuous(finding: Finding) -> Finding:
    """Return the row of a layer without a statistic: what holds, holds for want of one."""
    if finding.verdict != HOLDS:
        return finding
    return replace(finding, verdict=VACUOUS, note=notes(NO_STATISTIC, finding.note))


@dataclass(frozen=True)
class Statement:
    """A statement of the article: its texts, what is measured, and the rule of its verdict.

    The texts are templates of the numbers given to `found`. It holds when the value, or the whole
    interval where there is one, lies within [low, high].
    """

    statement: str
    text: str
    what: str
    expected: str = "0"
    measured: str = "{value:.2g}"
    tolerance: str = "{high:g}"
    note: str = ""
    low: float = -math.inf
    high: float = math.inf

    def found(
        self,
        value: float | Interval = math.nan,
        lo: float | None = None,
        hi: float | None = None,
        **more: object,
    ) -> Finding:
        """Return the finding on this value, and interval where chance is in it.

        more: further numbers for the templates; n; a text, a bound or a verdict of its own.
        """
        if isinstance(value, Interval):
            more.setdefault("n", value.n)
            value, lo, hi = value.mean, value.lo, value.hi
        numbers = {"low": self.low, "high": self.high, "value": value, "lo": lo, "hi": hi, **more}
        filled = {t: more[t] if t in more else getattr(self, t).format(**numbers) for t in TEXTS}
        low, high = numbers["low"], numbers["high"]
        if lo is None:
            judged = HOLDS if low <= value <= high else FAILS  # nan fails
            lo = hi = math.nan
        else:
            judged = inside(lo, hi, low, high)
        verdict = more.get("verdict", judged)
        return Finding(**filled, verdict=verdict, value=value, lo=lo, hi=hi, n=more.get("n"))


def table(*statements: Statement) -> dict[str, Statement]:
    """Return statements by key."""
    return {each.statement: each for each in statements}


@dataclass(frozen=True)
class Point:
    """One point of a claim's figure: in a panel, on the line of this norm called `series`."""

    panel: str
    series: str
    x: float
    y: float
    lo: float = math.nan
    hi: float = math.nan


Found = Iterator[Finding | Point]  # of a claim on one norm
