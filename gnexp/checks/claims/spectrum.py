"""Claim 2: one group is layer norm, C groups are instance norm, and G moves between the two.

Section "A unified view". All in float64 and training mode; no chance is in any number. The oracle
is torch.nn.functional. A norm whose groups cannot be chosen is measured as it is built: it must be
one point of the spectrum.

A distance is the relative RMS of the difference of two outputs. With s_g the standard deviation in
group g, s that of the whole example and s_c that of channel c, and eps aside, it is
sqrt(2 (1 - mean_g s_g / s)) to LN and sqrt(2 (1 - mean_c s_c / s_g(c))) to IN. The first grows
whenever groups are split, whatever the input; the second need not fall.

A norm with a fixed G gives one point of each line, one off the spectrum none.

Shapes: N examples, C channels, H and W pixels.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from gnexp.checks.finding import Finding, Found, Point, Statement
from gnexp.checks.statistic_sets import divisors
from gnexp.checks.subject import Subject, relative_change
from gnexp.checks.verdicts import FAILS, HOLDS, VACUOUS, conditional, notes

EXACT = 1e-9  # relative RMS of float64 numbers, after sums over up to 10,000 of them
BATCHES = (4, 1)  # examples; statistics over the batch are those of an example when it is alone
Curve = dict[int, tuple[float, float]]  # groups -> distance to LN, to IN

SPECTRUM = Statement(
    "spectrum",
    "it lies on the spectrum from LN to IN: its output is that of GN(G) for one G",
    "the G, of all that divide C, whose GN(G) is nearest to the output, and the relative RMS"
    " distance to it",
    expected="0 for {claimed}",
    tolerance=f"{EXACT:g}, relative",
)
AT_END = Statement(
    "{end}_{way}",
    "GN with G = {g} is {name}: the {output}",
    "relative RMS distance of the {output} to that of torch's {function}",
    tolerance=f"{EXACT:g}, relative",
)
ENDS = (
    {"end": "one_group", "g": "1", "name": "layer norm", "function": "layer_norm over (C, H, W)"},
    {"end": "c_groups", "g": "C", "name": "instance norm", "function": "instance_norm"},
)
WAYS = (
    {"way": "forward", "output": "output"},
    {"way": "backward", "output": "gradient to the input"},
)
ALONG = Statement(
    "to_{end}",
    "the more groups, the {change}",
    "relative RMS distance to {name} at every G that divides C, on two inputs: all channels drawn"
    " alike, and two halves of unlike channels",
    expected="{direction} with G",
    measured="{first:.3g} at G = 1 to {last:.3g} at G = C{against}",
    tolerance="every step in this direction",
    note="for any input, splitting groups moves the output away from LN; it need not bring it"
    " closer to IN",
)
ON_CURVE = replace(
    ALONG,
    what="relative RMS distance to {name}, 4 examples of 5x7 pixels",
    expected="{direction} with G; with a fixed G, a point of this curve",
    tolerance=f"output that of GN(G), {EXACT:g}, relative",
    note="its groups cannot be chosen: the claim becomes that it is one point of the spectrum",
)
DIRECTIONS = (
    {"end": "ln", "name": "LN", "change": "farther from LN", "direction": "rises"},
    {"end": "in", "name": "IN", "change": "closer to IN", "direction": "falls"},
)


def measure(subject: Subject) -> Found:
    """Measure claim 2."""
    finding, groups = _on_spectrum(subject)
    yield finding
    for end in (0, 1):
        yield from _end(subject, end)
    chosen = subject.regroup is not None
    variants = {groups: subject} if groups else {}
    if chosen:
        variants = {g: subject.regrouped(g) for g in divisors(subject.channels)}
    curves = []
    for panel, x_NCHW in (
        ("distance", subject.features("spectrum", 4)),
        ("distance, unlike channels", _unlike_channels(subject)),
    ):
        curves.append(_curve(subject, variants, x_NCHW))
        for g, distances in curves[-1].items():
            for series, y in zip(("to LN", "to IN"), distances):
                yield Point(panel, series, g, y)
    for end in (0, 1):
        yield _along(curves, end) if chosen else _one_point(curves[0], end, finding.verdict)


def _ends(x_NCHW: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return layer norm over (C, H, W), G = 1, and instance norm, G = C."""
    return F.layer_norm(x_NCHW, x_NCHW.shape[1:], eps=eps), F.instance_norm(x_NCHW, eps=eps)


def _verdict(off: dict[int, float]) -> str:
    """Return the verdict on a distance that must be 0 at every batch size."""
    fits = {n: value <= EXACT for n, value in off.items()}
    if len(set(fits.values())) == 1:
        return HOLDS if fits[1] else FAILS
    return conditional("the batch is one example" if fits[1] else "the batch is larger")


