"""The noise of mini-batch gradients in a network at its initial weights, beside BatchNorm's.

Part of claim 8, whose figure `stability` describes. Float32, training mode, images drawn with
replacement. Shapes: N examples, C channels, H and W pixels; R initializations.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.checks.finding import HOLDS, NOT_MEASURED, UNDECIDED, Finding, Measured, Point, inside
from gnexp.checks.power_law import (
    DEGENERATE,
    MUCH_LESS,
    NORMAL,
    TOLERANCE,
    Variance,
    fit,
    predicted,
    ratio_text,
    values_per_statistic,
)
from gnexp.checks.statistic_sets import sets_claimed, sets_used
from gnexp.checks.subject import NormError, Subject
from gnexp.data.seeding import derived_seed
from gnexp.measure.gradient_noise import LEAST_DRAWS, block_jackknife, measure_gradients
from gnexp.measure.per_example import find_mixing_layer
from gnexp.norms.registry import build_norm

MODEL = "resnet8"
BATCHES = (1, 2, 4, 8, 16, 32)
WHOLE_DRAWS_UP_TO = 4  # examples of a batch; beyond, as many images as there, in fewer batches
SMALL_BATCH = 2
# Relative noise differs several times between initializations: more draws buy more of these.
DRAWS_AT_MOST = 64  # at one initialization, where norms are compared
INITIALIZATIONS_PER_DRAW = 1 / 8
INITIALIZATIONS_AT_LEAST = 5  # for an interval: signals are too skewed for fewer to bound
MORE = "signals differ much between initializations; more draws measure more of these"
KINDS = ("gamma", "beta")

Row = dict[str, float]


def measure_network(subject: Subject, result: Measured) -> None:
    """Add the rows and points of the network."""
    net = _network(subject, 0)
    rows = [_noise(subject, net, batch, "stability fit") for batch in BATCHES]
    # Where examples mix, one alone is normalized by another function.
    first = 0 if find_mixing_layer(net, subject.x_NCHW[:4]) is None else 1
    result.findings += [_exponent(subject, kind, rows, first) for kind in KINDS]
    result.points += [p for kind in KINDS for p in _points(kind, rows)]
    bn = replace(subject, build=_batch_norm_where(subject))
    count = max(2, int(subject.draws * INITIALIZATIONS_PER_DRAW))
    fewer = [replace(s, draws=min(s.draws, DRAWS_AT_MOST)) for s in (subject, bn)]
    ours = [_at_initialization(fewer[0], i, "stability") for i in range(count)]
    theirs = [_at_initialization(fewer[1], i, "stability BatchNorm") for i in range(count)]
    for relative in (False, True):
        result.findings += [_less(subject, kind, ours, theirs, relative) for kind in KINDS]


def _network(subject: Subject, initialization: int) -> nn.Module:
    seed = derived_seed(subject.seed, "passport stability weights", initialization)
    classes = max(10, int(subject.y_N.max()) + 1)
    return subject.network(MODEL, classes=classes, seed=seed)


def _batch_norm_where(subject: Subject) -> Callable[[int], nn.Module]:
    """Return a builder of BatchNorm that refuses what the norm refuses: networks of one width."""

    def build(channels: int) -> nn.Module:
        subject.build(channels)
        return build_norm("bn", channels)

    return build


def _at_initialization(subject: Subject, initialization: int, purpose: str) -> dict[str, Row]:
    net = _network(subject, initialization)
    return _noise(subject, net, SMALL_BATCH, purpose, initialization)


def _draws(subject: Subject, batch: int) -> int:
    return max(LEAST_DRAWS, subject.draws * WHOLE_DRAWS_UP_TO // max(batch, WHOLE_DRAWS_UP_TO))


def _noise(
    subject: Subject, net: nn.Module, batch: int, purpose: str, *counters: int
) -> dict[str, Row]:
    """Return the measured noise and signal of gamma and of beta, of those that there are."""
    k, g = _draws(subject, batch), subject.generator(purpose, batch, *counters)
    try:
        rows = measure_gradients(net, _batches(subject, batch, k, g), k, batch)
    except Exception as error:
        raise NormError(f"{subject.label} in {MODEL}, batch {batch}: {error}") from error
    return {row["parameters"]: row for row in rows if row["parameters"] in KINDS}


def _batches(
    subject: Subject, batch: int, k: int, g: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    for _ in range(k):
        index = torch.randint(0, len(subject.x_NCHW), (batch,), generator=g)
        yield subject.x_NCHW[index], subject.y_N[index]


def _exponent(subject: Subject, kind: str, rows: list[dict[str, Row]], first: int) -> Finding:
    """Fit noise against the batch size, from the first batch at which it is the same function."""
    batches = BATCHES[first:]
    sets = sets_used(subject) or sets_claimed(subject)
    values = [values_per_statistic(sets, n, subject.channels, 1, 1) for n in batches]
    expected = predicted(batches, values)
    common = {
        "statement": f"network_batch_{kind}",
        "text": f"in a network the gradient of {kind} varies as 1 / (values per statistic):"
        " when N changes",
        "what": f"{MODEL}, one initialization, trace of the covariance of the mini-batch gradient,"
        f" batch {batches[0]} to {batches[-1]}",
        "expected": f"exponent {expected:.3g}",
        "tolerance": f"95 % interval within {TOLERANCE:g} of it",
        "n": subject.draws,
    }
    if any(kind not in row for row in rows):
        return Finding(**common, measured=f"it has no {kind}", verdict=NOT_MEASURED)
    law = fit(batches, [_variance(row[kind]) for row in rows[first:]])
    notes = []
    if first:
        notes.append("batch 1 is another function, for outputs depend on the rest of the batch")
    if expected != -1 and law.verdict(-1.0) == HOLDS:
        notes.append("the exponent is -1, that of a mean over independent examples")
    return Finding(
        **common,
        measured=str(law),
        verdict=law.verdict(expected),
        **{"value": law.exponent, "lo": law.lo, "hi": law.hi},
        note="; ".join(notes),
    )


def _variance(row: Row) -> Variance:
    # The interval is Student's, so this error is as wide as few draws make it.
    half = (row["noise_hi"] - row["noise_lo"]) / 2
    return Variance(row["noise"], half / NORMAL / row["noise"] if row["noise"] else math.nan)


def _less(
    subject: Subject,
    kind: str,
    ours: list[dict[str, Row]],
    theirs: list[dict[str, Row]],
    relative: bool,
) -> Finding:
    """Compare with BatchNorm's networks of the same initial weights, on batches of their own."""
    noise = "noise relative to the signal" if relative else "noise"
    common = {
        "statement": f"network_{'relative' if relative else 'noise'}_{kind}",
        "text": f"at batch {SMALL_BATCH} the gradient of {kind} is much less noisy than"
        f" BatchNorm's{', relative to its signal' if relative else ''}, in a network",
        "what": f"{MODEL}, batch {SMALL_BATCH}: {noise} over that of the same network with"
        f" BatchNorm, {len(ours)} initializations of {min(subject.draws, DRAWS_AT_MOST)} draws",
        "expected": f"below {MUCH_LESS:g}",
        "tolerance": f"95 % interval of the ratio below {MUCH_LESS:g}",
        "n": len(ours),
    }
    if any(kind not in row for row in ours):
        return Finding(**common, measured=f"it has no {kind}", verdict=NOT_MEASURED)
    ratio, lo, hi = _ratio([r[kind] for r in ours], [r[kind] for r in theirs], relative)
    why_not = "a signal's interval reaches 0" if relative else DEGENERATE
    if len(ours) < INITIALIZATIONS_AT_LEAST:
        lo = hi = math.nan
        why_not = f"fewer than {INITIALIZATIONS_AT_LEAST} initializations bound none"
    verdict = inside(lo, hi, 0.0, MUCH_LESS)
    return Finding(
        **common,
        measured=ratio_text(ratio, lo, hi, why_not),
        verdict=verdict,
        **{"value": ratio, "lo": lo, "hi": hi},
        note=MORE if relative and verdict == UNDECIDED else "",
    )


