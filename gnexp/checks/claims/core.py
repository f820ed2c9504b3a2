"""Claim 1: what the layer computes. Mean and variance, eps, the affine part, the reference.

Section "The core mechanism". All in float64 and training mode; no chance is in any number.
"""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gnexp.checks.finding import FAILS, HOLDS, Finding, Measured, Point, conditional, verdict_below
from gnexp.checks.statistic_sets import (
    divisors,
    sets_claimed,
    sets_used,
    variance_of,
    with_equal_sets,
)
from gnexp.checks.subject import Subject, affine
from gnexp.norms.reference import table

EXACT = 1e-9  # of float64 numbers of size 1, after sums over up to 10,000 of them
EPS_RATIOS = tuple(10.0**power for power in range(-4, 5))  # variance over eps
EPS_TOLERANCE = 1e-3  # relative, of the variance that is left
DEFAULT_EPS = 1e-5
EPS_NAMES = ("eps", "epsilon", "variance_epsilon")
DIRECTIONS = 16  # along which slopes are compared
STOCK_OPTIONS = {"momentum": 0.1}  # for an own norm that is compared with batch norm
LEAST_EPS, MOST_EPS = 1e-12, 0.1  # of one that is found by measurement


def measure(subject: Subject) -> Measured:
    """Measure claim 1."""
    result = Measured()
    result.findings += [_standardized(subject)]
    _eps(subject, result)
    result.findings += [_constant(subject), _affine(subject), *_reference(subject)]
    return result


def _standardized(subject: Subject) -> Finding:
    claimed, used = sets_claimed(subject), sets_used(subject)
    x_NCHW = subject.features("core", 4)
    rows = claimed.rows(subject.apply(subject.layer(), x_NCHW).detach())
    mean = rows.mean(dim=1).abs().max().item()
    variance = rows.var(dim=1, correction=0)
    if used is None:
        verdict = FAILS
    elif used == claimed:
        verdict = HOLDS
    elif used.scope == "group":
        verdict = FAILS  # groups, but not as many as it says
    else:
        verdict = conditional(f"mean and variance are taken over {used}")
    return Finding(
        "standardized",
        "before gamma and beta, every group of every example has mean 0 and variance 1",
        "largest |mean| and range of the variance over groups, 4 examples of 5x7 pixels",
        "0 and 1",
        f"{mean:.1g} and {variance.min():.4g} to {variance.max():.4g} in {claimed};"
        f" standardized is {used or 'no set of values'}",
        verdict,
        value=mean,
        tolerance="1e-9 for the mean, 1e-2 for the variance",
    )


def eps_of(subject: Subject) -> float:
    """Return the eps that the layer states, else the one found by measurement, else the default.

    Of a small variance s the share v = s / (s + eps) is left, so that eps = s (1 / v - 1).
    """
    layer = subject.layer()
    for name in EPS_NAMES:
        stated = getattr(layer, name, None)
        if isinstance(stated, int | float) and stated > 0:
            return float(stated)
    sets = sets_used(subject)
    if sets is None:
        return DEFAULT_EPS
    x_NCHW = with_equal_sets(subject.features("core eps", 4), DEFAULT_EPS)
    left = variance_of(sets, subject.apply(layer, x_NCHW).detach()).mean().item()
    found = DEFAULT_EPS * (1 / left - 1) if left > 0 else math.inf
    return found if LEAST_EPS < found < MOST_EPS else DEFAULT_EPS


def _eps(subject: Subject, result: Measured) -> None:
    """Vary the input's variance s around eps: the output's must be s / (s + eps)."""
    eps, claimed = eps_of(subject), sets_used(subject) or sets_claimed(subject)
    rows = claimed.rows(subject.features("core eps", 4))
    rows = (rows - rows.mean(1, keepdim=True)) / rows.std(1, correction=0, keepdim=True)
    like = subject.features("core eps", 4)
    worst = 0.0
    for ratio in EPS_RATIOS:
        x_NCHW = claimed.unrows(rows * (ratio * eps) ** 0.5, like)
        y_SM = claimed.rows(subject.apply(subject.layer(), x_NCHW).detach())
        left = y_SM.var(dim=1, correction=0)
        expected = ratio / (1 + ratio)
        worst = max(worst, ((left - expected).abs().max() / expected).item())
        result.points.append(Point("eps", "measured", ratio, left.mean().item()))
    result.findings.append(
        Finding(
            "eps",
            "eps keeps small variances from blowing up: of the variance s, s / (s + eps) is left",
            f"variance of the output at s / eps from 1e-4 to 1e4, eps = {eps:g}",
            "s / (s + eps)",
            f"off by at most {worst:.2g} (relative)",
            verdict_below(worst, EPS_TOLERANCE),
            value=worst,
            tolerance=f"{EPS_TOLERANCE:g}, relative",
        )
    )


def _constant(subject: Subject) -> Finding:
    """Feed values that do not vary at all."""
    x_NCHW = torch.full((4, subject.channels, 5, 7), 3.0, dtype=torch.float64, requires_grad=True)
    y_NCHW = subject.layer()(x_NCHW)
    (dx_NCHW,) = torch.autograd.grad(y_NCHW.sum(), x_NCHW)
    finite = bool(torch.isfinite(y_NCHW).all() and torch.isfinite(dx_NCHW).all())
    largest = y_NCHW.detach().abs().max().item()
    return Finding(
        "constant",
        "an input of variance 0 is no division by zero: the output is beta",
        "largest |output - beta| for a constant input of 3, and whether all is finite",
        "0, finite",
        f"{largest:.2g}, {'finite' if finite else 'not finite'}",
        verdict_below(largest, EXACT) if finite else FAILS,
        value=largest,
        tolerance=f"{EXACT:g}",
    )


