"""The rules that need no data and no model: one sentence for each that is broken.

A whole grid is refused by them before torch is imported.
"""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from gnexp.config.resolve import bench_run, check_run, seed_list
from gnexp.config.schema import (
    CUSTOM,
    RETRIED,
    TAKES_GROUPS,
    TUNING_SEEDS_FROM,
    BenchConfig,
    CheckConfig,
    CostConfig,
    MeasureConfig,
    ModelConfig,
    ReportConfig,
    ReportOptions,
    ShiftConfig,
    StatusConfig,
    TrainConfig,
    instruments,
    is_external,
    is_private,
    is_tuned,
    retry_statuses,
)
from gnexp.config.torchrun import cores, launched
from gnexp.config.unknown import unknown

LR_RULES = ("linear", "sqrt", "none")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("fp32", "tf32", "bf16")
EXECUTIONS = ("auto", "eager", "compile", "cudagraph")
MOMENTUM_RULES = ("batches", "examples")
ZERO_NORM_OPTIONS = ("warmup", "dmax", "alpha_f", "alpha_b")
INITIALIZATIONS = ("he", "fixup")
INIT_STATISTICS = ("keep", "reestimate")
AUGMENTS = ("crop_flip", "crop", "none")
AT_END = ("shift", "batches")
PRIVACIES = ("none", "dpsgd")
TUNING_RULES = ("best", "one_se")
NOISES = ("seeded", "secret")
LEAST_TUNING_SEEDS = 2  # one seed's best rate is often its luck
MOST_SEEDS = 10_000  # of one run; more is a slip of the finger
MOST_AT = 8192  # images in a batch at which gradients are drawn: each point takes 64 of them
LEAST_DRAWS = 4  # of gradients: deleting one of two blocks must leave a variance
FORMATS = ("pdf", "svg", "png")
LIBRARIES = ("torchvision", "timm")
# Of a constructor's keywords, what another key of gnexp decides.
NO_MODEL_OPTIONS = {
    "num_classes": "the data decide it",
    "norm_layer": "norm= decides it",
    "weights": "each seed draws its own; to start from stored weights type init_from=FILE",
    "pretrained": "each seed draws its own; to start from stored weights type init_from=FILE",
}
RESERVED_STUDIES = ("check", "reference", "report")


def problems(config: TrainConfig) -> list[str]:
    """Return one sentence for every rule that an expanded config breaks, before it is resolved."""
    found = list(_study_problems(config.study, config.out))
    counts = ("batch", "update_batch", "epochs", "updates", "groups", "channels_per_group")
    counts += ("workers", "stack", "devices")
    typed = {key: getattr(config, key) for key in (*counts, "reference_batch")}
    found += count_problems({**typed, "model.width": config.model.width})
    for key in ("train_limit", "test_limit"):
        value = getattr(config.data, key)
        if value is not None and value < 1:
            found.append(f"data.{key}={value} must be at least 1, or null for all images")
    found += _choice_problems(config)
    found += _model_problems(config.model, config.zero_gamma)
    for key, value in dataclasses.asdict(config.convert).items():
        listed = value if isinstance(value, list) and value else [value]
        if value is not None and not all(isinstance(each, str) for each in listed):
            found.append(
                f"convert.{key}={value} must be a layer's name, a pattern of names such as"
                " layer4.*, a class, or a list of these"
            )
    found += _number_problems(config)
    found += _seed_problems(config.seeds)
    found += tuning_problems(config) if is_tuned(config) else []
    found += _validation_problems("data.validation", config.data.validation)
    found += _retry_problems(config.retry)
    found += gradient_problems(config.gradients, config.gradients_at)
    found += _privacy_problems(config) + _start_problems(config)
    found += measure_problems(config.measure) + shift_problems(config.shift)
    found += _devices_problems(config)
    found += report_option_problems(config.report) + logger_problems(config.logger)
    if not found and config.update_batch and config.update_batch % config.batch:
        near = config.batch * max(1, round(config.update_batch / config.batch))
        found.append(
            f"update_batch={config.update_batch} must be a multiple of batch={config.batch},"
            f" such as update_batch={near}"
        )
    if not found and config.update_batch and config.update_batch % (config.batch * config.devices):
        whole = config.batch * config.devices
        near = whole * max(1, round(config.update_batch / whole))
        found.append(
            f"update_batch={config.update_batch} must be a multiple of {whole}, which is"
            f" batch={config.batch} on each of devices={config.devices}, such as"
            f" update_batch={near}"
        )
    if config.covariance and config.gradients_augment:
        found.append(
            "covariance=true needs gradients_augment=false: it holds for the images as they are"
        )
    if config.groups is not None and config.channels_per_group is not None:
        found.append("groups= and channels_per_group= exclude each other: type one of them")
    return found


