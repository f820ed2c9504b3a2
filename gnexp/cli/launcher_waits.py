"""Wait for the jobs of a launcher: tell of runs that ended, and let one lost job end no other.

Two plug-ins are patched while they launch. Ray's and submitit's raise for the first job that is
lost and wait for no other; submitit's leaves its jobs behind when this process is stopped.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus

from gnexp.config.schema import UsageError

if TYPE_CHECKING:
    from gnexp.runner.prepared_run import PreparedRun


class RunMonitor:
    """Prints a line for every run that has ended in its folder, whoever trained it."""

    def __init__(self, todo: "dict[PreparedRun, list[int]]") -> None:
        """todo: the missing seeds by run."""
        from gnexp.cli.commands.train import size
        from gnexp.cli.progress import Progress

        self.left = list(todo)
        self.progress = Progress({run.name: size(run, seeds) for run, seeds in todo.items()})
        self.print_line = self.progress.print_line

    def __enter__(self) -> "RunMonitor":
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is None:
            self.look()
        self.progress.__exit__()

    def look(self) -> None:
        """Tell of the runs that have ended since the last look."""
        from gnexp.cli.console import closing_line
        from gnexp.runner.prepared_run import seed_progress

        for run in list(self.left):
            with contextlib.suppress(ValueError, OSError):  # corrupt, or gone: told at the end
                now = seed_progress(run)
                if not now.todo:
                    self.left.remove(run)
                    why = next(iter(now.failed.values()), None)
                    line = f"{run.name}: {why}" if why else closing_line(run)
                    self.progress.run_done(run.name, line, bool(why))


def patient(
    launcher: Any, name: str, monitor: RunMonitor
) -> contextlib.AbstractContextManager[list[Any]]:
    """Let a launcher wait for all jobs when one is lost, and end them when this process stops.

    Yields a list that is empty as long as it is known that no job has started.
    """
    plugin, kind = type(launcher).__module__.split(".")[1], type(launcher).__name__
    if (plugin, kind) == ("hydra_ray_launcher", "RayLauncher"):
        return _on_ray(launcher, name, monitor)
    if plugin == "hydra_submitit_launcher":
        return _on_submitit(monitor)
    return contextlib.nullcontext([launcher])


def _waited_for(monitor: RunMonitor, result: Callable[[], Any], log: str = "") -> Any:
    """Return what a job returns, or what stands for it when its process is lost."""
    try:
        return result()
    except Exception as error:
        return JobReturn(status=JobStatus.FAILED, _return_value=f"{first_line(error)}{log}")
    finally:
        monitor.look()


@contextlib.contextmanager
def _on_ray(launcher: Any, name: str, monitor: RunMonitor) -> Iterator[list[Any]]:
    """Connect to the cluster; disconnecting, at the latest, ends what still runs for this call."""
    import ray
    from hydra_plugins.hydra_ray_launcher import _core
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    connected = ray.is_initialized()
    try:
        _knock(str(launcher.ray_cfg.init.get("address") or ""))
        start_ray(launcher.ray_cfg.init)
    except Exception as error:
        raise UsageError(
            f"{no_start(name, error)}; start a cluster with 'ray start --head', or name one with"
            " hydra.launcher.ray.init.address=HOST:6379"
        ) from error
    # All that the plug-in uses of it there.
    _core.ray = SimpleNamespace(get=lambda job: _waited_for(monitor, lambda: ray.get(job)))
    try:
        yield [ray]
    finally:
        _core.ray = ray
        if not connected:
            ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError when no answer from HOST:PORT; Ray itself would try for minutes.

    "auto" is where Ray looks first: RAY_ADDRESS, and what `ray start` has noted on this machine.
    """
    if address == "auto":
        noted = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")
        with contextlib.suppress(OSError):
            address = os.environ.get("RAY_ADDRESS") or noted.read_text().strip()
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise OSError(f"no answer from {address} ({error.strerror or error})") from error


@contextlib.contextmanager
def _on_submitit(monitor: RunMonitor) -> Iterator[list[Any]]:
    """Remember the jobs that are submitted, to wait for each and to cancel those that are left."""
    from submitit import AutoExecutor

    started: list[Any] = []
    submit = AutoExecutor.map_array

    def map_array(self: Any, *words: Any) -> list[SimpleNamespace]:
        # What holds a local job would end in a traceback of its own at Ctrl-C.
        with _mute_children() if self.cluster == "local" else contextlib.nullcontext():
            jobs = submit(self, *words)
        started.extend(jobs)
        return [SimpleNamespace(results=lambda job=job: [_result(job)]) for job in jobs]

    def _result(job: Any) -> Any:
        return _waited_for(monitor, lambda: job.results()[0], f" (log: {job.paths.stderr})")

    AutoExecutor.map_array = map_array
    try:
        yield started
    except BaseException:
        for job in started:
            with contextlib.suppress(Exception):
                job.cancel()
        for job in started:  # processes of this machine end within a second or two
            with contextlib.suppress(Exception):
                job._process.wait(timeout=10)
        raise
    finally:
        AutoExecutor.map_array = submit


@contextlib.contextmanager
def _mute_children() -> Iterator[None]:
    """Let processes that are started meanwhile write nothing to this one's standard error."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def no_start(name: str, error: Exception) -> str:
    """Return the sentence for a launcher that cannot start."""
    return f"hydra/launcher={name} cannot start: {first_line(error)}"


def first_line(error: Any) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
