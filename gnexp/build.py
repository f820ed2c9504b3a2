"""From a config to images, models and steps: the only place where the two meet.

`check` finds what is wrong with a run before any work starts; the rest builds its parts.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gnexp import privacy
from gnexp.config import CUSTOM, DataConfig, TrainConfig, is_private, resolve
from gnexp.data.feed import update_blocks
from gnexp.data.loader import DeviceImages
from gnexp.data.sources import Images, hold_out, load_images
from gnexp.models.resnet import build_model
from gnexp.models.start import start
from gnexp.norms.layers import momentum_of_batch
from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.seeding import derived_seed, generator
from gnexp.training.allocator import keep_freed_memory
from gnexp.training.graph import GraphStep, fastest
from gnexp.training.loop import Recipe, Step
from gnexp.training.precision import matrix_precision
from gnexp.training.replicas import draws_random_numbers, refusal
from gnexp.training.step import StackedStep


def images_of(data: DataConfig) -> Images:
    """Load the images a config names; the same ones are loaded once per process.

    With a validation split, its images are where the test images would be.
    """
    source = data.name, data.root, data.train_limit, data.test_limit, data.size, data.title
    return _images(*source) if data.validation is None else _held_out(source, data.validation)


def resolved(config: TrainConfig) -> TrainConfig:
    """Return `config.resolve`d, with the epochs that a fixed number of updates takes."""
    config = resolve(config)
    if config.updates is None:
        return config
    used = len(images_of(config.data).x_train) // config.update_batch
    return dataclasses.replace(config, epochs=-(-config.updates // max(1, used)))


@functools.lru_cache(maxsize=2)
def _images(name, root, train_limit, test_limit, size, title) -> Images:
    return load_images(name, root, train_limit, test_limit, size, title)


@functools.lru_cache(maxsize=2)
def _held_out(source: tuple, validation: float | int) -> Images:
    return hold_out(_images(*source), validation)


@functools.lru_cache(maxsize=4)
def _on_device(images: Images, mean, std, device: torch.device) -> DeviceImages:
    return DeviceImages(images, device, mean=mean, std=std)


def device_images(data: DataConfig, device: torch.device) -> DeviceImages:
    """Return the images as tensors on the device; uploaded once per process."""
    mean, std = (tuple(v) if v else None for v in (data.mean, data.std))
    return _on_device(images_of(data), mean, std, device)


def pick_device(device: str) -> torch.device:
    """Return the device meant; "auto" is the GPU where there is one.

    Raises ValueError for a device that is not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        picked = torch.device(device)
    except RuntimeError:
        picked = None
    if picked is None or picked.type not in ("cpu", "cuda"):
        raise ValueError(f"device={device} is not one of auto, cpu, cuda, cuda:0 ...")
    if picked.type == "cuda" and (picked.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device} is not there: PyTorch sees {torch.cuda.device_count()} CUDA devices;"
            " use device=cpu or device=auto"
        )
    return picked


def worker_count(workers: int | None, device: str) -> int:
    """Return how many processes work at once: as typed, else one per core, one on a GPU."""
    if workers:
        return workers
    if pick_device(device).type == "cuda":
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def import_target(path: str) -> Callable[..., nn.Module]:
    """Return the class or function at an import path; the current directory is importable.

    Raises ValueError naming the path and what is missing.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        raise ValueError(f"norm._target_={path} must be MODULE.NAME, such as my_pkg.MyNorm")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except AttributeError:
        raise ValueError(f"norm._target_={path}: {module_name} has no {attribute}") from None
    except ImportError as error:
        raise ValueError(f"norm._target_={path} cannot be imported: {error}") from error
    except Exception as error:  # whatever the user's module does when it is imported
        name = type(error).__name__
        raise ValueError(f"norm._target_={path}: importing it raised {name}: {error}") from error
    if not callable(found):
        raise ValueError(f"norm._target_={path} is not a class or function")
    return found


def code_checksum(config: TrainConfig) -> str | None:
    """Return a digest of the source file of the user's norm, None for a norm of the table."""
    if config.norm.get("name") != CUSTOM:
        return None
    target = import_target(config.norm["_target_"])
    try:
        source = inspect.getsourcefile(inspect.unwrap(target))
    except TypeError:
        source = None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else None


