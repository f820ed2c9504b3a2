"""The noise of mini-batch gradients in a network at its initial weights, beside BatchNorm's.

Part of claim 8, whose figure `stability` describes. Float32, training mode, images drawn with
replacement. Shapes: N examples, C channels, H and W pixels; R initializations.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from gnexp.checks.finding import Finding, Found, Point, Statement
from gnexp.checks.power_law import (
    DEGENERATE,
    LESS,
    NORMAL,
    TOLERANCE,
    fit,
    law_text,
    law_verdict,
    predicted,
    ratio_text,
)
from gnexp.checks.subject import NormError, Subject
from gnexp.checks.verdicts import HOLDS, NOT_MEASURED, UNDECIDED, notes
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

EXPONENT = Statement(
    "network_batch_{kind}",
    "in a network the gradient of {kind} varies as 1 / (values per statistic): when N changes",
    f"{MODEL}, one initialization, trace of the covariance of the mini-batch gradient,"
    f" batch {{first}} to {BATCHES[-1]}",
    expected="exponent {theory:.3g}",
    measured="it has no {kind}",
    tolerance=f"95 % interval within {TOLERANCE:g} of it",
)
LESS_NOISY = Statement(
    "network_{key}_{kind}",
    f"at batch {SMALL_BATCH} the gradient of {{kind}} is much less noisy than"
    " BatchNorm's{relative}, in a network",
    f"{MODEL}, batch {SMALL_BATCH}: {{noise}} over that of the same network with BatchNorm,"
    " {n} initializations of {draws} draws",
    measured="it has no {kind}",
    **LESS,
)
ABSOLUTE = {"key": "noise", "relative": "", "noise": "noise"}
RELATIVE = {"key": "relative", "relative": ", relative to its signal"}
RELATIVE["noise"] = "noise relative to the signal"

Row = dict[str, float]


def measure_network(subject: Subject) -> Found:
    """Measure a network."""
    net = _network(subject, 0)
    rows = [_noise(subject, net, batch, "stability fit") for batch in BATCHES]
    # Where examples mix, one alone is normalized by another function.
    first = 0 if find_mixing_layer(net, subject.x_NCHW[:4]) is None else 1
    for kind in KINDS:
        yield _exponent(subject, kind, rows, first)
        yield from _points(kind, rows)
    bn = replace(subject, build=_batch_norm_where(subject))
    count = max(2, int(subject.draws * INITIALIZATIONS_PER_DRAW))
    sides = []
    for of, purpose in ((subject, "stability"), (bn, "stability BatchNorm")):
        fewer = replace(of, draws=min(of.draws, DRAWS_AT_MOST))
        nets = (_network(fewer, i) for i in range(count))
        sides.append([_noise(fewer, n, SMALL_BATCH, purpose, i) for i, n in enumerate(nets)])
    for how in (ABSOLUTE, RELATIVE):
        for kind in KINDS:
            yield _less(subject, kind, *sides, how)


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


def _noise(
    subject: Subject, net: nn.Module, batch: int, purpose: str, *counters: int
) -> dict[str, Row]:
    """Return the measured noise and signal of gamma and of beta, of those that there are."""
    g, whole = subject.generator(purpose, batch, *counters), WHOLE_DRAWS_UP_TO
    k = max(LEAST_DRAWS, subject.draws * whole // max(batch, whole))
    drawn = (torch.randint(0, len(subject.x_NCHW), (batch,), generator=g) for _ in range(k))
    batches = ((subject.x_NCHW[index], subject.y_N[index]) for index in drawn)
    try:
        rows = measure_gradients(net, batches, k, batch)
    except Exception as error:
        raise NormError(f"{subject.label} in {MODEL}, batch {batch}: {error}") from error
    return {row["parameters"]: row for row in rows if row["parameters"] in KINDS}


def _exponent(subject: Subject, kind: str, rows: list[dict[str, Row]], first: int) -> Finding:
    """Fit noise against the batch size, from the first batch at which it is the same function."""
    batches = BATCHES[first:]
    sets = subject.sets
    theory = predicted(batches, [sets.size(n, subject.channels, 1, 1) for n in batches])
    how = {"kind": kind, "first": batches[0], "theory": theory, "n": subject.draws}
    if any(kind not in row for row in rows):
        return EXPONENT.found(**how, verdict=NOT_MEASURED)
    variances = []
    for noise, lo, hi in (_noise_interval(row[kind]) for row in rows[first:]):
        # The interval is Student's, so this error is as wide as few draws make it.
        variances.append((noise, (hi - lo) / 2 / NORMAL / noise if noise else math.nan))
    law = fit(batches, variances)
    apart = "batch 1 is another function, for outputs depend on the rest of the batch"
    mean = "the exponent is -1, that of a mean over independent examples"
    is_mean = theory != -1 and law_verdict(law, -1.0) == HOLDS
    how |= {"measured": law_text(law), "verdict": law_verdict(law, theory)}
    how["note"] = notes(apart if first else "", mean if is_mean else "")
    return EXPONENT.found(law, **how)


def _noise_interval(row: Row) -> tuple[float, float, float]:
    return row["noise"], row["noise_lo"], row["noise_hi"]


def _less(
    subject: Subject,
    kind: str,
    ours: list[dict[str, Row]],
    theirs: list[dict[str, Row]],
    texts: dict[str, str],
) -> Finding:
    """Compare with BatchNorm's networks of the same initial weights, on batches of their own."""
    relative = texts is RELATIVE
    how = {"kind": kind, "n": len(ours), "draws": min(subject.draws, DRAWS_AT_MOST), **texts}
    if any(kind not in row for row in ours):
        return LESS_NOISY.found(**how, verdict=NOT_MEASURED)
    ratio, lo, hi = _ratio([r[kind] for r in ours], [r[kind] for r in theirs], relative)
    why_not = "a signal's interval reaches 0" if relative else DEGENERATE
    if len(ours) < INITIALIZATIONS_AT_LEAST:
        lo = hi = math.nan
        why_not = f"fewer than {INITIALIZATIONS_AT_LEAST} initializations bound none"
    found = LESS_NOISY.found(ratio, lo, hi, **how, measured=ratio_text(ratio, lo, hi, why_not))
    return replace(found, note=MORE if relative and found.verdict == UNDECIDED else "")