def _start_problems(config: TrainConfig) -> list[str]:
    """Return what contradicts a start from stored weights, or needs one."""
    if config.init_from is None:
        given = config.init_statistics != "keep" or config.init_checksum is not None
        needs = "init_statistics" if config.init_statistics != "keep" else "init_checksum"
        value = getattr(config, needs)
        need = f"{needs}={value} needs weights to start from, as init_from=results/main/RUN"
        return [need] if given else []
    found = []
    if config.zero_gamma:
        found.append("zero_gamma=true excludes init_from=, whose gammas are stored; leave it out")
    if config.initialization != "he":
        found.append(
            f"initialization={config.initialization} excludes init_from=, whose weights are stored;"
            " leave it out"
        )
    if is_private(config) and config.init_statistics != "keep":
        found.append(
            f"init_statistics={config.init_statistics} excludes privacy=dpsgd: statistics of the"
            " training images are outside the privacy budget; use init_statistics=keep"
        )
    return found


def _devices_problems(config: TrainConfig) -> list[str]:
    """Return what training on several devices does not do, of what is typed."""
    place, count = launched(), config.devices
    if place and count != place.world:
        return [
            f"devices={count} contradicts the {place.world} processes that were launched"
            f" (WORLD_SIZE); leave it out, or type devices={place.world}"
        ]
    if not _is_whole(count) or count < 2:
        return []
    found = []
    if config.workers not in (None, 1):
        found.append(
            f"workers={config.workers} excludes devices={count}: each training has all devices;"
            " leave workers= out"
        )
    if config.execution in ("compile", "cudagraph"):
        found.append(
            f"execution={config.execution} excludes devices={count}, whose updates are made one by"
            " one; use execution=auto"
        )
    if is_private(config):
        found.append(f"devices={count} excludes privacy=dpsgd; use devices=1")
    return found


def _model_problems(model: ModelConfig, zero_gamma: bool) -> list[str]:
    """Return what is wrong with the keys of a network; names are not looked up."""
    if model.library is not None and model.library not in LIBRARIES:
        sentence = f"model.library={model.library} is unknown"
        return [unknown(sentence, model.library, LIBRARIES)]
    if not is_external(model):
        if model.name == CUSTOM:
            return ["model=custom needs the import path of yours, as model._target_=my_pkg.Net"]
        if model.options:
            return [
                f"model.options={model.options} needs model=torchvision, model=timm or"
                f" model._target_=; model={model.name} takes model.width"
            ]
        return []
    if model.library is not None and model._target_ is not None:
        return [f"model={model.library} and model._target_= exclude each other: type one of them"]
    found = []
    if not model.name:
        found.append(f"model.name must be given with model={model.library}, as model.name=resnet50")
    if model.width is not None:
        found.append(
            f"model.width={model.width} is for the models of gnexp; give a constructor what it"
            " takes in model.options={KEY:VALUE}"
        )
    if zero_gamma:
        found.append(
            f"zero_gamma=true needs a model of gnexp, such as model=resnet18: where the branches of"
            f" {model.library or model._target_} end is not known; use zero_gamma=false"
        )
    if not isinstance(model.options or {}, dict):
        return [*found, f"model.options={model.options} must be a mapping, as {{KEY:VALUE}}"]
    found += [
        f"model.options.{key}= cannot be typed: {NO_MODEL_OPTIONS[key]}"
        for key in model.options or {}
        if key in NO_MODEL_OPTIONS
    ]
    return found


