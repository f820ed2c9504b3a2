"""Random numbers in which each image has a stream of its own."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gnexp.data.seeding import generator


class Draws:
    """Draws for N images, one generator each, made on the CPU: the same numbers on every device.

    Every result is float64 (N, *shape) on `device`. A row depends on its own generator alone, so
    that an image gets the same numbers whatever images are corrupted with it.
    """

    def __init__(
        self, seed: int, purpose: str, severity: int, indices: Sequence[int], device: torch.device
    ) -> None:
        self.device = device
        self._sources = [generator(seed, purpose, severity, index) for index in indices]

    def uniform(self, *shape: int) -> Tensor:
        """Return values in [0, 1)."""
        return self._stack(lambda source: torch.rand(shape, generator=source))

    def normal(self, *shape: int) -> Tensor:
        """Return values of mean 0 and variance 1."""
        return self._stack(lambda source: torch.randn(shape, generator=source))

    def poisson(self, rates: Tensor) -> Tensor:
        """Return counts (N, ...) with the expectations `rates` (N, ...)."""
        each = iter(rates.float().cpu())
        return self._stack(lambda source: torch.poisson(next(each), generator=source))

    def _stack(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(source) for source in self._sources]).double().to(self.device)