def _ratio(ours: list[Row], theirs: list[Row], relative: bool) -> tuple[float, float, float]:
    """Return the ratio of the noise, or of noise / signal, and its 95 % interval; nan: unbounded.

    Averages over initializations, which are the independent units: the interval is a jackknife of
    the logarithm that deletes one of them from both sides.
    """
    columns = {
        (column, side): np.array([row[column] for row in rows])
        for column in ("noise", "signal")
        for side, rows in ((1, ours), (-1, theirs))
    }
    one_each = np.ones(len(ours))
    log_ratio = np.zeros(1 + len(ours))
    for (column, side), values_R in columns.items():
        if column == "signal" and not relative:
            continue
        means = _means_without_each(values_R)
        lo, _ = block_jackknife(means, one_each)
        if not (np.isfinite(means).all() and lo > 0):  # nan too
            return math.nan, math.nan, math.nan
        log_ratio += side * (1 if column == "noise" else -1) * np.log(np.abs(means))
    lo, hi = block_jackknife(log_ratio, one_each)
    with np.errstate(over="ignore"):
        return tuple(float(np.exp(number)) for number in (log_ratio[0], lo, hi))


def _means_without_each(values_R: np.ndarray) -> np.ndarray:
    """Return (1 + R,): the mean, and the means without each value."""
    total, count = values_R.sum(), len(values_R)
    return np.concatenate([[total / count], (total - values_R) / (count - 1)])


def _points(kind: str, rows: list[dict[str, Row]]) -> list[Point]:
    points = []
    for batch, row in zip(BATCHES, (row.get(kind) for row in rows)):
        if row is None or not math.isfinite(row["noise"]):
            continue
        noise, lo, hi = (row[key] for key in ("noise", "noise_lo", "noise_hi"))
        points.append(Point(f"network, {kind}", "noise", batch, noise, lo, hi))
        if row["signal"] > 0:
            low = max(lo, 0.0) / row["signal_hi"]
            high = hi / row["signal_lo"] if row["signal_lo"] > 0 else math.inf
            y = noise / row["signal"]
            points.append(Point(f"relative, {kind}", "noise / signal", batch, y, low, high))
    return points
