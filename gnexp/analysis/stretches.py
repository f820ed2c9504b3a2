"""Stretches of batch sizes of which one sentence is true, and the facts of that sentence."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gnexp.analysis import leaders
from gnexp.analysis.comparisons import NormComparison
from gnexp.analysis.leaders import APART, BEATEN, CLOSE, TIED, BatchVerdict

MOST = 4  # stretches that are told one by one


@dataclass(frozen=True)
class Stretch:
    """Batch sizes of one verdict, ascending; lines are numbers, as in a BatchVerdict.

    leader: None where nothing is recommended; bn: the line that is BN. from_end: the last batch
    size is the end of the grid, whose numbers are told first.
    """

    kind: str
    leader: int | None
    places: list[BatchVerdict]
    bn: int | None
    from_end: bool = False

    @property
    def outward(self) -> list[BatchVerdict]:
        """The places from the outer end inwards; the numbers shown are of the first."""
        return self.places[::-1] if self.from_end else self.places

    @property
    def batches(self) -> list[int]:
        return [place.batch for place in self.places]

    def throughout(self, *states: str) -> list[int]:
        """Return the lines in these states beside the leader at every place, highest mean first."""
        return self._in_all([place.among(self.leader, *states) for place in self.places])

    def _in_all(self, found: Sequence[Sequence[int]]) -> list[int]:
        return sorted(set.intersection(*map(set, found)), key=self.outward[0].compared.index)

    @property
    def near(self) -> list[int]:
        """The lines that are tied with the leader and led by nobody, at every place."""
        return self._in_all([place.near(self.leader) for place in self.places])

    @property
    def near_states(self) -> set[str]:
        """The states of the near lines beside the leader, TIED or CLOSE."""
        return {place.state(self.leader, i) for place in self.places for i in self.near}

    @property
    def beaten(self) -> list[int]:
        """The lines that the leader leads throughout: BN first, then the largest lead."""
        found = self.throughout(BEATEN)
        return sorted(found, key=lambda i: (i != self.bn, -self.versus(i).difference.difference))

    @property
    def nearest(self) -> int:
        """BN, or else the nearest: whoever leads that one leads the others too."""
        return self.bn if self.bn in self.beaten else self.throughout(BEATEN)[0]

    @property
    def out(self) -> list[int]:
        """The lines that are led throughout, by whomever: BN, then those that the leader leads."""
        led = self._in_all([place.led - {self.leader} for place in self.places])
        first = self.beaten
        return sorted([*first, *(i for i in led if i not in first)], key=lambda i: i != self.bn)

    @property
    def far(self) -> list[int]:
        """The lines that are far from the leader throughout, which is not decided."""
        return self.throughout(APART)

    @property
    def bn_is_far(self) -> bool:
        return self.bn in self.far and self.bn not in self.out

    @property
    def rival(self) -> int:
        """The line that an undecided leader is held against: BN, else the next highest."""
        others = self.throughout(TIED, APART) or self.throughout(TIED, CLOSE, APART)
        return self.bn if self.bn in others else others[0]

    @property
    def no_lead_counts(self) -> bool:
        """All that were compared are decided, within the margin."""
        states = {p.state(self.leader, i) for p in self.places for i in p.compared}
        return states - {leaders.UNKNOWN} == {CLOSE}  # a line beside itself is unknown

    @property
    def partly(self) -> tuple[list[int], Sequence[int]]:
        """The lines that are tied with the leader at some batch sizes only, and at which.

        No batch sizes where these differ from line to line.
        """
        at: dict[int, list[int]] = {}
        for place in self.places:
            for i in place.near(self.leader):
                if i not in self.near:
                    at.setdefault(i, []).append(place.batch)
        batches = {tuple(of) for of in at.values()}
        return [*at], batches.pop() if len(batches) == 1 else ()

    def far_below(self, but: int | None) -> tuple[list[int], list[int]]:
        """Return who else is far below the leader undecided, and at which batch sizes."""
        found = [
            (i, place.batch)
            for place in self.outward
            for i in place.among(self.leader, APART)
            if i != but and i not in place.led and place.mean(i) < place.mean(self.leader)
        ]
        return [*dict.fromkeys(i for i, _ in found)], sorted({batch for _, batch in found})

    def versus(self, rival: int) -> NormComparison:
        """Return the comparison to tell: the outermost in which the leader's mean is above.

        Of those that are decided, one whose interval does not end at 0: such an end is Holm's
        decision alone and says nothing of the size.
        """
        found = [place.over[self.leader, rival] for place in self.outward]
        above = [one for one in found if one.difference.difference >= 0] or found
        sized = [one for one in above if one.difference.lo_simultaneous]
        return (sized or above)[0]


def stretches(found: Sequence[BatchVerdict], bn: int | None) -> tuple[list[Stretch], list[int]]:
    """Return the batch sizes as few stretches, in order, and those that are left to the tables.

    bn: the line that is BN. From the left, as many batch sizes of one kind as one leader allows, of
    the candidates that with the highest mean. BN must fare alike beside it at all of them, and half
    of those that it leads at any of them it must lead at all of them. More than MOST are joined
    where they agree at batch sizes further apart, and of these the MOST longest are returned.
    """
    left, every = list(found), []
    while left:
        runs = (left[:n] for n in range(len(left), 0, -1))
        every.append(next(one for run in runs if (one := _as_one(run, bn))))
        left = left[len(every[-1].places) :]
    if len(every) > 1:
        every[-1] = replace(every[-1], from_end=True)
    if len(every) > MOST:
        every = _joined(every, bn)
    shown = sorted(every, key=lambda one: -len(one.places))[:MOST]
    rest = (batch for one in every if one not in shown for batch in one.batches)
    return [one for one in every if one in shown], sorted(rest)


def _as_one(run: list[BatchVerdict], bn: int | None) -> Stretch | None:
    if len({place.kind for place in run}) > 1:
        return None
    kind = run[0].kind
    if kind in (leaders.CHANCE, leaders.NOT_TESTED):
        return Stretch(kind, None, run, bn)
    fit = set.intersection(*(set(place.candidates) for place in run))
    if not fit:
        return None
    leader = max(sorted(fit), key=lambda i: math.fsum(place.mean(i) for place in run))
    one = Stretch(kind, leader, run, bn)
    states = [TIED, CLOSE, APART] if kind == leaders.OPEN else [BEATEN]
    common = one.throughout(*states)
    if not common or 2 * len(common) < max(len(p.among(leader, *states)) for p in run):
        return None
    alike = len({(place.state(leader, bn), bn in place.led) for place in run}) == 1
    return one if alike or leader == bn else None


def _joined(every: Sequence[Stretch], bn: int | None) -> list[Stretch]:
    found: list[Stretch] = []
    for one in every:
        for k, other in enumerate(found):
            both = sorted([*other.places, *one.places], key=lambda place: place.batch)
            whole = _as_one(both, bn) if one.kind == other.kind else None
            if whole and whole.leader == other.leader == one.leader:
                found[k] = whole
                break
        else:
            found.append(one)
    return found
