"""Claims on work in a folder that several processes share, on one machine or on many.

A claim is a file that names its holder's process and host. It ends with its process: on the same
machine at once; elsewhere when its holder has not renewed it for LEASE_S seconds, as watched by the
clock of whoever waits, so that clocks need not agree. It needs no locks of the file system, which
network folders often lack.

A process that was stopped for longer finds out when it goes on: what it holds is checked before
every write.
"""

import contextlib
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

LEASE_S = 90.0  # a holder renews its claim three times in this time
POLL_S = 0.02  # between two tries of one who waits
NAMELESS_S = 3.0  # a claim in which nobody is named is of a process that was killed just then


class LockLost(OSError):
    """Another process took over a claim of this one, which gave no sign of life."""


_own: ContextVar[tuple["Lock", ...]] = ContextVar("held", default=())


@contextlib.contextmanager
def writing_under(lock: "Lock") -> Iterator[None]:
    """Let no file be written within the context once another process has this claim."""
    token = _own.set((*_own.get(), lock))
    try:
        yield
    finally:
        _own.reset(token)


def require_locks() -> None:
    """Raise LockLost if another process has one of the claims under which this one writes."""
    for lock in _own.get():
        if lock.lost and lock.path.parent.is_dir():  # else the write itself says what is gone
            raise LockLost(
                f"another process took over {lock.path}, since this one was stopped for more than"
                f" {LEASE_S:g} s"
            )


class Lock:
    """One claim, to be taken and dropped; true while it is this process's."""

    def __init__(self, path: Path) -> None:
        from filelock import SoftFileLease  # late, since most readers of a study never claim

        self.path = path
        self._nameless: tuple[tuple[int, ...], float] | None = None
        # Not bound to a thread: whoever finds the claim lost may be another thread than its taker.
        self._lease = SoftFileLease(path, lease_duration=LEASE_S, thread_local=False)

    def take(self, wait: bool = False) -> bool:
        """Take the lock if it is free; `wait` until its owner drops it or is gone."""
        from filelock import Timeout

        if self._lease.is_locked:
            return not self.lost
        while True:
            try:
                # Two looks: where a file system cannot swap names, the first one only clears away
                # the claim of a process that is gone.
                self._lease.acquire(timeout=1 if wait else 1.5 * POLL_S, poll_interval=POLL_S)
                return True
            except Timeout:
                self._remove_nameless()
            if not wait:
                return False

    def _remove_nameless(self) -> None:
        """Remove a claim whose process was killed before it wrote down who it is.

        filelock never does. A process that lives writes it within moments; here it is given
        NAMELESS_S, by this process's own clock, in which the file must not change at all.
        """
        try:
            found = self.path.stat()
            named = bool(found.st_size or self.path.read_bytes())
        except FileNotFoundError:
            named = True
        if named:
            self._nameless = None
            return
        key = found.st_ino, found.st_mtime_ns, found.st_ctime_ns
        if self._nameless is None or self._nameless[0] != key:
            self._nameless = key, time.monotonic()
        elif time.monotonic() - self._nameless[1] > NAMELESS_S:
            aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}.tmp")
            with contextlib.suppress(OSError):  # another process was faster
                os.rename(self.path, aside)
                if aside.stat().st_size:  # a late writer, or the next holder: put it back
                    os.link(aside, self.path)
                aside.unlink()

    def clear(self) -> None:
        """Take and drop it, where it is of a process that is gone."""
        while not self.take() and self._nameless:
            time.sleep(POLL_S)
        self.drop()

    def drop(self) -> None:
        """Let others have it."""
        self._lease.release(force=True)

    @property
    def lost(self) -> bool:
        """Return True when another process took the lock over, as it was not renewed in time."""
        if self._lease.compromise is not None:
            return True
        for _ in range(2):  # a reader's moment of bad luck is no loss
            owner = self._lease.owner
            if owner and owner.token == self._lease.token:
                return False
            time.sleep(POLL_S)
        return True

    def __bool__(self) -> bool:
        return self._lease.is_locked and not self.lost


@dataclass(frozen=True)
class LockOwner:
    """The process that owns a lock."""

    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


def this_process() -> tuple[str, str, int]:
    """Return what names this process among those of all machines and containers."""
    return socket.gethostname(), _process_namespace(), os.getpid()


def is_gone(process: tuple[str, str, int]) -> bool:
    """Return whether a process, see `this_process`, is known to have ended; it may be elsewhere."""
    here = process[:2] == this_process()[:2]
    return here and not _alive(process[2])


def lock_owner(path: Path) -> LockOwner | None:
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
    return LockOwner(host, owner.pid) if alive else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's process
        return True
    with contextlib.suppress(OSError):  # what has ended, and nobody has heard of its end yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _process_namespace() -> str:
    try:
        return f"{os.stat('/proc/self/ns/pid').st_ino:x}"
    except OSError:
        return ""
