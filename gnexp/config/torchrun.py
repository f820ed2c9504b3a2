"""Read the environment of torchrun, or of a launcher that sets the same variables.

Without torch: rules and the command line ask before it is imported.
"""

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass

PARENT = "GNEXP_PARENT"  # set for a rank: the process on this machine that started it
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class TorchrunEnv:
    """This process among those that train together; local: among those of this machine."""

    rank: int
    world: int
    local_rank: int
    local_world: int


def launched() -> TorchrunEnv | None:
    """Return this process's place if it was started as one of several, None if by itself."""
    if not all(os.environ.get(name) for name in VARIABLES):
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return TorchrunEnv(rank, world, local_rank, local_world) if world > 1 else None


def with_devices(arguments: Sequence[str], place: TorchrunEnv) -> list[str]:
    """Return the arguments of a training with `devices=` as launched, where none is typed."""
    typed = any(a.lstrip("+").partition("=")[0] == "devices" for a in arguments)
    return [*arguments, *([] if typed else [f"devices={place.world}"])]


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ending(exitcode: int | None) -> str:
    """Return how a process ended, from its exit code."""
    killed = exitcode is not None and exitcode < 0
    by = f"by {signal.Signals(-exitcode).name}" if killed else f"with exit code {exitcode}"
    return f"its process ended {by}"