def norm_factory(config: TrainConfig) -> Callable[[int], nn.Module]:
    """Return the callable that a model calls with a number of channels to get a norm layer."""
    options = {k: v for k, v in config.norm.items() if k not in ("name", "_target_")}
    name = config.norm["name"]
    if name == CUSTOM:
        return _custom_factory(config.norm["_target_"], options)
    if options.pop("momentum_rule", "batches") == "examples":
        options["momentum"] = momentum_of_batch(options["momentum"], config.batch)
    if config.groups is None and config.channels_per_group is None:
        return lambda channels: build_norm(name, channels, **options)
    return lambda channels: build_norm(
        name, channels, num_groups=_groups(config, channels), **options
    )


def _groups(config: TrainConfig, channels: int) -> int:
    return group_count(channels, config.groups, config.channels_per_group, config.groups_fallback)


def _custom_factory(path: str, options: dict[str, Any]) -> Callable[[int], nn.Module]:
    target = import_target(path)

    def build(channels: int) -> nn.Module:
        try:
            layer = target(channels, **options)
        except Exception as error:
            typed = "".join(f", {k}={v}" for k, v in options.items())
            raise ValueError(
                f"norm._target_={path}({channels}{typed}) raised {type(error).__name__}: {error}"
            ) from error
        if not isinstance(layer, nn.Module):
            kind = type(layer).__name__
            raise ValueError(f"norm._target_={path} must return an nn.Module, not {kind}")
        return layer

    return build


class _Site(nn.Module):
    """Stands where a norm layer will be, to learn its name and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


def norm_sites(config: TrainConfig) -> dict[str, int]:
    """Return the number of channels at every norm layer of the model, by layer name."""
    with torch.device("meta"):
        model = build_model(config.model.name, _Site, 2, config.model.width)
    return {n: m.channels for n, m in model.named_modules() if isinstance(m, _Site)}


def groups_per_layer(config: TrainConfig) -> dict[str, int]:
    """Return the number of groups of every layer under group norm, {} under any other.

    Raises ValueError naming the first layer whose channels the groups do not divide.
    """
    if config.groups is None and config.channels_per_group is None:
        return {}
    counts = {}
    for layer, channels in norm_sites(config).items():
        try:
            counts[layer] = _groups(config, channels)
        except ValueError as error:
            raise ValueError(f"layer {layer}: {error}") from None
    return counts


def network_start(config: TrainConfig) -> dict[str, Any]:
    """Return the keywords of `start`: what the config asks of a new network, or its norm does.

    Raises ValueError for standardized filters without a layer that standardizes what they give.
    """
    entry = NORMS.get(config.norm["name"])
    by_norm = entry.initialization if entry else "he"
    if config.weight_standardization and entry and not entry.pools:
        raise ValueError(
            f"weight_standardization=true needs a norm that standardizes, which"
            f" norm={config.norm['name']} does not: each layer would multiply the variance by its"
            " fan-in; use norm=gn or norm=bn"
        )
    standardized = config.weight_standardization or bool(entry and entry.weight_standardization)
    return {
        "initialization": config.initialization if by_norm == "he" else by_norm,
        "weight_standardization": standardized,
        "zero_gamma": config.zero_gamma,
    }


def seeded_model(config: TrainConfig, num_classes: int, seed: int) -> nn.Module:
    """Return the model of one seed on the CPU; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        # A user's own norm may draw from the global generator when it is built.
        torch.default_generator.manual_seed(derived_seed(seed, "build"))
        model = build_model(
            config.model.name, norm_factory(config), num_classes, config.model.width
        )
    start(model, generator(seed, "initialization"), **network_start(config))
    return model


def recipe(config: TrainConfig) -> Recipe:
    """Return the protocol's numbers for a resolved config."""
    return Recipe(
        batch=config.batch,
        update_batch=config.update_batch,
        epochs=config.epochs,
        updates=config.updates,
        lr_rule=config.lr_rule,
        warmup=config.warmup,
        schedule=config.schedule,
        precision=config.precision,
        augment=config.data.augment,
        poisson=is_private(config),
    )


def company_refusal(config: TrainConfig, device: torch.device) -> str | None:
    """Return why the seeds of a run cannot share a step, None if they can."""
    if is_private(config):
        return "DP-SGD takes the per-example gradients of one model at a time"
    if config.norm["name"] != CUSTOM:
        return None
    images = images_of(config.data)
    models = [seeded_model(config, len(images.classes), seed) for seed in (0, 1)]
    shape = images.x_train.shape[1:]
    if device.type == "cuda":  # there models run side by side, each by itself
        return "it draws random numbers" if draws_random_numbers(models[0], shape) else None
    return refusal(models, shape)


