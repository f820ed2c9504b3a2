"""A sweeper that optimizes, Optuna's: each job trains, and returns its validation accuracy.

What they maximize must not be accuracy on test images, so a job without a validation split is
refused, and so is a sweeper that is told to look for the lowest accuracy.
"""

import contextlib
import dataclasses
import importlib
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from gnexp.cli.launcher_waits import first_line
from gnexp.cli.launchers import is_installed
from gnexp.config.resolve import expand
from gnexp.config.schema import TrainConfig, UsageError, is_tuned
from gnexp.config.unknown import unknown
from gnexp.store.digests import Writer
from gnexp.store.run import exclusive

RESULTS = "optimization_results.yaml"


def chosen(arguments: Sequence[str]) -> str | None:
    """Return the sweeper that is typed, None for Hydra's own; raises UsageError."""
    typed = [a for a in arguments if a.lstrip("+").startswith("hydra/sweeper=")]
    name = typed[-1].partition("=")[2].strip("'\"") if typed else "basic"
    if name == "basic":
        return None
    if name != "optuna":
        raise UsageError(unknown(f"hydra/sweeper={name} is unknown", name, ["optuna"]))
    if not is_installed("hydra_plugins.hydra_optuna_sweeper"):
        raise UsageError("hydra/sweeper=optuna needs its plugin: pip install 'gnexp[optuna]'")
    return name


class _Refused(BaseException):
    """A job's mistake on its way through Hydra, which would print any other exception."""


def optimize(
    name: str,
    arguments: list[str],
    typed: str,
    run_hydra: Callable[[list[str], Callable[[Any], float], str], None],
) -> int:
    """Let a sweeper train its jobs, keep what it found beside the runs, and report.

    run_hydra: runs Hydra on arguments with a task, in a folder that what Hydra writes goes to.
    Raises UsageError for the first job that breaks a rule, and for another direction than up.
    """
    from gnexp.cli.commands.report import make_report
    from gnexp.cli.commands.train import train
    from gnexp.runner.lr_search import validation_scores

    begun: list[Any] = []
    codes: list[int] = []  # exit codes of the jobs
    last: list[TrainConfig] = []

    def objective(config: Any) -> float:
        begun.append(config)
        try:
            last[:] = [_only_run(name, OmegaConf.to_object(config))]
            codes.append(train(last, typed, grid=False))
        except UsageError as mistake:
            raise _Refused(mistake) from mistake
        # Without a result it is worse than any.
        return mean(validation_scores(last[0]) or [0.0])

    arguments = _upwards(arguments)
    with contextlib.suppress(ImportError):  # it sets its own level when it is imported
        importlib.import_module(name)
    logging.getLogger(name).setLevel(logging.WARNING)  # a line per job is printed already
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run_hydra(arguments, objective, scratch)
        except _Refused as refused:
            raise refused.args[0] from refused
        except (UsageError, OSError):
            raise
        except Exception as error:  # of the sweeper's own options, such as Optuna's storage
            if begun:
                raise
            raise UsageError(
                f"hydra/sweeper={name} stopped before its first job, with"
                f" {type(error).__name__}: {first_line(error)}; look at what is typed after"
                " hydra.sweeper."
            ) from error
        if not last:
            raise UsageError(f"hydra/sweeper={name} started no job, as it was told to")
        config = last[0]
        for line in _keep(Path(scratch) / RESULTS, Path(config.out) / config.study):
            print(line)
    print(make_report(Path(config.out), config.study, config.reference_batch, config.report))
    return max(codes)


def _upwards(arguments: list[str]) -> list[str]:
    """Return the arguments with the option by which Optuna looks for the highest accuracy."""
    key = "hydra.sweeper.direction"
    typed = [a for a in arguments if a.lstrip("+").partition("=")[0] == key]
    if typed and typed[-1].partition("=")[2].lower() != "maximize":
        raise UsageError(
            f"{typed[-1]} looks for the lowest accuracy: leave it out, or type {key}=maximize"
        )
    return [*arguments, *([] if typed else [f"{key}=maximize"])]


def _only_run(name: str, config: TrainConfig) -> TrainConfig:
    what = f"hydra/sweeper={name}"
    if config.data.validation is None:
        raise UsageError(
            f"{what} maximizes what a training returns, which must not be test accuracy: hold"
            " images out of the training set, such as data.validation=0.2"
        )
    only, *others = expand(config)  # with the keys of together= set
    if others or is_tuned(only):
        raise UsageError(f"{what} chooses one rate per job: sweep it, such as lr=0.1,0.2")
    return dataclasses.replace(only, out=os.path.expanduser(only.out))


def _keep(found: Path, folder: Path) -> list[str]:
    """Move the sweeper's summary into the study's folder; return the lines to print."""
    if not found.is_file():
        return []
    with exclusive(folder):
        writer = Writer(folder)
        writer.write(RESULTS, found.read_bytes())
        writer.close()
    best = OmegaConf.load(found)
    params = " ".join(f"{k}={v}" for k, v in (best.get("best_params") or {}).items())
    value = best.get("best_value")
    text = "" if value is None else f": {100 * float(value):.1f} % validation accuracy, as chosen"
    return [
        f"best: {params}{text}; all of it: {folder / RESULTS}",
        "train it on the whole training set, without data.validation=, to know its test accuracy",
    ]
