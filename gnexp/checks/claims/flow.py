"""Claim 7: gradient flow. What the layer does to a gradient that passes back through it.

Section "Stable gradient flow". The backward scale is |dL/dx| / |dL/dy|, of Euclidean norms, for a
random dL/dy. Single layers in float64, without chance; networks: see `depth`. Points:

- panel "backward scale": x = standard deviation of the input (log), y = backward scale (log);
  series "measured", and "1 / sigma" to compare with.
- panel "batch size": x = batch size (log), y = backward scale of the batch's first example, over
  that at the largest batch; series "measured".
- panel "scaled weights": x = factor a on all weights of the convolution before the norm (log), y =
  gradient norm over that at a = 1 (log); series "weights" and "input" (of the convolution).
- panel "gradient by depth": see `depth`.

Shapes: N examples, C channels (D behind a convolution), H and W pixels.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gnexp.checks.claims.core import eps_of
from gnexp.checks.finding import (
    FAILS,
    HOLDS,
    Finding,
    Measured,
    Point,
    conditional,
    vacuous,
    verdict_below,
)
from gnexp.checks.gradient_by_depth import by_depth
from gnexp.checks.statistic_sets import (
    NO_STATISTIC,
    sets_claimed,
    sets_used,
    takes_no_statistic,
    variance_of,
    with_equal_sets,
)
from gnexp.checks.subject import NormError, Subject

EXACT = 1e-9  # relative, float64
SIGMAS = tuple(10.0**power for power in range(-4, 5))
ABOVE_EPS = 30  # sigma over sqrt(eps), where eps takes less than 0.1 % of the variance
EXPONENT_TOLERANCE = 1e-3
SCALE_TOLERANCE = 1e-2  # the part of a random gradient that is taken away varies by less
BATCHES = (1, 2, 4, 8, 16, 32)
SPREADS = (1.0, 10.0, 0.1)  # of the batch-mates
FACTORS = (0.01, 0.1, 1.0, 10.0, 100.0)  # on all weights


def measure(subject: Subject) -> Measured:
    """Measure claim 7."""
    result = Measured()
    _sigma(subject, result)
    _mates(subject, result)
    _weights(subject, result)
    by_depth(subject, result, "resnet", "residual networks")
    by_depth(subject, result, "plain", "plain networks (no shortcuts)")
    return result


def _gradients(y: Tensor, inputs: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Return dL/dinput for dL/dy; raises NormError where the layer lets no gradient through."""
    try:
        return list(torch.autograd.grad(y, inputs, dy))
    except Exception as error:
        raise NormError(f"the backward pass raised {type(error).__name__}: {error}") from error


