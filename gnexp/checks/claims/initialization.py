"""Claim 10: initialization of residual networks. What gamma = 1 and gamma = 0 do at the start.

Section "Initialization in residual networks". Gamma is that of the last norm of each residual
branch. "The article's block" is that of preresnet: y = x + r, where r ends with a norm;
"post-activation" is that of resnet: relu(x + r). Fresh float32 networks, several seeds. Points:

- panels "article's block" and "post-activation": x = number of the block, y = variance of the
  signal behind it over all values of the images (log; mean over seeds, lo and hi the extremes);
  series "gamma 1, depth 56" and so on.
- panels "first updates, ...": see `first_updates`.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Iterable

import numpy as np

from gnexp.analysis.statistics import Interval, t_interval
from gnexp.checks.finding import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Finding,
    Measured,
    Point,
    conditional,
    inside,
    verdict_below,
)
from gnexp.checks.first_updates import first_updates, spelled
from gnexp.checks.gradient_by_depth import DEPTHS, verdict_by_depth
from gnexp.checks.signal_growth import SignalTrace, set_last_gamma, trace
from gnexp.checks.subject import Subject

IMAGE_COUNT, DRAWS_PER_SEED = 2, 8
GAMMAS, DEPTH_OF_GAMMAS = (1.0, 0.5, 2.0), 56
GROWTH_TOLERANCE = 0.2  # relative, of what the article calls approximate
VARIANCE_TOLERANCE = 0.01  # relative
CORRELATION_TOLERANCE = 0.05
PANELS = {"preresnet": "article's block", "resnet": "post-activation"}
GROWTH = "growth of the signal's variance per block within a stage, gamma"
Traces = dict[tuple[str, int], list[SignalTrace]]


def measure(subject: Subject) -> Measured:
    """Measure claim 10; raises NormError for a norm without a gamma."""
    result, seeds = Measured(), range(max(1, subject.draws // DRAWS_PER_SEED))
    ones: Traces = {}
    zeros: Traces = {}
    for family, panel in PANELS.items():
        for depth in DEPTHS:
            ones[family, depth] = _traces(subject, f"{family}{depth}", 1.0, seeds)
            zeros[family, depth] = _traces(subject, f"{family}{depth}", 0.0, seeds[:1])
            for gamma, of in ((1, ones), (0, zeros)):
                _points(result, panel, f"gamma {gamma}, depth {depth}", of[family, depth])
    of_gamma = {1.0: ones["preresnet", DEPTH_OF_GAMMAS]}
    for gamma in GAMMAS[1:]:
        of_gamma[gamma] = _traces(subject, f"preresnet{DEPTH_OF_GAMMAS}", gamma, seeds)
    projected = _traces(subject, "resnet18", 1.0, seeds[:1])[0]
    result.findings += [
        _branch(of_gamma),
        _correlation(ones),
        _growth("growth", ones, "preresnet", "y = x + r"),
        _growth_of_gamma(of_gamma),
        _growth("growth_post_activation", ones, "resnet", "relu(x + r), as in ResNets"),
        _adds_up(ones["preresnet", DEPTHS[-1]], projected),
        _identity("identity", zeros, "preresnet", "y = x + r"),
        _identity("identity_post_activation", zeros, "resnet", "relu(x + r), as in ResNets"),
    ]
    first_updates(subject, result)
    return result


def _traces(subject: Subject, model: str, gamma: float, seeds: Iterable[int]) -> list[SignalTrace]:
    traces = []
    for seed in seeds:
        net = subject.network(model, seed=seed)
        set_last_gamma(subject, net, gamma)
        traces.append(trace(net, subject.x_NCHW[:IMAGE_COUNT]))
    return traces


def _points(result: Measured, panel: str, series: str, traces: list[SignalTrace]) -> None:
    for b, values in enumerate(zip(*(t.variance for t in traces), strict=True), start=1):
        numbers = (float(f(values)) for f in (np.mean, np.min, np.max))
        result.points.append(Point(panel, series, b, *numbers))


def _branch(of_gamma: dict[float, list[SignalTrace]]) -> Finding:
    ratios = [v / gamma**2 for gamma, traces in of_gamma.items() for t in traces for v in t.branch]
    lo, hi = min(ratios), max(ratios)
    worst = max(abs(lo - 1), abs(hi - 1))
    return Finding(
        "branch",
        "the variance of a residual branch that ends with the norm is gamma^2",
        f"variance of r over gamma^2, all blocks of preresnet{DEPTH_OF_GAMMAS}, gamma"
        f" {_listed(GAMMAS)}, {IMAGE_COUNT} images",
        "1",
        f"{lo:.4g} to {hi:.4g}",
        verdict_below(worst, VARIANCE_TOLERANCE),
        value=worst,
        tolerance=f"{VARIANCE_TOLERANCE:g}, at every block",
    )


def _correlation(ones: Traces) -> Finding:
    by_seed = zip(*(ones["preresnet", depth] for depth in DEPTHS), strict=True)
    values = [np.concatenate([t.correlation for t in traces]) for traces in by_seed]
    mean = t_interval([float(v.mean()) for v in values])
    largest = max(float(np.abs(v).max()) for v in values)
    return Finding(
        "uncorrelated",
        "signal x and residual branch r are uncorrelated at initialization",
        "correlation of x and r over the values of a batch, mean over the blocks of preresnet"
        f"{'/'.join(map(str, DEPTHS))}",
        "0",
        f"{spelled(mean)}; single blocks up to {largest:.2g}",
        inside(mean.lo, mean.hi, -CORRELATION_TOLERANCE, CORRELATION_TOLERANCE),
        *(mean.mean, mean.lo, mean.hi),
        tolerance=f"the whole 95 % interval within +-{CORRELATION_TOLERANCE:g}",
        n=mean.n,
    )


def _growth(statement: str, ones: Traces, family: str, block: str) -> Finding:
    slopes = {d: _mean([t.slope() for t in ones[family, d]]) for d in DEPTHS}
    verdicts = {d: _grows_by_one(slope) for d, slope in slopes.items()}
    worst = max(slopes.values(), key=lambda slope: abs(slope.mean - 1))
    return Finding(
        statement,
        f"each residual block adds gamma^2 to the variance of the signal, {block}",
        f"{GROWTH} 1, {family} of these depths",
        "1",
        "; ".join(f"depth {d}: {spelled(slope)}" for d, slope in slopes.items()),
        verdict_by_depth(verdicts),
        *(worst.mean, worst.lo, worst.hi),
        tolerance=f"the whole 95 % interval within 1 +- {GROWTH_TOLERANCE:g}",
        n=worst.n,
    )


def _mean(values: list[float]) -> Interval:
    """Return the mean over seeds with its 95 % interval: the geometric one of positive values,
    since without a norm the seeds differ by orders of magnitude."""
    if not all(0 < value < math.inf for value in values):
        return t_interval(values)
    logs = t_interval([math.log(value) for value in values])
    with np.errstate(over="ignore"):
        mean, lo, hi = (float(np.exp(number)) for number in (logs.mean, logs.lo, logs.hi))
    return Interval(mean, math.nan, logs.n, lo, hi)


def _grows_by_one(slope: Interval) -> str:
    if slope.n and not math.isfinite(slope.mean):
        return FAILS
    return inside(slope.lo, slope.hi, 1 - GROWTH_TOLERANCE, 1 + GROWTH_TOLERANCE)


def _growth_of_gamma(of_gamma: dict[float, list[SignalTrace]]) -> Finding:
    slopes = {
        gamma: _mean([t.slope() / gamma**2 for t in traces]) for gamma, traces in of_gamma.items()
    }
    verdicts = [_grows_by_one(slope) for slope in slopes.values()]
    worst = max(slopes.values(), key=lambda slope: abs(slope.mean - 1))
    return Finding(
        "growth_of_gamma",
        "the growth per block is in proportion to gamma^2",
        f"{GROWTH} {_listed(GAMMAS)}, over gamma^2, preresnet{DEPTH_OF_GAMMAS}",
        "1",
        "; ".join(f"gamma {gamma:g}: {spelled(slope)}" for gamma, slope in slopes.items()),
        next((v for v in (FAILS, UNDECIDED) if v in verdicts), HOLDS),
        *(worst.mean, worst.lo, worst.hi),
        tolerance=f"the whole 95 % interval within 1 +- {GROWTH_TOLERANCE:g}",
        n=worst.n,
    )


def _adds_up(traces: list[SignalTrace], projected: SignalTrace) -> Finding:
    blocks = len(traces[0].variance)
    share = _mean([t.variance[-1] / (t.start + blocks) for t in traces])
    verdict = _grows_by_one(share)
    if verdict == FAILS and _grows_by_one(_mean([t.slope() for t in traces])) == HOLDS:
        verdict = conditional("no block changes the shape")
    first = [b for b, resized in enumerate(traces[0].resized) if resized]
    falls = np.mean([[t.variance[b] / t.variance[b - 1] for b in first] for t in traces])
    behind = ", ".join(f"{v:.2g}" for v in projected.variance)
    return Finding(
        "adds_up",
        "with gamma 1 the variance grows with each block, to 1 + L behind L blocks",
        f"variance behind the last block over (start + L), preresnet{DEPTHS[-1]}, L = {blocks}",
        "1",
        f"{spelled(share)}; a block that halves the image changes the variance by {falls:.2g}",
        verdict,
        *(share.mean, share.lo, share.hi),
        tolerance=f"the whole 95 % interval within 1 +- {GROWTH_TOLERANCE:g}",
        n=share.n,
        note="the shortcut that appends zero channels halves the variance; resnet18, whose"
        f" shortcuts project and normalize there, has behind its blocks: {behind}",
    )


def _identity(statement: str, zeros: Traces, family: str, block: str) -> Finding:
    traces = [t for d in DEPTHS for t in zeros[family, d]]
    unchanged = [u for t in traces for u in t.unchanged]
    resized = sum(r for t in traces for r in t.resized)
    other = len(unchanged) - sum(unchanged)
    return Finding(
        statement,
        f"with gamma 0 a residual block is the identity, {block}",
        f"blocks of {family}{'/'.join(map(str, DEPTHS))} whose output is not the input, bit by bit",
        "0",
        f"{other} of {len(unchanged)} blocks",
        verdict_below(other, 0),
        value=other,
        tolerance="0, float32",
        note=f"{resized} of them change the shape and are held against their shortcut instead",
    )


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)
