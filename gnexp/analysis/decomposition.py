"""The accuracy lost to a small batch, split into a training and an evaluation part.

A network is tested under several statistics: `running`, those it reports with;
`population_augmented`, recomputed with its final weights over training images, augmented as in
training; `population`, the same without augmentation; `batch`, those of the test batches;
`example`, those of each test image alone. Where a network keeps no statistics, all agree.
"""

import math
from collections.abc import Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell, Series, accuracy_interval

Row = dict[str, Any]
Pairs = dict[int, tuple[float, float]]  # seed: under running, under REPAIRED statistics

STATISTICS = ("running", "population_augmented", "population", "batch", "example")
# Training normalized augmented images: the statistics of others would be a damage of their own.
REPAIRED = "population_augmented"
ACCURACY, LOSS = "accuracy", "loss"
PARTS = ("total", "training", "evaluation")
ENDS = ("", "_lo", "_hi")

_SUFFIX = {"running": "", **{name: f"_{name}" for name in STATISTICS[1:]}}
_NUMBER = {ACCURACY: "test_acc", LOSS: "test_loss"}
_AGREE = 1e-4  # of the loss: float32 sums taken in another order differ by less
_AGREE_IMAGES = 2  # where only accuracies are stored: images on the edge of another class


def level_column(statistics: str, measure: str) -> str:
    """Return the column of a level: accuracy_running, loss_running_nats."""
    return f"accuracy_{statistics}" if measure == ACCURACY else f"loss_{statistics}_nats"


def part_column(part: str, measure: str) -> str:
    """Return the column of a part: training_damage, training_damage_nats."""
    return f"{part}_damage" if measure == ACCURACY else f"{part}_damage_nats"


def decomposition_rows(lines: Sequence[Series], reference_batch: int, measure: str) -> list[Row]:
    """Return one row per series and batch size: the levels, and the losses against the reference.

    measure: ACCURACY (0..1) or LOSS (nats). Levels: mean over the seeds that did not diverge, 95 %
    interval. Damage is positive where the batch size hurts, and paired: means over the seeds that
    both cells share, diverged ones at chance under every statistic (accuracy 1/classes, loss
    ln classes), 95 % t interval of the differences:

      training   = repaired(reference) - repaired(B)
      evaluation = [repaired - running](B) - [repaired - running](reference)
      total      = running(reference) - running(B) = training + evaluation

    with the signs turned for the loss; `repaired` is `population_augmented`, and a seed without it
    has no damage. A series with nothing but `running` gives no row.
    `pools`: its statistics make a difference somewhere, so they pool over images; n_at_chance: how
    many of the shared seeds diverged, in either cell.
    """
    rows: dict[str, Row] = {}
    for line in lines:
        if not any(_level(row, s, measure) is not None for row, s in _beyond_running(line)):
            continue
        reference = next((c for c in line.cells if c.key["batch"] == reference_batch), None)
        pools = pools_images(line)
        for cell in line.cells:
            row = {
                **cell.key,
                "reference_batch": reference_batch,
                "reference_update_batch": reference.key["update_batch"] if reference else None,
                "n_diverged": len(cell.of("diverged")),
                **_levels(cell, measure),
                **_parts_of(cell, reference, reference_batch, measure),
                "pools": pools,
                "apart": pools and cell.key["batch"] == 1,
                "series": line.label,
            }
            identity = repr([row[k] for k in (*cell.key, "reference_update_batch")])
            rows.setdefault(identity, row)  # a reference may belong to two series
    return list(rows.values())


def chance(cell: Cell, measure: str) -> float:
    """Return what a diverged seed counts as: accuracy 1/classes, loss ln(classes)."""
    return 1 / cell.classes if measure == ACCURACY else math.log(cell.classes)


def _levels(cell: Cell, measure: str) -> Row:
    levels: Row = {}
    for name in STATISTICS:
        values = [_level(row, name, measure) for row in cell.of("complete")]
        values = [value for value in values if value is not None]
        if measure == ACCURACY:
            interval, over = accuracy_interval(values, cell.test_images)
        else:
            interval, over = statistics.t_interval(values), "t over seeds" * (len(values) > 1)
        levels |= interval.columns(level_column(name, measure))
        levels[f"n_{name}"] = interval.n
        if name == "running":
            levels = {"n": interval.n, "interval": over, **levels}
    return levels


