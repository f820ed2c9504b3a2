"""Measure stored runs again: instruments at their last weights, gradients at shared weights.

At equal weights only the batch differs, so noise ~ 1/B is a law for norms that do not mix examples.
Shared are the first and the last weights of the run with the largest batch, of runs that differ in
their batch sizes alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from gnexp.config.identity import identity, restore, run_name
from gnexp.config.schema import ShiftConfig, is_private
from gnexp.data.device_images import normalize
from gnexp.measure.per_example import find_mixing_layer, per_example_covariance
from gnexp.norms.module_state import put_state
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.runner.build.code_digest import code_checksum
from gnexp.runner.build.data import device_images, pick_device, worker_count
from gnexp.runner.build.initial_model import load_initial_model
from gnexp.runner.build.model import seeded_model
from gnexp.runner.checkpoint import State, load_states
from gnexp.runner.instruments import (
    INSTRUMENTS,
    Trained,
    class_head,
    corruption_names,
    gradients_at,
    measure,
)
from gnexp.runner.process_pool import Emit, WorkerDied, run_tasks
from gnexp.runner.strange_code import strange_code, strangers_sentence
from gnexp.store.disk import disk_failure
from gnexp.store.files import CorruptFile
from gnexp.store.lr_choices import LRChoice, recorded_choices
from gnexp.store.run import Run
from gnexp.training.attributes import put_attributes
from gnexp.training.evaluate import evaluate
from gnexp.training.malloc import keep_malloc_arena
from gnexp.training.precision import matrix_precision

SHARED = ("gradients", "covariance")
IMAGES_PER_POINT = 4096  # draws x batch: after training the tails of gradients are heavy
LEAST_DRAWS = 64


@dataclass(frozen=True)
class MeasureTask:
    """Instruments to run on one stored run, by their names in INSTRUMENTS and SHARED.

    trusted: code of the run that may be called, as `named_code` names it. batches: at which
    gradients are drawn at shared weights. draws: of each, by default IMAGES_PER_POINT / batch.
    """

    folder: Path
    what: tuple[str, ...]
    device: str
    trusted: tuple[str, ...] = ()
    shift: ShiftConfig = field(default_factory=ShiftConfig)
    batches: tuple[int, ...] = ()
    draws: int | None = None

    def draws_of(self, batch: int) -> int:
        """Return the number of gradients at a batch size."""
        return self.draws or max(LEAST_DRAWS, IMAGES_PER_POINT // batch)


class StoredRun:
    """A finished run with what it was trained on.

    Raises ValueError when that is gone or is no longer the same, and before any code is called that
    is neither `trusted`, as `named_code` names it, nor this user's.
    """

    def __init__(self, run: Run, device: str, trusted: Iterable[str] = ()) -> None:
        result = run.result()
        if "config" not in result:
            raise ValueError("it is not finished: no seed of it has a result")
        self.run, self.config = run, restore(result["config"])
        if strange := set(strange_code(run.folder, self.config)) - {*trusted}:
            raise ValueError(strangers_sentence(strange))
        self.numbers: dict[int, dict[str, Any]] = {int(s): v for s, v in result["seeds"].items()}
        self.device = pick_device(device)
        self.images = device_images(self.config.data, self.device)
        checksums = self.images.summary.checksum, code_checksum(self.config)
        if run_name(self.config, *checksums) != run.name:
            raise ValueError(
                "its images, or the code of its norm, are no longer those it was trained with"
            )

    @property
    def seeds(self) -> list[int]:
        return [seed for seed, v in sorted(self.numbers.items()) if v["status"] == "complete"]

    @cached_property
    def _states(self) -> dict[int, State]:
        return load_states(self.run)

    def model(self, seed: int, trained: bool = True) -> nn.Module:
        """Return the model of a seed, as it ended or as it was initialized, on the device.

        Raises ValueError when its weights are gone.
        """
        if not trained:
            return load_initial_model(self.config, self.images, seed)[0]
        model = seeded_model(self.config, self.images.summary, seed)
        if seed not in self._states:
            raise ValueError(f"there is no checkpoint of seed {seed}, so its weights are gone")
        put_state(model, self._states[seed]["model"])
        put_attributes(model, self._states[seed].get("attributes", {}))
        return model.to(self.device)


def measure_stored(
    folders: Iterable[Path], what: Iterable[str], device: str, workers: int | None, **how: Any
) -> list[tuple[str, str]]:
    """Measure finished runs, several at once where that helps; return (run, reason) of failures.

    how: keywords of MeasureTask. What is stored already is not measured again.
    """
    shared, last = (tuple(n for n in names if n in what) for names in (SHARED, INSTRUMENTS))
    folders = list(folders)
    largest = largest_batch_runs(folders) if shared else []
    if shared:
        print(f"measuring gradients at shared weights: {len(largest)} runs", flush=True)
    if last:
        runs = f"{len(folders)} run{'s' * (len(folders) != 1)}"
        print(f"measuring {', '.join(last)}: {runs}", flush=True)
    wanted = {folder: shared * (folder in largest) + last for folder in folders}
    tasks = [MeasureTask(folder, names, device, **how) for folder, names in wanted.items() if names]
    count, failed = min(len(tasks), worker_count(workers, device)), []
    tell = lambda event: print(event["text"], flush=True)  # noqa: E731
    for index, answer in run_tasks(tasks, _measure, tell, count):
        if why := answer.why if isinstance(answer, WorkerDied) else answer:
            failed.append((tasks[index].folder.name, why))
    return failed


def _measure(task: MeasureTask, emit: Emit) -> str | None:
    """Measure one stored run while no other process does; return what went wrong, if anything."""
    run = Run(task.folder)
    try:
        with run.lock() as lock:
            if not lock:
                return "another process is at work on it"
            stored = StoredRun(run, task.device, task.trusted)
            if stored.device.type == "cpu":
                keep_malloc_arena()
            if {*task.what} & {*SHARED}:
                _measure_shared(stored, task, emit)
            for seed in stored.seeds:
                _measure_last(stored, task, seed, emit)
    except (ValueError, OSError) as error:  # its images, a norm or a file of the store is gone
        return disk_failure(error, task.folder.parent) or str(error)
    except Exception as error:  # of one run's model or memory: the other runs are measured
        return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"
    return None


def largest_batch_runs(folders: Sequence[Path]) -> list[Path]:
    """Return, of finished runs that differ only in their batch sizes, the one with the largest.

    Or in what follows from the batch size: epochs under a fixed number of updates, and tuned rates.
    """
    tuned = {choice.run for study in {f.parent for f in folders} for choice in _choices(study)}
    families: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        try:
            stored = Run(folder).result()
            config = restore(stored["config"])
            same = identity(config, stored["data"]["checksum"], None)
        except (ValueError, KeyError, TypeError):
            continue  # not finished, so that it has no last weights; or not of gnexp's making
        follows = {"batch", "update_batch"} | ({"epochs"} if config.updates else set())
        follows |= {"lr"} if folder.name in tuned else set()
        family = str(sorted((k, str(v)) for k, v in same.items() if k not in follows))
        if family not in families or config.batch > families[family][0]:
            families[family] = config.batch, folder
    return [folder for _, folder in families.values()]


def _choices(study: Path) -> list[LRChoice]:
    try:
        return recorded_choices(study)
    except CorruptFile:  # then every rate is one that was typed
        return []


def _measure_shared(stored: StoredRun, task: MeasureTask, emit: Emit) -> None:
    """Measure every batch size at the first and the last weights of each seed."""
    name = stored.run.name
    if is_private(stored.config):
        emit({"text": f"{name}: left out, its training images are outside the privacy budget"})
        return
    for seed in stored.seeds:
        for epoch in (0, stored.config.epochs):
            if text := _measure_point(stored, task, seed, epoch):
                emit({"text": f"{name}, seed {seed}, epoch {epoch}: {text}"})


def _measure_point(stored: StoredRun, task: MeasureTask, seed: int, epoch: int) -> str:
    """Measure and store what is missing at the weights of one epoch; return what was done."""
    run, images, at = stored.run, stored.images, {"seed": seed, "epoch": epoch}
    drawn = {
        row["at_batch"]: row["k"]
        for row in run.rows("gradients.csv")
        if row | at == row and row["parameters"] == "all"
    }
    wanted = [b for b in task.batches if drawn.get(b, 0) < task.draws_of(b)]
    covariance = "covariance" in task.what and not any(
        row | at == row for row in run.rows("covariance.csv")
    )
    if not wanted and not covariance:
        return ""
    model = stored.model(seed, trained=epoch > 0)
    shape = tuple(images.x_train.shape[1:])
    sizes = {b: values_per_statistic(model, shape, b) for b in wanted}
    possible = [b for b in wanted if all(size.values > 1 for size in sizes[b])]
    run.add_rows(
        "gradients.csv",
        gradients_at(stored.config, model, images, possible, task.draws_of, seed, epoch),
    )
    x_NCHW = normalize(images.x_train, images.mean, images.std)
    # Where a layer mixes examples a per-example gradient does not exist.
    if covariance and find_mixing_layer(model, x_NCHW[:8]) is None:
        with matrix_precision(stored.config.precision):
            rows = per_example_covariance(model, x_NCHW, images.y_train)
        run.add_rows("covariance.csv", [{**at, **row} for row in rows])
    left = [str(b) for b in wanted if b not in possible]
    return f"measured, but not at batch {', '.join(left)}" if left else "measured"


def _measure_last(stored: StoredRun, task: MeasureTask, seed: int, emit: Emit) -> None:
    run, config, images = stored.run, stored.config, stored.images
    instruments = [name for name in task.what if name in INSTRUMENTS]
    what = [name for name in instruments if not _is_measured(stored, seed, name, task.shift)]
    if not what:
        return
    model = stored.model(seed)
    with matrix_precision(config.precision):
        scores = evaluate(model, images, precision=config.precision)
    trained, numbers = Trained(run, config, model, images, seed, scores), stored.numbers[seed]
    reasons = numbers.pop("unmeasured", {})
    for name in what:
        numbers |= measure(name, trained, task.shift)
    if left := {name: why for name, why in reasons.items() if name not in what}:
        numbers["unmeasured"] = left
    if "classes" in what:
        run.add_logits(seed, scores.logits_NK.cpu().numpy())
    run.add_result(seed, numbers, **(class_head(run, images) if "classes" in what else {}))
    emit({"text": f"{run.name}, seed {seed}: measured {', '.join(what)}"})


def _is_measured(stored: StoredRun, seed: int, name: str, shift: ShiftConfig) -> bool:
    if name in stored.numbers[seed].get("unmeasured", {}):
        return False
    if name == "decomposition":
        return "test_acc_population_augmented" in stored.numbers[seed]
    rows = [row for row in stored.run.rows(f"{name}.csv") if row["seed"] == seed]
    if name != "shift":
        return bool(rows)
    wanted = {(c, s) for c in corruption_names(shift) for s in shift.severities}
    images = min(shift.images or len(stored.images.x_test), len(stored.images.x_test))
    return wanted <= {(r["corruption"], r["severity"]) for r in rows if r["n"] == images}
