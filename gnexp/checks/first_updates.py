"""The first updates of training with gamma 1 and with gamma 0, for claim 10.

A network of the article's blocks is trained from the same weights on the same batches, once with
the last gamma of each residual branch at 1 and once at 0, for several seeds: SGD with momentum and
weight decay as the protocol has them, at a constant rate, without warm-up. Points: panel "first
updates, rate R", x = number of the update, y = training loss (nats; mean over seeds, lo and hi its
95 % interval); series "gamma 1" and "gamma 0".

Shapes: N images of a batch, C channels, H and W pixels; R replicas (seeds times gammas), S seeds,
U updates.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from gnexp.analysis.statistics import Interval, t_interval
from gnexp.checks.finding import Finding, Measured, Point, inside
from gnexp.checks.subject import NormError, Subject
from gnexp.training.lr_schedule import peak_rate
from gnexp.training.stack import draws_random_numbers, why_not_stackable
from gnexp.training.stacked_step import StackedStep

MODEL, BATCH, UPDATES, LAST = "preresnet20", 16, 10, 5
LR, MOMENTUM, WEIGHT_DECAY = 0.1, 0.9, 5e-4  # the protocol's; the rate is that at 128 images
RATES = {"": peak_rate(LR, "linear", BATCH), "_fast": LR}
DRAWS_PER_SEED = 8
NOTABLE = 0.1  # nats
DIVERGED = 100.0  # nats; larger losses, and what is no number, count as this


def first_updates(subject: Subject, result: Measured) -> None:
    """Add the findings "first_updates" and "first_updates_fast", and their points."""
    seeds = max(1, subject.draws // DRAWS_PER_SEED)
    for suffix, rate in RATES.items():
        losses_SU = [_losses(subject, rate, seeds, zero_gamma) for zero_gamma in (False, True)]
        for gamma, l_SU in zip((1, 0), losses_SU, strict=True):
            _points(result, f"first updates, rate {rate:g}", f"gamma {gamma}", l_SU)
        result.findings.append(_finding(subject, suffix, *losses_SU))


def _finding(subject: Subject, suffix: str, one_SU: np.ndarray, zero_SU: np.ndarray) -> Finding:
    rate, people = (
        RATES[suffix],
        "the protocol's rate" if not suffix else "8 times the protocol's rate",
    )
    peaks = [t_interval(l_SU.max(axis=1)) for l_SU in (one_SU, zero_SU)]
    peak = t_interval(one_SU.max(axis=1) - zero_SU.max(axis=1))
    last = t_interval((one_SU - zero_SU)[:, -LAST:].mean(axis=1))
    diverged = int((one_SU.max(axis=1) >= DIVERGED).sum())
    pixels = "x".join(map(str, _images(subject).shape[2:]))
    return Finding(
        f"first_updates{suffix}",
        f"gamma 1 destabilizes the first updates and gamma 0 does not, at {people}",
        f"largest loss of the first {UPDATES} updates, gamma 1 minus gamma 0: {MODEL}, batch"
        f" {BATCH}, {pixels} pixels, constant rate {rate:g}; more than {DIVERGED:g} nats count as"
        " that",
        f"above {NOTABLE:g} nats",
        f"{spelled(peak, 2)} nats; {peaks[0].mean:.3g} against"
        f" {peaks[1].mean:.3g}, chance is {math.log(subject.classes):.3g}"
        + (f"; diverged with gamma 1: {diverged} of {len(one_SU)}" if diverged else ""),
        inside(peak.lo, peak.hi, NOTABLE, math.inf),
        *(peak.mean, peak.lo, peak.hi),
        tolerance=f"the whole 95 % interval above {NOTABLE:g} nats",
        n=len(one_SU),
        note=f"loss of the last {LAST} of these updates, gamma 1 minus gamma 0:"
        f" {spelled(last, 2)} nats",
    )


def spelled(interval: Interval, digits: int = 3) -> str:
    """Return a mean and its 95 % interval in words."""
    number = f"{interval.mean:.{digits}g}"
    if interval.n < 2:
        return f"{number} (one seed)"
    return f"{number} ({interval.lo:.{digits}g} to {interval.hi:.{digits}g})"


def _images(subject: Subject) -> torch.Tensor:
    return subject.x_NCHW[:, :, ::2, ::2]  # every other pixel: a quarter of the time


def _losses(subject: Subject, rate: float, seeds: int, zero_gamma: bool) -> np.ndarray:
    """Return the training loss before each update, (S, U)."""
    nets = [subject.network(MODEL, seed=seed, zero_gamma=zero_gamma) for seed in range(seeds)]
    try:
        parts = sharing_a_step(nets, tuple(_images(subject).shape[1:]))
        with torch.random.fork_rng(devices=[]):
            losses = [_train(subject, [nets[s] for s in part], part, rate) for part in parts]
    except Exception as error:
        raise NormError(f"training raised {type(error).__name__}: {error}") from error
    losses_SU = np.nan_to_num(np.concatenate(losses), nan=DIVERGED, posinf=DIVERGED)
    return losses_SU.clip(max=DIVERGED)


def sharing_a_step(nets: Sequence[nn.Module], shape: tuple[int, ...]) -> list[range]:
    """Return groups of networks that train in one step: all together, or one each.

    shape: (C, H, W) of an image.
    """
    together = not draws_random_numbers(nets[0], shape) and why_not_stackable(nets, shape) is None
    return [range(len(nets))] if together else [range(r, r + 1) for r in range(len(nets))]


def _train(subject: Subject, nets: list[nn.Module], seeds: range, rate: float) -> np.ndarray:
    x_NCHW, step = _images(subject), StackedStep(nets, BATCH, MOMENTUM, WEIGHT_DECAY)
    rows = []
    for u in range(UPDATES):
        batches = [_batch(subject, seed, u) for seed in seeds]
        x = torch.cat([x_NCHW[batch] for batch in batches], dim=1)
        y_NR = torch.stack([subject.y_N[batch] for batch in batches], dim=1)
        step.update(x.contiguous(), y_NR, [rate] * len(nets))
        rows.append([loss / BATCH for loss, _ in step.take_sums()])
    return np.array(rows).T


def _batch(subject: Subject, seed: int, update: int) -> torch.Tensor:
    g = subject.generator("first updates", seed, update)
    return torch.randperm(len(subject.x_NCHW), generator=g)[:BATCH]


def _points(result: Measured, panel: str, series: str, losses_SU: np.ndarray) -> None:
    for update, losses_S in enumerate(losses_SU.T):
        loss = t_interval(losses_S)
        result.points.append(Point(panel, series, update, loss.mean, loss.lo, loss.hi))
