"""Two studies side by side: which of their cells are alike, and how their accuracies differ.

Everywhere the difference is the second study minus the first.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from gnexp.analysis.cells import Cell, Series, norm_label, series, series_label, telling_apart
from gnexp.analysis.compared_keys import BASE, cell_key, key_text, varying
from gnexp.analysis.comparisons import all_samples, between, settings
from gnexp.analysis.inference import (
    AHEAD,
    BEHIND,
    Difference,
    Estimate,
    contrast,
    simultaneous,
    welch_difference,
)
from gnexp.analysis.samples import Sample
from gnexp.analysis.statistics import HIGHER, LOWER, shared
from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.store.study import Record

Row = dict[str, Any]

VERSION_KEYS = ("gnexp", "commit", "python", "torch", "numpy", "device", "threads", "determinism")
_SHOWN_AS_DATA = ("data", "data.checksum", "data.train_limit", "data.test_limit", "data.size")


@dataclass(frozen=True)
class MatchedCells:
    """A cell of each study, alike in `key`: BASE and whatever else tells cells of one apart."""

    key: Row
    first: Cell
    second: Cell


@dataclass
class StudyComparison:
    """Two studies side by side: their matched cells, and all rows made from those, computed once.

    sides: the analyses of the first and the second study, at one reference batch.
    """

    sides: Sequence[StudyAnalysis]

    names = cached_property(lambda self: [side.study.name for side in self.sides])
    _matched = cached_property(lambda self: match(*(s.cells for s in self.sides), self.names))
    pairs = property(lambda self: self._matched[0])
    unmatched = property(lambda self: self._matched[1])
    # Rows of the tables of accuracies and of costs, and the difference of the mean over all pairs.
    accuracy = cached_property(lambda self: accuracy_rows(self.pairs, self.samples))
    costs = cached_property(
        lambda self: cost_rows(self.pairs, self.samples, self.sides[0].reference_batch)
    )
    overall = cached_property(lambda self: overall(self.pairs))

    @cached_property
    def samples(self) -> dict[int, Sample]:
        """{id(cell): Sample}, each moderated over the groups that its study's pairs make."""
        cells = ([getattr(pair, side) for pair in self.pairs] for side in ("first", "second"))
        first, second = (all_samples(settings(series(of))) for of in cells)
        return {**first, **second}

    @cached_property
    def differing(self) -> list[Row]:
        """Rows {what, first, second} of settings, data, versions, and how many cells are tuned."""
        counts = [len(side.tuned) for side in self.sides]
        tuned = {"what": "cells whose learning rate is tuned"}
        tuned |= {"first": str(counts[0]), "second": str(counts[1])}
        differing = what_differs(*(side.cells for side in self.sides))
        return [*differing, *[tuned] * (counts[0] != counts[1])]

    @cached_property
    def key(self) -> list[str]:
        """The keys beyond BASE in which matched cells agree."""
        return [key for key in (self.pairs[0].key if self.pairs else ()) if key not in BASE]


def match(
    first: Sequence[Cell], second: Sequence[Cell], names: Sequence[str]
) -> tuple[list[MatchedCells], list[Row]]:
    """Return the cells that are in both studies, and rows of those that are not, and why.

    Alike is what agrees in norm, groups, batch, update batch, and in every key by which cells of
    either study that agree in these are told apart. Keys that merely differ between the studies
    (the model, say) or follow from the batch size (a tuned rate) are what is compared.
    """
    # Two runs that differ in nothing shown are told apart by their names, which match nothing.
    shown_keys = sorted((telling_apart(first) | telling_apart(second)) - {"run"})
    found: dict[str, tuple[Row, list[Cell], list[Cell]]] = {}
    for index, cells in enumerate((first, second), 1):
        for cell in cells:
            key = cell_key(cell.record, shown_keys)
            found.setdefault(key_text(key), (key, [], []))[index].append(cell)
    pairs, unmatched = [], []
    for key, *both in found.values():
        if [len(cells) for cells in both] == [1, 1]:
            pairs.append(MatchedCells(key, both[0][0], both[1][0]))
            continue
        for index, cells in enumerate(both):
            several = "several runs here differ in nothing that their configs show"
            why = several if both[1 - index] else f"not in {names[1 - index]}"
            unmatched += [{**key, "study": names[index], "why": why} for _ in cells]
    return pairs, unmatched


def labelled(both: Sequence[Sequence[Series]], shown_keys: Sequence[str]) -> list[list[Series]]:
    """Label the series of two studies: those with one label agree in `shown_keys`."""
    keys = [
        [{**cell_key(line.cells[0].record, shown_keys), **line.key} for line in lines]
        for lines in both
    ]
    for key in (key for side in keys for key in side):
        del key["batch"], key["update_batch"]
    every = [key for side in keys for key in side]
    return [
        [replace(line, label=series_label(key, every)) for line, key in zip(lines, side)]
        for lines, side in zip(both, keys)
    ]


def overall(pairs: Sequence[MatchedCells]) -> tuple[Estimate, int, int]:
    """Return the difference of the mean over all pairs (Welch), and the seeds of second and first.

    Seeds, not cells, are what repeats: cells of one seed share its initial weights. Seeds that lack
    a cell are left out.
    """
    second, first = (
        [sum(scores) / len(scores) for scores in shared(*(cell.scores for cell in cells)).values()]
        for cells in ([pair.second for pair in pairs], [pair.first for pair in pairs])
    )
    return welch_difference(second, first), len(second), len(first)