def _affine(subject: Subject) -> Finding:
    """Give gamma and beta random values and compare with the standardized output."""
    layer, x_NCHW = subject.layer(), subject.features("core", 4)
    gamma, beta = affine(layer)
    text = "gamma_c scales and beta_c shifts each channel of the standardized output"
    what = "largest |y - (gamma_c xhat + beta_c)| for random gamma and beta"
    if gamma is None or beta is None or gamma.numel() != subject.channels != beta.numel():
        missing = f"gamma: {_shape(gamma)}, beta: {_shape(beta)}"
        return Finding("affine", text, what, "0", missing, FAILS, tolerance=f"{EXACT:g}")
    xhat_NCHW = subject.apply(subject.layer(), x_NCHW)
    _randomize(subject, layer)
    y_NCHW = subject.apply(layer, x_NCHW)
    expected = gamma.view(-1, 1, 1) * xhat_NCHW + beta.view(-1, 1, 1)
    off = (y_NCHW - expected).abs().max().item()
    return Finding(
        *("affine", text, what, "0", f"{off:.2g}", verdict_below(off, EXACT), off),
        tolerance=f"{EXACT:g}",
    )


def _shape(parameter: nn.Parameter | None) -> str:
    return "none" if parameter is None else str(tuple(parameter.shape))


def _randomize(subject: Subject, layer: nn.Module) -> None:
    for name, parameter in zip(("gamma", "beta"), affine(layer)):
        if parameter is not None:
            drawn = subject.normal(f"core {name}", *parameter.shape)
            with torch.no_grad():
                parameter.copy_(drawn)


def _reference(subject: Subject) -> list[Finding]:
    """Compare with the formulas, forward and backward; without a stated reference, look for it."""
    x_NCHW, dy_NCHW = subject.features("core", 4), subject.normal("core dy", 4, 1, 5, 7)
    dy_NCHW = dy_NCHW * torch.ones_like(x_NCHW)
    layer = subject.layer()
    _randomize(subject, layer)
    state = _numbers(subject, layer)
    x_NCHW.requires_grad_()
    y_NCHW = subject.apply(layer, x_NCHW)
    (dx_NCHW,) = torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)
    x, dx = x_NCHW.detach().numpy(), dx_NCHW.numpy()
    name, options = _reference_named(subject, x, state, y_NCHW.detach().numpy())
    y, _ = table.reference(name, x, state, options)
    found = f"{name}, G = {options['num_groups']}" if name == "gn" else name
    what = f"the float64 reference of {found}, eps = {options['eps']:g}"
    forward = float(np.abs(y_NCHW.detach().numpy() - y).max() / max(1.0, np.abs(y).max()))
    rows = [
        _deviation("forward", "the output is that of the formulas", f"from {what}", forward),
    ]
    backward, along = _slopes_differ(subject, name, x, state, options, dy_NCHW.numpy(), dx)
    row = _deviation(
        "backward",
        "the gradient to the input is that of the formulas",
        f"along {along} random directions from {what}",
        backward,
    )
    if name in table.OWN_BACKWARD:
        sentence = f"{row.measured}, by design: {name} defines a backward pass of its own"
        row = replace(row, measured=sentence)
    return [*rows, row]


def _deviation(statement: str, text: str, what: str, off: float) -> Finding:
    return Finding(
        *(statement, text, f"largest deviation {what}", "0", f"{off:.2g}"),
        *(verdict_below(off, EXACT), off),
        tolerance=f"{EXACT:g}",
    )


def _numbers(subject: Subject, layer: nn.Module) -> table.State:
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


def _slopes_differ(
    subject: Subject,
    name: str,
    x_NCHW: np.ndarray,
    state: table.State,
    options: table.Options,
    dy_NCHW: np.ndarray,
    dx_NCHW: np.ndarray,
) -> tuple[float, int]:
    """Return how far <dx, d> is from <dy, slope along d> at most, and over how many d.

    Relative to the product of the norms over the root of their size, of which a wrong value at any
    place makes a visible part. The directions d are random, so that none can be missed.
    """
    directions = subject.normal("core slopes", DIRECTIONS, *x_NCHW.shape).numpy()
    worst = 0.0
    for d_NCHW in directions:
        slope_NCHW = table.slope(name, x_NCHW, state, options, d_NCHW, {})
        off = abs((dx_NCHW * d_NCHW).sum() - (dy_NCHW * slope_NCHW).sum())
        worst = max(worst, off / max(1.0, np.abs(dx_NCHW).max()))
    return float(worst), len(directions)


def _reference_named(
    subject: Subject, x_NCHW: np.ndarray, state: table.State, y_NCHW: np.ndarray
) -> tuple[str, table.Options]:
    """Return (name, options) of the stated reference, else of the one whose output is nearest."""
    eps = eps_of(subject)
    groups = subject.groups(subject.channels) if subject.groups else None
    options = {**STOCK_OPTIONS, **subject.options, "eps": eps, "num_groups": groups}
    if subject.reference is not None:
        return subject.reference, options
    every = [("gn", g) for g in divisors(subject.channels)] if groups is None else [("gn", groups)]
    every += [("bn", None), ("none", None)] if groups is None else []

    def off(candidate: tuple[str, int | None]) -> float:
        name, g = candidate
        y, _ = table.reference(name, x_NCHW, state, {**options, "num_groups": g})
        return float(np.abs(y - y_NCHW).max())

    name, groups = min(every, key=off)
    return name, {**options, "num_groups": groups}