def _ratio(ours: list[Row], theirs: list[Row], relative: bool) -> tuple[float, float, float]:
    """Return the ratio of the noise, or of noise / signal, and its 95 % interval; nan: unbounded.

    Averages over initializations, which are the independent units: the interval is a jackknife of
    the logarithm that deletes one of them from both sides.
    """
    one_each, log_ratio = np.ones(len(ours)), np.zeros(1 + len(ours))
    for column, power in (("noise", 1), ("signal", -1))[: 1 + relative]:
        for rows, side in ((ours, power), (theirs, -power)):
            values_R = np.array([row[column] for row in rows])
            # The mean, and the means without each value.
            total, count = values_R.sum(), len(values_R)
            means = np.append(total / count, (total - values_R) / (count - 1))
            lo, _ = block_jackknife(means, one_each)
            if not (np.isfinite(means).all() and lo > 0):  # nan too
                return math.nan, math.nan, math.nan
            log_ratio += side * np.log(np.abs(means))
    with np.errstate(over="ignore"):
        return tuple(np.exp([log_ratio[0], *block_jackknife(log_ratio, one_each)]).tolist())


def _points(kind: str, rows: list[dict[str, Row]]) -> Iterator[Point]:
    for batch, row in zip(BATCHES, (row.get(kind) for row in rows)):
        if row is None or not math.isfinite(row["noise"]):
            continue
        noise, lo, hi = _noise_interval(row)
        yield Point(f"network, {kind}", "noise", batch, noise, lo, hi)
        if row["signal"] > 0:
            low = max(lo, 0.0) / row["signal_hi"]
            high = hi / row["signal_lo"] if row["signal_lo"] > 0 else math.inf
            y = noise / row["signal"]
            yield Point(f"relative, {kind}", "noise / signal", batch, y, low, high)
