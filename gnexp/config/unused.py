"""The keys that are typed and that no config of the call uses: one sentence for each."""

from collections.abc import Callable
from typing import Any

from gnexp.config.resolve import seed_list
from gnexp.config.rules import broken_rules
from gnexp.config.schema import (
    CUSTOM,
    TAKES_GROUPS,
    TrainConfig,
    is_external,
    is_private,
    is_tuned,
    listed,
)
from gnexp.config.torchrun import cores

WITH_GROUPS = ", ".join(TAKES_GROUPS)


# A command, keys of it (names, or sections of names), whether a config uses them, in a grid or not,
# and what follows "KEY=VALUE is not used: ", in which the first config of the call is `c`.
Use = tuple[str, tuple[str, ...], Callable[[Any, bool], Any], str]
GROUP_KEYS = ("groups", "channels_per_group", "groups_fallback")
NO_GROUPS = f"norm={{c.norm[name]}} has no groups; those that have are {WITH_GROUPS}"
# The first row that names a key, or its section, is the one that counts.
USES: list[Use] = [
    (
        "train",
        ("report", "reference_batch"),
        lambda c, grid: grid or is_tuned(c),
        "one run ends without a report; type it after gnexp report",
    ),
    ("train", ("epochs",), lambda c, _: c.updates is None, "updates={c.updates} says how long"),
    (
        "train",
        ("gradients_augment",),
        lambda c, _: c.gradients != 0 and not is_private(c),
        "no gradient is measured; leave gradients=0 out",
    ),
    (
        "train",
        GROUP_KEYS,
        lambda c, _: c.norm.get("name") in TAKES_GROUPS,
        f"{NO_GROUPS}; a norm of your own takes norm.KEY=VALUE",
    ),
    (
        "check",
        GROUP_KEYS,
        lambda c, _: c.norm.get("name") in (*TAKES_GROUPS, CUSTOM),
        f"{NO_GROUPS}, and a norm of your own may",
    ),
    (
        "bench",
        ("groups",),
        lambda c, _: broken_rules(c) or {*c.norms} & {*TAKES_GROUPS},
        f"no norm of norms={{c.norms}} has groups; those that have are {WITH_GROUPS}",
    ),
    *(
        (
            command,
            ("data.root",),
            lambda c, _: c.data.name != "shapes10",
            "data=shapes10 is drawn, not read; type data=imagefolder or data=npz too",
        )
        for command in ("train", "bench", "check")
    ),
    (
        "train",
        ("convert",),
        lambda c, _: is_external(c.model),
        "norm= is of all norm layers of model={c.model.name}; model=torchvision, model=timm and"
        " model._target_= may keep some",
    ),
    ("train", ("tuning",), lambda c, _: is_tuned(c), "no rate is chosen; type lr=tuned too"),
    (  # shifts of the batch are measured on as many images
        "train",
        ("shift.images",),
        lambda c, _: listed(c.measure),
        "no shift is measured; type measure=[shift] too",
    ),
    (
        "train",
        ("shift",),
        lambda c, _: "shift" in listed(c.measure),
        "no shift is measured; type measure=[shift] too",
    ),
    *(
        (
            "measure",
            keys,
            lambda c, _, by=by: {*by} & {*map(str, listed(c.what))},
            f"what={{c.what}} does not measure it; type what=[{by[0]}]",
        )
        for keys, by in (
            (("shift.images",), ("shift", "batches")),
            (("shift",), ("shift",)),
            (("cost",), ("cost",)),
            (("gradients", "gradients_at"), ("gradients",)),
        )
    ),
]


def unused_problems(
    command: str, typed: dict[str, str], configs: list[Any], grid: bool = False
) -> list[str]:
    """Return one sentence for every key that is typed and that no config of the call uses.

    typed: keys with their text. A key that some cells of a grid use is fine, and so is null.
    """
    found = []
    for key, value in typed.items():
        typed_as = {key, key.partition(".")[0]}
        rows = ((used, why) for of, keys, used, why in USES if of == command and typed_as & {*keys})
        used, why = next(rows, (None, ""))
        if not used or value.lower() in ("null", "none"):
            continue
        if not any(used(config, grid) for config in configs):
            found.append(f"{key}={value} is not used: {why.format(c=configs[0])}")
    if command == "train" and "workers" in typed:
        found += idle_problems(configs[0].workers, sum(map(_training_count, configs)), "trainings")
    return found


def idle_problems(workers: int | None, tasks: int, what: str) -> list[str]:
    """Return whether more processes are typed than could have a task, or a core of this machine."""
    most = max(cores(), tasks)
    if workers is None or workers <= most:
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
