"""Claim 3: what one example gets depends on no other example of the batch.

Section "Fundamental properties", 1. Float64, training mode. For a norm that does depend on its
batch: how fast that dependence falls with the batch size.

A change is the RMS of the difference, relative to the RMS before, of example 0's output y_0, or of
its gradient d <v, y_0> / d x_0 for a random v. A mean over the batch moves by 1 / N of a difference
when one of N examples is replaced, and by sqrt(N - 1) / N when its N - 1 mates are: the dependence
falls as N^-1, and as (N^2 / (N - 1))^-1/2, which is N^-1/2 for large N. Those are the predictors
of the fits. They leave out that the variance one divides by scatters itself, a relative O(1/N) more
change (most in the gradient: 20 % at N = 4, 10 % at N = 8), hence the fits from N = 8 on.

Points, panels "output" and "gradient": x = batch size (log2), y = relative RMS change over all
draws (log; 1e-16 where nothing changes), lo and hi its 95 % interval; series "one mate" and "all
mates" (replaced). All batch sizes share the draws of example 0, its mates and v, so that their
scatter is common to the points and does not tilt the line.

Shapes: N examples, C channels, H and W pixels; K draws, B batch sizes.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.analysis.statistics import t_quantile
from gnexp.checks.finding import (
    HOLDS,
    VACUOUS,
    Finding,
    Measured,
    Point,
    inside,
    vacuous,
    verdict_below,
)
from gnexp.checks.statistic_sets import NO_STATISTIC, takes_no_statistic
from gnexp.checks.subject import Subject, clone, rms
from gnexp.measure.gradient_noise import block_jackknife

EXACT = 1e-10  # relative RMS of float64 numbers
FLOOR = 1e-16  # for the log axis
SIZES = (1, 2, 4, 8, 16, 32, 64)
FITTED = SIZES[3:]
EXPONENT_TOLERANCE = 0.15
# Squared changes are skewed, and Student's t takes them for normal: the standard error of fewer
# draws than 9, known to a relative 1 / sqrt(2 (K - 1)) = 25 % at best, carries no interval.
LEAST_DRAWS = 9
WHATS = ("output", "gradient")
REPLACED = {"one mate": "one batch-mate is replaced", "all mates": "all batch-mates are replaced"}
THEORY = {"one mate": -1.0, "all mates": -0.5}
Pass = tuple[Tensor, Tensor]


def measure(subject: Subject) -> Measured:
    """Measure claim 3."""
    result = Measured()
    with torch.random.fork_rng(devices=[]):
        training = _exact(subject, subject.layer())
        rows = _independence(training, _exact(subject, subject.layer().eval()))
        if takes_no_statistic(subject):
            rows = [vacuous(row, NO_STATISTIC) for row in rows]
        result.findings += rows
        changes_BK22 = _changes(subject)
    for j, replaced in enumerate(REPLACED):
        for i, what in enumerate(WHATS):
            squares = dict(zip(SIZES[1:], changes_BK22[:, :, j, i]))
            result.points += _points(what, replaced, squares)
            result.findings.append(_falls(what, replaced, squares))
    return result


def _pass(subject: Subject, layer: nn.Module, x_NCHW: Tensor, v_CHW: Tensor) -> Pass:
    """Return example 0's output and gradient; the layer is left as it was."""
    x_NCHW = x_NCHW.detach().requires_grad_()
    # A layer that draws random numbers gets the same ones in every pass: they are no dependence.
    torch.default_generator.manual_seed(subject.seed)
    y_CHW = subject.apply(clone(layer), x_NCHW)[0]
    (dx_NCHW,) = torch.autograd.grad((v_CHW * y_CHW).sum(), x_NCHW)
    return y_CHW.detach(), dx_NCHW[0]


def _change(before: Pass, after: Pass) -> tuple[float, float]:
    """Return the relative change of output and gradient."""
    changed = []
    for old, new in zip(before, after):
        off = rms(new - old)
        changed.append(off / rms(old) if off else 0.0)  # 0 also where all is 0
    return changed[0], changed[1]


def _exact(subject: Subject, layer: nn.Module) -> dict[str, tuple[float, float]]:
    """Return the largest change of (output, gradient) for each thing done to the batch."""
    x_NCHW, z_NCHW = (subject.features(f"batch {name}", SIZES[-1]) for name in ("x", "z"))
    v_CHW = subject.normal("batch v", *x_NCHW.shape[1:])

    def largest(before: Tensor, after: Iterator[Tensor]) -> tuple[float, float]:
        first = _pass(subject, layer, before, v_CHW)
        pairs = [_change(first, _pass(subject, layer, x, v_CHW)) for x in after]
        return max(p[0] for p in pairs), max(p[1] for p in pairs)

    x_8, z_8 = x_NCHW[:8], z_NCHW[:8]
    each = (torch.cat([x_8[:i], z_8[i : i + 1], x_8[i + 1 :]]) for i in range(1, 8))
    return {
        "one mate": largest(x_8, each),
        "all mates": largest(x_8, iter([torch.cat([x_8[:1], z_8[1:]])])),
        "batch size": largest(x_NCHW[:1], (x_NCHW[:n] for n in SIZES)),
    }


