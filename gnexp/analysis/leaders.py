"""The leading norms at each batch size of a comparison group.

Norm against BN is decided in its own family, every pair of other norms in a second one. A lead
counts where its family decides it and the measured difference is beyond the margin.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from gnexp.analysis.cells import Cell
from gnexp.analysis.comparisons import ComparisonGroup, NormComparison, between
from gnexp.analysis.inference import (
    AHEAD,
    BEHIND,
    UNDECIDED,
    UNTESTED,
    Difference,
    with_images,
)
from gnexp.analysis.samples import BOUND
from gnexp.analysis.statistics import binomial_interval

MARGIN = 0.005  # accuracy; a smaller lead does not count
LARGE = 0.05  # accuracy; nobody calls such a difference a tie, decided or not

# What is known of j beside i.
BEATEN, ABOVE = "beaten", "above"  # decided, beyond the margin: i leads j, or j leads i
CLOSE = "close"  # decided, within the margin
TIED, APART = "tied", "apart"  # undecided, and less or more than LARGE between them
UNKNOWN = "unknown"  # not compared
# Of a batch size: the norm with the highest mean leads all others, some, or none; no norm is above
# chance; nothing was tested.
ALL, SOME, OPEN, CHANCE, NOT_TESTED = "all", "some", "open", "chance", "not tested"


@dataclass(frozen=True)
class BatchVerdict:
    """One batch size of a setting; lines are numbered as in `setting.lines`.

    cells: of the lines that have a finished seed here. over: {(i, j): i minus j}, both ways round,
    of all that were compared.
    """

    batch: int
    cells: Mapping[int, Cell]
    over: Mapping[tuple[int, int], NormComparison]
    margin: float
    at_chance: bool

    def mean(self, i: int) -> float:
        """Return a line's mean accuracy, diverged seeds at chance."""
        return self.cells[i].mean

    @cached_property
    def compared(self) -> list[int]:
        """The lines that were compared with another, the highest mean first."""
        found = {i for pair in self.over for i in pair}
        return sorted(found, key=lambda i: (-self.mean(i), i))

    def state(self, i: int, j: int) -> str:
        """Return what is known of j beside i."""
        return self._states.get((i, j), UNKNOWN)

    @cached_property
    def _states(self) -> dict[tuple[int, int], str]:
        found = {}
        for pair, one in self.over.items():
            size, ahead = abs(one.difference.difference), one.difference.verdict == AHEAD
            if one.difference.verdict == UNDECIDED:
                found[pair] = APART if size >= LARGE else TIED
            else:
                found[pair] = CLOSE if size <= self.margin else BEATEN if ahead else ABOVE
        return found

    def among(self, i: int, *states: str) -> list[int]:
        """Return the lines in these states beside i, the highest mean first."""
        return [j for j in self.compared if j != i and self.state(i, j) in states]

    @cached_property
    def led(self) -> set[int]:
        """The lines that another line leads."""
        return {j for (_, j), state in self._states.items() if state == BEATEN}

    def near(self, i: int) -> list[int]:
        """Return the lines that are tied with i and led by nobody, the highest mean first."""
        return [j for j in self.among(i, TIED, CLOSE) if j not in self.led]

    @property
    def kind(self) -> str:
        if self.at_chance:
            return CHANCE
        if not self.over:
            return NOT_TESTED
        beaten = self.among(self.compared[0], BEATEN)
        return ALL if len(beaten) == len(self.compared) - 1 else SOME if beaten else OPEN

    @property
    def candidates(self) -> list[int]:
        """The line with the highest mean, and those that are tied with it and led by nobody."""
        first = self.compared[0]
        return [first, *(i for i in self.near(first) if not self._far_above(i))]

    def _far_above(self, i: int) -> list[int]:
        return [j for j in self.among(i, APART) if self.mean(j) > self.mean(i)]


def flipped(one: NormComparison) -> NormComparison:
    """Return the comparison seen from the other side."""
    d = one.difference
    turned = replace(
        d,
        **{"difference": -d.difference, "lo": -d.hi, "hi": -d.lo, "n_a": d.n_b, "n_b": d.n_a},
        **{"welch_lo": -d.welch_hi, "welch_hi": -d.welch_lo},
        **{"lo_simultaneous": -d.hi_simultaneous, "hi_simultaneous": -d.lo_simultaneous},
        verdict={AHEAD: BEHIND, BEHIND: AHEAD}.get(d.verdict, d.verdict),
        terms=tuple((-weight, sample) for weight, sample in d.terms),
    )
    return NormComparison(one.batch, one.other, one.cell, turned)


def untested_lead(
    group: ComparisonGroup, found: Sequence[BatchVerdict]
) -> tuple[int, int, Difference]:
    """Return who has the highest mean at the first batch size, a rival, and their difference.

    found: batch sizes at which nothing has a p. The rival is BN where BN was trained there.
    """
    cells = found[0].cells
    first, *others = sorted(cells, key=lambda i: (-found[0].mean(i), i))
    rival = next((i for i in others if group.lines[i] is group.bn), others[0])
    return first, rival, between(cells[first], cells[rival], group.samples)


def typical_errors(tested: Sequence[NormComparison]) -> tuple[float, float | None, bool]:
    """Return the median standard error over seeds, and over test images, None if unknown.

    And whether any of the latter is an upper bound.
    """
    known = [one.difference for one in tested if one.difference.images]
    images = statistics.median(one.se_images for one in known) if known else None
    seeds = statistics.median(one.difference.se_seeds for one in tested)
    return seeds, images, any(one.images == BOUND for one in known)


def seeds_at_chance(cell: Cell) -> int:
    """Return how many seeds are not above chance: their Wilson interval holds 1 / classes."""
    lows = (binomial_interval(accuracy, cell.test_images)[0] for accuracy in cell.accuracies)
    return sum(low <= 1 / cell.classes for low in lows)


def places(setting: ComparisonGroup, margin: float = MARGIN) -> list[BatchVerdict]:
    """Return the batch sizes at which two norms or more have a finished seed, ascending."""
    number = {id(line): i for i, line in enumerate(setting.lines)}
    pairs = [(line, setting.bn, one) for line, of_line in setting.pairs for one in of_line]
    over: dict[int, dict[tuple[int, int], NormComparison]] = {}
    for a, b, one in [*pairs, *setting.other_pairs]:
        i, j = number[id(a)], number[id(b)]
        if one.difference.verdict != UNTESTED:
            over.setdefault(one.batch, {}).update({(i, j): one, (j, i): flipped(one)})
    at: dict[int, dict[int, Cell]] = {}
    for i, line in enumerate(setting.lines):
        for cell in (cell for cell in line.cells if cell.scored):
            at.setdefault(cell.key["batch"], {})[i] = cell
    return [
        BatchVerdict(batch, cells, over.get(batch, {}), margin, _at_chance(setting, cells))
        for batch, cells in sorted(at.items())
        if len(cells) > 1
    ]


def _at_chance(setting: ComparisonGroup, cells: Mapping[int, Cell]) -> bool:
    """Return whether no cell's 95 % interval, over seeds and test images, is above chance.

    Of one seed, or of seeds without any spread, over test images alone; where nothing is known of
    either (nan), that is not at chance.
    """
    for cell in cells.values():
        lo, _ = with_images(setting.samples[id(cell)])
        if lo != lo:
            lo, _ = binomial_interval(cell.mean, cell.test_images)
        if not (lo if lo == lo else cell.scored_mean.lo) <= 1 / cell.classes:
            return False
    return True
