"""Claim 8: stable gradients. The variance of those of gamma and beta, in one layer and a network.

Section "Stable gradient flow": it is said to be inversely proportional to the number of values per
statistic, and hence far smaller for GN than for BN at small batches. For one layer, with standard
normal inputs and normal upstream gradients / (N H W), those of a mean over examples and pixels, all
independent, it is 1 / (N H W) under every norm: a channel's gradient sums its own N H W terms,
however many values share a statistic. All in float64. The network is in `network_noise`.

Points, all axes logarithmic:
  "one layer, gamma"  x: the number that is varied (a count); y: variance of the gradient of gamma
                      over its value at the smallest x, lo and hi its 95 % interval (the error of
                      the first point is not in it); series "channels per group" (or "channels",
                      where groups cannot be chosen), "H x W", "batch"
  "network, gamma", "network, beta"    x: batch size; y: noise, the trace of the covariance of one
                      mini-batch gradient, (loss/parameter)^2; series "noise"
  "relative, gamma", "relative, beta"  x: batch size; y: noise / signal, hi is inf where the
                      signal's interval reaches 0; series "noise / signal"

Shapes: N examples, C channels, H and W pixels; K draws.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gnexp.checks.finding import (
    HOLDS,
    NOT_MEASURED,
    VACUOUS,
    Finding,
    Measured,
    Point,
    conditional,
    inside,
)
from gnexp.checks.network_noise import measure_network
from gnexp.checks.power_law import (
    MUCH_LESS,
    NORMAL,
    TOLERANCE,
    PowerLaw,
    Variance,
    fit,
    predicted,
    ratio_text,
    values_per_statistic,
    variance_over_draws,
    worst,
)
from gnexp.checks.statistic_sets import (
    NO_STATISTIC,
    divisors,
    sets_claimed,
    sets_used,
    takes_no_statistic,
)
from gnexp.checks.subject import Subject, affine, clone
from gnexp.norms.registry import build_norm

BATCH, HEIGHT, WIDTH = 2, 4, 8  # of a single layer, where they are not varied
PIXELS = ((4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # 16 values per statistic or more
BATCHES = (2, 4, 8, 16, 32)
VARIED = {
    "channels": "when the channels per group change",
    "pixels": "when H W changes",
    "batch": "when the batch size changes",
}
TIMES_CHANNELS = (1, 2, 4, 8)  # multiples, which a norm with fixed groups can be built for
SMALL_BATCH = 2
PARAMETERS = ("gamma", "beta")
LAYER = "one layer; independent standard normal inputs and upstream gradients / (N H W)"


@dataclass(frozen=True)
class Setting:
    """One point of an axis: the varied number, the norm, and the shape of its input."""

    x: float
    subject: Subject
    n: int = BATCH
    h: int = HEIGHT
    w: int = WIDTH


def measure(subject: Subject) -> Measured:
    """Measure claim 8."""
    result = Measured()
    measure_layer(subject, result)
    measure_network(subject, result)
    return result


def measure_layer(subject: Subject, result: Measured) -> None:
    """Add the rows and points of one layer."""
    _channels(subject, result)
    _pixels(subject, result)
    _batch(subject, result)
    if takes_no_statistic(subject):
        for place, row in enumerate(result.findings):
            sentence = f"{NO_STATISTIC}: expected is what {sets_claimed(subject)} would give"
            result.findings[place] = replace(
                row, note="; ".join(filter(None, (sentence, row.note)))
            )
    result.findings.append(_small_batch(subject))


def _channels(subject: Subject, result: Measured) -> None:
    settings = _regrouped(subject) or [
        Setting(c, replace(subject, channels=c))
        for c in (times * subject.channels for times in TIMES_CHANNELS)
    ]
    values = _values(settings)
    chosen = settings[0].subject.channels == settings[-1].subject.channels
    name = "channels per group" if chosen else "channels"
    what = f"m = {settings[0].x} to {settings[-1].x} channels per group, C = {subject.channels}"
    if not chosen:
        what = f"C = {settings[0].x} to {settings[-1].x} (its groups cannot be chosen)"
    what += f"; {values[0]} to {values[-1]} values per statistic"
    same = "a statistic has no more values at a larger C, so this cannot tell the rule from none"
    _axis(
        result,
        *("channels", name, "m" if chosen else "C", settings, values),
        what=f"{what}, N = {BATCH}, {HEIGHT}x{WIDTH} pixels",
        note=same if values[0] == values[-1] else "",
    )
    if values[0] == values[-1] and result.findings[-1].verdict == HOLDS:
        result.findings[-1] = replace(result.findings[-1], verdict=VACUOUS)


def _regrouped(subject: Subject) -> list[Setting]:
    """Return the settings of ascending channels per group, none where groups cannot be chosen."""
    if subject.regroup is None:
        return []
    settings = []
    for groups in reversed(divisors(subject.channels)[1:]):

        def build(channels: int, groups: int = groups) -> torch.nn.Module:
            return subject.regroup(channels, groups)

        variant = replace(subject, build=build, groups=lambda _, groups=groups: groups)
        settings.append(Setting(subject.channels // groups, variant))
    return settings if len(settings) > 2 else []


def _values(settings: list[Setting]) -> list[int]:
    """Return how many values share a statistic in each setting, by measurement.

    As the article says instead, where not all of the settings share statistics in one way.
    """
    sets = [sets_used(setting.subject) for setting in settings]
    if len({each and each.scope for each in sets}) > 1 or sets[0] is None:
        sets = [sets_claimed(setting.subject) for setting in settings]
    return [
        values_per_statistic(each, s.n, s.subject.channels, s.h, s.w)
        for each, s in zip(sets, settings)
    ]


def _pixels(subject: Subject, result: Measured) -> None:
    """Vary H W, with upstream gradients that differ from pixel to pixel and that do not."""
    settings = [Setting(h * w, subject, h=h, w=w) for h, w in PIXELS]
    values = _values(settings)
    _axis(
        result,
        *("pixels", "H x W", "H W", settings, values),
        what=f"H W = {settings[0].x} to {settings[-1].x}, N = {BATCH}, C = {subject.channels}",
    )
    row = result.findings[-1]
    alike = _laws(settings, [_variances(s, alike=True) for s in settings]).get("beta")
    if alike is None:
        return
    note = (
        f"with one upstream gradient for all pixels of a channel, as behind global average"
        f" pooling, the exponent of beta is {alike}"
    )
    if row.verdict == HOLDS and alike.verdict(predicted([s.x for s in settings], values)) != HOLDS:
        row = replace(row, verdict=conditional("the pixels' upstream gradients are independent"))
    result.findings[-1] = replace(row, note="; ".join(filter(None, (row.note, note))))


def _batch(subject: Subject, result: Measured) -> None:
    settings = [Setting(n, subject, n=n) for n in BATCHES]
    _axis(
        result,
        *("batch", "batch", "N", settings, _values(settings)),
        what=f"N = {BATCHES[0]} to {BATCHES[-1]}, C = {subject.channels}, {HEIGHT}x{WIDTH} pixels",
    )


def _axis(
    result: Measured,
    statement: str,
    series: str,
    x: str,
    settings: list[Setting],
    values: list[int],
    what: str,
    note: str = "",
) -> None:
    """Add the row and the points of one axis: the exponent, and the one the article predicts."""
    variances = [_variances(setting) for setting in settings]
    laws = _laws(settings, variances)
    expected = predicted([setting.x for setting in settings], values)
    text = f"gradients of gamma and beta vary as 1 / (values per statistic): {VARIED[statement]}"
    common = {"statement": statement, "text": text, "what": f"{LAYER}; {what}"}
    common |= {"expected": f"exponent {expected:.3g}", "n": settings[0].subject.draws}
    common |= {"tolerance": f"95 % interval within {TOLERANCE:g} of it, gamma and beta"}
    if not laws:
        missing = "the layer has neither gamma nor beta"
        result.findings.append(Finding(**common, measured=missing, verdict=NOT_MEASURED))
        return
    verdicts = [law.verdict(expected) for law in laws.values()]
    judged = list(laws.values())[verdicts.index(worst(verdicts))]
    finding = Finding(
        **common,
        measured=", ".join(f"{name} {law}" for name, law in laws.items()),
        verdict=worst(verdicts),
        **{"value": judged.exponent, "lo": judged.lo, "hi": judged.hi},
        note=note or _instead(x, expected, laws),
    )
    result.findings.append(finding)
    if "gamma" in laws:
        result.points += _points(series, settings, [v["gamma"] for v in variances])


def _instead(x: str, expected: float, laws: dict[str, PowerLaw]) -> str:
    """Return what holds where the article's rule does not."""
    theory = 0.0 if x in "mC" else -1.0
    if theory == expected or any(law.verdict(theory) != HOLDS for law in laws.values()):
        return ""
    return (
        f"the exponent is {theory:.0f}: the gradient of a channel sums its own N H W values,"
        " however many share a statistic"
    )


