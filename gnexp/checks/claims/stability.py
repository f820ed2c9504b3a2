"""Claim 8: stable gradients. The variance of those of gamma and beta, in one layer and a network.

Section "Stable gradient flow": it is said to be inversely proportional to the number of values per
statistic, and hence far smaller for GN than for BN at small batches. For one layer, with standard
normal inputs and normal upstream gradients / (N H W), those of a mean over examples and pixels, all
independent, it is 1 / (N H W) under every norm: a channel's gradient sums its own N H W terms,
however many values share a statistic. All in float64. The network is in `network_noise`.

Points of a layer are relative to that at the smallest x, whose error is not in their intervals;
noise / signal has hi = inf where the signal's interval reaches 0.

Shapes: N examples, C channels, H and W pixels; K draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from gnexp.analysis.statistics import Interval
from gnexp.checks.finding import NO_STATISTIC, Finding, Found, Point, Statement
from gnexp.checks.network_noise import measure_network
from gnexp.checks.power_law import (
    LESS,
    NORMAL,
    TOLERANCE,
    Variance,
    fit,
    law_text,
    law_verdict,
    predicted,
    ratio_text,
    variance_over_draws,
)
from gnexp.checks.statistic_sets import divisors
from gnexp.checks.subject import Subject, affine
from gnexp.checks.verdicts import HOLDS, NOT_MEASURED, VACUOUS, conditional, notes, worst
from gnexp.norms.module_state import copied
from gnexp.norms.registry import build_norm

BATCH, HEIGHT, WIDTH = 2, 4, 8  # of a single layer, where they are not varied
PIXELS = ((4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # 16 values per statistic or more
BATCHES = (2, 4, 8, 16, 32)
TIMES_CHANNELS = (1, 2, 4, 8)  # multiples, which a norm with fixed groups can be built for
SMALL_BATCH = 2
IMAGE = f"{HEIGHT}x{WIDTH} pixels"
SAME = "a statistic has no more values at a larger C, so this cannot tell the rule from none"
LAYER = "one layer; independent standard normal inputs and upstream gradients / (N H W)"

AXIS = Statement(
    "{key}",
    "gradients of gamma and beta vary as 1 / (values per statistic): when {changes}",
    f"{LAYER}; {{how}}",
    expected="exponent {theory:.3g}",
    measured="the layer has neither gamma nor beta",
    tolerance=f"95 % interval within {TOLERANCE:g} of it, gamma and beta",
)
SMALL = Statement(
    "layer_batch_2",
    f"at batch {SMALL_BATCH} gamma's gradient is much less noisy than BatchNorm's, one layer",
    f"{LAYER}; variance over that of a BatchNorm layer, N = {SMALL_BATCH}, C = {{channels}},"
    f" {IMAGE}",
    measured="the layer has no gamma",
    **LESS,
)


@dataclass(frozen=True)
class Setting:
    """One point of an axis: the varied number, the norm, and the shape of its input."""

    x: float
    subject: Subject
    n: int = BATCH
    h: int = HEIGHT
    w: int = WIDTH

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W) of the input."""
        return self.n, self.subject.channels, self.h, self.w


def measure(subject: Subject) -> Found:
    """Measure claim 8."""
    yield from measure_layer(subject)
    yield from measure_network(subject)


def measure_layer(subject: Subject) -> Found:
    """Measure one layer."""
    nothing = f"{NO_STATISTIC}: expected is what {subject.sets_claimed} would give"
    nothing = nothing if subject.takes_no_statistic else ""
    for row, *points in (_channels(subject), _pixels(subject), _batch(subject)):
        yield replace(row, note=notes(nothing, row.note))
        yield from points
    yield _small_batch(subject)


def _channels(subject: Subject) -> list[Finding | Point]:
    settings, c = _regrouped(subject), subject.channels
    if settings:
        series, x = "channels per group", "m"
        how = f"m = {settings[0].x} to {settings[-1].x} channels per group, C = {c}"
    else:
        settings = [Setting(n * c, replace(subject, channels=n * c)) for n in TIMES_CHANNELS]
        series, x = "channels", "C"
        how = f"C = {settings[0].x} to {settings[-1].x} (its groups cannot be chosen)"
    values = _values(settings)
    how += f"; {values[0]} to {values[-1]} values per statistic, N = {BATCH}, {IMAGE}"
    row, *points = _axis("channels", "the channels per group change", series, x, settings, how)
    if values[0] == values[-1]:
        note = row.note if row.verdict == NOT_MEASURED else SAME
        row = replace(row, verdict=VACUOUS if row.verdict == HOLDS else row.verdict, note=note)
    return [row, *points]


