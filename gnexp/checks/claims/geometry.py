"""Claim 6: where the standardized output lies, and how many degrees of freedom are lost.

Section "Geometric and representational interpretation", whose m is n here: all (C/G) H W values
of a group. With variance s in a set, its block of the Jacobian is (I - 1 1^T / n - xhat xhat^T / n)
/ sqrt(s + eps): singular values 0 (the mean), eps / (s + eps) (the scale) and n - 2 times 1,
relative to the largest.

Panels. "singular values": x = rank from the smallest over their number, y = singular value over
the largest (log, floor 1e-16), series "N = 1", "N = 2", "N = 3" (examples in the batch).
"radius": x = s / eps (log), y = radius / sqrt(n) (log), series "measured" and "expected".

Shapes: N examples, C channels, H and W pixels; S sets of M values.
"""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from gnexp.checks.claims.core import eps_of
from gnexp.checks.finding import (
    FAILS,
    HOLDS,
    VACUOUS,
    Finding,
    Measured,
    Point,
    conditional,
    verdict_below,
)
from gnexp.checks.statistic_sets import (
    NO_STATISTIC,
    StatisticSets,
    sets_claimed,
    sets_used,
    takes_no_statistic,
    variance_of,
    with_equal_sets,
)
from gnexp.checks.subject import NormError, Subject, affine, rms

EXACT = 1e-9  # of float64 numbers of size 1, after sums over up to 10,000 of them
RADIUS_TOLERANCE = 1e-6  # relative
EPS_RATIOS = tuple(10.0**power for power in range(-2, 7))  # variance over eps
JACOBIAN_RATIO = 1e4  # variance over eps: the scale's singular value is 1e-4, far from 0 and 1
LOST = 10 / JACOBIAN_RATIO  # singular values below it, relative to the largest, count as lost
ZERO = 1e-10  # relative; rounding leaves 1e-16 to 1e-15
SIZE_TOLERANCE = 1e-3  # relative, of the scale's singular values
BATCHES = (1, 2, 3)
PIXELS = 2  # height and width: the Jacobian stays below 800 x 800
FEW_CHANNELS = (16, 32, 64)
MEASURED_ON = "4 examples of 5x7 pixels"
FLOOR = 1e-16  # for log axes
FEW_PIXELS, FEW_BATCHES = (1, 2), (1, 2, 8)
FAR_ABOVE_EPS = 1e3  # times features of size 1
SIGNS = 1e-3  # relative spread of |output| below which it is one number
TINY = 1e-300  # a Jacobian of zeros has lost everything


def measure(subject: Subject) -> Measured:
    """Measure claim 6."""
    result = Measured()
    # Layers may draw random numbers; those of the check come from the subject's generators.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(subject.seed)
        result.findings += [_mean(subject), _radius(subject)]
        result.points += _radius_points(subject)
        small = _with_few_channels(subject)
        spectra = {n: _spectrum(small, n) for n in BATCHES}
        result.findings += [_lost(small, spectra), _lost_per_example(spectra)]
        result.findings += [*_sizes(spectra), *_identities(subject)]
        result.findings += [_few_values(subject, side) for side in FEW_PIXELS]
    for n, values in spectra.items():
        for rank, value in enumerate(values.tolist(), start=1):
            x, y = rank / len(values), max(value, FLOOR)
            result.points.append(Point("singular values", f"N = {n}", x, y))
    return result


