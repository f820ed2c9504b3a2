"""Claim 3: what one example gets depends on no other example of the batch.

Section "Fundamental properties", 1. Float64, training mode. For a norm that does depend on its
batch: how fast that dependence falls with the batch size.

A change is the RMS of the difference, relative to the RMS before, of example 0's output y_0, or of
its gradient d <v, y_0> / d x_0 for a random v. A mean over the batch moves by 1 / N of a difference
when one of N examples is replaced, and by sqrt(N - 1) / N when its N - 1 mates are: the dependence
falls as N^-1, and as (N^2 / (N - 1))^-1/2, which is N^-1/2 for large N. Those are the predictors
of the fits. They leave out that the variance one divides by scatters itself, a relative O(1/N) more
change (most in the gradient: 20 % at N = 4, 10 % at N = 8), hence the fits from N = 8 on.

All batch sizes share the draws of example 0, its mates and v, so that their scatter is common to
the points and does not tilt the line.

Shapes: N examples, C channels, H and W pixels; K draws, B batch sizes.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.analysis.statistics import t_quantile
from gnexp.checks.finding import Finding, Found, Point, Statement, vacuous
from gnexp.checks.power_law import slope
from gnexp.checks.subject import Subject, relative_change
from gnexp.checks.verdicts import HOLDS, VACUOUS
from gnexp.measure.gradient_noise import block_jackknife
from gnexp.norms.module_state import copied

EXACT = 1e-10  # relative RMS of float64 numbers
FLOOR = 1e-16  # for the log axis
SIZES = (1, 2, 4, 8, 16, 32, 64)
FITTED = SIZES[3:]
EXPONENT_TOLERANCE = 0.15
# Squared changes are skewed, and Student's t takes them for normal: the standard error of fewer
# draws than 9, known to a relative 1 / sqrt(2 (K - 1)) = 25 % at best, carries no interval.
LEAST_DRAWS = 9
OF = ("output", "gradient")

INDEPENDENT = Statement(
    "{key}_{of}",
    "the {of} of an example is the same when {change}",
    "largest relative RMS change in training mode: {how}",
    tolerance="{high:g}, relative",
    high=EXACT,
)
CHANGES = (
    {
        "key": "one_mate",
        "change": "one batch-mate is replaced",
        "how": "each of the 7 mates of a batch of 8 replaced in turn",
    },
    {
        "key": "all_mates",
        "change": "all batch-mates are replaced",
        "how": "all 7 mates of a batch of 8 replaced",
    },
    {
        "key": "batch_size",
        "change": "the batch size changes",
        "how": "batch of 2, 4, ..., 64 against the example alone",
    },
)
FALLS = Statement(
    "{key}_{of}_falls",
    "what dependence of the {of} there is falls as {law} when {change}",
    "exponent of the relative RMS change in {predictor}, N ="
    f" {FITTED[0]} to {FITTED[-1]}, {{n}} draws each",
    expected="{theory:g}",
    measured="exponent {value:.3f} [{lo:.3f}, {hi:.3f}]",
    tolerance=f"+-{EXPONENT_TOLERANCE:g}, the whole 95 % interval; or no change above {EXACT:g}",
)
LAWS = (
    {**CHANGES[0], "theory": -1.0, "law": "N^-1", "predictor": "N"},
    {**CHANGES[1], "theory": -0.5, "law": "N^-1/2", "predictor": "N^2 / (N - 1)"},
)
PREDICTORS = (FITTED, [n * n / (n - 1) for n in FITTED])
Pass = tuple[Tensor, Tensor]


def measure(subject: Subject) -> Found:
    """Measure claim 3."""
    nothing = subject.takes_no_statistic
    for row in _independence(subject):
        yield vacuous(row) if nothing else row
    squares_BKRW = _changes(subject).square()
    for r, law in enumerate(LAWS):
        for w, of in enumerate(OF):
            squares_KB = squares_BKRW[:, :, r, w].T
            yield from _points(of, law["key"].replace("_", " "), squares_KB)
            yield _falls(r, of, squares_KB)


def _pass(subject: Subject, layer: nn.Module, x_NCHW: Tensor, v_CHW: Tensor) -> Pass:
    """Return example 0's output and gradient; the layer is left as it was."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    # A layer that draws random numbers gets the same ones in every pass: they are no dependence.
    torch.default_generator.manual_seed(subject.seed)
    y_CHW = subject.apply(copied(layer), x_NCHW)[0]
    (dx_NCHW,) = torch.autograd.grad((v_CHW * y_CHW).sum(), x_NCHW)
    return y_CHW.detach(), dx_NCHW[0]


def _change(before: Pass, after: Pass) -> tuple[float, ...]:
    """Return the relative change of output and gradient."""
    return tuple(relative_change(new, old) for old, new in zip(before, after))


