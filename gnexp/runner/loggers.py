"""Stored runs as files of TensorBoard and Weights & Biases.

The store is the source of truth: these files are derived from it, are read by nothing here, and
may be deleted at any time. Their packages are optional, and are imported when they are needed.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from gnexp.config.schema import KEYS, listed
from gnexp.store.files import write_whole
from gnexp.store.run import Run

Point = tuple[int, float, dict[str, float]]  # epoch, wall time in s, values by tag

_IGNORED = {name for name, key in KEYS.items() if not key.compared}  # change no numbers
# Of gradients at a run's own batch size; layers, which may be many, stay in gradients.csv.
_KINDS = ("all", "gamma", "beta", "conv", "linear")
_METRICS = {
    **{"train/loss": "train_loss", "train/acc": "train_acc"},
    **{"test/loss": "test_loss", "test/acc": "test_acc"},
    **{"lr": "lr", "examples_seen": "examples_seen"},
}


@dataclasses.dataclass(frozen=True)
class Training:
    """One seed of a stored run as loggers are given it.

    settings: those that can change the numbers, nested keys joined by dots. points: epoch 0 is the
    initialization; losses in nats, accuracies 0..1.
    """

    run: Run
    seed: int
    settings: dict[str, bool | int | float | str]
    started_s: float
    finished: bool
    points: list[Point]

    def digest(self, count: int) -> str:
        """Return a digest of the settings and of the first `count` points."""
        text = json.dumps([self.settings, self.points[:count]], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def follow(run: Run, seed: int, logger: Any) -> None:
    """Let TensorBoard know of the seed's rows so far, while it trains.

    W&B offline shows nothing before it is synced, and is written at the end. Nothing is raised: a
    writer that fails (its package does not load, the disk is full) must not cost the training, and
    `export_all` tries again at the end and reports it then.
    """
    if "tensorboard" in listed(logger):
        with contextlib.suppress(Exception):
            export(run, "tensorboard", [seed])


def export(run: Run, logger: Any, seeds: Iterable[int] | None = None) -> None:
    """Bring the loggers' files of a stored run to what the store holds.

    seeds: these alone, else every one that has finished an epoch. Raises OSError where the run's
    folder refuses files. Corrupt lines of tables are left out.
    """
    if not listed(logger):
        return
    with run.writing():  # no other process may write the same files, nor change the tables
        trainings = list(_trainings(run, seeds))
        for name in listed(logger):
            for training in trainings:
                WRITERS[name](training)


def export_all(folders: Iterable[Path], logger: Any) -> list[tuple[str, str]]:
    """Export the runs in these folders; return (which, reason) for what could not be.

    W&B raises errors of its own kind, and none of them may cost the results of other runs. Runs
    that failed for one reason are reported together: a package that does not load fails them all.
    """
    failed: dict[str, list[str]] = {}
    for folder in folders:
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
    return [f"to look at it: {how[name]}" for name in listed(logger)]


def _trainings(run: Run, seeds: Iterable[int] | None) -> Iterator[Training]:
    metrics, gradients = (run.whole_rows(f"{name}.csv")[0] for name in ("metrics", "gradients"))
    config = run.result().get("config") or run.config()
    settings = {k: v for k, v in _flat(config) if v is not None and k not in _IGNORED}
    provenance = run.provenance()
    # The first call's: later ones add seeds, and must not change what was written.
    first = [*provenance.get("earlier", []), provenance][0].get("started")
    started_s = datetime.fromisoformat(first).timestamp() if first else 0.0
    for seed in sorted({row["seed"] for row in metrics}):
        if seeds is None or seed in seeds:
            own = ([row for row in rows if row["seed"] == seed] for rows in (metrics, gradients))
            points = list(_points(config, started_s, *own))
            finished = seed in run.finished_seeds()
            yield Training(run, seed, settings, started_s, finished, points)


def _points(
    config: Mapping[str, Any], time_s: float, metrics: list[dict], gradients: list[dict]
) -> Iterator[Point]:
    """Yield the points of a seed; what a validation split scored is named val, not test."""
    held_out = "val" if (config.get("data") or {}).get("validation") else "test"
    epochs: dict[int, dict[str, float]] = {}
    times = {row["epoch"]: row["time_s"] for row in metrics}
    for row in metrics:
        values = {tag: float(row[column]) for tag, column in _METRICS.items()}
        epochs[row["epoch"]] = {k.replace("test/", f"{held_out}/"): v for k, v in values.items()}
    for row in gradients:
        if row["at_batch"] == config.get("batch") and row["parameters"] in _KINDS:
            values = epochs.setdefault(row["epoch"], {})
            values[f"gradient_noise/{row['parameters']}"] = row["noise"]
            values[f"gradient_signal/{row['parameters']}"] = row["signal"]
    for epoch in sorted(epochs):
        time_s += times.get(epoch, 0.0)
        yield epoch, time_s, epochs[epoch]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, str(value) if isinstance(value, (list, tuple)) else value


def write_events(training: Training) -> None:
    """Bring RUN/tensorboard/seed-K to a training's points: a new event file holds the new ones.

    The name of an event file holds the number of points up to its end, and their digest. Where
    these are no beginning of the training's points, the folder is written anew.
    """
    points = training.points
    folder = training.run.folder / "tensorboard" / f"seed-{training.seed}"
    last = max((file.name for file in folder.glob("*")), default="")
    found = re.search(r"\.(\d{6})\.", last)
    written = int(found[1]) if found else 0
    if folder.is_dir() and last != _name(training, written):
        shutil.rmtree(folder)
        written = 0
    folder.mkdir(parents=True, exist_ok=True)
    if written < len(points):
        write_whole(folder / _name(training, len(points)), _events(training, written))


def _name(training: Training, count: int) -> str:
    return f"events.out.tfevents.{count:06d}.{training.digest(count)}"


def _events(training: Training, written: int) -> bytes:
    """Return an event file of the points that follow the first `written`."""
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from torch.utils.tensorboard import SummaryWriter

    with tempfile.TemporaryDirectory() as folder:
        with SummaryWriter(folder) as writer:
            if not written:
                # Seeds of a run are one row of the HParams view: a group, with its mean.
                group = hparams_pb(training.settings, training.run.name, training.started_s)
                writer.file_writer.add_summary(group, walltime=training.started_s)
            for epoch, time_s, values in training.points[written:]:
                for tag, value in values.items():
                    writer.add_scalar(tag, value, epoch, walltime=time_s)
        (file,) = Path(folder).iterdir()
        return file.read_bytes()


def write_offline_run(training: Training) -> None:
    """Write RUN/wandb/offline-run-* of a training that has ended, unless it is there.

    One that was written of other numbers is removed: its id is the same, so that a sync of the new
    one replaces it on the server too. Nothing reaches the network before `wandb sync`.
    """
    if not training.finished:
        return
    name = f"{training.run.name[-48:]}-seed-{training.seed}"  # W&B refuses long ones
    digest = training.digest(len(training.points))
    there = list(training.run.folder.glob(f"wandb/offline-run-*-{name}"))
    stamps = [folder / "gnexp-digest" for folder in there]
    if [stamp.read_text() for stamp in stamps if stamp.is_file()] == [digest] and len(there) == 1:
        return
    for folder in there:
        shutil.rmtree(folder)
    # Read when wandb is imported: without it, its reports of errors look up a server.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    quiet = {"silent": True, "console": "off", "disable_git": True, "save_code": False}
    quiet |= {f"x_disable_{what}": True for what in ("stats", "meta", "machine_info")}
    run = wandb.init(
        mode="offline",
        dir=training.run.folder,
        project=training.run.folder.resolve().parent.name,
        group=training.run.name,
        id=name,
        name=name,
        config={**training.settings, "seed": training.seed},
        settings=wandb.Settings(mode="offline", **quiet),
    )
    for epoch, time_s, values in training.points:
        run.log({**values, "epoch": epoch, "_timestamp": time_s}, step=epoch)
    folder = Path(run.dir).parent
    run.finish()
    write_whole(folder / "gnexp-digest", digest)


WRITERS = {"tensorboard": write_events, "wandb": write_offline_run}
