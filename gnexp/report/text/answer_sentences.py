"""The sentences on which norm to use, one or two for each stretch of batch sizes."""

from collections.abc import Sequence
from dataclasses import dataclass

from gnexp.analysis.comparisons import NormComparison
from gnexp.analysis.inference import UNDECIDED
from gnexp.analysis.leaders import (
    ALL,
    APART,
    BEATEN,
    CHANCE,
    CLOSE,
    LARGE,
    OPEN,
    TIED,
    UNKNOWN,
    BatchVerdict,
    Stretch,
    joined,
    stretches,
)
from gnexp.report.text import phrases

MOST = 4  # stretches of batch sizes that are told one by one
MOST_WORDS = 45  # of a sentence


def lead_sentences(
    found: Sequence[BatchVerdict], names: Sequence[str], bn: int | None
) -> list[str]:
    """Return the sentences on the batch sizes found; names: of the lines, bn: the number of BN."""
    phrase = stretches(found, bn)
    if len(phrase) > MOST:
        phrase = joined(phrase, bn)
    shown = sorted(phrase, key=lambda one: -len(one.places))[:MOST]
    sentences, left = [], []
    for one in phrase:
        if one in shown:
            sentences += _Stretch(one, [place.batch for place in found], names, bn).sentences()
        else:
            left += [place.batch for place in one.places]
    if left:
        sentences.append(f"For batch {phrases.spelled(sorted(left))} see the tables.")
    return sentences