def varies(key: str, rows: Sequence[Row]) -> bool:
    """Return whether a key tells rows of one norm apart."""
    seen: dict[str, set[str]] = {}
    for row in rows:
        seen.setdefault(row["norm"], set()).add(str(row.get(key)))
    return any(len(values) > 1 for values in seen.values())


def accuracy_rows(pairs: Sequence[MatchedCells], known: Mapping[int, Sample]) -> list[Row]:
    """Return a row per pair: both accuracies, their difference, Holm and a simultaneous interval.

    Accuracies are of the seeds that did not diverge; in the difference those count at chance.
    """
    differences = [between(pair.second, pair.first, known) for pair in pairs]
    return [
        {
            **{**pair.key, "label": norm_label(pair.key)},
            **_side("first", pair.first),
            **_side("second", pair.second),
            **tested,
        }
        for pair, tested in zip(pairs, _tested(differences))
    ]


def _side(name: str, cell: Cell) -> Row:
    interval, over = cell.accuracy
    numbers = {"n": interval.n, "mean": interval.mean, "lo": interval.lo, "hi": interval.hi}
    return _of_side(name, {**numbers, "n_diverged": cell.diverged, "interval": over})


def _of_side(name: str, numbers: Row) -> Row:
    return {f"{name}_{key}": value for key, value in numbers.items()}


def cost_rows(
    pairs: Sequence[MatchedCells], known: Mapping[int, Sample], reference_batch: int
) -> list[Row]:
    """Return a row per pair away from the reference batch: what the batch costs in each study."""
    cases = [
        (pair, other)
        for pair in pairs
        if pair.key["batch"] != reference_batch
        for other in [p for p in pairs if _is_reference(p, pair, reference_batch)][:1]
    ]
    cells = [(pair.first, other.first, pair.second, other.second) for pair, other in cases]
    weights = (-1.0, 1.0, 1.0, -1.0)
    differences = [contrast(zip(weights, [known[id(c)] for c in four])) for four in cells]
    rows = []
    for (pair, _), (a, of_a, b, of_b), tested in zip(cases, cells, _tested(differences)):
        row = {**pair.key, "label": norm_label(pair.key), "reference_batch": reference_batch}
        for name, pair_of_cells in (("first", (a, of_a)), ("second", (b, of_b))):
            d = between(*pair_of_cells, known)
            numbers = {"n": min(d.n_a, d.n_b), "cost": d.difference, "lo": d.lo, "hi": d.hi}
            row |= _of_side(name, numbers)
        rows.append(row | tested)
    return rows


def _is_reference(candidate: MatchedCells, pair: MatchedCells, reference_batch: int) -> bool:
    """Return whether `candidate` is the pair's cell at the reference batch, updates of its rule."""
    fixed = pair.key["update_batch"] != pair.key["batch"]
    update = pair.key["update_batch"] if fixed else reference_batch
    return candidate.key == {**pair.key, "batch": reference_batch, "update_batch": update}


def _tested(differences: Sequence[Difference]) -> list[Row]:
    words = {AHEAD: HIGHER, BEHIND: LOWER}
    return [
        {
            **{**vars(d), "lo95": d.lo, "hi95": d.hi},
            "verdict": words.get(d.verdict, d.verdict) + (d.why and f": {d.why}"),
        }
        for d in simultaneous(differences)
    ]


def what_differs(first: Sequence[Cell], second: Sequence[Cell]) -> list[Row]:
    """Return {what, first, second} for every setting, version and machine that differs.

    A setting of several values in a study is given as all of them.
    """
    both = [
        [*{record.name: record for cell in cells for record in cell.records}.values()]
        for cells in (first, second)
    ]
    of_data = {"title": "data", "train": "training images", "test": "test images"}
    of_data |= {"classes": "classes", "checksum": "checksum of the data"}
    settings = [key for key in varying([*both[0], *both[1]]) if key not in _SHOWN_AS_DATA]
    asked = [
        *((key, lambda record, key=key: cell_key(record, [key])[key]) for key in settings),
        *((title, partial(_of_data, key=k)) for k, title in of_data.items()),
        *((key, partial(_provenance, key=key)) for key in VERSION_KEYS),
    ]
    rows = [(what, *(_values(map(of, records)) for records in both)) for what, of in asked]
    seeds = ([row["seed"] for cell in cells for row in cell.seeds] for cells in (first, second))
    rows.append(("seeds", *map(_values, seeds)))
    return [{"what": what, "first": a, "second": b} for what, a, b in rows if a != b]


def _of_data(record: Record, key: str) -> Any:
    value = record.result.get("data", {}).get(key)
    if key == "title":
        return value or record.config.get("data", {}).get("name")
    if key == "checksum":
        return value and str(value)[:8]
    return len(value) if key == "classes" and value is not None else value


def _provenance(record: Record, key: str) -> Any:
    value = record.provenance.get(key)
    dirty = key == "commit" and value and record.provenance.get("dirty")
    value = str(value)[:10] if key == "commit" and value else value
    return f"{value} with uncommitted changes" if dirty else value


def _values(values: Iterable[Any]) -> str:
    known = {value for value in values if value is not None}
    # Numbers by size, words by letter.
    ordered = sorted(known, key=lambda v: (isinstance(v, str), v if isinstance(v, str) else +v))
    return ", ".join(str(value) for value in ordered) or "not recorded"
