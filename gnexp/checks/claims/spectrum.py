"""Claim 2: one group is layer norm, C groups are instance norm, and G moves between the two.

Section "A unified view". All in float64 and training mode; no chance is in any number. The oracle
is torch.nn.functional. A norm whose groups cannot be chosen is measured as it is built: it must be
one point of the spectrum.

A distance is the relative RMS of the difference of two outputs. With s_g the standard deviation in
group g, s that of the whole example and s_c that of channel c, and eps aside, it is
sqrt(2 (1 - mean_g s_g / s)) to LN and sqrt(2 (1 - mean_c s_c / s_g(c))) to IN. The first grows
whenever groups are split, whatever the input; the second need not fall.

Points, panel "distance" and panel "distance, unlike channels" (the input on which it need not
fall): x = G, the number of groups (log2), y = distance to the end of the spectrum (linear); series
"to LN" and "to IN". A norm with a fixed G gives one point a series, one off the spectrum none.

Shapes: N examples, C channels, H and W pixels.
"""

import itertools
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnexp.checks.claims.core import eps_of
from gnexp.checks.finding import FAILS, HOLDS, VACUOUS, Finding, Measured, Point, conditional
from gnexp.checks.statistic_sets import divisors
from gnexp.checks.subject import Subject, rms

EXACT = 1e-9  # relative RMS of float64 numbers, after sums over up to 10,000 of them
BATCHES = (4, 1)  # examples; statistics over the batch are those of an example when it is alone
Function = Callable[[Tensor], Tensor]
Curve = dict[int, tuple[float, float]]  # groups -> distance to LN, to IN


def measure(subject: Subject) -> Measured:
    """Measure claim 2."""
    # Layers may draw random numbers; those of the check come from the subject's generators.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(subject.seed)
        return _measured(subject)


def _measured(subject: Subject) -> Measured:
    result = Measured()
    spectrum, groups = _on_spectrum(subject)
    result.findings += [spectrum, *_end(subject, "one_group"), *_end(subject, "c_groups")]
    if subject.regroup is not None:
        layers = {g: subject.regrouped(g) for g in divisors(subject.channels)}
        result.findings += _interpolation(subject, layers, result)
    else:
        layers = {} if groups is None else {groups: subject.layer()}
        result.findings += _one_point(subject, layers, spectrum.verdict, result)
    return result


def distance(y: Tensor, reference: Tensor) -> float:
    """Return the RMS of the difference, relative to that of the reference."""
    return rms(y - reference) / rms(reference)


def _group_norm(groups: int, eps: float) -> Function:
    return lambda x_NCHW: F.group_norm(x_NCHW, groups, eps=eps)


def _ends(eps: float) -> dict[str, Function]:
    """Return layer norm over (C, H, W), G = 1, and instance norm, G = C."""
    return {
        "one_group": lambda x_NCHW: F.layer_norm(x_NCHW, x_NCHW.shape[1:], eps=eps),
        "c_groups": lambda x_NCHW: F.instance_norm(x_NCHW, eps=eps),
    }


def _verdict(off: dict[int, float]) -> tuple[str, str]:
    """Return verdict and measured text of a distance that must be 0 at every batch size."""
    fits = {n: value <= EXACT for n, value in off.items()}
    text = ", ".join(f"{value:.2g} at batch {n}" for n, value in off.items())
    if all(fits.values()):
        return HOLDS, text
    if not any(fits.values()):
        return FAILS, text
    return conditional("the batch is one example" if fits[1] else "the batch is larger"), text


