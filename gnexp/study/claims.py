"""Claims on work in a folder that several processes share, on one machine or on many.

A claim is a file that names its holder's process and host. It ends with its process: on the same
machine at once; elsewhere when its holder has not renewed it for LEASE_S seconds, as watched by the
clock of whoever waits, so that clocks need not agree. It needs no locks of the file system, which
network folders often lack.
"""

import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path

LEASE_S = 90.0  # a holder renews its claim three times in this time
POLL_S = 0.02  # between two tries of one who waits


class Claim:
    """One claim, to be taken and dropped; true while it is this process's."""

    def __init__(self, path: Path) -> None:
        from filelock import SoftFileLease  # late, since most readers of a study never claim

        self.path = path
        # Not bound to a thread: whoever finds the claim lost may be another thread than its taker.
        self._lease = SoftFileLease(path, lease_duration=LEASE_S, thread_local=False)

    def take(self, wait: bool = False) -> bool:
        """Take it if nobody holds it; `wait` until its holder is done or gone."""
        from filelock import Timeout

        if self._lease.is_locked:
            return not self.lost
        try:
            # Two looks: where a file system cannot swap names, the first one only clears away the
            # claim of a process that is gone.
            self._lease.acquire(timeout=-1 if wait else 1.5 * POLL_S, poll_interval=POLL_S)
        except Timeout:
            return False
        return True

    def drop(self) -> None:
        """Let others have it."""
        self._lease.release(force=True)

    @property
    def lost(self) -> bool:
        """Whether another process took it, since this one did not renew it in time."""
        return self._lease.compromise is not None

    def __bool__(self) -> bool:
        return self._lease.is_locked and not self.lost


@dataclass(frozen=True)
class Holder:
    """Who holds a claim."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def holder(path: Path) -> Holder | None:
    """Return who holds a claim now; None where nobody does, or its process is known to be gone."""
    from filelock import SoftFileLease

    owner = SoftFileLease(path, lease_duration=LEASE_S).owner
    if owner is None:
        return None
    # filelock adds the namespace to the host, since a container's process numbers are its own.
    host, _, namespace = owner.hostname.partition("?pidns-")
    if host == socket.gethostname() and namespace in ("", _process_namespace()):
        alive = _alive(owner.pid)
    else:  # a clock that is a little off must not hide a living process
        try:
            alive = time.time() - path.stat().st_mtime < 2 * LEASE_S
        except OSError:  # dropped meanwhile
            return None
    return Holder(host, owner.pid) if alive else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    return True


def _process_namespace() -> str:
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return ""
