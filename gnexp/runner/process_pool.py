"""Tasks over processes: each worker has its own pipe, so that one that dies harms no other."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any

from gnexp.config.torchrun import ending

LOOK_S = 0.5  # how often a process looks whether the one that it ends with is there
Emit = Callable[[dict[str, Any]], None]
Work = Callable[[Any, Emit], Any]
Stopped = Callable[[], bool]


def run_tasks(
    tasks: Sequence[Any], work: Work, emit: Emit, workers: int, stopped: Stopped = lambda: False
) -> Iterator[tuple[int, Any]]:
    """Do the tasks, in this process or on several workers, yielding (index, result) as they end.

    Workers are single-threaded processes. stopped: once it returns true no further task is begun.
    The result of a task whose process died is a WorkerDied; a fresh process takes its place.
    However the loop is left, by the end, an error or Ctrl-C, no process stays behind.
    """
    if workers <= 1:
        yield from ((i, work(task, emit)) for i, task in enumerate(tasks) if not stopped())
        return
    waiting = list(range(len(tasks)))[::-1]
    idle: list[_Worker] = []
    busy: dict[_Worker, int] = {}
    try:
        while True:
            while waiting and len(busy) < workers and not stopped():
                worker = idle.pop() if idle else _Worker(work)
                busy[worker] = waiting.pop()
                worker.send(tasks[busy[worker]])
            while idle and not waiting:
                idle.pop().end()
            if not busy:
                return
            ready = wait([worker.connection for worker in busy])
            for worker in [worker for worker in busy if worker.connection in ready]:
                kind, payload = worker.receive()
                if kind == "event":
                    emit(payload)
                    continue
                idle += [worker] if kind == "done" else []
                yield busy.pop(worker), payload
    finally:
        for worker in busy:
            worker.process.kill()
        for worker in [*busy, *idle]:
            worker.end()


class _Worker:
    """A process that answers one task after another."""

    def __init__(self, work: Work) -> None:
        context = multiprocessing.get_context("spawn")  # forked CUDA or OpenMP state is unusable
        self.connection, theirs = context.Pipe()
        arguments = EndsWithThis(), theirs, work
        self.process = context.Process(target=_serve, args=arguments, daemon=True)
        with ignore_sigint():
            self.process.start()
        theirs.close()  # or the end of the process would not close the pipe

    def send(self, task: Any) -> None:
        """Send a task; a process that is gone already is noticed when its answer is read."""
        with contextlib.suppress(OSError):
            self.connection.send(task)

    def receive(self) -> tuple[str, Any]:
        """Return ("event", event), ("done", result), or ("died", WorkerDied)."""
        try:
            return self.connection.recv()
        except (EOFError, OSError):  # the process is gone, maybe in mid-word
            self.process.join()
            return "died", WorkerDied(self.process.exitcode)

    def end(self) -> None:
        """Let the process end by itself, once it is idle."""
        self.connection.close()
        self.process.join()


class WorkerDied:
    """The process of a task ended without an answer."""

    def __init__(self, exitcode: int | None) -> None:
        self.why = ending(exitcode)


@contextlib.contextmanager
def ignore_sigint() -> Iterator[None]:
    """Start processes that never see Ctrl-C, not even while they import: it is the parent's."""
    resource_tracker.ensure_running()  # which the first start would do, and unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class EndsWithThis:
    """Ends the process that unpickles it with the one that made it, whatever ends that.

    As the first argument of a process, it is unpickled before what takes seconds to import.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return end_with, (os.getpid(),)


def end_with(parent: int) -> None:
    """End this process with its parent, or the thread of it that started this one.

    On Linux even while it computes, or waits in C code.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it is gone already
        os._exit(1)
    if sys.platform != "linux":
        end_unless(lambda: os.getppid() == parent)


def end_unless(wanted: Callable[[], bool]) -> None:
    """End this process as soon as it is not `wanted` any more, which a thread of it watches."""

    def watch() -> None:
        while wanted():
            time.sleep(LOOK_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(_: None, connection: Connection, work: Work) -> None:
    import torch

    # Two default OpenMP threads beside another busy process are many times slower than one.
    torch.set_num_threads(1)

    def send(kind: str, payload: Any) -> None:
        try:
            connection.send((kind, payload))
        except OSError:  # the parent is gone; no error of the work, which must not record it as one
            raise SystemExit(1) from None

    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # of a parent that is gone, too
            return
        send("done", work(task, lambda event: send("event", event)))
