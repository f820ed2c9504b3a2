"""The rules across keys that need no data and no model: one sentence for each that is broken.

A whole grid is refused by them before torch is imported. Rules of single keys stand at the keys.
"""

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from gnexp.config.resolve import bench_run, check_run, seed_list
from gnexp.config.rules import STUDY, broken, broken_rules, is_number
from gnexp.config.schema import (
    CUSTOM,
    TUNING_SEEDS_FROM,
    BenchConfig,
    CheckConfig,
    MeasureConfig,
    ModelConfig,
    ReportConfig,
    StatusConfig,
    TrainConfig,
    is_external,
    is_private,
    is_tuned,
    listed,
)
from gnexp.config.torchrun import launched

MOMENTUM_RULES = ("batches", "examples")
ZERO_NORM_OPTIONS = ("warmup", "dmax", "alpha_f", "alpha_b")
CAPTURED = ("compile", "cudagraph")  # executions that run many operations as one
# Of a constructor's keywords, what another key of gnexp decides.
NO_MODEL_OPTIONS = {
    "num_classes": "the data decide it",
    "norm_layer": "norm= decides it",
    "weights": "each seed draws its own; to start from stored weights type init_from=FILE",
    "pretrained": "each seed draws its own; to start from stored weights type init_from=FILE",
}
# Keys that exclude each other, or need each other: (when a config is wrong, the sentence).
Clash = tuple[Callable[[TrainConfig], Any], str]
CLASHES: list[Clash] = [
    (
        lambda c: c.covariance and c.gradients_augment,
        "covariance=true needs gradients_augment=false: it holds for the images as they are",
    ),
    (
        lambda c: c.groups is not None and c.channels_per_group is not None,
        "groups= and channels_per_group= exclude each other: type one of them",
    ),
    # The network.
    (
        lambda c: c.model.name == CUSTOM and not is_external(c.model),
        "model=custom needs the import path of yours, as model._target_=my_pkg.Net",
    ),
    (
        lambda c: c.model.options and c.model.name != CUSTOM and not is_external(c.model),
        "model.options={c.model.options} needs model=torchvision, model=timm or model._target_=;"
        " model={c.model.name} takes model.width",
    ),
    (
        lambda c: c.model.library is not None and c.model._target_ is not None,
        "model={c.model.library} and model._target_= exclude each other: type one of them",
    ),
    (
        lambda c: c.model.library and not c.model.name,
        "model.name must be given with model={c.model.library}, as model.name=resnet50",
    ),
    (
        lambda c: is_external(c.model) and c.model.width is not None,
        "model.width={c.model.width} is for the models of gnexp; give a constructor what it takes"
        " in model.options={{KEY:VALUE}}",
    ),
    (
        lambda c: is_external(c.model) and c.zero_gamma,
        "zero_gamma=true needs a model of gnexp, such as model=resnet18: where the branches of"
        " model={c.model.name} end is not known; use zero_gamma=false",
    ),
    (
        lambda c: is_external(c.model) and not isinstance(c.model.options or {}, dict),
        "model.options={c.model.options} must be a mapping, as {{KEY:VALUE}}",
    ),
    # The weights to start from.
    (
        lambda c: c.init_from is None and c.init_statistics != "keep",
        "init_statistics={c.init_statistics} needs weights to start from, as"
        " init_from=results/main/RUN",
    ),
    (
        lambda c: c.init_from is None and c.init_checksum is not None,
        "init_checksum={c.init_checksum} needs weights to start from, as"
        " init_from=results/main/RUN",
    ),
    (
        lambda c: c.init_from and c.zero_gamma,
        "zero_gamma=true excludes init_from=, whose gammas are stored; leave it out",
    ),
    (
        lambda c: c.init_from and c.initialization != "he",
        "initialization={c.initialization} excludes init_from=, whose weights are stored; leave it"
        " out",
    ),
    (
        lambda c: c.init_from and is_private(c) and c.init_statistics != "keep",
        "init_statistics={c.init_statistics} excludes privacy=dpsgd: statistics of the training"
        " images are outside the privacy budget; use init_statistics=keep",
    ),
    # Several devices.
    (
        lambda c: c.devices > 1 and c.workers not in (None, 1),
        "workers={c.workers} excludes devices={c.devices}: each training has all devices; leave"
        " workers= out",
    ),
    (
        lambda c: c.devices > 1 and c.execution in CAPTURED,
        "execution={c.execution} excludes devices={c.devices}, whose updates are made one by one;"
        " use execution=auto",
    ),
    (
        lambda c: c.devices > 1 and is_private(c),
        "devices={c.devices} excludes privacy=dpsgd; use devices=1",
    ),
    # Private training.
    *(
        (
            lambda c, key=key: not is_private(c) and getattr(c.privacy, key) is not None,
            f"privacy.{key}={{c.privacy.{key}}} needs privacy=dpsgd: without it training is not"
            " private",
        )
        for key in ("epsilon", "delta", "clip", "noise")
    ),
    *(
        (
            lambda c, key=key: is_private(c) and getattr(c.privacy, key) is None,
            f"privacy.{key}=None {rule}",
        )
        for key, rule in (
            ("epsilon", "must be a positive number, such as 8"),
            ("clip", "must be a positive number, such as 1.0"),
            ("noise", "is not one of seeded, secret"),
        )
    ),
    (
        lambda c: is_private(c) and c.updates is not None,
        "updates={c.updates} excludes privacy=dpsgd; type epochs=",
    ),
    *(
        (
            lambda c, key=key: is_private(c) and getattr(c, key),
            f"{key}={{c.{key}}} excludes privacy=dpsgd: gradients of the training images that are"
            " measured and stored are outside the privacy budget; leave it out",
        )
        for key in ("gradients", "gradients_at", "covariance")
    ),
    (
        lambda c: is_private(c) and c.precision == "bf16",
        "precision=bf16 excludes privacy=dpsgd; use precision=fp32",
    ),
    (
        lambda c: is_private(c) and c.execution in CAPTURED,
        "execution={c.execution} excludes privacy=dpsgd, whose gradients come from hooks; use"
        " execution=auto",
    ),
    # The choice of a rate.
    (
        lambda c: is_tuned(c) and len(_trial_seeds(c)) < 2,  # one seed's best rate is often luck
        "tuning.seeds={c.tuning.seeds} must be at least 2 seeds",
    ),
    (
        lambda c: is_tuned(c) and {*_trial_seeds(c)} & {*seed_list(c.seeds)},
        "tuning.seeds and seeds= share a seed: a rate is chosen by one set of trainings and judged"
        " by another",
    ),
    *(
        (
            lambda c, key=key: is_tuned(c) and getattr(c.tuning, key) and c.updates is not None,
            f"tuning.{key}={{c.tuning.{key}}} excludes updates={{c.updates}}: give the budget in"
            " epochs=",
        )
        for key in ("epochs", "train_limit")
    ),
    *(
        (
            lambda c, key=key, of=of: is_tuned(c) and _exceeds(getattr(c.tuning, key), of(c)),
            f"tuning.{key}={{c.tuning.{key}}} must be at most {name}={{c.{name}}}: a trial has the"
            " run's budget or a part of it",
        )
        for key, name, of in (
            ("epochs", "epochs", lambda c: None if c.updates else c.epochs),
            ("train_limit", "data.train_limit", lambda c: c.data.train_limit),
        )
    ),
    (
        lambda c: is_tuned(c) and c.data.validation is not None,
        "lr=tuned holds out images of its own (tuning.validation=); leave data.validation= out",
    ),
    (
        lambda c: is_tuned(c) and is_private(c),
        "lr=tuned excludes privacy=dpsgd: its trials are outside the privacy budget; type a rate,"
        " such as lr=0.1",
    ),
]


