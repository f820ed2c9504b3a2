"""Run both loops on this machine: in fresh processes on a CPU, in this process on CUDA."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from gnexp.config.identity import norm_label
from gnexp.config.schema import TrainConfig
from gnexp.config.torchrun import cores
from gnexp.runner.benchmark import hardware, measurement
from gnexp.runner.benchmark.measurement import GNEXP, PLAIN, Measured, Row, Task
from gnexp.runner.benchmark.processes import Work, measure_together
from gnexp.runner.benchmark.timer import Peers
from gnexp.runner.build.data import images_of
from gnexp.runner.build.model import seeded_model
from gnexp.runner.schedule import max_stack_size


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

    @property
    def plain_threads(self) -> tuple[int, ...]:
        """The numbers of threads that the plain loop is timed with."""
        if self.device.type == "cuda":
            return (torch.get_num_threads(),)
        return (1,) if cores() == 1 else (1, cores())

    @property
    def gnexp_threads(self) -> int:
        """The threads of one of our processes."""
        return torch.get_num_threads() if self.device.type == "cuda" else 1

    @property
    def processes(self) -> int:
        """Return the number of gnexp processes that work at once."""
        return 1 if self.device.type == "cuda" else self.workers or cores()

    def _measure(self, work: Work, tasks: Sequence[Task]) -> list[list]:
        """Return what `work` gives for tasks that are measured at the same time."""
        if self.device.type == "cuda":
            return [work(task, Peers()) for task in tasks]  # one task: one process
        return measure_together(work, tasks)

    def measure_products(self, run: TrainConfig) -> None:
        """Measure what a matrix product reaches on the threads of either way."""
        plain = Task(run, self.seconds, self.plain_threads)
        (rates,) = self._measure(measurement.measure_products, [plain])
        for threads, rate in zip(self.plain_threads, rates, strict=True):
            self.product_flop_per_s[PLAIN, threads] = rate
        ours = Task(run, self.seconds, (self.gnexp_threads,))
        rates = self._measure(measurement.measure_products, [ours] * self.processes)
        self.product_flop_per_s[GNEXP, self.gnexp_threads] = sum(rate for (rate,) in rates)

    def plain(self, run: TrainConfig) -> list[Row]:
        """Time the plain loop once per number of threads; return a row for each."""
        task = Task(run, self.seconds, self.plain_threads)
        (results,) = self._measure(measurement.measure_plain, [task])
        return [self._row(PLAIN, run, [result]) for result in results]

    def gnexp(self, run: TrainConfig) -> list[Row]:
        """Time gnexp once, all processes at the same time; return one row, of their sum."""
        stack = min(len(run.seeds), max_stack_size(self.device.type, run.batch))
        part = dataclasses.replace(run, seeds=run.seeds[:stack])
        task = Task(part, self.seconds, (self.gnexp_threads,))
        results = self._measure(measurement.measure_gnexp, [task] * self.processes)
        row = self._row(GNEXP, run, [result for (result,) in results])
        if self.device.type == "cpu" and row["peak_memory_bytes"] is not None:
            # Who trains a grid has a process that waits for the workers, as this one does.
            row["peak_memory_bytes"] += hardware.resident_bytes()
        return [row]

    def _row(self, way: str, run: TrainConfig, results: Sequence[Measured]) -> Row:
        """Return the columns of a timing; processes that worked at once are added up."""
        one = results[0]
        memories = [result.peak_memory_bytes for result in results]
        return {
            "norm": norm_label(run.norm),
            "groups": run.groups,
            "batch": run.batch,
            "way": way,
            "threads": one.threads,
            "processes": len(results),
            "stack": one.stack,
            "layout": one.layout,
            "execution": one.execution,
            "updates": sum(result.timing.updates for result in results),
            "examples": sum(result.timing.examples for result in results),
            "time_s": max(result.timing.time_s for result in results),
            "examples_per_s": sum(result.timing.examples_per_s for result in results),
            "peak_memory_bytes": None if None in memories else sum(memories),
            "peak_allocated_bytes": one.peak_allocated_bytes,
            "parameters": one.parameters,
            "examples_per_epoch": one.examples_per_epoch,
            "matmul_flop_per_s": self.product_flop_per_s[way, one.threads],
            "seeds": len(run.seeds),
            "model": run.model.name,
            "width": run.model.width,
            "data": run.data.name,
            "precision": run.precision,
            "device": self.device.type,
        }


def flop_per_example(run: TrainConfig) -> int:
    """Return what one image costs in this run, forward and backward; see hardware."""
    images = images_of(run.data).summary
    model = seeded_model(run, images, run.seeds[0])
    return hardware.flop_per_example(model, images.shape)
