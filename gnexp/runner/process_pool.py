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


def run_here(
    tasks: Sequence[Any], work: Work, emit: Emit, stopped: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, Any]]:
    """Do the tasks one after the other in this process, yielding (index, result) after each.

    stopped: once it returns true no further task is begun.
    """
    for index, task in enumerate(tasks):
        if stopped():
            return
        yield index, work(task, emit)


def run_in_processes(
    tasks: Sequence[Any],
    work: Work,
    emit: Emit,
    workers: int,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[int, Any]]:
    """Do the tasks on `workers` single-threaded processes, yielding (index, result) as they end.

    stopped: once it returns true no further task is begun; those that were, end. The result of a
    task whose process died is a WorkerDied; a fresh process takes its place.
    However the loop is left, by the end, an error or Ctrl-C, no process stays behind.
    """
    context = multiprocessing.get_context("spawn")  # a forked CUDA or OpenMP state is unusable
    waiting = list(range(len(tasks)))[::-1]
    pool: dict[Connection, tuple[Any, int]] = {}
    try:
        while waiting or pool:
            if stopped():
                waiting.clear()
            while waiting and len(pool) < workers:
                process, connection = _start(context, work)
                pool[connection] = process, waiting.pop()
                _send(connection, tasks[pool[connection][1]])
            for connection in wait(list(pool)):
                process, index = pool[connection]
                try:
                    kind, payload = connection.recv()
                except (EOFError, OSError):  # the process is gone, maybe in mid-word
                    process.join()
                    del pool[connection]
                    yield index, WorkerDied(process.exitcode)
                    continue
                if kind == "event":
                    emit(payload)
                    continue
                if waiting:
                    pool[connection] = process, waiting.pop()
                    _send(connection, tasks[pool[connection][1]])
                else:
                    _send(connection, None)
                    process.join()
                    del pool[connection]
                yield index, payload
    finally:
        for process, _ in pool.values():
            process.kill()
            process.join()


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


def _send(connection: Connection, task: Any) -> None:
    """Send a task; a process that is gone already is noticed when its answer is read."""
    with contextlib.suppress(OSError):
        connection.send(task)


def _start(context: Any, work: Work) -> tuple[Any, Connection]:
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(EndsWithThis(), theirs, work), daemon=True)
    with ignore_sigint():
        process.start()
    theirs.close()  # or the end of the process would not close the pipe
    return process, ours


def _serve(_: None, connection: Connection, work: Work) -> None:
    """Answer tasks until None comes."""
    import torch

    # Two default OpenMP threads beside another busy process are many times slower than one.
    torch.set_num_threads(1)

    def send(kind: str, payload: Any) -> None:
        try:
            connection.send((kind, payload))
        except OSError:  # the parent is gone; no error of the work, which must not record it as one
            raise SystemExit(1) from None

    with contextlib.suppress(EOFError):  # of a parent that is gone
        while (task := connection.recv()) is not None:
            send("done", work(task, lambda event: send("event", event)))
