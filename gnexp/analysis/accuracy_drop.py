"""The accuracy that a norm loses as the batch shrinks, seed by seed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gnexp.analysis import statistics
from gnexp.analysis.cells import Series
from gnexp.analysis.comparisons import ComparisonGroup, between, scored_by_seed
from gnexp.analysis.inference import seeds_columns
from gnexp.analysis.samples import Sample
from gnexp.store import lr_choices

Row = dict[str, Any]
SMALL = (2, 1)


def loss_rows(
    lines: Sequence[Series], groups: Sequence[ComparisonGroup], reference_batch: int
) -> list[Row]:
    """Return one row per series: accuracy lost from the reference batch to 2 and 1, and a slope.

    loss_2, loss_1: accuracy at the reference minus that at the batch, n_2, n_1 being the fewer
    seeds of the two; intervals as `inference.contrast` has them. per_halving: see
    `halving_losses`, t intervals over its n_halving seeds. All 0..1, diverged seeds at chance,
    each 95 % on its own. sd: of a seed, pooled over the cells without a diverged seed;
    seeds_needed: for a mean within half a point. nan where a cell is missing.
    """
    known = {id(line): group.samples for group in groups for line in group.lines}
    return [_row(line, reference_batch, known[id(line)]) for line in lines]


def _row(line: Series, reference_batch: int, known: Mapping[int, Sample]) -> Row:
    at = {cell.key["batch"]: cell for cell in line.cells}
    reference = at.get(reference_batch)
    first = line.cells[0].key
    row = {k: v for k, v in first.items() if all(c.key.get(k) == v for c in line.cells)}
    row |= {"series": line.label, "reference_batch": reference_batch}
    for batch in SMALL:
        lost = (math.nan, math.nan, math.nan, 0)
        if reference and batch in at and batch != reference_batch:
            one = between(reference, at[batch], known)
            lost = (one.difference, one.lo, one.hi, min(one.n_a, one.n_b))
        row |= dict(zip((f"loss_{batch}", f"loss_{batch}_lo", f"loss_{batch}_hi"), lost))
        row[f"n_{batch}"] = lost[3]
    used = {b: scored_by_seed(cell) for b, cell in at.items() if b <= reference_batch}
    slope = statistics.t_interval(halving_losses(used))
    row |= {**slope.columns("per_halving"), "n_halving": slope.n}
    row["batches"] = " ".join(map(str, sorted(used)))
    steady = [c.scored for c in line.cells if not c.of("diverged")]
    sd, dof = lr_choices.pooled_sd(steady)
    row |= {"n_diverged": sum(len(c.of("diverged")) for c in line.cells)}
    return {**row, "sd": sd, "dof": dof, **seeds_columns(sd, dof)}


def halving_losses(cells: dict[int, dict[int, float]]) -> list[float]:
    """Return of each seed that every cell has the accuracy lost per halving of the batch.

    cells: {batch: {seed: accuracy}}. The least-squares slope of accuracy on log2(batch), all batch
    sizes weighing alike: positive where smaller is worse. Empty for fewer than two batch sizes.
    """
    if len(cells) < 2:
        return []
    x = np.array([math.log2(batch) for batch in cells])
    x -= x.mean()
    seeds = sorted(set.intersection(*(set(of) for of in cells.values())))
    return [float(x @ [of[s] for of in cells.values()] / (x @ x)) for s in seeds]
