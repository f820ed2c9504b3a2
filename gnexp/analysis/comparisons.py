"""Differences of mean accuracy: each batch size against the reference, and norm against BN.

Two families of differences, each with Holm's adjustment: norm against BN at every batch size, one
family for each setting (a model, a data set, an update rule), so that the best of several norms may
be named at the stated error rate; and batch against reference, over all norms. A third, the
equivalence tests of the second.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
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
    HolmResult,
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
    """Two cells at one batch size: their difference, and it as a member of its family."""

    batch: int
    cell: Cell
    other: Cell
    difference: Difference
    adjusted: HolmResult

    @property
    def mean(self) -> float:
        """The cell's mean accuracy, diverged seeds at chance."""
        return math.fsum(self.cell.scored) / len(self.cell.scored)

    @cached_property
    def seeds_to_decide(self) -> tuple[int | float, int | float]:
        """The range of seeds in each cell that would decide a difference of this size."""
        return seeds_to_decide(self.difference, self.adjusted.family)

    @property
    def images_are_too_few(self) -> bool:
        """True where no number of seeds decides the difference: the test images are too few."""
        quantile = statistics.t_quantile(1 - ALPHA / (2 * self.adjusted.family), 1e9)
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
        """Return the reason for a missing p, and the norms whose learning rate was not tuned."""
        parts = (self.difference.why, untuned_note(self.cell, self.other))
        return "; ".join(part for part in parts if part)


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
        lines = [line for line in self.lines if line is not self.bn]
        asked = [
            (a, b, cell, other)
            for a, b in itertools.combinations(lines, 2)
            for cell in a.cells
            for other in b.cells
            if cell.key["batch"] == other.key["batch"] and cell.scored and other.scored
        ]
        found = [between(cell, other, self.samples) for *_, cell, other in asked]
        return [
            (a, b, NormComparison(cell.key["batch"], cell, other, one, adjusted))
            for (a, b, cell, other), one, adjusted in zip(asked, found, simultaneous(found))
        ]


def scored_by_seed(cell: Cell) -> dict[int, float]:
    """Return {seed: test accuracy}, a diverged seed at chance."""
    complete = {r["seed"]: r["test_acc"] for r in cell.of("complete") if r["test_acc"] is not None}
    return complete | {row["seed"]: 1 / cell.classes for row in cell.of("diverged")}


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
    pairs = _against(others, bn, known) if bn else []
    key = _shared(lines[0].key)
    if len({repr(line.key.get("lr")) for line in lines}) > 1:
        key.pop("lr")
    return ComparisonGroup(key, lines, bn, pairs, known)


def _shared(key: Mapping[str, Any]) -> Row:
    return {k: v for k, v in key.items() if k not in _OF_THE_SERIES and not k.startswith("norm.")}


def _against(
    lines: Sequence[Series], other: Series, known: Mapping[int, Sample]
) -> list[tuple[Series, list[NormComparison]]]:
    """Return each line minus other at the batch sizes of both, ascending; all are one family."""
    theirs = {cell.key["batch"]: cell for cell in other.cells}
    shared = [[c for c in line.cells if c.key["batch"] in theirs] for line in lines]
    found = [[between(c, theirs[c.key["batch"]], known) for c in cells] for cells in shared]
    adjusted = iter(simultaneous([one for differences in found for one in differences]))
    return [
        (
            line,
            [
                NormComparison(
                    c.key["batch"], c, theirs[c.key["batch"]], difference, next(adjusted)
                )
                for c, difference in zip(cells, differences)
            ],
        )
        for line, cells, differences in zip(lines, shared, found)
    ]


def between(a: Cell, b: Cell, known: Mapping[int, Sample]) -> Difference:
    """Return the difference of two cells' accuracies, a minus b; diverged seeds count at chance.

    known: of their setting. A cell without a finished seed makes it nan.
    """
    if id(a) not in known or id(b) not in known:
        nothing = [math.nan] * 6
        return Difference(*nothing, why=TOO_FEW)
    return contrast([(1.0, known[id(a)]), (-1.0, known[id(b)])])


