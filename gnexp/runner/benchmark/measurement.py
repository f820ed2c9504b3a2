"""From a run's config to numbers: the plain loop, gnexp, and a matrix product.

Each is measured in fresh processes on a CPU, and in this one on CUDA.
"""

import dataclasses
import gc
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.benchmark import Timer
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from gnexp.config.identity import norm_label
from gnexp.config.schema import TrainConfig
from gnexp.config.torchrun import cores
from gnexp.data.device_images import DeviceDataset, augmentation, channel_statistics
from gnexp.runner.benchmark.loops import (
    LOADER_WORKERS,
    PilImages,
    gnexp_loop,
    plain_loop,
    plain_optimizer,
    plain_transform,
)
from gnexp.runner.benchmark.timer import Peers, Tick, measure_together, time_updates
from gnexp.runner.build.data import images_of, pick_device
from gnexp.runner.build.model import seeded_model
from gnexp.runner.build.step import training_step
from gnexp.runner.schedule import max_stack_size
from gnexp.training.lr_schedule import peak_rate
from gnexp.training.precision import matrix_precision

Row = dict[str, Any]

PLAIN, GNEXP = "plain", "gnexp"
_SUMS = ("updates", "examples", "examples_per_s", "peak_memory_bytes")

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of a large matrix


@dataclass(frozen=True)
class Task:
    """A measurement: a resolved config, a number of seconds, numbers of threads."""

    config: TrainConfig
    seconds: float
    threads: tuple[int, ...]


def measure_plain(task: Task, peers: Peers) -> list[Row]:
    """Time the plain loop on the first seed, with each number of threads in turn; see `_row`."""
    return [_plain(task, peers, threads) for threads in task.threads]


def _plain(task: Task, peers: Peers, threads: int) -> Row:
    torch.set_num_threads(threads)
    config, device = task.config, pick_device(task.config.device)
    images = images_of(config.data)
    mean, std = _statistics(config)
    transform = plain_transform(
        images.x_train.shape[-1], *augmentation(config.data.augment), mean, std
    )
    pictures = PilImages(images.x_train, images.y_train, transform)
    memory = Memory(device)
    model = seeded_model(config, images.summary, config.seeds[0]).to(device)
    optimizer = plain_optimizer(model, _rate(config), config.momentum, config.weight_decay)
    loader = DataLoader(  # which ends its workers when it is deleted
        pictures,
        batch_size=config.batch,
        shuffle=True,
        drop_last=True,
        num_workers=LOADER_WORKERS,
        persistent_workers=True,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(config.seeds[0]),
    )
    train = plain_loop(model, loader, optimizer, config.precision)
    return {
        **_row(task, peers, train, model, memory),
        **{"threads": threads, "stack": 1, "layout": "contiguous", "execution": "eager"},
        "examples_per_epoch": len(loader) * config.batch,
    }


def measure_gnexp(task: Task, peers: Peers) -> list[Row]:
    """Time the step that `gnexp train` makes for all seeds of the config; see `_row`."""
    (threads,) = task.threads
    torch.set_num_threads(threads)
    config, device = task.config, pick_device(task.config.device)
    source = images_of(config.data)
    mean, std = _statistics(config)
    memory = Memory(device)
    # Not the images that `build` keeps on the device: these are to be counted.
    images = DeviceDataset(source, device, mean, std)
    models = [seeded_model(config, source.summary, s).to(device) for s in config.seeds]
    step, note = training_step([config] * len(models), models, images)
    if note:
        print(note, flush=True)
    memory.settle()
    train = gnexp_loop(step, images, config.seeds, config.batch, config.data.augment, _rate(config))
    layout = "channels_last" if step.channels_last else "contiguous"
    return [
        {
            **_row(task, peers, train, step.model(0), memory),
            **{"threads": threads, "stack": step.replicas, "layout": layout},
            "execution": step.execution,
            "examples_per_epoch": len(images.x_train) // config.batch * config.batch,
        }
    ]


def _row(
    task: Task, peers: Peers, train: Callable[[Tick], None], model: nn.Module, memory: "Memory"
) -> Row:
    """Return the numbers of one timing, of all replicas of the step together.

    peak_memory_bytes: on a CPU resident, of the process and its loader workers; on CUDA reserved on
    the device. peak_allocated_bytes: on CUDA, by tensors.
    """
    with matrix_precision(task.config.precision):
        timing = time_updates(train, task.seconds, peers, memory.synchronize)
    reserved, allocated = memory.peaks()
    return {
        "updates": timing.updates,
        "examples": timing.examples,
        "time_s": timing.time_s,
        "examples_per_s": timing.examples / timing.time_s,
        "parameters": sum(p.numel() for p in model.parameters()),
        "peak_memory_bytes": reserved,
        "peak_allocated_bytes": allocated,
    }


def measure_products(task: Task, peers: Peers) -> list[float]:
    """Return the FLOP/s of products of large square matrices with each number of threads.

    2 n^3 operations each; float32, with TF32 for precision "tf32"; bfloat16 matrices for "bf16".
    """
    device, precision = pick_device(task.config.device), task.config.precision
    n, rates = PRODUCT_SIZE[device.type], []
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    names = {"a": a, "b": b, "out": torch.empty_like(a), "torch": torch}
    for threads in task.threads:
        timer = Timer("torch.mm(a, b, out=out)", globals=names, num_threads=threads)
        with matrix_precision(precision):
            timer.timeit(2)  # to be warm
            peers.barrier.wait()
            time_s = timer.blocked_autorange(min_run_time=task.seconds).mean
        rates.append(2 * n**3 / time_s)
    return rates


