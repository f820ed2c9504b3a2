"""Connect the processes that train a run together."""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import distributed

from gnexp.config.torchrun import launched
from gnexp.training.distributed.channel import Channel

AT_REST = timedelta(days=30)  # a follower waits while its leader evaluates, measures, or has a turn
AT_WORK = timedelta(minutes=10)  # between processes that are at the same update
CALL = "gnexp/call"  # what the leader has come for, in the store: "start" or "end"


def launched_store() -> distributed.Store:
    """Return the store of the launcher, or of the first process, by the environment."""
    store, _, _ = next(iter(distributed.rendezvous("env://", timeout=AT_WORK)))
    return store


def own_store() -> tuple[distributed.Store, int]:
    """Return a store that only this machine reaches, and its port."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen()
    port = listening.getsockname()[1]
    store = distributed.TCPStore(
        "127.0.0.1",
        port,
        is_master=True,
        wait_for_workers=False,
        timeout=AT_WORK,
        master_listen_fd=listening.detach(),
    )
    return store, port


def connect(
    store: distributed.Store,
    rank: int,
    count: int,
    device: torch.device | None,
    loopback: bool,
    explain: Callable[[BaseException], BaseException] = lambda error: error,
) -> Channel:
    """Return this process's channel to the others. device: of rank 0; workers receive theirs."""
    common = distributed.PrefixStore("gnexp", store)
    with _loopback() if loopback else contextlib.nullcontext():
        distributed.init_process_group(
            "gloo", store=common, rank=rank, world_size=count, timeout=AT_WORK
        )
        kind = [device.type if device else None]
        distributed.broadcast_object_list(kind, src=0)
        if kind[0] == "cuda":
            device = torch.device("cuda", _local_rank())
            torch.cuda.set_device(device)
        talk = distributed.new_group(backend="gloo", timeout=AT_REST)
        group = distributed.group.WORLD
        if kind[0] == "cuda":
            group = distributed.new_group(backend="nccl", timeout=AT_WORK)
    here = device or torch.device(kind[0])
    return Channel(rank, count, here, talk, group, explain)


def _local_rank() -> int:
    place = launched()
    return place.local_rank if place else 0


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """Let gloo listen where nobody else can reach it, while its connections are made."""
    names = [name for _, name in socket.if_nameindex() if name.startswith("lo")]
    if not names or "GLOO_SOCKET_IFNAME" in os.environ:
        yield
        return
    os.environ["GLOO_SOCKET_IFNAME"] = names[0]
    try:
        yield
    finally:
        del os.environ["GLOO_SOCKET_IFNAME"]


def is_of_connection(error: BaseException) -> bool:
    """Return True for an error that only reports a lost process; gloo has no type for it."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
