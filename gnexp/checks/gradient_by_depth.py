"""Gradients by depth: how large the loss gradient is at each block of a network, for claim 7.

At initialization, in float32. Points are geometric means over several initializations, whose
extremes are lo and hi.

Shapes: N examples, C channels, H and W pixels, I initializations, B blocks.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.analysis.statistics import t_interval
from gnexp.checks.finding import Found, Point, Statement
from gnexp.checks.subject import Subject, named
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED, conditional, inside
from gnexp.models.resnet import stages_of

IMAGE_COUNT, DRAWS_PER_NETWORK = 8, 16
DEPTHS = (20, 56, 110)
WITHIN = 10.0  # factor between the gradients of a network's blocks

DEPTH = Statement(
    "depth_{family}",
    "no vanishing or exploding gradients at initialization, {people}",
    "gradient norm at a block's output over that at the last block's, {images} images of {pixels}"
    " pixels, geometric mean over initializations",
    expected=f"within a factor {WITHIN:g} at all blocks",
    tolerance=f"the 95 % interval of the largest factor is below {WITHIN:g}",
)


def block_gradients(net: nn.Sequential, x_NCHW: Tensor, y_N: Tensor) -> list[float]:
    """Return the norm of the loss gradient at the output of each block, from the first on."""
    outputs: list[Tensor] = []
    for stage in stages_of(net):
        for block in stage:
            block.register_forward_hook(lambda _, __, output: outputs.append(output))
    with named("a network"):
        gradients = torch.autograd.grad(F.cross_entropy(net(x_NCHW), y_N), outputs)
    return [gradient.double().norm().item() for gradient in gradients]


def by_depth(subject: Subject, family: str, people: str) -> Found:
    """Yield the finding "depth_<family>" and its points."""
    seeds = max(1, subject.draws // DRAWS_PER_NETWORK)
    x_NCHW, y_N = subject.x_NCHW[:IMAGE_COUNT], subject.y_N[:IMAGE_COUNT]
    verdicts, texts, worst = {}, [], (0.0, math.nan, math.nan)
    for depth in DEPTHS:
        name = f"{family}{depth}"
        nets = (subject.network(name, seed=seed) for seed in range(seeds))
        norms_IB = np.array([block_gradients(net, x_NCHW, y_N) for net in nets])
        with np.errstate(all="ignore"):
            logs_IB = np.log10(norms_IB / norms_IB[:, -1:])
        yield from _points(name, logs_IB)
        if not np.isfinite(logs_IB).all():
            verdicts[depth], worst = FAILS, (math.inf, math.nan, math.nan)
            texts.append(f"depth {depth}: zero or not finite")
            continue
        factor = t_interval(np.abs(logs_IB).max(axis=1))
        verdicts[depth] = inside(factor.lo, factor.hi, -math.inf, math.log10(WITHIN))
        worst = max(worst, (factor.mean, factor.lo, factor.hi), key=lambda w: w[0])
        mean_B = logs_IB.mean(axis=0)
        texts.append(f"depth {depth}: {10 ** mean_B.min():.2g} to {10 ** mean_B.max():.2g}")
    with np.errstate(over="ignore"):
        numbers = np.power(10.0, worst).tolist()
    yield DEPTH.found(
        *numbers,
        **{"family": family, "people": people, "images": len(x_NCHW), "n": seeds},
        pixels="x".join(map(str, x_NCHW.shape[2:])),
        measured="; ".join(texts),
        verdict=verdict_by_depth(verdicts),
        note="; ".join(f"depth {depth}: {verdict}" for depth, verdict in verdicts.items()),
    )


def _points(series: str, logs_IB: np.ndarray) -> Iterator[Point]:
    for b, logs_I in enumerate(logs_IB.T):
        if np.isfinite(logs_I).all():
            numbers = (10 ** float(f(logs_I)) for f in (np.mean, np.min, np.max))
            yield Point("gradient by depth", series, b / (logs_IB.shape[1] - 1), *numbers)


def verdict_by_depth(verdicts: dict[int, str]) -> str:
    """Return one verdict from those of ascending depths: of all, or up to the last that holds."""
    if set(verdicts.values()) == {HOLDS}:
        return HOLDS
    if FAILS not in verdicts.values():
        return UNDECIDED
    others = [verdict != HOLDS for verdict in verdicts.values()]
    holding = [*verdicts][: others.index(True)]
    return conditional(f"the depth is at most {holding[-1]}") if holding else FAILS
