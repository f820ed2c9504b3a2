"""Time updates in fresh processes at once: no clock starts before all are warm."""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from threading import Barrier, BrokenBarrierError
from typing import Any

from gnexp.runner.process_pool import EndsWithThis, ignore_sigint

LEAST_UPDATES = 5
# Before the clock starts: kernels are chosen, loaders fill up, the heap grows to its size.
LEAST_WARM_UP = 3  # updates
WARM_UP_PART = 1 / 3  # of the time that is then timed

Tick = Callable[[int], None]


class MeasurementFailed(RuntimeError):
    """A measuring process ended without a result."""


class Peers:
    """The processes that are timed at the same moment; by default there is none beside this one."""

    def __init__(self, barrier: Any = None, timed: Any = None) -> None:
        self.barrier = barrier or Barrier(1)
        self._timed = timed or multiprocessing.Value("i", 0)

    def ended(self) -> None:
        """Count that this process has been timed."""
        with self._timed.get_lock():
            self._timed.value += 1

    def busy(self) -> bool:
        """Return whether another one is still being timed."""
        return not self.barrier.broken and self._timed.value < self.barrier.parties


@dataclass(frozen=True)
class Timing:
    """The examples and updates that were timed, and the seconds that they took."""

    examples: int
    updates: int
    time_s: float


def time_updates(
    train: Callable[[Tick], None], seconds: float, peers: Peers, synchronize: Callable[[], None]
) -> Timing:
    """Time at least `seconds` and LEAST_UPDATES updates of a training, after a warm-up.

    train: endless; it calls its argument with the images of each update. The clock is read when
    `synchronize` has returned, at both ends. A process that is timed first goes on training until
    its peers are timed too, so that none of them has the machine for itself.
    """
    _train(train, lambda updates: True)  # the start of loaders is no warm-up
    _train(train, _lasting(WARM_UP_PART * seconds, LEAST_WARM_UP))
    synchronize()
    peers.barrier.wait()  # until all are warm
    start = time.perf_counter()
    images = _train(train, _lasting(seconds, LEAST_UPDATES))
    synchronize()
    timing = Timing(sum(images), len(images), time.perf_counter() - start)
    peers.ended()
    if peers.busy():
        _train(train, lambda updates: not peers.busy())
    return timing


class _Enough(Exception):
    """Leaves a training, also in the middle of a block of updates."""


def _train(train: Callable[[Tick], None], enough: Callable[[int], bool]) -> list[int]:
    """Train until `enough`, called with the number of updates; return the images of each."""
    images: list[int] = []

    def tick(examples: int) -> None:
        images.append(examples)
        if enough(len(images)):
            raise _Enough

    with contextlib.suppress(_Enough):
        train(tick)
    return images


def _lasting(seconds: float, least: int) -> Callable[[int], bool]:
    start = time.perf_counter()
    return lambda updates: updates >= least and time.perf_counter() - start >= seconds


def measure_together(work: Callable[[Any, Peers], Any], tasks: Sequence[Any]) -> list[Any]:
    """Return work(task, peers) of every task, each done by a new process of its own.

    However the call ends, no process stays behind. Raises MeasurementFailed when one fails.
    """
    context = multiprocessing.get_context("spawn")  # as the workers of `gnexp train`
    shared = context.Barrier(len(tasks)), context.Value("i", 0)
    pool = ProcessPoolExecutor(len(tasks), context, _begin, (EndsWithThis(), *shared))
    try:
        with ignore_sigint():
            futures = [pool.submit(_measure, work, task) for task in tasks]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            error = min(errors, key=lambda each: isinstance(each, BrokenBarrierError))
            raise MeasurementFailed(f"{type(error).__name__}: {error}") from error
        return [future.result() for future in futures]
    finally:
        for process in multiprocessing.active_children():
            process.kill()
        pool.shutdown()


_peers = Peers()


def _begin(_: None, *shared: Any) -> None:
    global _peers
    _peers = Peers(*shared)
    # As in a user's own program: a loader would start its workers by "spawn", as we were started.
    multiprocessing.set_start_method(None, force=True)


def _measure(work: Callable[[Any, Peers], Any], task: Any) -> Any:
    try:
        return work(task, _peers)
    except BaseException:
        _peers.barrier.abort()  # which the others wait at
        raise
