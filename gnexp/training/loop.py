"""Training replicas in one step, an epoch at a time; it neither writes nor measures gradients."""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gnexp.data.device_images import DeviceDataset
from gnexp.data.seeding import derived_seed, own_stream
from gnexp.data.update_blocks import poisson_updates, update_blocks
from gnexp.training.evaluate import evaluate
from gnexp.training.lr_schedule import learning_rate, peak_rate
from gnexp.training.precision import matrix_precision
from gnexp.training.stacked_step import Tick, no_tick


@dataclass(frozen=True)
class TrainSettings:
    """The numbers of the training protocol, for any model and data."""

    batch: int
    update_batch: int
    epochs: int
    updates: int | None = None  # in all, when the last of `epochs` ends before its time
    lr_rule: str = "linear"
    warmup: float = 0.05
    schedule: str = "cosine"
    precision: str = "fp32"
    augment: str = "crop_flip"
    poisson: bool = False  # each update draws its images anew; of one replica, see poisson_updates
    secret: bool = False  # Poisson samples come from the system's entropy

    def examples_per_epoch(self, train_size: int) -> int:
        """The images used in one epoch: the last partial update is dropped.

        Under Poisson sampling that many are expected.
        """
        return train_size // self.update_batch * self.update_batch

    def examples_seen(self, epoch: int, train_size: int) -> int:
        """The images used up to the end of an epoch."""
        seen = epoch * self.examples_per_epoch(train_size)
        return seen if self.updates is None else min(seen, self.updates * self.update_batch)

    def rate(self, lr: float, seen: int, train_size: int) -> float:
        """Return the learning rate of the update that starts after so many images."""
        peak = peak_rate(lr, self.lr_rule, self.update_batch)
        total = self.examples_seen(self.epochs, train_size)
        return learning_rate(seen, total, peak, self.warmup, self.schedule)

    def blocks(
        self,
        images: DeviceDataset,
        seeds: Sequence[int],
        epoch: int,
        dtype: torch.dtype,
        first: int,
        last: int,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield updates `first` to `last` - 1 of an epoch; see `data.update_blocks`."""
        if not self.poisson:
            sizes = self.batch, self.update_batch
            return update_blocks(images, seeds, epoch, *sizes, self.augment, dtype, first, last)
        (seed,) = seeds
        drawn = self.update_batch, self.augment, dtype, first, self.secret
        return poisson_updates(images, seed, epoch, *drawn)


class Step(Protocol):
    """The interface of a step that trains R replicas: StackedStep, GraphStep, PrivateStep."""

    replicas: int
    dtype: torch.dtype

    def run(self, x: Tensor, y: Tensor, rates: Sequence[Sequence[float]], tick: Tick) -> None: ...

    def take_sums(self) -> list[tuple[float, int]]: ...

    def model(self, replica: int) -> nn.Module: ...


@dataclass(frozen=True)
class ResumePoint:
    """A point within an epoch, between two blocks of updates, from which training resumes.

    updates: made in it so far; time_s: spent on them; random_states: of the global generators, for
    models that draw in a forward pass. With the step's own states it is all that going on takes.
    """

    updates: int
    time_s: float
    random_states: list[Tensor]


@dataclass(frozen=True)
class Epoch:
    """The metrics of one epoch of one replica: accuracies in [0, 1], losses in nats, time in s.

    time_s is the replica's share of the time that all replicas of its step took together.
    """

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
        """Return True when the training or test loss is not finite."""
        return not (math.isfinite(self.train_loss) and math.isfinite(self.test_loss))


def train_epochs(
    step: Step,
    images: DeviceDataset,
    train_settings: TrainSettings,
    seeds: Sequence[int],
    lrs: Sequence[float],
    first_epoch: int = 1,
    tick: Tick = no_tick,
    resumed: ResumePoint | None = None,
    pausing: Callable[[int, Callable[[], ResumePoint]], None] | None = None,
) -> Iterator[list[Epoch]]:
    """Train from `first_epoch` to the last, yielding what each epoch gave every replica.

    The order and the augmentation of an epoch depend on (seed, epoch) alone, so training that
    starts at a later epoch from stored weights sees what it would have seen. A replica that
    diverged stays in the step, where it harms nobody; when all have, training ends. `tick` hears
    of images as they are used. `pausing` is called after each block of updates but an epoch's last
    with the epoch and a function that tells where it stands; `resumed` is such a place in
    `first_epoch`.
    """
    size, device = len(images.x_train), images.x_train.device
    for epoch in range(first_epoch, train_settings.epochs + 1):
        before = train_settings.examples_seen(epoch - 1, size)
        used = train_settings.examples_seen(epoch, size) - before
        last = used // train_settings.update_batch
        at, resumed = resumed or ResumePoint(0, 0.0, []), None
        done, start = at.updates, time.perf_counter() - at.time_s
        stream = _forward_stream(seeds[0], epoch, device, at.random_states)
        with matrix_precision(train_settings.precision), stream:
            for x, y in train_settings.blocks(images, seeds, epoch, step.dtype, done, last):
                seen = [
                    before + update * train_settings.update_batch
                    for update in range(done, done + y.shape[1])
                ]
                rates_UR = [[train_settings.rate(lr, s, size) for lr in lrs] for s in seen]
                step.run(x, y, rates_UR, tick)
                done += len(rates_UR)
                if pausing and done < last:
                    pausing(epoch, functools.partial(_pause, done, start, device))
            sums = step.take_sums()
            scores = [
                evaluate(step.model(replica), images, precision=train_settings.precision)
                for replica in range(step.replicas)
            ]
        time_s = (time.perf_counter() - start) / step.replicas
        results = [
            Epoch(
                epoch=epoch,
                examples_seen=before + used,
                lr=rate,
                train_loss=loss_sum / used,
                train_acc=hits / used,
                test_loss=score.loss,
                test_acc=score.accuracy,
                time_s=time_s,
                logits_NK=score.logits_NK,
            )
            for rate, (loss_sum, hits), score in zip(rates_UR[-1], sums, scores, strict=True)
        ]
        yield results
        if all(result.diverged for result in results):
            return


def _pause(updates: int, start: float, device: torch.device) -> ResumePoint:
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return ResumePoint(updates, time.perf_counter() - start, states)


@contextlib.contextmanager
def _forward_stream(
    seed: int, epoch: int, device: torch.device, states: Sequence[Tensor]
) -> Iterator[None]:
    """Give what draws in a forward pass (dropout, a user's norm) a stream of this epoch's own.

    Such a model trains alone in its step, so the stream is that of its seed. states: of the global
    generators from which to go on within the epoch; none at its start.
    """
    with own_stream(device, derived_seed(seed, "forward", epoch)):
        if states:
            torch.set_rng_state(states[0])
        if device.type == "cuda" and states[1:]:
            torch.cuda.set_rng_state(states[1], device)
        yield
