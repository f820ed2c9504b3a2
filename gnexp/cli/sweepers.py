"""Sweepers that optimize, such as Optuna's: each job trains, and returns its validation accuracy.

What they maximize must not be accuracy on test images, so a job without a validation split is
refused, and so is a sweeper that is told to look for the lowest accuracy.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from omegaconf import OmegaConf

from gnexp.config.resolve import expand
from gnexp.config.schema import TrainConfig, UsageError, is_tuned
from gnexp.config.unknown import unknown
from gnexp.store.digests import Writer
from gnexp.store.run import exclusive

# Hydra's name of a sweeper: its plugin, how to get it, and the option that makes it maximize.
SWEEPERS = {
    "optuna": ("hydra_optuna_sweeper", "gnexp[optuna]", "hydra.sweeper.direction=maximize"),
    "nevergrad": (
        "hydra_nevergrad_sweeper",
        "hydra-nevergrad-sweeper",
        "hydra.sweeper.optim.maximize=true",
    ),
    "ax": (
        "hydra_ax_sweeper",
        "hydra-ax-sweeper",
        "hydra.sweeper.ax_config.experiment.minimize=false",
    ),
}
RESULTS = "optimization_results.yaml"


def chosen(arguments: Sequence[str]) -> str | None:
    """Return the sweeper that is typed, None for Hydra's own.

    Raises UsageError for one that is unknown, or whose package is missing.
    """
    typed = [a for a in arguments if a.lstrip("+").startswith("hydra/sweeper=")]
    name = typed[-1].partition("=")[2].strip("'\"") if typed else "basic"
    if name == "basic":
        return None
    if name not in SWEEPERS:
        raise UsageError(unknown(f"hydra/sweeper={name} is unknown", name, sorted(SWEEPERS)))
    plugin, package, _ = SWEEPERS[name]
    if _spec(f"hydra_plugins.{plugin}") is None:
        raise UsageError(f"hydra/sweeper={name} needs its plugin: pip install '{package}'")
    return name


def _spec(module: str) -> Any:
    try:
        return importlib.util.find_spec(module)
    except ModuleNotFoundError:  # its parent is missing
        return None


def arguments_for(name: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the option by which the sweeper looks for the highest accuracy.

    Raises UsageError when another direction is typed.
    """
    key, _, wanted = SWEEPERS[name][2].partition("=")
    typed = [a for a in arguments if a.lstrip("+").partition("=")[0] == key]
    if typed and typed[-1].partition("=")[2].lower() != wanted:
        raise UsageError(
            f"{typed[-1]} looks for the lowest accuracy: leave it out, or type {key}={wanted}"
        )
    return [*arguments, *([] if typed else [f"{key}={wanted}"])]


class _Refused(BaseException):
    """A job's mistake on its way through Hydra, which would print any other exception."""


class _Objective:
    """The objective of a sweeper: trains a job's config and returns its validation accuracy.

    code: the worst exit code so far; begun: whether there was a job; last: the config of the last.
    """

    def __init__(self, name: str, typed: str) -> None:
        self.name, self.typed = name, typed
        self.code, self.begun = 0, False
        self.last: TrainConfig | None = None

    def __call__(self, config: Any) -> float:
        from gnexp.cli.commands.train import train

        self.begun = True
        composed: TrainConfig = OmegaConf.to_object(config)
        composed.out = os.path.expanduser(composed.out)
        try:
            composed = self._only(composed)
            self.code = max(self.code, train([composed], self.typed, grid=False))
        except UsageError as mistake:
            raise _Refused(mistake) from mistake
        self.last = composed
        return validation_accuracy(composed)

    def _only(self, config: TrainConfig) -> TrainConfig:
        """Return the one run of a job; raises UsageError for a job that no sweeper can score."""
        what = f"hydra/sweeper={self.name}"
        if config.data.validation is None:
            raise UsageError(
                f"{what} maximizes what a training returns, which must not be test accuracy: hold"
                " images out of the training set, such as data.validation=0.2"
            )
        if is_tuned(config) or len(expand(config)) > 1:
            raise UsageError(f"{what} chooses one rate per job: sweep it, such as lr=0.1,0.2")
        (only,) = expand(config)  # with the keys of together= set
        return only


def validation_accuracy(config: TrainConfig) -> float:
    """Return the mean accuracy of a run's seeds on the images held out, last epoch, 0..1.

    A diverged seed counts at chance; 0 when no seed has a result, which is worse than any.
    """
    from gnexp.runner.lr_search import validation_scores

    return mean(validation_scores(config) or [0.0])


def optimize(name: str, typed: str, run: Callable[[Callable[[Any], float], Path], None]) -> int:
    """Let a sweeper train its jobs, keep what it found beside the runs, and report.

    run: runs Hydra with a task, in a folder that what Hydra writes goes to. Raises UsageError
    for the first job that breaks a rule.
    """
    from gnexp.cli.commands.report import make_report

    _quieten(name)
    objective = _Objective(name, typed)
    with tempfile.TemporaryDirectory() as scratch:
        try:
            run(objective, Path(scratch))
        except _Refused as refused:
            raise refused.args[0] from refused
        except (UsageError, OSError):
            raise
        except Exception as error:  # of the sweeper's own options, such as Optuna's storage
            if objective.begun:
                raise
            output = (str(error).strip().splitlines() or ["no reason given"])[0]
            raise UsageError(
                f"hydra/sweeper={name} stopped before its first job, with"
                f" {type(error).__name__}: {output}; look at what is typed after hydra.sweeper."
            ) from error
        if objective.last is None:  # Hydra answered itself: --help, --cfg, --info
            return 0
        out, study = Path(objective.last.out), objective.last.study
        for line in _keep(Path(scratch) / RESULTS, out / study):
            print(line)
    print(make_report(out, study, objective.last.reference_batch, objective.last.report))
    return objective.code


def _quieten(package: str) -> None:
    """Let a package log no more than warnings: a line per job is printed already."""
    with contextlib.suppress(ImportError):  # it sets its own level when it is imported
        importlib.import_module(package)
    logging.getLogger(package).setLevel(logging.WARNING)


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
