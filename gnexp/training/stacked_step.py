"""One optimizer update of R replicas in one forward and backward pass.

Shapes: R replicas, U updates, N images of one update, B of one batch, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, groupby

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.sgd import sgd

from gnexp.norms.module_state import put_state
from gnexp.training.lr_schedule import rate_factors
from gnexp.training.precision import autocast
from gnexp.training.stack import Stack

MOST_IMAGES = 512  # of 32x32 pixels, of one replica in one forward pass
Tick = Callable[[int], None]


def no_tick(images: int) -> None:
    """No-op progress callback."""


class StackedStep:
    """Trains R models of one architecture at once; sums of loss and hits stay on the device.

    The statistics of a norm see `batch` images, the optimizer sees those of a whole update: where
    every layer allows it the batches of an update share a forward pass, else they follow each
    other (`one_pass=False` asks for that). A replica has its own images, weights and rate, and its
    numbers do not depend on its neighbours.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        batch: int,
        momentum: float,
        weight_decay: float,
        precision: str = "fp32",
        *,
        lrs: Sequence[float] | None = None,
        channels_last: bool = False,
        one_pass: bool = True,
        compiled: bool = False,
    ) -> None:
        """Copy the models' weights, on the models' device.

        lrs: of each replica; neighbours of equal rate share an optimizer step. compiled: by
        torch.compile, with the first update.
        """
        self.models = list(models)
        self.replicas = len(self.models)
        self.batch, self.precision = batch, precision
        self.stack = Stack(self.models).train()
        self.channels_last = channels_last
        self.one_pass = one_pass and self.stack.takes_chunks
        first = next(self.stack.parameters())
        self.device, self.dtype = first.device, first.dtype
        if channels_last and self.device.type == "cuda":  # on a CPU oneDNN reorders them anyway
            self.stack.to(memory_format=torch.channels_last)
        self._forward = torch.compile(self.stack) if compiled else self.stack
        self.execution = "compile" if compiled else "eager"
        self.momentum, self.weight_decay = momentum, weight_decay
        self._factors = rate_factors(self.models[0])
        # From zero velocity the first update is what PyTorch's is without one.
        self._momenta = [torch.zeros_like(p) if momentum else None for p in self.stack.held]
        self._spans = [
            (first, end, *self._trained(first, end), self._held_rates())
            for first, end in _spans_of_equal(lrs or [0.0] * self.replicas)
        ]
        self.loss_sum_R = torch.zeros(self.replicas, device=self.device, dtype=torch.float64)
        self.hits_R = torch.zeros(self.replicas, device=self.device, dtype=torch.int64)

    def run(
        self,
        x_RUNCHW: Tensor,
        y_RUN: Tensor,
        rates_UR: Sequence[Sequence[float]],
        tick: Tick = no_tick,
    ) -> None:
        """Make U updates; `tick` hears after each how many images of all replicas it used."""
        x_UNCHW, y_UNR = self.arrange(x_RUNCHW, y_RUN)
        for x_NCHW, y_NR, rates_R in zip(x_UNCHW, y_UNR, rates_UR, strict=True):
            self.update(x_NCHW, y_NR, rates_R)
            tick(y_NR.numel())

    def arrange(self, x_RUNCHW: Tensor, y_RUN: Tensor) -> tuple[Tensor, Tensor]:
        """Return the images (U, N, R * C, H, W) in the step's layout, and the labels (U, N, R)."""
        x = x_RUNCHW.permute(1, 2, 0, 3, 4, 5).flatten(2, 3)
        if self.channels_last:
            shape = x.shape
            x = x.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            x = x.unflatten(0, shape[:2])
        return x, y_RUN.permute(1, 2, 0)

    def update(self, x_NCHW: Tensor, y_NR: Tensor, rates_R: Sequence[float] | Tensor) -> None:
        """Update each replica's weights once, by the mean loss of its N images; N % batch == 0.

        x_NCHW: (N, R * C, H, W); example n belongs to batch n % (N / batch), as `update_blocks`
        orders them. rates_R: numbers, or on CUDA a tensor.
        """
        for parameter in self.stack.held:
            parameter.grad = None
        for x, y, batches in self._passes(x_NCHW, y_NR):
            self.stack.set_chunks(batches)
            with autocast(self.device, self.precision):
                logits_NRK = self._forward(x.unflatten(1, (self.replicas, -1)))
            if self.precision == "bf16":
                logits_NRK = logits_NRK.float()
            losses = F.cross_entropy(logits_NRK.flatten(0, 1), y.flatten(), reduction="none")
            losses_R = losses.unflatten(0, y.shape).sum(dim=0)
            (losses_R.sum() / len(y_NR)).backward()
            self.loss_sum_R += losses_R.detach()
            self.hits_R += (logits_NRK.detach().argmax(dim=2) == y).sum(dim=0)
        self._descend(rates_R)

    def _passes(self, x_NCHW: Tensor, y_NR: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield (images, labels, number of batches) of each forward pass of an update."""
        batches = len(x_NCHW) // self.batch
        together = 1
        if self.one_pass:
            height, width = x_NCHW.shape[-2:]
            most = max(1, MOST_IMAGES * 32 * 32 // (self.batch * max(height * width, 32 * 32)))
            together = max(n for n in range(1, min(batches, most) + 1) if batches % n == 0)
        if together == batches:
            yield x_NCHW, y_NR, batches
            return
        x, y = (t.unflatten(0, (self.batch, batches)) for t in (x_NCHW, y_NR))
        for first in range(0, batches, together):
            part = slice(first, first + together)
            yield x[:, part].flatten(0, 1), y[:, part].flatten(0, 1), together

    def _trained(self, first: int, end: int) -> tuple[list[Tensor], list[Tensor | None]]:
        """Return weights and velocities, None each without momentum, of these replicas."""
        weights = [parameter.detach() for parameter in self.stack.held]
        return self._parts(weights, first, end), self._parts(self._momenta, first, end)

    def _held_rates(self) -> dict[float, Tensor | None]:
        """Return by rate factor a tensor on CUDA, where a captured update would keep a number."""
        held = self.device if self.device.type == "cuda" else None
        return {f: held and torch.zeros((), device=held) for f in dict.fromkeys(self._factors)}

    def _parts(self, tensors: list[Tensor | None], first: int, end: int) -> list[Tensor | None]:
        """Return `Stack.parts`, of all replicas the tensors themselves, which cost no views."""
        whole = end - first == self.replicas
        return tensors if whole else self.stack.parts(tensors, first, end)

    @torch.no_grad()
    def _descend(self, rates_R: Sequence[float] | Tensor) -> None:
        for first, end, weights, velocities, held in self._spans:
            rates = rates_R[first:end]
            if not isinstance(rates, Tensor) and len(set(rates)) > 1:
                raise ValueError(f"rates {rates} differ where lrs said they are equal")
            gradients = self._parts(self.stack.gradients(), first, end)
            # Every norm's gamma and beta are decayed like all other weights: like for like. The
            # function, since torch.optim.SGD costs 0.1 ms more per update, and a second of imports.
            for factor, rate in held.items():
                used = [
                    i
                    for i, gradient in enumerate(gradients)
                    if gradient is not None and self._factors[i] == factor
                ]
                sgd(
                    [weights[i] for i in used],
                    [gradients[i] for i in used],
                    [velocities[i] for i in used],
                    fused=True,
                    weight_decay=self.weight_decay,
                    momentum=self.momentum,
                    lr=_times(rates[0], factor, rate),
                    dampening=0.0,
                    nesterov=self.momentum > 0,
                    maximize=False,
                )

    def take_sums(self) -> list[tuple[float, int]]:
        """Return each replica's (sum of losses, number of hits) since the last call."""
        sums = list(zip(self.loss_sum_R.tolist(), self.hits_R.tolist(), strict=True))
        self.loss_sum_R.zero_()
        self.hits_R.zero_()
        return sums

    def model(self, replica: int) -> nn.Module:
        """Return the model of one replica with its current weights, unstacked."""
        put_state(self.models[replica], self.stack.state(replica))
        return self.models[replica]

    def state(self, replica: int) -> dict[str, object]:
        """Return copies of what one replica needs to go on, at any update.

        "model", its state dict; "momentum"; "sums", (sum of losses, hits) since `take_sums`.
        """
        return {
            "model": {k: v.detach().clone() for k, v in self.stack.state(replica).items()},
            "momentum": [velocity.clone() for velocity in self._velocities(replica)],
            "sums": [self.loss_sum_R[replica].item(), self.hits_R[replica].item()],
        }

    def load(self, replica: int, state: dict[str, object]) -> None:
        """Continue one replica from `state`; without "momentum" in it, from rest."""
        self.stack.load(replica, state["model"])
        velocities = self._velocities(replica)
        for mine, stored in zip(velocities, state.get("momentum", velocities), strict=True):
            mine.copy_(stored)
        self.loss_sum_R[replica], self.hits_R[replica] = state.get("sums", (0.0, 0))

    def _velocities(self, replica: int) -> list[Tensor]:
        """Return views of the momentum buffers of one replica, in the order of its parameters."""
        parts = self.stack.parts(self._momenta, replica, replica + 1) if self.momentum else []
        return [part[0] for part in parts]

    def tensors(self) -> list[Tensor]:
        """Return every tensor that an update changes."""
        velocities = [velocity for velocity in self._momenta if velocity is not None]
        rates = [rate for *_, held in self._spans for rate in held.values() if rate is not None]
        own = [tensor.detach() for tensor in self.stack.state_dict().values()]
        return [*own, *velocities, *rates, self.loss_sum_R, self.hits_R]


def _times(rate: float | Tensor, factor: float, held: Tensor | None) -> float | Tensor:
    """Return the rate times the factor: a number, or in the tensor that is held for it."""
    if held is None:
        return float(rate) * factor
    held.fill_(rate)
    return held if factor == 1.0 else held.mul_(factor)


def _spans_of_equal(values: Sequence[float]) -> list[tuple[int, int]]:
    """Return (first, end) of each run of equal neighbours."""
    sizes = [len(list(group)) for _, group in groupby(values)]
    return [(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]
