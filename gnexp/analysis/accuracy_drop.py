"""The accuracy that a norm loses as the batch shrinks, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell, Series
from gnexp.analysis.comparisons import ComparisonGroup, between
from gnexp.analysis.inference import seeds_columns
from gnexp.analysis.samples import Sample
from gnexp.store import lr_choices

Row = dict[str, Any]
SMALL = (2, 1)


def loss_rows(
    lines: Sequence[Series], groups: Sequence[ComparisonGroup], reference_batch: int
) -> list[Row]:
    """Return one row per series: accuracy lost from the reference batch to 2 and 1, and a slope.

    n_2, n_1: the fewer seeds of the two cells. sd: of a seed, pooled over the cells without a
    diverged seed; seeds_needed: for a mean within half a point. nan where a cell is missing.
    """
    known = {id(line): group.samples for group in groups for line in group.lines}
    return [_row(line, reference_batch, known[id(line)]) for line in lines]


def _row(line: Series, reference_batch: int, known: Mapping[int, Sample]) -> Row:
    at = {cell.key["batch"]: cell for cell in line.cells}
    key = line.cells[0].key
    used = {batch: cell for batch, cell in at.items() if batch <= reference_batch}
    slope = statistics.t_interval(halving_losses({b: cell.scores for b, cell in used.items()}))
    sd, dof = lr_choices.pooled_sd([cell.scored for cell in line.cells if not cell.diverged])
    return {
        **{k: v for k, v in key.items() if all(c.key.get(k) == v for c in line.cells)},
        **{"series": line.label, "reference_batch": reference_batch},
        **_lost(at, reference_batch, SMALL[0], known),
        **_lost(at, reference_batch, SMALL[1], known),
        **{**slope.columns("per_halving"), "n_halving": slope.n},
        "batches": " ".join(map(str, sorted(used))),
        "n_diverged": sum(cell.diverged for cell in line.cells),
        **{"sd": sd, "dof": dof, **seeds_columns(sd, dof)},
    }


def _lost(
    at: Mapping[int, Cell], reference_batch: int, batch: int, known: Mapping[int, Sample]
) -> Row:
    difference, lo, hi, n = math.nan, math.nan, math.nan, 0
    if reference_batch in at and batch in at and batch != reference_batch:
        one = between(at[reference_batch], at[batch], known)
        difference, lo, hi, n = one.difference, one.lo, one.hi, min(one.n_a, one.n_b)
    name = f"loss_{batch}"
    return {name: difference, f"{name}_lo": lo, f"{name}_hi": hi, f"n_{batch}": n}


def halving_losses(cells: Mapping[int, Mapping[int, float]]) -> list[float]:
    """Return of each seed that every cell has the accuracy lost per halving of the batch.

    cells: {batch: {seed: accuracy}}. The least-squares slope of accuracy on log2(batch); empty for
    fewer than two batch sizes.
    """
    if len(cells) < 2:
        return []
    x = np.array([math.log2(batch) for batch in cells])
    x -= x.mean()
    return [float(x @ values / (x @ x)) for values in statistics.shared(*cells.values()).values()]
