"""The signal of a residual network, block by block, and what its residual branches add to it.

Shapes: N examples, C channels, H and W pixels.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.checks.subject import NormError, Subject
from gnexp.models.blocks import ResidualBlock
from gnexp.models.resnet import stages_of, zero_last_gamma


@dataclass
class SignalTrace:
    """Statistics of one batch in a network: one value per block, in order.

    start: variance before the first block. stage: of the block. variance: of its output, over all
    values. branch: variance of its residual branch. correlation: of branch and shortcut. resized:
    whether it changes the shape. unchanged: whether the output is the input to the last bit, or,
    where the shape changes, what the shortcut makes of it.
    """

    start: float = 0.0
    stage: list[int] = field(default_factory=list)
    variance: list[float] = field(default_factory=list)
    branch: list[float] = field(default_factory=list)
    correlation: list[float] = field(default_factory=list)
    resized: list[bool] = field(default_factory=list)
    unchanged: list[bool] = field(default_factory=list)

    def slope(self) -> float:
        """Return the growth of the variance per block: least squares within each stage, whose
        first block sets the level, then the mean over stages."""
        v, stage = np.array(self.variance), np.array(self.stage)
        parts = [v[stage == s] for s in sorted(set(self.stage))]
        return float(np.mean([np.polyfit(np.arange(len(part)), part, 1)[0] for part in parts]))


def trace(net: nn.Sequential, x_NCHW: Tensor) -> SignalTrace:
    """Return what the blocks of a residual network of the table do, in train mode."""
    seen, stages = SignalTrace(), stages_of(net)
    try:
        with torch.no_grad():
            for child in net:
                if not any(child is stage for stage in stages):
                    x_NCHW = child(x_NCHW)
                    continue
                seen.start = seen.start or _variance(x_NCHW)
                seen.stage += [len(set(seen.stage))] * len(child)
                for block in child:
                    x_NCHW = _through(block, x_NCHW, seen)
    except Exception as error:
        raise NormError(f"a network raised {type(error).__name__}: {error}") from error
    return seen


def _through(block: ResidualBlock, x_NCHW: Tensor, seen: SignalTrace) -> Tensor:
    branches: list[Tensor] = []
    norm = block.get_submodule(block.last_norm)
    with norm.register_forward_hook(lambda _, __, output: branches.append(output)):
        y_NCHW = block(x_NCHW)
    skip_NCHW, r_NCHW = block.shortcut(x_NCHW), branches[0]
    seen.variance.append(_variance(y_NCHW))
    seen.branch.append(_variance(r_NCHW))
    seen.resized.append(y_NCHW.shape != x_NCHW.shape)
    a, b = ((t - t.mean()).flatten() for t in (skip_NCHW.double(), r_NCHW.double()))
    seen.correlation.append((a @ b / (a.norm() * b.norm())).item())
    expected = x_NCHW
    if seen.resized[-1]:
        expected = torch.relu(skip_NCHW) if block.activated else skip_NCHW
    seen.unchanged.append(torch.equal(y_NCHW, expected))
    return y_NCHW


def _variance(x_NCHW: Tensor) -> float:
    return x_NCHW.double().var(correction=0).item()


def set_last_gamma(subject: Subject, net: nn.Module, value: float) -> None:
    """Set the last gamma of each residual branch; raises NormError where the norm has none."""
    try:
        names = zero_last_gamma(net)
    except ValueError as error:
        raise NormError(f"{subject.label}: {error}") from error
    for name in names:
        net.get_parameter(name).data.fill_(value)
