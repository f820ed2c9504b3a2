"""Which learning rate a cell is given: the rule, and what of it a study writes down."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from gnexp.study.files import Damaged, read_json, write_json
from gnexp.study.store import alone_in

CHOICES = "tuning.json"  # in the study's folder


@dataclasses.dataclass(frozen=True)
class Choice:
    """What was chosen for one cell: the runs, by name, at the chosen rate and at the untuned one.

    trials: {rate: name of its run}, of those that were compared. untuned is None where no untuned
    rate was asked for.
    """

    run: str
    rate: float
    untuned: str | None
    untuned_rate: float | None
    trials: dict[float, str]


def best_rate(scores: Mapping[float, Sequence[float]], diverged: Collection[float] = ()) -> float:
    """Return the rate with the highest mean accuracy, the smallest of those that share it.

    scores: {rate: accuracies on images held out of training}, at least one each, a diverged
    training at chance. diverged: rates at which a training diverged; where others are left none of
    them is chosen, however lucky its other trainings were: who takes the rate wants it to train.
    """
    rates = sorted(rate for rate in scores if rate not in diverged) or sorted(scores)
    return max(rates, key=lambda rate: sum(scores[rate]) / len(scores[rate]))


def record_choices(study: Path, choices: Mapping[str, Choice]) -> None:
    """Write down what was chosen, by cell, beside what is written of other cells."""
    with alone_in(study):
        try:
            known = read_json(study / CHOICES).get("cells", {})
        except Damaged:  # the commands that made the others write them again
            known = {}
        cells = {**known, **{cell: _entry(choice) for cell, choice in choices.items()}}
        if cells != known:
            write_json(study / CHOICES, {"cells": dict(sorted(cells.items()))})


def recorded_choices(study: Path) -> list[Choice]:
    """Return what was written down, in the order of the cells' names; raises Damaged."""
    cells = read_json(study / CHOICES).get("cells", {})
    return [
        Choice(**{**entry, "trials": {float(rate): run for rate, run in entry["trials"].items()}})
        for entry in cells.values()
    ]


def _entry(choice: Choice) -> dict[str, object]:
    trials = {f"{rate!r}": choice.trials[rate] for rate in sorted(choice.trials)}
    return {**dataclasses.asdict(choice), "trials": trials}
