"""Claim 1: what the layer computes. Mean and variance, eps, the affine part, the reference.

Section "The core mechanism". All in float64 and training mode; no chance is in any number.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.norms.reference import normalize_backward_reference, normalize_reference
from gnexp.passport.finding import FAILS, HOLDS, Finding, Measured, Point, at_most, only_when
from gnexp.passport.sets import divisors, sets_claimed, sets_used, variance_of, with_equal_sets
from gnexp.passport.subject import Subject, affine

EXACT = 1e-9  # of float64 numbers of size 1, after sums over up to 10,000 of them
EPS_RATIOS = tuple(10.0**power for power in range(-4, 5))  # variance over eps
EPS_TOLERANCE = 1e-3  # relative, of the variance that is left
DEFAULT_EPS = 1e-5
EPS_NAMES = ("eps", "epsilon", "variance_epsilon")
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
        verdict = only_when(f"mean and variance are taken over {used}")
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
            at_most(worst, EPS_TOLERANCE),
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
        at_most(largest, EXACT) if finite else FAILS,
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
        *("affine", text, what, "0", f"{off:.2g}", at_most(off, EXACT), off),
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
    gamma, beta = affine(layer)
    ones = torch.ones(subject.channels, dtype=torch.float64)
    numbers = [x_NCHW, ones if gamma is None else gamma, 0 * ones if beta is None else beta]
    numbers = [tensor.detach().reshape(-1).numpy() for tensor in numbers]
    numbers[0] = x_NCHW.numpy()
    x_NCHW.requires_grad_()
    y_NCHW = subject.apply(layer, x_NCHW)
    (dx_NCHW,) = torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)
    name, groups = _reference_named(subject, numbers, y_NCHW.detach())
    eps = eps_of(subject)
    y = normalize_reference(name, *numbers, eps, groups)
    dx, _, _ = normalize_backward_reference(name, *numbers, eps, groups, dy_NCHW.numpy())
    found = f"{name}, G = {groups}" if name == "gn" else name
    rows = []
    for statement, text, got, wanted in (
        ("forward", "the output is that of the formulas", y_NCHW, y),
        ("backward", "the gradient to the input is that of the formulas", dx_NCHW, dx),
    ):
        scale = max(1.0, float(np.abs(wanted).max()))
        off = float(np.abs(got.detach().numpy() - wanted).max()) / scale
        what = f"largest deviation from the float64 reference of {found}, eps = {eps:g}"
        verdict = at_most(off, EXACT)
        measured = f"{off:.2g}"
        rows.append(
            Finding(statement, text, what, "0", measured, verdict, off, tolerance=f"{EXACT:g}")
        )
    return rows


def _reference_named(
    subject: Subject, numbers: list[np.ndarray], y_NCHW: Tensor
) -> tuple[str, int | None]:
    """Return (name, groups) of the stated reference, else of the one whose output is nearest."""
    groups = subject.groups(subject.channels) if subject.groups else None
    if subject.reference is not None:
        return subject.reference, groups
    every = [("gn", g) for g in divisors(subject.channels)] if groups is None else [("gn", groups)]
    every += [("bn", None), ("none", None)] if groups is None else []
    eps = eps_of(subject)

    def off(candidate: tuple[str, int | None]) -> float:
        name, g = candidate
        return float(np.abs(normalize_reference(name, *numbers, eps, g) - y_NCHW.numpy()).max())

    return min(every, key=off)
