"""Weights & Biases runs made from stored runs, offline: RUN/wandb/offline-run-*-RUN-seed-K.

Nothing here reaches the network; `wandb sync RUN/wandb/offline-run-*` uploads them when wanted.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gnexp.runner.loggers.points import LoggedRun
from gnexp.store.files import CorruptFile, read_json, write_json
from gnexp.store.run import Run

FOLDER = "wandb"
STAMP = "written.json"


def write_offline_runs(run: Run, seeds: Iterable[int], stored: LoggedRun) -> list[Path]:
    """Write an offline run for each finished seed whose numbers have none; return the folder.

    One that was written of other numbers is removed: its id is the same, so that a sync of the new
    one replaces it on the server too.
    """
    folder = run.folder / FOLDER
    digests = {seed: _digest(stored, seed) for seed in seeds if seed in stored.finished}
    if not digests:
        return []
    folder.mkdir(exist_ok=True)
    try:
        stamp = read_json(folder / STAMP)
    except CorruptFile:
        stamp = {}
    for seed, digest in digests.items():
        there = sorted(folder.glob(f"offline-run-*-{_id(stored, seed)}"))
        if len(there) == 1 and stamp.get(str(seed)) == digest:
            continue
        for old in there:
            shutil.rmtree(old)
        _write(folder.parent, stored, seed)
        stamp[str(seed)] = digest
        write_json(folder / STAMP, {key: stamp[key] for key in sorted(stamp, key=int)})
    return [folder]


def _write(parent: Path, stored: LoggedRun, seed: int) -> None:
    wandb = _offline_wandb()
    settings = wandb.Settings(
        mode="offline",
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_stats=True,
        x_disable_meta=True,
        x_disable_machine_info=True,
    )
    run = wandb.init(
        mode="offline",
        dir=parent,
        project=stored.study,
        group=stored.name,
        id=_id(stored, seed),
        name=_id(stored, seed),
        config={**stored.hyperparameters, "seed": seed},
        settings=settings,
    )
    for epoch, wall_time_s, values in stored.points(seed):
        run.log({**values, "epoch": epoch, "_timestamp": wall_time_s}, step=epoch)
    run.finish()


def _offline_wandb() -> Any:
    # Read when wandb is imported: without it, its reports of errors look up a server.
    os.environ["WANDB_ERROR_REPORTING"] = "false"
    import wandb

    return wandb


def _id(stored: LoggedRun, seed: int) -> str:
    """Return what names a training within its project; the run's name ends with its hash."""
    return f"{stored.name[-48:]}-seed-{seed}"  # W&B refuses long ones


def _digest(stored: LoggedRun, seed: int) -> str:
    what = [stored.study, stored.hyperparameters, list(stored.points(seed))]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
