"""Fresh processes that measure at the same time, in step: no clock starts before all are warm."""

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from gnexp.runner.benchmark.timer import Peers
from gnexp.runner.process_pool import EndsWithThis, WorkerDied, ignore_sigint

Work = Callable[[Any, Peers], Any]


class MeasurementFailed(RuntimeError):
    """A measuring process ended without a result."""


def measure_together(work: Work, tasks: Sequence[Any]) -> list[Any]:
    """Return work(task, neighbours) of every task, each done by a new process of its own.

    However the call ends, no process stays behind. Raises MeasurementFailed when one fails.
    """
    context = multiprocessing.get_context("spawn")  # as the workers of `gnexp train`
    crew: list[tuple[Any, Connection]] = []
    try:
        for task in tasks:
            ours, theirs = context.Pipe()
            # Not a daemon: a loader must be able to have workers of its own.
            process = context.Process(target=_serve, args=(EndsWithThis(), theirs, work, task))
            with ignore_sigint():
                process.start()
            theirs.close()
            crew.append((process, ours))
        while True:
            answers = [_receive(*member) for member in crew]
            if answers[0][0] == "done":
                for process, _ in crew:
                    process.join()
                return [result for _, result in answers]
            for _, connection in crew:
                connection.send("go on")
    finally:
        for process, connection in crew:
            process.kill()
            process.join()
            connection.close()


def _receive(process: Any, connection: Connection) -> tuple[str, Any]:
    try:
        kind, payload = connection.recv()
    except (EOFError, OSError):
        process.join()
        raise MeasurementFailed(WorkerDied(process.exitcode).why) from None
    if kind == "failed":
        raise MeasurementFailed(payload)
    return kind, payload


class _Processes(Peers):
    """Neighbours in other processes, heard of through the one that started all."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._told = False

    def wait(self) -> None:
        self._connection.send(("warm", None))
        self._connection.recv()

    def busy(self) -> bool:
        if not self._told:
            self._connection.send(("timed", None))
            self._told = True
        if not self._connection.poll():
            return True
        self._connection.recv()
        self._told = False
        return False


def _serve(_: None, connection: Connection, work: Work, task: Any) -> None:
    """Do the task and send its result."""
    # As in a user's own program: a loader would start its workers by "spawn", as we were started.
    multiprocessing.set_start_method(None, force=True)
    try:
        connection.send(("done", work(task, _Processes(connection))))
    except (EOFError, BrokenPipeError):  # the parent is gone
        pass
    except Exception:
        connection.send(("failed", traceback.format_exc()))
