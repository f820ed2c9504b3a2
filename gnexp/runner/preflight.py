"""Check a run against its images and its network, once and before any work starts."""

import torch
from torch import nn

from gnexp.config.schema import (
    CUSTOM,
    ShiftConfig,
    TrainConfig,
    is_external,
    is_private,
    listed,
)
from gnexp.config.torchrun import launched
from gnexp.data.corruptions.cifar_c import load_cifar_c
from gnexp.data.corruptions.table import require_corruption
from gnexp.data.device_images import normalize
from gnexp.data.sources import Dataset, DataSummary
from gnexp.measure.initial_statistics import reestimate
from gnexp.norms.module_state import copied
from gnexp.norms.statistic_size import Undefined, values_per_statistic
from gnexp.norms.trials import error_text
from gnexp.norms.user_code import norm_text
from gnexp.runner.build import dp_sgd, initial_weights
from gnexp.runner.build.code_digest import code_digests
from gnexp.runner.build.data import device_images, images_of, pick_device
from gnexp.runner.build.initial_model import load_start
from gnexp.runner.build.model import (
    groups_per_layer,
    model_without_weights,
    pools,
    seeded_and_converted,
    try_own_norm,
)
from gnexp.runner.instruments import corruption_names
from gnexp.runner.prepared_run import PreparedRun

WATCHED = 8  # images by which private training finds out whether a model mixes them


def check(config: TrainConfig) -> tuple[PreparedRun | None, list[str]]:
    """Return a run that only lacks its name, and a sentence for all that is wrong with it.

    The run is of a resolved config, and None if anything is wrong. A norm that is not defined at
    the batch and image size is a result of a study, and nothing wrong.
    """
    try:
        device = pick_device(config.device)
        images = images_of(config.data)
        device_images(config.data, device)
    except ValueError as error:
        return None, [str(error)]
    data, converted, decided = images.summary, [], {}
    found = _size_problems(config, data.train_size) + _device_problems(config, device)
    found += corruption_problems(config.shift) or _released_problems(config, images)
    try:
        groups = groups_per_layer(config, data)
        try_own_norm(config, data)
        model, converted = _tried_model(config, data)
        decided["parameters"] = sum(p.numel() for p in model.parameters())
        found += _statistic_problems(config, model, data)
        if config.init_from is not None and not found:
            decided["start"] = _start(config, model, data)
        if is_private(config) and not found:
            found += _privacy_problems(config, model, device, bool(decided.get("start")))
        if config.devices > 1 and not found:
            found += gpu_problems(config.device, config.devices)
    except Undefined as error:
        decided["undefined"] = str(error)
    except (ValueError, TypeError) as error:
        found.append(str(error))
    if found:
        return None, found
    network = {"groups_per_layer": groups, "pools": pools(config, data)}
    network |= {"conversion": converted} if converted else {}
    code = code_digests(config)
    return PreparedRun(config, "", device, data, network, code=code, **decided), []


def _device_problems(config: TrainConfig, device: torch.device) -> list[str]:
    needs_cuda = {"execution": ("cudagraph", "auto"), "precision": ("tf32", "fp32")}
    return [
        f"{key}={value} needs a CUDA device, not {device.type}; use {key}={instead}"
        for key, (value, instead) in needs_cuda.items()
        if getattr(config, key) == value and device.type != "cuda"
    ]


def _tried_model(config: TrainConfig, data: DataSummary) -> tuple[nn.Module, list[str]]:
    """Return the network to look at, without weights where none of them and no code is tried."""
    own = config.norm["name"] == CUSTOM or is_external(config.model)
    if own or is_private(config) or config.init_from is not None:
        return seeded_and_converted(config, data, seed=0)
    return model_without_weights(config, data), []


def _start(config: TrainConfig, model: nn.Module, data: DataSummary) -> str:
    """Return a sentence on what seeds take of the weights at `init_from`, loaded into a model.

    "" where they are gone: trainings that have begun need them no more, and planning knows of
    others. Raises ValueError where a seed cannot start from them.
    """
    if not initial_weights.is_there(config.init_from):
        return ""
    source = initial_weights.read_source(config.init_from)
    own = [source.seed(seed) is not None for seed in config.seeds]
    text = load_start(config, source, model, data, config.seeds[0]).sentence()
    if config.init_statistics == "reestimate":  # tried on a few images
        reestimate(model, device_images(config.data, torch.device("cpu")), "fp32", most=2)
        text += "; running statistics re-estimated on training images"
    return f"{source.name}{', seed by seed' * own[0]}: {text}"


def _privacy_problems(
    config: TrainConfig, model: nn.Module, device: torch.device, started: bool
) -> list[str]:
    """Return why a run cannot be private, such as a start from what was trained on its images."""
    images = device_images(config.data, device)
    if started:
        trained = initial_weights.read_source(config.init_from).trained
        before = trained.get("config", {}).get("data", {}).get("name")
        published = config.data.name not in ("npz", "imagefolder")  # which may be of any images
        same = trained.get("data", {}).get("checksum") == images.summary.checksum
        if same or (published and before == config.data.name):
            return [
                f"init_from={config.init_from} excludes privacy=dpsgd: that run was trained on"
                f" data={before}, whose images privacy is for, outside the budget; start from a run"
                " on other data"
            ]
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


def _statistic_problems(config: TrainConfig, model: nn.Module, data: DataSummary) -> list[str]:
    """Return what a pass through the user's own norm raises with two images.

    Raises Undefined where a statistic has one value, or where one image alone cannot be passed.
    """
    name = config.norm["name"]
    if name == CUSTOM and (why := _pass_raises(model, data.shape, 2, training=False)):
        return [f"{norm_text(config.norm['_target_'])}: a forward pass raised {why}"]
    for layer, count, _ in values_per_statistic(model, data.shape, config.batch):
        if count is not None and count < 2:
            raise Undefined(
                f"norm={name} batch={config.batch}: layer {layer} has one value per statistic, so"
                " its output would be constant; use larger images, a larger batch under bn, or"
                " fewer groups"
            )
    why = config.batch == 1 and _pass_raises(model, data.shape, 1, training=True)
    if why and not _pass_raises(model, data.shape, 2, training=True):
        raise Undefined(f"norm={name} batch=1: a forward pass of one image raised {why}")
    return []


def _pass_raises(model: nn.Module, shape: tuple[int, ...], count: int, training: bool) -> str:
    draw = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(count, *shape, generator=draw)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            copied(model).train(training)(x_NCHW)
    except Exception as error:  # whatever the user's code does
        return error_text(error)
    return ""


def _released_problems(config: TrainConfig, images: Dataset) -> list[str]:
    """Return whether the folder of corrupted images is of another test set than the run's."""
    if not (config.shift.root and "shift" in listed(config.measure)):
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
