"""Resolved configs: one per learning rate, defaults filled in; those of trials and benchmarks."""

import dataclasses
import re
from typing import Any

from gnexp.config.schema import (
    CUSTOM,
    DEFAULT_GROUPS,
    KEEPS_STATISTICS,
    KEYS,
    PRIVATE_MEAN,
    PRIVATE_STD,
    TAKES_GROUPS,
    TUNING_SEEDS_FROM,
    BenchConfig,
    CheckConfig,
    CostConfig,
    ModelConfig,
    TrainConfig,
    UsageError,
    is_private,
)


def expand(config: TrainConfig) -> list[TrainConfig]:
    """Return one config per learning rate typed, with the keys typed under `together=` set.

    Raises UsageError when `together` names a key that no run has, and for a rate typed twice.
    """
    if config.together:
        if not isinstance(config.together, dict):
            raise UsageError(f"together={config.together} must be a mapping such as {{groups:4}}")
        names = {name for name in KEYS if "." not in name} - {"norm"}
        unknown = sorted(set(config.together) - names)
        if unknown:
            raise UsageError(f"together={{{unknown[0]}:...}} is not a key of a run")
        config = dataclasses.replace(config, **config.together, together=None)
    if isinstance(config.lr, list) and config.lr:
        if twice := [rate for rate in config.lr if config.lr.count(rate) > 1]:
            raise UsageError(f"lr={config.lr} names {twice[0]} twice; type each rate once")
        return [dataclasses.replace(config, lr=rate) for rate in config.lr]
    return [config]


def resolve(config: TrainConfig) -> TrainConfig:
    """Return the config with every default filled in, and what its norm ignores set to None."""
    if is_private(config):
        config = _without_unbudgeted_reads(config)
    takes_groups = config.norm.get("name") in TAKES_GROUPS
    sized = config.channels_per_group is not None
    groups = config.groups if config.groups is not None or sized else DEFAULT_GROUPS
    keeps = config.norm.get("name") in KEEPS_STATISTICS
    return dataclasses.replace(
        config,
        init_statistics=config.init_statistics if keeps else "keep",
        model=_named_model(config.model),
        groups=groups if takes_groups else None,
        channels_per_group=config.channels_per_group if takes_groups else None,
        groups_fallback=config.groups_fallback if takes_groups else None,
        update_batch=config.update_batch or config.batch * config.devices,
        lr=float(config.lr),
        seeds=seed_list(config.seeds),
    )


def _named_model(model: ModelConfig) -> ModelConfig:
    """Return the user's own model under the last part of its import path, which tables show."""
    named = model
    if model._target_ is not None and model.name == CUSTOM:
        last = model._target_.rsplit(".", 1)[-1]
        named = dataclasses.replace(model, name=re.sub(r"[^A-Za-z0-9_]", "", last) or CUSTOM)
    return dataclasses.replace(named, options=named.options or None)


def seed_list(seeds: Any, first: int = 0) -> list[int]:
    """Return the seeds that a number of them, counted from `first`, or their list stands for."""
    return list(range(first, first + seeds)) if isinstance(seeds, int) else seeds


def trial(config: TrainConfig, rate: float) -> TrainConfig:
    """Return the run by which a rate is judged: on images held out, with seeds of its own."""
    tuning = config.tuning
    limit = config.data.train_limit if tuning.train_limit is None else tuning.train_limit
    data = dataclasses.replace(config.data, validation=tuning.validation, train_limit=limit)
    epochs = config.epochs if tuning.epochs is None else tuning.epochs
    seeds = seed_list(tuning.seeds, TUNING_SEEDS_FROM)
    kept = {"gradients": 0, "gradients_at": None, "covariance": False, "measure": None}
    return dataclasses.replace(config, lr=rate, data=data, epochs=epochs, seeds=seeds, **kept)


def _without_unbudgeted_reads(config: TrainConfig) -> TrainConfig:
    """Return a private config that reads no training image beside the updates."""
    mean = [PRIVATE_MEAN] * 3 if config.data.mean is None else config.data.mean
    std = [PRIVATE_STD] * 3 if config.data.std is None else config.data.std
    data = dataclasses.replace(config.data, mean=mean, std=std)
    return dataclasses.replace(config, data=data, gradients=0)


def bench_run(config: BenchConfig, norm: str, batch: int) -> TrainConfig:
    """Return the run that one cell of a bench times, not yet resolved."""
    # So long that trying both layouts of a captured graph is worth it.
    return TrainConfig(**_keys_of_train(config), norm={"name": norm}, batch=batch, epochs=1000)


def cost_run(cost: CostConfig, norm: str) -> TrainConfig:
    """Return a run of the network whose memory is counted, not yet resolved."""
    model = ModelConfig(cost.model, cost.width)  # without a width the network's own
    return TrainConfig(norm={"name": norm}, model=model, groups=cost.groups)


def check_run(config: CheckConfig) -> TrainConfig:
    """Return a run with the norm under test, whose building and rules are those of training."""
    return TrainConfig(**_keys_of_train(config))


def _keys_of_train(config: Any) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(TrainConfig)}
    return {name: value for name, value in vars(config).items() if name in names}
