"""A short training of several networks, in one step where they can share it, for claims 5 and 10.

Shapes: N images, C channels, H and W pixels; R networks, U updates.
"""

from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.checks.subject import named
from gnexp.training.stack import draws_random_numbers, why_not_stackable
from gnexp.training.stacked_step import StackedStep

MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # the protocol's


def train(
    nets: list[nn.Module],
    x_NCHW: Tensor,
    y_N: Tensor,
    batch: int,
    updates: Callable[[int], Iterable[tuple[Tensor, float]]],
) -> tuple[list[nn.Module], np.ndarray]:
    """Return the trained networks, and their loss before each update (R, U).

    updates: called with a network's place, gives the images and the rate of each update. Raises
    NormError where training raises.
    """
    shape, trained, losses = tuple(x_NCHW.shape[1:]), [], []
    with named("training"), torch.random.fork_rng(devices=[]):
        alike = not draws_random_numbers(nets[0], shape) and not why_not_stackable(nets, shape)
        places = range(len(nets))
        for part in [places] if alike else [[place] for place in places]:
            step, rows = StackedStep([nets[r] for r in part], batch, MOMENTUM, WEIGHT_DECAY), []
            for each in zip(*map(updates, part)):
                x = torch.cat([x_NCHW[index] for index, _ in each], dim=1).contiguous()
                y_NR = torch.stack([y_N[index] for index, _ in each], dim=1)
                step.update(x, y_NR, [rate for _, rate in each])
                rows.append([loss / batch for loss, _ in step.take_sums()])
            trained += [step.model(place) for place in range(len(part))]
            losses.append(np.array(rows).T)
    return trained, np.concatenate(losses)