def width_problems(model: ModelConfig) -> list[str]:
    """Return what is wrong with the width that a training is typed with."""
    if model.width is not None or is_external(model):
        return []
    return ["model.width=null must be a whole number, not null, such as model.width=16"]


def tuning_problems(config: TrainConfig) -> list[str]:
    """Return one sentence for every rule that the choice of a rate breaks."""
    tuning, found = config.tuning, []
    rates = tuning.lr
    listed = isinstance(rates, list) and all(map(_is_positive, rates))
    if not listed or len(set(rates)) < max(2, len(rates)):
        found.append(
            f"tuning.lr={rates} must be a list of two or more rates, such as"
            " tuning.lr=[0.05,0.1,0.2]"
        )
    seeds = f"tuning.{line}" if (line := next(iter(_seed_problems(tuning.seeds)), "")) else ""
    if seeds:
        found.append(seeds)
    elif not _seed_problems(config.seeds):
        tried = seed_list(tuning.seeds, TUNING_SEEDS_FROM)
        both = sorted({*tried} & {*seed_list(config.seeds)})
        if both:
            found.append(
                f"tuning.seeds and seeds= share seed {both[0]}: a rate is chosen by one set of"
                " trainings and judged by another"
            )
        if len(tried) < LEAST_TUNING_SEEDS:
            found.append(f"tuning.seeds={tuning.seeds} must be at least {LEAST_TUNING_SEEDS} seeds")
    if tuning.validation is None:
        found.append("tuning.validation=null holds out no image; type a part, such as 0.1")
    found += _validation_problems("tuning.validation", tuning.validation)
    found += _trial_budget_problems(config)
    if tuning.rule not in TUNING_RULES:
        found.append(f"tuning.rule={tuning.rule} is not one of {', '.join(TUNING_RULES)}")
    if not _is_whole(tuning.extend) or tuning.extend < 0:
        found.append(f"tuning.extend={tuning.extend} must be a whole number of 0 or more")
    if tuning.untuned is not None and not _is_positive(tuning.untuned):
        found.append(f"tuning.untuned={tuning.untuned} must be a rate, such as 0.1, or null")
    if config.data.validation is not None:
        found.append(
            "lr=tuned holds out images of its own (tuning.validation=); leave data.validation= out"
        )
    if is_private(config):
        found.append(
            "lr=tuned excludes privacy=dpsgd: its trials are outside the privacy budget; type a"
            " rate, such as lr=0.1"
        )
    return found


def _trial_budget_problems(config: TrainConfig) -> list[str]:
    """Return what keeps the trials of a tuned config from having a part of its budget."""
    wholes = {"epochs": config.epochs, "train_limit": config.data.train_limit}
    typed = {key: getattr(config.tuning, key) for key in wholes}
    if found := count_problems({f"tuning.{key}": value for key, value in typed.items()}):
        return found
    typed = {key: value for key, value in typed.items() if value is not None}
    if typed and config.updates is not None:
        key, value = next(iter(typed.items()))
        return [
            f"tuning.{key}={value} excludes updates={config.updates}: give the budget in epochs="
        ]
    names = {"epochs": "epochs", "train_limit": "data.train_limit"}
    return [
        f"tuning.{key}={value} must be at most {names[key]}={wholes[key]}: a trial has the run's"
        " budget or a part of it"
        for key, value in typed.items()
        if _is_whole(wholes[key]) and value > wholes[key]
    ]


