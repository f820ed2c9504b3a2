"""Claim 7: gradient flow. What the layer does to a gradient that passes back through it.

Section "Stable gradient flow". The backward scale is |dL/dx| / |dL/dy|, of Euclidean norms, for a
random dL/dy. Single layers in float64, without chance; networks: see `gradient_by_depth`.

Shapes: N examples, C channels (D behind a convolution), H and W pixels.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from gnexp.checks.finding import Finding, Found, Point, Statement, table, vacuous
from gnexp.checks.gradient_by_depth import by_depth
from gnexp.checks.power_law import slope
from gnexp.checks.statistic_sets import with_equal_sets
from gnexp.checks.subject import Subject, named
from gnexp.checks.verdicts import FAILS, HOLDS, conditional

EXACT = 1e-9  # relative, float64
SIGMAS = tuple(10.0**power for power in range(-4, 5))
ABOVE_EPS = 30  # sigma over sqrt(eps), where eps takes less than 0.1 % of the variance
EXPONENT_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-2  # the part of a random gradient that is taken away varies by less
BATCHES = (1, 2, 4, 8, 16, 32)
SPREADS = (1.0, 10.0, 0.1)  # of the batch-mates
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # on all weights

INPUTS = "input sd sigma from {least:g} to {most:g}, 4 examples of 5x7 pixels"
RANGE = {
    "what": "range of |dx| / |dy| of one example (largest over smallest, minus 1): {varied}",
    "measured": "{value:.2g} (|dx| / |dy| from {least:.3g} to {most:.3g})",
    "high": EXACT,
}
ROWS = table(
    Statement(
        "self_regulating",
        "self-regulating: the larger the input, the smaller the factor on the gradient",
        f"exponent of the backward scale |dx| / |dy| against {INPUTS}",
        expected="-1: in proportion to 1 / sigma",
        measured="{value:.4f}",
        tolerance=f"-1 +- {EXPONENT_TOLERANCE:g}",
        note=f"largest factor at sigma from {SIGMAS[0]:g} on: {{largest:.3g}};"
        " 1 / sqrt(eps) = {bound:.3g}",
        low=-1 - EXPONENT_TOLERANCE,
        high=-1 + EXPONENT_TOLERANCE,
    ),
    Statement(
        "backward_scale",
        "the factor on the gradient is 1 / sigma, but for the two directions that are removed",
        f"sigma |dx| / |dy| for {INPUTS}",
        expected="sqrt(1 - 2/n) = {theory:.4f}, n = {values} values in {sets}",
        measured="{smallest:.4g} to {largest:.4g}",
        tolerance=f"{SCALE_TOLERANCE:g}, relative",
    ),
    Statement(
        "batch_mates",
        "the factor on an example's gradient does not depend on the others in the batch",
        **RANGE,
    ),
    Statement("batch_size", "the factor on the gradient is independent of the batch size", **RANGE),
)
WEIGHTS = Statement(
    "weights_{key}",
    "self-regulating: scaling {of} before the norm by a leaves the gradient that flows on as it is"
    " and divides their own gradient by a",
    "largest relative deviation from both, 3x3 convolution, a = {factors}",
    tolerance="{high:.1g}, ten times the share of eps in the variance",
)
WHOLE = {"key": "whole", "of": "all weights", "factors": "0.01 to 100"}
FILTER = {"key": "filter", "of": "each filter of the weights", "factors": "random, 0.1 to 10"}


def measure(subject: Subject) -> Found:
    """Measure claim 7."""
    yield from _sigma(subject)
    yield from _mates(subject)
    yield from _weights(subject)
    yield from by_depth(subject, "resnet", "residual networks")
    yield from by_depth(subject, "plain", "plain networks (no shortcuts)")


def _backward_scale(subject: Subject, x_NCHW: Tensor, dy_NCHW: Tensor) -> float:
    """Return |dx| / |dy| of the examples to which dy is given, of a fresh layer."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    y_NCHW = subject.apply(subject.layer(), x_NCHW)
    with named("the backward pass"):
        (dx_NCHW,) = torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)
    given = dy_NCHW.flatten(1).any(dim=1)
    return (dx_NCHW[given].norm() / dy_NCHW[given].norm()).item()


def _sigma(subject: Subject) -> Found:
    x_NCHW = with_equal_sets(subject.features("flow", 4))
    dy_NCHW = subject.normal("flow dy", *x_NCHW.shape)
    scales = {sigma: _backward_scale(subject, sigma * x_NCHW, dy_NCHW) for sigma in SIGMAS}
    for sigma, scale in scales.items():
        yield Point("backward scale", "measured", sigma, scale)
        yield Point("backward scale", "1 / sigma", sigma, 1 / sigma)
    eps = subject.eps
    used = {s: scale for s, scale in scales.items() if s >= ABOVE_EPS * math.sqrt(eps)}
    inputs = {"least": min(used), "most": max(used)}
    exponent = slope([*used], [*used.values()])
    bounds = {"largest": max(scales.values()), "bound": eps**-0.5}
    yield ROWS["self_regulating"].found(exponent, **inputs, **bounds)
    sets = subject.sets_used
    n = sets.size(*x_NCHW.shape) if sets else math.inf
    theory, factors = math.sqrt(1 - 2 / n), [scale * sigma for sigma, scale in used.items()]
    value = max(factors, key=lambda factor: _badness(factor / theory - 1))
    how = {"theory": theory, "values": n, "sets": sets or "no set"}
    how |= {"smallest": min(factors), "largest": max(factors)}
    how["verdict"] = HOLDS if abs(value / theory - 1) <= SCALE_TOLERANCE else FAILS
    yield ROWS["backward_scale"].found(value, **inputs, **how)


