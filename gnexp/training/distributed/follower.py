"""A worker process: one device's part of a training, driven by rank 0.

It holds a step and nothing else: no images, no files, no word. It ends with its leader, whatever
ends that.
"""

import contextlib
import json
import os
import signal
import sys

import torch
from torch import distributed

from gnexp.config.torchrun import LEADER, TorchrunEnv
from gnexp.training.distributed.rendezvous import (
    AT_REST,
    CALL,
    connect,
    is_of_connection,
    launched_store,
)
from gnexp.training.distributed.step import serve


def follow(place: TorchrunEnv) -> int:
    """Do what the leader asks of this process until it is sent home; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to handle
    if os.getcwd() not in sys.path:  # where the leader finds a norm of the user's own
        sys.path.insert(0, os.getcwd())
    store = launched_store()
    try:
        store.wait([CALL], AT_REST)
        if store.get(CALL) == b"end":
            return 0
    except distributed.DistError:  # the leader had nothing to train, and has left with its store
        return 0
    try:
        store.set(f"gnexp/ready/{place.rank}", "")
        channel = connect(store, place.rank, place.world, None, LEADER in os.environ)
        serve(channel)
        channel.close()
    except Exception as error:
        if not is_of_connection(error):
            with contextlib.suppress(distributed.DistError):
                store.set(f"gnexp/failed/{place.rank}", json.dumps(_error_text(error)))
        os._exit(1)  # an orderly end would wait for the others
    return 0


def _error_text(error: Exception) -> tuple[str, str]:
    """Return (kind, text) of what went wrong in this process."""
    first = (str(error).strip().splitlines() or [""])[0]
    memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    kind = "memory" if memory or "DefaultCPUAllocator: " in first else "error"
    return kind, f"{type(error).__name__}: {first}"
