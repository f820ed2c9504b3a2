"""The timer of a benchmark: warm-up, start and end."""

import time
from collections.abc import Callable
from dataclasses import dataclass

LEAST_UPDATES = 5
# Before the clock starts: kernels are chosen, loaders fill up, the heap grows to its size.
LEAST_WARM_UP = 3  # updates
WARM_UP_PART = 1 / 3  # of the time that is then timed


@dataclass(frozen=True)
class Timing:
    """The examples and updates of a timed window, and its length in seconds."""

    examples: int
    updates: int
    time_s: float

    @property
    def examples_per_s(self) -> float:
        return self.examples / self.time_s


class Peers:
    """The interface to processes that are timed at the same moment; this one has none."""

    def wait(self) -> None:
        """Return when all are warm."""

    def busy(self) -> bool:
        """Return whether another one is still being timed."""
        return False


class Window:
    """Times at least `seconds` and LEAST_UPDATES updates, from `open` on.

    The clock is read when `synchronize` has returned, at both ends. Whoever is timed first goes on
    working until its neighbours are timed too, so that no one has the machine for itself.
    """

    def __init__(self, seconds: float, synchronize: Callable[[], None], peers: Peers) -> None:
        self.synchronize = synchronize
        self._seconds, self._neighbours = seconds, peers
        self._examples = self._updates = 0
        self._start = 0.0
        self._warm_updates, self._warm_start = 0, None
        self.timing: Timing | None = None

    def warm(self) -> bool:
        """Take in that an update was made before the clock starts; return whether it may start."""
        now = time.perf_counter()
        self._warm_start = now if self._warm_start is None else self._warm_start
        self._warm_updates += 1
        long = now - self._warm_start >= WARM_UP_PART * self._seconds
        return long and self._warm_updates >= LEAST_WARM_UP

    def open(self) -> None:
        """Start the clock, once all neighbours are warm."""
        self.synchronize()
        self._neighbours.wait()
        self._start = time.perf_counter()

    def tick(self, examples: int) -> bool:
        """Take in that an update of so many examples was made; return whether it was the last."""
        if self.timing is None:
            self._examples += examples
            self._updates += 1
            long = time.perf_counter() - self._start >= self._seconds
            if not long or self._updates < LEAST_UPDATES:
                return False
            self.synchronize()
            time_s = time.perf_counter() - self._start
            self.timing = Timing(self._examples, self._updates, time_s)
        return not self._neighbours.busy()
