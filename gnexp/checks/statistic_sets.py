"""Sets of values of (N, C, H, W) that share a statistic.

Shapes: N examples, C channels, H and W pixels; S sets of M values each.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

MEAN_TOLERANCE = 1e-9  # of standardized float64 values
# eps leaves the variance at s / (s + eps); the features' s is 0.2 or more, and eps 1e-3 or less.
VARIANCE_TOLERANCE = 1e-2
SCOPES = {
    "group": "each example and group",
    "channel": "each example and channel",
    "example": "each example",
    "batch_channel": "each channel of the whole batch",
    "batch": "the whole batch",
}


@dataclass(frozen=True)
class StatisticSets:
    """A partition of all values. scope: of SCOPES. groups: only for "group", of channels."""

    scope: str
    groups: int = 1

    def __str__(self) -> str:
        return SCOPES[self.scope] + (f" (G = {self.groups})" if self.scope == "group" else "")

    def rows(self, x_NCHW: Tensor) -> Tensor:
        """Return the values as (S, M), one row per set; `unrows` is its inverse."""
        n, c = x_NCHW.shape[:2]
        if self.scope == "batch_channel":
            return x_NCHW.transpose(0, 1).reshape(c, -1)
        sets = {"batch": 1, "example": n, "channel": n * c, "group": n * self.groups}
        return x_NCHW.reshape(sets[self.scope], -1)

    def unrows(self, rows_SM: Tensor, like_NCHW: Tensor) -> Tensor:
        """Return rows (S, M), or one number per set (S, 1), as (N, C, H, W)."""
        rows_SM = rows_SM.expand(self.rows(like_NCHW).shape)
        n, c, h, w = like_NCHW.shape
        if self.scope == "batch_channel":
            return rows_SM.reshape(c, n, h, w).transpose(0, 1)
        return rows_SM.reshape(n, c, h, w)

    def size(self, *shape: int) -> int:
        """Return how many values of (N, C, H, W) a set holds."""
        return self.rows(torch.empty(shape)).shape[1]

    def variance(self, x_NCHW: Tensor) -> Tensor:
        """Return each set's variance (S, 1), divided by M."""
        return self.rows(x_NCHW).var(dim=1, correction=0, keepdim=True)

    def centred(self, x_NCHW: Tensor) -> Tensor:
        """Return the values less the mean of their set, as (S, M)."""
        rows = self.rows(x_NCHW)
        return rows - rows.mean(dim=1, keepdim=True)

    def with_variance(self, x_NCHW: Tensor, variance: float) -> Tensor:
        """Return the values with mean 0 and this variance in every set."""
        rows = self.centred(x_NCHW) / self.rows(x_NCHW).std(dim=1, correction=0, keepdim=True)
        return self.unrows(rows * variance**0.5, x_NCHW)

    def random(self, x_NCHW: Tensor, low: float, high: float, g: torch.Generator) -> Tensor:
        """Return numbers uniform in [low, high], one per set, as (N, C, H, W)."""
        drawn = torch.rand(len(self.rows(x_NCHW)), 1, generator=g, dtype=x_NCHW.dtype)
        return self.unrows(low + (high - low) * drawn, x_NCHW)

    def largest_mean(self, y_NCHW: Tensor) -> float:
        """Return the largest |mean| of a set."""
        return self.rows(y_NCHW).mean(dim=1).abs().max().item()

    def standardized_in(self, y_NCHW: Tensor) -> bool:
        """Return whether mean is 0 and variance 1 in every set."""
        off = (self.variance(y_NCHW) - 1).abs().max()
        return bool(self.largest_mean(y_NCHW) < MEAN_TOLERANCE and off < VARIANCE_TOLERANCE)


CHANNEL = StatisticSets("channel")


def divisors(number: int) -> list[int]:
    """Return all divisors, ascending."""
    return [d for d in range(1, number + 1) if number % d == 0]


def with_equal_sets(x_NCHW: Tensor, variance: float = 1.0) -> Tensor:
    """Return the values with mean 0 and this variance in every example and channel, so that every
    set of every partition has that variance too."""
    return CHANNEL.with_variance(x_NCHW, variance)
