"""The public functions of `import gnexp`: the commands, with tables as their results.

Importing this imports neither torch nor pandas; calling does.
"""

import contextlib
import dataclasses
import io
import multiprocessing
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.cli.overrides import overrides
from gnexp.config.schema import CUSTOM, CheckConfig, TrainConfig
from gnexp.config.schema import UsageError as Mistake  # its public name
from gnexp.store import study

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from gnexp.checks.subject import Subject
    from gnexp.store.study import Study

# The types of columns that may hold nothing, in which pandas would see no type.
_TYPES = {
    "Int64": "groups channels_per_group batch update_batch seed stack epochs examples_seen claim n",
    "float64": "lr test_acc test_acc_median5 test_loss train_loss train_acc train_time_s value"
    " lo hi epsilon_spent delta noise_multiplier clip sampling_rate",
}


def build_norm(name: str, num_channels: int, **options: Any) -> "nn.Module":
    """Return the layer `name` for (N, C, H, W) inputs with C = `num_channels`.

    name: of gnexp's table ("gn"), or of a plug-in. options: as after `norm.` on the command line,
    beside num_groups for the norms that have groups; those left out take the table's defaults.
    Raises ValueError for an unknown name or option, naming the nearest valid one, for a value of
    another kind, and for what cannot be built, with the reason.
    """
    from gnexp.norms.user_code import build_named

    return build_named(name, num_channels, **options)