def problems(config: TrainConfig) -> list[str]:
    """Return one sentence for every rule that an expanded config breaks, before it is resolved."""
    found = broken_rules(config) + _norm_problems(config.norm)
    if found:
        return found
    found += [sentence.format(c=config) for clash, sentence in CLASHES if clash(config)]
    found += _model_option_problems(config.model)
    if (place := launched()) and config.devices != place.world:
        found.append(
            f"devices={config.devices} contradicts the {place.world} processes that were launched"
            f" (WORLD_SIZE); leave it out, or type devices={place.world}"
        )
    return found or _update_problems(config)


def _trial_seeds(config: TrainConfig) -> list[int]:
    return seed_list(config.tuning.seeds, TUNING_SEEDS_FROM)


def _exceeds(part: int | None, whole: int | None) -> bool:
    return None not in (part, whole) and part > whole


def _update_problems(config: TrainConfig) -> list[str]:
    """Return whether an update is not made of whole batches, one or more on each device."""
    whole = config.batch * config.devices
    if not config.update_batch or config.update_batch % whole == 0:
        return []
    of, near = f"batch={config.batch}", whole * max(1, round(config.update_batch / whole))
    if config.devices > 1:
        of = f"{whole}, which is batch={config.batch} on each of devices={config.devices}"
    return [
        f"update_batch={config.update_batch} must be a multiple of {of}, such as"
        f" update_batch={near}"
    ]


