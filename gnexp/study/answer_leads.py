"""Which norm to use at each batch size, as the simultaneous intervals of a setting allow.

Whether a norm leads BN is decided by the family of comparisons with BN. Only of one that does is it
asked whether another norm is above it, in a second family: every pair of the other norms at every
batch size. So where all norms are equal, no more leads are claimed than BN's family allows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gnexp.study.cells import Series
from gnexp.study.comparisons import Setting, Versus, between
from gnexp.study.inference import AHEAD, BEHIND, UNDECIDED, simultaneous

DECISIVE = (AHEAD, BEHIND, UNDECIDED)


@dataclass(frozen=True)
class Place:
    """One batch size: line against BN, line being the one to use where its verdict is AHEAD.

    Elsewhere BN is the one to use (BEHIND), or the data leave the two open (UNDECIDED). unsure:
    the other norms that cannot be told from the one to use; behind: those that it leads; above:
    norms that are decidedly above line although line leads BN. Norms that lack a tested comparison
    here are in none of them.
    """

    batch: int
    line: Series
    versus: Versus
    unsure: list[Series]
    behind: list[Series]
    above: list[Series]

    @property
    def verdict(self) -> str:
        return self.versus.adjusted.verdict

    @property
    def winner(self) -> tuple[str, bool]:
        """What makes neighbouring batch sizes one stretch: who leads, and whether it is beaten."""
        return ("BN" if self.verdict == BEHIND else self.line.label, bool(self.above))


def places(setting: Setting) -> list[Place]:
    """Return a Place per batch size with a tested comparison with BN, ascending.

    Of the norms that lead BN and that no other is decidedly above, the one is taken that stays so
    over most batch sizes from there on, of several the one with the highest mean over them. Where
    none leads BN, it is held against the norm taken most often, or else against the one that has
    the highest mean at the smallest batch size.
    """
    lines = [line for line, _ in setting.pairs]
    with_bn: dict[int, dict[int, Versus]] = {}
    for index, (_, pairs) in enumerate(setting.pairs):
        for one in pairs:
            if one.adjusted.verdict in DECISIVE:
                with_bn.setdefault(one.batch, {})[index] = one
    with_bn = dict(sorted(with_bn.items()))
    ahead = {b: [i for i, one in its.items() if _is(one, AHEAD)] for b, its in with_bn.items()}
    ahead = {batch: leading for batch, leading in ahead.items() if leading}
    among = _among(setting, lines) if ahead and len(lines) > 1 else {}
    chosen = _chosen(with_bn, ahead, among)
    main = max(chosen.values(), key=[*chosen.values()].count) if chosen else None
    found = []
    for batch, its in with_bn.items():
        index = chosen.get(batch, main)
        if index not in its:
            index = _highest(its) if main is not None else _at_smallest(with_bn, its)
        found.append(_place(batch, index, its, among.get(batch, {}), lines))
    return found


def _is(one: Versus, verdict: str) -> bool:
    return one.adjusted.verdict == verdict


def _among(setting: Setting, lines: Sequence[Series]) -> dict[int, dict[tuple[int, int], str]]:
    """Return {batch: {(i, j): verdict of line i minus line j}}, all of it one family."""
    cells = [{cell.key["batch"]: cell for cell in line.cells} for line in lines]
    asked = [
        (batch, i, j)
        for i, mine in enumerate(cells)
        for j in range(i + 1, len(cells))
        for batch in mine
        if batch in cells[j]
    ]
    found = simultaneous(
        [between(cells[i][batch], cells[j][batch], setting.samples) for batch, i, j in asked]
    )
    opposite = {AHEAD: BEHIND, BEHIND: AHEAD}
    verdicts: dict[int, dict[tuple[int, int], str]] = {}
    for (batch, i, j), adjusted in zip(asked, found):
        verdict = adjusted.verdict
        here = {(i, j): verdict, (j, i): opposite.get(verdict, verdict)}
        verdicts.setdefault(batch, {}).update(here)
    return verdicts


def _chosen(
    with_bn: dict[int, dict[int, Versus]],
    ahead: dict[int, list[int]],
    among: dict[int, dict[tuple[int, int], str]],
) -> dict[int, int]:
    """Return {batch: the line to use} where any leads BN, changing as seldom as it may."""
    fit: dict[int, list[int]] = {}
    for batch, leading in ahead.items():
        beaten = {i for (i, _), verdict in among.get(batch, {}).items() if verdict == BEHIND}
        best = max(leading, key=lambda i: with_bn[batch][i].mean)
        fit[batch] = [i for i in leading if i not in beaten] or [best]
    batches, chosen = [*fit], {}
    while len(chosen) < len(batches):
        left = batches[len(chosen) :]
        runs = {i: _run(i, left, fit) for i in fit[left[0]]}
        longest = max(len(run) for run in runs.values())
        best = max(
            (i for i, run in runs.items() if len(run) == longest),
            key=lambda i: sum(with_bn[batch][i].mean for batch in runs[i]),
        )
        chosen |= dict.fromkeys(runs[best], best)
    return chosen


def _run(index: int, batches: Sequence[int], fit: dict[int, list[int]]) -> list[int]:
    run = []
    for batch in batches:
        if index not in fit[batch]:
            break
        run.append(batch)
    return run


def _highest(its: dict[int, Versus]) -> int:
    return max(its, key=lambda i: its[i].mean)


def _at_smallest(with_bn: dict[int, dict[int, Versus]], its: dict[int, Versus]) -> int:
    """Return the norm with the highest mean at the smallest batch size, if it was tested here."""
    first = _highest(next(iter(with_bn.values())))
    return first if first in its else _highest(its)


def _place(
    batch: int,
    index: int,
    its: dict[int, Versus],
    among: dict[tuple[int, int], str],
    lines: Sequence[Series],
) -> Place:
    others = [j for j in range(len(lines)) if j != index]
    if _is(its[index], AHEAD):
        seen = {j: among.get((index, j)) for j in others}
        unsure, behind, above = UNDECIDED, AHEAD, BEHIND
    else:
        seen = {j: its[j].adjusted.verdict for j in others if j in its}
        unsure, behind, above = UNDECIDED, BEHIND, None  # of BN now
    told = [
        [lines[j] for j in others if seen.get(j) == verdict] if verdict else []
        for verdict in (unsure, behind, above)
    ]
    return Place(batch, lines[index], its[index], *told)
