"""Differences of mean accuracy: each batch size against the reference, and norm against BN.

Two families of differences, each with Holm's adjustment: norm against BN at every batch size, one
family for each setting (a model, a data set, an update rule), so that the best of several norms may
be named at the stated error rate; and batch against reference, over all norms. A third, the
equivalence tests of the second.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import BASE, Cell, Series, norm_label
from gnexp.analysis.inference import (
    AHEAD,
    ALPHA,
    BEHIND,
    TOO_FEW,
    Difference,
    contrast,
    holm,
    seeds_to_decide,
    simultaneous,
)
from gnexp.analysis.samples import Sample, samples

Row = dict[str, Any]
SCATTERS = 2.0  # times the other cell's standard deviation over seeds
# What the series of a setting may differ in; an untuned rate is told, but keeps none apart.
_OF_THE_SERIES = ("norm", "groups", "channels_per_group", "tuned")


@dataclass(frozen=True)
class NormComparison:
    """Two cells at one batch size: their difference, a member of its family."""

    batch: int
    cell: Cell
    other: Cell
    difference: Difference

    @property
    def mean(self) -> float:
        """The cell's mean accuracy, diverged seeds at chance."""
        return self.cell.mean

    @cached_property
    def seeds_to_decide(self) -> tuple[int | float, int | float]:
        """The range of seeds in each cell that would decide a difference of this size."""
        return seeds_to_decide(self.difference, self.difference.family)

    @property
    def images_are_too_few(self) -> bool:
        """True where no number of seeds decides the difference: the test images are too few."""
        quantile = statistics.t_quantile(1 - ALPHA / (2 * self.difference.family), 1e9)
        return abs(self.difference.difference) <= quantile * self.difference.se_images

    @property
    def scattering(self) -> Cell | None:
        """The cell that scatters more from seed to seed, None where both scatter about alike."""
        a, b = self.cell.scored_mean.sd, self.other.scored_mean.sd
        if a != a or b != b or max(a, b) < SCATTERS * min(a, b):
            return None
        return self.other if b > a else self.cell

    @property
    def note(self) -> str:
        """The reason for a missing p, and the norms whose learning rate was not tuned."""
        return "; ".join(filter(None, (self.difference.why, untuned_note(self.cell, self.other))))


@dataclass(frozen=True)
class ComparisonGroup:
    """Series that differ in nothing but the norm: bn is BN as it comes, if it was trained.

    key: what the series share. pairs: (series, its comparisons with bn, ascending in batch) for
    every series but bn itself, all of them one family. samples: what each cell's accuracies say,
    by id(cell), their spreads moderated over the setting.
    """

    key: dict[str, Any]
    lines: list[Series]
    bn: Series | None
    pairs: list[tuple[Series, list[NormComparison]]]
    samples: Mapping[int, Sample]

    @cached_property
    def other_pairs(self) -> list[tuple[Series, Series, NormComparison]]:
        """(first, second, first minus second) of the norms but BN, at batch sizes of both.

        All of them are one family.
        """
        pairs = itertools.combinations((line for line in self.lines if line is not self.bn), 2)
        found = _family(pairs, self.samples)
        return [each for each in found if each[2].cell.scored and each[2].other.scored]


def _family(
    pairs: Iterable[tuple[Series, Series]], known: Mapping[int, Sample]
) -> list[tuple[Series, Series, NormComparison]]:
    """Return first minus second at the batch sizes at which both have results, as one family."""
    asked = [
        (a, b, cell, other)
        for a, b in pairs
        for cell in a.cells
        for other in b.cells
        if cell.key["batch"] == other.key["batch"]
    ]
    found = simultaneous([between(cell, other, known) for *_, cell, other in asked])
    return [
        (a, b, NormComparison(cell.key["batch"], cell, other, one))
        for (a, b, cell, other), one in zip(asked, found)
    ]


def settings(lines: Sequence[Series]) -> list[ComparisonGroup]:
    """Return the series by setting, in their order, each compared with the setting's BN."""
    grouped: dict[str, list[Series]] = {}
    for line in lines:
        grouped.setdefault(_text({**_shared(line.key), "lr": None}), []).append(line)
    found = []
    for among in grouped.values():
        by_rate: dict[str, list[Series]] = {}
        for line in among:
            by_rate.setdefault(repr(line.key.get("lr")), []).append(line)
        found += [among] if _differ_only_in_tuning(among) else by_rate.values()
    order = {id(line): place for place, line in enumerate(lines)}
    found.sort(key=lambda among: order[id(among[0])])
    return [_setting(among) for among in found]


def all_samples(found: Sequence[ComparisonGroup]) -> dict[int, Sample]:
    """Return {id(cell): Sample} of all settings; a cell of several is as the first has it."""
    known: dict[int, Sample] = {}
    for setting in found:
        known = {**setting.samples, **known}
    return known


def _text(key: Mapping[str, Any]) -> str:
    return repr(sorted(key.items(), key=str))


