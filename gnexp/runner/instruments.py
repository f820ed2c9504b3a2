"""Measure a trained model: at the end of its training, and later from the stored run.

decomposition: test accuracy and loss under other statistics than the running ones. classes: of
each class, and calibration. shift: on corrupted images. batches: under shifts of the batch. The
first two are cheap and belong to every run; the others are asked for.
"""

import base64
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from gnexp.config.schema import ShiftConfig, TrainConfig
from gnexp.data.corruptions.cifar_c import load_cifar_c
from gnexp.data.corruptions.table import CORRUPTIONS, PUBLISHED
from gnexp.data.device_images import DeviceDataset, draw_batches
from gnexp.data.seeding import derived_seed, own_stream
from gnexp.measure.batch_shift import measure_batches
from gnexp.measure.bn_statistics import STATISTICS, other_scores
from gnexp.measure.class_accuracy import calibration_error, chance_gap, class_accuracies
from gnexp.measure.corruption_shift import measure_shift
from gnexp.measure.gradient_noise import choose_draws, measure_gradients
from gnexp.runner.build.data import train_settings
from gnexp.store.files import CorruptFile
from gnexp.store.run import Run
from gnexp.training.evaluate import Scores
from gnexp.training.precision import matrix_precision

ALWAYS = ("decomposition", "classes")
INSTRUMENTS = (*ALWAYS, "shift", "batches")
OTHER_SCORES = [f"test_{kind}_{name}" for name in STATISTICS for kind in ("acc", "loss")]


@dataclass(frozen=True)
class Trained:
    """One seed's model at its last weights, and its scores on the test images."""

    run: Run
    config: TrainConfig
    model: nn.Module
    images: DeviceDataset
    seed: int
    scores: Scores


def measure(what: str, trained: Trained, shift: ShiftConfig) -> dict[str, Any]:
    """Run one of INSTRUMENTS and store its rows; return its numbers for result.json."""
    model, images, precision = trained.model, trained.images, trained.config.precision
    numbers = {}
    with matrix_precision(precision):
        if what in ALWAYS:
            numbers["ece"] = calibration_error(trained.scores.logits_NK, images.y_test)
        if what == "decomposition":
            return numbers | _other_scores(trained)
        if what == "classes":
            rows = class_accuracies(trained.scores.logits_NK, images.y_test, images.classes)
        elif what == "shift":
            names = corruption_names(shift)
            released = load_cifar_c(shift.root, names) if shift.root else None
            how = {"limit": shift.images, "cifar_c": released, "precision": precision}
            rows = measure_shift(model, images, names, shift.severities, **how)
        else:
            rows = measure_batches(model, images, limit=shift.images, precision=precision)
    trained.run.add_rows(f"{what}.csv", [{"seed": trained.seed, **row} for row in rows])
    return numbers


def _other_scores(trained: Trained) -> dict[str, float | None]:
    config = trained.config
    how = {"augment": config.data.augment, "seed": trained.seed, "plain": trained.scores}
    scores = other_scores(trained.model, trained.images, config.batch, config.precision, **how)
    numbers: dict[str, float | None] = {}
    for name, score in scores.items():
        numbers[f"test_acc_{name}"] = None if score is None else score.accuracy
        numbers[f"test_loss_{name}"] = None if score is None else score.loss
    return numbers


@contextmanager
def keeping_the_result(what: str, unmeasured: dict[str, str]) -> Iterator[None]:
    """Note in `unmeasured` why an instrument failed, so that the training's result is kept.

    Errors of the store (a full disk) pass: the same call then goes on from the checkpoint.
    """
    try:
        yield
    except (OSError, CorruptFile):
        raise
    except Exception as error:
        words = str(error).strip().splitlines() or ["without a message"]
        named = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        unmeasured[what] = named + words[0]


def corruption_names(shift: ShiftConfig) -> list[str]:
    """Return the corruptions that are named; where none is, all there are, or all published."""
    every = PUBLISHED if shift.root else CORRUPTIONS
    return list(every) if shift.corruptions is None else list(shift.corruptions)


def right_images(plain: Scores, images: DeviceDataset, accuracy: float) -> dict[str, str]:
    """Return {"correct": which test images are right}: one bit each, in stored order, in base64.

    Bits as `numpy.packbits` packs them, 1 where the largest float32 logit is the label's. {} where
    their share is not `accuracy`, the one reported: a training that was killed between its last
    evaluation and its result is evaluated again, maybe by other kernels.
    """
    right_N = (plain.logits_NK.argmax(dim=1) == images.y_test).cpu().numpy()
    if abs(right_N.sum() - accuracy * len(right_N)) > 0.5:
        return {}
    return {"correct": base64.b64encode(np.packbits(right_N)).decode("ascii")}


def class_head(run: Run, images: DeviceDataset) -> dict[str, Any]:
    """Return the class entries of result.json over all seeds with stored logits.

    A "note" in place of the numbers says why there are none.
    """
    labels = images.y_test.cpu().numpy()
    logits = [each for _, each in sorted(run.logits().items()) if np.isfinite(each).all()]
    if not logits:
        return {}
    hits_SN = np.stack([each.argmax(axis=1) == labels for each in logits])
    try:
        return {"classes": chance_gap(hits_SN, labels)}
    except ValueError as error:  # a test set of one class
        return {"classes": {"note": f"no chance gap: {error}"}}


def own_gradients(
    config: TrainConfig, model: nn.Module, images: DeviceDataset, seed: int, epoch: int
) -> list[dict[str, Any]]:
    """Return the rows of one seed's model at its own batch size; none where draws are zero."""
    draws = config.gradients
    if draws is None:
        used = train_settings(config).examples_per_epoch(len(images.x_train))
        draws = choose_draws(config.epochs * used // config.batch)
    batches = [config.batch] if draws else []
    return gradients_at(config, model, images, batches, lambda _: draws, seed, epoch)


def gradients_at(
    config: TrainConfig,
    model: nn.Module,
    images: DeviceDataset,
    batches: Iterable[int],
    draws_of: Callable[[int], int],
    seed: int,
    epoch: int,
) -> list[dict[str, Any]]:
    """Return rows of gradients.csv: the gradient noise at the model's weights per batch size.

    The precision is that of training, except that bf16 runs are measured in float32: rounding
    would count as noise.
    """
    augment, rows = config.data.augment if config.gradients_augment else "none", []
    for batch in batches:
        k, purpose = draws_of(batch), f"gradients-{epoch}-{batch}"
        drawn = draw_batches(images, batch, k, seed, purpose, augment)
        # Models that draw in a forward pass have a stream of this point's own, so that it repeats.
        stream = own_stream(images.x_train.device, derived_seed(seed, f"{purpose} forward"))
        with matrix_precision(config.precision), stream:
            measured = measure_gradients(model, drawn, k, batch)
        rows += [{"seed": seed, "epoch": epoch, "at_batch": batch, **row} for row in measured]
    return rows
