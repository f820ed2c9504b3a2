"""From a config to the norm under test."""

from collections.abc import Callable

import torch
from torch import nn

from gnexp.analysis.cells import norm_label as table_label
from gnexp.checks.subject import Subject
from gnexp.config.files import norm_defaults
from gnexp.config.identity import norm_label
from gnexp.config.resolve import check_run, resolve
from gnexp.config.schema import CUSTOM, TAKES_GROUPS, CheckConfig
from gnexp.data.device_images import normalize
from gnexp.norms import user_code
from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.runner.build import data, model

GROUP_KEYS = ("num_groups", "groups")  # by which a norm of one's own may take its groups


def subject_from_config(config: CheckConfig) -> Subject:
    """Return the norm that a checked config names, with the images it is tested on."""
    run = resolve(check_run(config))
    images = data.device_images(config.data, torch.device("cpu"))
    own = config.norm["name"] == CUSTOM
    return Subject(
        label=label_of(config),
        build=model.norm_factory(run),
        x_NCHW=normalize(images.x_train, images.mean, images.std),
        y_N=images.y_train,
        classes=len(images.classes),
        groups=_groups(config),
        regroup=_regroup(config),
        reference=config.reference or (None if own else config.norm["name"]),
        options=_options(config),
        # Less what the claims vary.
        start={k: v for k, v in model.network_start(run).items() if k != "zero_gamma"},
        channels=config.channels,
        draws=config.draws,
        seed=config.seed,
    )


def label_of(config: CheckConfig) -> str:
    """Return a norm's name in the tables, with every option that is not the default."""
    run, defaults = resolve(check_run(config)), norm_defaults(config.norm["name"])
    keys = {"groups": run.groups, "channels_per_group": run.channels_per_group}
    shown = table_label({"norm": norm_label(config.norm), **keys})
    typed = [f"{key}={value}" for key, value in _typed(config) if defaults.get(key) != value]
    if config.norm["name"] == CUSTOM and config.groups:
        typed.append(f"groups={config.groups}")
    return f"{shown}[{', '.join(typed)}]" if typed else shown


def _typed(config: CheckConfig) -> list[tuple[str, object]]:
    """Return the options under `norm.`, defaults of its file included."""
    return [(k, v) for k, v in config.norm.items() if k not in ("name", "_target_")]


def _options(config: CheckConfig) -> dict[str, object]:
    """Return what a layer under test is built with, every default filled in."""
    name = config.norm["name"]
    options = {**(NORMS[name].options if name in NORMS else {}), **dict(_typed(config))}
    if "num_groups" in options:
        options["num_groups"] = _groups(config)(config.channels)
    return options


def _stated(config: CheckConfig) -> str | None:
    """Return the key under `norm.` that sets the groups of a user's norm."""
    return next((key for key in GROUP_KEYS if key in config.norm), None)


def _groups(config: CheckConfig) -> Callable[[int], int] | None:
    """Return channels -> groups, as the norm or the user states them; None where nobody does."""
    name = config.norm["name"]
    if name in TAKES_GROUPS or config.groups or config.channels_per_group:
        keys = config.groups, config.channels_per_group, config.groups_fallback
        return lambda channels: group_count(channels, *keys)
    if key := _stated(config):
        return lambda channels: int(config.norm[key])
    # Layer norm and instance norm are group norm at the ends of its range, by their definition.
    return {"ln": lambda channels: 1, "in": lambda channels: channels}.get(name)


def _regroup(config: CheckConfig) -> Callable[[int, int], nn.Module] | None:
    """Return (channels, groups) -> layer where the norm takes its groups as an option."""
    name, options = config.norm["name"], dict(_typed(config))
    if name in NORMS and "num_groups" in NORMS[name].options:
        return lambda channels, groups: build_norm(name, channels, num_groups=groups, **options)
    if name == CUSTOM and (key := _stated(config)):
        target = user_code.import_target(config.norm["_target_"])
        return lambda channels, groups: target(channels, **{**options, key: groups})
    return None
