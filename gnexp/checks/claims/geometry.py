"""Claim 6: where the standardized output lies, and how many degrees of freedom are lost.

Section "Geometric and representational interpretation", whose m is n here: all (C/G) H W values
of a group. With variance s in a set, its block of the Jacobian is (I - 1 1^T / n - xhat xhat^T / n)
/ sqrt(s + eps): singular values 0 (the mean), eps / (s + eps) (the scale) and n - 2 times 1,
relative to the largest.

Shapes: N examples, C channels, H and W pixels; S sets of M values.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gnexp.checks.finding import NO_STATISTIC, Finding, Found, Point, Statement, table
from gnexp.checks.statistic_sets import StatisticSets, with_equal_sets
from gnexp.checks.subject import NormError, Subject, affine, rms
from gnexp.checks.verdicts import FAILS, HOLDS, VACUOUS, conditional, notes

EPS_RATIOS = tuple(10.0**power for power in range(-2, 7))  # variance over eps
JACOBIAN_RATIO = 1e4  # variance over eps: the scale's singular value is 1e-4, far from 0 and 1
SCALE_LEFT = 1 / (1 + JACOBIAN_RATIO)
LOST = 10 / JACOBIAN_RATIO  # singular values below it, relative to the largest, count as lost
ZERO = 1e-10  # relative; rounding leaves 1e-16 to 1e-15
BATCHES = (1, 2, 3)
PIXELS = 2  # height and width: the Jacobian stays below 800 x 800
FLOOR = 1e-16  # for log axes
FEW_PIXELS, FEW_BATCHES = (1, 2), (1, 2, 8)
FAR_ABOVE_EPS = 1e3  # times features of size 1
SIGNS = 1e-3  # relative spread of |output| below which it is one number
TINY = 1e-300  # a Jacobian of zeros has lost everything
# Of float64 numbers of size 1, after sums over up to 10,000 of them.
IN_SETS = {"measured": "{value:.2g} in {sets}", "high": 1e-9}

ROWS = table(
    Statement(
        "mean",
        "the standardized values of a group sum to 0: they lie in a hyperplane through the origin",
        "largest |mean| for s / eps about 1e-2 to 1e6, 4 examples of 5x7 pixels",
        **IN_SETS,
    ),
    Statement(
        "radius",
        "the standardized values of a group lie on a sphere of radius sqrt(n), for eps -> 0",
        "radius for s / eps about 1e-2 to 1e6, 4 examples of 5x7 pixels",
        expected="sqrt(n s / (s + eps))",
        measured="off by at most {value:.2g} (relative) in {sets}",
        tolerance="{high:g}, relative",
        high=1e-6,
    ),
    Statement(
        "lost",
        "each group loses two degrees of freedom: 2 G per example",
        f"singular values of the Jacobian below {LOST:g} of the largest, {PIXELS}x{PIXELS} pixels,"
        f" s / eps = {JACOBIAN_RATIO:g}, N = 1, 2, 3",
        expected="{each} per example (G = {groups})",
        measured="{counts} of {sizes}: {law}",
        tolerance="the exact number at N = 1, 2 and 3",
        note="{channels} channels; as claimed, 2 of a group's n = {values} values",
    ),
    Statement(
        "lost_per_example",
        "what is lost is lost in every example, whatever the batch",
        "how the number of lost directions grows with N = 1, 2, 3",
        expected="proportional to N",
        measured="{law}",
        tolerance="exact at N = 1, 2 and 3",
    ),
    Statement(
        "mean_direction",
        "one direction of each set is lost exactly, the mean: half of all that is lost",
        f"singular values below {ZERO:g} of the largest, N = 1, 2, 3",
        expected="half of the lost ones",
        measured="{zeros} of {counts}",
        tolerance="exact",
    ),
    Statement(
        "scale_direction",
        "the other direction, the scale, is lost but for eps",
        "the other lost singular values over the largest, N = 1, 2, 3",
        expected=f"eps / (s + eps) = {SCALE_LEFT:.5g}",
        measured="{range} ({number} of them)",
        tolerance="{high:g}, relative",
        high=1e-3,
    ),
    Statement(
        "sum_of_outputs",
        "with one gamma and beta per group its outputs sum to n beta",
        "largest |sum y - n beta| / n for random gamma and beta, 4 examples of 5x7 pixels",
        **IN_SETS,
    ),
    Statement(
        "sum_per_channel",
        "with gamma and beta of each channel, (y - beta_c) / gamma_c sums to 0 in a group",
        "largest |mean| of it for random gamma and beta, 4 examples of 5x7 pixels",
        **IN_SETS,
    ),
)
FEW_VALUES = Statement(
    "few_values_{side}",
    "statistics are of many values: on maps of {side}x{side} the output carries more than signs",
    "relative spread of |output|, 0 where outputs are signs alone; C = 16, 32 and 64 where it can"
    " be built, N = 1, 2, 8, inputs far above eps",
    expected="above 0",
    tolerance=f"{SIGNS:g}, at every C and N",
)


def measure(subject: Subject) -> Found:
    """Measure claim 6."""
    yield from _sphere(subject)
    small = subject.of_few_channels()[0]
    spectra = {n: _spectrum(small, n) for n in BATCHES}
    yield from _lost(small, list(spectra.values()))
    yield from _identities(subject)
    for side in FEW_PIXELS:
        yield _few_values(subject, side)
    for n, values in spectra.items():
        for rank, value in enumerate(values.tolist(), start=1):
            yield Point("singular values", f"N = {n}", rank / len(values), max(value, FLOOR))


def _in_sets(
    subject: Subject, key: str, worst_in: Callable[[StatisticSets], float], note: str = ""
) -> Finding:
    """Judge a number in the sets of the claim; where it is too large there but not in the sets
    that the norm uses, the claim holds only in those."""
    claimed, used = subject.sets_claimed, subject.sets_used
    row = ROWS[key].found(worst_in(claimed), sets=claimed, note=note)
    # Groups, but not as many as it says, are no condition: they are a fault.
    elsewhere = row.verdict == FAILS and used is not None and used.scope != "group"
    if elsewhere and worst_in(used) <= ROWS[key].high:
        return replace(row, verdict=conditional(f"taken over {used}"))
    return row


def _sphere(subject: Subject) -> Found:
    """Measure mean and radius of the standardized output at every variance over eps."""
    x_NCHW, eps = subject.features("geometry", 4), subject.eps
    inputs = [x_NCHW * (ratio * eps) ** 0.5 for ratio in EPS_RATIOS]
    pairs = [(x, subject.output(x)) for x in inputs]

    def radii(sets: StatisticSets, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return (measured, expected) radius / sqrt(n) of each set."""
        s = sets.variance(x).squeeze(1)
        return sets.rows(y).square().mean(dim=1).sqrt(), (s / (s + eps)).sqrt()

    def worst_radius(sets: StatisticSets) -> float:
        found = (radii(sets, *pair) for pair in pairs)
        return max(((got - want).abs() / want).max().item() for got, want in found)

    yield _in_sets(subject, "mean", lambda sets: max(sets.largest_mean(y) for _, y in pairs))
    yield _in_sets(subject, "radius", worst_radius)
    claimed = subject.sets_claimed
    for x, y in pairs:
        at = claimed.variance(x).mean().item() / eps
        for series, radius in zip(("measured", "expected"), radii(claimed, x, y)):
            yield Point("radius", series, at, radius.mean().item())