def _on_spectrum(subject: Subject) -> tuple[Finding, int | None]:
    """Compare the layer as it is built with GN(G) for every G; also return the G at batch 4."""
    eps, off, nearest = eps_of(subject), {}, {}
    for n in BATCHES:
        x_NCHW = subject.features("spectrum", n)
        y_NCHW = subject.apply(subject.layer(), x_NCHW)
        to = {g: distance(y_NCHW, _group_norm(g, eps)(x_NCHW)) for g in divisors(x_NCHW.shape[1])}
        nearest[n] = min(to, key=to.get)
        off[n] = to[nearest[n]]
    claimed = None if subject.groups is None else subject.groups(subject.channels)
    found = {g for n, g in nearest.items() if off[n] <= EXACT}
    one = len(found) == 1 and claimed in (None, *found)  # one G, and the one it says
    finding = Finding(
        "spectrum",
        "it lies on the spectrum from LN to IN: its output is that of GN(G) for one G",
        "the G, of all that divide C, whose GN(G) is nearest to the output, and the relative RMS"
        " distance to it",
        "0 for one G" if claimed is None else f"0 for G = {claimed}, as it says",
        "; ".join(f"G = {g}, off by {off[n]:.2g}, at batch {n}" for n, g in nearest.items()),
        _verdict(off)[0] if one else FAILS,
        value=off[BATCHES[0]],
        tolerance=f"{EXACT:g}, relative",
    )
    return finding, nearest[BATCHES[0]] if off[BATCHES[0]] <= EXACT else None


def _end(subject: Subject, end: str) -> list[Finding]:
    """Compare with torch's layer norm or instance norm, forward and backward."""
    reference = _ends(eps_of(subject))[end]
    off = {
        n: _off(subject, 1 if end == "one_group" else subject.channels, reference, n)
        for n in BATCHES
    }
    name, reference_y = {
        "one_group": ("layer norm", "layer_norm over (C, H, W)"),
        "c_groups": ("instance norm", "instance_norm"),
    }[end]
    note = "" if subject.regroup else "its groups cannot be chosen: measured as it is built"
    rows = []
    for i, (way, what) in enumerate((("forward", "output"), ("backward", "gradient to the input"))):
        verdict, text = _verdict({n: pair[i] for n, pair in off.items()})
        rows.append(
            Finding(
                f"{end}_{way}",
                f"GN with G = {'1' if end == 'one_group' else 'C'} is {name}: the {what}",
                f"relative RMS distance of the {what} to that of torch's {reference_y}",
                "0",
                text,
                verdict,
                value=off[BATCHES[0]][i],
                tolerance=f"{EXACT:g}, relative",
                note=note,
            )
        )
    if end == "one_group":
        remark = _per_position(subject.features("spectrum", BATCHES[0]), eps_of(subject))
        rows[0] = replace(rows[0], note="; ".join(filter(None, (note, remark))))
    return rows


def _off(subject: Subject, groups: int, reference: Function, n: int) -> tuple[float, float]:
    """Return the distances of output and gradient, at batch n, with this many groups if it can."""
    layer = subject.layer() if subject.regroup is None else subject.regrouped(groups)
    x_NCHW = subject.features("spectrum", n).requires_grad_()
    dy_NCHW = subject.normal("spectrum dy", *x_NCHW.shape)
    outputs = subject.apply(layer, x_NCHW), reference(x_NCHW)
    gradients = [torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)[0] for y_NCHW in outputs]
    return distance(*outputs), distance(*gradients)


def _per_position(x_NCHW: Tensor, eps: float) -> str:
    """Measure the distance between layer norm over C (Transformers) and over (C, H, W)."""
    x_NHWC = x_NCHW.movedim(1, -1)
    per_pixel = F.layer_norm(x_NHWC, x_NHWC.shape[-1:], eps=eps).movedim(-1, 1)
    off = distance(per_pixel, _ends(eps)["one_group"](x_NCHW))
    return (
        f"the LN of Transformers pools C alone at each position, {off:.2g} away from this one:"
        " no GN, unless H W = 1"
    )


def _unlike_channels(subject: Subject) -> Tensor:
    """Return 4 examples whose distance to IN need not fall with G.

    The first half of the channels has one level and spread 100, the second half levels of sd 10
    and spread 1. One group standardizes the first half about as IN does, by their common spread;
    two groups do no better there, and blow up the levels of the second half.
    """
    x_NCHW = subject.normal("spectrum unlike", 4, subject.channels, 5, 7)
    level_NC11 = 10 * subject.normal("spectrum level", 4, subject.channels, 1, 1)
    half = subject.channels // 2
    return torch.cat([100 * x_NCHW[:, :half], level_NC11[:, half:] + x_NCHW[:, half:]], dim=1)


