"""Jobs on other machines: a grid whose missing runs a Hydra launcher trains, on Ray, Slurm, joblib.

The head composes and checks everything, hands the launcher the jobs that have something to train,
and reads from the run folders, which all machines share, how they ended.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra._internal.callbacks import Callbacks  # a launcher runs its jobs with these
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.types import HydraContext
from omegaconf import DictConfig

from gnexp.cli.argv import flags_of, quoted
from gnexp.cli.compose import ERRORS, composer
from gnexp.cli.launcher_waits import first_line, no_start, patient
from gnexp.config.resolve import seed_list
from gnexp.config.schema import TrainConfig, UsageError, is_tuned
from gnexp.config.unknown import unknown
from gnexp.runner.process_pool import end_unless
from gnexp.store.locks import is_gone, this_process

if TYPE_CHECKING:
    from gnexp.cli.progress import Progress
    from gnexp.runner.prepared_run import PreparedRun

# Hydra's name of a launcher: the packages it needs, what people call them, how to get them.
_RAY = (("ray", "hydra_plugins.hydra_ray_launcher"), "Ray", "gnexp[ray]")
_SLURM = (("submitit", "hydra_plugins.hydra_submitit_launcher"), "submitit", "gnexp[slurm]")
_JOBLIB = (("joblib", "hydra_plugins.hydra_joblib_launcher"), "joblib", "hydra-joblib-launcher")
NEEDS = {
    **dict.fromkeys(("ray_cluster", "ray", "ray_aws"), _RAY),
    **dict.fromkeys(("submitit_slurm", "submitit_local"), _SLURM),
    "joblib": _JOBLIB,
}
# The config of a launcher's process: the number of its job. The jobs' own are composed already.
ConfigStore.instance().store("launched", {"job": -1})
QUIET = ("hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.output_subdir=null")


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments that choose and set a launcher, and all others."""
    ours = [a for a in arguments if re.match(r"\+{0,2}hydra[/.]launcher([/.@=:]|$)", a)]
    return ours, [a for a in arguments if a not in ours]


def chosen(ours: Sequence[str]) -> str:
    """Return the launcher that is typed, "basic" for Hydra's own; raises UsageError."""
    typed = [a for a in ours if a.lstrip("+").startswith("hydra/launcher=")]
    if not ours:
        return "basic"
    if not typed:
        key = ours[0].partition("=")[0]
        raise UsageError(f"{key}= needs a launcher beside it, such as hydra/launcher=ray_cluster")
    name = typed[0].partition("=")[2].strip("'\"")
    if re.search(r"[,\[(]", name):
        raise UsageError(
            f"{typed[0]}: a grid takes one launcher, such as hydra/launcher=ray_cluster"
        )
    modules, product, package = NEEDS.get(name, ((), "", ""))
    if not all(map(is_installed, modules)):
        raise UsageError(f"hydra/launcher={name} needs {product}: pip install '{package}'")
    return name


def is_installed(module: str) -> bool:
    """Return whether a module can be imported, without importing it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is missing
        return False


def train(
    name: str, jobs: list[list[TrainConfig]], ours: list[str], others: list[str], command: str
) -> int:
    """Train jobs, checked as if they ran here, through a launcher; return the exit code.

    ours, others: the arguments about the launcher, and all others.
    """
    from gnexp.cli.commands import train as train_command

    first, here = jobs[0][0], Path.cwd()
    flags = flags_of(others)
    hydra_keys = [a for a in flags.overrides if a.lstrip("+").startswith(("hydra.", "hydra/"))]
    logs = here / first.out / first.study / ".jobs"
    options = {"hydra.sweep.dir": str(logs), "hydra.sweep.subdir": ".", "hydra.job.name": "gnexp"}
    typed = {a.lstrip("+").partition("=")[0] for a in hydra_keys}
    usual = [f"{key}={quoted(value)}" for key, value in options.items() if key not in typed]
    flags.overrides = [*QUIET, *usual, *hydra_keys, *ours]
    task = Job([[from_anywhere(c, here) for c in job] for job in jobs], str(here), command)
    with composer("train", flags):
        try:
            config = hydra.compose("launched", flags.overrides, return_hydra_config=True)
        except ERRORS as error:
            raise UsageError(_option_sentence(name, error)) from error
        context = HydraContext(GlobalHydra.instance().config_loader(), Callbacks(config))
        try:
            launcher = Plugins.instance().instantiate_launcher(context, task, config)
        except Exception as error:  # whatever a plug-in's __init__ raises
            raise UsageError(f"hydra/launcher={name}: {first_line(error)}") from error
        at_once = config.hydra.sweeper.max_batch_size
        launch = functools.partial(_launch, name, launcher, jobs, at_once)
        try:
            configs = [config for job in jobs for config in job]
            return train_command.train(configs, command, grid=True, launch=launch)
        finally:
            with contextlib.suppress(OSError):  # it holds logs, or was never made
                logs.rmdir()


def _option_sentence(name: str, error: Exception) -> str:
    text = str(error)
    if "Could not find 'hydra/launcher/" in text:
        return unknown(f"hydra/launcher={name} is unknown", name, sorted(NEEDS))
    if found := re.search(r"Could not override '([^']+)'", text):
        key = found[1].lstrip("+")
        return f"{key} is not an option of hydra/launcher={name}; +{key}=VALUE adds one"
    return f"hydra/launcher={name}: {first_line(error)}"


def from_anywhere(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return a config whose paths do not depend on the current directory; one process trains it."""

    def absolute(path: str | None) -> str | None:
        return path and str(folder / os.path.expanduser(path))

    return dataclasses.replace(
        config,
        out=absolute(config.out),
        data=dataclasses.replace(config.data, root=absolute(config.data.root)),
        init_from=absolute(config.init_from),
        workers=config.workers or 1,  # more only if typed
    )


