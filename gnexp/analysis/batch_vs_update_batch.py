"""Two batch sizes apart: how much of a small batch's fall is the norm's, how much the optimizer's.

Three cells of one norm share their seeds: R, the reference, with batch = update_batch = U; F, with
a smaller batch inside the same update of U images; E, with update_batch = batch. From R to F only
the statistics see fewer images; from F to E the optimizer does too:

  fall = acc(R) - acc(E) = norm + optimizer, norm = acc(R) - acc(F), optimizer = acc(F) - acc(E)
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gnexp.analysis.cells import Cell, Series, accuracy_interval, key_text, series_label
from gnexp.analysis.decomposition import pools_images
from gnexp.analysis.inference import paired_difference
from gnexp.analysis.statistics import shared
from gnexp.analysis.tables.table import Row

TOGETHER = "norm and optimizer together"
EQUAL = "= batch"  # the update rule of a series, as cells.series names it
RUNNING, PRECISE = "running", "population_augmented"
PARTS = ("fall", "norm_part", "optimizer_part")
LEVELS = ("reference", "fixed", "equal")
ENDS = ("", "_lo", "_hi")
_NUMBERS = {RUNNING: "test_acc", PRECISE: "test_acc_population_augmented"}


def optimizer_is_fixed(keys: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether cells of several batch sizes share one update_batch.

    keys: of the cells. Only then is the norm alone behind what the batch size changes; where
    update_batch follows the batch size, the optimizer is too.
    """
    keys = list(keys)
    several = len({key["batch"] for key in keys}) > 1
    return several and len({key["update_batch"] for key in keys}) == 1


def whose(fixed: bool, update_batch: int) -> str:
    """Return who is behind what a batch size changes, to be set between commas."""
    return f"norm alone in updates of {update_batch} images" if fixed else TOGETHER


def whose_sentence(fixed: Iterable[bool]) -> str:
    """Return who is behind what batch sizes change; fixed: of each series, see above."""
    kinds = set(fixed)
    if kinds == {True}:
        return "All batch sizes share one update_batch: the norm alone is behind the difference."
    if True not in kinds:
        return f"update_batch follows the batch size: {TOGETHER} are behind the difference."
    return (
        f"Where update_batch follows the batch size, {TOGETHER} are behind the difference; in "
        "updates of one size it is the norm alone."
    )


def two_batches_rows(lines: Sequence[Series]) -> list[Row]:
    """Return one row per norm, batch and statistics where a study holds both update rules.

    Parts are paired over the n seeds of all three cells, n_at_chance of them diverged; levels are
    of the seeds that did not diverge. PRECISE rows: where recomputed statistics make a difference
    and were measured. A batch without its two partners gives no row.
    """
    pairs = list(_pairs(lines))
    keys = [_shared(equal) for equal, _ in pairs]
    rows = []
    for (equal, fixed), key in zip(pairs, keys):
        update = int(fixed.key["update"])
        label = series_label(key, keys)
        if sum(other is equal for other, _ in pairs) > 1:
            label += f", update {update}"
        at, others = ({cell.key["batch"]: cell for cell in line.cells} for line in (fixed, equal))
        reference = at.pop(update, None) or others.get(update)
        kinds = (RUNNING, PRECISE)[: 1 + any(pools_images(line) for line in (equal, fixed))]
        for kind, batch in itertools.product(kinds, sorted(at.keys() & others.keys())):
            row = reference and _row((reference, at[batch], others[batch]), kind)
            if row:
                rows.append({**at[batch].key, "statistics": kind, **row, "series": label})
    return rows


def _pairs(lines: Sequence[Series]) -> Iterator[tuple[Series, Series]]:
    """Yield (series with update = batch, one with a fixed update), equal in all else."""
    for equal in lines:
        if equal.key.get("update") != EQUAL:
            continue
        for fixed in lines:
            same = key_text(_shared(equal)) == key_text(_shared(fixed))
            if same and fixed.key.get("update") not in (EQUAL, None):
                yield equal, fixed


def _shared(line: Series) -> dict[str, Any]:
    return {k: v for k, v in line.key.items() if k != "update"}


def _row(cells: Sequence[Cell], kind: str) -> Row | None:
    """Return the parts and levels of (reference, fixed, equal); None where no seed is shared."""
    number = _NUMBERS[kind]
    both = shared(*(cell.numbers(number, 1 / cell.classes) for cell in cells))
    if not both:
        return None
    reference, fixed, equal = (dict(zip(both, values)) for values in zip(*both.values()))
    diverged = {row["seed"] for cell in cells for row in cell.of("diverged")}
    row: Row = {"n": len(both), "n_at_chance": len(diverged & set(both))}
    for part, (a, b) in zip(PARTS, ((reference, equal), (reference, fixed), (fixed, equal))):
        found = paired_difference(a, b)
        row |= {part: found.difference, f"{part}_lo": found.lo, f"{part}_hi": found.hi}
        row[f"{part}_p"] = found.p
    row["fall"] = row["norm_part"] + row["optimizer_part"]  # exactly, not but for rounding
    for level, cell in zip(LEVELS, cells):
        interval, _ = accuracy_interval([*cell.numbers(number).values()], cell.test_images)
        row |= {**interval.columns(level), f"{level}_n": interval.n}
    return row
