"""Replicas of a network that start as a run's would, and how far apart two of them are."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from gnexp.data.seeding import generator
from gnexp.models.initialization import start
from gnexp.models.resnet import build_model
from gnexp.norms.registry import NORMS, build_norm


def started(
    norm: str | Callable[[int], nn.Module],
    seed: int,
    model: str = "resnet8",
    dtype: torch.dtype = torch.float32,
    **how: int,
) -> nn.Module:
    """Return a network with a norm of the table, or of one's own, as its seed initializes it."""
    known = isinstance(norm, str)
    built = build_model(model, partial(build_norm, norm) if known else norm, **how)
    keys = ("initialization", "weight_standardization") if known else ()
    start(built, generator(seed, "test"), **{key: getattr(NORMS[norm], key) for key in keys})
    return built.to(dtype)


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Return the largest difference of any tensor, relative to its own largest value."""
    worst = 0.0
    for name, tensor in theirs.items():
        scale = tensor.abs().max().double().clamp_min(1e-30)
        worst = max(worst, ((ours[name] - tensor).abs().max() / scale).item())
    return worst
