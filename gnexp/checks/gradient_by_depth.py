"""Gradients by depth: how large the loss gradient is at each block of a network, for claim 7.

At initialization, in float32, over several initializations. Points: panel "gradient by depth", x =
depth of the block, 0 to 1, y = norm of the gradient at its output over that at the last block's
(log; geometric mean over initializations, lo and hi their extremes); series are the networks.

Shapes: N examples, C channels, H and W pixels, I initializations, B blocks.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.analysis.statistics import t_interval
from gnexp.checks.finding import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Finding,
    Measured,
    Point,
    conditional,
    inside,
)
from gnexp.checks.subject import NormError, Subject
from gnexp.models.resnet import stages_of

IMAGE_COUNT, DRAWS_PER_NETWORK = 8, 16
DEPTHS = (20, 56, 110)
WITHIN = 10.0  # factor between the gradients of a network's blocks


def block_gradients(net: nn.Sequential, x_NCHW: Tensor, y_N: Tensor) -> list[float]:
    """Return the norm of the loss gradient at the output of each block, from the first on."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, output: outputs.append(output))
        for stage in stages_of(net)
        for block in stage
    ]
    try:
        loss = F.cross_entropy(net(x_NCHW), y_N)
        gradients = torch.autograd.grad(loss, outputs)
    except Exception as error:
        raise NormError(f"a network raised {type(error).__name__}: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
    return [gradient.double().norm().item() for gradient in gradients]


def by_depth(subject: Subject, result: Measured, family: str, people: str) -> None:
    """Add the finding "depth_<family>" and its points."""
    seeds = max(1, subject.draws // DRAWS_PER_NETWORK)
    x_NCHW, y_N = subject.x_NCHW[:IMAGE_COUNT], subject.y_N[:IMAGE_COUNT]
    verdicts, texts, worst = {}, [], (0.0, math.nan, math.nan)
    for depth in DEPTHS:
        name = f"{family}{depth}"
        nets = (subject.network(name, seed=seed) for seed in range(seeds))
        norms_IB = np.array([block_gradients(net, x_NCHW, y_N) for net in nets])
        with np.errstate(all="ignore"):
            logs_IB = np.log10(norms_IB / norms_IB[:, -1:])
        _points(result, name, logs_IB)
        if not np.isfinite(logs_IB).all():
            verdicts[depth], worst = FAILS, (math.inf, math.nan, math.nan)
            texts.append(f"depth {depth}: zero or not finite")
            continue
        factor = t_interval(np.abs(logs_IB).max(axis=1))
        verdicts[depth] = inside(factor.lo, factor.hi, -math.inf, math.log10(WITHIN))
        worst = max(worst, (factor.mean, factor.lo, factor.hi), key=lambda w: w[0])
        mean_B = logs_IB.mean(axis=0)
        texts.append(f"depth {depth}: {10 ** mean_B.min():.2g} to {10 ** mean_B.max():.2g}")
    pixels = "x".join(map(str, x_NCHW.shape[2:]))
    result.findings.append(
        Finding(
            f"depth_{family}",
            f"no vanishing or exploding gradients at initialization, {people}",
            "gradient norm at a block's output over that at the last block's,"
            f" {len(x_NCHW)} images of {pixels} pixels, geometric mean over initializations",
            f"within a factor {WITHIN:g} at all blocks",
            "; ".join(texts),
            verdict_by_depth(verdicts),
            *(_power_of_ten(number) for number in worst),
            tolerance=f"the 95 % interval of the largest factor is below {WITHIN:g}",
            n=seeds,
            note="; ".join(f"depth {depth}: {verdict}" for depth, verdict in verdicts.items()),
        )
    )


def _power_of_ten(exponent: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.power(10.0, exponent))


def _points(result: Measured, series: str, logs_IB: np.ndarray) -> None:
    for b, logs_I in enumerate(logs_IB.T):
        if np.isfinite(logs_I).all():
            x = b / (logs_IB.shape[1] - 1)
            numbers = (10 ** float(f(logs_I)) for f in (np.mean, np.min, np.max))
            result.points.append(Point("gradient by depth", series, x, *numbers))


def verdict_by_depth(verdicts: dict[int, str]) -> str:
    """Return one verdict from those of ascending depths: of all, or up to the last that holds."""
    if set(verdicts.values()) == {HOLDS}:
        return HOLDS
    if FAILS not in verdicts.values():
        return UNDECIDED
    holding = []
    for depth, verdict in verdicts.items():
        if verdict != HOLDS:
            break
        holding.append(depth)
    return conditional(f"the depth is at most {holding[-1]}") if holding else FAILS