def _curve(
    subject: Subject, layers: dict[int, nn.Module], x_NCHW: Tensor, panel: str, result: Measured
) -> Curve:
    """Return the distances of every layer's output to LN's and IN's, and add the points."""
    ends = [end(x_NCHW) for end in _ends(eps_of(subject)).values()]
    curve = {}
    for groups, layer in layers.items():
        y_NCHW = subject.apply(layer, x_NCHW)
        curve[groups] = distance(y_NCHW, ends[0]), distance(y_NCHW, ends[1])
        for series, y in zip(("to LN", "to IN"), curve[groups]):
            result.points.append(Point(panel, series, groups, y))
    return curve


def _both_curves(
    subject: Subject, layers: dict[int, nn.Module], result: Measured
) -> tuple[Curve, Curve]:
    alike = _curve(subject, layers, subject.features("spectrum", 4), "distance", result)
    unlike = _unlike_channels(subject)
    return alike, _curve(subject, layers, unlike, "distance, unlike channels", result)


_DIRECTIONS = (
    ("to_ln", "the more groups, the farther from LN", "rises with G"),
    ("to_in", "the more groups, the closer to IN", "falls with G"),
)


def _interpolation(
    subject: Subject, layers: dict[int, nn.Module], result: Measured
) -> list[Finding]:
    """Follow the distances to both ends over all G, on like and on unlike channels."""
    curves = _both_curves(subject, layers, result)
    rows = []
    for end, (statement, text, expected) in enumerate(_DIRECTIONS):
        sign = 1 if end == 0 else -1
        angles = [
            [
                f"G = {a} -> {b}: {curve[a][end]:.3g} -> {curve[b][end]:.3g}"
                for a, b in itertools.pairwise(curve)
                if sign * (curve[b][end] - curve[a][end]) <= 0
            ]
            for curve in curves
        ]
        first, last = (list(curves[0].values())[i][end] for i in (0, -1))
        verdict = conditional("the channels of all groups are alike in distribution")
        verdict = FAILS if angles[0] else verdict if angles[1] else HOLDS
        against = "; not so at " + ", ".join(angles[0]) if angles[0] else ""
        against += "; not so for unlike channels, " + ", ".join(angles[1]) if angles[1] else ""
        rows.append(
            Finding(
                statement,
                text,
                f"relative RMS distance to {'LN' if end == 0 else 'IN'} at every G that divides C,"
                " on two inputs: all channels drawn alike, and two halves of unlike channels",
                expected,
                f"{first:.3g} at G = 1 to {last:.3g} at G = C{against}",
                verdict,
                value=last - first,
                tolerance="every step in this direction",
                note="for any input, splitting groups moves the output away from LN; it need not"
                " bring it closer to IN",
            )
        )
    return rows


def _one_point(
    subject: Subject, layers: dict[int, nn.Module], verdict: str, result: Measured
) -> list[Finding]:
    """Place a norm of a fixed G on the curves; the verdict is whether it lies there."""
    curves = _both_curves(subject, layers, result)
    rows = []
    for end, (statement, text, expected) in enumerate(_DIRECTIONS):
        at = [f"{point[end]:.3g} at its only G = {g}" for g, point in curves[0].items()]
        name = "LN" if end == 0 else "IN"
        rows.append(
            Finding(
                statement,
                text,
                f"relative RMS distance to {name}, 4 examples of 5x7 pixels",
                f"{expected}; with a fixed G, a point of this curve",
                at[0] if at else "no point of the curve at batch 4",
                VACUOUS if verdict == HOLDS else verdict,
                value=next(iter(curves[0].values()))[end] if at else float("nan"),
                tolerance=f"output that of GN(G), {EXACT:g}, relative",
                note="its groups cannot be chosen: the claim becomes that it is one point of the"
                " spectrum",
            )
        )
    return rows
