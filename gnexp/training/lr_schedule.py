"""The learning rate of every update: scaled with its size, warmed up, decayed; its factors."""

import math

from torch import nn


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


def rate_factors(model: nn.Module) -> list[float]:
    """Return by what the rate is multiplied for each of a model's parameters, in the model's order.

    1, or the `rate_factor` of the layer that holds the parameter, as `models.start.fixup` sets it.
    """
    of = {
        id(parameter): float(getattr(layer, "rate_factor", 1.0))
        for layer in model.modules()
        for parameter in layer.parameters(recurse=False)
    }
    return [of[id(parameter)] for parameter in model.parameters()]