def flop_per_example(config: TrainConfig) -> int:
    """Return the operations of convolutions and linear layers for one image, forward and backward.

    A multiplication and an addition are two; norms and activations are not counted, nor is the
    gradient by the image, which training does not need.
    """
    images = images_of(config.data).summary
    model = seeded_model(config, images, config.seeds[0]).train()
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, *images.shape)).sum().backward()
    return counter.get_total_flops()


def _statistics(config: TrainConfig) -> tuple[list[float], list[float]]:
    mean, std = channel_statistics(images_of(config.data).x_train)
    return config.data.mean or mean, config.data.std or std


def _rate(config: TrainConfig) -> float:
    return peak_rate(config.lr, config.lr_rule, config.batch)


class Memory:
    """Counts the memory that training takes from here on, beyond what the device holds now."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._at_start = device, 0
        self._cuda = device.type == "cuda"
        gc.collect()
        if self._cuda:
            torch.cuda.empty_cache()
            self._before = torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)

    def settle(self) -> None:
        """Forget what was reserved at the start; a graph's tensors are allocated there, and count.

        The layout that was slower goes back.
        """
        gc.collect()
        if self._cuda:
            self._at_start = self.peaks()[1]
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def synchronize(self) -> None:
        """Wait until the device has done all it was asked to."""
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def peaks(self) -> tuple[int | None, int | None]:
        """Return the largest (reserved, allocated) bytes; on a CPU (those of processes, None)."""
        if not self._cuda:
            children = [child.pid for child in multiprocessing.active_children()]
            return resident_bytes("VmHWM", [os.getpid(), *children]), None
        reserved = torch.cuda.max_memory_reserved(self._device) - self._before[0]
        allocated = torch.cuda.max_memory_allocated(self._device) - self._before[1]
        return reserved, max(allocated, self._at_start)


def resident_bytes(field: str, pids: Iterable[int]) -> int | None:
    """Return the sum of VmRSS (now) or VmHWM (the peak) over processes, None without /proc.

    Memory that they share counts in each.
    """
    total = 0
    for path in (Path(f"/proc/{pid}/status") for pid in pids):
        if not path.is_file():
            return None
        sizes = dict(line.split(":", 1) for line in path.read_text().splitlines())
        total += 1024 * int(sizes.get(field, "0").split()[0])
    return total


@dataclass
class Machine:
    """One device and what is timed on it: `seconds` each, gnexp on `workers` processes.

    product_flop_per_s: of large matrix products, by (way, number of threads); `measure_products`
    fills it.
    """

    device: torch.device
    seconds: float
    workers: int | None = None
    product_flop_per_s: dict[tuple[str, int], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cuda = self.device.type == "cuda"
        self.processes = 1 if cuda else self.workers or cores()
        self.gnexp_threads = torch.get_num_threads() if cuda else 1
        self.plain_threads = (self.gnexp_threads,) if cuda else tuple(sorted({1, cores()}))

    def _measure(
        self, work: Callable, config: TrainConfig, threads: tuple[int, ...], processes: int = 1
    ) -> list[list]:
        """Return what `work` gives for each of some processes that measure at the same time."""
        task = Task(config, self.seconds, threads)
        if self.device.type == "cuda":
            return [work(task, Peers())]
        return measure_together(work, [task] * processes)

    def measure_products(self, run: TrainConfig) -> None:
        """Measure what a matrix product reaches on the threads of either way."""
        (rates,) = self._measure(measure_products, run, self.plain_threads)
        for threads, rate in zip(self.plain_threads, rates, strict=True):
            self.product_flop_per_s[PLAIN, threads] = rate
        ours = (self.gnexp_threads,)
        rates = self._measure(measure_products, run, ours, self.processes)
        self.product_flop_per_s[GNEXP, self.gnexp_threads] = sum(rate for (rate,) in rates)

    def plain(self, run: TrainConfig) -> list[Row]:
        """Time the plain loop once per number of threads; return a row for each."""
        (rows,) = self._measure(measure_plain, run, self.plain_threads)
        return [self._row(PLAIN, run, [row]) for row in rows]

    def gnexp(self, run: TrainConfig) -> list[Row]:
        """Time gnexp once, all processes at the same time; return one row, of their sum."""
        stack = min(len(run.seeds), max_stack_size(self.device.type, run.batch))
        part, threads = dataclasses.replace(run, seeds=run.seeds[:stack]), (self.gnexp_threads,)
        found = self._measure(measure_gnexp, part, threads, self.processes)
        row = self._row(GNEXP, run, [row for (row,) in found])
        if self.device.type == "cpu" and row["peak_memory_bytes"] is not None:
            # Who trains a grid has a process that waits for the workers, as this one does.
            row["peak_memory_bytes"] += resident_bytes("VmRSS", [os.getpid()])
        return [row]

    def _row(self, way: str, run: TrainConfig, rows: Sequence[Row]) -> Row:
        lists = {name: [row[name] for row in rows] for name in _SUMS}
        return {
            **rows[0],
            **{name: None if None in each else sum(each) for name, each in lists.items()},
            "time_s": max(row["time_s"] for row in rows),
            **{"norm": norm_label(run.norm), "groups": run.groups, "batch": run.batch, "way": way},
            **{"processes": len(rows), "seeds": len(run.seeds), "model": run.model.name},
            **{"width": run.model.width, "data": run.data.name, "precision": run.precision},
            "device": self.device.type,
            "matmul_flop_per_s": self.product_flop_per_s[way, rows[0]["threads"]],
        }
