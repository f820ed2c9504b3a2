"""The processes that train one run together, as equal ranks, each on a device of its own.

Every rank has all images and models, and passes its share of each update; see `rank_step`. They
meet in a store, a small server of rank 0 or of torchrun. There rank 0 announces one training after
the other, and the first rank that fails leaves the fault that ends the training on all of them.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed

from gnexp.config.torchrun import PARENT, VARIABLES, TorchrunEnv, ending
from gnexp.norms.trials import first_line

AT_REST = timedelta(days=30)  # ranks wait while rank 0 measures or writes, or has a turn
AT_WORK = timedelta(minutes=10)  # between ranks that are at the same update
START_S = 300.0  # to import torch, from a slow disk
GRACE_S = 3.0  # between a broken connection and the news of who broke it
LOOK_S = 0.02


class DeviceLost(ConnectionError):
    """A process that trains a run together with this one is gone."""


_RAISED = {"memory": torch.OutOfMemoryError, "again": OSError, "lost": DeviceLost}


class Ranks:
    """This process among the `count` that train together, as rank 0 announces.

    processes: those that this one has started, rank 1 and on; none where a launcher has.
    """

    def __init__(self, store: distributed.Store, rank: int, count: int, local: bool) -> None:
        """local: all are on this machine, so none listens where others can reach it."""
        self.store, self.rank, self.count, self.local = store, rank, count, local
        self.processes: list[subprocess.Popen] = []
        self.training = 0
        self.lost = False
        self._resting: distributed.ProcessGroup | None = None

    @classmethod
    def launched(cls, place: TorchrunEnv) -> "Ranks":
        """Return the ranks that a launcher, or another gnexp, has started with this process."""
        store, _, _ = next(iter(distributed.rendezvous("env://", timeout=AT_WORK)))
        return cls(
            distributed.PrefixStore("gnexp", store), place.rank, place.world, PARENT in os.environ
        )

    @classmethod
    def started(cls, count: int) -> "Ranks":
        """Start the other ranks on this machine."""
        store, port = local_store()
        ranks = cls(distributed.PrefixStore("gnexp", store), 0, count, True)
        ranks.processes = [_start(rank, count, port) for rank in range(1, count)]
        return ranks

    def announce(self, training: dict[str, Any]) -> None:
        """Tell the others what is trained next, in plain values, and wait until all have come.

        Raises DeviceLost for one that does not come.
        """
        if self.lost:
            raise DeviceLost("another device was lost before; the same command goes on")
        self._tell(training)
        start, waiting = time.monotonic(), list(range(1, self.count))
        self.lost = True  # until all have come
        while waiting := [rank for rank in waiting if not self.store.check([self._arrival(rank)])]:
            if ended := self._ended():
                raise DeviceLost(f"{ended}, before training began")
            if time.monotonic() - start > START_S:
                raise DeviceLost(f"device {waiting[0]} did not answer within {START_S:.0f} s")
            time.sleep(LOOK_S)
        self.lost = False

    def next(self) -> dict[str, Any] | None:
        """Wait for what is trained next and return it, None at the end."""
        self.training += 1
        key = f"training/{self.training}"
        self.store.wait([key], AT_REST)
        training = json.loads(self.store.get(key))
        self.store.set(self._arrival(self.rank), "")
        return training

    def _tell(self, training: dict[str, Any] | None) -> None:
        self.training += 1
        self.store.set(f"training/{self.training}", json.dumps(training))

    def _arrival(self, rank: int) -> str:
        return f"arrived/{self.training}/{rank}"

    @contextlib.contextmanager
    def together(self, kind: str) -> Iterator[None]:
        """Connect all ranks, whose devices are "cpu" or "cuda", for one training.

        An exception on one rank ends the context on all of them. Those that had none of their own
        raise what happened: OutOfMemoryError, OSError, DeviceLost, or RuntimeError for all else.
        """
        try:
            self._connect(kind)
            yield
        except BaseException as error:
            # A frame that holds the group would keep the others waiting in it.
            traceback.clear_frames(error.__traceback__)
            cause = self._cause(error)
            if kind == "cuda" and distributed.is_initialized():
                # What NCCL waits for on the device will not come; to end in order would hang.
                distributed.group.WORLD.abort()
            self._leave()
            if cause is error:
                raise
            raise cause from error

    def _connect(self, kind: str) -> None:
        """Enter new groups. The default one is of tensors; the other, of CPU tensors, may wait."""
        self._leave()  # those of an earlier training, which others may have used until now
        backend = "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo"
        store = distributed.PrefixStore(f"groups/{self.training}", self.store)
        with _loopback() if self.local else contextlib.nullcontext():
            distributed.init_process_group(
                backend, store=store, rank=self.rank, world_size=self.count, timeout=AT_WORK
            )
            self._resting = distributed.new_group(backend="gloo", timeout=AT_REST)

    def _leave(self) -> None:
        """Leave the groups: whoever waits for this rank in them gets an exception."""
        self._resting = None
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def share_bytes(self, data: Tensor) -> Tensor:
        """Return rank 0's tensor of bytes, on the CPU, once all ranks have come.

        Raises when one is gone, which NCCL would never say to the host.
        """
        data = data if self.rank == 0 else torch.zeros_like(data)
        distributed.all_reduce(data, distributed.ReduceOp.MAX, group=self._resting)
        return data

    def barrier(self) -> None:
        """Wait until all ranks have come; raises when one is gone."""
        distributed.barrier(self._resting)

    def _cause(self, error: BaseException) -> BaseException:
        """Return what ends the training on all ranks: what came first; here `error` itself."""
        kind, key, start = _kind(error), f"fault/{self.training}", time.monotonic()
        named = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        text = f"device {self.rank}: {named}{first_line(error)}"
        try:
            if kind == "lost":  # somebody else left first, and may have said why
                text = f"the connection to another device broke: {first_line(error)}"
                while not self.store.check([key]) and time.monotonic() - start < GRACE_S:
                    if ended := self._ended():
                        text = ended
                        break
                    time.sleep(LOOK_S)
            fault = self.store.compare_set(key, "", json.dumps([self.rank, kind, text]))
        except distributed.DistError:  # the store is gone, and rank 0 or the launcher with it
            fault = json.dumps([self.rank, "lost", text])
        rank, kind, text = json.loads(fault)
        self.lost = kind == "lost"
        if not isinstance(error, Exception) or (rank == self.rank and not self.lost):
            return error  # Ctrl-C is nobody else's fault
        return _RAISED.get(kind, RuntimeError)(text)

    def _ended(self) -> str | None:
        """Return how a process that this one has started ended, None while all run."""
        for rank, process in enumerate(self.processes, start=1):
            if process.poll() is not None:
                return f"device {rank}: {ending(process.returncode)}"
        return None

    def close(self) -> None:
        """End the other ranks; kill those that this process has started and that do not end."""
        if self.rank == 0:
            with contextlib.suppress(distributed.DistError):
                self._tell(None)
        for process in self.processes:
            if self.lost:
                process.kill()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._leave()  # its threads must have ended before the interpreter does, or it may abort


def _kind(error: BaseException) -> str:
    """Return the kind of a fault: "lost" is a broken connection, for which gloo has no type."""
    if isinstance(error, distributed.DistError) or "gloo" in str(error).lower():
        return "lost"
    if out_of_memory(error):
        return "memory"
    return "again" if isinstance(error, OSError) else "error"


def out_of_memory(error: BaseException) -> bool:
    """Return True for an out-of-memory error of CUDA, of Python, or of PyTorch's CPU allocator."""
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return known or "DefaultCPUAllocator: " in str(error)


def local_store() -> tuple[distributed.Store, int]:
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


def _start(rank: int, count: int, port: int) -> subprocess.Popen:
    """Start another rank, as a launcher would."""
    values = dict(zip(VARIABLES, (rank, count, "127.0.0.1", port), strict=True))
    values |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, PARENT: os.getpid()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    environment = {**kept, **{key: str(value) for key, value in values.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, "-m", "gnexp", "train"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )


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
