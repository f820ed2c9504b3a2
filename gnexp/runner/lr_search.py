"""`lr=tuned`: every cell's rate is chosen on images held out of the training set, then trained.

What is still to be trained follows from what is stored, so an interrupted study goes on anywhere.
"""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gnexp.config.identity import run_name
from gnexp.config.resolve import seed_list, trial
from gnexp.config.schema import TrainConfig, UsageError, is_tuned
from gnexp.config.validation import problems
from gnexp.runner.build.code_digest import code_checksum
from gnexp.runner.build.data import images_of, resolved
from gnexp.store.files import CorruptFile
from gnexp.store.lr_choices import LRChoice, best_rate, chosen_rate, record_choices
from gnexp.store.run import Run


@dataclasses.dataclass(frozen=True)
class LRSearchState:
    """The progress of one cell's search: the accuracies of the ended seeds at each rate.

    rates: all that are tried. scores: {rate: accuracies on the images held out}, a diverged seed at
    chance; diverged: rates with such a seed; waiting: rates with a seed that has not ended.
    """

    config: TrainConfig
    rates: list[float]
    scores: dict[float, list[float]]
    diverged: list[float]
    waiting: list[float]

    @property
    def chosen(self) -> float | None:
        """The rate that the config's rule chooses when all have ended, None before."""
        if self.waiting or not self.scores:
            return None
        return chosen_rate(self.config.tuning.rule, self.scores, self.diverged)

    @property
    def edges(self) -> list[float]:
        """The smallest and the largest rate tried, where it is the chosen or the best one."""
        if self.chosen is None:
            return []
        found = {self.chosen, best_rate(self.scores, self.diverged)}
        return sorted(found & {min(self.scores), max(self.scores)})


def wanted(configs: Iterable[TrainConfig]) -> list[tuple[int, TrainConfig]]:
    """Return what these configs ask to be trained, as far as it is known yet, with their numbers.

    A tuned config stands for its trials, for a trial at a further rate while the best one is at
    the edge, and once the rate is chosen for runs at that rate and at the untuned one. Raises
    UsageError that lists every mistake in tuned configs.
    """
    configs = list(configs)
    if found := dict.fromkeys(s for c in configs if is_tuned(c) for s in problems(c)):
        raise UsageError("\n".join(found))
    try:
        return [(n, each) for n, config in enumerate(configs) for each in _wanted(config)]
    except ValueError as error:  # of the images or the norm: a mistake in what is typed
        raise UsageError(_of_trials(str(error), configs)) from error


def _of_trials(sentence: str, configs: Iterable[TrainConfig]) -> str:
    """Return the sentence with the keys that were typed, where it names those of a trial."""
    sentence = sentence.replace("data.validation=", "tuning.validation=")
    for limit in {c.tuning.train_limit for c in configs if c.tuning.train_limit is not None}:
        sentence = sentence.replace(f"data.train_limit={limit} ", f"tuning.train_limit={limit} ")
    return sentence


def _wanted(config: TrainConfig) -> list[TrainConfig]:
    if not is_tuned(config):
        return [config]
    limit, images = config.tuning.train_limit, len(images_of(config.data).x_train)
    if limit is not None and limit > images:
        raise ValueError(
            f"tuning.train_limit={limit} must be at most {images}, the training images of the run"
        )
    now = lr_search_result(config)
    trials = [trial(config, rate) for rate in sorted(now.rates)]
    if now.chosen is None:
        return trials
    final = dict.fromkeys(r for r in (now.chosen, config.tuning.untuned) if r is not None)
    return trials + [dataclasses.replace(config, lr=float(rate)) for rate in final]


def record(configs: Iterable[TrainConfig]) -> None:
    """Write down in the study's folder which rates are chosen by now, for its report."""
    chosen: dict[Path, dict[str, LRChoice]] = {}
    for config in filter(is_tuned, configs):
        now = lr_search_result(config)
        if now.chosen is not None:
            choices = chosen.setdefault(Path(config.out) / config.study, {})
            choices[_name(config, 1.0)] = _choice(config, now)
    for study, choices in chosen.items():
        for sentence in record_choices(study, choices):
            print(f"corrupt: {sentence}")