def _few_values(subject: Subject, side: int) -> Finding:
    """Measure whether outputs of small maps carry magnitudes, or only signs.

    Two values per statistic leave x1 > x2 or x1 < x2: outputs are 1 and -1 whatever the inputs. One
    value leaves nothing. Found as the relative spread of |output| over all values of the batch.
    """
    spreads: dict[tuple[int, int], float] = {}
    refused, few = [], []
    for channels in FEW_CHANNELS:
        small = dataclasses.replace(subject, channels=channels)
        try:
            small.layer()
        except NormError:
            continue
        sets = sets_used(small)
        for n in FEW_BATCHES:
            x_NCHW = FAR_ABOVE_EPS * small.features("geometry few", n, side, side)
            try:
                y_NCHW = small.apply(small.layer(), x_NCHW).detach().abs()
            except NormError:  # as batch norm of PyTorch is for one value per channel
                refused.append((channels, n))
                continue
            spread = rms(y_NCHW - y_NCHW.mean()) / max(rms(y_NCHW), TINY)
            spreads[channels, n] = spread if rms(y_NCHW) > SIGNS else 0.0  # else it is rounding
            if sets is not None and sets.rows(x_NCHW).shape[1] <= 2:
                few.append((channels, n))
    signs_only = [at for at, spread in spreads.items() if not spread > SIGNS]
    verdict = FAILS if signs_only or refused else HOLDS
    if verdict == FAILS and set(signs_only) == set(few) and len(signs_only) < len(spreads):
        verdict = conditional("a statistic has more than two values")
    texts = [f"signs alone or nothing at {_places(signs_only)}"] * bool(signs_only)
    texts += [f"refused at {_places(refused)}"] * bool(refused)
    others = [spread for at, spread in spreads.items() if at not in signs_only]
    texts += [f"{'else ' * bool(texts)}{min(others):.2g} or more" for _ in others[:1]]
    finding = Finding(
        f"few_values_{side}",
        f"statistics are of many values: on maps of {side}x{side} the output carries more than"
        " signs",
        f"relative spread of |output|, 0 where outputs are signs alone; C = 16, 32 and 64 where it"
        f" can be built, N = {_listed(list(FEW_BATCHES))}, inputs far above eps",
        "above 0",
        "; ".join(texts),
        verdict,
        value=min(spreads.values(), default=float("nan")),
        tolerance=f"{SIGNS:g}, at every C and N",
    )
    if takes_no_statistic(subject):  # whatever else it does to large inputs
        return dataclasses.replace(finding, verdict=VACUOUS, note=NO_STATISTIC)
    return finding


def _places(at: list[tuple[int, int]]) -> str:
    """Return (channels, examples) for people: "N = 2", "C = 16" or each by itself."""
    by_c, by_n = sorted({c for c, _ in at}), sorted({n for _, n in at})
    if len(at) == len(by_c) * len(FEW_BATCHES):
        return f"C = {_listed(by_c)}"
    if len(at) == len(by_c) * len(by_n) and len(by_c) > 1:
        return f"N = {_listed(by_n)}"
    return ", ".join(f"C = {c} N = {n}" for c, n in at)


def _judged(
    subject: Subject, worst_in: Callable[[StatisticSets], float], tolerance: float
) -> tuple[float, str]:
    """Return (value, verdict) in the sets of the claim; where it fails there but holds in the
    sets that the norm uses, it holds only in those."""
    claimed, used = sets_claimed(subject), sets_used(subject)
    value = worst_in(claimed)
    verdict = verdict_below(value, tolerance)
    # Groups, but not as many as it says, are no condition: they are a fault.
    elsewhere = used is not None and used.scope != "group"
    if verdict == FAILS and elsewhere and worst_in(used) <= tolerance:
        verdict = conditional(f"taken over {used}")
    return value, verdict


def _outputs(subject: Subject) -> list[tuple[Tensor, Tensor]]:
    """Return (input, standardized output) at every variance over eps."""
    x_NCHW, eps = subject.features("geometry", 4), eps_of(subject)
    inputs = [x_NCHW * (ratio * eps) ** 0.5 for ratio in EPS_RATIOS]
    return [(x, subject.apply(subject.layer(), x).detach()) for x in inputs]


def _zero(
    subject: Subject,
    statement: str,
    text: str,
    what: str,
    worst_in: Callable[[StatisticSets], float],
    note: str = "",
) -> Finding:
    """Return the row of a number that must be 0 but for rounding."""
    value, verdict = _judged(subject, worst_in, EXACT)
    measured, rule = f"{value:.2g}{_in_groups(subject)}", f"{EXACT:g}"
    what = f"{what}, {MEASURED_ON}"
    return Finding(statement, text, what, "0", measured, verdict, value, tolerance=rule, note=note)


def _in_groups(subject: Subject) -> str:
    # Not in the text of what was measured, which is the same for all norms.
    return f" in {sets_claimed(subject)}"


def _largest_mean(sets: StatisticSets, values_NCHW: Tensor) -> float:
    return sets.rows(values_NCHW).mean(dim=1).abs().max().item()


def _mean(subject: Subject) -> Finding:
    outputs = _outputs(subject)
    return _zero(
        subject,
        "mean",
        "the standardized values of a group sum to 0: they lie in a hyperplane through the origin",
        "largest |mean| for s / eps about 1e-2 to 1e6",
        lambda sets: max(_largest_mean(sets, y) for _, y in outputs),
    )