def train(
    config: Mapping[str, Any] | Sequence[str] | None = None, *, verbose: bool = False
) -> "pd.DataFrame":
    """Train what is missing of one run or a grid; return one row per run and seed.

    config: what `gnexp train` takes, as a dict ({"norm": "gn", "groups": 8, "data.root": "imgs"},
    or nested) or as its words (["norm=gn", "groups=8"]). A list is an axis of a grid, such as
    {"norm": ["bn", "gn"], "batch": [2, 8]}; of keys whose value is a list (seeds, lr, ...), a list
    of lists is. As on the command line, results are stored under out/study, what is there is not
    trained again, and a grid ends with its report. verbose: print what the command prints.

    Columns are those of the report's runs.csv: accuracies in [0, 1], losses in nats, times in
    seconds. Training that diverged, ran out of memory or failed is a row whose `status` says so and
    whose `why` tells the reason; after a failure there is a warning too. lr="tuned" adds the rows
    of its trials (`split` is "validation").

    All happens in this process, unless workers= asks for several: they import the calling script
    anew, so its call must then stand under `if __name__ == "__main__":`. Calls from several threads
    wait for one another; PyTorch's random state is afterwards as it was. Raises Mistake, with one
    sentence per line, before anything is written.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise Mistake(
            "workers= starts processes that import the script that calls gnexp.train: put the call"
            ' under `if __name__ == "__main__":`, or leave workers= out'
        )
    from gnexp.cli import hydra_app
    from gnexp.cli.commands.train import train as command

    words = overrides({} if config is None else config)
    output = io.StringIO()
    with _ours(), contextlib.nullcontext() if verbose else _quiet(output):
        configs, grid, typed = hydra_app.compose("train", words)
        configs = [dataclasses.replace(each, workers=each.workers or 1) for each in configs]
        code = command(configs, typed, grid)
    if code:
        lines = [line for line in output.getvalue().splitlines() if line.startswith("failed: ")]
        warnings.warn("\n".join(lines) or "a run failed; see the column why", stacklevel=2)
    return _trained(configs)


# Hydra's state, PyTorch's generators and the standard streams are one for all threads.
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    """Make what is the process's own be gnexp's for a while, and leave it as the caller had it.

    Gradients are recorded, also for a caller under no_grad or inference_mode.
    """
    import torch

    with _one_at_a_time, torch.inference_mode(False), torch.enable_grad():
        begun = torch.cuda.is_initialized()  # asking a device for its state would begin
        devices = range(torch.cuda.device_count()) if begun else ()
        with torch.random.fork_rng(devices):
            yield


@contextlib.contextmanager
def _quiet(output: io.StringIO) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(output))
        if sys.stderr.isatty():  # where bars are drawn
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stderr(nowhere))
        yield


def _trained(configs: list[TrainConfig]) -> "pd.DataFrame":
    from gnexp.analysis.cells import run_rows
    from gnexp.config.resolve import seed_list
    from gnexp.runner.lr_search import run_folder, wanted
    from gnexp.store.study import load_study

    asked: dict[str, set[int]] = {}
    for _, each in wanted(configs):
        asked.setdefault(run_folder(each).name, set()).update(seed_list(each.seeds))
    study = load_study(Path(configs[0].out) / configs[0].study)
    runs = [run for run in study.runs if run.name in asked]
    return _frame([row for row in run_rows(runs) if row["seed"] in asked[row["run"]]])


def load_study(path: str | os.PathLike[str]) -> "pd.DataFrame":
    """Return one row per run and seed of a study (results/STUDY, or a zip), finished or not.

    A folder without runs is read from the zip within it or beside it; a zip beside a folder with
    runs is not read, with a warning. Columns and units are those of `train`; `status` is complete,
    diverged, infeasible, failed, running, or missing. Files that are corrupt count as absent, with
    a warning for each. Raises Mistake where there is no study, naming those that there are.
    """
    from gnexp.analysis.cells import run_rows
    from gnexp.store import run as store

    if not isinstance(path, str | os.PathLike):
        kind = type(path).__name__
        raise Mistake(f"path={path!r} is a {kind}: give a study's folder, such as 'results/main'")
    folder = Path(path).expanduser()
    try:
        if store.Run(folder).exists():
            raise Mistake(f"{folder} is a run; its study is the folder around it: {folder.parent}")
        found: Study = study.load_study(folder)
    except ValueError as error:
        raise Mistake(str(error)) from error
    for path in found.unread:
        warnings.warn(f"{path} is not read, since {found.folder} holds runs", stacklevel=2)
    for sentence in found.corrupt_files:
        warnings.warn(f"corrupt: {sentence}", stacklevel=2)
    return _frame(run_rows(found.runs))


def check(
    module: "str | type[nn.Module] | Callable[..., nn.Module]",
    *,
    claims: Sequence[str] | None = None,
    groups: int | None = None,
    channels: int = 64,
    draws: int = 64,
    seed: int = 0,
    reference: str | None = None,
    **options: Any,
) -> "pd.DataFrame":
    """Measure the article's claims on a norm; return a row per statement, as in check.csv.

    module: a norm of gnexp's table or of a plug-in by name ("gn"), an import path ("my_norm.Mine"),
    or what builds a layer: an nn.Module class, or any callable that takes a number of channels.
    options: its further arguments. claims: some of core, spectrum, batch_independence, train_test,
    invariance, geometry, flow, stability, isolation, initialization; all take minutes. groups: that
    the norm is held to, and is built with if it is of the table. channels: of a single layer.
    draws: behind a statistical claim. reference: of gnexp's norms, what it must agree with.

    The columns `claim`, `statement`, `text`, `expected`, `measured` and `verdict` say what was
    claimed and what is so; a claim in which the norm misbehaves is "not measured", and `note` says
    why. Nothing is written to disk. Raises Mistake for what cannot be built or is no norm.
    """
    from gnexp.analysis.check_result import ROW_COLUMNS
    from gnexp.checks.run import joined, outcome_of
    from gnexp.cli.commands.check import plan

    asked = {"groups": groups, "channels": channels, "draws": draws, "seed": seed}
    asked |= {"reference": reference, "claims": [_listed(claims)] if claims is not None else None}
    with _ours():
        config = _check_config(module, asked, options)
        wanted = plan([config])
        subject = _norm_under_test(module, config, options)
        name = subject.label
        found = {(name, claim.key): outcome_of(claim, name, lambda: subject) for claim in wanted}
    rows = joined(found, [name], wanted).rows
    return _frame([{column: row.get(column) for column in ROW_COLUMNS} for row in rows])


def _listed(claims: Any) -> list[Any]:
    if not isinstance(claims, Iterable):
        raise Mistake(f"claims={claims!r} must be a list, such as claims=['core', 'spectrum']")
    return [claims] if isinstance(claims, str) else list(claims)


@dataclasses.dataclass(frozen=True)
class _Given:
    """A norm that need not have an import path; its text is what it is called in tables."""

    target: Callable[..., Any]

    def __call__(self, *words: Any, **options: Any) -> Any:
        return self.target(*words, **options)

    def __str__(self) -> str:
        named = getattr(self.target, "func", self.target)  # of a functools.partial
        name = getattr(named, "__name__", type(named).__name__)
        return "own_norm" if "<" in name else name


def _check_config(module: Any, asked: dict[str, Any], options: dict[str, Any]) -> CheckConfig:
    """Return the config of a check; that of a norm without a name holds a stand-in for it."""
    from gnexp.cli import hydra_app

    if isinstance(module, str):
        key = "norm._target_" if "." in module else "norm"
        norm = {key: module, **{f"norm.{option}": value for option, value in options.items()}}
    elif not callable(module) or (hasattr(module, "forward") and not isinstance(module, type)):
        raise Mistake(
            f"module={module!r} is a {type(module).__name__}: give a norm's name, an nn.Module"
            " class, or a function from a number of channels to a layer, since the claims need"
            " layers of several"
        )
    else:  # the rules about all other keys are the same for every norm
        norm = {"norm": "gn" if asked["groups"] else "none"}
    (config,), _, _ = hydra_app.compose("check", overrides({**norm, **asked}))
    return config


def _norm_under_test(module: Any, config: CheckConfig, options: dict[str, Any]) -> "Subject":
    """Return the norm under test; raises Mistake for one that cannot be built, or is no norm."""
    from gnexp.checks.from_config import subject_from_config
    from gnexp.norms.trials import try_norm

    if not isinstance(module, str):
        own = {"name": CUSTOM, "_target_": _Given(module), **options}
        config = dataclasses.replace(config, norm=own)
    subject = subject_from_config(config)
    if config.norm["name"] != CUSTOM:
        return subject
    try:
        layer = subject.build(subject.channels)
    except ValueError as error:
        raise Mistake(str(error)) from error
    try:
        try_norm(layer, subject.channels)
    except ValueError as error:
        raise Mistake(f"{subject.label} {error}") from error
    return subject


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    table = pd.DataFrame(rows)
    types = {name: kind for kind, names in _TYPES.items() for name in names.split()}
    for column in table:
        known = table[column].dropna()
        text = "string" if all(isinstance(value, str) for value in known) else None
        kind = types.get(column, text)
        table[column] = table[column].astype(kind) if kind else table[column].infer_objects()
    return table
