"""What a run stores, handed to TensorBoard or Weights & Biases, where people look at trainings.

The store is the source of truth: these files are derived from it, are read by nothing here, and
may be deleted at any time.
"""

import contextlib
import difflib
import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gnexp.config import NOT_IDENTITY, OF_A_CALL
from gnexp.study.store import Run

LOGGERS = ("tensorboard", "wandb")
Point = tuple[int, float, dict[str, float]]

# They say where things lie, or nothing about the training.
_NOT_HYPERPARAMETERS = {*NOT_IDENTITY, *OF_A_CALL, "data.root", "data.preview", "gradients"}
# Of gradients at a run's own batch size; layers, which may be many, stay in gradients.csv.
_KINDS = ("all", "gamma", "beta", "conv", "linear")


def asked_loggers(logger: Any) -> list[str]:
    """Return the loggers that `logger=` names."""
    if logger is None:
        return []
    return list(logger) if isinstance(logger, (list, tuple)) else [logger]


def logger_problems(logger: Any) -> list[str]:
    """Return a sentence for each name in `logger=` that is unknown or is not installed."""
    found = []
    for name in dict.fromkeys(asked_loggers(logger)):
        if name not in LOGGERS:
            near = difflib.get_close_matches(str(name), LOGGERS, n=1, cutoff=0.0)[0]
            valid = ", ".join(LOGGERS)
            found.append(f"logger={name} is unknown; did you mean {near}? Valid: {valid}")
        elif importlib.util.find_spec(name) is None:
            found.append(
                f"logger={name} needs a package that is not installed: pip install 'gnexp[{name}]'"
            )
    return found


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
    folder refuses files. Damaged lines of tables are left out.
    """
    # No other process may write the same files, nor change the tables meanwhile.
    with run.writing() if asked_loggers(logger) else contextlib.nullcontext():
        rows = run.whole_rows("metrics.csv")[0]
        wanted = sorted({row["seed"] for row in rows})
        chosen = [seed for seed in wanted if seeds is None or seed in set(seeds)]
        return [
            path
            for name in asked_loggers(logger)
            for path in _writer(name)(run, chosen, StoredRun(run))
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
        from gnexp.tensorboard_files import write_events

        return write_events
    from gnexp.wandb_files import write_offline_runs

    return write_offline_runs


class StoredRun:
    """A run's folder as loggers want it: settings, when it began, and points along the images."""

    def __init__(self, run: Run) -> None:
        """Read what the run's folder holds. Raises ValueError when a document is damaged."""
        result = run.result()
        self.name, self.study = run.name, run.folder.resolve().parent.name
        self.config = result.get("config") or run.config()
        self.finished = set(run.finished_seeds())
        self._metrics = run.whole_rows("metrics.csv")[0]
        self._gradients = run.whole_rows("gradients.csv")[0]
        provenance = run.provenance()
        # The first call's: later ones add seeds, and must not change what was written.
        first = [*provenance.get("earlier", []), provenance][0].get("started")
        self.started_s = datetime.fromisoformat(first).timestamp() if first else 0.0

    @property
    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """The settings that can change the numbers, nested keys joined by dots, without seeds."""
        flat = {k: v for k, v in _flat(self.config) if v is not None}
        return {k: v for k, v in flat.items() if k not in _NOT_HYPERPARAMETERS}

    def points(self, seed: int) -> Iterator[Point]:
        """Yield (epoch, wall time in s, {tag: value}) of a seed, epoch 0 for the initialization.

        Losses in nats, accuracies 0..1. What a validation split scored is named val, not test.
        """
        held_out = "val" if (self.config.get("data") or {}).get("validation") else "test"
        wall_time_s = self.started_s
        metrics = {row["epoch"]: row for row in self._metrics if row["seed"] == seed}
        gradients = [row for row in self._gradients if row["seed"] == seed]
        gradients = [row for row in gradients if row["at_batch"] == self.config.get("batch")]
        for epoch in sorted({*metrics, *(row["epoch"] for row in gradients)}):
            values: dict[str, float] = {}
            if row := metrics.get(epoch):
                wall_time_s += row["time_s"]
                values = {
                    "train/loss": row["train_loss"],
                    "train/acc": row["train_acc"],
                    f"{held_out}/loss": row["test_loss"],
                    f"{held_out}/acc": row["test_acc"],
                    "lr": row["lr"],
                    "examples_seen": float(row["examples_seen"]),
                }
            for row in gradients:
                if row["epoch"] == epoch and row["parameters"] in _KINDS:
                    values[f"gradient_noise/{row['parameters']}"] = row["noise"]
                    values[f"gradient_signal/{row['parameters']}"] = row["signal"]
            if values:
                yield epoch, wall_time_s, values


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value) if isinstance(value, (list, tuple)) else value