def _parts_of(cell: Cell, reference: Cell | None, reference_batch: int, measure: str) -> Row:
    """Return both parts of the loss with their intervals, n_shared, and a note on missing seeds."""
    columns = [part_column(part, measure) for part in PARTS]
    none = {f"{column}{end}": math.nan for column in columns for end in ENDS}
    none |= {"n_shared": 0, "n_at_chance": 0}
    if reference is None:
        return {**none, "note": f"no batch {reference_batch} in its series"}
    here, there = _pairs(cell, measure), _pairs(reference, measure)
    shared = sorted(here.keys() & there.keys())
    diverged = {row["seed"] for one in (cell, reference) for row in one.of("diverged")}
    none |= {"n_shared": len(shared), "n_at_chance": len(diverged & set(shared))}
    if cell is reference:
        zero = dict.fromkeys(columns, 0.0 if shared else math.nan)
        return {**none, **zero, "note": "the reference"}
    note = "; ".join(_notes(cell, reference, here, there, shared))
    if not shared:
        return {**none, "note": note}
    sign = 1 if measure == ACCURACY else -1
    gaps = [(sign * (there[s][0] - here[s][0]), sign * (there[s][1] - here[s][1])) for s in shared]
    total = statistics.t_interval([running for running, _ in gaps])
    training = statistics.t_interval([repaired for _, repaired in gaps])
    evaluation = statistics.t_interval([running - repaired for running, repaired in gaps])
    values = dict(none)
    for column, interval in zip(columns, (total, training, evaluation)):
        if measure == ACCURACY:  # the last is a difference of two differences
            limit = 2 if interval is evaluation else 1
            interval = interval.within(-limit, limit)
        values |= interval.columns(column)
    values[columns[0]] = training.mean + evaluation.mean  # exactly, not but for rounding
    return {**values, "note": note}


def _pairs(cell: Cell, measure: str) -> Pairs:
    """Return {seed: (running, repaired)}; nothing where no seed's repaired level was measured."""
    found = {}
    for row in cell.of("complete"):
        running, repaired = (_level(row, s, measure) for s in ("running", REPAIRED))
        if running is not None and repaired is not None:
            found[row["seed"]] = (running, repaired)
    if found or not cell.of("complete"):
        at_chance = chance(cell, measure)
        found |= {row["seed"]: (at_chance, at_chance) for row in cell.of("diverged")}
    return found


def _notes(
    cell: Cell, reference: Cell, here: Pairs, there: Pairs, shared: Sequence[int]
) -> list[str]:
    notes = []
    for name, one, pairs in (("", cell, here), ("the reference: ", reference, there)):
        lacking = [row["seed"] for row in one.of("complete") if row["seed"] not in pairs]
        if lacking:
            notes.append(
                f"{name}population statistics of augmented images not measured for "
                f"{_named(sorted(lacking))}"
            )
    if not shared and not notes:
        notes.append("no seed in common with the reference")
    extra = sorted(here.keys() - there.keys()) if shared and not notes else []
    if extra:
        notes.append(f"not in the reference: {_named(extra)}")
    if len(shared) == 1:
        notes.append("one shared seed: no interval")
    diverged = {row["seed"] for one in (cell, reference) for row in one.of("diverged")}
    if at_chance := len(diverged & set(shared)):
        notes.append(f"{at_chance} of them diverged, at chance")
    return notes


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def pools_images(line: Series) -> bool:
    """Return True when statistics other than the running ones change a result of any cell."""
    for cell in line.cells:
        images = max(cell.test_images, 1)
        for row in cell.of("complete"):
            for name in STATISTICS[1:]:
                a, b = (_level(row, s, LOSS) for s in ("running", name))
                if a is not None and b is not None:
                    if abs(a - b) > _AGREE * max(abs(a), abs(b)):
                        return True
                    continue
                a, b = (_level(row, s, ACCURACY) for s in ("running", name))
                if a is not None and b is not None and abs(a - b) * images > _AGREE_IMAGES + 0.5:
                    return True
    return False


def _beyond_running(line: Series) -> list[tuple[Row, str]]:
    return [
        (row, name) for cell in line.cells for row in cell.of("complete") for name in STATISTICS[1:]
    ]


def _level(row: Row, name: str, measure: str) -> float | None:
    value = row.get(_NUMBER[measure] + _SUFFIX[name])
    return None if value is None or not math.isfinite(value) else float(value)
