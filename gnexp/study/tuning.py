"""Learning rates of a study: what each was worth on images held out, and which ones were chosen.

A trial is a run with a validation split: its accuracies are of images held out of the training set,
never of test images. A cell with trials at several rates is tuned: of the runs that are judged on
the test set, that at the chosen rate stands for it.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gnexp.study import statistics
from gnexp.study.cells import Cell, cells, is_trial, key_text, row_order, varying
from gnexp.study.choice import best_rate
from gnexp.study.rendering import Row
from gnexp.study.store import Record, Study

GOOD = 0.02  # a rate is good when its accuracy is at most this far below the best one's
_ENDS = {"": "mean", "_lo": "lo", "_hi": "hi"}
UNTUNED = 0.1  # the protocol's rate, which nobody chose for the cell


@dataclasses.dataclass(frozen=True)
class Tuned:
    """One tuned cell: its key without the rate, its trials by rate, and the chosen rate."""

    key: dict[str, Any]
    trials: dict[float, Cell]
    rate: float

    @property
    def at_edge(self) -> bool:
        """Whether the chosen rate is the smallest or the largest tried: a better one may lie on."""
        return self.rate in (min(self.trials), max(self.trials))


def parted(study: Study) -> tuple[Study, Study]:
    """Return the study of the runs that are judged on the test set, and that of the trials.

    A study of trials alone is the former: there is nothing else that could be reported.
    """
    trials = [record for record in study.runs if is_trial(record)]
    judged = [record for record in study.runs if not is_trial(record)]
    if not judged:
        return study, dataclasses.replace(study, runs=[])
    return dataclasses.replace(study, runs=judged), dataclasses.replace(study, runs=trials)


def trial_sentences(study: Study, tuned: Sequence[Tuned]) -> list[str]:
    """Return what is to be known of a study's trials, of one that has any."""
    trials = [record for record in study.runs if is_trial(record)]
    if len(trials) == len(study.runs):
        return [
            "Every accuracy here is of images held out of the training set, not of test images."
        ]
    if not tuned:
        return []
    seeds = sum(len(cell.scored) for each in tuned for cell in each.trials.values())
    edge = sum(each.at_edge for each in tuned)
    told = f"; {edge} of them at the edge of the rates tried" if edge else ""
    return [
        f"The learning rates of {len(tuned)} cells were chosen by {seeds} trainings on images held"
        f" out of the training set{told}."
    ]


def judged_cells(study: Study) -> list[Cell]:
    """Return the cells of the runs that are judged on the test set, at whatever rate."""
    return cells(parted(study)[0], varying(study))


def tuned_cells(study: Study) -> list[Tuned]:
    """Return the cells of a study that have trials at two rates or more, ended seeds only."""
    by_key: dict[str, list[Cell]] = {}
    extras = varying(study)
    for cell in cells(parted(study)[1], extras):
        if cell.scored and cell.key.get("lr") is not None:
            by_key.setdefault(key_text(_without_rate(cell)), []).append(cell)
    found = []
    for same in by_key.values():
        trials = {cell.key["lr"]: cell for cell in sorted(same, key=lambda c: c.key["lr"])}
        if len(trials) > 1:
            diverged = [lr for lr, cell in trials.items() if cell.of("diverged")]
            rate = best_rate({lr: cell.scored for lr, cell in trials.items()}, diverged)
            found.append(Tuned(_without_rate(same[0]), trials, rate))
    return found


def reported(study: Study) -> list[Record]:
    """Return the runs that the report compares: of a tuned cell that at its chosen rate alone."""
    tuned = tuned_cells(study)
    if not tuned:
        return parted(study)[0].runs
    return [record for cell in settled(judged_cells(study), tuned) for record in cell.records]


def settled(judged: Iterable[Cell], tuned: Iterable[Tuned]) -> list[Cell]:
    """Return the cells as they are compared: of a tuned one that at its chosen rate alone.

    Where there is a tuned one they are no longer ordered by their rates.
    """
    rates = {key_text(each.key): each.rate for each in tuned}
    kept = [
        cell
        for cell in judged
        if rates.get(key_text(_without_rate(cell)), cell.key.get("lr")) == cell.key.get("lr")
    ]
    return sorted(kept, key=lambda cell: row_order(_without_rate(cell))) if rates else kept


def _without_rate(cell: Cell) -> dict[str, Any]:
    return {key: value for key, value in cell.key.items() if key != "lr"}


def tuning_rows(tuned: Iterable[Tuned]) -> list[Row]:
    """Return one row per tuned cell and rate: the accuracy on images held out, over tuning seeds.

    Fractions; a diverged seed counts at chance. Two seeds know little of their spread, so the
    interval is made with the standard deviation that the cell's rates have in common; a rate at
    which a seed diverged has its own.
    """
    rows = []
    for each in tuned:
        sd, dof = statistics.pooled_sd(
            [cell.scored for cell in each.trials.values() if not cell.of("diverged")]
        )
        for rate, cell in each.trials.items():
            interval = statistics.t_interval(cell.scored)
            if sd > 0 and not cell.of("diverged"):
                half = statistics.t_quantile(0.975, dof) * sd / math.sqrt(interval.n)
                lo, hi = interval.mean - half, interval.mean + half
                interval = dataclasses.replace(interval, sd=sd, lo=lo, hi=hi)
            chosen = rate == each.rate
            rows.append(
                {
                    **each.key,
                    "lr": rate,
                    "n": interval.n,
                    "n_diverged": len(cell.of("diverged")),
                    **{k: getattr(interval, k) for k in ("mean", "sd", "lo", "hi")},
                    "chosen": chosen,
                    "at_edge": chosen and each.at_edge,
                }
            )
    return rows


