"""Messages between the processes that train one run together: the leader speaks, the rest obey."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed


class DeviceLost(ConnectionError):
    """A process that trains a run together with this one is gone, or has failed."""


@dataclass
class Channel:
    """The connection of one of `count` processes to the others; rank 0 leads.

    talk: the group of messages, over gloo, where a follower waits for as long as the leader is
    busy elsewhere. group: that of tensors on `device`, over gloo or NCCL. explain: hears of an
    exception in a common operation, after which the processes can no longer work together, and
    returns what it comes from, or itself.
    """

    rank: int
    count: int
    device: torch.device
    talk: distributed.ProcessGroup | None
    group: distributed.ProcessGroup | None
    explain: Callable[[BaseException], BaseException] = lambda error: error

    def broadcast(self, kind: str, **content: Any) -> None:
        """Tell every follower; only the leader speaks."""
        distributed.broadcast_object_list([(kind, content)], src=0, group=self.talk)

    def receive(self) -> tuple[str, dict[str, Any]]:
        """Wait for the leader's next word; returns its kind and content."""
        heard: list[Any] = [None]
        distributed.broadcast_object_list(heard, src=0, group=self.talk)
        return heard[0]

    def barrier(self) -> None:
        """Wait until all processes are here; raises when one is gone.

        NCCL would wait for a lost process on the device, and never say so to the host.
        """
        distributed.barrier(self.talk)

    def close(self) -> None:
        """Leave the groups; whoever still holds the channel can no longer use it.

        Their threads must have ended before the interpreter does, or it may abort.
        """
        self.talk = self.group = None
        distributed.destroy_process_group()

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Raise what an exception within the context comes from, such as the loss of a process."""
        try:
            yield
        except BaseException as error:
            cause = self.explain(error)
            if cause is error:
                raise
            raise cause from error