def _radii(
    sets: StatisticSets, x_NCHW: Tensor, y_NCHW: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return (measured, expected) radius / sqrt(n) of each set."""
    s = variance_of(sets, x_NCHW).squeeze(1)
    return sets.rows(y_NCHW).square().mean(dim=1).sqrt(), (s / (s + eps)).sqrt()


def _radius(subject: Subject) -> Finding:
    outputs, eps = _outputs(subject), eps_of(subject)

    def worst_in(sets: StatisticSets) -> float:
        pairs = (_radii(sets, x, y, eps) for x, y in outputs)
        return max(((got - want).abs() / want).max().item() for got, want in pairs)

    value, verdict = _judged(subject, worst_in, RADIUS_TOLERANCE)
    return Finding(
        "radius",
        "the standardized values of a group lie on a sphere of radius sqrt(n), for eps -> 0",
        f"radius for s / eps about 1e-2 to 1e6, {MEASURED_ON}",
        "sqrt(n s / (s + eps))",
        f"off by at most {value:.2g} (relative){_in_groups(subject)}",
        verdict,
        value=value,
        tolerance=f"{RADIUS_TOLERANCE:g}, relative",
    )


def _radius_points(subject: Subject) -> list[Point]:
    sets, eps, points = sets_claimed(subject), eps_of(subject), []
    for x_NCHW, y_NCHW in _outputs(subject):
        at = variance_of(sets, x_NCHW).mean().item() / eps
        for series, radius in zip(("measured", "expected"), _radii(sets, x_NCHW, y_NCHW, eps)):
            points.append(Point("radius", series, at, radius.mean().item()))
    return points


def _with_few_channels(subject: Subject) -> Subject:
    """Return the subject with the fewest channels it can be built with, as Jacobians are large."""
    for channels in FEW_CHANNELS:
        try:
            small = dataclasses.replace(subject, channels=channels)
            small.layer()
            return small
        except NormError:
            if channels == FEW_CHANNELS[-1]:
                raise
    raise AssertionError


def jacobian(subject: Subject, x_NCHW: Tensor) -> Tensor:
    """Return d output / d input (P, P) of a new layer, by one backward pass per output value."""
    x_NCHW = x_NCHW.clone().requires_grad_()
    y_P = subject.apply(subject.layer(), x_NCHW).reshape(-1)
    if not y_P.requires_grad:
        raise NormError(f"{subject.label} passes no gradient from its output to its input")
    rows = (
        torch.autograd.grad(y, x_NCHW, retain_graph=True, materialize_grads=True)[0] for y in y_P
    )
    jacobian_PP = torch.stack([row.reshape(-1) for row in rows])
    if not torch.isfinite(jacobian_PP).all():
        raise NormError(f"{subject.label} has gradients that are not finite, for finite values")
    return jacobian_PP


def _spectrum(small: Subject, n: int) -> Tensor:
    """Return the singular values over the largest, ascending, where every set has one variance."""
    x_NCHW = small.normal("geometry jacobian", n, small.channels, PIXELS, PIXELS)
    x_NCHW = with_equal_sets(x_NCHW, JACOBIAN_RATIO * eps_of(small))
    values = torch.linalg.svdvals(jacobian(small, x_NCHW)).flip(0)
    return values / values[-1].clamp_min(TINY)


def _law(counts: list[int]) -> str:
    """Return how a number of lost directions grows with the number of examples."""
    first = counts[0]
    if not any(counts):
        return "none"
    if all(count == first * n for count, n in zip(counts, BATCHES)):
        return "per example"
    return "per batch" if all(count == first for count in counts) else "neither"


def _rank_text(counts: list[int]) -> str:
    return {
        "none": "nothing is lost",
        "per example": f"{counts[0]} per example",
        "per batch": f"{counts[0]} per batch, whatever its size",
        "neither": "neither proportional to N nor constant",
    }[_law(counts)]


def _listed(counts: list[int]) -> str:
    return ", ".join(str(count) for count in counts)


def _below(spectra: dict[int, Tensor], bound: float) -> list[int]:
    return [int((values < bound).sum()) for values in spectra.values()]


def _lost(small: Subject, spectra: dict[int, Tensor]) -> Finding:
    groups, counts = sets_claimed(small).groups, _below(spectra, LOST)
    sizes = [len(values) for values in spectra.values()]
    n_values = small.channels * PIXELS**2 // groups
    return Finding(
        "lost",
        "each group loses two degrees of freedom: 2 G per example",
        f"singular values of the Jacobian below {LOST:g} of the largest, {PIXELS}x{PIXELS}"
        f" pixels, s / eps = {JACOBIAN_RATIO:g}, N = 1, 2, 3",
        f"{2 * groups} per example (G = {groups})",
        f"{_listed(counts)} of {_listed(sizes)}: {_rank_text(counts)}",
        HOLDS if all(c == 2 * groups * n for c, n in zip(counts, BATCHES)) else FAILS,
        value=counts[0],
        tolerance="the exact number at N = 1, 2 and 3",
        note=f"{small.channels} channels; as claimed, 2 of a group's n = {n_values} values",
    )


def _lost_per_example(spectra: dict[int, Tensor]) -> Finding:
    counts = _below(spectra, LOST)
    return Finding(
        "lost_per_example",
        "what is lost is lost in every example, whatever the batch",
        "how the number of lost directions grows with N = 1, 2, 3",
        "proportional to N",
        _rank_text(counts),
        HOLDS if _law(counts) == "per example" else FAILS,
        value=counts[0],
        tolerance="exact at N = 1, 2 and 3",
    )


def _sizes(spectra: dict[int, Tensor]) -> list[Finding]:
    """Judge the two kinds of lost directions: the mean's and the scale's."""
    zeros, lost = _below(spectra, ZERO), _below(spectra, LOST)
    half = all(2 * zero == count > 0 for zero, count in zip(zeros, lost))
    scales = torch.cat([values[(values >= ZERO) & (values < LOST)] for values in spectra.values()])
    expected = 1 / (1 + JACOBIAN_RATIO)
    off = (scales / expected - 1).abs().max().item() if len(scales) else float("nan")
    found = f"{scales.min():.5g} to {scales.max():.5g}" if len(scales) else "none"
    return [
        Finding(
            "mean_direction",
            "one direction of each set is lost exactly, the mean: half of all that is lost",
            f"singular values below {ZERO:g} of the largest, N = 1, 2, 3",
            "half of the lost ones",
            f"{_listed(zeros)} of {_listed(lost)}",
            HOLDS if half else FAILS,
            value=zeros[0],
            tolerance="exact",
        ),
        Finding(
            "scale_direction",
            "the other direction, the scale, is lost but for eps",
            "the other lost singular values over the largest, N = 1, 2, 3",
            f"eps / (s + eps) = {expected:.5g}",
            f"{found} ({len(scales)} of them)",
            verdict_below(off, SIZE_TOLERANCE),
            value=off,
            tolerance=f"{SIZE_TOLERANCE:g}, relative",
        ),
    ]


def _with_affine(
    subject: Subject, gamma_C: Tensor, beta_C: Tensor
) -> tuple[Tensor, Tensor, Tensor, str]:
    """Return (output, gamma (C, 1, 1), beta (C, 1, 1), note) with these values in the layer.

    A parameter that the layer lacks, or that is not one per channel, stays gamma 1 or beta 0.
    """
    layer, values, notes = subject.layer(), [], []
    wanted = zip(("gamma", "beta"), affine(layer), (gamma_C, beta_C), (1.0, 0.0))
    for name, parameter, new_C, default in wanted:
        if parameter is None or parameter.numel() != subject.channels:
            new_C = torch.full_like(new_C, default)
            notes.append(f"no {name} per channel: {default:g}")
        else:
            with torch.no_grad():
                parameter.copy_(new_C.reshape(parameter.shape))
        values.append(new_C.view(-1, 1, 1))
    y_NCHW = subject.apply(layer, subject.features("geometry", 4)).detach()
    return y_NCHW, *values, "; ".join(notes)


def _shared(sets: StatisticSets, drawn_C: Tensor) -> Tensor:
    """Return one of the numbers for each group of channels that lie in one set."""
    groups = {"group": sets.groups, "example": 1, "batch": 1}.get(sets.scope, len(drawn_C))
    return drawn_C[:groups].repeat_interleave(len(drawn_C) // groups)


def _identities(subject: Subject) -> list[Finding]:
    gamma_C, beta_C = subject.normal("geometry affine", 2, subject.channels)
    y, gamma, beta, note = _with_affine(subject, gamma_C, beta_C)

    def with_shared(sets: StatisticSets) -> float:
        y, _, beta, _ = _with_affine(subject, _shared(sets, gamma_C), _shared(sets, beta_C))
        return _largest_mean(sets, y - beta)

    unshared = _largest_mean(sets_claimed(subject), y - beta)
    return [
        _zero(
            subject,
            "sum_of_outputs",
            "with one gamma and beta per group its outputs sum to n beta",
            "largest |sum y - n beta| / n for random gamma and beta",
            with_shared,
            "; ".join(
                filter(None, [f"with a gamma and beta for each channel: {unshared:.2g}", note])
            ),
        ),
        _zero(
            subject,
            "sum_per_channel",
            "with gamma and beta of each channel, (y - beta_c) / gamma_c sums to 0 in a group",
            "largest |mean| of it for random gamma and beta",
            lambda sets: _largest_mean(sets, (y - beta) / gamma),
            note,
        ),
    ]
