"""Claim 4: the layer computes the same in training and in evaluation, and keeps no statistics.

Section "Fundamental properties", 2. Float64, no gradients. A change or gap is the RMS of the
difference, relative to the RMS of the training-mode output (or of the output before).

"same data": the evaluated batch and the 100 training passes before it are drawn from the same 256
examples. "same batch": the evaluated batch is the only one that was ever passed, so often that
running statistics have converged to its own, and what is left is how they are computed.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gnexp.analysis.statistics import t_interval
from gnexp.checks.finding import Finding, Found, Point, Statement, table, vacuous
from gnexp.checks.statistic_sets import CHANNEL, StatisticSets
from gnexp.checks.subject import Subject, relative_change
from gnexp.checks.verdicts import conditional
from gnexp.norms.module_state import copied

EXACT = 1e-10  # relative RMS of float64 numbers
SIZES = (1, 2, 4, 8, 16, 32, 64)
POOL = 256  # examples
PIXELS = (4, 4)
PASSES = 100  # 0.9^100 = 3e-5 of the first statistics are left at the usual momentum
SAME_BATCH_PASSES = 150  # 0.9^150 = 1e-7
SCALE, SHIFT, MOST_SCALE = 1.5, 0.5, 2.0  # of the test inputs
FLOOR = 1e-16  # for the log axis

ROWS = table(
    Statement(
        "same_computation",
        "the operation is identical in training and in inference",
        f"largest mean relative RMS gap between both modes at batch {SIZES[0]}, 2, 4, ...,"
        f" {SIZES[-1]}, after {PASSES} training passes over the same data",
        measured=f"{{first:.2g}} at batch {SIZES[0]}, {{last:.2g}} at {SIZES[-1]}",
        tolerance="{high:g}, relative",
        high=EXACT,
    ),
    Statement(
        "no_running_state",
        "there is no need to maintain running population statistics",
        f"buffers that {PASSES} training passes changed",
        high=0,
    ),
    Statement(
        "no_memory",
        "the output in evaluation does not depend on what was passed in training",
        f"relative RMS change of the evaluation-mode output by {PASSES} training passes",
        tolerance="{high:g}, relative",
        high=EXACT,
    ),
    Statement(
        "shift",
        "statistics computed on the fly make it robust to a shift of the test distribution",
        "relative RMS change of the evaluation-mode output when test inputs x become"
        f" {SCALE:g} x + {SHIFT:g}, or a x + b with a, b of their own for each channel, or pixel;"
        f" batch {SIZES[-1]}",
        expected="0, to what eps allows",
        measured="{value:.2g} by one map for all, {channel:.2g} by one for each channel,"
        " {pixel:.2g} by one for each pixel",
        tolerance="{high:.2g}: what eps lets through at the smallest variance of a channel",
        note=f"{{in_training}}a, uniform in [1, {MOST_SCALE:g}], and b, in [0, 1], are {SCALE:g}"
        f" and {SHIFT:g} on average; whole images, whose contrast is one affine map of each, are"
        " measured on trained networks in claim 5",
    ),
)


def measure(subject: Subject) -> Found:
    """Measure claim 4."""
    with torch.no_grad():
        pool = subject.features("train test", POOL, *PIXELS)
        trained = subject.layer()
        for x_NCHW in _batches(subject, pool, SIZES[-1], PASSES):
            subject.apply(trained, x_NCHW)
        nothing = subject.takes_no_statistic and not list(trained.buffers())
        *points, row = _equivalence(subject, pool)
        yield from points
        for each in (row, _buffers(subject, trained), _memory(subject, trained)):
            yield vacuous(each) if nothing else each
        yield _shifted(subject, trained)


def _batches(subject: Subject, pool: Tensor, n: int, count: int) -> Iterator[Tensor]:
    """Yield `count` batches of n different examples of the pool."""
    g = subject.generator("train test batches", n)
    for _ in range(count):
        yield pool[torch.randperm(len(pool), generator=g)[:n]]


def _gaps(subject: Subject, batches: list[Tensor], passes: int) -> list[float]:
    """Return the gap between both modes for each batch that follows the first training passes."""
    layer, gaps = subject.layer(), []
    for x_NCHW in batches[:passes]:
        subject.apply(layer, x_NCHW)
    for x_NCHW in batches[passes:]:
        # Evaluation first: running statistics must not have seen the batch already.
        evaluated = subject.apply(layer.eval(), x_NCHW)
        gaps.append(relative_change(evaluated, subject.apply(layer.train(), x_NCHW)))
    return gaps


def _equivalence(subject: Subject, pool: Tensor) -> Iterator[Point | Finding]:
    first, last = SIZES[0], SIZES[-1]
    gaps, same = {}, {}
    for n in SIZES:
        batches = list(_batches(subject, pool, n, PASSES + subject.draws))
        gaps[n] = t_interval(_gaps(subject, batches, PASSES))
        (same[n],) = _gaps(subject, [pool[:n]] * (SAME_BATCH_PASSES + 1), SAME_BATCH_PASSES)
        bounds = (max(value, FLOOR) for value in (gaps[n].mean, gaps[n].lo, gaps[n].hi))
        yield Point("gap", "same data", n, *bounds)
        yield Point("gap", "same batch", n, max(same[n], FLOOR))
    worst = max(*(gap.mean for gap in gaps.values()), *same.values())
    # A variance that is divided by M - 1 instead of M leaves this gap.
    unbiased = [1 - math.sqrt(1 - 1 / (n * math.prod(PIXELS))) for n in (first, last)]
    note = (
        f"a batch that was the only one ever passed still has a gap of {same[first]:.2g} at"
        f" batch {first}, {same[last]:.2g} at {last}; a running variance divided by M - 1"
        " where training divides by M = N H W leaves 1 - sqrt(1 - 1/M):"
        f" {unbiased[0]:.2g} and {unbiased[1]:.2g}"
    )
    yield ROWS["same_computation"].found(
        worst,
        **{"first": gaps[first].mean, "last": gaps[last].mean, "n": subject.draws},
        note=note if worst > EXACT else "",
    )


def _buffers(subject: Subject, trained: nn.Module) -> Finding:
    """Compare every buffer with that of a fresh layer."""
    before, after = (dict(layer.named_buffers()) for layer in (subject.layer(), trained))
    changed = [k for k, b in after.items() if k not in before or not torch.equal(b, before[k])]
    text = f"{len(changed)} of {len(after)}" + (f": {', '.join(changed)}" if changed else "")
    measured = text if after else "no buffers"
    return ROWS["no_running_state"].found(len(changed), measured=measured)


def _evaluated(
    subject: Subject, layer: nn.Module, x_NCHW: Tensor, training: bool = False
) -> Tensor:
    """Return the layer's output; the layer is left as it was, and draws the same numbers again."""
    torch.default_generator.manual_seed(subject.seed)
    return subject.apply(copied(layer).train(training), x_NCHW)


