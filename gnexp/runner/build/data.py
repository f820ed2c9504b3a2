"""From a config to its images, its device and its numbers, of which everything else is built."""

import dataclasses
import functools
from pathlib import Path

import torch

from gnexp.config.resolve import resolve
from gnexp.config.schema import DataConfig, TrainConfig, is_private
from gnexp.config.torchrun import cores
from gnexp.data.device_images import DeviceDataset
from gnexp.data.sources import Dataset, hold_out, load_images
from gnexp.runner.build import initial_weights
from gnexp.training.loop import TrainSettings


def images_of(data: DataConfig) -> Dataset:
    """Load the images a config names; the same ones are loaded once per call, see `forget`.

    With a validation split, its images are where the test images would be.
    """
    source = data.name, data.root, data.train_limit, data.test_limit, data.size, data.title
    return _images(source, data.validation)


def resolved(config: TrainConfig) -> TrainConfig:
    """Return `config.resolve`d, with the epochs that a fixed number of updates takes.

    And with the checksum of the weights that it starts from, and the delta of private training.
    """
    config = resolve(config)
    if is_private(config) and config.privacy.delta is None:
        delta = default_delta(len(images_of(config.data).x_train))
        config = dataclasses.replace(
            config, privacy=dataclasses.replace(config.privacy, delta=delta)
        )
    if config.init_from is not None:
        study = Path(config.out) / config.study
        checksum = initial_weights.checksum_of(config.init_from, study, config.init_checksum)
        config = dataclasses.replace(config, init_checksum=checksum)
    if config.updates is None:
        return config
    used = len(images_of(config.data).x_train) // config.update_batch
    return dataclasses.replace(config, epochs=-(-config.updates // max(1, used)))


def default_delta(train_size: int) -> float:
    """Return N^-1.1 of N training images, to three digits, which are the same on every machine."""
    return float(f"{train_size**-1.1:.3g}")


@functools.lru_cache(maxsize=4)
def _images(source: tuple, validation: float | int | None) -> Dataset:
    if validation is None:
        return load_images(*source)
    return hold_out(_images(source, None), validation)


@functools.lru_cache(maxsize=4)
def _on_device(images: Dataset, mean, std, device: torch.device) -> DeviceDataset:
    return DeviceDataset(images, device, mean=mean, std=std)


def device_images(data: DataConfig, device: torch.device) -> DeviceDataset:
    """Return the images as tensors on the device; uploaded once per call, see `forget`."""
    mean, std = (tuple(v) if v else None for v in (data.mean, data.std))
    return _on_device(images_of(data), mean, std, device)


def forget() -> None:
    """Drop all images: a call in a notebook must not train on the files of the call before."""
    for images in (_images, _on_device):
        images.cache_clear()


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
    return cores()


def train_settings(config: TrainConfig) -> TrainSettings:
    """Return the protocol's numbers for a resolved config."""
    return TrainSettings(
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
        secret=config.privacy.noise == "secret",
    )
