"""Whether torchrun, or a launcher that sets the same variables, started this process beside others.

Without torch: rules and the command line ask before it is imported.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

LEADER = "GNEXP_LEADER"  # set for a follower: the process on this machine that started it
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Place:
    """This process among those that train together: rank 0 leads, the others follow.

    local_rank: among those of this machine, of which there are local_world.
    """

    rank: int
    world: int
    local_rank: int
    local_world: int


def launched() -> Place | None:
    """Return this process's place if it was started as one of several, None if by itself."""
    if not all(os.environ.get(name) for name in VARIABLES):
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ.get("LOCAL_RANK", rank))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return Place(rank, world, local_rank, local_world) if world > 1 else None


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


def with_devices(arguments: Sequence[str], place: Place) -> list[str]:
    """Return the arguments of a training with `devices=` as launched, where none is typed."""
    typed = any(a.lstrip("+").partition("=")[0] == "devices" for a in arguments)
    return [*arguments, *([] if typed else [f"devices={place.world}"])]
