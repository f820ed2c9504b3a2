"""One measurement, from a run's config to numbers: the plain loop, gnexp, and a matrix product.

Each function here is the work of a process of its own on a CPU, and called directly on CUDA.
"""

import gc
import multiprocessing
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from gnexp.config.schema import TrainConfig
from gnexp.data.device_images import DeviceDataset, augmentation, channel_statistics
from gnexp.runner.benchmark import hardware
from gnexp.runner.benchmark.gnexp_loop import endless_blocks, synchronize, train_grid
from gnexp.runner.benchmark.plain_loop import (
    PilImages,
    plain_loader,
    plain_optimizer,
    plain_transform,
    train_plain,
)
from gnexp.runner.benchmark.timer import Peers, Timing, Window
from gnexp.runner.build.data import images_of, pick_device
from gnexp.runner.build.model import seeded_model
from gnexp.runner.build.step import training_step
from gnexp.training.lr_schedule import peak_rate

Row = dict[str, Any]

PLAIN, GNEXP = "plain", "gnexp"
LAYOUTS = {False: "contiguous", True: "channels_last"}


@dataclass(frozen=True)
class Task:
    """A measurement: a resolved config, a number of seconds, numbers of threads."""

    config: TrainConfig
    seconds: float
    threads: tuple[int, ...]


@dataclass(frozen=True)
class Measured:
    """One timing and how it was made.

    timing: of all replicas of the step together. parameters: of one network. examples_per_epoch:
    the images of one seed. peak_memory_bytes: on a CPU resident, of the process and its loader
    workers; on CUDA reserved on the device. peak_allocated_bytes: on CUDA, what tensors took.
    """

    timing: Timing
    threads: int
    stack: int
    layout: str
    execution: str
    parameters: int
    examples_per_epoch: int
    peak_memory_bytes: int | None
    peak_allocated_bytes: int | None


def measure_plain(task: Task, peers: Peers) -> list[Measured]:
    """Time the plain loop on the first seed, with each number of threads in turn."""
    return [_plain(task, peers, threads) for threads in task.threads]


def _plain(task: Task, peers: Peers, threads: int) -> Measured:
    torch.set_num_threads(threads)
    config, device = task.config, pick_device(task.config.device)
    images = images_of(config.data)
    mean, std = _statistics(config)
    transform = plain_transform(
        images.x_train.shape[-1], *augmentation(config.data.augment), mean, std
    )
    pictures = PilImages(images.x_train, images.y_train, transform)
    gc.collect()
    memory = hardware.DeviceMemory(device)
    model = seeded_model(config, images.summary, config.seeds[0]).to(device)
    optimizer = plain_optimizer(model, _rate(config), config.momentum, config.weight_decay)
    loader = plain_loader(pictures, config.batch, config.seeds[0], device)
    window = Window(task.seconds, partial(synchronize, device), peers)
    train_plain(model, loader, optimizer, window, config.precision)
    reserved, allocated = memory.peaks() or (_peak_of_processes(), None)
    return Measured(
        timing=window.timing,
        threads=threads,
        stack=1,
        layout=LAYOUTS[False],
        execution="eager",
        parameters=sum(p.numel() for p in model.parameters()),
        examples_per_epoch=len(loader) * config.batch,
        peak_memory_bytes=reserved,
        peak_allocated_bytes=allocated,
    )


def measure_gnexp(task: Task, peers: Peers) -> list[Measured]:
    """Time the step that `gnexp train` makes for all seeds of the config."""
    (threads,) = task.threads
    torch.set_num_threads(threads)
    config, device = task.config, pick_device(task.config.device)
    source = images_of(config.data)
    mean, std = _statistics(config)
    gc.collect()
    memory = hardware.DeviceMemory(device)
    # Not the images that `build` keeps on the device: these are to be counted.
    images = DeviceDataset(source, device, mean, std)
    models = [seeded_model(config, source.summary, s).to(device) for s in config.seeds]
    step, note = training_step([config] * len(models), models, images)
    if note:
        print(note, flush=True)
    gc.collect()  # the layout that was slower
    at_start = memory.peaks()
    memory.settle()
    window = Window(task.seconds, partial(synchronize, device), peers)
    blocks = endless_blocks(images, config.seeds, config.batch, config.data.augment)
    train_grid(step, blocks, _rate(config), window, config.precision)
    reserved, allocated = memory.peaks() or (_peak_of_processes(), None)
    if at_start:  # a graph's tensors are allocated while it is captured
        allocated = max(allocated, at_start[1])
    return [
        Measured(
            timing=window.timing,
            threads=threads,
            stack=step.replicas,
            layout=LAYOUTS[step.channels_last],
            execution=step.execution,
            parameters=sum(p.numel() for p in step.model(0).parameters()),
            examples_per_epoch=len(images.x_train) // config.batch * config.batch,
            peak_memory_bytes=reserved,
            peak_allocated_bytes=allocated,
        )
    ]


def measure_products(task: Task, peers: Peers) -> list[float]:
    """Return the FLOP/s of matrix products with each number of threads."""
    device = pick_device(task.config.device)
    rates = []
    for threads in task.threads:
        torch.set_num_threads(threads)
        window = Window(task.seconds, partial(synchronize, device), peers)
        rates.append(hardware.multiply(device, task.config.precision, window))
    return rates


def _statistics(config: TrainConfig) -> tuple[list[float], list[float]]:
    mean, std = channel_statistics(images_of(config.data).x_train)
    return config.data.mean or mean, config.data.std or std


def _rate(config: TrainConfig) -> float:
    return peak_rate(config.lr, config.lr_rule, config.batch)


def _peak_of_processes() -> int | None:
    """Return the peak of this process and of the loader workers that live at this moment."""
    children = [child.pid for child in multiprocessing.active_children()]
    return hardware.peak_memory_bytes([os.getpid(), *children])
