"""Wait for the jobs of a launcher: tell of runs that ended, and let one lost job end no other.

Two plug-ins are patched while they launch: Ray's and submitit's raise for the first job that is
lost and wait for no other, and submitit's leaves its jobs behind when this process is stopped.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra.core.utils import JobReturn, JobStatus

from gnexp.config.schema import UsageError

# Returns what a job returns, or what stands for it when its process is lost.
WaitFor = Callable[..., Any]


def patient(
    launcher: Any, name: str, job_ended: Callable[[], None]
) -> contextlib.AbstractContextManager[list[Any]]:
    """Let a launcher wait for all jobs when one is lost, and end them when this process stops.

    job_ended is called after each. Yields a list, empty as long as surely no job has started.
    """

    def wait_for(result: Callable[[], Any], log: str = "") -> Any:
        try:
            return result()
        except Exception as error:
            return JobReturn(status=JobStatus.FAILED, _return_value=f"{first_line(error)}{log}")
        finally:
            job_ended()

    plugin, kind = type(launcher).__module__.split(".")[1], type(launcher).__name__
    if (plugin, kind) == ("hydra_ray_launcher", "RayLauncher"):
        return _on_ray(launcher, name, wait_for)
    if plugin == "hydra_submitit_launcher":
        return _on_submitit(wait_for)
    return contextlib.nullcontext([launcher])


@contextlib.contextmanager
def _on_ray(launcher: Any, name: str, wait_for: WaitFor) -> Iterator[list[Any]]:
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
    _core.ray = SimpleNamespace(get=lambda job: wait_for(lambda: ray.get(job)))
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
def _on_submitit(wait_for: WaitFor) -> Iterator[list[Any]]:
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
        return wait_for(lambda: job.results()[0], f" (log: {job.paths.stderr})")

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
