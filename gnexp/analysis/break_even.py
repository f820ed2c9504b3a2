"""The batch size at which a norm and BN change places, as the simultaneous intervals allow."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gnexp.analysis.cells import Series
from gnexp.analysis.comparisons import ComparisonGroup, NormComparison
from gnexp.analysis.inference import AHEAD, BEHIND, UNDECIDED

CROSSING, NONE, BELOW, ABOVE = "crossing", "none in range", "below", "above"
SEVERAL, OPEN, UNKNOWN = "several", "undecided", "not tested"


@dataclass(frozen=True)
class BreakEven:
    """The batch size at which the lead changes.

    kind: CROSSING, NONE, BELOW, ABOVE, SEVERAL, OPEN or UNKNOWN. batch: where the mean difference
    crosses 0, nan without one crossing. lo, hi: the batch sizes between which the simultaneous
    interval holds 0, 0 and inf beyond the range; nan where kind has none. text: for people.
    """

    kind: str
    batch: float
    lo: float
    hi: float
    text: str


def break_even(pairs: Sequence[NormComparison]) -> BreakEven:
    """Return the break-even batch of one norm against BN, from its comparisons with BN.

    They are adjusted within the family of all norms and batch sizes of a setting.

    Batch sizes whose comparison has a p, ascending, are "ahead" (the simultaneous interval of
    norm - BN is above 0), "behind" (below) or "undecided" (it holds 0). Then
    not tested: no comparison has a p; undecided: no batch size is decided;
    several: decided batch sizes change sides more than once;
    crossing: they change once, or they never do, an end is undecided, and the mean difference
    changes sign there. `batch` is where the mean difference crosses 0, linear in log2(batch)
    (the middle one of several such places); lo, hi are where the bound that is nearer to 0 of the
    decided size on each side reaches 0, linear in log2 up to the next size, 0 or inf at an open
    end;
    below SMALLEST, above LARGEST: one side leads at every decided size, that end only is
    undecided, and the mean keeps its sign: the lead fades there and may change beyond;
    none in range: one side leads at every decided size, both ends among them;
    undecided, also: both ends are, and the mean changes sign at both or at neither.
    """
    known = [one for one in pairs if one.adjusted.p_holm == one.adjusted.p_holm]
    sides = [_SIDE[one.adjusted.verdict] for one in known]
    decided = [i for i, side in enumerate(sides) if side]
    if not decided:
        kind = OPEN if known else UNKNOWN
        return BreakEven(kind, *[math.nan] * 3, kind)
    changes = [(i, j) for i, j in itertools.pairwise(decided) if sides[i] != sides[j]]
    if len(changes) > 1:
        return BreakEven(SEVERAL, *[math.nan] * 3, SEVERAL)
    if changes:
        return _crossing(known, *changes[0])
    return _one_leader(known, sides, decided)


def break_even_rows(groups: Sequence[ComparisonGroup]) -> list[dict[str, Any]]:
    """Return one row per norm and setting: where the norm and BN break even, and what decides."""
    return [_row(one, line, pairs) for one in groups for line, pairs in one.pairs if pairs]


def _row(group: ComparisonGroup, line: Series, pairs: Sequence[NormComparison]) -> dict[str, Any]:
    even = break_even(pairs)
    seeds = [min(p.difference.n_a, p.difference.n_b) for p in pairs]
    at: dict[str, str] = {}
    for column, verdict in (("ahead", AHEAD), ("undecided", UNDECIDED), ("behind", BEHIND)):
        at[column] = " ".join(str(p.batch) for p in pairs if p.adjusted.verdict == verdict)
    untested = [p for p in pairs if p.adjusted.verdict not in (AHEAD, UNDECIDED, BEHIND)]
    key = pairs[0].cell.key
    return {
        **{k: v for k, v in key.items() if all(p.cell.key.get(k) == v for p in pairs)},
        **{"series": line.label, "against": group.bn.label, "kind": even.kind},
        **{"break_even": even.text, "batch": even.batch, "lo": even.lo, "hi": even.hi},
        **at,
        "not_tested": " ".join(str(p.batch) for p in untested),
        "n": "-".join(map(str, dict.fromkeys([min(seeds), max(seeds)]))),
        "family": pairs[0].adjusted.family,
    }


_SIDE = {AHEAD: 1, BEHIND: -1, UNDECIDED: 0}


def _one_leader(known: Sequence[NormComparison], sides: list[int], decided: list[int]) -> BreakEven:
    first, last = decided[0], decided[-1]
    who = "the norm" if sides[first] > 0 else "BN"
    at_left = _crossing(known, None, first) if first > 0 else None
    at_right = _crossing(known, last, None) if last < len(known) - 1 else None
    opened = [side for side in (at_left, at_right) if side]
    if not opened:
        return BreakEven(NONE, *[math.nan] * 3, f"{NONE}: {who} leads")
    crossed = [side for side in opened if math.isfinite(side.batch)]
    if len(crossed) == 1:
        return crossed[0]
    if len(opened) == 2:
        return BreakEven(OPEN, *[math.nan] * 3, OPEN)
    kind, batch = (BELOW, known[0].batch) if at_left else (ABOVE, known[-1].batch)
    return BreakEven(kind, math.nan, opened[0].lo, opened[0].hi, f"{kind} {batch}")


def _crossing(known: Sequence[NormComparison], i: int | None, j: int | None) -> BreakEven:
    """Return what lies between the decided sizes i and j; None is an open end."""
    x = np.log2([one.batch for one in known])
    lo = 0.0 if i is None else 2 ** _zero(x, [_near(o, known[i]) for o in known], i)
    hi = math.inf if j is None else 2 ** _zero(x, [_near(o, known[j]) for o in known], j - 1)
    means = [one.difference.difference for one in known]
    places = range(0 if i is None else i, len(known) - 1 if j is None else j)
    zeros = [_zero(x, means, k) for k in places if means[k] * means[k + 1] <= 0]
    batch = 2 ** zeros[len(zeros) // 2] if zeros else math.nan
    ends = [f"below {known[0].batch}" if i is None else f"{lo:.3g}"]
    ends += [f"above {known[-1].batch}" if j is None else f"{hi:.3g}"]
    return BreakEven(CROSSING, batch, lo, hi, f"{batch:.3g} ({ends[0]} to {ends[1]})")


def _near(one: NormComparison, decided: NormComparison) -> float:
    """Return of a comparison the bound that decided the other: lo where that is ahead."""
    return one.adjusted.lo if decided.adjusted.verdict == AHEAD else one.adjusted.hi


def _zero(x: np.ndarray, y: Sequence[float], k: int) -> float:
    """Return where the line from point k to k + 1 is 0; point k's place if both are 0."""
    rise = y[k + 1] - y[k]
    return float(x[k] if rise == 0 else x[k] + (x[k + 1] - x[k]) * min(1, max(0, -y[k] / rise)))
