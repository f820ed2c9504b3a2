"""From a config to images, models and steps: the only place where the two meet.

`check` finds what is wrong with a run before any work starts; the rest builds its parts.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from gnexp import initial_weights, plugins, privacy
from gnexp.config import (
    CUSTOM,
    TUNING_SEEDS_FROM,
    DataConfig,
    ModelConfig,
    TrainConfig,
    is_foreign,
    is_private,
    resolve,
)
from gnexp.data.feed import update_blocks
from gnexp.data.loader import DeviceImages
from gnexp.data.sources import Images, hold_out, load_images
from gnexp.measure.reestimation import frozen_without_statistics, reestimate
from gnexp.models.foreign import build_foreign, constructor, examine, with_norms
from gnexp.models.norm_sites import Found
from gnexp.models.resnet import build_model
from gnexp.models.start import start
from gnexp.models.transfer import Transfer, transfer
from gnexp.norms.layers import momentum_of_batch
from gnexp.norms.registry import NORMS, build_norm, group_count
from gnexp.norms.trial import try_norm
from gnexp.parallel.leading import channel_to
from gnexp.seeding import derived_seed, generator
from gnexp.training.allocator import keep_freed_memory
from gnexp.training.graph import GraphStep, fastest
from gnexp.training.loop import Recipe, Step
from gnexp.training.parallel import ParallelStep
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
    """Return `config.resolve`d, with the epochs that a fixed number of updates takes.

    And with the checksum of the weights that it starts from.
    """
    config = resolve(config)
    if config.init_from is not None:
        study = Path(config.out) / config.study
        checksum = initial_weights.checksum_of(config.init_from, study, config.init_checksum)
        config = dataclasses.replace(config, init_checksum=checksum)
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


def import_target(path: str, key: str = "norm._target_") -> Callable[..., Any]:
    """Return the class or function at an import path; the current directory is importable.

    key: under which it was typed. Raises ValueError naming the path and what is missing.
    """
    module_name, _, attribute = path.rpartition(".")
    if not module_name:
        example = "my_pkg.MyNorm" if key.startswith("norm") else "my_pkg.Net"
        raise ValueError(f"{key}={path} must be MODULE.NAME, such as {example}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        module = _as_it_is_now(importlib.import_module(module_name))
    except ImportError as error:
        raise ValueError(f"{_said_norm(path, key)} cannot be imported: {error}") from error
    except Exception as error:  # whatever the user's module does when it is imported
        name = type(error).__name__
        raise ValueError(f"{_said_norm(path, key)}: importing it raised {name}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{_said_norm(path, key)}: {module_name} has no {attribute}")
    if not callable(found := getattr(module, attribute)):
        raise ValueError(f"{_said_norm(path, key)} is not a class or function")
    return found


_imported: dict[str, str] = {}  # digests of the files of the user's modules, when imported


def _as_it_is_now(module: ModuleType) -> ModuleType:
    """Return a module with the code that its file holds, which a notebook's user may have edited.

    The run's identity is made from the file, so that code of before must not train under it.
    """
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    if _imported.setdefault(module.__name__, digest) == digest:
        return module
    module = importlib.reload(module)
    _imported[module.__name__] = digest
    return module


def _said_norm(path: str, key: str = "norm._target_") -> str:
    """Return what is at an import path as it is typed, which may be the name of a plug-in."""
    return plugins.said(path, NORMS) if key == "norm._target_" else f"{key}={path}"


def code_checksum(config: TrainConfig) -> str | None:
    """Return a digest of the source files of the user's norm and model, None without either."""
    targets = []
    if config.norm.get("name") == CUSTOM:
        targets.append(import_target(config.norm["_target_"]))
    if config.model._target_ is not None:
        targets.append(import_target(config.model._target_, "model._target_"))
    return "-".join(filter(None, map(_source_digest, targets))) or None


def _source_digest(target: Callable[..., Any]) -> str | None:
    try:
        source = inspect.getsourcefile(inspect.unwrap(target))
    except TypeError:
        source = None
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else None


