"""The first updates of training with gamma 1 and with gamma 0, for claim 10.

A network of the article's blocks is trained from the same weights on the same batches, once with
the last gamma of each residual branch at 1 and once at 0, for several seeds: SGD with momentum and
weight decay as the protocol has them, at a constant rate, without warm-up.

Shapes: N images of a batch, C channels, H and W pixels; S seeds, U updates.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from gnexp.analysis.statistics import Interval, t_interval
from gnexp.checks.finding import Finding, Found, Point, Statement
from gnexp.checks.stacked_training import train
from gnexp.checks.subject import Subject
from gnexp.training.lr_schedule import peak_rate

MODEL, BATCH, UPDATES, LAST = "preresnet20", 16, 10, 5
LR = 0.1  # the protocol's, at 128 images
RATES = {"": peak_rate(LR, "linear", BATCH), "_fast": LR}
DRAWS_PER_SEED = 8
NOTABLE = 0.1  # nats
DIVERGED = 100.0  # nats; larger losses, and what is no number, count as this

FIRST = Statement(
    "first_updates{suffix}",
    "gamma 1 destabilizes the first updates and gamma 0 does not, at {people}",
    f"largest loss of the first {UPDATES} updates, gamma 1 minus gamma 0: {MODEL}, batch {BATCH},"
    f" {{pixels}} pixels, constant rate {{rate:g}}; more than {DIVERGED:g} nats count as that",
    expected=f"above {NOTABLE:g} nats",
    measured="{peak} nats; {one:.3g} against {zero:.3g}, chance is {chance:.3g}{diverged}",
    tolerance=f"the whole 95 % interval above {NOTABLE:g} nats",
    note=f"loss of the last {LAST} of these updates, gamma 1 minus gamma 0: {{last}} nats",
    low=NOTABLE,
)


def first_updates(subject: Subject) -> Found:
    """Yield the findings "first_updates" and "first_updates_fast", and their points."""
    seeds = max(1, subject.draws // DRAWS_PER_SEED)
    for suffix, rate in RATES.items():
        losses_SU = [_losses(subject, rate, seeds, zero_gamma) for zero_gamma in (False, True)]
        for gamma, l_SU in zip((1, 0), losses_SU, strict=True):
            for update, losses_S in enumerate(l_SU.T):
                loss = t_interval(losses_S)
                numbers = (update, loss.mean, loss.lo, loss.hi)
                yield Point(f"first updates, rate {rate:g}", f"gamma {gamma}", *numbers)
        yield _finding(subject, suffix, *losses_SU)


def _finding(subject: Subject, suffix: str, one_SU: np.ndarray, zero_SU: np.ndarray) -> Finding:
    one, zero = (t_interval(l_SU.max(axis=1)).mean for l_SU in (one_SU, zero_SU))
    peak = t_interval(one_SU.max(axis=1) - zero_SU.max(axis=1))
    last = t_interval((one_SU - zero_SU)[:, -LAST:].mean(axis=1))
    gone = int((one_SU.max(axis=1) >= DIVERGED).sum())
    return FIRST.found(
        peak,
        **{"suffix": suffix, "rate": RATES[suffix], "one": one, "zero": zero},
        people="8 times the protocol's rate" if suffix else "the protocol's rate",
        pixels="x".join(map(str, _images(subject).shape[2:])),
        **{"peak": spelled(peak, 2), "last": spelled(last, 2), "chance": math.log(subject.classes)},
        diverged=f"; diverged with gamma 1: {gone} of {peak.n}" if gone else "",
    )


def spelled(interval: Interval, digits: int = 3) -> str:
    """Return a mean and its 95 % interval in words."""
    number = f"{interval.mean:.{digits}g}"
    if interval.n < 2:
        return f"{number} (one seed)"
    return f"{number} ({interval.lo:.{digits}g} to {interval.hi:.{digits}g})"


def _images(subject: Subject) -> Tensor:
    return subject.x_NCHW[:, :, ::2, ::2]  # every other pixel: a quarter of the time


def _losses(subject: Subject, rate: float, seeds: int, zero_gamma: bool) -> np.ndarray:
    """Return the training loss before each update, (S, U)."""
    nets = [subject.network(MODEL, seed=seed, zero_gamma=zero_gamma) for seed in range(seeds)]

    def updates(seed: int) -> Iterator[tuple[Tensor, float]]:
        return ((_batch(subject, seed, update), rate) for update in range(UPDATES))

    _, losses_SU = train(nets, _images(subject), subject.y_N, BATCH, updates)
    return np.nan_to_num(losses_SU, nan=DIVERGED, posinf=DIVERGED).clip(max=DIVERGED)


def _batch(subject: Subject, seed: int, update: int) -> Tensor:
    g = subject.generator("first updates", seed, update)
    return torch.randperm(len(subject.x_NCHW), generator=g)[:BATCH]
