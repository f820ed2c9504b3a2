"""The lines a person reads before and after training."""

import statistics
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch

from gnexp.analysis.statistics import binomial_interval, t_interval
from gnexp.config.identity import norm_label
from gnexp.config.resolve import seed_list, trial
from gnexp.config.schema import (
    TrainConfig,
    TuningConfig,
    is_private,
    is_tuned,
    tested_on,
)
from gnexp.data.sources import DataSummary
from gnexp.runner.build import dp_sgd
from gnexp.runner.build.data import resolved, train_settings
from gnexp.runner.lr_search import lr_search_result
from gnexp.runner.prepared_run import PreparedRun, SeedProgress, seed_progress
from gnexp.runner.schedule import ReplicaGroup

MANY_CHOICES = 60  # tuned cells beyond which their table is in the report alone


def describe_norm(config: TrainConfig) -> str:
    """Return a resolved config's norm for people: "gn (32 groups)"."""
    label = norm_label(config.norm)
    if config.channels_per_group:
        return f"{label} ({config.channels_per_group} channels per group)"
    return f"{label} ({config.groups} groups)" if config.groups else label


def _device_text(run: PreparedRun, workers: int) -> str:
    config, device = run.config, run.device
    if config.devices > 1:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu processes"
        return f"{config.devices} devices ({name})"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if workers > 1:
        return f"cpu, {workers} processes of one thread"
    return f"cpu, {torch.get_num_threads()} threads"


def _data_text(run: PreparedRun) -> str:
    return (
        f"{run.data.title}: {run.data.train_size:,} training and {run.data.test_size:,}"
        f" {tested_on(run.config)} images"
    )


def passed_over_lines(data: Iterable[DataSummary]) -> list[str]:
    """Return what of these data is not used, a line per data set that has such."""
    texts = {each.title: each.passed_over for each in data if each.passed_over}
    return [f"{title}: passed over {what}" for title, what in texts.items()]


def single_line(run: PreparedRun, steps: list[ReplicaGroup], workers: int) -> str:
    """Return the first line of a single run: config, device, data."""
    config = run.config
    used = train_settings(config).examples_per_epoch(run.data.train_size)
    updates = config.updates or config.epochs * used // config.update_batch
    accumulated = f" on each of {config.devices} devices" if config.devices > 1 else ""
    if config.update_batch != config.batch:
        accumulated += f" in updates of {config.update_batch}"
    return (
        f"{_device_text(run, workers)} | {_data_text(run)} | {config.model.name} with"
        f" {describe_norm(config)}, {run.parameters:,} parameters | batch {config.batch}"
        f"{accumulated}, {config.epochs} epoch{'s' * (config.epochs > 1)},"
        f" {updates:,} updates{_seeds_text(steps)}"
    )


def _seeds_text(steps: list[ReplicaGroup]) -> str:
    """Return how the seeds train: " x 5 seeds, 3 + 2 in one step"."""
    sizes = [len(step.replicas) for step in steps]
    if sum(sizes) == 1:
        return ""
    how = f", {' + '.join(map(str, sizes))} in one step" if max(sizes) > 1 else ", one by one"
    return f" x {sum(sizes)} seeds{how}"


def unstackable_line(run: PreparedRun, reason: str) -> str:
    """Return the line with the reason why the seeds of a run train one after the other."""
    return f"{describe_norm(run.config)}: its seeds train one after the other, since {reason}"


def privacy_lines(runs: list[PreparedRun]) -> list[str]:
    """Return what is to be known of private runs before they train: their noise, and its limits."""
    private = [run for run in runs if is_private(run.config)]
    if not private:
        return []
    planned, also = {}, {}
    for run in private:
        config, size = run.config, run.data.train_size
        plan = dp_sgd.budget(config, size)
        planned[plan, config.privacy.clip] = (
            f"DP-SGD: noise multiplier {plan.noise_multiplier():.3g}, clip {config.privacy.clip:g},"
            f" sampling rate {plan.sampling_rate:.3g}, {plan.updates:,} updates for epsilon"
            f" {plan.epsilon:g} at delta {plan.delta:.2e}"
        )
        noise = config.privacy.noise
        other = "; privacy.noise=secret draws them from the system's entropy"
        also[f"DP-SGD: {dp_sgd.NOISE[noise]}{other * (noise == 'seeded')}"] = None
        also[f"DP-SGD: neighbours differ in {dp_sgd.neighbouring_sets(size)}"] = None
    return [
        *planned.values(),
        *also,
        "DP-SGD: epsilon is of one training's weights and what follows from them, such as test"
        " accuracy; releasing several, or one trained anew, adds up, and train_loss and train_acc"
        " are not covered",
    ]


def start_lines(runs: list[PreparedRun]) -> list[str]:
    """Return what the runs that start from stored weights take of them, once per norm."""
    lines = []
    for run in runs:
        if run.start:
            lines.append(f"{describe_norm(run.config)} starts from {run.start}")
        if run.start and is_private(run.config):
            lines.append(
                "DP-SGD: epsilon does not cover what the weights at init_from know of these images"
            )
    return list(dict.fromkeys(lines))