@dataclass(frozen=True)
class _Stretch:
    """A stretch and the words for it."""

    of: Stretch
    batches: Sequence[int]
    names: Sequence[str]
    bn: int | None

    @property
    def places(self) -> list[BatchVerdict]:
        """The batch verdicts from the outer end inwards; the numbers shown are of the first."""
        return self.of.places[::-1] if self.of.from_end else self.of.places

    @property
    def where(self) -> str:
        return phrases.where([place.batch for place in self.places], self.batches)

    @property
    def leader(self) -> str:
        return self.names[self.of.leader]

    def sentences(self) -> list[str]:
        if self.of.kind == CHANCE:
            level = phrases.chance(next(iter(self.places[0].cells.values())))
            none = f"no norm is decidedly above chance ({level}), so none is recommended"
            return [f"{self.where}, {none}."]
        if self.of.kind == OPEN:
            rival = self.rival()
            return [self.open(rival), *self.far_below(rival)]
        apart = self.bn in self.of.throughout(APART) and self.bn not in self.of.out
        return [
            self.use(),
            *([self.not_decided(self.bn)] if apart else []),
            *self.far_below(self.bn if apart else None),
        ]

    def use(self) -> str:
        """Return 'use X: it leads every other norm', or 'use X, Y or Z (...), not W'."""
        beaten, near = self.of.throughout(BEATEN), self.of.near
        beaten.sort(key=lambda i: (i != self.bn, -self.versus(i).difference.difference))
        if self.of.kind == ALL:
            return self.use_one(beaten)
        use = phrases.either([self.leader, *self.names_of(near)], among_them="BN")
        use += f" ({self.tie(near)})" if near else ""
        left = [*beaten, *(i for i in self.of.out if i not in beaten)]
        left.sort(key=lambda i: i != self.bn)
        out = phrases.either(self.names_of(left), most=2)
        phrase = f"{self.where}, use {use}, not {out}: {'the first' if near else 'it'} leads "
        phrase += self.by(beaten[0])
        partly = self.partly(near)
        fits = len(f"{phrase}{partly}".split()) <= MOST_WORDS  # the tables have it too
        return f"{phrase}{partly * fits}."

    def use_one(self, beaten: Sequence[int]) -> str:
        others = len(self.names) - 1
        if others == 1:
            return f"{self.where}, use {self.leader}: it leads {self.by(beaten[0])}."
        # BN, or else the nearest: whoever leads that one leads the others too.
        rival = self.bn if self.bn in beaten else self.of.throughout(BEATEN)[0]
        who = "every other norm" if len(beaten) == others else "every other norm compared"
        return f"{self.where}, use {self.leader}: it leads {who}, {self.by(rival)}."

    def open(self, rival: int) -> str:
        """Return the sentence on batch sizes at which nobody is beaten."""
        if rival in self.of.throughout(APART):
            return self.not_decided(rival)
        versus = self.versus(rival)
        has = f"highest mean {self.leader}, {self.above(rival)}"
        small = f"which is decided but below {phrases.margin(self.places[0].margin)}"
        states = {p.state(self.of.leader, i) for p in self.places for i in p.compared}
        if states - {UNKNOWN} == {CLOSE}:  # a line beside itself is unknown
            return f"{self.where}, no lead counts: {has}, {small}."
        compared = self.places[0].compared
        among = f" between {phrases.some(self.names_of(compared))}" * (len(compared) > 2)
        undecided = versus.adjusted.verdict == UNDECIDED
        more = f"; {phrases.would_decide(versus)}" if undecided else f", {small}"
        return f"{self.where} the data do not decide{among}: {has}{more}."

    def not_decided(self, rival: int) -> str:
        """Return the sentence on a large difference that is not decided, with what would."""
        versus = self.versus(rival)
        who = phrases.scatters(versus, self.leader, self.names[rival])
        why = f" because {who} scatters there" * bool(who)
        return (
            f"{self.where}, {self.leader} is {self.above(rival)}, which is not decided{why}: "
            f"{phrases.would_decide(versus)}."
        )

    def far_below(self, phrase: int | None) -> list[str]:
        """Return in a list who else is far below the leader undecided; empty if nobody is."""
        found = [
            (i, place.batch)
            for place in self.places
            for i in place.among(self.of.leader, APART)
            if i != phrase and i not in place.led and place.mean(i) < place.mean(self.of.leader)
        ]
        if not found:
            return []
        names = phrases.some(self.names_of(dict.fromkeys(i for i, _ in found)))
        batches = phrases.spelled(sorted({batch for _, batch in found}))
        verb = "is" if len({i for i, _ in found}) == 1 else "are"
        return [
            f"{names} {verb} {100 * LARGE:g} points or more below {self.leader} at batch "
            f"{batches}, which is not decided."
        ]

    def rival(self) -> int:
        """Return the line that an undecided leader is held against: BN, else the next highest."""
        others = self.of.throughout(TIED, APART) or self.of.throughout(TIED, CLOSE, APART)
        return self.bn if self.bn in others else others[0]

    def names_of(self, lines: Sequence[int]) -> list[str]:
        return [self.names[i] for i in lines]

    def versus(self, rival: int) -> NormComparison:
        """Return the comparison to tell: the outermost in which the leader's mean is above.

        Of those that are decided, one whose interval does not end at 0: such an end is Holm's
        decision alone and says nothing of the size.
        """
        found = [place.over[self.of.leader, rival] for place in self.places]
        above = [one for one in found if one.difference.difference >= 0] or found
        sized = [one for one in above if one.adjusted.lo]
        return (sized or above)[0]

    def above(self, rival: int) -> str:
        """Return '12.3 points above BN at batch 1 (95 % interval ..., n = 5 each)'."""
        versus = self.versus(rival)
        size = phrases.points(versus.difference.difference)
        return f"{size} above {self.names[rival]}{self.at(versus)} {self.interval(rival)}"

    def by(self, rival: int) -> str:
        """Return 'BN by 12.3 points at batch 1 (95 % interval ..., n = 5 each)'."""
        versus = self.versus(rival)
        size = phrases.points(versus.difference.difference)
        return f"{self.names[rival]} by {size}{self.at(versus)} {self.interval(rival)}"

    def at(self, versus: NormComparison) -> str:
        return f" at batch {versus.batch}" * (len(self.places) > 1)

    def interval(self, rival: int) -> str:
        return phrases.interval(self.versus(rival), self.leader, self.names[rival])

    def tie(self, near: Sequence[int]) -> str:
        states = {place.state(self.of.leader, i) for place in self.places for i in near}
        close = f"within {phrases.margin(self.places[0].margin)}"
        return " or ".join(["statistically tied"] * (TIED in states) + [close] * (CLOSE in states))

    def partly(self, near: Sequence[int]) -> str:
        """Return who is tied with the leader at some of the batch sizes only."""
        at: dict[int, list[int]] = {}
        for place in self.of.places:
            for i in place.near(self.of.leader):
                if i not in near:
                    at.setdefault(i, []).append(place.batch)
        if not at:
            return ""
        batches = {tuple(of) for of in at.values()}
        where = "some of them"
        if len(batches) == 1:
            where = f"batch {phrases.spelled(batches.pop())}"
        verb = "is" if len(at) == 1 else "are"
        return f"; {phrases.some(self.names_of(at), most=2)} {verb} tied with it at {where}"