def _small_batch(subject: Subject) -> Finding:
    """Compare with a BatchNorm layer at a small batch."""
    bn = replace(subject, build=lambda c: build_norm("bn", c))
    ours = _variances(Setting(SMALL_BATCH, subject, n=SMALL_BATCH))
    theirs = _variances(Setting(SMALL_BATCH, bn, n=SMALL_BATCH), "stability BatchNorm")
    common = {
        "statement": "layer_batch_2",
        "text": f"at batch {SMALL_BATCH} gamma's gradient is much less noisy than BatchNorm's,"
        " one layer",
        "what": f"{LAYER}; variance over that of a BatchNorm layer, N = {SMALL_BATCH},"
        f" C = {subject.channels}, {HEIGHT}x{WIDTH} pixels",
        "expected": f"below {MUCH_LESS:g}",
        "tolerance": f"95 % interval of the ratio below {MUCH_LESS:g}",
        "n": subject.draws,
    }
    if "gamma" not in ours:
        return Finding(**common, measured="the layer has no gamma", verdict=NOT_MEASURED)
    ratio = ours["gamma"].value / theirs["gamma"].value
    half = NORMAL * math.hypot(ours["gamma"].error, theirs["gamma"].error)
    lo, hi = ratio * math.exp(-half), ratio * math.exp(half)
    used = sets_used(subject)
    pools_alike = used is not None and used.scope == "batch_channel"
    like = "the norm pools as BatchNorm does and is compared with its like; " if pools_alike else ""
    times = ours["gamma"].value * SMALL_BATCH * HEIGHT * WIDTH
    return Finding(
        **common,
        measured=ratio_text(ratio, lo, hi),
        verdict=inside(lo, hi, 0.0, MUCH_LESS),
        **{"value": ratio, "lo": lo, "hi": hi},
        note=f"{like}variance times N H W is {times:.3g}",
    )