def _spent_text(seeds: list[dict[str, Any]]) -> str:
    spent = [numbers for numbers in seeds if "epsilon_spent" in numbers]
    if not spent:
        return ""
    most = max(spent, key=lambda numbers: numbers["epsilon_spent"])
    each = " by each seed" if len(spent) > 1 else ""
    seeded = any(numbers["noise"].startswith("seeded") for numbers in spent)
    unless = ", against anyone who does not know the seed" if seeded else ""
    return f", epsilon {most['epsilon_spent']:.4g} spent{each} at delta {most['delta']:.2e}{unless}"


def grid_line(runs: list[PreparedRun], todo: list[PreparedRun], workers: int) -> str:
    """Return the first line of a grid: runs complete and to train; no workers: a launcher."""
    counts = Counter("to train" if run in todo else _run_status(run) for run in runs)
    kinds = ("complete", "diverged", "infeasible", "failed", "to train")
    parts = [f"{counts[k]} {k}" for k in kinds if counts[k]]
    where = f"{_device_text(runs[0], workers)} | " if workers else ""
    where += _data_text(runs[0])
    return f"{len(runs)} run{'s' * (len(runs) > 1)}: {', '.join(parts)} | {where}"


def _run_status(run: PreparedRun) -> str:
    states = {*seed_progress(run).ended.values()}
    if "failed" in states:
        return "failed"
    return states.pop() if len(states) == 1 else "complete"


def tuning_lines(configs: list[TrainConfig]) -> list[str]:
    """Return what will be done to choose the learning rates, once per way of choosing."""
    texts = Counter(_tuning_text(config.tuning) for config in configs if is_tuned(config))
    return [f"lr=tuned: {n} cell{'s' * (n > 1)}, {text}" for text, n in texts.items()]


def _tuning_text(tuning: TuningConfig) -> str:
    budget = [f"{tuning.epochs} epoch{'s' * (tuning.epochs > 1)}"] if tuning.epochs else []
    budget += [f"{tuning.train_limit:,} training images"] if tuning.train_limit else []
    each = f"{len(seed_list(tuning.seeds))} seeds{' of ' * bool(budget)}{' and '.join(budget)}"
    part = tuning.validation
    held_out = f"{100 * part:g} % of the images" if part < 1 else f"{part:,} images"
    more = f", up to {tuning.extend} rates more where the best is at the edge"
    chosen = "the chosen rate"
    if tuning.rule != "best":
        chosen = "the smallest rate within one standard error of the best"
    return (
        f"each at {len(tuning.lr)} rates x {each} on {held_out} held out of the training set"
        f"{more * (tuning.extend > 0)}; then {chosen} on the whole set with other seeds"
    )


def choice_lines(configs: list[TrainConfig]) -> list[str]:
    """Return the rate that was chosen for each tuned config, or that none could be."""
    lines = []
    for config in configs if len(configs) <= MANY_CHOICES else ():
        if not is_tuned(config):
            continue
        now, plain = lr_search_result(config), resolved(trial(config, 1.0))
        head = f"{describe_norm(plain)}, batch {config.batch}: "
        if now.chosen is None:
            why = "not every trial has ended" if now.waiting else "no trial gave an accuracy"
            lines.append(f"{head}no rate chosen, since {why}")
            continue
        mean = 100 * statistics.mean(now.scores[now.chosen])
        edge = ", at the edge of the rates" if now.edges else ""
        lines.append(
            f"{head}lr={now.chosen:g} of {len(now.scores)} rates{edge}"
            f" ({mean:.1f} % on the images held out, {len(now.scores[now.chosen])} seeds)"
        )
    return lines


def ended_line(run: PreparedRun, now: SeedProgress, status: str) -> str:
    """Return the line that lists a run's seeds of a status and why, "" without any."""
    seeds = [seed for seed, was in now.ended.items() if was == status]
    if not seeds:
        return ""
    whys = "; ".join(dict.fromkeys(now.why[seed] for seed in seeds if now.why[seed]))
    named = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return f"{status}: {run.name}: {named} of {len(run.config.seeds)}{f': {whys}' * bool(whys)}"


def closing_line(run: PreparedRun) -> str:
    """Return the last line: the result with its interval, and its folder."""
    config, stored = run.config, run.stored.result().get("seeds", {})
    seeds = {seed: stored[str(seed)] for seed in config.seeds if str(seed) in stored}
    good = [v["test_acc"] for v in seeds.values() if v["status"] == "complete"]
    lost = Counter(v["status"] for v in seeds.values() if v["status"] != "complete")
    lost.update({"unfinished": len(config.seeds) - len(seeds)})
    trouble = "".join(f", {n} of {len(config.seeds)} {k}" for k, n in lost.items() if n)
    head = f"{describe_norm(config)}, batch {config.batch}"
    head += "" if config.data.validation is None else f", lr={config.lr:g}"
    if not good:
        return f"{head}: no seed completed{trouble} | {run.folder}"
    if len(good) == 1:
        tests = run.data.test_size
        lo, hi = binomial_interval(good[0], tests)
        mean, basis = good[0], f"over {tests:,} {tested_on(config)} images, one seed"
    else:
        interval = t_interval(good)
        mean, lo, hi, basis = interval.mean, interval.lo, interval.hi, f"over {len(good)} seeds"
    lo, hi = max(lo, 0.0), min(hi, 1.0)  # of few seeds, t may leave [0, 1]
    return (
        f"{head}: {100 * mean:.1f} % {tested_on(config)} accuracy"
        f" (95 % CI {100 * lo:.1f} to {100 * hi:.1f} {basis}{trouble})"
        f"{_spent_text(list(seeds.values()))} | {run.folder}"
    )