def _validation_problems(key: str, value: Any) -> list[str]:
    fraction = isinstance(value, float) and 0 < value < 1
    if value is None or fraction or (_is_whole(value) and value >= 1):
        return []
    return [f"{key}={value} must be a fraction below 1 or a number of images, such as {key}=0.1"]


def _is_positive(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value > 0


def unused_problems(
    command: str, typed: dict[str, str], configs: list[Any], grid: bool = False
) -> list[str]:
    """Return one sentence for every key that is typed and that no config of the call uses.

    typed: keys with their text. A key that some cells of a grid use is fine, and so is null.
    """
    found = []
    for key, value in typed.items():
        if value.lower() in ("null", "none"):
            continue
        rule = _uses(command, key, grid)
        if rule and not any(rule[0](config) for config in configs):
            found.append(f"{key}={value} is not used: {rule[1](configs[0])}")
    if command == "train" and "workers" in typed:
        found += idle_problems(configs[0].workers, sum(map(_training_count, configs)), "trainings")
    return found


def idle_problems(workers: Any, tasks: int, what: str) -> list[str]:
    """Return whether more processes are typed than could have a task, or a core of this machine."""
    most = max(cores(), tasks)
    if not _is_whole(workers) or workers <= most:
        return []
    return [
        f"workers={workers} is more than the {tasks} {what} asked for, and than the {cores()} cores"
        f" here; use at most workers={most}"
    ]


def _training_count(config: TrainConfig) -> int:
    count = len(seed_list(config.seeds))
    if is_tuned(config):
        count += len(config.tuning.lr) * len(seed_list(config.tuning.seeds))
    return count


def _uses(
    command: str, key: str, grid: bool
) -> tuple[Callable[[Any], bool], Callable[[Any], str]] | None:
    """Return (predicate, reason) for a key that some configs do not use, None for others."""
    section, groups = key.partition(".")[0], ("groups", "channels_per_group", "groups_fallback")
    with_groups = ", ".join(TAKES_GROUPS)
    if command == "train" and (section == "report" or key == "reference_batch"):
        return (
            lambda c: grid or is_tuned(c),
            lambda c: "one run ends without a report; type it after gnexp report",
        )
    if command == "train" and key == "epochs":
        return lambda c: c.updates is None, lambda c: f"updates={c.updates} says how long"
    if command == "train" and key == "gradients_augment":
        return (
            lambda c: c.gradients != 0 and not is_private(c),
            lambda c: "no gradient is measured; leave gradients=0 out",
        )
    if command == "check" and key in groups:
        return (
            lambda c: c.norm.get("name") in (*TAKES_GROUPS, CUSTOM),
            lambda c: (
                f"norm={c.norm.get('name')} has no groups; those that have are {with_groups}, and"
                " a norm of your own may"
            ),
        )
    if command in ("train", "bench", "check") and key == "data.root":
        return (
            lambda c: c.data.name != "shapes10",
            lambda c: "data=shapes10 is drawn, not read; type data=imagefolder or data=npz too",
        )
    if command == "train" and key in groups:
        return (
            lambda c: c.norm.get("name") in TAKES_GROUPS,
            lambda c: (
                f"norm={c.norm.get('name')} has no groups; those that have are {with_groups}"
                + ("; a norm of your own takes norm.KEY=VALUE" * (c.norm.get("name") == CUSTOM))
            ),
        )
    if command == "train" and section == "convert":
        return (
            lambda c: is_external(c.model),
            lambda c: (
                f"norm= is of all norm layers of model={c.model.name}; model=torchvision,"
                " model=timm and model._target_= may keep some"
            ),
        )
    if command == "train" and section == "tuning":
        return is_tuned, lambda c: "no rate is chosen; type lr=tuned too"
    # Shifts of the batch are measured on as many images.
    shifted = {"shift", "batches"} if key == "shift.images" else {"shift"}
    if command == "train" and section == "shift":
        return (
            lambda c: bool(shifted & {*instruments(c.measure)}),
            lambda c: "no shift is measured; type measure=[shift] too",
        )
    if command == "bench" and key == "groups":
        return (
            lambda c: _list_problems("norms", c.norms, "", "") or {*c.norms} & {*TAKES_GROUPS},
            lambda c: (
                f"none of norms={','.join(c.norms)} has groups; those that have are " + with_groups
            ),
        )
    of = {"shift": "shift", "cost": "cost", "gradients": "gradients", "gradients_at": "gradients"}
    if command == "measure" and section in of:
        by = shifted if section == "shift" else {of[section]}
        return (
            lambda c: bool(by & {*instruments(c.what)}),
            lambda c: (
                f"what=[{','.join(map(str, instruments(c.what)))}] does not measure it; type"
                f" what=[{of[section]}]"
            ),
        )
    return None


def count_problems(typed: dict[str, Any]) -> list[str]:
    """Return one sentence for every value that is neither None nor a whole number from 1 up."""
    return [
        f"{key}={value} must be a whole number of at least 1, such as {key}=2"
        for key, value in typed.items()
        if value is not None and (not _is_whole(value) or value < 1)
    ]


def gradient_problems(draws: int | None, batches: Any) -> list[str]:
    """Return what is wrong with `gradients=` and `gradients_at=`."""
    found = []
    if draws is not None and draws != 0 and draws < LEAST_DRAWS:
        found.append(
            f"gradients={draws} must be 0 (none) or at least {LEAST_DRAWS} draws, such as 256"
        )
    listed = isinstance(batches, list) and batches and all(_is_whole(b) for b in batches)
    if batches is not None and not (listed and min(batches) >= 1):
        found.append(f"gradients_at={batches} must be a list of batch sizes, such as [1,2,4,8]")
    elif batches and max(batches) > MOST_AT:
        found.append(
            f"gradients_at={batches} must hold batch sizes of at most {MOST_AT}: every point draws"
            " at least 64 batches"
        )
    elif batches and len({*batches}) < len(batches):
        found.append(f"gradients_at={batches} names a batch size twice; type each once")
    return found


def measure_problems(measured: Any) -> list[str]:
    """Return what is wrong with `measure=`, the instruments at the end of training."""
    if all(isinstance(name, str) and name in AT_END for name in instruments(measured)):
        return []
    return [f"measure={measured} must be a list of {', '.join(AT_END)}, such as measure=[shift]"]


def shift_problems(shift: ShiftConfig) -> list[str]:
    """Return what is wrong with the keys of the shift; names of corruptions are not looked up."""
    found = count_problems({"shift.images": shift.images})
    levels = shift.severities
    listed = isinstance(levels, list) and levels and all(_is_whole(level) for level in levels)
    if not (listed and all(1 <= level <= 5 for level in levels)):
        found.append(
            f"shift.severities={levels} must be a list of whole numbers from 1 to 5, such as"
            " shift.severities=[1,3,5]"
        )
    names = shift.corruptions
    listed = isinstance(names, list) and names and all(isinstance(name, str) for name in names)
    if names is not None and not listed:
        found.append(f"shift.corruptions={names} must be a list, such as [fog,contrast]")
    return found


def cost_problems(cost: CostConfig) -> list[str]:
    """Return one sentence for every rule that the keys of a cost break; names are not looked up."""
    found = _list_problems("cost.norms", cost.norms, "[bn,gn]", "names of norms")
    found += _list_problems("cost.batches", cost.batches, "[1,2,4]", "whole numbers from 1 up")
    found += count_problems({"cost.groups": cost.groups, "cost.width": cost.width})
    if not (_is_whole(cost.size) and cost.size >= 8):
        found.append(f"cost.size={cost.size} must be at least 8 pixels, such as cost.size=128")
    if not (math.isfinite(cost.memory_gb) and cost.memory_gb > 0):
        found.append(f"cost.memory_gb={cost.memory_gb} must be a positive number, such as 8")
    return found


def bench_problems(config: BenchConfig) -> list[str]:
    """Return one sentence for every rule that a bench breaks; its norms are not looked up."""
    found = _study_problems(config.name, config.out, "name", "bench")
    found += _list_problems("norms", config.norms, "[bn,gn]", "names of norms")
    found += _list_problems("batches", config.batches, "[1,2,4,8]", "whole numbers from 1 up")
    found += count_problems({"seeds": config.seeds, "repeats": config.repeats})
    if not (math.isfinite(config.seconds) and config.seconds > 0):
        found.append(f"seconds={config.seconds} must be a positive number, such as seconds=3")
    if is_external(config.model):
        found.append("gnexp bench times the models of gnexp; choose one, such as model=resnet18")
    if found:
        return found
    return problems(bench_run(config, config.norms[0], config.batches[0]))


def check_problems(config: CheckConfig) -> list[str]:
    """Return one sentence for every rule that a check breaks; its claims are not looked up."""
    found = _study_problems(config.name, config.out, "name", "check")
    if config.claims is not None:
        found += _list_problems("claims", config.claims, "[core,geometry]", "names of claims")
    found += count_problems({"channels": config.channels})
    if not _is_whole(config.draws) or config.draws < LEAST_DRAWS:
        found.append(
            f"draws={config.draws} must be a whole number of at least {LEAST_DRAWS}, such as 64"
        )
    if not _is_whole(config.seed) or config.seed < 0:
        found.append(f"seed={config.seed} must be a whole number from 0 up")
    return found + problems(check_run(config))


def _list_problems(key: str, value: Any, example: str, of: str) -> list[str]:
    def fits(item: Any) -> bool:
        named = key in ("norms", "claims", "cost.norms")
        return isinstance(item, str) if named else _is_whole(item) and item >= 1

    if fits(value):
        return [f"{key}={value} must be a list, such as {key}=[{value}]"]
    if not (isinstance(value, list) and value and all(fits(item) for item in value)):
        return [f"{key}={value} must be a list of {of}, such as {key}={example}"]
    once = list(dict.fromkeys(value))
    if once != value:
        shown = ",".join(map(str, once))
        return [f"{key}={value} names one of them twice; type {key}=[{shown}]"]
    return []


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _study_problems(study: str, out: str, key: str = "study", example: str = "main") -> list[str]:
    if (study or "").endswith(".zip"):
        return [f"{key}={study} is the name of a file: type a folder's, such as {key}={example}"]
    rule = "letters, digits, '.', '_' and '-', without a leading dot"
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", study or ""):
        return [f"{key}={study!r} must be 1 to 100 {rule}, such as {key}={example}"]
    if study in RESERVED_STUDIES and (key, study) != ("name", "check"):
        return [f"{key}={study} is a reserved name; choose another, such as {key}={study}-1"]
    return [] if out else ["out= must name a folder, such as out=results"]


def study_problems(config: ReportConfig | MeasureConfig | StatusConfig) -> list[str]:
    """Return what is wrong with the name of the study, or with those of two, or with the folder.

    In place of a name may stand the path of a zip, whose own name is then the study's.
    """
    if not isinstance(config.study, list):
        found = _stored_problems(config.study, config.out)
        if not found and config.study.endswith(".zip") and config.out != "results":
            found.append(
                f"out={config.out} is not used: study={config.study} is a file, and what is made of"
                " the study goes to a folder beside the file"
            )
        return found
    names = config.study
    if len(names) != 2 or len(set(names)) != 2:
        shown = ",".join(map(str, names))
        return [f"study=[{shown}] must be two studies to compare, such as study=[main,smoke]"]
    return [line for name in names for line in _stored_problems(name, config.out)]


def _stored_problems(study: str, out: str) -> list[str]:
    if not (study or "").endswith(".zip"):
        return _study_problems(study, out)
    found = _study_problems(PurePath(study).stem, out)
    return [f"study={study} has the name of no study, rename it: {line}" for line in found]


def report_problems(config: ReportConfig) -> list[str]:
    """Return one sentence for every rule that a report breaks."""
    found = study_problems(config) + count_problems({"reference_batch": config.reference_batch})
    return found + report_option_problems(config.report) + logger_problems(config.logger)


def report_option_problems(report: ReportOptions) -> list[str]:
    """Return what is wrong with the kinds of figure files, or with the margin of a lead."""
    formats = report.format if isinstance(report.format, list) else [report.format]
    found = []
    if not (formats and all(name in FORMATS for name in formats)):
        found.append(
            f"report.format={report.format} must be a list of {', '.join(FORMATS)}, such as"
            " report.format=[pdf,png]"
        )
    margin = report.margin
    if isinstance(margin, bool) or not (isinstance(margin, int | float) and 0 <= margin < 100):
        found.append(
            f"report.margin={margin} must be points of accuracy from 0 to below 100, such as"
            " report.margin=0.5"
        )
    return found


def _choice_problems(config: TrainConfig) -> list[str]:
    choices = {
        "lr_rule": (config.lr_rule, LR_RULES),
        "schedule": (config.schedule, SCHEDULES),
        "precision": (config.precision, PRECISIONS),
        "execution": (config.execution, EXECUTIONS),
        "data.augment": (config.data.augment, AUGMENTS),
        "groups_fallback": (config.groups_fallback, (None, "gcd")),
        "initialization": (config.initialization, INITIALIZATIONS),
        "init_statistics": (config.init_statistics, INIT_STATISTICS),
        **_norm_choices(config.norm),
    }
    return [
        f"{key}={value} is not one of {', '.join(str(v) for v in valid if v is not None)}"
        for key, (value, valid) in choices.items()
        if value not in valid
    ]


def _norm_choices(norm: dict[str, Any]) -> dict[str, tuple[Any, tuple[str, ...]]]:
    if norm.get("name") == CUSTOM or "momentum_rule" not in norm:
        return {}
    return {"norm.momentum_rule": (norm["momentum_rule"], MOMENTUM_RULES)}


def _number_problems(config: TrainConfig) -> list[str]:
    ranges: dict[str, tuple[Any, float, float, str]] = {
        "lr": (config.lr, 0, math.inf, "a positive number, such as lr=0.1"),
        "momentum": (config.momentum, -1, 1, "at least 0 and below 1, such as momentum=0.9"),
        "weight_decay": (config.weight_decay, -1, math.inf, "0 or more, such as 0.0005"),
        "warmup": (config.warmup, -1, 1, "a fraction of training from 0 to below 1"),
        "checkpoint_minutes": (config.checkpoint_minutes, -1, math.inf, "0 or more, such as 10"),
    }
    if is_tuned(config):
        del ranges["lr"]
    elif isinstance(config.lr, str):
        return [f"lr={config.lr} must be a positive number, such as lr=0.1, or lr=tuned"]
    found = []
    for key, (value, low, high, rule) in ranges.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        zero_allowed = low < 0 and number and value == 0
        if not (number and math.isfinite(value) and (max(low, 0) < value < high or zero_allowed)):
            found.append(f"{key}={value} must be {rule}")
    options = {k: v for k, v in config.norm.items() if k not in ("name", "momentum_rule")}
    for key, value in options.items() if config.norm.get("name") != CUSTOM else ():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        zero_allowed = key in ZERO_NORM_OPTIONS and number and value == 0
        if not (number and math.isfinite(value) and (value > 0 or zero_allowed)):
            such = ", such as norm.eps=1e-5" if key == "eps" else ""
            found.append(f"norm.{key}={value} must be a positive number{such}")
    return found


def _privacy_problems(config: TrainConfig) -> list[str]:
    typed = dataclasses.asdict(config.privacy)
    name = typed.pop("name")
    if name not in PRIVACIES:
        return [unknown(f"privacy={name} is unknown", name, PRIVACIES)]
    if name == "none":
        return [
            f"privacy.{key}={value} needs privacy=dpsgd: without it training is not private"
            for key, value in typed.items()
            if value is not None
        ]
    found = []
    ranges = {
        "epsilon": (math.inf, "a positive number, such as 8"),
        "delta": (1, "above 0 and below 1, such as 1e-5, or null for N^-1.1 of N training images"),
        "clip": (math.inf, "a positive number, such as 1.0"),
    }
    for key, (high, rule) in ranges.items():
        value = typed[key]
        if value is None and key == "delta":
            continue
        if value is None or not 0 < value < high:
            found.append(f"privacy.{key}={value} must be {rule}")
    if config.privacy.noise not in NOISES:
        found.append(f"privacy.noise={config.privacy.noise} is not one of {', '.join(NOISES)}")
    return found + _outside_budget(config)


def _outside_budget(config: TrainConfig) -> list[str]:
    """Return what private training does not do, of what is typed."""
    if config.updates is not None:
        return [f"updates={config.updates} excludes privacy=dpsgd; type epochs="]
    measured = {key: getattr(config, key) for key in ("gradients", "gradients_at", "covariance")}
    found = [
        f"{key}={value} excludes privacy=dpsgd: gradients of the training images that are measured"
        " and stored are outside the privacy budget; leave it out"
        for key, value in measured.items()
        if value
    ]
    if config.precision == "bf16":
        found.append("precision=bf16 excludes privacy=dpsgd; use precision=fp32")
    if config.execution in ("compile", "cudagraph"):
        found.append(
            f"execution={config.execution} excludes privacy=dpsgd, whose gradients come from hooks;"
            " use execution=auto"
        )
    return found


def _seed_problems(seeds: Any) -> list[str]:
    if _is_whole(seeds) and seeds > MOST_SEEDS:
        return [
            f"seeds={seeds} is more than {MOST_SEEDS:,} trainings of one run; type how many"
            " (seeds=5), or one seed by its name (seeds=[1234567])"
        ]
    if _is_whole(seeds) and seeds >= 1:
        return []
    if isinstance(seeds, list) and any(_is_whole(s) and s >= 2**63 for s in seeds):
        return [f"seeds={seeds} must be below 2^63, which is what tables hold"]
    listed = isinstance(seeds, list) and seeds and all(_is_whole(s) and s >= 0 for s in seeds)
    if listed and len(set(seeds)) == len(seeds):
        return []
    return [f"seeds={seeds} must be how many (seeds=5) or distinct seeds by name (seeds=[5,6])"]


def _retry_problems(retry: Any) -> list[str]:
    named = retry_statuses(retry)
    if all(isinstance(name, str) and name in RETRIED for name in named):
        return []
    return [f"retry={retry} must be {', '.join(RETRIED)} or a list of them, such as retry=failed"]


LOGGERS = ("tensorboard", "wandb")


def asked_loggers(logger: Any) -> list[str]:
    """Return the loggers that `logger=` names."""
    if logger is None:
        return []
    return list(logger) if isinstance(logger, (list, tuple)) else [logger]


def logger_problems(logger: Any) -> list[str]:
    """Return a sentence for each name in `logger=` that is unknown or is not installed."""
    found = []
    for name in dict.fromkeys(asked_loggers(logger)):
        if name not in LOGGERS:
            found.append(unknown(f"logger={name} is unknown", name, LOGGERS))
        elif importlib.util.find_spec(name) is None:
            found.append(
                f"logger={name} needs a package that is not installed: pip install 'gnexp[{name}]'"
            )
    return found
