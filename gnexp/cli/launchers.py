"""Jobs on other machines: a grid whose missing runs a Hydra launcher trains, on Ray, Slurm, joblib.

The head composes and checks everything, hands the launcher the jobs that have something to train,
and reads from the run folders, which all machines share, how far they are.
"""

import contextlib
import importlib.util
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from gnexp.config.resolve import seed_list
from gnexp.config.schema import TrainConfig, UsageError, is_tuned, tested_on
from gnexp.config.unknown import unknown
from gnexp.runner.process_pool import end_unless
from gnexp.store.locks import is_gone, this_process

LOOK_S = 2.0  # between two looks at the run folders
# Hydra's name of a launcher: the packages it needs, what people call them, how to get them.
_RAY = (("ray", "hydra_plugins.hydra_ray_launcher"), "Ray", "gnexp[ray]")
_SLURM = (("submitit", "hydra_plugins.hydra_submitit_launcher"), "submitit", "gnexp[slurm]")
_JOBLIB = (("joblib", "hydra_plugins.hydra_joblib_launcher"), "joblib", "hydra-joblib-launcher")
NEEDS = {
    **dict.fromkeys(("ray_cluster", "ray", "ray_aws"), _RAY),
    **dict.fromkeys(("submitit_slurm", "submitit_local"), _SLURM),
    "joblib": _JOBLIB,
}


@dataclass
class HydraJob:
    """One job of a grid: what Hydra composes it from, and the configs that came of it."""

    overrides: list[str]
    configs: list[Any]


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that choose and set a launcher, and all others."""
    ours = [a for a in arguments if re.match(r"\+{0,2}hydra[/.]launcher([/.@=:]|$)", a)]
    return ours, [a for a in arguments if a not in ours]


def chosen(ours: Sequence[str]) -> str:
    """Return the launcher that is typed, "basic" for Hydra's own.

    Raises UsageError for options without a launcher, several launchers, and one whose package is
    missing.
    """
    typed = [a for a in ours if a.lstrip("+").startswith("hydra/launcher=")]
    if not typed:
        key = ours[0].partition("=")[0]
        raise UsageError(f"{key}= needs a launcher beside it, such as hydra/launcher=ray_cluster")
    name = typed[0].partition("=")[2].strip("'\"")
    if re.search(r"[,\[(]", name):
        raise UsageError(
            f"{typed[0]}: a grid takes one launcher, such as hydra/launcher=ray_cluster"
        )
    if name in NEEDS:
        modules, product, package = NEEDS[name]
        if not all(map(_is_installed, modules)):
            raise UsageError(f"hydra/launcher={name} needs {product}: pip install '{package}'")
    return name


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def option_sentence(name: str, error: Exception) -> str:
    """Turn Hydra's error about a launcher or one of its options into a sentence."""
    text = str(error)
    if "Could not find 'hydra/launcher/" in text:
        return unknown(f"hydra/launcher={name} is unknown", name, sorted(NEEDS))
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1].lstrip("+")
        return f"{key} is not an option of hydra/launcher={name}; +{key}=VALUE adds one"
    return f"hydra/launcher={name}: {_first_line(error)}"


def launch_options(config: TrainConfig, arguments: Sequence[str]) -> list[str]:
    """Return the overrides that each job gets beside its own, and the launcher its log folder."""
    typed = {a.partition("=")[0].lstrip("+") for a in arguments}
    logs = Path(config.out).absolute() / config.study / ".jobs"
    options = {"hydra.sweep.dir": str(logs), "hydra.sweep.subdir": ".", "hydra.job.name": "gnexp"}
    return [f"{key}={quoted(value)}" for key, value in options.items() if key not in typed]


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar reads it, whatever signs it holds."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"


@dataclass(frozen=True)
class Job:
    """The job of a launcher's process for a composed config; `folder`: where gnexp was called.

    It ends with the head, the process of the call, where that is of the same machine.
    Returns None, or in a sentence why nothing could be trained: an exception of one machine is not
    always readable on another. How the runs are is in their folders.
    """

    folder: str
    command: str
    head: tuple[str, str, int] = field(default_factory=this_process)

    def __call__(self, config: DictConfig) -> str | None:
        import torch

        from gnexp.cli.commands.train import train_job
        from gnexp.config.resolve import expand

        end_unless(lambda: not is_gone(self.head))
        if os.path.isdir(self.folder):  # a norm of the user's own is imported from there
            os.chdir(self.folder)
        # Several OpenMP threads beside other busy jobs are many times slower than one.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or 1))
        with contextlib.ExitStack() as quiet:
            if sys.stderr.isatty():  # the head's, which draws a bar there
                nowhere = quiet.enter_context(open(os.devnull, "w"))
                quiet.enter_context(contextlib.redirect_stderr(nowhere))
            try:
                train_job(expand(OmegaConf.to_object(config)), self.command)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return None


