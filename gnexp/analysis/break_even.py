"""The batch size at which a norm and BN change places, as the simultaneous intervals allow."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnexp.analysis.cells import Series
from gnexp.analysis.comparisons import ComparisonGroup, NormComparison
from gnexp.analysis.inference import AHEAD, BEHIND, UNDECIDED, UNTESTED

Row = dict[str, Any]

CROSSING, NONE, BELOW, ABOVE = "crossing", "none in range", "below", "above"
SEVERAL, OPEN, UNKNOWN = "several", "undecided", "not tested"


def _even(
    kind: str, text: str, batch: float = math.nan, lo: float = math.nan, hi: float = math.nan
) -> Row:
    return {"kind": kind, "break_even": text, "batch": batch, "lo": lo, "hi": hi}


def break_even(pairs: Sequence[NormComparison]) -> Row:
    """Return {kind, break_even, batch, lo, hi} of one norm, from its comparisons with BN.

    break_even: for people; batch, lo and hi are nan where a kind has none.

    Batch sizes whose comparison has a p, ascending, are "ahead" (the simultaneous interval of
    norm - BN is above 0), "behind" or "undecided". Kinds:
    not tested: no comparison has a p; several: decided sizes change sides more than once;
    crossing: they change once, or never, an end is undecided and the mean difference changes sign
    there. `batch` is where it crosses 0, linear in log2(batch); lo, hi where the bound nearer to 0
    of the decided size on each side reaches 0, and 0 or inf at an open end;
    below SMALLEST, above LARGEST: one side leads, that end alone is undecided, its sign kept;
    none in range: one side leads at every decided size, both ends among them;
    undecided: no size is decided, or both ends are open and the mean changes sign at both or none.
    """
    known = [one for one in pairs if one.difference.verdict != UNTESTED]
    sides = [_SIDE[one.difference.verdict] for one in known]
    decided = [i for i, side in enumerate(sides) if side]
    if not decided:
        return _even(OPEN, OPEN) if known else _even(UNKNOWN, UNKNOWN)
    changes = [(i, j) for i, j in itertools.pairwise(decided) if sides[i] != sides[j]]
    if len(changes) > 1:
        return _even(SEVERAL, SEVERAL)
    if changes:
        return _crossing(known, *changes[0])
    return _one_leader(known, sides, decided)


def break_even_rows(groups: Sequence[ComparisonGroup]) -> list[Row]:
    """Return one row per norm and setting: where the norm and BN break even, and what decides."""
    return [_row(one, line, pairs) for one in groups for line, pairs in one.pairs if pairs]


def _row(group: ComparisonGroup, line: Series, pairs: Sequence[NormComparison]) -> Row:
    seeds = [min(p.difference.n_a, p.difference.n_b) for p in pairs]
    columns = {AHEAD: "ahead", UNDECIDED: "undecided", BEHIND: "behind", UNTESTED: "not_tested"}
    at = {
        column: " ".join(str(pair.batch) for pair in pairs if pair.difference.verdict == verdict)
        for verdict, column in columns.items()
    }
    key = pairs[0].cell.key
    return {
        **{k: v for k, v in key.items() if all(p.cell.key.get(k) == v for p in pairs)},
        **{"series": line.label, "against": group.bn.label, **break_even(pairs), **at},
        "n": "-".join(map(str, dict.fromkeys([min(seeds), max(seeds)]))),
        "family": pairs[0].difference.family,
    }


_SIDE = {AHEAD: 1, BEHIND: -1, UNDECIDED: 0}


def _one_leader(known: Sequence[NormComparison], sides: list[int], decided: list[int]) -> Row:
    first, last = decided[0], decided[-1]
    who = "the norm" if sides[first] > 0 else "BN"
    at_left = _crossing(known, None, first) if first > 0 else None
    at_right = _crossing(known, last, None) if last < len(known) - 1 else None
    opened = [side for side in (at_left, at_right) if side]
    if not opened:
        return _even(NONE, f"{NONE}: {who} leads")
    crossed = [side for side in opened if math.isfinite(side["batch"])]
    if len(crossed) == 1:
        return crossed[0]
    if len(opened) == 2:
        return _even(OPEN, OPEN)
    kind, batch = (BELOW, known[0].batch) if at_left else (ABOVE, known[-1].batch)
    return _even(kind, f"{kind} {batch}", lo=opened[0]["lo"], hi=opened[0]["hi"])


def _crossing(known: Sequence[NormComparison], i: int | None, j: int | None) -> Row:
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
    return _even(CROSSING, f"{batch:.3g} ({ends[0]} to {ends[1]})", batch, lo, hi)


def _near(one: NormComparison, decided: NormComparison) -> float:
    """Return of a comparison the bound that decided the other: lo where that is ahead."""
    return (
        one.difference.lo_simultaneous
        if decided.difference.verdict == AHEAD
        else one.difference.hi_simultaneous
    )


def _zero(x: np.ndarray, y: Sequence[float], k: int) -> float:
    """Return where the line from point k to k + 1 is 0; point k's place if both are 0."""
    rise = y[k + 1] - y[k]
    return float(x[k] if rise == 0 else x[k] + (x[k + 1] - x[k]) * min(1, max(0, -y[k] / rise)))