def _independence(
    training: dict[str, tuple[float, float]], evaluation: dict[str, tuple[float, float]]
) -> list[Finding]:
    done = {
        **REPLACED,
        "batch size": "the batch size changes",
    }
    how = {
        "one mate": "each of the 7 mates of a batch of 8 replaced in turn",
        "all mates": "all 7 mates of a batch of 8 replaced",
        "batch size": "batch of 2, 4, ..., 64 against the example alone",
    }
    rows = []
    for key, text in done.items():
        for i, what in enumerate(WHATS):
            off = training[key][i]
            rows.append(
                Finding(
                    f"{key.replace(' ', '_')}_{what}",
                    f"the {what} of an example is the same when {text}",
                    f"largest relative RMS change in training mode: {how[key]}",
                    "0",
                    f"{off:.2g}",
                    verdict_below(off, EXACT),
                    value=off,
                    tolerance=f"{EXACT:g}, relative",
                    note="" if off <= EXACT else f"in evaluation mode: {evaluation[key][i]:.2g}",
                )
            )
    return rows


def _changes(subject: Subject) -> Tensor:
    """Return squared relative changes (B, K, replaced, what)."""
    layer, k, most = subject.layer(), subject.draws, SIZES[-1]
    rows = [[] for _ in SIZES[1:]]
    for i in range(k):
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
    return torch.tensor(rows, dtype=torch.float64).square()


def _points(what: str, replaced: str, squares: dict[int, Tensor]) -> list[Point]:
    """Return the RMS over the draws at each batch size, with a 95 % interval of its logarithm."""
    points = []
    for n, squares_K in squares.items():
        mean, k = squares_K.mean().item(), len(squares_K)
        y, factor = max(math.sqrt(mean), FLOOR), math.nan
        if k > 1 and mean > FLOOR**2:
            error = 0.5 * squares_K.std().item() / math.sqrt(k) / mean
            factor = math.exp(t_quantile(0.975, k - 1) * error)
        points.append(Point(what, replaced, n, y, y / factor, y * factor))
    return points


def _falls(what: str, replaced: str, squares: dict[int, Tensor]) -> Finding:
    """Fit the exponent of the change over the batch size."""
    theory, k = THEORY[replaced], len(next(iter(squares.values())))
    largest = max(squares_K.max().item() for squares_K in squares.values()) ** 0.5
    law = {"one mate": "N^-1", "all mates": "N^-1/2"}[replaced]
    predictor = {"one mate": "N", "all mates": "N^2 / (N - 1)"}[replaced]
    value = lo = hi = math.nan
    note = ""
    if largest <= EXACT:
        measured, verdict = f"no dependence (largest change {largest:.2g})", VACUOUS
        note = "no dependence at any batch size: nothing is left to fall"
    else:
        value, lo, hi = _exponent(replaced, squares)
        measured = f"exponent {value:.3f} [{lo:.3f}, {hi:.3f}]"
        verdict = inside(lo, hi, theory - EXPONENT_TOLERANCE, theory + EXPONENT_TOLERANCE)
        if verdict == HOLDS:
            note = "the law is the leading order in 1/N; the next one steepens the small N"
        elif math.isnan(lo):
            few = f"an interval needs at least {LEAST_DRAWS} draws"
            note = few if k < LEAST_DRAWS else "too few draws change anything at some batch size"
    return Finding(
        f"{replaced.replace(' ', '_')}_{what}_falls",
        f"what dependence of the {what} there is falls as {law} when {REPLACED[replaced]}",
        f"exponent of the relative RMS change in {predictor}, N = {FITTED[0]} to {FITTED[-1]},"
        f" {k} draws each",
        f"{theory:g}",
        measured,
        verdict,
        *(value, lo, hi),
        tolerance=f"+-{EXPONENT_TOLERANCE:g}, the whole 95 % interval;"
        f" or no change above {EXACT:g}",
        n=k,
        note=note,
    )


def _exponent(replaced: str, squares: dict[int, Tensor]) -> tuple[float, float, float]:
    """Return the exponent and its 95 % interval, by leaving out one draw after another.

    nan where the draws cannot give it: too few of them, or too few in which anything changes.
    """
    x_B = np.log([n if replaced == "one mate" else n * n / (n - 1) for n in FITTED])
    x_B -= x_B.mean()
    squares_KB = torch.stack([squares[n] for n in FITTED], dim=1).numpy()
    k, sum_B = len(squares_KB), squares_KB.sum(axis=0)

    def slope(mean_square_B: np.ndarray) -> float:
        y_B = 0.5 * np.log(mean_square_B) if (mean_square_B > 0).all() else np.nan * x_B
        return float((x_B * y_B).sum() / (x_B**2).sum())

    value = slope(sum_B / k)
    if k < LEAST_DRAWS or math.isnan(value):
        return value, math.nan, math.nan
    without = [slope((sum_B - one_B) / (k - 1)) for one_B in squares_KB]
    return value, *block_jackknife(np.array([value, *without]), np.ones(k))