class Launching:
    """Starts jobs through the launcher that a composed config names; see `__call__`."""

    def __init__(
        self,
        name: str,
        jobs: Sequence[HydraJob],
        loader: ConfigLoader,
        config: DictConfig,
        job: Job,
    ) -> None:
        """name: as typed. config: what Hydra composed with the launcher, for no particular job.

        Raises UsageError when the launcher does not take its options.
        """
        self.name, self.jobs, self.folder = name, jobs, job.folder
        self.logs = Path(str(config.hydra.sweep.dir))
        self.at_once = OmegaConf.select(config, "hydra.sweeper.max_batch_size")
        context = HydraContext(config_loader=loader, callbacks=Callbacks(config))
        try:
            self.launcher = Plugins.instance().instantiate_launcher(context, job, config)
        except Exception as error:  # whatever a plugin's __init__ raises
            raise UsageError(f"hydra/launcher={name}: {_first_line(error)}") from error

    def __call__(self, numbers: list[int], todo: dict[Any, list[int]]) -> None:
        """Train what is to do and return when all jobs are done or given up.

        numbers: of the configs that have something to train, counted over all jobs; todo: the
        missing seeds by run. Raises UsageError when the launcher cannot start.
        """
        jobs = [self._overrides(self.jobs[index]) for index in self._needed(todo)]
        most = self.at_once or len(jobs)
        try:
            with _RunMonitor(todo) as watch, _patient(self.launcher, self.name) as started:
                many = f"{len(jobs)} job{'s' * (len(jobs) > 1)}"
                watch.print_line(f"{many} through hydra/launcher={self.name}")
                for first in range(0, len(jobs), most):
                    self._launch(jobs[first : first + most], first, started, watch.print_line)
        finally:
            _remove_empty(self.logs)

    def _needed(self, todo: dict[Any, list[int]]) -> list[int]:
        """Return the jobs that train what is missing, each seed by the first that is to have it."""
        owners = [(index, c) for index, job in enumerate(self.jobs) for c in job.configs]
        needed = set()
        for run, seeds in todo.items():
            left = set(seeds)
            for number in run.jobs:
                index, config = owners[number]
                # Of a tuned config any job that has the run trains all of it, the trials first.
                its = left if is_tuned(config) else left & set(seed_list(config.seeds))
                if its:
                    needed.add(index)
                    left = left - its
        return sorted(needed)

    def _overrides(self, job: HydraJob) -> list[str]:
        """Return what a job is composed from on another machine, in a folder of its own."""
        config = job.configs[0]
        more = {"out": os.path.join(self.folder, config.out)}
        if config.data.root:
            root = os.path.expanduser(config.data.root)
            more["data.root"] = os.path.join(self.folder, root)
        if config.init_from:
            more["init_from"] = os.path.join(self.folder, os.path.expanduser(config.init_from))
        sure = [f"{key}={quoted(value)}" for key, value in more.items()]
        # A job is one process, unless more are typed.
        return [*job.overrides, *sure, *(["workers=1"] if config.workers is None else [])]

    def _launch(
        self,
        jobs: list[list[str]],
        first: int,
        started: list[Any],
        print_line: Callable[[str], None],
    ) -> None:
        """Launch some jobs and tell of those that trained nothing; their runs lack a result."""
        try:
            returned = self.launcher.launch(jobs, initial_job_idx=first)
        except Exception as error:
            if not started:
                raise UsageError(_no_start(self.name, error)) from error
            # A launcher that gives all up when one job is lost.
            print_line(f"hydra/launcher={self.name} gave up: {_first_line(error)}")
            return
        for number, answer in enumerate(returned, first):
            why = answer._return_value
            if answer.status == JobStatus.FAILED or why:
                print_line(f"job {number + 1} ended early: {_first_line(why)}")


@dataclass
class _LostJob:
    """Stands for what a job did not return, since its process died."""

    _return_value: str
    status: JobStatus = JobStatus.FAILED