def _laws(settings: list[Setting], variances: list[dict[str, Variance]]) -> dict[str, PowerLaw]:
    x = [setting.x for setting in settings]
    return {name: fit(x, [v[name] for v in variances]) for name in variances[0]}


def _variances(
    setting: Setting, purpose: str = "stability", alike: bool = False
) -> dict[str, Variance]:
    """Return the variance of the gradient of gamma and of beta, of those that the layer has.

    alike: all pixels of a channel get one upstream gradient.
    """
    draws = list(_gradients(setting, f"{purpose} alike" if alike else purpose, alike))
    return {name: variance_over_draws(torch.stack([d[name] for d in draws])) for name in draws[0]}


def _gradients(setting: Setting, purpose: str, alike: bool) -> Iterator[dict[str, Tensor]]:
    """Yield gradients (C,) of independent inputs and upstream gradients, in float64."""
    subject, shape = setting.subject, (setting.n, setting.subject.channels, setting.h, setting.w)
    g = subject.generator(purpose, *shape, round(setting.x))
    pixels = (1, 1) if alike else shape[2:]
    built = subject.layer()
    for _ in range(max(2, subject.draws)):
        x_NCHW = torch.randn(shape, generator=g, dtype=torch.float64)
        dy_NCHW = torch.randn(*shape[:2], *pixels, generator=g, dtype=torch.float64)
        dy_NCHW = dy_NCHW.expand(shape) / (shape[0] * shape[2] * shape[3])
        layer = clone(built)
        found = zip(PARAMETERS, affine(layer))
        parameters = {name: p for name, p in found if p is not None}
        y_NCHW = subject.apply(layer, x_NCHW)
        if not parameters:
            yield {}
            continue
        gradients = torch.autograd.grad(
            y_NCHW, list(parameters.values()), dy_NCHW, materialize_grads=True
        )
        yield {name: d.flatten() for name, d in zip(parameters, gradients)}


def _points(series: str, settings: list[Setting], variances: list[Variance]) -> list[Point]:
    first = variances[0].value
    if not first > 0:
        return []
    points = []
    for setting, v in zip(settings, variances):
        y, factor = v.value / first, math.exp(NORMAL * v.error)
        points.append(Point("one layer, gamma", series, setting.x, y, y / factor, y * factor))
    return points