def _norm_problems(norm: dict[str, Any]) -> list[str]:
    """Return what is wrong with the options of a norm of gnexp, which are numbers but for one."""
    found = []
    for key, value in norm.items() if norm.get("name") != CUSTOM else ():
        such = ", such as norm.eps=1e-5" if key == "eps" else ""
        if key == "momentum_rule":
            if value not in MOMENTUM_RULES:
                found.append(f"norm.{key}={value} is not one of {', '.join(MOMENTUM_RULES)}")
        elif key != "name" and not (
            is_number(value) and (value > 0 or (value == 0 and key in ZERO_NORM_OPTIONS))
        ):
            found.append(f"norm.{key}={value} must be a positive number{such}")
    return found


def _model_option_problems(model: ModelConfig) -> list[str]:
    options = model.options if isinstance(model.options, dict) and is_external(model) else {}
    return [
        f"model.options.{key}= cannot be typed: {NO_MODEL_OPTIONS[key]}"
        for key in options
        if key in NO_MODEL_OPTIONS
    ]


def width_problems(model: ModelConfig) -> list[str]:
    """Return what is wrong with the width that a training is typed with."""
    if model.width is not None or is_external(model):
        return []
    return ["model.width=null must be a whole number, not null, such as model.width=16"]


def bench_problems(config: BenchConfig) -> list[str]:
    """Return one sentence for every rule that a bench breaks; its norms are not looked up."""
    found = broken_rules(config)
    if is_external(config.model):
        found.append("gnexp bench times the models of gnexp; choose one, such as model=resnet18")
    return found or problems(bench_run(config, config.norms[0], config.batches[0]))


def check_problems(config: CheckConfig) -> list[str]:
    """Return one sentence for every rule that a check breaks; its claims are not looked up."""
    return list(dict.fromkeys(broken_rules(config) + problems(check_run(config))))


def study_problems(config: ReportConfig | MeasureConfig | StatusConfig) -> list[str]:
    """Return what is wrong with the keys of a command on studies; a study may be a zip's path."""
    found, names = broken_rules(config), [str(name) for name in listed(config.study)]
    if (isinstance(config.study, list) and len({*names}) != 2) or len(names) > 2:
        shown = ",".join(map(str, names))
        found.append(f"study=[{shown}] must be two studies to compare, such as study=[main,smoke]")
    for name in names or [""]:
        if not name.endswith(".zip"):
            found += broken(STUDY, "study", name)
        elif wrong := broken(STUDY, "study", PurePath(name).stem):
            found.append(f"study={name} has the name of no study, rename it: {wrong[0]}")
        elif config.study == name and config.out != "results":
            found.append(
                f"out={config.out} is not used: study={name} is a file, and what is made of the"
                " study goes to a folder beside the file"
            )
    return found


# All that is wrong with a config of a command, as far as no data and no model are needed.
PROBLEMS: dict[str, Callable[[Any], list[str]]] = {
    "train": problems,
    "bench": bench_problems,
    "check": check_problems,
    **dict.fromkeys(("report", "measure", "status", "verify", "export"), study_problems),
}
