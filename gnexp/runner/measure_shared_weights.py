"""Gradients of every batch size at the same weights: those of each family's largest-batch run."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from gnexp.config.identity import identity, restore
from gnexp.config.schema import TrainConfig, is_private
from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.measure.per_example import find_mixing_layer, per_example_covariance
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.runner.measure_gradients import gradients_at
from gnexp.runner.process_pool import Emit
from gnexp.runner.stored_runs import MeasureTask, StoredRun, measure_all
from gnexp.store.files import CorruptFile
from gnexp.store.lr_choices import LRChoice, recorded_choices
from gnexp.store.run import Run
from gnexp.training.precision import matrix_precision

IMAGES_PER_POINT = 4096  # draws x batch: after training the tails of gradients are heavy
LEAST_DRAWS = 64


@dataclass(frozen=True)
class SharedTask(MeasureTask):
    """Gradients at the first and last weights of one stored run."""

    batches: tuple[int, ...]
    draws: int | None
    covariance: bool

    def measure(self, run: Run, emit: Emit) -> None:
        """Measure every complete seed."""
        if is_private(restore(run.result()["config"])):
            left_out = "its training images are outside the privacy budget"
            emit({"text": f"{run.name}: left out, {left_out}"})
            return
        stored = StoredRun(run, self)
        for seed in stored.seeds:
            for epoch in (0, stored.config.epochs):
                point = _Point(run, self, stored.config, seed, epoch)
                if point.batches() or point.wants_covariance():
                    text = point.measure(stored.model(seed, trained=epoch > 0), stored.images)
                    emit({"text": f"{run.name}, seed {seed}, epoch {epoch}: {text}"})


def measure_shared(
    folders: list[Path],
    *,
    batches: list[int],
    draws: int | None,
    covariance: bool,
    device: str,
    workers: int | None,
    trusted: Iterable[str] = (),
) -> list[tuple[str, str]]:
    """Measure every batch size at the same weights: the first and last of the largest-batch runs.

    At equal weights only the batch differs, so noise ~ 1/B is a law for norms that do not mix
    examples. Points that are stored already are not measured again. trusted: code that the runs may
    call, as `named_code` names it. Returns (run, reason) for every run that could not be measured.
    """
    tasks = [
        SharedTask(folder, device, tuple(trusted), tuple(batches), draws, covariance)
        for folder in largest_batch_runs(folders)
    ]
    print(f"measuring gradients at shared weights: {len(tasks)} runs", flush=True)
    return measure_all(tasks, workers, device)


def largest_batch_runs(folders: list[Path]) -> list[Path]:
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
        kept = {k: str(v) for k, v in same.items() if k not in follows}
        family = str(sorted(kept.items()))
        if family not in families or config.batch > families[family][0]:
            families[family] = config.batch, folder
    return [folder for _, folder in families.values()]


def _choices(study: Path) -> list[LRChoice]:
    try:
        return recorded_choices(study)
    except CorruptFile:  # then every rate is one that was typed
        return []


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

    def measure(self, model: nn.Module, images: DeviceDataset) -> str:
        """Measure and store missing points; return a text on those left out."""
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

    def _covariance(self, model: nn.Module, images: DeviceDataset) -> None:
        x_NCHW = normalize(images.x_train, images.mean, images.std)
        if find_mixing_layer(model, x_NCHW[:8]) is not None:
            return  # a per-example gradient does not exist
        with matrix_precision(self.config.precision):
            rows = per_example_covariance(model, x_NCHW, images.y_train)
        self.run.add_covariance([{"seed": self.seed, "epoch": self.epoch, **row} for row in rows])
