"""The accuracy lost to a small batch, split into a training and an evaluation part.

A network is tested under several statistics: `running`, those it reports with;
`population_augmented`, recomputed with its final weights over training images, augmented as in
training; `population`, the same without augmentation; `batch`, those of the test batches;
`example`, those of each test image alone. Where a network keeps no statistics, all agree.
"""

import math
from collections.abc import Collection, Sequence
from typing import Any

from gnexp.analysis.cells import Cell, Series, accuracy_interval
from gnexp.analysis.statistics import shared, t_interval

Row = dict[str, Any]
Pairs = dict[int, tuple[float, float]]  # seed: under running, under REPAIRED statistics

STATISTICS = ("running", "population_augmented", "population", "batch", "example")
# Training normalized augmented images: the statistics of others would be a damage of their own.
REPAIRED = "population_augmented"
ACCURACY, LOSS = "accuracy", "loss"
PARTS = ("total", "training", "evaluation")
ENDS = ("", "_lo", "_hi")
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

    measure: ACCURACY (0..1) or LOSS (nats), where the signs turn. Over the seeds that both share:

      training   = repaired(reference) - repaired(B)
      evaluation = [repaired - running](B) - [repaired - running](reference)
      total      = running(reference) - running(B) = training + evaluation

    `repaired` is REPAIRED; a seed without it has no damage, a series without it no row. `pools`:
    the statistics make a difference somewhere, so they pool over images.
    """
    rows: dict[str, Row] = {}
    for line in lines:
        if not any(_level(cell, s, measure) for cell in line.cells for s in STATISTICS[1:]):
            continue
        reference = next((c for c in line.cells if c.key["batch"] == reference_batch), None)
        pools = pools_images(line)
        for cell in line.cells:
            row = {
                **cell.key,
                "reference_batch": reference_batch,
                "reference_update_batch": reference.key["update_batch"] if reference else None,
                "n_diverged": cell.diverged,
                **_levels(cell, measure),
                **_parts_of(cell, reference, reference_batch, measure),
                "pools": pools,
                "apart": pools and cell.key["batch"] == 1,
                "series": line.label,
            }
            identity = repr([row[k] for k in (*cell.key, "reference_update_batch")])
            rows.setdefault(identity, row)  # a reference may belong to two series
    return list(rows.values())


def _level(
    cell: Cell, statistics: str, measure: str, chance: float | None = None
) -> dict[int, float]:
    """Return {seed: accuracy or loss} under these statistics; `Cell.numbers` says which seeds."""
    name = "test_acc" if measure == ACCURACY else "test_loss"
    return cell.numbers(name if statistics == "running" else f"{name}_{statistics}", chance)


def _levels(cell: Cell, measure: str) -> Row:
    levels: Row = {}
    for name in STATISTICS:
        values = [*_level(cell, name, measure).values()]
        interval, over = accuracy_interval(values, cell.test_images)
        if measure == LOSS:
            interval, over = t_interval(values), "t over seeds" * (len(values) > 1)
        levels |= interval.columns(level_column(name, measure))
        levels[f"n_{name}"] = interval.n
        if name == "running":
            levels |= {"n": interval.n, "interval": over}
    return levels


def _parts_of(cell: Cell, reference: Cell | None, reference_batch: int, measure: str) -> Row:
    """Return both parts of the loss with their intervals, n_shared, and a note on missing seeds."""
    columns = [part_column(part, measure) for part in PARTS]
    none = {f"{column}{end}": math.nan for column in columns for end in ENDS}
    if reference is None:
        counts = {"n_shared": 0, "n_at_chance": 0}
        return none | counts | {"note": f"no batch {reference_batch} in its series"}
    here, there = _pairs(cell, measure), _pairs(reference, measure)
    both = shared(here, there)
    diverged = {row["seed"] for one in (cell, reference) for row in one.of("diverged")}
    none |= {"n_shared": len(both), "n_at_chance": len(diverged & set(both))}
    if cell is reference:
        zero = dict.fromkeys(columns, 0.0 if both else math.nan)
        return none | zero | {"note": "the reference"}
    note = "; ".join(_notes(cell, reference, here, there, both, none["n_at_chance"]))
    if not both:
        return none | {"note": note}
    sign = 1 if measure == ACCURACY else -1
    running, repaired = (
        [sign * (of_reference[i] - own[i]) for own, of_reference in both.values()] for i in (0, 1)
    )
    evaluation = [a - b for a, b in zip(running, repaired)]
    for column, values in zip(columns, (running, repaired, evaluation)):
        most = (2 if values is evaluation else 1) if measure == ACCURACY else math.inf
        none |= t_interval(values).within(-most, most).columns(column)
    total = none[columns[1]] + none[columns[2]]  # exactly, not but for rounding
    return none | {columns[0]: total, "note": note}


def _pairs(cell: Cell, measure: str) -> Pairs:
    """Return {seed: (running, repaired)}; nothing where no seed's repaired level was measured."""
    chance = 1 / cell.classes if measure == ACCURACY else math.log(cell.classes)
    return shared(*(_level(cell, s, measure, chance) for s in ("running", REPAIRED)))


def _notes(
    cell: Cell, reference: Cell, here: Pairs, there: Pairs, both: Collection[int], at_chance: int
) -> list[str]:
    notes = []
    for name, one, pairs in (("", cell, here), ("the reference: ", reference, there)):
        if lacking := {row["seed"] for row in one.of("complete")} - pairs.keys():
            what = "population statistics of augmented images not measured for"
            notes.append(f"{name}{what} {_named(lacking)}")
    if not both and not notes:
        notes.append("no seed in common with the reference")
    if both and not notes and here.keys() - there.keys():
        notes.append(f"not in the reference: {_named(here.keys() - there.keys())}")
    notes += ["one shared seed: no interval"] * (len(both) == 1)
    return [*notes, *[f"{at_chance} of them diverged, at chance"] * bool(at_chance)]


def _named(seeds: Collection[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}"


def pools_images(line: Series) -> bool:
    """Return True when statistics other than the running ones change a result of any cell."""
    return any(_differ(cell, name) for cell in line.cells for name in STATISTICS[1:])


def _differ(cell: Cell, name: str) -> bool:
    losses = shared(*(_level(cell, s, LOSS) for s in ("running", name)))
    accuracies = shared(*(_level(cell, s, ACCURACY) for s in ("running", name)))
    most = (_AGREE_IMAGES + 0.5) / max(cell.test_images, 1)
    return any(abs(a - b) > _AGREE * max(abs(a), abs(b)) for a, b in losses.values()) or any(
        abs(a - b) > most for seed, (a, b) in accuracies.items() if seed not in losses
    )