def _on_spectrum(subject: Subject) -> tuple[Finding, int | None]:
    """Compare the layer as it is built with GN(G) for every G; also return the G at batch 4."""
    eps, off, nearest = subject.eps, {}, {}
    for n in BATCHES:
        x_NCHW = subject.features("spectrum", n)
        y_NCHW = subject.apply(subject.layer(), x_NCHW)
        gn = {g: F.group_norm(x_NCHW, g, eps=eps) for g in divisors(subject.channels)}
        to = {g: relative_change(y_NCHW, reference) for g, reference in gn.items()}
        nearest[n] = min(to, key=to.get)
        off[n] = to[nearest[n]]
    claimed = None if subject.groups is None else subject.groups(subject.channels)
    found = {g for n, g in nearest.items() if off[n] <= EXACT}
    one = len(found) == 1 and claimed in (None, *found)  # one G, and the one it says
    listed = (f"G = {g}, off by {off[n]:.2g}, at batch {n}" for n, g in nearest.items())
    finding = SPECTRUM.found(
        off[BATCHES[0]],
        claimed="one G" if claimed is None else f"G = {claimed}, as it says",
        measured="; ".join(listed),
        verdict=_verdict(off) if one else FAILS,
    )
    return finding, nearest[BATCHES[0]] if off[BATCHES[0]] <= EXACT else None


def _end(subject: Subject, end: int) -> Iterator[Finding]:
    """Compare with torch's layer norm or instance norm, forward and backward."""
    groups = (1, subject.channels)[end]
    layer_of = subject if subject.regroup is None else subject.regrouped(groups)
    off: list[dict[int, float]] = [{}, {}]
    for n in BATCHES:
        layer, x_NCHW = layer_of.layer(), subject.features("spectrum", n).requires_grad_()
        dy_NCHW = subject.normal("spectrum dy", *x_NCHW.shape)
        outputs = subject.apply(layer, x_NCHW), _ends(x_NCHW, subject.eps)[end]
        off[0][n] = relative_change(*outputs)
        gradients = (torch.autograd.grad(y_NCHW, x_NCHW, dy_NCHW)[0] for y_NCHW in outputs)
        off[1][n] = relative_change(*gradients)
    for i, way in enumerate(WAYS):
        note = "" if subject.regroup else "its groups cannot be chosen: measured as it is built"
        if (end, i) == (0, 0):
            note = notes(note, _per_position(subject))
        yield AT_END.found(
            off[i][BATCHES[0]],
            **ENDS[end] | way,
            measured=", ".join(f"{value:.2g} at batch {n}" for n, value in off[i].items()),
            verdict=_verdict(off[i]),
            note=note,
        )


def _per_position(subject: Subject) -> str:
    """Measure the distance between layer norm over C (Transformers) and over (C, H, W)."""
    x_NCHW, eps = subject.features("spectrum", BATCHES[0]), subject.eps
    x_NHWC = x_NCHW.movedim(1, -1)
    per_pixel = F.layer_norm(x_NHWC, x_NHWC.shape[-1:], eps=eps).movedim(-1, 1)
    off = relative_change(per_pixel, _ends(x_NCHW, eps)[0])
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


def _curve(subject: Subject, variants: dict[int, Subject], x_NCHW: Tensor) -> Curve:
    """Return the distances of every variant's output to LN's and IN's."""
    ends = _ends(x_NCHW, subject.eps)
    outputs = {g: subject.apply(variant.layer(), x_NCHW) for g, variant in variants.items()}
    return {
        g: (relative_change(y, ends[0]), relative_change(y, ends[1])) for g, y in outputs.items()
    }


def _along(curves: list[Curve], end: int) -> Finding:
    """Follow the distance to one end over all G, on like and on unlike channels."""
    against, sign = ["", ""], (1, -1)[end]
    for i, (curve, where) in enumerate(zip(curves, ("at ", "for unlike channels, "))):
        steps = ((a, b, curve[a][end], curve[b][end]) for a, b in itertools.pairwise(curve))
        wrong = [step for step in steps if sign * (step[3] - step[2]) <= 0]
        if wrong:
            told = (f"G = {a} -> {b}: {before:.3g} -> {after:.3g}" for a, b, before, after in wrong)
            against[i] = f"; not so {where}" + ", ".join(told)
    alike = conditional("the channels of all groups are alike in distribution")
    verdict = FAILS if against[0] else alike if against[1] else HOLDS
    first, *_, last = (distances[end] for distances in curves[0].values())
    how = {"first": first, "last": last, "against": "".join(against), "verdict": verdict}
    return ALONG.found(last - first, **DIRECTIONS[end], **how)


def _one_point(curve: Curve, end: int, verdict: str) -> Finding:
    """Place a norm of a fixed G on the curve; the verdict is whether it lies there."""
    value, at = math.nan, "no point of the curve at batch 4"
    for g, distances in curve.items():
        value, at = distances[end], f"{distances[end]:.3g} at its only G = {g}"
    how = {"measured": at, "verdict": VACUOUS if verdict == HOLDS else verdict}
    return ON_CURVE.found(value, **DIRECTIONS[end], **how)
