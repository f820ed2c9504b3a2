"""Rules that choose a cell's learning rate, and the record that a study keeps of the choice."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from gnexp.store.digests import Writer, read_checked, repair, set_aside_name
from gnexp.store.files import CorruptFile, json_text, read_json
from gnexp.store.run import exclusive

BEST, ONE_SE = "best", "one_se"
CHOICES = "tuning.json"  # in the study's folder


@dataclasses.dataclass(frozen=True)
class LRChoice:
    """The chosen learning rate of one cell, and the runs, by name, at it and at the untuned rate.

    trials: {rate: name of its run}, of those that were compared. untuned is None where no untuned
    rate was asked for. rule: that of `chosen_rate`. budget: what the run has otherwise than its
    trials, by the names of a cell's key (epochs, data.train_limit, data.checksum).
    """

    run: str
    rate: float
    untuned: str | None
    untuned_rate: float | None
    trials: dict[float, str]
    rule: str
    budget: dict[str, Any]


def chosen_rate(
    rule: str, scores: Mapping[float, Sequence[float]], diverged: Collection[float] = ()
) -> float:
    """Return the rate that a rule chooses: "best" or "one_se"; arguments as of `best_rate`.

    one_se: the smallest rate whose mean is within one standard error of the best mean. The error
    is sd / sqrt(n), n being the trials at the best rate, sd that within rates, pooled over the
    cell's rates: of two seeds alone it would be mostly luck. A rate that is never chosen, because
    a training diverged, adds nothing to it.
    """
    best = best_rate(scores, diverged)
    if rule != ONE_SE:
        return best
    rates = _candidates(scores, diverged)
    sd, dof = pooled_sd([scores[rate] for rate in rates])
    error = sd / math.sqrt(len(scores[best])) if dof else 0.0
    return next(rate for rate in rates if fmean(scores[rate]) >= fmean(scores[best]) - error)


def best_rate(scores: Mapping[float, Sequence[float]], diverged: Collection[float] = ()) -> float:
    """Return the rate with the highest mean accuracy, the smallest of those that share it.

    scores: {rate: accuracies on images held out of training}, at least one each, a diverged
    training at chance. diverged: rates at which a training diverged; where others are left none of
    them is chosen, however lucky its other trainings were: who takes the rate wants it to train.
    """
    return max(_candidates(scores, diverged), key=lambda rate: fmean(scores[rate]))


def _candidates(
    scores: Mapping[float, Sequence[float]], diverged: Collection[float]
) -> list[float]:
    return sorted(rate for rate in scores if rate not in diverged) or sorted(scores)


def record_choices(study: Path, choices: Mapping[str, LRChoice]) -> list[str]:
    """Add choices, by cell, to the record; return a sentence for each file that was corrupt."""
    with exclusive(study):
        parts = [sentence] if (sentence := repair(study)) else []
        writer = Writer(study)
        writer.settle()
        try:
            known = read_json(study / CHOICES, read_checked).get("cells", {})
        except CorruptFile as error:  # the commands that made the others write them again
            aside = set_aside_name(study, CHOICES)
            writer.rename(CHOICES, aside)
            parts.append(f"{error}: kept as {aside}; it is written anew")
            known = {}
        cells = dict(known)
        for cell, choice in choices.items():
            trials = {f"{rate!r}": choice.trials[rate] for rate in sorted(choice.trials)}
            cells[cell] = {**dataclasses.asdict(choice), "trials": trials}
        if cells != known:
            writer.write(CHOICES, json_text({"cells": dict(sorted(cells.items()))}))
        writer.close()
    return parts


def recorded_choices(study: Path) -> list[LRChoice]:
    """Return what was written down, in the order of the cells' names; raises CorruptFile."""
    cells = read_json(study / CHOICES, read_checked).get("cells", {})
    return [
        LRChoice(**{**entry, "trials": {float(rate): run for rate, run in entry["trials"].items()}})
        for entry in cells.values()
    ]


def pooled_sd(cells: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the standard deviation common to all cells, and its degrees of freedom.

    sqrt(sum (n_i - 1) sd_i^2 / sum (n_i - 1)); cells of one value add nothing.
    """
    arrays = [np.asarray(cell, dtype=np.float64) for cell in cells if len(cell)]
    dof = sum(x.size - 1 for x in arrays)
    squares = sum(float(((x - x.mean()) ** 2).sum()) for x in arrays)
    return (math.sqrt(squares / dof) if dof else math.nan), dof
