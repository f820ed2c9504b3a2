"""Trainings on several devices: rank 0 announces a replica group, and every rank trains its share.

Rank 0 plans, locks, measures and writes; see `execute`. The other ranks read the config and the
checkpoints in the run's folder, and the images, from a disk that all ranks see.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from gnexp.config.identity import restore, run_name
from gnexp.config.torchrun import TorchrunEnv, launched
from gnexp.runner.build.code_digest import code_checksum
from gnexp.runner.build.data import images_of
from gnexp.runner.prepared_run import PreparedRun
from gnexp.runner.schedule import Replica, ReplicaGroup, ReplicaGroupSpec
from gnexp.runner.trainer import GroupTrainer, stored_states
from gnexp.store.run import Run
from gnexp.training.ranks import Ranks

_ranks: Ranks | None = None  # of which this process is rank 0


@contextlib.contextmanager
def on_every_rank(group: ReplicaGroup, low_memory: bool) -> Iterator[Ranks | None]:
    """Let all ranks train a group within the context; yields them, None for a single device.

    An exception on one of them ends the context on all; see `Ranks.together`.
    """
    run = group.replicas[0].run
    if run.config.devices == 1:
        yield None
        return
    ranks = _ranks_of(run.config.devices)
    members = [(run.config.out, run.config.study, *replica.key) for replica in group.replicas]
    training = {"members": members, "places": group.places, **group.spec.entry()}
    ranks.announce({**training, "low_memory": low_memory, "device": run.device.type})
    if run.device.type == "cuda" and (place := launched()):
        torch.cuda.set_device(place.local_rank)
    with ranks.together(run.device.type):
        yield ranks


def _ranks_of(count: int) -> Ranks:
    """Return this process's ranks, started or restarted if need be."""
    global _ranks
    place = launched()
    if _ranks and not place and (_ranks.lost or _ranks.count != count):
        _end_ranks()
    if _ranks is None:
        _ranks = Ranks.launched(place) if place else Ranks.started(count)
    return _ranks


def _end_ranks() -> None:
    global _ranks
    if _ranks:
        ended, _ranks = _ranks, None
        ended.close()


@contextlib.contextmanager
def ranks_end(place: TorchrunEnv | None = None) -> Iterator[None]:
    """End the processes that were started within the context.

    place: this process's rank under torchrun, where the other ranks end too, also when no training
    needed them; without it, ranks that torchrun started stay for later trainings.
    """
    try:
        yield
    finally:
        if place:
            _ranks_of(place.world)
        if place or not launched():
            _end_ranks()


def train_shares(place: TorchrunEnv) -> int:
    """Train the share of a rank other than 0 in all that is announced; returns the exit code."""
    if os.getcwd() not in sys.path:  # where rank 0 finds a norm of the user's own
        sys.path.insert(0, os.getcwd())
    ranks = Ranks.launched(place)
    with contextlib.suppress(distributed.DistError):  # rank 0 is gone, and the store with it
        while training := ranks.next():
            with contextlib.suppress(Exception), ranks.together(training["device"]):
                _train_share(ranks, training, place.local_rank)
    ranks.close()
    return 0


def _train_share(ranks: Ranks, training: dict[str, Any], local_rank: int) -> None:
    torch.set_num_threads(training["threads"])
    device = torch.device(training["device"])
    if device.type == "cuda":
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    replicas = tuple(_replica(*member, device) for member in training["members"])
    group = ReplicaGroup(replicas, tuple(training["places"]), ReplicaGroupSpec.read(training))
    states = stored_states(replicas)
    GroupTrainer(group, states, training["low_memory"], lambda event: None, ranks).run()


def _replica(out: str, study: str, name: str, seed: int, device: torch.device) -> Replica:
    """Return a training that rank 0 has prepared, as this rank reads it from the disk.

    Raises OSError where this rank does not see the same disk.
    """
    run = Run(Path(out) / study / name)
    stored = run.config()
    if not stored:
        raise OSError(
            f"{run.folder} is not there: run folders and images must lie on a disk that all devices"
            " see, under the same path"
        )
    config = dataclasses.replace(restore(stored), out=out, study=study)
    data = images_of(config.data).summary
    if run_name(config, data.checksum, code_checksum(config)) != name:
        raise OSError(f"its images, or the code of its norm, are not those of {run.folder}")
    return Replica(PreparedRun(config, name, device, data), seed)