def jacobian(subject: Subject, x_NCHW: Tensor) -> Tensor:
    """Return d output / d input (P, P) of a new layer."""
    layer = subject.layer()
    j = torch.autograd.functional.jacobian(lambda x: subject.apply(layer, x), x_NCHW)
    if not torch.isfinite(j).all():
        raise NormError(f"{subject.label} has gradients that are not finite, for finite values")
    return j.reshape(x_NCHW.numel(), -1)


def _spectrum(small: Subject, n: int) -> Tensor:
    """Return the singular values over the largest, ascending, where every set has one variance."""
    x_NCHW = small.normal("geometry jacobian", n, small.channels, PIXELS, PIXELS)
    x_NCHW = with_equal_sets(x_NCHW, JACOBIAN_RATIO * small.eps)
    values = torch.linalg.svdvals(jacobian(small, x_NCHW)).flip(0)
    return values / values[-1].clamp_min(TINY)


def _law(counts: list[int]) -> str:
    """Return how a number of lost directions grows with the number of examples."""
    first = counts[0]
    if not any(counts):
        return "nothing is lost"
    if counts == [first * n for n in BATCHES]:
        return f"{first} per example"
    if counts == [first] * len(counts):
        return f"{first} per batch, whatever its size"
    return "neither proportional to N nor constant"


def _listed(counts: list[int]) -> str:
    return ", ".join(map(str, counts))


