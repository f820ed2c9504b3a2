"""Export stored runs to TensorBoard or Weights & Biases.

The store is the source of truth: these files are derived from it, are read by nothing here, and
may be deleted at any time.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gnexp.config.validation import asked_loggers
from gnexp.runner.loggers.points import LoggedRun
from gnexp.store.run import Run


def follow(run: Run, seed: int, logger: Any) -> None:
    """Let what shows a training while it runs know of the seed's rows so far.

    That is TensorBoard. W&B offline shows nothing before it is synced, and is written at the end.
    Nothing is raised: a writer that fails (its package does not load, the disk is full) must not
    cost the training, and `export_all` tries again at the end and tells of it then.
    """
    if "tensorboard" in asked_loggers(logger):
        with contextlib.suppress(Exception):
            export(run, "tensorboard", [seed])


def export(run: Run, logger: Any, seeds: Iterable[int] | None = None) -> list[Path]:
    """Bring the loggers' files of a stored run to what the store holds; return where they lie.

    seeds: these alone, else every one that has finished an epoch. Raises OSError where the run's
    folder refuses files. Corrupt lines of tables are left out.
    """
    # No other process may write the same files, nor change the tables meanwhile.
    with run.writing() if asked_loggers(logger) else contextlib.nullcontext():
        rows = run.whole_rows("metrics.csv")[0]
        wanted = sorted({row["seed"] for row in rows})
        chosen = [seed for seed in wanted if seeds is None or seed in set(seeds)]
        return [
            path
            for name in asked_loggers(logger)
            for path in _writer(name)(run, chosen, LoggedRun(run))
        ]


def export_all(folders: Iterable[Path], logger: Any) -> list[tuple[str, str]]:
    """Export the runs in these folders; return (which, reason) for what could not be.

    W&B raises errors of its own kind, and none of them may cost the results of other runs. Runs
    that failed for one reason are told of together: a package that does not load fails them all.
    """
    failed: dict[str, list[str]] = {}
    for folder in folders if asked_loggers(logger) else []:
        try:
            export(Run(folder), logger)
        except Exception as error:
            reason = next(iter(str(error).strip().splitlines()), "") or repr(error)
            failed.setdefault(reason, []).append(folder.name)
    more = {reason: f" and {len(names) - 1} more" for reason, names in failed.items() if names[1:]}
    return [
        (f"logger={logger} of {names[0]}{more.get(reason, '')}", reason)
        for reason, names in failed.items()
    ]


def viewing_lines(study_folder: Path, logger: Any) -> list[str]:
    """Return the command that shows what each logger was given of a study."""
    how = {
        "tensorboard": f"tensorboard --logdir {study_folder}",
        "wandb": f"wandb sync {study_folder}/*/wandb/offline-run-*  (uploads; until then offline)",
    }
    return [f"to look at it: {how[name]}" for name in asked_loggers(logger)]


def _writer(name: str) -> Any:
    # Their packages are optional.
    if name == "tensorboard":
        from gnexp.runner.loggers.tensorboard import write_events

        return write_events
    from gnexp.runner.loggers.wandb import write_offline_runs

    return write_offline_runs
