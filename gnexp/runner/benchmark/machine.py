"""Run both loops on this machine: in fresh processes on a CPU, in this process on CUDA."""

import dataclasses
from collections.abc import Callable, Sequence

import torch

from gnexp.config.identity import norm_label
from gnexp.config.schema import TrainConfig
from gnexp.config.torchrun import cores
from gnexp.runner.benchmark import measurement
from gnexp.runner.benchmark.measurement import Row, Task
from gnexp.runner.benchmark.timer import Peers, measure_together
from gnexp.runner.schedule import max_stack_size

PLAIN, GNEXP = "plain", "gnexp"
_SUMS = ("updates", "examples", "examples_per_s", "peak_memory_bytes")


@dataclasses.dataclass
class Machine:
    """One device and what is timed on it: `seconds` each, gnexp on `workers` processes.

    product_flop_per_s: of large matrix products, by (way, number of threads); `measure_products`
    fills it.
    """

    device: torch.device
    seconds: float
    workers: int | None = None
    product_flop_per_s: dict[tuple[str, int], float] = dataclasses.field(default_factory=dict)

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
        (rates,) = self._measure(measurement.measure_products, run, self.plain_threads)
        for threads, rate in zip(self.plain_threads, rates, strict=True):
            self.product_flop_per_s[PLAIN, threads] = rate
        ours = (self.gnexp_threads,)
        rates = self._measure(measurement.measure_products, run, ours, self.processes)
        self.product_flop_per_s[GNEXP, self.gnexp_threads] = sum(rate for (rate,) in rates)

    def plain(self, run: TrainConfig) -> list[Row]:
        """Time the plain loop once per number of threads; return a row for each."""
        (rows,) = self._measure(measurement.measure_plain, run, self.plain_threads)
        return [self._row(PLAIN, run, [row]) for row in rows]

    def gnexp(self, run: TrainConfig) -> list[Row]:
        """Time gnexp once, all processes at the same time; return one row, of their sum."""
        stack = min(len(run.seeds), max_stack_size(self.device.type, run.batch))
        part, threads = dataclasses.replace(run, seeds=run.seeds[:stack]), (self.gnexp_threads,)
        found = self._measure(measurement.measure_gnexp, part, threads, self.processes)
        row = self._row(GNEXP, run, [row for (row,) in found])
        if self.device.type == "cpu" and row["peak_memory_bytes"] is not None:
            # Who trains a grid has a process that waits for the workers, as this one does.
            row["peak_memory_bytes"] += measurement.resident_bytes()
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
