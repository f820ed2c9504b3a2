"""From configs and their models to the step that trains them: which execution, which layout."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from gnexp.config.schema import CUSTOM, TrainConfig, is_external, is_private
from gnexp.data.device_images import DeviceDataset
from gnexp.data.sources import DataSummary
from gnexp.data.update_blocks import update_blocks
from gnexp.norms.module_state import copied
from gnexp.norms.registry import NORMS
from gnexp.norms.trials import first_line
from gnexp.runner.build import dp_sgd
from gnexp.runner.build.data import train_settings
from gnexp.runner.build.model import seeded_model
from gnexp.training.attributes import changing
from gnexp.training.cuda_graph import GraphStep, fastest
from gnexp.training.loop import Step
from gnexp.training.malloc import keep_malloc_arena
from gnexp.training.precision import matrix_precision
from gnexp.training.rank_step import RankStep
from gnexp.training.ranks import Ranks
from gnexp.training.stack import draws_random_numbers, why_not_stackable
from gnexp.training.stacked_step import StackedStep


def why_seeds_train_apart(
    config: TrainConfig, data: DataSummary, device: torch.device
) -> str | None:
    """Return why the seeds of a run cannot share a step, None if they can."""
    if is_private(config):
        return "DP-SGD takes the per-example gradients of one model at a time"
    if config.norm["name"] != CUSTOM and not is_external(config.model):
        return None
    models = [seeded_model(config, data, seed) for seed in (0, 1)]
    if held := [name for names in changing(models[0], data.shape) for name in names]:
        return f"{held[0]} changes in training, and is not in the state dict"
    by_itself = device.type == "cuda" and config.devices == 1  # there models run side by side
    if (by_itself or is_external(config.model)) and draws_random_numbers(models[0], data.shape):
        return "it draws random numbers"
    return None if by_itself else why_not_stackable(models, data.shape)


def outside_state(
    config: TrainConfig, model: nn.Module, images: DeviceDataset
) -> tuple[list[str], list[str]]:
    """Return what training changes outside of the state dict: what a checkpoint can hold, the rest.

    Of layers of the table it is nothing; see `changing`.
    """
    if config.norm["name"] != CUSTOM and not is_external(config.model):
        return [], []
    storable, others = changing(model, tuple(images.x_train.shape[1:]))
    # The other ranks have models of their own, which no checkpoint knows.
    return ([], storable + others) if config.devices > 1 else (storable, others)


def training_step(
    configs: list[TrainConfig],
    models: list[nn.Module],
    images: DeviceDataset,
    low_memory: bool = False,
    seeds: Sequence[int] = (0,),
    ranks: Ranks | None = None,
) -> tuple[Step, str]:
    """Return the step that trains these models, each by its config, and a note for users.

    Models must be on the images' device. low_memory: the batches of an update follow each other,
    which takes less memory than a common pass. An execution that does not work here falls back to
    eager, with the reason. seeds: of the models; only the noise of private training needs them.
    ranks: that train them together with this process.
    """
    config, device, note = configs[0], images.x_train.device, ""
    what = configs, models, images, low_memory
    if device.type == "cpu":
        keep_malloc_arena()
    if is_private(config):
        (model,), (seed,) = models, seeds
        return dp_sgd.step(config, model, seed, images, low_memory), ""
    if ranks:
        return _stacked_step(*what, make=functools.partial(RankStep, ranks)), ""
    step = None
    if config.execution in ("auto", "cudagraph") and device.type == "cuda":
        step, note = _captured(*what)
    elif config.execution == "compile":
        step, note = _compiled(*what)
    return step or _stacked_step(*what), note


def _captured(
    configs: list[TrainConfig], models: list[nn.Module], images: DeviceDataset, low_memory: bool
) -> tuple[Step | None, str]:
    if any(outside_state(configs[0], models[0], images)):
        return None, "no CUDA graph (the model keeps state in attributes), so execution is eager"
    try:
        return _graph_step(configs, models, images, low_memory), ""
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        torch.cuda.synchronize(images.x_train.device)
        return None, f"no CUDA graph ({first_line(error)}), so execution fell back to eager"


def _compiled(
    configs: list[TrainConfig], models: list[nn.Module], images: DeviceDataset, low_memory: bool
) -> tuple[Step | None, str]:
    """Return the step compiled, as it was before its trial; or None and why there is none."""
    try:
        step = _stacked_step(configs, models, images, low_memory, compiled=True)
        states = [step.state(replica) for replica in range(step.replicas)]
        blocks = trial_block(configs, len(models), images)
        step.run(*blocks, [[0.0] * len(models)] * blocks[1].shape[1])
        step.take_sums()
        for replica, state in enumerate(states):
            step.load(replica, state)
        return step, ""
    except Exception as error:
        return None, f"torch.compile failed ({first_line(error)}), so execution fell back to eager"


def _stacked_step(
    configs: list[TrainConfig],
    models: list[nn.Module],
    images: DeviceDataset,
    low_memory: bool,
    compiled: bool = False,
    channels_last: bool | None = None,
    make: Callable[..., Any] = StackedStep,
) -> Any:
    config = configs[0]
    if channels_last is None:
        entry = NORMS.get(config.norm["name"])
        on_cpu = images.x_train.device.type == "cpu"
        channels_last = bool(entry and entry.channels_last and on_cpu)
        channels_last = channels_last and not is_external(config.model)  # which may call `view`
    return make(
        models,
        config.batch,
        config.momentum,
        config.weight_decay,
        config.precision,
        lrs=[each.lr for each in configs],
        channels_last=channels_last,
        one_pass=not low_memory and _takes_chunks(config, models[0], images),
        compiled=compiled,
    )


def _takes_chunks(config: TrainConfig, model: nn.Module, images: DeviceDataset) -> bool:
    stock = config.norm["name"] != CUSTOM and not is_external(config.model)
    if stock or config.update_batch == config.batch:
        return True
    trial = copied(model).cpu()
    return why_not_stackable([trial], tuple(images.x_train.shape[1:]), chunks=2) is None


def _graph_step(
    configs: list[TrainConfig], models: list[nn.Module], images: DeviceDataset, low_memory: bool
) -> GraphStep:
    """Return the captured step, in the layout that is faster by a trial where that is worth it."""

    def candidate(channels_last: bool) -> GraphStep:
        # Copies, since a branch of one shares a user's layers with its model.
        branches = [
            _stacked_step([config], [model], images, low_memory, channels_last=channels_last)
            for config, model in zip(configs, copied(models), strict=True)
        ]
        return GraphStep(branches)

    numbers = train_settings(configs[0])
    used = numbers.examples_per_epoch(len(images.x_train))
    updates = numbers.updates or numbers.epochs * used // numbers.update_batch
    x, y = trial_block(configs, len(models), images)
    layouts = (False,) if is_external(configs[0].model) else (False, True)
    tries = (functools.partial(candidate, channels_last) for channels_last in layouts)
    with matrix_precision(configs[0].precision):
        return fastest(tries, x, y, updates)


def trial_block(
    configs: list[TrainConfig], count: int, images: DeviceDataset
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one block of updates, as training will see them."""
    numbers = train_settings(configs[0])
    return next(
        update_blocks(images, [0] * count, 1, numbers.batch, numbers.update_batch, numbers.augment)
    )