def _patient(launcher: Any, name: str) -> contextlib.AbstractContextManager[list[Any]]:
    """Let a launcher wait for all jobs when one is lost, and end them when this process stops.

    Yields a list that is empty as long as it is known that no job has started.
    """
    plugin, kind = type(launcher).__module__.split(".")[1], type(launcher).__name__
    if (plugin, kind) == ("hydra_ray_launcher", "RayLauncher"):
        return _on_ray(launcher, name)
    if plugin == "hydra_submitit_launcher":
        return _on_submitit()
    return contextlib.nullcontext([launcher])


@contextlib.contextmanager
def _on_ray(launcher: Any, name: str) -> Iterator[list[Any]]:
    """Connect to the cluster; disconnecting, at the latest, ends what still runs for this call."""
    import ray
    from hydra_plugins.hydra_ray_launcher import _core
    from hydra_plugins.hydra_ray_launcher._launcher_util import start_ray

    def get(reference: Any) -> Any:
        try:
            return ray.get(reference)
        except Exception as error:
            return _LostJob(_first_line(error))

    connected = ray.is_initialized()
    try:
        _knock(str(launcher.ray_cfg.init.get("address") or ""))
        start_ray(launcher.ray_cfg.init)
    except Exception as error:
        raise UsageError(
            f"{_no_start(name, error)}; start a cluster with 'ray start --head', or name one with"
            " hydra.launcher.ray.init.address=HOST:6379"
        ) from error
    _core.ray = SimpleNamespace(get=get)  # all that the plugin uses of it there
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
def _on_submitit() -> Iterator[list[Any]]:
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


def _no_start(name: str, error: Exception) -> str:
    return f"hydra/launcher={name} cannot start: {_first_line(error)}"


def _result(job: Any) -> Any:
    try:
        return job.results()[0]
    except Exception as error:
        return _LostJob(f"{_first_line(error)} (log: {job.paths.stderr})")


def _first_line(error: Any) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _remove_empty(folder: Path) -> None:
    """Remove a folder of logs, and those in it, as far as they hold nothing."""
    for path in (*sorted(folder.rglob("*"), reverse=True), folder):
        with contextlib.suppress(OSError):  # a file, or a folder that holds one
            path.rmdir()


class _RunMonitor:
    """Tells of runs as they end in their folders, whoever trains them, while a launcher waits."""

    def __init__(self, todo: dict[Any, list[int]]) -> None:
        """todo: the missing seeds by run."""
        from gnexp.cli.commands.train import size
        from gnexp.cli.progress import Progress

        self.left = dict(todo)
        self.progress = Progress({run.name: size(run, seeds) for run, seeds in todo.items()})
        self.changed: dict[Any, int] = {}  # when, by run, as of the last look
        self.shown = {run: set(self._epochs(run)) for run in todo}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> "_RunMonitor":
        self.progress.__enter__()
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.over.set()
        self.thread.join()
        if exc[0] is None:
            self.changed.clear()
            self._look()
        self.progress.__exit__()

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        self.progress.print_line(line)

    def _look_on(self) -> None:
        while not self.over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        for run in list(self.left):
            try:
                changed = run.folder.stat().st_mtime_ns  # every file comes into it by a rename
                if self.changed.get(run) != changed:
                    self.changed[run] = changed
                    self._tell(run)
            except (ValueError, OSError):  # corrupt, or gone: that is told when all is over
                continue

    def _tell(self, run: Any) -> None:
        from gnexp.cli.console import closing_line
        from gnexp.runner.prepared_run import seed_progress

        for key, row in self._epochs(run).items():
            if key not in self.shown[run]:
                self.shown[run].add(key)
                on = tested_on(run.config)
                self.progress.event({"kind": "epoch", "run": run.name, "on": on, **row})
        now = seed_progress(run)
        if not now.todo:
            del self.left[run]
            why = next(iter(now.failed.values()), None)
            line = f"{run.name}: {why}" if why else closing_line(run)
            self.progress.run_done(run.name, line, bool(why))

    def _epochs(self, run: Any) -> dict[tuple[int, int], dict[str, Any]]:
        """Return the rows of a run's epochs by (seed, epoch), {} as long as there are none."""
        with contextlib.suppress(ValueError, OSError):
            rows = run.stored.rows("metrics.csv")
            return {(r["seed"], r["epoch"]): r for r in rows if r["seed"] in run.config.seeds}
        return {}