def _regrouped(subject: Subject) -> list[Setting]:
    """Return the settings of ascending channels per group, none where groups cannot be chosen."""
    if subject.regroup is None:
        return []
    c = subject.channels
    settings = [Setting(c // g, subject.regrouped(g)) for g in reversed(divisors(c)[1:])]
    return settings if len(settings) > 2 else []


def _values(settings: list[Setting]) -> list[int]:
    """Return how many values share a statistic in each setting, by measurement.

    As the article says instead, where not all of the settings share statistics in one way.
    """
    sets = [setting.subject.sets_used for setting in settings]
    if len({each and each.scope for each in sets}) > 1 or sets[0] is None:
        sets = [setting.subject.sets_claimed for setting in settings]
    return [each.size(*setting.shape) for each, setting in zip(sets, settings)]


def _pixels(subject: Subject) -> list[Finding | Point]:
    """Vary H W, with upstream gradients that differ from pixel to pixel and that do not."""
    settings = [Setting(h * w, subject, h=h, w=w) for h, w in PIXELS]
    how = f"H W = {settings[0].x} to {settings[-1].x}, N = {BATCH}, C = {subject.channels}"
    row, *points = _axis("pixels", "H W changes", "H x W", "H W", settings, how)
    alike = _laws(settings, [_variances(s, alike=True) for s in settings]).get("beta")
    if alike is not None:
        note = (
            "with one upstream gradient for all pixels of a channel, as behind global average"
            f" pooling, the exponent of beta is {law_text(alike)}"
        )
        verdict, theory = row.verdict, predicted([s.x for s in settings], _values(settings))
        if verdict == HOLDS and law_verdict(alike, theory) != HOLDS:
            verdict = conditional("the pixels' upstream gradients are independent")
        row = replace(row, verdict=verdict, note=notes(row.note, note))
    return [row, *points]


def _batch(subject: Subject) -> list[Finding | Point]:
    settings = [Setting(n, subject, n=n) for n in BATCHES]
    sizes = f"N = {BATCHES[0]} to {BATCHES[-1]}"
    how = f"{sizes}, C = {subject.channels}, {IMAGE}"
    return _axis("batch", "the batch size changes", "batch", "N", settings, how)


def _axis(
    key: str, changes: str, series: str, x: str, settings: list[Setting], how: str
) -> list[Finding | Point]:
    """Return the row and the points of one axis: the exponent, and the one the article predicts."""
    variances = [_variances(setting) for setting in settings]
    laws = _laws(settings, variances)
    theory = predicted([setting.x for setting in settings], _values(settings))
    more = {"key": key, "changes": changes, "how": how, "theory": theory}
    more["n"] = settings[0].subject.draws
    if not laws:
        return [AXIS.found(**more, verdict=NOT_MEASURED)]
    verdicts = [law_verdict(law, theory) for law in laws.values()]
    more["verdict"] = worst(verdicts)
    judged = list(laws.values())[verdicts.index(more["verdict"])]
    more["measured"] = ", ".join(f"{name} {law_text(law)}" for name, law in laws.items())
    own = 0.0 if x in "mC" else -1.0
    if own != theory and all(law_verdict(law, own) == HOLDS for law in laws.values()):
        more["note"] = (
            f"the exponent is {own:.0f}: the gradient of a channel sums its own N H W values,"
            " however many share a statistic"
        )
    row = AXIS.found(judged, **more)
    return [row, *_points(series, settings, [v["gamma"] for v in variances if "gamma" in v])]


def _small_batch(subject: Subject) -> Finding:
    """Compare with a BatchNorm layer at a small batch."""
    how = {"channels": subject.channels, "n": subject.draws}
    bn = replace(subject, build=lambda c: build_norm("bn", c))
    ours = _variances(Setting(SMALL_BATCH, subject, n=SMALL_BATCH)).get("gamma")
    if ours is None:
        return SMALL.found(**how, verdict=NOT_MEASURED)
    theirs = _variances(Setting(SMALL_BATCH, bn, n=SMALL_BATCH), "stability BatchNorm")["gamma"]
    ratio, half = ours[0] / theirs[0], NORMAL * math.hypot(ours[1], theirs[1])
    numbers = ratio, ratio * math.exp(-half), ratio * math.exp(half)
    used, like = subject.sets_used, ""
    if used is not None and used.scope == "batch_channel":
        like = "the norm pools as BatchNorm does and is compared with its like"
    times = f"variance times N H W is {ours[0] * SMALL_BATCH * HEIGHT * WIDTH:.3g}"
    return SMALL.found(*numbers, **how, measured=ratio_text(*numbers), note=notes(like, times))


def _laws(settings: list[Setting], variances: list[dict[str, Variance]]) -> dict[str, Interval]:
    x = [setting.x for setting in settings]
    return {name: fit(x, [v[name] for v in variances]) for name in variances[0]}


def _variances(
    setting: Setting, purpose: str = "stability", alike: bool = False
) -> dict[str, Variance]:
    """Return the variance of the gradient of gamma and of beta, of those that the layer has.

    Inputs and upstream gradients are independent, in float64. alike: all pixels of a channel get
    one upstream gradient.
    """
    subject, shape, drawn = setting.subject, setting.shape, {"gamma": [], "beta": []}
    g = subject.generator(f"{purpose} alike" if alike else purpose, *shape, round(setting.x))
    pixels = (1, 1) if alike else shape[2:]
    built = subject.layer()
    for _ in range(max(2, subject.draws)):
        x_NCHW = torch.randn(shape, generator=g, dtype=torch.float64)
        dy_NCHW = torch.randn(*shape[:2], *pixels, generator=g, dtype=torch.float64)
        dy_NCHW = dy_NCHW.expand(shape) / (shape[0] * shape[2] * shape[3])
        layer = copied(built)
        own = {name: p for name, p in zip(drawn, affine(layer)) if p is not None}
        y_NCHW = subject.apply(layer, x_NCHW)
        how = {"materialize_grads": True}
        gradients = torch.autograd.grad(y_NCHW, [*own.values()], dy_NCHW, **how) if own else ()
        for name, gradient in zip(own, gradients):
            drawn[name].append(gradient.flatten())
    return {name: variance_over_draws(torch.stack(rows)) for name, rows in drawn.items() if rows}


def _points(series: str, settings: list[Setting], variances: list[Variance]) -> Iterator[Point]:
    if variances and variances[0][0] > 0:
        for setting, (value, error) in zip(settings, variances):
            y, factor = value / variances[0][0], math.exp(NORMAL * error)
            yield Point("one layer, gamma", series, setting.x, y, y / factor, y * factor)