@dataclass(frozen=True)
class Job:
    """The work of a launcher's process: the job of this number; `folder`: where gnexp was called.

    It ends with the head, the process of the call, where that is of the same machine.
    Returns None, or in a sentence why nothing could be trained: an exception of one machine is not
    always readable on another. How the runs are is in their folders.
    """

    jobs: list[list[TrainConfig]]
    folder: str
    command: str
    head: tuple[str, str, int] = field(default_factory=this_process)

    def __call__(self, config: DictConfig) -> str | None:
        import torch

        from gnexp.cli.commands.train import train_job

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
                train_job(self.jobs[config.job], self.command)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
        return None


def _launch(
    name: str,
    launcher: Any,
    jobs: list[list[TrainConfig]],
    at_once: int | None,
    todo: "dict[PreparedRun, list[int]]",
) -> None:
    """Train what is to do, the missing seeds by run; return when all jobs are done or given up.

    at_once: how many jobs; None for all. Raises UsageError when the launcher cannot start.
    """
    from gnexp.cli.commands.train import size
    from gnexp.cli.progress import Progress

    needed, left = needed_jobs(jobs, todo), list(todo)
    with Progress({run.name: size(run, seeds) for run, seeds in todo.items()}) as progress:
        look = functools.partial(_tell_of_ended, left, progress)
        with patient(launcher, name, look) as started:
            many = f"{len(needed)} job{'s' * (len(needed) > 1)}"
            progress.print_line(f"{many} through hydra/launcher={name}")
            for first in range(0, len(needed), at_once or len(needed)):
                overrides = [[f"job={number}"] for number in needed[first:][:at_once]]
                try:
                    returned = launcher.launch(overrides, initial_job_idx=first)
                except Exception as error:
                    if not started:
                        raise UsageError(no_start(name, error)) from error
                    # A launcher that gives all up when one job is lost.
                    progress.print_line(f"hydra/launcher={name} gave up: {first_line(error)}")
                    continue
                for number, answer in enumerate(returned, first + 1):
                    why = answer._return_value
                    if answer.status == JobStatus.FAILED or why:
                        progress.print_line(f"job {number} ended early: {first_line(why)}")
        look()


def _tell_of_ended(left: "list[PreparedRun]", progress: "Progress") -> None:
    from gnexp.cli.console import closing_line
    from gnexp.runner.prepared_run import seed_progress

    for run in list(left):
        with contextlib.suppress(ValueError, OSError):  # corrupt, or gone: told at the end
            now = seed_progress(run)
            if not now.todo:
                left.remove(run)
                why = next(iter(now.failed.values()), None)
                line = f"{run.name}: {why}" if why else closing_line(run)
                progress.run_done(run.name, line, bool(why))


def needed_jobs(jobs: list[list[TrainConfig]], todo: "dict[PreparedRun, list[int]]") -> list[int]:
    """Return the jobs that train what is missing, each seed by the first that is to have it."""
    owners = [(index, config) for index, job in enumerate(jobs) for config in job]
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