def _badness(deviation: float) -> float:
    return abs(deviation) if math.isfinite(deviation) else math.inf


def _mates(subject: Subject) -> Found:
    """Measure gradients of the other examples when only example 0 gets an upstream gradient."""
    x_NCHW = subject.features("flow mates", max(BATCHES))
    dy_NCHW = torch.zeros_like(x_NCHW)
    dy_NCHW[0] = subject.normal("flow mates dy", *x_NCHW.shape[1:])

    def scale(n: int, spread: float = 1.0) -> float:
        batch = torch.cat([x_NCHW[:1], spread * x_NCHW[1:n]])
        return _backward_scale(subject, batch, dy_NCHW[:n])

    by_spread = [scale(4, spread) for spread in SPREADS]
    by_size = [scale(n) for n in BATCHES]
    for n, value in zip(BATCHES, by_size, strict=True):
        yield Point("batch size", "measured", n, value / by_size[-1])
    several = f"from batch size {BATCHES[1]} on: {_range(by_size[1:]):.2g}"
    sizes = f"batch size {BATCHES[0]} to {BATCHES[-1]}"
    nothing = subject.takes_no_statistic
    for key, values, varied, note in (
        ("batch_mates", by_spread, "3 batch-mates multiplied by 1, 10 and 0.1", ""),
        ("batch_size", by_size, sizes, several),
    ):
        how = {"least": min(values), "most": max(values), "varied": varied, "note": note}
        row = ROWS[key].found(_range(values), **how)
        yield vacuous(row) if nothing else row


def _range(values: list[float]) -> float:
    """Return the largest over the smallest, minus 1; nan where that is no number."""
    return max(values) / min(values) - 1 if min(values) > 0 else math.nan


def _weights(subject: Subject) -> Found:
    """Scale the filters of a convolution without bias before the norm, at a fixed dL/dy."""
    channels, sets = subject.channels, subject.sets
    # Large activations, of which eps is a negligible part even where the filters are small.
    x_NCHW = 100 * subject.normal("flow conv", 4, 8, 5, 7)
    w_DCHW = subject.normal("flow weights", channels, 8, 3, 3) / math.sqrt(8 * 9)
    dy_NCHW = subject.normal("flow conv dy", 4, channels, 5, 7)
    variance = sets.variance(F.conv2d(x_NCHW, w_DCHW, padding=1)).min().item()

    def gradients(a_C: Tensor) -> tuple[Tensor, ...]:
        x, w = x_NCHW.clone().requires_grad_(), (a_C.view(-1, 1, 1, 1) * w_DCHW).requires_grad_()
        y_NCHW = subject.apply(subject.layer(), F.conv2d(x, w, padding=1))
        with named("the backward pass"):
            return torch.autograd.grad(y_NCHW, [w, x], dy_NCHW)

    dw_DCHW, dx_NCHW = gradients(torch.ones(channels, dtype=torch.float64))

    def off(a_C: Tensor) -> tuple[float, float]:
        """Return the largest relative deviation from the law, and what eps explains of it."""
        dw, dx = gradients(a_C)
        errors = (a_C.view(-1, 1, 1, 1) * dw - dw_DCHW).flatten(1).norm(dim=1)
        weights = (errors / dw_DCHW.flatten(1).norm(dim=1)).max().item()
        inputs = ((dx - dx_NCHW).norm() / dx_NCHW.norm()).item()
        smallest = min(a_C.min().item(), 1.0) ** 2 * variance  # a = 1 is what it is held against
        return max(weights, inputs, key=_badness), EXACT + 10 * subject.eps / smallest

    whole = []
    for a in FACTORS:
        a_C = torch.full((channels,), a, dtype=torch.float64)
        dw, dx = gradients(a_C)
        yield Point("scaled weights", "weights", a, (dw.norm() / dw_DCHW.norm()).item())
        yield Point("scaled weights", "input", a, (dx.norm() / dx_NCHW.norm()).item())
        whole.append(off(a_C))
    value, tolerance = max(whole, key=lambda pair: _badness(pair[0]) / pair[1])
    yield WEIGHTS.found(value, high=tolerance, **WHOLE)
    yield _filters(subject, off)


def _filters(subject: Subject, off: Callable[[Tensor], tuple[float, float]]) -> Finding:
    """Scale each filter by a random factor of its own, or all of a group by one."""
    g, channels, sets = subject.generator("flow filters"), subject.channels, subject.sets
    groups = sets.groups if sets.scope == "group" else channels
    drawn = (torch.rand(n, generator=g, dtype=torch.float64) for n in (groups, channels))
    a_G, a_C = (10 ** (2 * uniform - 1) for uniform in drawn)
    (value, tolerance), (by_group, bound) = off(a_C), off(a_G.repeat_interleave(channels // groups))
    row = WEIGHTS.found(value, high=tolerance, **FILTER)
    if row.verdict == FAILS and by_group <= bound:
        verdict = conditional(f"the filters of a group (G = {groups}) share the factor")
        note = f"with one random factor per group: off by {by_group:.1g}"
        row = replace(row, verdict=verdict, note=note)
    return row
