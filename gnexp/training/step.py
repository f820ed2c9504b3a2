"""One optimizer update, accumulated over the batches that see their own statistics.

Axes: N examples, C channels, H, W pixels.
"""

import contextlib
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def peak_rate(lr: float, rule: str, update_batch: int) -> float:
    """Return the peak learning rate for an update of so many images; `lr` is that at 128.

    Only the linear rule keeps the weight decay per epoch (rate x decay x updates) the same for
    every update size. Source: Goyal et al. 2017, arXiv:1706.02677 (linear).
    """
    ratio = update_batch / 128
    return lr * {"linear": ratio, "sqrt": math.sqrt(ratio), "none": 1.0}[rule]


def learning_rate(seen: int, total: int, peak: float, warmup: float, schedule: str) -> float:
    """Return the rate for the update that starts after `seen` of `total` examples.

    Linear warm-up over the fraction `warmup`, then cosine to zero, or constant. A function of
    examples and not of updates, so that every batch size follows the same curve.
    """
    ramp = warmup * total
    if seen < ramp:
        return peak * (seen + 1) / (ramp + 1)
    if schedule == "constant":
        return peak
    return 0.5 * peak * (1 + math.cos(math.pi * (seen - ramp) / (total - ramp)))


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Return the context in which forward passes of this precision run."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


@contextlib.contextmanager
def matrix_precision(precision: str):
    """Let CUDA matrix products and convolutions use TF32, or not, and restore the setting."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allow
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


class EagerStep:
    """Trains one replica; keeps its sums of loss and hits on the device until asked.

    The statistics of a norm see `batch` images, the optimizer sees all that one call gets.
    """

    def __init__(
        self, model: nn.Module, batch: int, momentum: float, weight_decay: float, precision: str
    ) -> None:
        self.model = model
        self.batch = batch
        self.precision = precision
        parameters = list(model.parameters())
        self.device = parameters[0].device
        # Every norm's gamma and beta are decayed like all other weights: like for like.
        self.optimizer = torch.optim.SGD(
            parameters,
            lr=0.0,
            momentum=momentum,
            nesterov=momentum > 0,
            weight_decay=weight_decay,
            fused=True,
        )
        self.loss_sum = torch.zeros((), device=self.device, dtype=torch.float64)
        self.hits = torch.zeros((), device=self.device, dtype=torch.int64)

    def __call__(self, x_NCHW: Tensor, y_N: Tensor, rate: float) -> None:
        """Update the weights once with the mean loss of all N examples; N % batch == 0."""
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        for x, y in zip(x_NCHW.split(self.batch), y_N.split(self.batch), strict=True):
            with autocast(self.device, self.precision):
                logits = self.model(x)
            loss = F.cross_entropy(logits.float() if self.precision == "bf16" else logits, y)
            (loss * (len(x) / len(x_NCHW))).backward()
            self.loss_sum += loss.detach() * len(x)
            self.hits += (logits.detach().argmax(dim=1) == y).sum()
        self.optimizer.step()

    def take_sums(self) -> tuple[float, int]:
        """Return (sum of losses, number of hits) since the last call, and start again."""
        sums = self.loss_sum.item(), int(self.hits.item())
        self.loss_sum.zero_()
        self.hits.zero_()
        return sums
