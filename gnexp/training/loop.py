"""Training one seed, an epoch at a time; neither writes files nor measures gradients."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gnexp.data.loader import (
    DeviceImages,
    augmentation,
    crop_flip,
    epoch_augmentation,
    epoch_order,
    normalize,
)
from gnexp.seeding import derived_seed
from gnexp.training.evaluate import evaluate
from gnexp.training.step import EagerStep, learning_rate, matrix_precision, peak_rate


@dataclass(frozen=True)
class Recipe:
    """How a seed is trained: the numbers of the protocol, for any model and data."""

    batch: int
    update_batch: int
    epochs: int
    lr: float
    lr_rule: str = "linear"
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.05
    schedule: str = "cosine"
    precision: str = "fp32"
    augment: str = "crop_flip"

    def examples_per_epoch(self, train_size: int) -> int:
        """The images used in one epoch: the last partial update is dropped."""
        return train_size // self.update_batch * self.update_batch


@dataclass(frozen=True)
class Epoch:
    """What one epoch gave: accuracies in [0, 1], losses in nats, time in seconds."""

    epoch: int
    examples_seen: int
    lr: float
    train_loss: float
    train_acc: float
    test_loss: float
    test_acc: float
    time_s: float
    logits_NK: Tensor

    @property
    def diverged(self) -> bool:
        """Whether the training or test loss is no longer a finite number."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.test_loss))


def train_epochs(
    step: EagerStep,
    images: DeviceImages,
    recipe: Recipe,
    seed: int,
    first_epoch: int = 1,
    tick: Callable[[int], None] = lambda examples: None,
) -> Iterator[Epoch]:
    """Train from `first_epoch` to the last, yielding after each; a diverged epoch is the last one.

    The order and the augmentation of an epoch depend on (seed, epoch) alone, so training that
    starts at a later epoch from stored weights sees what it would have seen. `tick` hears after
    every update how many images it used.
    """
    for epoch in range(first_epoch, recipe.epochs + 1):
        start = time.perf_counter()
        with matrix_precision(recipe.precision), _forward_stream(seed, epoch, images):
            rate = _train_one(step, images, recipe, seed, epoch, tick)
            scores = evaluate(step.model, images, precision=recipe.precision)
        used = recipe.examples_per_epoch(len(images.x_train))
        loss_sum, hits = step.take_sums()
        result = Epoch(
            epoch=epoch,
            examples_seen=epoch * used,
            lr=rate,
            train_loss=loss_sum / used,
            train_acc=hits / used,
            test_loss=scores.loss,
            test_acc=scores.accuracy,
            time_s=time.perf_counter() - start,
            logits_NK=scores.logits_NK,
        )
        yield result
        if result.diverged:
            return


@contextlib.contextmanager
def _forward_stream(seed: int, epoch: int, images: DeviceImages) -> Iterator[None]:
    """Give what draws in a forward pass (dropout, a user's norm) a stream of this epoch's own."""
    device = images.x_train.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(derived_seed(seed, "forward", epoch))
        if device.type == "cuda":
            torch.cuda.manual_seed(derived_seed(seed, "forward", epoch))
        yield


def _train_one(
    step: EagerStep,
    images: DeviceImages,
    recipe: Recipe,
    seed: int,
    epoch: int,
    tick: Callable[[int], None],
) -> float:
    """Train one epoch and return its last learning rate."""
    step.model.train()
    size, device = len(images.x_train), images.x_train.device
    used = recipe.examples_per_epoch(size)
    order = epoch_order(size, seed, epoch)[:used].to(device)
    pad, flip = augmentation(recipe.augment)
    offsets, flips = (t.to(device) for t in epoch_augmentation(size, seed, epoch, pad, flip))
    dtype = next(step.model.parameters()).dtype
    peak = peak_rate(recipe.lr, recipe.lr_rule, recipe.update_batch)
    rate = 0.0
    for index, at in enumerate(order.split(recipe.update_batch)):
        seen = (epoch - 1) * used + index * recipe.update_batch
        rate = learning_rate(seen, recipe.epochs * used, peak, recipe.warmup, recipe.schedule)
        x = images.x_train[at]
        if pad or flip:
            x = crop_flip(x, offsets[at], flips[at], pad)
        step(normalize(x, images.mean, images.std, dtype), images.y_train[at], rate)
        tick(len(at))
    return rate