def _memory(subject: Subject, trained: nn.Module) -> Finding:
    """Compare what a trained and a fresh layer make of the same batch in evaluation mode."""
    x_NCHW = subject.features("train test test", SIZES[-1], *PIXELS)
    after, fresh = (_evaluated(subject, layer, x_NCHW) for layer in (trained, subject.layer()))
    return ROWS["no_memory"].found(relative_change(after, fresh))


def _shifted(subject: Subject, trained: nn.Module) -> Finding:
    """Scale and shift all test inputs, and with them the test distribution."""
    x_NCHW = subject.features("train test test", SIZES[-1], *PIXELS)

    def change(shifted_NCHW: Tensor, training: bool = False) -> float:
        x, shifted = (_evaluated(subject, trained, x, training) for x in (x_NCHW, shifted_NCHW))
        return relative_change(shifted, x)

    def by_own(sets: StatisticSets | None, *shape: int) -> float:
        """Return the change by random a and b of their own: for each set, or of this shape."""
        g = subject.generator("train test shift")
        if sets is None:
            a, b = torch.rand(2, *shape, generator=g, dtype=torch.float64)
        else:
            a, b = (sets.random(x_NCHW, 0, 1, g) for _ in range(2))
        return change((1 + (MOST_SCALE - 1) * a) * x_NCHW + b)

    def allowed(scale: float) -> float:
        # In a set of variance s, eps lets the fraction eps / 2s * (1 - 1 / scale^2) through.
        least = CHANNEL.variance(x_NCHW).min().item()
        return max(EXACT, subject.eps / (2 * least) * (1 - scale**-2))

    value, tolerance = change(SCALE * x_NCHW + SHIFT), allowed(SCALE)
    channel, pixel = by_own(None, subject.channels, 1, 1), by_own(None, *PIXELS)
    how = {"channel": channel, "pixel": pixel, "high": tolerance, "in_training": ""}
    if value > tolerance:
        other = change(SCALE * x_NCHW + SHIFT, training=True)
        how["in_training"] = f"with the statistics of training mode: {other:.2g}; "
    if value <= tolerance < max(channel, pixel):
        used = subject.sets_used
        alike = used is not None and by_own(used) <= allowed(MOST_SCALE)
        where = f"for {used}" if alike else "of all test inputs"
        how["verdict"] = conditional(f"the shift is one affine map {where}")
    return ROWS["shift"].found(value, **how)
