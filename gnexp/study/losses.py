"""How much accuracy a norm loses as the batch shrinks, seed by seed."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from gnexp.study import statistics
from gnexp.study.cells import Series
from gnexp.study.comparisons import scored_by_seed
from gnexp.study.inference import seeds_columns

Row = dict[str, Any]
SMALL = (2, 1)


def loss_rows(lines: Sequence[Series], reference_batch: int) -> list[Row]:
    """Return one row per series: accuracy lost from the reference batch to 2 and 1, and a slope.

    loss_2, loss_1: accuracy at the reference minus that at the batch, over the n_2, n_1 seeds of
    both. per_halving: see `halving_losses`, over n_halving seeds. All 0..1, diverged seeds at
    chance, 95 % t intervals over seeds, each on its own. sd: of a seed, pooled over the cells
    without a diverged seed; seeds_needed: for a mean within half a point. nan where a cell is
    missing.
    """
    return [_row(line, reference_batch) for line in lines]


def _row(line: Series, reference_batch: int) -> Row:
    cells = {cell.key["batch"]: scored_by_seed(cell) for cell in line.cells}
    reference = cells.get(reference_batch, {})
    first = line.cells[0].key
    row = {k: v for k, v in first.items() if all(c.key.get(k) == v for c in line.cells)}
    row |= {"series": line.label, "reference_batch": reference_batch}
    for batch in SMALL:
        small = cells.get(batch, {}) if batch != reference_batch else {}
        lost = [reference[s] - small[s] for s in sorted(reference.keys() & small.keys())]
        interval = statistics.t_interval(lost)
        row |= {**interval.columns(f"loss_{batch}"), f"n_{batch}": interval.n}
    used = {b: of for b, of in cells.items() if b <= reference_batch}
    slope = statistics.t_interval(halving_losses(used))
    row |= {**slope.columns("per_halving"), "n_halving": slope.n}
    row["batches"] = " ".join(map(str, sorted(used)))
    steady = [c.scored for c in line.cells if not c.of("diverged")]
    sd, dof = statistics.pooled_sd(steady)
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
