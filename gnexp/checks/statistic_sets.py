"""Sets of values of (N, C, H, W) that share a statistic, and the sets that a norm uses.

Shapes: N examples, C channels, H and W pixels; S sets of M values each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gnexp.checks.subject import Subject

MEAN_TOLERANCE = 1e-9  # of standardized float64 values
# eps leaves the variance at s / (s + eps); the features' s is 0.2 or more, and eps 1e-3 or less.
VARIANCE_TOLERANCE = 1e-2
DEFAULT_GROUPS = 8
PLACES = 4  # at which a layer without a statistic is told from others
UNCHANGED = 1e-10  # of float64 numbers of size 1
NO_STATISTIC = "no value of the output depends on another one of the input: there is no statistic"


@dataclass(frozen=True)
class StatisticSets:
    """A partition of all values. scope: "group", "channel", "example" (all of each example),
    "batch_channel" or "batch". groups: of the channels, for the scope "group" alone."""

    scope: str
    groups: int = 1

    def __str__(self) -> str:
        return {
            "group": f"each example and group (G = {self.groups})",
            "channel": "each example and channel",
            "example": "each example",
            "batch_channel": "each channel of the whole batch",
            "batch": "the whole batch",
        }[self.scope]

    def rows(self, x_NCHW: Tensor) -> Tensor:
        """Return the values as (S, M), one row per set; `unrows` is its inverse."""
        n, c = x_NCHW.shape[:2]
        if self.scope == "batch_channel":
            return x_NCHW.transpose(0, 1).reshape(c, -1)
        if self.scope == "batch":
            return x_NCHW.reshape(1, -1)
        per_example = {"group": self.groups, "channel": c, "example": 1}[self.scope]
        return x_NCHW.reshape(n * per_example, -1)

    def unrows(self, rows_SM: Tensor, like_NCHW: Tensor) -> Tensor:
        """Return rows (S, M), or one number per set (S, 1), as (N, C, H, W)."""
        count = self.rows(like_NCHW).shape
        rows_SM = rows_SM.expand(count)
        n, c, h, w = like_NCHW.shape
        if self.scope == "batch_channel":
            return rows_SM.reshape(c, n, h, w).transpose(0, 1)
        return rows_SM.reshape(n, c, h, w)

    def standardized_in(self, y_NCHW: Tensor) -> bool:
        """Return whether mean is 0 and variance 1 in every set."""
        rows = self.rows(y_NCHW.detach())
        variance = rows.var(dim=1, correction=0)
        return bool(
            rows.mean(dim=1).abs().max() < MEAN_TOLERANCE
            and (variance - 1).abs().max() < VARIANCE_TOLERANCE
        )


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def candidates(channels: int) -> list[StatisticSets]:
    """Return the partitions that are looked for, from the finest to the coarsest."""
    finer = [StatisticSets("group", g) for g in reversed(divisors(channels))]
    return [*finer, StatisticSets("batch_channel"), StatisticSets("batch")]


def sets_used(subject: Subject) -> StatisticSets | None:
    """Return the finest sets of values within which the layer's output has mean 0 and variance 1.

    None when there are none. Found by measurement, in training mode.
    """
    x_NCHW = subject.features("sets", 4)
    y_NCHW = subject.apply(subject.layer(), x_NCHW)
    found = (s for s in candidates(subject.channels) if s.standardized_in(y_NCHW))
    return next(found, None)


def takes_no_statistic(subject: Subject) -> bool:
    """Return whether no value of the output depends on another value of the input than its own.

    Found by measurement, in training mode: of the input all values but one are replaced, the same
    one of the output must stay. What is said of a norm's statistics is vacuous for such a layer.
    """
    x_NCHW, other_NCHW = (subject.features(f"statistic {name}", 3) for name in ("x", "other"))
    g = subject.generator("statistic places")

    def output(input_NCHW: Tensor) -> Tensor:
        torch.default_generator.manual_seed(subject.seed)  # for layers that draw
        return subject.apply(subject.layer(), input_NCHW).detach()

    with torch.random.fork_rng(devices=[]):
        y_NCHW = output(x_NCHW)
        for _ in range(PLACES):
            at = tuple(torch.randint(size, (), generator=g).item() for size in x_NCHW.shape)
            mixed_NCHW = other_NCHW.clone()
            mixed_NCHW[at] = x_NCHW[at]
            if (output(mixed_NCHW)[at] - y_NCHW[at]).abs() > UNCHANGED:
                return False
    return True


def sets_claimed(subject: Subject) -> StatisticSets:
    """Return the sets that the article's text would have: groups of each example.

    As many groups as the norm says it has; where it says nothing, as many as it uses; else 8.
    """
    if subject.groups is not None:
        return StatisticSets("group", subject.groups(subject.channels))
    used = sets_used(subject)
    if used is not None and used.scope == "group":
        return used
    return StatisticSets("group", DEFAULT_GROUPS)


def variance_of(sets: StatisticSets, x_NCHW: Tensor) -> Tensor:
    """Return each set's variance (S, 1), divided by M."""
    return sets.rows(x_NCHW).var(dim=1, correction=0, keepdim=True)


def with_equal_sets(x_NCHW: Tensor, variance: float = 1.0) -> Tensor:
    """Return the values with mean 0 and this variance in every example and channel, so that every
    set of every partition has that variance too."""
    sets = StatisticSets("channel")
    rows = sets.rows(x_NCHW)
    rows = (rows - rows.mean(dim=1, keepdim=True)) / rows.std(dim=1, correction=0, keepdim=True)
    return sets.unrows(rows * variance**0.5, x_NCHW)


def random_per_set(
    sets: StatisticSets, x_NCHW: Tensor, low: float, high: float, g: torch.Generator
):
    """Return numbers uniform in [low, high], one per set, as (N, C, H, W)."""
    count = len(sets.rows(x_NCHW))
    drawn = torch.rand(count, 1, generator=g, dtype=x_NCHW.dtype)
    return sets.unrows(low + (high - low) * drawn, x_NCHW)