def _lost(small: Subject, spectra: list[Tensor]) -> Found:
    """Count the lost directions, and judge the two kinds of them: the mean's and the scale's."""
    groups = small.sets_claimed.groups
    zeros, counts = ([int((v < bound).sum()) for v in spectra] for bound in (ZERO, LOST))
    law, sizes = _law(counts), [len(values) for values in spectra]
    texts = {"counts": _listed(counts), "law": law, "zeros": _listed(zeros)}

    def row(key: str, value: int, holds: bool, **how: object) -> Finding:
        return ROWS[key].found(value, verdict=HOLDS if holds else FAILS, **texts, **how)

    how = {"each": 2 * groups, "groups": groups, "sizes": _listed(sizes)}
    how |= {"channels": small.channels, "values": small.channels * PIXELS**2 // groups}
    yield row("lost", counts[0], counts == [2 * groups * n for n in BATCHES], **how)
    yield row("lost_per_example", counts[0], law.endswith("per example"))
    half = all(2 * zero == count > 0 for zero, count in zip(zeros, counts))
    yield row("mean_direction", zeros[0], half)
    scales = torch.cat([v[(v >= ZERO) & (v < LOST)] for v in spectra])
    off, found = math.nan, "none"
    if len(scales):
        off = (scales / SCALE_LEFT - 1).abs().max().item()
        found = f"{scales.min():.5g} to {scales.max():.5g}"
    yield ROWS["scale_direction"].found(off, range=found, number=len(scales))


def _with_affine(
    subject: Subject, gamma_C: Tensor, beta_C: Tensor
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Return (output, gamma (C, 1, 1), beta (C, 1, 1), note) with these values in the layer.

    A parameter that the layer lacks, or that is not one per channel, stays gamma 1 or beta 0.
    """
    layer, values, lacks = subject.layer(), [], []
    wanted = zip(("gamma", "beta"), affine(layer), (gamma_C, beta_C), (1.0, 0.0))
    for name, parameter, new_C, default in wanted:
        if parameter is None or parameter.numel() != subject.channels:
            new_C = torch.full_like(new_C, default)
            lacks.append(f"no {name} per channel: {default:g}")
        else:
            parameter.data.copy_(new_C.reshape(parameter.shape))
        values.append(new_C.view(-1, 1, 1))
    y_NCHW = subject.apply(layer, subject.features("geometry", 4)).detach()
    return y_NCHW, *values, notes(*lacks)


def _identities(subject: Subject) -> Found:
    drawn_2C = subject.normal("geometry affine", 2, subject.channels)
    y, gamma, beta, note = _with_affine(subject, *drawn_2C)

    def with_shared(sets: StatisticSets) -> float:
        """Return the mean that is left with one gamma and beta for the channels of a set."""
        groups = {"group": sets.groups, "example": 1, "batch": 1}.get(sets.scope, subject.channels)
        shared_2C = drawn_2C[:, :groups].repeat_interleave(subject.channels // groups, dim=1)
        y, _, beta, _ = _with_affine(subject, *shared_2C)
        return sets.largest_mean(y - beta)

    unshared = subject.sets_claimed.largest_mean(y - beta)
    own = notes(f"with a gamma and beta for each channel: {unshared:.2g}", note)
    yield _in_sets(subject, "sum_of_outputs", with_shared, own)
    per_channel = (y - beta) / gamma
    yield _in_sets(subject, "sum_per_channel", lambda sets: sets.largest_mean(per_channel), note)


def _few_values(subject: Subject, side: int) -> Finding:
    """Measure whether outputs of small maps carry magnitudes, or only signs.

    Two values per statistic leave x1 > x2 or x1 < x2: outputs are 1 and -1 whatever the inputs. One
    value leaves nothing. Found as the relative spread of |output| over all values of the batch.
    """
    spreads: dict[tuple[int, int], float] = {}
    refused, few = [], []
    for small in subject.of_few_channels():
        sets = small.sets_used
        for n in FEW_BATCHES:
            at, x_NCHW = (small.channels, n), small.features("geometry few", n, side, side)
            try:
                y_NCHW = small.output(FAR_ABOVE_EPS * x_NCHW).abs()
            except NormError:  # as batch norm of PyTorch is for one value per channel
                refused.append(at)
                continue
            spread = rms(y_NCHW - y_NCHW.mean()) / max(rms(y_NCHW), TINY)
            spreads[at] = spread if rms(y_NCHW) > SIGNS else 0.0  # else it is rounding
            if sets is not None and sets.size(*x_NCHW.shape) <= 2:
                few.append(at)
    signs_only = [at for at, spread in spreads.items() if not spread > SIGNS]
    verdict, note = FAILS if signs_only or refused else HOLDS, ""
    if verdict == FAILS and set(signs_only) == set(few) and len(signs_only) < len(spreads):
        verdict = conditional("a statistic has more than two values")
    texts = [f"signs alone or nothing at {_places(signs_only)}"] * bool(signs_only)
    texts += [f"refused at {_places(refused)}"] * bool(refused)
    others = [spread for at, spread in spreads.items() if at not in signs_only]
    texts += [f"{'else ' * bool(texts)}{min(others):.2g} or more" for _ in others[:1]]
    if subject.takes_no_statistic:  # whatever else it does to large inputs
        verdict, note = VACUOUS, NO_STATISTIC
    how = {"measured": "; ".join(texts), "verdict": verdict, "note": note}
    return FEW_VALUES.found(min(spreads.values(), default=math.nan), side=side, **how)


def _places(at: list[tuple[int, int]]) -> str:
    """Return (channels, examples) for people: "N = 2", "C = 16" or each by itself."""
    by_c, by_n = sorted({c for c, _ in at}), sorted({n for _, n in at})
    if len(at) == len(by_c) * len(FEW_BATCHES):
        return f"C = {_listed(by_c)}"
    if len(at) == len(by_c) * len(by_n) and len(by_c) > 1:
        return f"N = {_listed(by_n)}"
    return ", ".join(f"C = {c} N = {n}" for c, n in at)
