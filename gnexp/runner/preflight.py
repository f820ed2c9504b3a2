"""Check a run against its images and its model, before any work starts."""

from dataclasses import dataclass

import torch
from torch import nn

from gnexp.config.schema import (
    CUSTOM,
    TUNING_SEEDS_FROM,
    ShiftConfig,
    TrainConfig,
    instruments,
    is_private,
)
from gnexp.config.torchrun import launched
from gnexp.data.corruptions.cifar_c import load_cifar_c
from gnexp.data.corruptions.table import require_corruption
from gnexp.data.device_images import normalize
from gnexp.data.sources import Dataset
from gnexp.measure.initial_statistics import reestimate
from gnexp.norms.copying import copied
from gnexp.norms.smoke_test import error_text
from gnexp.norms.statistic_size import Undefined, values_per_statistic
from gnexp.norms.user_code import norm_text
from gnexp.runner.build import dp_sgd, initial_weights
from gnexp.runner.build.data import device_images, images_of, pick_device
from gnexp.runner.build.initial_model import load_start
from gnexp.runner.build.model import groups_per_layer, seeded_model, try_own_norm
from gnexp.runner.final_metrics import corruption_names

WATCHED = 8  # images by which private training finds out whether a model mixes them


@dataclass(frozen=True)
class Checked:
    """A sentence for each mistake in a config, and why its norm is undefined, "" where it is not.

    Undefined is the norm at this batch and image size: a result of a study, and no mistake.
    """

    problems: list[str]
    undefined: str = ""


def check(config: TrainConfig) -> Checked:
    """Return all that is wrong with a resolved config, its data and its model."""
    try:
        device = pick_device(config.device)
        images = images_of(config.data)
        device_images(config.data, device)
    except ValueError as error:
        return Checked([str(error)])
    found, undefined = _size_problems(config, len(images.x_train)), ""
    if config.execution == "cudagraph" and device.type != "cuda":
        found.append(
            f"execution=cudagraph needs a CUDA device, not {device.type}; use execution=auto"
        )
    found += corruption_problems(config.shift) or _released_problems(config, images)
    if config.precision == "tf32" and device.type != "cuda":
        found.append(f"precision=tf32 needs a CUDA device, not {device.type}; use precision=fp32")
    try:
        groups_per_layer(config)
        try_own_norm(config)
        model = seeded_model(config, len(images.classes), seed=0)
        found += _statistic_problems(config, model, images)
        if config.init_from is not None and not found:
            found += _start_problems(config, model, images)
        if is_private(config) and not found:
            found += _privacy_problems(config, model, device)
    except Undefined as error:
        undefined = str(error)
    except (ValueError, TypeError) as error:
        found.append(str(error))
    return Checked(found, undefined)


def _start_problems(config: TrainConfig, model: nn.Module, images: Dataset) -> list[str]:
    """Return why a training cannot start from what is stored; raises ValueError for the rest.

    Where it is gone, trainings that have begun need it no more: that is for planning.
    """
    if not initial_weights.is_there(config.init_from):
        return []
    source = initial_weights.read_source(config.init_from)
    for seed in config.seeds:
        source.seed(seed, TUNING_SEEDS_FROM)
    load_start(config, source, model, len(images.classes), config.seeds[0])
    if config.init_statistics == "reestimate":  # tried on a few images
        reestimate(model, device_images(config.data, torch.device("cpu")), "fp32", most=2)
    return _same_images_problems(config, source, images) if is_private(config) else []


def _same_images_problems(
    config: TrainConfig, source: initial_weights.Source, images: Dataset
) -> list[str]:
    """Return whether private training starts from what was trained on the images it protects."""
    before = source.trained.get("config", {}).get("data", {}).get("name")
    published = config.data.name not in ("npz", "imagefolder")  # which may be of any images
    same = source.trained.get("data", {}).get("checksum") == images.checksum
    if not (same or (published and before == config.data.name)):
        return []
    return [
        f"init_from={config.init_from} excludes privacy=dpsgd: that run was trained on"
        f" data={before}, whose images privacy is for, outside the budget; start from a run on"
        " other data"
    ]


def _privacy_problems(config: TrainConfig, model: nn.Module, device: torch.device) -> list[str]:
    images = device_images(config.data, device)
    x_NCHW = normalize(images.x_train[:WATCHED], images.mean, images.std).cpu()
    y_N = images.y_train[:WATCHED].cpu()
    return dp_sgd.problems(config, model, x_NCHW, y_N, len(images.x_train))


def _size_problems(config: TrainConfig, train_size: int) -> list[str]:
    for key in ("batch", "update_batch"):
        value = getattr(config, key)
        if value > train_size:
            return [
                f"{key}={value} is larger than the training set of {train_size} images;"
                f" use at most {key}={train_size}"
            ]
    return []


def _statistic_problems(config: TrainConfig, model: nn.Module, images: Dataset) -> list[str]:
    """Return what a pass through the user's own norm raises with two images.

    Raises Undefined where a statistic has one value, or where one image alone cannot be passed.
    """
    name, shape = config.norm["name"], images.x_train.shape[1:]
    if name == CUSTOM and (why := _pass_raises(model, images, 2, training=False)):
        return [f"{norm_text(config.norm['_target_'])}: a forward pass raised {why}"]
    for layer, count, _ in values_per_statistic(model, tuple(shape), config.batch):
        if count is not None and count < 2:
            raise Undefined(
                f"norm={name} batch={config.batch}: layer {layer} has one value per statistic, so"
                " its output would be constant; use larger images, a larger batch under bn, or"
                " fewer groups"
            )
    why = config.batch == 1 and _pass_raises(model, images, 1, training=True)
    if why and not _pass_raises(model, images, 2, training=True):
        raise Undefined(f"norm={name} batch=1: a forward pass of one image raised {why}")
    return []


def _pass_raises(model: nn.Module, images: Dataset, count: int, training: bool) -> str:
    """Return what a pass of that many images of noise raises, "" if nothing."""
    draw = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(count, *images.x_train.shape[1:], generator=draw)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied(model).train(training)(x_NCHW)
    except Exception as error:  # whatever the user's code does
        return error_text(error)
    return ""


def _released_problems(config: TrainConfig, images: Dataset) -> list[str]:
    """Return whether the folder of corrupted images is of another test set than the run's."""
    if not (config.shift.root and "shift" in instruments(config.measure)):
        return []
    released = load_cifar_c(config.shift.root, corruption_names(config.shift))
    try:
        released.positions(images.y_test, images.x_test.shape[-1])
    except ValueError as error:
        return [str(error)]
    return []


def corruption_problems(shift: ShiftConfig) -> list[str]:
    """Return what is wrong with the corruptions that are named, or with their folder of files."""
    try:
        if shift.root:
            load_cifar_c(shift.root, corruption_names(shift))
        else:
            for name in corruption_names(shift):
                require_corruption(name)
    except ValueError as error:
        return [f"shift.{error}"]
    return []


def gpu_problems(device: str, count: int) -> list[str]:
    """Return why training cannot have `count` devices of this kind, as `device=` names it."""
    if count == 1 or device == "cpu":
        return []
    import torch

    seen, place = torch.cuda.device_count(), launched()
    here = place.local_world if place else count
    if ":" in device:
        return [f"device={device} is a single GPU, not devices={count}; use device=cuda"]
    if seen and here > seen:
        return [
            f"devices={count} needs {here} GPUs here, and PyTorch sees {seen}; use"
            f" devices={seen} or device=cpu"
        ]
    return []
