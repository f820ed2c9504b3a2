"""The signal of a residual network, block by block, and what its residual branches add to it.

Shapes: N examples, C channels, H and W pixels.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.checks.subject import NormError, Subject, named
from gnexp.models.blocks import ResidualBlock
from gnexp.models.resnet import stages_of, zero_last_gamma


class BlockSignal(NamedTuple):
    """Statistics of one batch at one block.

    before, variance: of its input and output, over all values; branch: of its residual branch.
    correlation: of branch and shortcut. resized: whether it changes the shape. unchanged: whether
    the output is the input to the last bit, or, resized, what the shortcut makes of it.
    """

    stage: int
    before: float
    variance: float
    branch: float
    correlation: float
    resized: bool
    unchanged: bool


def growth(blocks: list[BlockSignal]) -> float:
    """Return the growth of the variance per block: least squares within each stage, whose first
    block sets the level, then the mean over stages."""
    parts = [[b.variance for b in blocks if b.stage == s] for s in range(1 + blocks[-1].stage)]
    return float(np.mean([np.polyfit(np.arange(len(part)), part, 1)[0] for part in parts]))


def trace(net: nn.Sequential, x_NCHW: Tensor) -> list[BlockSignal]:
    """Return what each block of a residual network of the table does, in train mode."""
    seen, stages = [], {stage: index for index, stage in enumerate(stages_of(net))}
    with named("a network"), torch.no_grad():
        for child in net:
            for block in child if child in stages else ():
                x_NCHW, signal = _through(block, x_NCHW, stages[child])
                seen.append(signal)
            if child not in stages:
                x_NCHW = child(x_NCHW)
    return seen


def _through(block: ResidualBlock, x_NCHW: Tensor, stage: int) -> tuple[Tensor, BlockSignal]:
    branches: list[Tensor] = []
    norm = block.get_submodule(block.last_norm)
    with norm.register_forward_hook(lambda _, __, output: branches.append(output)):
        y_NCHW = block(x_NCHW)
    skip_NCHW, r_NCHW = block.shortcut(x_NCHW), branches[0]
    a, b = ((t - t.mean()).flatten() for t in (skip_NCHW.double(), r_NCHW.double()))
    correlation = (a @ b / (a.norm() * b.norm())).item()
    resized, expected = y_NCHW.shape != x_NCHW.shape, x_NCHW
    if resized:
        expected = torch.relu(skip_NCHW) if block.activated else skip_NCHW
    variances = map(_variance, (x_NCHW, y_NCHW, r_NCHW))
    unchanged = torch.equal(y_NCHW, expected)
    return y_NCHW, BlockSignal(stage, *variances, correlation, resized, unchanged)


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