def _backward_scale(subject: Subject, x_NCHW: Tensor, dy_NCHW: Tensor) -> float:
    """Return |dx| / |dy| of the examples to which dy is given, of a fresh layer."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    y_NCHW = subject.apply(subject.layer(), x_NCHW)
    (dx_NCHW,) = _gradients(y_NCHW, [x_NCHW], dy_NCHW)
    given = dy_NCHW.flatten(1).any(dim=1)
    return (dx_NCHW[given].norm() / dy_NCHW[given].norm()).item()


def _sigma(subject: Subject, result: Measured) -> None:
    x_NCHW = with_equal_sets(subject.features("flow", 4))
    dy_NCHW = subject.normal("flow dy", *x_NCHW.shape)
    scales = [_backward_scale(subject, sigma * x_NCHW, dy_NCHW) for sigma in SIGMAS]
    for sigma, scale in zip(SIGMAS, scales, strict=True):
        result.points.append(Point("backward scale", "measured", sigma, scale))
        result.points.append(Point("backward scale", "1 / sigma", sigma, 1 / sigma))
    floor = ABOVE_EPS * math.sqrt(eps_of(subject))
    used = [(s, scale) for s, scale in zip(SIGMAS, scales, strict=True) if s >= floor]
    exponent = _exponent(used)
    what = f"input sd sigma from {used[0][0]:g} to {used[-1][0]:g}, 4 examples of 5x7 pixels"
    result.findings.append(
        Finding(
            "self_regulating",
            "self-regulating: the larger the input, the smaller the factor on the gradient",
            f"exponent of the backward scale |dx| / |dy| against {what}",
            "-1: in proportion to 1 / sigma",
            f"{exponent:.4f}",
            verdict_below(abs(exponent + 1), EXPONENT_TOLERANCE),
            value=exponent,
            tolerance=f"-1 +- {EXPONENT_TOLERANCE:g}",
            note=f"largest factor at sigma from {SIGMAS[0]:g} on: {max(scales):.3g};"
            f" 1 / sqrt(eps) = {eps_of(subject) ** -0.5:.3g}",
        )
    )
    sets = sets_used(subject)
    n = sets.rows(x_NCHW).shape[1] if sets else math.inf
    expected = math.sqrt(1 - 2 / n)
    factors = [scale * sigma for sigma, scale in used]
    worst = max(factors, key=lambda factor: _badness(factor / expected - 1))
    result.findings.append(
        Finding(
            "backward_scale",
            "the factor on the gradient is 1 / sigma, but for the two directions that are removed",
            f"sigma |dx| / |dy| for {what}",
            f"sqrt(1 - 2/n) = {expected:.4f}, n = {n} values in {sets or 'no set'}",
            f"{min(factors):.4g} to {max(factors):.4g}",
            verdict_below(abs(worst / expected - 1), SCALE_TOLERANCE),
            value=worst,
            tolerance=f"{SCALE_TOLERANCE:g}, relative",
        )
    )


def _exponent(points: list[tuple[float, float]]) -> float:
    """Return the slope of log y against log x; nan where a y has no logarithm."""
    x, y = np.array(points).T
    if not (np.isfinite(y).all() and (y > 0).all()):
        return math.nan
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def _badness(deviation: float) -> float:
    return abs(deviation) if math.isfinite(deviation) else math.inf


def _mates(subject: Subject, result: Measured) -> None:
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
        result.points.append(Point("batch size", "measured", n, value / by_size[-1]))
    several, nothing = _range(by_size[1:]), takes_no_statistic(subject)
    for statement, text, what, values, note in (
        (
            "batch_mates",
            "the factor on an example's gradient does not depend on the others in the batch",
            "3 batch-mates multiplied by 1, 10 and 0.1",
            by_spread,
            "",
        ),
        (
            "batch_size",
            "the factor on the gradient is independent of the batch size",
            f"batch size {BATCHES[0]} to {BATCHES[-1]}",
            by_size,
            f"from batch size {BATCHES[1]} on: {several:.2g}",
        ),
    ):
        spread = _range(values)
        row = Finding(
            statement,
            text,
            f"range of |dx| / |dy| of one example (largest over smallest, minus 1): {what}",
            "0",
            f"{spread:.2g} (|dx| / |dy| from {min(values):.3g} to {max(values):.3g})",
            verdict_below(spread, EXACT),
            value=spread,
            tolerance=f"{EXACT:g}",
            note=note,
        )
        result.findings.append(vacuous(row, NO_STATISTIC) if nothing else row)


def _range(values: list[float]) -> float:
    """Return the largest over the smallest, minus 1; nan where that is no number."""
    return max(values) / min(values) - 1 if min(values) > 0 else math.nan


def _weights(subject: Subject, result: Measured) -> None:
    """Scale the filters of a convolution without bias before the norm, at a fixed dL/dy."""
    g, channels = subject.generator("flow filters"), subject.channels
    shares = sets_used(subject) or sets_claimed(subject)
    # Large activations, of which eps is a negligible part even where the filters are small.
    x_NCHW = 100 * subject.normal("flow conv", 4, 8, 5, 7)
    w_DCHW = subject.normal("flow weights", channels, 8, 3, 3) / math.sqrt(8 * 9)
    dy_NCHW = subject.normal("flow conv dy", 4, channels, 5, 7)
    variance = variance_of(shares, F.conv2d(x_NCHW, w_DCHW, padding=1)).min().item()

    def gradients(a_C: Tensor) -> tuple[Tensor, Tensor]:
        x, w = x_NCHW.clone().requires_grad_(), (a_C.view(-1, 1, 1, 1) * w_DCHW).requires_grad_()
        y_NCHW = subject.apply(subject.layer(), F.conv2d(x, w, padding=1))
        dw, dx = _gradients(y_NCHW, [w, x], dy_NCHW)
        return dw, dx

    dw_DCHW, dx_NCHW = gradients(torch.ones(channels, dtype=torch.float64))

    def off(a_C: Tensor) -> tuple[float, float]:
        """Largest relative deviation from the law, and what eps explains of it."""
        dw, dx = gradients(a_C)
        errors = (a_C.view(-1, 1, 1, 1) * dw - dw_DCHW).flatten(1).norm(dim=1)
        weights = (errors / dw_DCHW.flatten(1).norm(dim=1)).max().item()
        inputs = ((dx - dx_NCHW).norm() / dx_NCHW.norm()).item()
        smallest = min(a_C.min().item(), 1.0) ** 2 * variance  # a = 1 is what it is held against
        return max(weights, inputs, key=_badness), EXACT + 10 * eps_of(subject) / smallest

    whole = []
    for a in FACTORS:
        a_C = torch.full((channels,), a, dtype=torch.float64)
        dw, dx = gradients(a_C)
        ratio = (dw.norm() / dw_DCHW.norm()).item()
        result.points.append(Point("scaled weights", "weights", a, ratio))
        ratio = (dx.norm() / dx_NCHW.norm()).item()
        result.points.append(Point("scaled weights", "input", a, ratio))
        whole.append(off(a_C))
    value, tolerance = max(whole, key=lambda pair: _badness(pair[0]) / pair[1])
    result.findings.append(_law("weights_whole", "all weights", "0.01 to 100", value, tolerance))
    groups = shares.groups if shares.scope == "group" else channels
    a_G = 10 ** (2 * torch.rand(groups, generator=g, dtype=torch.float64) - 1)
    a_C = 10 ** (2 * torch.rand(channels, generator=g, dtype=torch.float64) - 1)
    by_filter, (by_group, bound) = off(a_C), off(a_G.repeat_interleave(channels // groups))
    finding = _law("weights_filter", "each filter of the weights", "random, 0.1 to 10", *by_filter)
    if finding.verdict == FAILS and verdict_below(by_group, bound) == HOLDS:
        verdict = conditional(f"the filters of a group (G = {groups}) share the factor")
        note = f"with one random factor per group: off by {by_group:.1g}"
        finding = Finding(**{**vars(finding), "verdict": verdict, "note": note})
    result.findings.append(finding)


def _law(statement: str, of: str, factors: str, value: float, tolerance: float) -> Finding:
    return Finding(
        statement,
        f"self-regulating: scaling {of} before the norm by a leaves the gradient that flows on as"
        " it is and divides their own gradient by a",
        f"largest relative deviation from both, 3x3 convolution, a = {factors}",
        "0",
        f"{value:.2g}",
        verdict_below(value, tolerance),
        value=value,
        tolerance=f"{tolerance:.1g}, ten times the share of eps in the variance",
    )