def tested_columns(difference: Difference, adjusted: HolmResult) -> Row:
    """Return a comparison's columns: the difference and its sources of error, Holm's, Welch's."""
    return {
        **{k: getattr(difference, k) for k in TESTED if hasattr(difference, k)},
        "p_holm": adjusted.p_holm,
        "lo_simultaneous": adjusted.lo,
        "hi_simultaneous": adjusted.hi,
        "family": adjusted.family,
    }


TESTED = (
    *("method", "n_a", "n_b", "difference", "se_seeds", "se_images", "images", "dof", "lo", "hi"),
    *("p", "p_holm", "lo_simultaneous", "hi_simultaneous", "family"),
    *("welch_lo", "welch_hi", "welch_p"),
)


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
        "series": line.label,
        "against": against.label,
        **tested_columns(one.difference, one.adjusted),
        "n_diverged": len(one.cell.of("diverged")),
        "n_diverged_against": len(one.other.of("diverged")),
        "verdict": one.adjusted.verdict,
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

    groups: of all the series, whose samples are compared.
    Diverged seeds count at chance. difference to p: as `contrast` has it. p_holm, *_simultaneous:
    the same in the family of all rows. verdict: flat when Holm over the equivalence tests of all
    rows rejects at 5 %, lower or higher when Holm over p does, else undecided.
    `differs`: other settings that differ from the reference. A series without a cell at the
    reference batch gives no row.
    """
    known = {id(line): group.samples for group in groups for line in group.lines}
    rows, found = [], []
    for line in lines:
        reference = next((c for c in line.cells if c.key["batch"] == reference_batch), None)
        for cell in line.cells if reference else ():
            if cell is not reference:
                found.append(between(cell, reference, known[id(line)]))
                rows.append(_flatness_row(cell, reference, found[-1]))
    return _as_family(rows, found)


def _flatness_row(cell: Cell, reference: Cell, one: Difference) -> Row:
    lo90, hi90, p_equivalence = statistics.equivalence(one.difference, one.se, one.dof)
    return {
        **cell.key,
        "reference_batch": reference.key["batch"],
        "reference_update_batch": reference.key["update_batch"],
        "n": len(cell.scored),
        "n_reference": len(reference.scored),
        "n_diverged": len(cell.of("diverged")) + len(reference.of("diverged")),
        "accuracy_reference": math.fsum(reference.scored) / max(1, len(reference.scored)),
        **{"difference": one.difference, "lo90": lo90, "hi90": hi90, "lo95": one.lo},
        **{"hi95": one.hi, "p_equivalence": p_equivalence, "p": one.p},
        **{k: getattr(one, k) for k in ("method", "se_seeds", "se_images", "images", "dof")},
        "differs": ", ".join(_differing(cell, reference)),
    }


def _as_family(rows: list[Row], found: Sequence[Difference]) -> list[Row]:
    flat = holm([row["p_equivalence"] for row in rows])
    verdicts = {AHEAD: statistics.HIGHER, BEHIND: statistics.LOWER}
    for row, adjusted, p_flat in zip(rows, simultaneous(found), flat):
        row |= {"p_holm": adjusted.p_holm, "p_equivalence_holm": p_flat}
        row |= {"lo_simultaneous": adjusted.lo, "hi_simultaneous": adjusted.hi}
        row |= {"family": adjusted.family}
        decided = verdicts.get(adjusted.verdict, statistics.UNDECIDED)
        row["verdict"] = statistics.FLAT if p_flat < ALPHA else decided
    return rows


def _differing(cell: Cell, reference: Cell) -> list[str]:
    return [k for k, v in cell.key.items() if k not in BASE and v != reference.key.get(k)]
