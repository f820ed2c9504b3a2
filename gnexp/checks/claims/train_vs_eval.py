"""Claim 4: the layer computes the same in training and in evaluation, and keeps no statistics.

Section "Fundamental properties", 2. Float64, no gradients. A change or gap is the RMS of the
difference, relative to the RMS of the training-mode output (or of the output before).

Points, panel "gap": x = batch size (log2), y = relative gap between training and evaluation mode
(log; 1e-16 where there is none). Series "same data": the evaluated batch and the 100 training
passes before it are drawn from the same 256 examples; lo and hi are the 95 % interval of the mean
over batches. Series "same batch": the evaluated batch is the only one that was ever passed, so
often that running statistics have converged to its own, and what is left is how they are computed.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from gnexp.analysis.statistics import t_interval
from gnexp.checks.claims.core import eps_of
from gnexp.checks.finding import (
    HOLDS,
    Finding,
    Measured,
    Point,
    conditional,
    vacuous,
    verdict_below,
)
from gnexp.checks.statistic_sets import (
    NO_STATISTIC,
    StatisticSets,
    random_per_set,
    sets_used,
    takes_no_statistic,
    variance_of,
)
from gnexp.checks.subject import Subject, clone, rms

EXACT = 1e-10  # relative RMS of float64 numbers
SIZES = (1, 2, 4, 8, 16, 32, 64)
POOL = 256  # examples
PIXELS = (4, 4)
PASSES = 100  # 0.9^100 = 3e-5 of the first statistics are left at the usual momentum
SAME_BATCH_PASSES = 150  # 0.9^150 = 1e-7
SCALE, SHIFT, MOST_SCALE = 1.5, 0.5, 2.0  # of the test inputs
SHIFTS = EACH_CHANNEL, EACH_PIXEL = "each channel", "each pixel"
FLOOR = 1e-16  # for the log axis


def measure(subject: Subject) -> Measured:
    """Measure claim 4."""
    result = Measured()
    # Layers may draw random numbers; those of the check come from the subject's generators.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(subject.seed)
        pool = subject.features("train test", POOL, *PIXELS)
        result.findings.append(_equivalence(subject, pool, result))
        trained = subject.layer()
        for x_NCHW in _batches(subject, pool, SIZES[-1], PASSES):
            subject.apply(trained, x_NCHW)
        result.findings += [_buffers(subject, trained), _memory(subject, trained)]
        if takes_no_statistic(subject) and not list(trained.buffers()):
            result.findings = [vacuous(row, NO_STATISTIC) for row in result.findings]
        result.findings.append(_shifted(subject, trained))
    return result


def _batches(subject: Subject, pool: Tensor, n: int, count: int) -> Iterator[Tensor]:
    """Yield `count` batches of n different examples of the pool."""
    g = subject.generator("train test batches", n)
    for _ in range(count):
        yield pool[torch.randperm(len(pool), generator=g)[:n]]


def _relative(new: Tensor, old: Tensor) -> float:
    off = rms(new - old)
    return off / rms(old) if off else 0.0


def _both_modes(subject: Subject, layer: nn.Module, x_NCHW: Tensor) -> float:
    """Return the gap between both modes, and leave the layer in training mode, this batch seen."""
    # Evaluation first: running statistics must not have seen the batch already.
    evaluated = subject.apply(layer.eval(), x_NCHW)
    return _relative(evaluated, subject.apply(layer.train(), x_NCHW))


def _gaps(subject: Subject, pool: Tensor, n: int) -> list[float]:
    """Return the gap of each of `draws` batches that follow 100 training passes."""
    layer, gaps = subject.layer(), []
    for i, x_NCHW in enumerate(_batches(subject, pool, n, PASSES + subject.draws)):
        if i < PASSES:
            subject.apply(layer, x_NCHW)
        else:
            gaps.append(_both_modes(subject, layer, x_NCHW))
    return gaps


def _same_batch_gap(subject: Subject, pool: Tensor, n: int) -> float:
    layer, x_NCHW = subject.layer(), pool[:n]
    for _ in range(SAME_BATCH_PASSES):
        subject.apply(layer, x_NCHW)
    return _both_modes(subject, layer, x_NCHW)


def _equivalence(subject: Subject, pool: Tensor, result: Measured) -> Finding:
    gaps = {n: t_interval(_gaps(subject, pool, n)) for n in SIZES}
    same = {n: _same_batch_gap(subject, pool, n) for n in SIZES}
    for n, gap in gaps.items():
        bounds = (max(value, FLOOR) for value in (gap.mean, gap.lo, gap.hi))
        result.points.append(Point("gap", "same data", n, *bounds))
        result.points.append(Point("gap", "same batch", n, max(same[n], FLOOR)))
    worst = max(*(gap.mean for gap in gaps.values()), *same.values())
    first, last = SIZES[0], SIZES[-1]
    pixels = math.prod(PIXELS)
    note = ""
    if worst > EXACT:
        note = (
            f"a batch that was the only one ever passed still has a gap of {same[first]:.2g} at"
            f" batch {first}, {same[last]:.2g} at {last}; a running variance divided by M - 1"
            f" where training divides by M = N H W leaves 1 - sqrt(1 - 1/M):"
            f" {_unbiased(first * pixels):.2g} and {_unbiased(last * pixels):.2g}"
        )
    return Finding(
        "same_computation",
        "the operation is identical in training and in inference",
        f"largest mean relative RMS gap between both modes at batch {first}, 2, 4, ..., {last},"
        f" after {PASSES} training passes over the same data",
        "0",
        f"{gaps[first].mean:.2g} at batch {first}, {gaps[last].mean:.2g} at {last}",
        verdict_below(worst, EXACT),
        value=worst,
        tolerance=f"{EXACT:g}, relative",
        n=subject.draws,
        note=note,
    )


def _unbiased(values: int) -> float:
    """Return the gap that a variance divided by M - 1 instead of M leaves."""
    return 1 - math.sqrt(1 - 1 / values)


def _buffers(subject: Subject, trained: nn.Module) -> Finding:
    """Compare every buffer with that of a fresh layer."""
    before = dict(subject.layer().named_buffers())
    after = dict(trained.named_buffers())
    changed = [
        name
        for name, buffer in after.items()
        if name not in before or not torch.equal(buffer, before[name])
    ]
    text = f"{len(changed)} of {len(after)}" + (f": {', '.join(changed)}" if changed else "")
    return Finding(
        "no_running_state",
        "there is no need to maintain running population statistics",
        f"buffers that {PASSES} training passes changed",
        "0",
        text if after else "no buffers",
        verdict_below(len(changed), 0),
        value=len(changed),
        tolerance="0",
    )


def _memory(subject: Subject, trained: nn.Module) -> Finding:
    """Compare what a trained and a fresh layer make of the same batch in evaluation mode."""
    x_NCHW = subject.features("train test test", SIZES[-1], *PIXELS)
    torch.default_generator.manual_seed(subject.seed)
    fresh = subject.apply(subject.layer().eval(), x_NCHW)
    torch.default_generator.manual_seed(subject.seed)
    change = _relative(subject.apply(clone(trained).eval(), x_NCHW), fresh)
    return Finding(
        "no_memory",
        "the output in evaluation does not depend on what was passed in training",
        f"relative RMS change of the evaluation-mode output by {PASSES} training passes",
        "0",
        f"{change:.2g}",
        verdict_below(change, EXACT),
        value=change,
        tolerance=f"{EXACT:g}, relative",
    )


def _shifted(subject: Subject, trained: nn.Module) -> Finding:
    """Scale and shift all test inputs, and with them the test distribution."""
    x_NCHW = subject.features("train test test", SIZES[-1], *PIXELS)
    shifted = SCALE * x_NCHW + SHIFT
    change = _change_by(subject, trained, x_NCHW, shifted, training=False)
    # In a set of variance s, eps lets the fraction eps / 2s * (1 - 1 / SCALE^2) through.
    least = variance_of(StatisticSets("channel"), x_NCHW).min().item()
    tolerance = max(EXACT, eps_of(subject) / (2 * least) * (1 - SCALE**-2))
    note = ""
    if change > tolerance:
        other = _change_by(subject, trained, x_NCHW, shifted, training=True)
        note = f"with the statistics of training mode: {other:.2g}; "
    used = sets_used(subject)
    others = {name: _change_by_own(subject, trained, x_NCHW, name) for name in SHIFTS}
    verdict = verdict_below(change, tolerance)
    if verdict == HOLDS and max(others.values()) > tolerance:
        # eps lets through at most this where a is 1 to 2.
        alike = _change_by_own(subject, trained, x_NCHW, used) if used else math.inf
        at_worst = max(EXACT, eps_of(subject) / (2 * least) * (1 - MOST_SCALE**-2))
        where = f"for {used}" if alike <= at_worst else "of all test inputs"
        verdict = conditional(f"the shift is one affine map {where}")
    return Finding(
        "shift",
        "statistics computed on the fly make it robust to a shift of the test distribution",
        f"relative RMS change of the evaluation-mode output when test inputs x become"
        f" {SCALE:g} x + {SHIFT:g}, or a x + b with a, b of their own for each channel, or pixel;"
        f" batch {SIZES[-1]}",
        "0, to what eps allows",
        f"{change:.2g} by one map for all, "
        + ", ".join(f"{value:.2g} by one for {name}" for name, value in others.items()),
        verdict,
        value=change,
        tolerance=f"{tolerance:.2g}: what eps lets through at the smallest variance of a channel",
        note=f"{note}a, uniform in [1, {MOST_SCALE:g}], and b, in [0, 1], are {SCALE:g} and"
        f" {SHIFT:g} on average; whole images, whose contrast is one affine map of each, are"
        " measured on trained networks in claim 5",
    )


def _change_by_own(
    subject: Subject, trained: nn.Module, x_NCHW: Tensor, of: "StatisticSets | str"
) -> float:
    """Return the change by a x + b with random a and b of their own for each of the sets, each
    channel (the same for all examples), or each value of a channel's map."""
    g, like = subject.generator("train test shift"), x_NCHW
    if of == EACH_CHANNEL:
        like = x_NCHW[:1, :, :1, :1]
    elif of == EACH_PIXEL:
        like = x_NCHW[:1, :1]
    if isinstance(of, StatisticSets):
        a, b = (random_per_set(of, like, 0, 1, g) for _ in range(2))
    else:
        a, b = torch.rand(2, *like.shape, generator=g, dtype=torch.float64)
    shifted = (1 + (MOST_SCALE - 1) * a) * x_NCHW + b
    return _change_by(subject, trained, x_NCHW, shifted, training=False)


def _change_by(
    subject: Subject, trained: nn.Module, x_NCHW: Tensor, shifted: Tensor, training: bool
) -> float:
    """Return the change of the output by the shift; the layer is left as it was."""
    outputs = []
    for x in (x_NCHW, shifted):
        torch.default_generator.manual_seed(subject.seed)
        outputs.append(subject.apply(clone(trained).train(training), x))
    return _relative(outputs[1], outputs[0])