def norm_factory(config: TrainConfig, trains: bool = False) -> Callable[[int], nn.Module]:
    """Return the callable that a model calls with a number of channels to get a norm layer.

    trains: whether the layers are for the training of the config, and may follow its length.
    """
    options = {k: v for k, v in config.norm.items() if k not in ("name", "_target_")}
    name = config.norm["name"]
    if name == CUSTOM:
        return own_factory(config.norm["_target_"], options)
    if options.pop("momentum_rule", "batches") == "examples":
        averaged = min(config.batch, options.get("ghost_batch", config.batch))
        # Running statistics move by the mean over all devices.
        options["momentum"] = momentum_of_batch(options["momentum"], averaged * config.devices)
    if trains and "total_examples" in NORMS[name].options:
        options.setdefault("total_examples", _examples_of_a_device(config))
    if config.groups is None and config.channels_per_group is None:
        return lambda channels: build_norm(name, channels, **options)
    return lambda channels: build_norm(
        name, channels, num_groups=_groups(config, channels), **options
    )


def _examples_of_a_device(config: TrainConfig) -> int:
    """Return how many training images a norm layer of one device sees in all of the training."""
    images = len(images_of(config.data).x_train)
    return max(1, recipe(config).examples_seen(config.epochs, images) // config.devices)


def _groups(config: TrainConfig, channels: int) -> int:
    return group_count(channels, config.groups, config.channels_per_group, config.groups_fallback)


def own_factory(path: str, options: dict[str, Any]) -> Callable[[int], nn.Module]:
    """Return the callable that builds the norm at an import path with these options.

    It raises ValueError, with the reason, for what cannot be built or is no nn.Module.
    """
    return factory_of(import_target(path), lambda: _said_norm(path), options)


def factory_of(
    target: Callable[..., Any], said: Callable[[], str], options: dict[str, Any]
) -> Callable[[int], nn.Module]:
    """Return the callable that builds target(channels, **options); see `own_factory`.

    said: gives what it is called in sentences.
    """

    def build(channels: int) -> nn.Module:
        try:
            layer = target(channels, **options)
        except Exception as error:
            typed = "".join(f", {k}={v}" for k, v in options.items())
            raise ValueError(
                f"{said()} raised {type(error).__name__} when called with ({channels}{typed}):"
                f" {error}"
            ) from error
        if not isinstance(layer, nn.Module):
            kind = type(layer).__name__
            raise ValueError(f"{said()} must return an nn.Module, not {kind}")
        return layer

    return build


def try_own_norm(config: TrainConfig) -> None:
    """Pass a few values through the user's own norm and back, at each width that the model has.

    Raises ValueError with what it does that no norm may do; see `try_norm`.
    """
    if config.norm["name"] != CUSTOM:
        return
    build = norm_factory(config)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for channels in dict.fromkeys(norm_sites(config).values()):
            layer = build(channels)
            try:
                try_norm(layer, channels, examples=min(config.batch, 2))
            except ValueError as error:
                raise ValueError(f"{_said_norm(config.norm['_target_'])} {error}") from error


class _Site(nn.Module):
    """Stands where a norm layer will be, to learn its name and channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels


def norm_sites(config: TrainConfig) -> dict[str, int]:
    """Return the number of channels at every norm layer of the model, by layer name."""
    if is_foreign(config.model):
        return {site.name: site.channels for site in _foreign_norms(config).sites}
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


def _new_foreign(model: ModelConfig, num_classes: int) -> nn.Module:
    """Return a library's or the user's model as its constructor builds it."""
    if model._target_ is not None:
        construct = import_target(model._target_, "model._target_")
    else:
        construct = constructor(model.library, model.name)
    own = model._target_ is not None
    return build_foreign(construct, num_classes, model.options or {}, _said(model), always=not own)


def _said(model: ModelConfig) -> str:
    """Return what was typed to choose a foreign model."""
    if model._target_ is not None:
        return f"model._target_={model._target_}"
    return f"model={model.library} model.name={model.name}"


def _foreign_norms(config: TrainConfig) -> Found:
    """Return the norm layers of a foreign model at the size of the images; looked at once."""
    images = images_of(config.data)
    shape, classes = tuple(images.x_train.shape[1:]), len(images.classes)
    return _examined(json.dumps(dataclasses.asdict(config.model), sort_keys=True), shape, classes)


@functools.lru_cache(maxsize=8)
def _examined(model: str, shape: tuple[int, ...], num_classes: int) -> Found:
    asked = ModelConfig(**json.loads(model))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        built = _new_foreign(asked, num_classes)
    return examine(built, shape, num_classes, _said(asked))


def _foreign_model(
    config: TrainConfig, num_classes: int, weight_standardization: bool
) -> tuple[nn.Module, list[str]]:
    """Return a foreign model with the config's norm, and one line for each layer it had."""
    found = _foreign_norms(config)
    model = _new_foreign(config.model, num_classes)
    try:
        return with_norms(
            model,
            found,
            norm_factory(config, trains=True),
            images_of(config.data).x_train.shape[1:],
            weight_standardization=weight_standardization,
        )
    except ValueError as error:
        raise ValueError(f"{_said(config.model)}: {error}") from error


def conversion_report(config: TrainConfig) -> list[str]:
    """Return what became of every norm layer of a foreign model, [] for a model of the table."""
    if not is_foreign(config.model):
        return []
    with torch.random.fork_rng(devices=[]):
        standardized = network_start(config)["weight_standardization"]
        classes = len(images_of(config.data).classes)
        return _foreign_model(config, classes, standardized)[1]


def seeded_model(config: TrainConfig, num_classes: int, seed: int) -> nn.Module:
    """Return the model of one seed on the CPU; the global random state is left as it was."""
    asked = network_start(config)
    with torch.random.fork_rng(devices=[]):
        # A user's own norm may draw from the global generator when it is built.
        torch.default_generator.manual_seed(derived_seed(seed, "build"))
        if is_foreign(config.model):  # its convolutions are not all followed by a norm
            standardized = asked.pop("weight_standardization")
            model, _ = _foreign_model(config, num_classes, standardized)
        else:
            model = build_model(
                config.model.name,
                norm_factory(config, trains=True),
                num_classes,
                config.model.width,
            )
    start(model, generator(seed, "initialization"), **asked)
    return model


def starting_model(
    config: TrainConfig, images: DeviceImages, seed: int
) -> tuple[nn.Module, dict[str, Any] | None]:
    """Return the model from which a seed's training starts, on the images' device.

    Beside it what of the weights at `init_from` it holds, as JSON-ready values, None without.
    Raises ValueError where they do not fit, or are no longer those that the run is named by.
    """
    model, record = seeded_model(config, len(images.classes), seed), None
    if config.init_from is not None:
        source = initial_weights.read_source(config.init_from)
        moved = load_start(config, source, model, len(images.classes), seed)
        record = {
            "source": source.name,
            "checksum": source.checksum,
            "seed": source.seed(seed, TUNING_SEEDS_FROM),
            "statistics": config.init_statistics,
            **moved.record(),
        }
    model = model.to(images.x_train.device)
    if config.init_statistics == "reestimate":
        with matrix_precision(config.precision):
            reestimate(model, images, config.precision)
    return model, record


def load_start(
    config: TrainConfig,
    source: initial_weights.Source,
    model: nn.Module,
    num_classes: int,
    seed: int,
) -> Transfer:
    """Load a seed's stored weights into its new model; see `starting_model`."""
    said = f"init_from={config.init_from}"
    if config.init_checksum not in (None, source.checksum):
        raise ValueError(f"{said}: the weights are no longer those that this run is named by")
    weights = source.weights(seed, TUNING_SEEDS_FROM)
    try:
        moved = transfer(model, weights, list(norm_sites(config)), num_classes)
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from error
    bare = frozen_without_statistics(model, moved.fresh)
    if bare and config.init_statistics == "keep":
        raise ValueError(
            f"{said} holds no running statistics for norm={config.norm['name']} to freeze (layer"
            f" {bare[0]}); start from a run with norm=bn, or type init_statistics=reestimate"
        )
    return moved


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
    if config.norm["name"] != CUSTOM and not is_foreign(config.model):
        return None
    images = images_of(config.data)
    models = [seeded_model(config, len(images.classes), seed) for seed in (0, 1)]
    shape = images.x_train.shape[1:]
    by_itself = device.type == "cuda" and config.devices == 1  # there models run side by side
    if (by_itself or is_foreign(config.model)) and draws_random_numbers(models[0], shape):
        return "it draws random numbers"
    return None if by_itself else refusal(models, shape)


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
    if config.devices > 1:
        channel = channel_to(config.devices, device)
        make = functools.partial(ParallelStep, channel)
        return _stacked_step(configs, models, images, frugal, make=make), ""
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
    make: Callable[..., Any] = StackedStep,
) -> Any:
    config = configs[0]
    if channels_last is None:
        entry = NORMS.get(config.norm["name"])
        on_cpu = images.x_train.device.type == "cpu"
        channels_last = bool(entry and entry.channels_last and on_cpu)
        channels_last = channels_last and not is_foreign(config.model)  # which may call `view`
    return make(
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
    stock = config.norm["name"] != CUSTOM and not is_foreign(config.model)
    if stock or config.update_batch == config.batch:
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
    layouts = (False,) if is_foreign(configs[0].model) else (False, True)
    tries = (functools.partial(candidate, channels_last) for channels_last in layouts)
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
