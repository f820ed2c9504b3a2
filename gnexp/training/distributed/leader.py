"""The session of a process that leads others: it starts them here, or joins those of torchrun.

A leader that trains on N devices starts N - 1 followers on this machine, unless a launcher has
started them. It learns of a follower's end from the connection that breaks.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import torch
from torch import distributed

from gnexp.config.torchrun import LEADER, VARIABLES, ending, launched
from gnexp.training.distributed.channel import Channel, DeviceLost
from gnexp.training.distributed.rendezvous import (
    CALL,
    connect,
    is_of_connection,
    launched_store,
    own_store,
)

START_S = 300.0  # to import torch, from a slow disk
GRACE_S = 3.0  # between a broken connection and the news of who broke it
LOOK_S = 0.05


@dataclass
class _WorkerProcess:
    """A process that this one has started."""

    rank: int
    process: subprocess.Popen
    sentence: IO[bytes]  # its standard error

    def ending(self) -> str | None:
        """Return how it ended, None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        self.sentence.seek(0)
        lines = self.sentence.read().decode(errors="replace").strip().splitlines()
        sentence = f" ({lines[-1]})" if lines and code > 0 else ""
        return f"device {self.rank}: {ending(code)}{sentence}"


class _WorkerGroup:
    """The processes that train together with this one, and the channel to them."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self.device = count, device
        self.broken = False
        self.channel: Channel | None = None
        self.followers: list[_WorkerProcess] = []
        place = launched()
        try:
            if place:
                self.store = launched_store()
            else:
                self.store, port = own_store()
                self.followers = [_started(rank, count, port) for rank in range(1, count)]
            self.store.set(CALL, "start")
            self._wait_for_all()
            self.channel = connect(self.store, 0, count, device, place is None, self._explain)
        except BaseException:
            self.broken = True
            self.close()
            raise

    def _wait_for_all(self) -> None:
        start, waiting = time.monotonic(), list(range(1, self.count))
        while waiting:
            waiting = [rank for rank in waiting if not self.store.check([f"gnexp/ready/{rank}"])]
            if ended := next(filter(None, (f.ending() for f in self.followers)), None):
                raise DeviceLost(f"{ended}, before training began")
            if waiting and time.monotonic() - start > START_S:
                raise DeviceLost(f"device {waiting[0]} did not answer within {START_S:.0f} s")
            time.sleep(LOOK_S * bool(waiting))

    def _explain(self, error: BaseException) -> BaseException:
        """Return what is behind an error of a common operation; the session ends with it."""
        self.broken = True
        if not isinstance(error, Exception):
            return error
        own, start = not is_of_connection(error), time.monotonic()
        while True:
            if cause := self._cause():
                return cause
            if own:
                return error
            if time.monotonic() - start > GRACE_S:
                first = str(error).strip().splitlines()[0]
                return DeviceLost(f"the connection to another device broke: {first}")
            time.sleep(LOOK_S)

    def _cause(self) -> Exception | None:
        """Return what ended another process first, as far as it is known."""
        killed = (f for f in self.followers if (f.process.poll() or 0) < 0)
        if follower := next(killed, None):
            return DeviceLost(follower.ending())
        with contextlib.suppress(distributed.DistError):
            for rank in range(1, self.count):
                if self.store.check([f"gnexp/failed/{rank}"]):
                    kind, text = json.loads(self.store.get(f"gnexp/failed/{rank}"))
                    if kind == "memory":
                        return torch.OutOfMemoryError(f"device {rank}: {text}")
                    return RuntimeError(f"device {rank}: {text}")
        return None

    def close(self) -> None:
        """Send the followers home; after an error those that were started here are killed."""
        if not self.broken:
            with contextlib.suppress(RuntimeError):
                self.channel.broadcast("close")
        for follower in self.followers:
            if self.broken:
                follower.process.kill()
            try:
                follower.process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                follower.process.kill()
                follower.process.wait()
            follower.sentence.close()
        if self.channel:
            if self.broken and self.device.type == "cuda":
                # What NCCL waits for on the device will not come; to end in order would hang.
                self.channel.group.abort()
            self.channel.close()
        elif distributed.is_initialized():
            distributed.destroy_process_group()


_session: _WorkerGroup | None = None


def channel_to(count: int, device: torch.device) -> Channel:
    """Return the channel to `count` devices in all, whose processes are started if need be.

    Raises DeviceLost when one does not start, or when a launcher's processes have been lost.
    """
    global _session
    if _session and _session.broken and launched():
        raise DeviceLost("another device was lost before; the same command goes on, called again")
    if _session and (_session.broken or (_session.count, _session.device) != (count, device)):
        close_devices()
    if _session is None:
        _session = _WorkerGroup(count, device)
    return _session.channel


def close_devices() -> None:
    """End the processes that train together with this one, where there are any."""
    global _session
    if _session:
        ended, _session = _session, None
        ended.close()


@contextlib.contextmanager
def devices_released() -> Iterator[None]:
    """End the processes that were started within the context; those of a launcher stay."""
    try:
        yield
    finally:
        if not launched():
            close_devices()


@contextlib.contextmanager
def leading() -> Iterator[None]:
    """Send the processes of a launcher home at the end, whether they were needed or not."""
    try:
        yield
    finally:
        if _session:
            close_devices()
        else:
            launched_store().set(CALL, "end")


def _started(rank: int, count: int, port: int) -> _WorkerProcess:
    """Start a follower, as a launcher would."""
    values = dict(zip(VARIABLES, (rank, count, "127.0.0.1", port), strict=True))
    values |= {"LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": count, LEADER: os.getpid()}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TORCHELASTIC_")}
    environment = {**kept, **{key: str(value) for key, value in values.items()}}
    environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    sentence = tempfile.TemporaryFile()  # noqa: SIM115  it is the follower's
    process = subprocess.Popen(
        [sys.executable, "-m", "gnexp", "train"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sentence,
    )
    return _WorkerProcess(rank, process, sentence)
