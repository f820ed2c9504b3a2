"""Claim 1: what the layer computes. Mean and variance, eps, the affine part, the reference.

Section "The core mechanism". All in float64 and training mode; no chance is in any number.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from gnexp.checks.finding import Finding, Found, Point, Statement, table
from gnexp.checks.statistic_sets import divisors
from gnexp.checks.subject import Subject, affine
from gnexp.checks.verdicts import FAILS, HOLDS, conditional
from gnexp.norms.reference import table as references

EXACT = 1e-9  # of float64 numbers of size 1, after sums over up to 10,000 of them
EPS_RATIOS = tuple(10.0**power for power in range(-4, 5))  # variance over eps
DIRECTIONS = 16  # along which slopes are compared
STOCK_OPTIONS = {"momentum": 0.1}  # for an own norm that is compared with batch norm
OF_REFERENCE = "from the float64 reference of {reference}, eps = {eps:g}"

ROWS = table(
    Statement(
        "standardized",
        "before gamma and beta, every group of every example has mean 0 and variance 1",
        "largest |mean| and range of the variance over groups, 4 examples of 5x7 pixels",
        expected="0 and 1",
        measured="{value:.1g} and {least:.4g} to {most:.4g} in {claimed}; standardized is {used}",
        tolerance="1e-9 for the mean, 1e-2 for the variance",
    ),
    Statement(
        "eps",
        "eps keeps small variances from blowing up: of the variance s, s / (s + eps) is left",
        "variance of the output at s / eps from 1e-4 to 1e4, eps = {eps:g}",
        expected="s / (s + eps)",
        measured="off by at most {value:.2g} (relative)",
        tolerance="{high:g}, relative",
        high=1e-3,
    ),
    Statement(
        "constant",
        "an input of variance 0 is no division by zero: the output is beta",
        "largest |output - beta| for a constant input of 3, and whether all is finite",
        expected="0, finite",
        measured="{value:.2g}, {finite}",
        high=EXACT,
    ),
    Statement(
        "affine",
        "gamma_c scales and beta_c shifts each channel of the standardized output",
        "largest |y - (gamma_c xhat + beta_c)| for random gamma and beta",
        high=EXACT,
    ),
    Statement(
        "forward",
        "the output is that of the formulas",
        f"largest deviation {OF_REFERENCE}",
        high=EXACT,
    ),
    Statement(
        "backward",
        "the gradient to the input is that of the formulas",
        f"largest deviation along {DIRECTIONS} random directions {OF_REFERENCE}",
        measured="{value:.2g}{by_design}",
        high=EXACT,
    ),
)


def measure(subject: Subject) -> Found:
    """Measure claim 1."""
    yield _standardized(subject)
    yield from _eps(subject)
    yield _constant(subject)
    yield _affine(subject)
    yield from _reference(subject)


def _standardized(subject: Subject) -> Finding:
    claimed, used = subject.sets_claimed, subject.sets_used
    y_NCHW = subject.output(subject.features("core", 4))
    variance = claimed.variance(y_NCHW)
    verdict = HOLDS if used == claimed else FAILS
    if used and used.scope != "group":  # other groups than it says are no condition but a fault
        verdict = conditional(f"mean and variance are taken over {used}")
    return ROWS["standardized"].found(
        claimed.largest_mean(y_NCHW),
        **{"least": variance.min(), "most": variance.max(), "claimed": claimed},
        **{"used": used or "no set of values", "verdict": verdict},
    )


def _eps(subject: Subject) -> Iterator[Finding | Point]:
    """Vary the input's variance s around eps: the output's must be s / (s + eps)."""
    eps, sets = subject.eps, subject.sets
    x_NCHW, worst = subject.features("core eps", 4), 0.0
    for ratio in EPS_RATIOS:
        left = sets.variance(subject.output(sets.with_variance(x_NCHW, ratio * eps)))
        expected = ratio / (1 + ratio)
        worst = max(worst, ((left - expected).abs().max() / expected).item())
        yield Point("eps", "measured", ratio, left.mean().item())
    yield ROWS["eps"].found(worst, eps=eps)


def _constant(subject: Subject) -> Finding:
    """Feed values that do not vary at all."""
    x_NCHW = torch.full((4, subject.channels, 5, 7), 3.0, dtype=torch.float64, requires_grad=True)
    y_NCHW = subject.layer()(x_NCHW)
    (dx_NCHW,) = torch.autograd.grad(y_NCHW.sum(), x_NCHW)
    largest = y_NCHW.detach().abs().max().item()
    if torch.isfinite(y_NCHW).all() and torch.isfinite(dx_NCHW).all():
        return ROWS["constant"].found(largest, finite="finite")
    return ROWS["constant"].found(largest, finite="not finite", verdict=FAILS)


def _affine(subject: Subject) -> Finding:
    """Give gamma and beta random values and compare with the standardized output."""
    layer, x_NCHW = subject.layer(), subject.features("core", 4)
    gamma, beta = affine(layer)
    if gamma is None or beta is None or gamma.numel() != subject.channels != beta.numel():
        shapes = ["none" if p is None else tuple(p.shape) for p in (gamma, beta)]
        missing = "gamma: {}, beta: {}".format(*shapes)
        return ROWS["affine"].found(measured=missing, verdict=FAILS)
    _randomize(subject, layer)
    expected = gamma.view(-1, 1, 1) * subject.output(x_NCHW) + beta.view(-1, 1, 1)
    return ROWS["affine"].found((subject.apply(layer, x_NCHW) - expected).abs().max().item())


def _randomize(subject: Subject, layer: nn.Module) -> None:
    for name, parameter in zip(("gamma", "beta"), affine(layer)):
        if parameter is not None:
            drawn = subject.normal(f"core {name}", *parameter.shape)
            with torch.no_grad():
                parameter.copy_(drawn)


def _reference(subject: Subject) -> Iterator[Finding]:
    """Compare with the formulas, forward and backward; without a stated reference, look for it."""
    x_NCHW, dy_NCHW = subject.features("core", 4), subject.normal("core dy", 4, 1, 5, 7)
    dy_NCHW = dy_NCHW * torch.ones_like(x_NCHW)
    layer = subject.layer()
    _randomize(subject, layer)
    state = _numbers(subject, layer)
    y_NCHW = subject.apply(layer, x_NCHW.requires_grad_())
    (dx_NCHW,) = torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)
    x, y, dx, dy = (t.detach().numpy() for t in (x_NCHW, y_NCHW, dx_NCHW, dy_NCHW))
    name, options = _reference_named(subject, x, state, y)
    expected, _ = references.reference(name, x, state, options)
    said = f"{name}, G = {options['num_groups']}" if name == "gn" else name
    how = {"reference": said, "eps": options["eps"]}
    off = np.abs(y - expected).max() / max(1.0, np.abs(expected).max())
    yield ROWS["forward"].found(float(off), **how)
    # Along random directions d no wrong value can be missed: <dx, d> must be <dy, slope along d>.
    off = [
        abs((dx * d).sum() - (dy * references.slope(name, x, state, options, d, {})).sum())
        for d in subject.normal("core slopes", DIRECTIONS, *x.shape).numpy()
    ]
    own = f", by design: {name} defines a backward pass of its own"
    how["by_design"] = own if name in references.OWN_BACKWARD else ""
    yield ROWS["backward"].found(float(np.max(off) / max(1.0, np.abs(dx).max())), **how)


def _numbers(subject: Subject, layer: nn.Module) -> references.State:
    """Return what the layer holds as its reference takes it: gamma 1, beta 0 where it has none."""
    ones = np.ones(subject.channels)
    stock = {"running_mean": 0 * ones, "running_var": ones, "num_batches_tracked": np.zeros(())}
    state = {"weight": ones, "bias": 0 * ones}
    for key, parameter in zip(("weight", "bias"), affine(layer)):
        if parameter is not None:
            state[key] = parameter.detach().numpy().reshape(-1).copy()
    # Of a norm that names no reference, the other tensors mean what they mean to it.
    own = layer.state_dict() if subject.reference else {}
    return {**stock, **{k: v.numpy().copy() for k, v in own.items()}, **state}


def _reference_named(
    subject: Subject, x_NCHW: np.ndarray, state: references.State, y_NCHW: np.ndarray
) -> tuple[str, references.Options]:
    """Return (name, options) of the stated reference, else of the one whose output is nearest."""
    groups = subject.groups(subject.channels) if subject.groups else None
    options = {**STOCK_OPTIONS, **subject.options, "eps": subject.eps, "num_groups": groups}
    if subject.reference is not None:
        return subject.reference, options
    every = [("gn", groups)]
    if groups is None:
        every = [*(("gn", g) for g in divisors(subject.channels)), ("bn", None), ("none", None)]

    def off(candidate: tuple[str, int | None]) -> float:
        name, g = candidate
        y, _ = references.reference(name, x_NCHW, state, {**options, "num_groups": g})
        return float(np.abs(y - y_NCHW).max())

    name, groups = min(every, key=off)
    return name, {**options, "num_groups": groups}