def _differ_only_in_tuning(among: Sequence[Series]) -> bool:
    """Return whether the rates of these series differ only in that some were tuned.

    A tuned one stands beside the one untuned series of another norm; beside several of one norm,
    at a rate each, nothing says which it is to be compared with.
    """
    mixed = {line.key.get("tuned") for line in among} >= {True, False}
    norms = [_text({k: v for k, v in line.key.items() if k != "lr"}) for line in among]
    return mixed and len(set(norms)) == len(norms)


def _setting(lines: list[Series]) -> ComparisonGroup:
    found = [line for line in lines if line.norm == "bn"]
    as_it_comes = [b for b in found if b.key.get("norm.momentum_rule") in (None, "batches")]
    bn = next(iter(as_it_comes or found), None)
    others = [line for line in lines if line is not bn]
    known = samples({id(cell): cell for line in lines for cell in line.cells}.values())
    compared = _family(((line, bn) for line in others if bn), known)
    pairs = [(line, [one for a, _, one in compared if a is line]) for line in others if bn]
    key = _shared(lines[0].key)
    if len({repr(line.key.get("lr")) for line in lines}) > 1:
        key.pop("lr")
    return ComparisonGroup(key, lines, bn, pairs, known)


def _shared(key: Mapping[str, Any]) -> Row:
    return {k: v for k, v in key.items() if k not in _OF_THE_SERIES and not k.startswith("norm.")}


def between(a: Cell, b: Cell, known: Mapping[int, Sample]) -> Difference:
    """Return the difference of two cells' accuracies, a minus b; diverged seeds count at chance.

    known: of their setting. A cell without a finished seed makes it nan.
    """
    if id(a) not in known or id(b) not in known:
        nothing = [math.nan] * 6
        return Difference(*nothing, why=TOO_FEW)
    return contrast([(1.0, known[id(a)]), (-1.0, known[id(b)])])


def norm_rows(found: Sequence[ComparisonGroup]) -> list[Row]:
    """Return one row per norm and batch size that BN has too: norm minus BN, 0..1."""
    return [
        _compared_row(line, setting.bn, one)
        for setting in found
        for line, pairs in setting.pairs
        for one in pairs
    ]


def pair_rows(found: Sequence[ComparisonGroup]) -> list[Row]:
    """Return one row per pair of norms other than BN and batch size of both: first minus second."""
    return [_compared_row(*pair) for setting in found for pair in setting.other_pairs]


def _compared_row(line: Series, against: Series, one: NormComparison) -> Row:
    return {
        **one.cell.key,
        **{"series": line.label, "against": against.label},
        **vars(one.difference),
        **{"n_diverged": one.cell.diverged, "n_diverged_against": one.other.diverged},
        "note": one.note,
    }


def untuned_note(*cells: Cell) -> str:
    """Return of compared cells which norms' learning rates were not tuned, "" if all are alike."""
    tuned = [cell.key.get("tuned") for cell in cells]
    if True not in tuned or False not in tuned:
        return ""
    names = [norm_label(cell.key) for cell in cells if cell.key.get("tuned") is False]
    return f"the rate of {' and '.join(dict.fromkeys(names))} was not tuned"


def flatness_rows(
    lines: Sequence[Series], groups: Sequence[ComparisonGroup], reference_batch: int
) -> list[Row]:
    """Return one row per series and batch size other than the reference, which was fixed before.

    groups: of all the series, whose samples are compared. verdict: flat when Holm over the
    equivalence tests of all rows rejects at 5 %, lower or higher when Holm over p does, else
    undecided. `differs`: other settings that differ from the reference.
    """
    known = {id(line): group.samples for group in groups for line in group.lines}
    asked = [
        (line, cell, reference)
        for line in lines
        for reference in [c for c in line.cells if c.key["batch"] == reference_batch][:1]
        for cell in line.cells
        if cell is not reference
    ]
    found = simultaneous([between(cell, ref, known[id(line)]) for line, cell, ref in asked])
    tests = [statistics.equivalence(one.difference, one.se, one.dof) for one in found]
    family = zip(asked, found, tests, holm([p for *_, p in tests]))
    return [_flatness_row(*pair, *member) for (_, *pair), *member in family]


def _flatness_row(
    cell: Cell,
    reference: Cell,
    one: Difference,
    flat: tuple[float, float, float],
    p_flat: float,
) -> Row:
    words = {AHEAD: statistics.HIGHER, BEHIND: statistics.LOWER}
    decided = words.get(one.verdict, statistics.UNDECIDED)
    differing = [k for k, v in cell.key.items() if k not in BASE and v != reference.key.get(k)]
    return {
        **cell.key,
        "reference_batch": reference.key["batch"],
        "reference_update_batch": reference.key["update_batch"],
        **{"n": len(cell.scored), "n_reference": len(reference.scored)},
        "n_diverged": cell.diverged + reference.diverged,
        "accuracy_reference": reference.mean if reference.scored else 0.0,
        **{**vars(one), "lo95": one.lo, "hi95": one.hi},
        **dict(zip(("lo90", "hi90", "p_equivalence"), flat)),
        "p_equivalence_holm": p_flat,
        "verdict": statistics.FLAT if p_flat < ALPHA else decided,
        "differs": ", ".join(differing),
    }
