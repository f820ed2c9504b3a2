"""Calls of gnexp as processes of their own, and all that they start, for tests that end them."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")


def marked(mark: str) -> dict[int, str]:
    """Return the processes whose environment holds a mark, as those of a call do."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


@contextlib.contextmanager
def called(*command: str, **streams: int) -> Iterator[tuple[subprocess.Popen, str]]:
    """Start a command in a session of its own; yields its process and the mark of all it starts."""
    mark = f"mark-{uuid.uuid4().hex}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GNEXP_MARK": mark}
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **streams}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, start_new_session=True, text=True, **streams
    )
    try:
        yield process, mark
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until(condition: Callable[[], object], seconds: float = 240.0) -> None:
    """Fail unless a condition comes true in time."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.01)


def others(process: subprocess.Popen, mark: str) -> list[int]:
    """Return the processes that a call has started."""
    return [pid for pid in marked(mark) if pid != process.pid]
