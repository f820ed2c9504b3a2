"""`gnexp measure`: instruments on stored runs, without training again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gnexp import build
from gnexp.checkpoints import stored_weights
from gnexp.commands.report import make_report, stored_study
from gnexp.config import (
    MeasureConfig,
    Mistake,
    TrainConfig,
    identity,
    is_private,
    restore,
    run_name,
)
from gnexp.data.loader import DeviceImages, normalize
from gnexp.gradient_rows import gradients_at
from gnexp.measure.per_example import find_mixing_layer, per_example_covariance
from gnexp.mending import mend
from gnexp.norms.probes import values_per_statistic
from gnexp.rules import count_problems, gradient_problems, study_problems
from gnexp.study.files import Damaged
from gnexp.study.store import Run
from gnexp.training.precision import matrix_precision
from gnexp.workers import Emit, WorkerDied, run_here, run_in_processes

INSTRUMENTS = ("gradients", "covariance")
IMAGES_PER_POINT = 4096  # draws x batch: after training the tails of gradients are heavy
LEAST_DRAWS = 64


@dataclass(frozen=True)
class SharedTask:
    """What to measure at the weights of one stored run."""

    folder: Path
    batches: tuple[int, ...]
    draws: int | None
    covariance: bool
    device: str


def measure(config: MeasureConfig) -> int:
    """Measure stored runs of a study at shared weights and refresh its report; the exit code."""
    what = config.what if isinstance(config.what, list) else [config.what]
    found = study_problems(config) + gradient_problems(config.gradients, config.gradients_at)
    found += count_problems({"workers": config.workers, "reference_batch": config.reference_batch})
    for name in what:
        if name not in INSTRUMENTS:
            found.append(f"what={name} is not one of {', '.join(INSTRUMENTS)}")
    if config.gradients_at is None:
        found.append("gradients_at=null measures nothing: name batch sizes, such as [1,2,4,8]")
    if config.gradients == 0:
        found.append("gradients=0 measures nothing: name a number of draws, such as 256")
    try:
        build.pick_device(config.device)
    except ValueError as error:
        found.append(str(error))
    if found:
        raise Mistake("\n".join(found))
    study = stored_study(config.out, config.study)
    for record in study.runs:
        if record.damage:  # tables are about to be written to
            for sentence in mend(Run(record.folder), finished=False):
                print(f"mended: {sentence}")
    failed = measure_shared(
        [record.folder for record in study.runs],
        batches=config.gradients_at if "gradients" in what else [],
        draws=config.gradients,
        covariance="covariance" in what,
        device=config.device,
        workers=config.workers,
    )
    try:
        print(make_report(Path(config.out), config.study, config.reference_batch))
    except Mistake as error:  # what failed before is told too
        failed.append(("report", str(error)))
    for name, why in failed:
        print(f"failed: {name}: {why}")
    return 1 if failed else 0


def measure_shared(
    folders: list[Path],
    *,
    batches: list[int],
    draws: int | None,
    covariance: bool,
    device: str,
    workers: int | None,
) -> list[tuple[str, str]]:
    """Measure every batch size at the same weights: the first and last of the largest-batch runs.

    At equal weights only the batch differs, so noise ~ 1/B is a law for norms that do not mix
    examples. Points that are stored already are not measured again. Returns (run, reason) for
    every run that could not be measured.
    """
    tasks = [
        SharedTask(folder, tuple(batches), draws, covariance, device)
        for folder in largest_batch_runs(folders)
    ]
    count = min(len(tasks), build.worker_count(workers, device))
    print(f"measuring gradients at shared weights: {len(tasks)} runs", flush=True)
    answers = (
        run_in_processes(tasks, measure_run, _say, count)
        if count > 1
        else run_here(tasks, measure_run, _say)
    )
    failed = []
    for index, answer in answers:
        why = answer.why if isinstance(answer, WorkerDied) else answer
        if why:
            failed.append((tasks[index].folder.name, why))
    return failed


def _say(event: dict[str, Any]) -> None:
    print(event["text"], flush=True)


def largest_batch_runs(folders: list[Path]) -> list[Path]:
    """Return, of finished runs that differ only in their batch sizes, the one with the largest."""
    families: dict[str, tuple[int, Path]] = {}
    for folder in folders:
        try:
            stored = Run(folder).result()
            config = restore(stored["config"])
            same = identity(config, stored["data"]["checksum"], None)
        except (Damaged, KeyError, TypeError):
            continue  # not finished, so that it has no last weights; or not of gnexp's making
        family = str(sorted((k, str(v)) for k, v in same.items() if "batch" not in k))
        if family not in families or config.batch > families[family][0]:
            families[family] = config.batch, folder
    return [folder for _, folder in families.values()]


def measure_run(task: SharedTask, emit: Emit) -> str | None:
    """Measure one stored run, every complete seed; return what went wrong, None if nothing did."""
    run = Run(task.folder)
    try:
        with run.lock() as alone:
            return _measure_seeds(run, task, emit) if alone else "another process is at work on it"
    except (ValueError, OSError) as error:  # its images, a norm or a file of the store is gone
        return str(error)


def _measure_seeds(run: Run, task: SharedTask, emit: Emit) -> str | None:
    result = run.result()
    config = restore(result["config"])
    if is_private(config):
        emit({"text": f"{run.name}: left out, its training images are outside the privacy budget"})
        return None
    device = build.pick_device(task.device)
    images = build.device_images(config.data, device)
    checksum = build.images_of(config.data).checksum
    if run_name(config, checksum, build.code_checksum(config)) != run.name:
        return "its images, or the code of its norm, are no longer those it was trained with"
    weights: dict[int, Any] | None = None
    for seed in (int(s) for s, v in result["seeds"].items() if v["status"] == "complete"):
        for epoch in (0, config.epochs):
            point = _Point(run, task, config, seed, epoch)
            if not (point.batches() or point.wants_covariance()):
                continue
            model = build.seeded_model(config, len(images.classes), seed)
            if epoch:
                weights = stored_weights(run) if weights is None else weights
                if seed not in weights:
                    return f"there is no checkpoint of seed {seed}, so its weights are gone"
                model.load_state_dict(weights[seed])
            text = point.measure(model.to(device), images)
            emit({"text": f"{run.name}, seed {seed}, epoch {epoch}: {text}"})
    return None


@dataclass(frozen=True)
class _Point:
    """The weights of one seed at one epoch, and what is still to be measured there."""

    run: Run
    task: SharedTask
    config: TrainConfig
    seed: int
    epoch: int

    def draws_of(self, batch: int) -> int:
        return self.task.draws or max(LEAST_DRAWS, IMAGES_PER_POINT // batch)

    def batches(self) -> tuple[int, ...]:
        """Return the batch sizes that are not stored with as many draws as are asked for."""
        stored = {
            row["at_batch"]: row["k"]
            for row in self.run.gradients()
            if (row["seed"], row["epoch"], row["parameters"]) == (self.seed, self.epoch, "all")
        }
        return tuple(b for b in self.task.batches if stored.get(b, 0) < self.draws_of(b))

    def wants_covariance(self) -> bool:
        rows = self.run.covariance()
        stored = any((row["seed"], row["epoch"]) == (self.seed, self.epoch) for row in rows)
        return self.task.covariance and not stored

    def measure(self, model: nn.Module, images: DeviceImages) -> str:
        """Measure and store what is missing; return a text that says what was left out."""
        shape = tuple(images.x_train.shape[1:])
        wanted = self.batches()
        sizes = {b: values_per_statistic(model, shape, b) for b in wanted}
        possible = tuple(b for b in wanted if all(size.values > 1 for size in sizes[b]))
        augment = self.config.data.augment if self.config.gradients_augment else "none"
        precision = self.config.precision
        rows = gradients_at(
            model, images, possible, self.draws_of, self.seed, self.epoch, augment, precision
        )
        self.run.add_gradients(rows)
        if self.wants_covariance():
            self._covariance(model, images)
        left = [str(b) for b in wanted if b not in possible]
        return f"measured, but not at batch {', '.join(left)}" if left else "measured"

    def _covariance(self, model: nn.Module, images: DeviceImages) -> None:
        x_NCHW = normalize(images.x_train, images.mean, images.std)
        if find_mixing_layer(model, x_NCHW[:8]) is not None:
            return  # a per-example gradient does not exist
        with matrix_precision(self.config.precision):
            rows = per_example_covariance(model, x_NCHW, images.y_train)
        self.run.add_covariance([{"seed": self.seed, "epoch": self.epoch, **row} for row in rows])
