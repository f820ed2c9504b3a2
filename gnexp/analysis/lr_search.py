"""Learning rates of a study: what each was worth on images held out, and which ones were chosen.

A trial is a run with a validation split: its accuracies are of images held out of the training set,
never of test images. A cell with trials at several rates is tuned: of the runs that are judged on
the test set, that at the chosen rate stands for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gnexp.analysis import statistics
from gnexp.analysis.cells import Cell, cells, is_trial, key_text, row_order
from gnexp.store import lr_choices
from gnexp.store.files import CorruptFile
from gnexp.store.lr_choices import BEST, LRChoice, best_rate, recorded_choices
from gnexp.store.study import Record, Study

Row = dict[str, Any]
GOOD = 0.02  # a rate is good when its accuracy is at most this far below the best one's
TUNED = "tuned"


@dataclasses.dataclass(frozen=True)
class TunedCell:
    """One tuned cell: its key without the rate, its trials by rate, and what was chosen."""

    key: dict[str, Any]
    trials: dict[float, Cell]
    choice: LRChoice

    @property
    def rate(self) -> float:
        """The chosen rate."""
        return self.choice.rate

    @property
    def best(self) -> float:
        """The rate with the best mean, which is the chosen one under the rule of that name."""
        if self.choice.rule == BEST:
            return self.rate
        diverged = [rate for rate, cell in self.trials.items() if cell.diverged]
        return best_rate({rate: cell.scored for rate, cell in self.trials.items()}, diverged)

    @property
    def at_edge(self) -> bool:
        """True where the chosen or the best rate is the smallest or the largest tried.

        Then a better one may lie beyond.
        """
        return bool({self.rate, self.best} & {min(self.trials), max(self.trials)})

    @property
    def trial_columns(self) -> Row:
        """The budget of a trial as columns."""
        return _budget("trial", next(iter(self.trials.values())))


def test_runs(study: Study) -> list[Record]:
    """Return the runs judged on test images; where every run is a trial, all runs."""
    return [record for record in study.runs if not is_trial(record)] or study.runs


def tuned_cells(study: Study, extras: Sequence[str]) -> list[TunedCell]:
    """Return the cells whose rates were chosen, as the study's folder has it written down.

    extras: the keys beyond BASE that tell cells apart. Of those that have ended seeds at two rates
    or more; what cannot be read counts as not there.
    """
    try:
        choices = recorded_choices(study.folder)
    except (CorruptFile, KeyError, TypeError, ValueError):
        return []  # the command that trained it writes it anew
    by_name = {record.name: record for record in study.runs}
    found = []
    for choice in choices:
        records = [by_name[name] for name in choice.trials.values() if name in by_name]
        some = cells(records, extras)
        trials = {cell.record.config.get("lr"): cell for cell in some if cell.scored}
        if len(trials) > 1 and choice.rate in trials:
            key = _without_rate(some[0])
            key |= {name: value for name, value in choice.budget.items() if name in key}
            found.append(TunedCell(key, dict(sorted(trials.items())), choice))
    return sorted(found, key=lambda each: row_order(each.key))


def chosen_cell(judged: Iterable[Cell], tuned: TunedCell) -> Cell | None:
    """Return the cell on the test set that stands for a tuned one, once it has a result."""
    return next((c for c in judged if tuned.choice.run in [r.name for r in c.records]), None)


def at_chosen_lr(judged: Sequence[Cell], tuned: Sequence[TunedCell]) -> list[Cell]:
    """Return the cells that are compared: of a tuned cell, the one at the chosen rate.

    As long as that has no result the others stay. Tuned cells differ in their rates by design, so
    the rate is no part of their keys; where others are not tuned, `tuned` tells them apart.
    """
    stands = {key_text(each.key): found for each in tuned if (found := chosen_cell(judged, each))}
    if not stands:
        return list(judged)
    kept = []
    for cell in judged:
        chosen = stands.get(key_text(_without_rate(cell)))
        if chosen is None:
            kept.append(dataclasses.replace(cell, key={**cell.key, "tuned": False}))
        elif chosen is cell:
            key = {**cell.key, "lr": TUNED, "tuned": True}
            kept.append(dataclasses.replace(cell, key=key))
    if all(cell.key["tuned"] for cell in kept):
        for cell in kept:
            del cell.key["lr"], cell.key["tuned"]
    return sorted(kept, key=lambda cell: row_order(cell.key))


def _without_rate(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.key.items() if key != "lr"}


def tuning_rows(tuned: Iterable[TunedCell]) -> list[Row]:
    """Return one row per tuned cell and rate: the accuracy on images held out, over tuning seeds.

    Two seeds know little of their spread, so the interval is made with the standard deviation that
    the cell's rates have in common; a rate at which a seed diverged has its own.
    """
    return [row for each in tuned for row in _trial_rows(each)]


def _trial_rows(each: TunedCell) -> Iterator[Row]:
    steady = [cell.scored for cell in each.trials.values() if not cell.diverged]
    sd, dof = lr_choices.pooled_sd(steady)
    for rate, cell in each.trials.items():
        interval = cell.scored_mean
        if sd > 0 and not cell.diverged:
            half = statistics.t_quantile(0.975, dof) * sd / math.sqrt(interval.n)
            lo, hi = interval.mean - half, interval.mean + half
            interval = dataclasses.replace(interval, sd=sd, lo=lo, hi=hi)
        chosen = rate == each.rate
        yield {
            **{**each.key, "lr": rate, **each.trial_columns, "n_diverged": cell.diverged},
            **vars(interval.within(0, 1)),
            **{"chosen": chosen, "at_edge": chosen and each.at_edge},
        }


def choice_rows(
    tuned: Iterable[TunedCell], judged: Sequence[Cell], tried: Iterable[Row]
) -> list[Row]:
    """Return one row per tuned cell: the choice, how wide the good region is, what tuning gained.

    judged: the cells on the test set, at whatever rate. tried: tuning_rows(tuned).
    """
    by_key: dict[str, dict[float, Cell]] = {}
    for cell in judged:
        by_key.setdefault(key_text(_without_rate(cell)), {})[cell.key.get("lr")] = cell
    chosen = [row for row in tried if row["chosen"]]
    return [
        _choice_row(each, best, by_key.get(key_text(each.key), {}))
        for each, best in zip(tuned, chosen, strict=True)
    ]


def _choice_row(each: TunedCell, trial: Row, found: Mapping[float, Cell]) -> Row:
    rate = each.choice.untuned_rate
    chosen, untuned = found.get(each.rate), found.get(rate)
    means = {lr: cell.scored_mean.mean for lr, cell in each.trials.items()}
    return {
        **{**each.key, "lr": each.rate, "rates": len(each.trials), "at_edge": each.at_edge},
        **{**good_region(means, each.best), "rule": each.choice.rule, **each.trial_columns},
        **_budget("run", chosen),
        **{"n_tuning": trial["n"], "validation": trial["mean"]},
        **{"validation_lo": trial["lo"], "validation_hi": trial["hi"]},
        **{**_level(chosen, "test"), "untuned_lr": rate, **_level(untuned, "untuned")},
        **_gap(chosen, untuned),
    }


def _budget(of: str, cell: Cell | None) -> Row:
    """Return the epochs of a run, and the images of an epoch."""
    epochs, images = None, None
    if cell:
        epochs, images = cell.record.config["epochs"], cell.record.result["data"]["train"]
    return {f"{of}_epochs": epochs, f"{of}_images": images}


def _level(cell: Cell | None, name: str) -> Row:
    interval = statistics.t_interval(cell.scored if cell else []).within(0, 1)
    return {f"n_{name}": interval.n, **interval.columns(name)}


def _gap(chosen: Cell | None, untuned: Cell | None) -> Row:
    """Return the paired difference; exactly 0 where the untuned rate was chosen."""
    if chosen and chosen is untuned:
        return {"n_gap": 0, **statistics.t_interval([]).columns("gap"), "gap": 0.0}
    both = statistics.shared(chosen.scores, untuned.scores) if chosen and untuned else {}
    interval = statistics.t_interval([a - b for a, b in both.values()]).within(-1, 1)
    return {"n_gap": interval.n, **interval.columns("gap")}


def good_region(means: Mapping[float, float], best: float) -> Row:
    """Return where accuracy is within GOOD of the best rate's: {good_lo, good_hi, ...}.

    means: {rate: accuracy}; best: one of the rates. Between two rates the accuracy is taken to be
    linear in log2(rate). The region holds the best rate and ends where the accuracy first falls
    below; good_octaves is its width, and good_open says at which ends ("lo", "hi", "both", "") it
    reaches the last rate that was tried, and may go on.
    """
    rates = sorted(means)
    least, at = means[best] - GOOD, rates.index(best)
    lo, lo_open = _border(rates[at::-1], means, least)
    hi, hi_open = _border(rates[at:], means, least)
    opened = "both" if lo_open and hi_open else "lo" * lo_open + "hi" * hi_open
    octaves = math.log2(hi / lo)
    return {"good_lo": lo, "good_hi": hi, "good_octaves": octaves, "good_open": opened}


def octaves(width: float, good_open: str) -> str:
    """Return a good region's width for people: ">= 2.4" where an end is the last rate tried."""
    return f"{'>= ' if good_open else ''}{width:.1f}"


def _border(
    rates: Sequence[float], means: Mapping[float, float], least: float
) -> tuple[float, bool]:
    """Return where accuracy falls below `least` along the rates, and whether it never does."""
    for inside, outside in itertools.pairwise(rates):
        if means[outside] < least:
            part = (means[inside] - least) / (means[inside] - means[outside])
            return inside * (outside / inside) ** part, False
    return rates[-1], True