def _largest(subject: Subject, layer: nn.Module) -> list[tuple[float, ...]]:
    """Return the largest change of (output, gradient) by each of CHANGES."""
    x_NCHW, z_NCHW = (subject.features(f"batch {name}", SIZES[-1]) for name in ("x", "z"))
    v_CHW = subject.normal("batch v", *x_NCHW.shape[1:])
    x_8, z_8 = x_NCHW[:8], z_NCHW[:8]
    ways = (
        (x_8, [torch.cat([x_8[:i], z_8[i : i + 1], x_8[i + 1 :]]) for i in range(1, 8)]),
        (x_8, [torch.cat([x_8[:1], z_8[1:]])]),
        (x_NCHW[:1], [x_NCHW[:n] for n in SIZES]),
    )
    largest = []
    for before, after in ways:
        first = _pass(subject, layer, before, v_CHW)
        changes = [_change(first, _pass(subject, layer, x, v_CHW)) for x in after]
        largest.append(tuple(map(max, zip(*changes))))
    return largest


def _independence(subject: Subject) -> Iterator[Finding]:
    training, evaluation = (
        _largest(subject, subject.layer().train(mode)) for mode in (True, False)
    )
    for i, change in enumerate(CHANGES):
        for w, of in enumerate(OF):
            off = training[i][w]
            note = "" if off <= EXACT else f"in evaluation mode: {evaluation[i][w]:.2g}"
            yield INDEPENDENT.found(off, **change, of=of, note=note)


def _changes(subject: Subject) -> Tensor:
    """Return relative changes by batch size, draw, replacement and (output, gradient)."""
    layer, most = subject.layer(), SIZES[-1]
    rows: list[list] = [[] for _ in SIZES[1:]]
    for i in range(subject.draws):
        x_NCHW, z_NCHW = (
            subject.features(f"batch draw {name} {i}", most, 4, 4) for name in ("x", "z")
        )
        v_CHW = subject.normal(f"batch draw v {i}", *x_NCHW.shape[1:])
        for n, row in zip(SIZES[1:], rows):
            # Example 1 is the one replaced, and takes every place in turn: a layer may look at some
            # of them only.
            places = [0, *range(2, n)]
            places.insert(1 + i % (n - 1), 1)
            x, every = x_NCHW[places], torch.cat([x_NCHW[:1], z_NCHW[1:n]])[places]
            one = torch.where(torch.tensor(places).view(-1, 1, 1, 1) == 1, every, x)
            before, *after = (_pass(subject, layer, b, v_CHW) for b in (x, one, every))
            row.append([_change(before, a) for a in after])
    return torch.tensor(rows, dtype=torch.float64)


def _points(of: str, series: str, squares_KB: Tensor) -> Iterator[Point]:
    """Yield the RMS over the draws at each batch size, with a 95 % interval of its logarithm."""
    k = len(squares_KB)
    for n, squares_K in zip(SIZES[1:], squares_KB.T):
        mean = squares_K.mean().item()
        y, factor = max(math.sqrt(mean), FLOOR), math.nan
        if k > 1 and mean > FLOOR**2:
            error = 0.5 * squares_K.std().item() / math.sqrt(k) / mean
            factor = math.exp(t_quantile(0.975, k - 1) * error)
        yield Point(of, series, n, y, y / factor, y * factor)


def _falls(r: int, of: str, squares_KB: Tensor) -> Finding:
    """Fit the exponent of the change over the batch size."""
    law = {**LAWS[r], "of": of, "n": len(squares_KB)}
    largest = squares_KB.max().item() ** 0.5
    if largest <= EXACT:
        measured = f"no dependence (largest change {largest:.2g})"
        note = "no dependence at any batch size: nothing is left to fall"
        return FALLS.found(**law, measured=measured, verdict=VACUOUS, note=note)
    low, high = (law["theory"] + off for off in (-EXPONENT_TOLERANCE, EXPONENT_TOLERANCE))
    fitted = _exponent(PREDICTORS[r], squares_KB[:, -len(FITTED) :].numpy())
    found, note = FALLS.found(*fitted, **law, low=low, high=high), ""
    if found.verdict == HOLDS:
        note = "the law is the leading order in 1/N; the next one steepens the small N"
    elif len(squares_KB) < LEAST_DRAWS:
        note = f"an interval needs at least {LEAST_DRAWS} draws"
    elif math.isnan(found.lo):
        note = "too few draws change anything at some batch size"
    return replace(found, note=note)


def _exponent(x_B: list[float], squares_KB: np.ndarray) -> tuple[float, float, float]:
    """Return the exponent and its 95 % interval, by leaving out one draw after another.

    nan where the draws cannot give it: too few of them, or too few in which anything changes.
    """
    k, sum_B = len(squares_KB), squares_KB.sum(axis=0)
    value = slope(x_B, sum_B) / 2
    if k < LEAST_DRAWS or math.isnan(value):
        return value, math.nan, math.nan
    without = [slope(x_B, sum_B - one_B) / 2 for one_B in squares_KB]
    return value, *block_jackknife(np.array([value, *without]), np.ones(k))