def training_step(
    configs: list[TrainConfig],
    models: list[nn.Module],
    images: DeviceImages,
    frugal: bool = False,
    seeds: Sequence[int] = (0,),
) -> tuple[Step, str]:
    """Return the step that trains these models, each by its config, and what is to be said of it.

    Models must be on the images' device. frugal: the batches of an update follow each other, which
    takes less memory than a common pass. An execution that does not work here falls back to eager,
    with the reason. seeds: of the models, which matter to private training alone: to its noise.
    """
    config, device = configs[0], images.x_train.device
    if device.type == "cpu":
        keep_freed_memory()
    if is_private(config):
        (model,), (seed,) = models, seeds
        return privacy.step(config, model, seed, len(images.x_train), frugal), ""
    if config.execution in ("auto", "cudagraph") and device.type == "cuda":
        try:
            return _graph_step(configs, models, images, frugal), ""
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            torch.cuda.synchronize(device)
            note = f"no CUDA graph ({_first_line(error)}), so execution fell back to eager"
            return _stacked_step(configs, models, images, frugal), note
    if config.execution == "compile":
        try:
            step = _stacked_step(configs, models, images, frugal, compiled=True)
            states = [step.state(replica) for replica in range(step.replicas)]
            blocks = trial_block(configs, len(models), images)
            step.run(*blocks, [[0.0] * len(models)] * blocks[1].shape[1])
            step.take_sums()
            for replica, state in enumerate(states):
                step.load(replica, state)
            return step, ""
        except Exception as error:
            note = f"torch.compile failed ({_first_line(error)}), so execution fell back to eager"
            return _stacked_step(configs, models, images, frugal), note
    return _stacked_step(configs, models, images, frugal), ""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _stacked_step(
    configs: list[TrainConfig],
    models: list[nn.Module],
    images: DeviceImages,
    frugal: bool,
    compiled: bool = False,
    channels_last: bool | None = None,
) -> StackedStep:
    config = configs[0]
    if channels_last is None:
        entry = NORMS.get(config.norm["name"])
        on_cpu = images.x_train.device.type == "cpu"
        channels_last = bool(entry and entry.channels_last and on_cpu)
    return StackedStep(
        models,
        config.batch,
        config.momentum,
        config.weight_decay,
        config.precision,
        lrs=[each.lr for each in configs],
        channels_last=channels_last,
        one_pass=not frugal and _takes_chunks(config, models[0], images),
        compiled=compiled,
    )


def _takes_chunks(config: TrainConfig, model: nn.Module, images: DeviceImages) -> bool:
    """Return whether the batches of an update may share a pass; stock layers say so themselves."""
    if config.norm["name"] != CUSTOM or config.update_batch == config.batch:
        return True
    trial = copy.deepcopy(model).cpu()
    return refusal([trial], tuple(images.x_train.shape[1:]), chunks=2) is None


def _graph_step(
    configs: list[TrainConfig], models: list[nn.Module], images: DeviceImages, frugal: bool
) -> GraphStep:
    """Return the captured step, in the layout that is faster by a trial where that is worth it."""

    def candidate(channels_last: bool) -> GraphStep:
        # Copies, since a branch of one shares a user's layers with its model.
        branches = [
            _stacked_step([config], [model], images, frugal, channels_last=channels_last)
            for config, model in zip(configs, copy.deepcopy(models), strict=True)
        ]
        return GraphStep(branches)

    numbers = recipe(configs[0])
    used = numbers.examples_per_epoch(len(images.x_train))
    updates = numbers.updates or numbers.epochs * used // numbers.update_batch
    x, y = trial_block(configs, len(models), images)
    tries = (functools.partial(candidate, channels_last) for channels_last in (False, True))
    with matrix_precision(configs[0].precision):
        return fastest(tries, x, y, updates)


def trial_block(
    configs: list[TrainConfig], count: int, images: DeviceImages
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one block of updates, as training will see them."""
    numbers = recipe(configs[0])
    return next(
        update_blocks(images, [0] * count, 1, numbers.batch, numbers.update_batch, numbers.augment)
    )
