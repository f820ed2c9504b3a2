"""Claim 10: initialization of residual networks. What gamma = 1 and gamma = 0 do at the start.

Section "Initialization in residual networks". Gamma is that of the last norm of each residual
branch. "The article's block" is that of preresnet: y = x + r, where r ends with a norm;
"post-activation" is that of resnet: relu(x + r). Fresh float32 networks, several seeds, whose
extremes are lo and hi of the points.

Shapes: N examples, C channels, H and W pixels.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np

from gnexp.analysis.statistics import Interval, t_interval
from gnexp.checks.finding import Finding, Found, Point, Statement, table
from gnexp.checks.first_updates import first_updates, spelled
from gnexp.checks.gradient_by_depth import DEPTHS, verdict_by_depth
from gnexp.checks.signal_growth import BlockSignal, growth, set_last_gamma, trace
from gnexp.checks.subject import Subject
from gnexp.checks.verdicts import FAILS, HOLDS, conditional, inside, worst

IMAGE_COUNT, DRAWS_PER_SEED = 2, 8
GAMMAS, DEPTH_OF_GAMMAS = (1.0, 0.5, 2.0), 56
GROWTH_TOLERANCE = 0.2  # relative, of what the article calls approximate
CORRELATION_TOLERANCE = 0.05
# Family -> (panel, the end of its statements' keys, the block for people).
FAMILIES = {
    "preresnet": ("article's block", "", "y = x + r"),
    "resnet": ("post-activation", "_post_activation", "relu(x + r), as in ResNets"),
}
GROWTH = "growth of the signal's variance per block within a stage, gamma"
ABOUT_ONE = {
    "expected": "1",
    "tolerance": f"the whole 95 % interval within 1 +- {GROWTH_TOLERANCE:g}",
    "low": 1 - GROWTH_TOLERANCE,
    "high": 1 + GROWTH_TOLERANCE,
}
Trace = list[BlockSignal]
Traces = dict[tuple[str, int], list[Trace]]

ROWS = table(
    Statement(
        "branch",
        "the variance of a residual branch that ends with the norm is gamma^2",
        "variance of r over gamma^2, all blocks of preresnet{depth}, gamma {gammas},"
        f" {IMAGE_COUNT} images",
        expected="1",
        measured="{least:.4g} to {most:.4g}",
        tolerance="{high:g}, at every block",
        high=0.01,  # relative
    ),
    Statement(
        "uncorrelated",
        "signal x and residual branch r are uncorrelated at initialization",
        "correlation of x and r over the values of a batch, mean over the blocks of"
        " preresnet{depths}",
        measured="{mean}; single blocks up to {largest:.2g}",
        tolerance=f"the whole 95 % interval within +-{CORRELATION_TOLERANCE:g}",
        low=-CORRELATION_TOLERANCE,
        high=CORRELATION_TOLERANCE,
    ),
    Statement(
        "growth_of_gamma",
        "the growth per block is in proportion to gamma^2",
        f"{GROWTH} {{gammas}}, over gamma^2, preresnet{{depth}}",
        **ABOUT_ONE,
    ),
    Statement(
        "adds_up",
        "with gamma 1 the variance grows with each block, to 1 + L behind L blocks",
        "variance behind the last block over (start + L), preresnet{depth}, L = {blocks}",
        measured="{mean}; a block that halves the image changes the variance by {falls:.2g}",
        note="the shortcut that appends zero channels halves the variance; resnet18, whose"
        " shortcuts project and normalize there, has behind its blocks: {behind}",
        **ABOUT_ONE,
    ),
)
GROWS = Statement(
    "growth{key}",
    "each residual block adds gamma^2 to the variance of the signal, {block}",
    f"{GROWTH} 1, {{family}} of these depths",
    **ABOUT_ONE,
)
IDENTITY = Statement(
    "identity{key}",
    "with gamma 0 a residual block is the identity, {block}",
    "blocks of {family}{depths} whose output is not the input, bit by bit",
    measured="{value} of {blocks} blocks",
    tolerance="0, float32",
    note="{resized} of them change the shape and are held against their shortcut instead",
    high=0,
)


def measure(subject: Subject) -> Found:
    """Measure claim 10; raises NormError for a norm without a gamma."""
    seeds = range(max(1, subject.draws // DRAWS_PER_SEED))
    ones: Traces = {}
    zeros: Traces = {}
    for family, (panel, *_) in FAMILIES.items():
        for depth in DEPTHS:
            ones[family, depth] = _traces(subject, f"{family}{depth}", 1.0, seeds)
            zeros[family, depth] = _traces(subject, f"{family}{depth}", 0.0, seeds[:1])
            for gamma, of in ((1, ones), (0, zeros)):
                yield from _points(panel, f"gamma {gamma}, depth {depth}", of[family, depth])
    model, first = f"preresnet{DEPTH_OF_GAMMAS}", ones["preresnet", DEPTH_OF_GAMMAS]
    of_gamma = {g: _traces(subject, model, g, seeds) if g != 1 else first for g in GAMMAS}
    yield _branch(of_gamma)
    yield _correlation(ones)
    yield _growth(ones, "preresnet")
    yield _growth_of_gamma(of_gamma)
    yield _growth(ones, "resnet")
    yield _adds_up(ones["preresnet", DEPTHS[-1]], _traces(subject, "resnet18", 1.0, seeds[:1])[0])
    for family in FAMILIES:
        yield _identity(zeros, family)
    yield from first_updates(subject)


def _traces(subject: Subject, model: str, gamma: float, seeds: Iterable[int]) -> list[Trace]:
    traces = []
    for seed in seeds:
        net = subject.network(model, seed=seed)
        set_last_gamma(subject, net, gamma)
        traces.append(trace(net, subject.x_NCHW[:IMAGE_COUNT]))
    return traces


def _points(panel: str, series: str, traces: list[Trace]) -> Iterator[Point]:
    for b, blocks in enumerate(zip(*traces, strict=True), start=1):
        values = [block.variance for block in blocks]
        yield Point(panel, series, b, *(float(f(values)) for f in (np.mean, np.min, np.max)))


def _branch(of_gamma: dict[float, list[Trace]]) -> Finding:
    ratios = [b.branch / gamma**2 for gamma, traces in of_gamma.items() for b in chain(*traces)]
    least, most = min(ratios), max(ratios)
    how = {"least": least, "most": most, "depth": DEPTH_OF_GAMMAS, "gammas": _listed(GAMMAS)}
    return ROWS["branch"].found(max(abs(least - 1), abs(most - 1)), **how)


def _correlation(ones: Traces) -> Finding:
    by_seed = zip(*(ones["preresnet", depth] for depth in DEPTHS), strict=True)
    values = [np.array([b.correlation for b in chain(*traces)]) for traces in by_seed]
    mean = t_interval([float(v.mean()) for v in values])
    how = {"mean": spelled(mean), "largest": max(float(np.abs(v).max()) for v in values)}
    return ROWS["uncorrelated"].found(mean, **how, depths=_depths())


def _growth(ones: Traces, family: str) -> Finding:
    _, key, block = FAMILIES[family]
    slopes = {f"depth {d}": _mean([*map(growth, ones[family, d])]) for d in DEPTHS}
    verdict = verdict_by_depth(dict(zip(DEPTHS, map(_grows_by_one, slopes.values()))))
    how = {"key": key, "block": block, "family": family, "verdict": verdict}
    return GROWS.found(**_of_worst(slopes), **how)


def _mean(values: list[float]) -> Interval:
    """Return the mean over seeds with its 95 % interval: the geometric one of positive values,
    since without a norm the seeds differ by orders of magnitude."""
    if not all(0 < value < math.inf for value in values):
        return t_interval(values)
    logs = t_interval([math.log(value) for value in values])
    with np.errstate(over="ignore"):
        mean, lo, hi = np.exp([logs.mean, logs.lo, logs.hi]).tolist()
    return Interval(mean, math.nan, logs.n, lo, hi)


def _grows_by_one(slope: Interval) -> str:
    if slope.n and not math.isfinite(slope.mean):
        return FAILS
    return inside(slope.lo, slope.hi, 1 - GROWTH_TOLERANCE, 1 + GROWTH_TOLERANCE)


def _of_worst(slopes: dict[str, Interval]) -> dict[str, object]:
    """Return the slope that is farthest from 1, and all of them in words."""
    far = max(slopes.values(), key=lambda slope: abs(slope.mean - 1))
    measured = "; ".join(f"{name}: {spelled(slope)}" for name, slope in slopes.items())
    return {"value": far, "measured": measured}


def _growth_of_gamma(of_gamma: dict[float, list[Trace]]) -> Finding:
    slopes = {
        f"gamma {gamma:g}": _mean([growth(t) / gamma**2 for t in traces])
        for gamma, traces in of_gamma.items()
    }
    how = {"gammas": _listed(GAMMAS), "depth": DEPTH_OF_GAMMAS}
    how["verdict"] = worst([_grows_by_one(slope) for slope in slopes.values()])
    return ROWS["growth_of_gamma"].found(**_of_worst(slopes), **how)


def _adds_up(traces: list[Trace], projected: Trace) -> Finding:
    blocks = len(traces[0])
    share = _mean([t[-1].variance / (t[0].before + blocks) for t in traces])
    verdict = _grows_by_one(share)
    if verdict == FAILS and _grows_by_one(_mean([*map(growth, traces)])) == HOLDS:
        verdict = conditional("no block changes the shape")
    falls = np.mean([[b.variance / b.before for b in t if b.resized] for t in traces])
    how = {"mean": spelled(share), "falls": falls, "depth": DEPTHS[-1], "blocks": blocks}
    how["behind"] = ", ".join(f"{b.variance:.2g}" for b in projected)
    return ROWS["adds_up"].found(share, verdict=verdict, **how)


def _identity(zeros: Traces, family: str) -> Finding:
    _, key, block = FAMILIES[family]
    blocks = [b for d in DEPTHS for b in chain(*zeros[family, d])]
    how = {"blocks": len(blocks), "resized": sum(b.resized for b in blocks)}
    how |= {"key": key, "block": block, "family": family, "depths": _depths()}
    return IDENTITY.found(sum(not b.unchanged for b in blocks), **how)


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _depths() -> str:
    return "/".join(map(str, DEPTHS))