def choice_rows(tuned: Iterable[Tuned], judged: Sequence[Cell]) -> list[Row]:
    """Return one row per tuned cell: the choice, how wide the good region is, what tuning gained.

    judged: the cells on the test set, at whatever rate. The gap is the accuracy at the chosen rate
    minus that at the untuned one, over the seeds that both have, with its 95 % t interval.
    """
    by_key: dict[str, dict[float, Cell]] = {}
    for cell in judged:
        by_key.setdefault(key_text(_without_rate(cell)), {})[cell.key.get("lr")] = cell
    rows = []
    tried = {(key_text(each.key), row["lr"]): row for each in tuned for row in tuning_rows([each])}
    for each in tuned:
        means = {lr: statistics.t_interval(c.scored).mean for lr, c in each.trials.items()}
        found = by_key.get(key_text(each.key), {})
        untuned = _untuned(found, each.rate)
        best = tried[key_text(each.key), each.rate]
        rows.append(
            {
                **each.key,
                "lr": each.rate,
                "rates": len(each.trials),
                "at_edge": each.at_edge,
                **good_region(means),
                "n_tuning": best["n"],
                **{f"validation{end}": best[k] for end, k in _ENDS.items()},
                **_level(found.get(each.rate), "test"),
                "untuned_lr": untuned,
                **_level(found.get(untuned), "untuned"),
                **_gap(found.get(each.rate), found.get(untuned)),
            }
        )
    return rows


def _untuned(found: Mapping[float, Cell], chosen: float) -> float | None:
    """Return the rate that was not chosen: the protocol's, or else that nearest to it."""
    others = sorted(found, key=lambda lr: (abs(math.log(lr / UNTUNED)), lr))
    if chosen == UNTUNED or not others:
        return UNTUNED if chosen == UNTUNED else None
    return others[0] if others[0] != chosen else (others[1] if len(others) > 1 else None)


def _level(cell: Cell | None, name: str) -> dict[str, Any]:
    interval = statistics.t_interval(cell.scored if cell else [])
    return {f"n_{name}": interval.n, **interval.columns(name)}


def _gap(chosen: Cell | None, untuned: Cell | None) -> dict[str, Any]:
    """Return the paired difference; exactly 0 where the untuned rate was chosen."""
    if chosen is None or untuned is None or chosen is untuned:
        same = chosen is not None and chosen is untuned
        return {
            "n_gap": 0,
            "gap": 0.0 if same else math.nan,
            "gap_lo": math.nan,
            "gap_hi": math.nan,
        }
    a, b = scored_by_seed(chosen), scored_by_seed(untuned)
    interval = statistics.t_interval([a[seed] - b[seed] for seed in sorted({*a} & {*b})])
    return {"n_gap": interval.n, **interval.columns("gap")}


def scored_by_seed(cell: Cell) -> dict[int, float]:
    """Return {seed: accuracy}, a diverged seed at chance."""
    diverged = {row["seed"]: 1 / cell.classes for row in cell.of("diverged")}
    complete = {r["seed"]: r["test_acc"] for r in cell.of("complete") if r["test_acc"] is not None}
    return {**diverged, **complete}


def good_region(means: Mapping[float, float]) -> dict[str, Any]:
    """Return where the accuracy is within GOOD of the best: {good_lo, good_hi, good_octaves, ...}.

    means: {rate: accuracy}. Between two rates the accuracy is taken to be linear in log2(rate). The
    region holds the best rate and ends where the accuracy first falls below; good_open says at
    which ends ("lo", "hi", "both", "") it reaches the last rate that was tried, and may go on.
    """
    rates = sorted(means)
    best = best_rate({rate: [mean] for rate, mean in means.items()})
    least, at = means[best] - GOOD, rates.index(best)
    lo, lo_open = _border(rates[at::-1], means, least)
    hi, hi_open = _border(rates[at:], means, least)
    ends = {(True, True): "both", (True, False): "lo", (False, True): "hi"}
    return {
        "good_lo": lo,
        "good_hi": hi,
        "good_octaves": math.log2(hi / lo),
        "good_open": ends.get((lo_open, hi_open), ""),
    }


def _border(
    rates: Sequence[float], means: Mapping[float, float], least: float
) -> tuple[float, bool]:
    """Return where accuracy falls below `least` along the rates, and whether it never does."""
    for inside, outside in itertools.pairwise(rates):
        if means[outside] < least:
            part = (means[inside] - least) / (means[inside] - means[outside])
            return inside * (outside / inside) ** part, False
    return rates[-1], True