def chosen_runs(configs: Iterable[TrainConfig]) -> set[str]:
    """Return the names of the runs that a report compares: those at chosen and at typed rates."""
    rates = [(c, lr_search_result(c).chosen if is_tuned(c) else c.lr) for c in configs]
    return {_name(config, rate) for config, rate in rates if rate is not None}


def _choice(config: TrainConfig, now: LRSearchState) -> LRChoice:
    untuned = None if config.tuning.untuned is None else float(config.tuning.untuned)
    tried, run = _budget(trial(config, 1.0)), _budget(config)
    return LRChoice(
        run=_name(config, now.chosen),
        rate=now.chosen,
        untuned=None if untuned is None else _name(config, untuned),
        untuned_rate=untuned,
        trials={rate: run_folder(trial(config, rate)).name for rate in now.scores},
        rule=config.tuning.rule,
        budget={key: value for key, value in run.items() if value != tried[key]},
    )


def _budget(config: TrainConfig) -> dict[str, Any]:
    """Return what a run may have otherwise than its trials, by the names of a cell's key."""
    checksum = images_of(config.data).checksum[:8]
    limit = config.data.train_limit
    return {"epochs": config.epochs, "data.train_limit": limit, "data.checksum": checksum}


def _name(config: TrainConfig, rate: float) -> str:
    return run_folder(dataclasses.replace(config, lr=rate)).name


def run_folder(config: TrainConfig) -> Path:
    """Return the folder of the run that a typed config asks for, at one rate."""
    config = resolved(config)
    name = run_name(config, images_of(config.data).checksum, code_checksum(config))
    return Path(config.out) / config.study / name


def lr_search_result(config: TrainConfig) -> LRSearchState:
    """Return how far a tuned config's choice is, with the further rates that it has led to."""
    rates = [float(rate) for rate in config.tuning.lr]
    for _ in range(config.tuning.extend):
        now = _search_state(config, rates)
        if not now.edges:
            return now
        # The larger first: by a better rate beyond it others may be no longer near the best.
        rates = extended(rates, now.edges[-1])
    return _search_state(config, rates)


def extended(rates: list[float], edge: float) -> list[float]:
    """Return the rates with one more beyond the edge, as far as the last two are apart."""
    low, second, *_ = sorted(rates)
    *_, before, high = sorted(rates)
    further = edge * high / before if edge == high else edge * low / second
    # Steps of an exact factor stay what a person would type.
    return [*rates, float(f"{further:.6g}")]


def _search_state(config: TrainConfig, rates: list[float]) -> LRSearchState:
    trials = {rate: trial(config, rate) for rate in rates}
    ended = {rate: _ended_seeds(each) for rate, each in trials.items()}
    chance = 1 / len(images_of(config.data).classes)
    scores = {rate: _scores(numbers, chance) for rate, numbers in ended.items()}
    waiting = [r for r, each in trials.items() if len(ended[r]) < len(seed_list(each.seeds))]
    diverged = [r for r in rates if any(n.get("status") == "diverged" for n in ended[r])]
    scores = {rate: found for rate, found in scores.items() if found}
    return LRSearchState(config, rates, scores, diverged, waiting)


def _ended_seeds(config: TrainConfig) -> list[dict[str, Any]]:
    try:
        found = Run(run_folder(config)).result().get("seeds", {})
    except CorruptFile:  # which is repaired before training
        return []
    return [found[str(seed)] for seed in seed_list(config.seeds) if str(seed) in found]


def validation_scores(config: TrainConfig) -> list[float]:
    """Return the accuracies of the ended seeds on the images held out, a diverged one at chance.

    Those that failed, or are infeasible, have none.
    """
    return _scores(_ended_seeds(config), 1 / len(images_of(config.data).classes))


def _scores(ended: list[dict[str, Any]], chance: float) -> list[float]:
    scored = [n for n in ended if n.get("status") in ("complete", "diverged")]
    accuracies = [n["test_acc"] if n["status"] == "complete" else chance for n in scored]
    return [accuracy if math.isfinite(accuracy) else chance for accuracy in accuracies]
