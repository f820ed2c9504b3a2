"""The facts on which norm to use, for each stretch of batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from gnexp.analysis.comparisons import NormComparison
from gnexp.analysis.leaders import (
    APART,
    BEATEN,
    CLOSE,
    TIED,
    UNKNOWN,
    BatchVerdict,
    Stretch,
    joined,
    stretches,
)
from gnexp.report.text import phrases

MOST = 4  # stretches of batch sizes that are told one by one


def lead_facts(
    found: Sequence[BatchVerdict], names: Sequence[str], bn: int | None
) -> tuple[list["StretchFacts"], list[int]]:
    """Return the facts on each stretch of batch sizes, and the batch sizes left to the tables.

    names: of the lines; bn: the number of BN.
    """
    every = stretches(found, bn)
    if len(every) > MOST:
        every = joined(every, bn)
    shown = sorted(every, key=lambda one: -len(one.places))[:MOST]
    batches = [place.batch for place in found]
    facts = [StretchFacts(one, batches, names, bn) for one in every if one in shown]
    return facts, sorted(p.batch for one in every if one not in shown for p in one.places)


@dataclass(frozen=True)
class StretchFacts:
    """A stretch and what is said of it; lines are numbers, until `named`."""

    of: Stretch
    every: Sequence[int]
    names: Sequence[str]
    bn: int | None

    @property
    def places(self) -> list[BatchVerdict]:
        """The batch verdicts from the outer end inwards; the numbers shown are of the first."""
        return self.of.places[::-1] if self.of.from_end else self.of.places

    def named(self, lines: Sequence[int]) -> list[str]:
        return [self.names[i] for i in lines]

    @property
    def beaten(self) -> list[int]:
        """The lines that the leader leads throughout: BN first, then the largest lead."""
        found = self.of.throughout(BEATEN)
        return sorted(found, key=lambda i: (i != self.bn, -self.versus(i).difference.difference))

    @property
    def nearest(self) -> int:
        """BN, or else the nearest: whoever leads that one leads the others too."""
        return self.bn if self.bn in self.beaten else self.of.throughout(BEATEN)[0]

    @property
    def out(self) -> list[int]:
        """The lines that are led throughout, by whomever; BN first."""
        left = [*self.beaten, *(i for i in self.of.out if i not in self.beaten)]
        return sorted(left, key=lambda i: i != self.bn)

    @property
    def rival(self) -> int:
        """The line that an undecided leader is held against: BN, else the next highest."""
        others = self.of.throughout(TIED, APART) or self.of.throughout(TIED, CLOSE, APART)
        return self.bn if self.bn in others else others[0]

    @property
    def far(self) -> list[int]:
        """The lines that are far from the leader throughout, which is not decided."""
        return self.of.throughout(APART)

    @property
    def bn_is_far(self) -> bool:
        return self.bn in self.far and self.bn not in self.of.out

    @property
    def no_lead_counts(self) -> bool:
        """All that were compared are decided, within the margin."""
        states = {p.state(self.of.leader, i) for p in self.places for i in p.compared}
        return states - {UNKNOWN} == {CLOSE}  # a line beside itself is unknown

    @property
    def compared(self) -> list[str]:
        """The lines compared where they are more than two."""
        compared = self.places[0].compared
        return self.named(compared) if len(compared) > 2 else []

    @property
    def tie(self) -> list[str]:
        """The ways in which the near lines are near."""
        states = {place.state(self.of.leader, i) for place in self.places for i in self.of.near}
        close = f"within {phrases.margin(self.places[0].margin)}"
        return ["statistically tied"] * (TIED in states) + [close] * (CLOSE in states)

    @property
    def partly(self) -> dict[str, Sequence[object]]:
        """The lines that are tied with the leader at some batch sizes only, and at which.

        No batch sizes where these differ from line to line.
        """
        at: dict[int, list[int]] = {}
        for place in self.of.places:
            for i in place.near(self.of.leader):
                if i not in self.of.near:
                    at.setdefault(i, []).append(place.batch)
        batches = {tuple(of) for of in at.values()}
        return {"lines": self.named([*at]), "batches": batches.pop() if len(batches) == 1 else ()}

    def far_below(self, but: int | None) -> tuple[list[str], list[int]]:
        """Return who else is far below the leader undecided, and at which batch sizes."""
        found = [
            (i, place.batch)
            for place in self.places
            for i in place.among(self.of.leader, APART)
            if i != but and i not in place.led and place.mean(i) < place.mean(self.of.leader)
        ]
        lines = dict.fromkeys(i for i, _ in found)
        return self.named([*lines]), sorted({batch for _, batch in found})

    def versus(self, rival: int) -> NormComparison:
        """Return the comparison to tell: the outermost in which the leader's mean is above.

        Of those that are decided, one whose interval does not end at 0: such an end is Holm's
        decision alone and says nothing of the size.
        """
        found = [place.over[self.of.leader, rival] for place in self.places]
        above = [one for one in found if one.difference.difference >= 0] or found
        sized = [one for one in above if one.difference.lo_simultaneous]
        return (sized or above)[0]

    def scatters(self, rival: int) -> str:
        """Return which of the two scatters more from seed to seed, "" if both about alike."""
        one = self.versus(rival)
        if one.scattering is None:
            return ""
        return self.names[self.of.leader if one.scattering is one.cell else rival]
