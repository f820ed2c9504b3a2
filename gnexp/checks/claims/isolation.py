"""Claim 9: information isolation. What one example does to the others, and the noise it costs.

Section "Training dynamics", 2. All in float64 and training mode. No verdict is statistical: an
example either reaches another or does not, and a change that is found refutes a bound, while the
bounds themselves are proven. Draws, `subject.draws` of them, serve to find a change.

Points, per batch size (x: examples, log2 scale):
panel "cross-example": y is the relative RMS change of the other examples' logits in resnet8 when
one example is replaced (log scale; 0 where nothing changes), mean and 95 % interval over draws;
series "another image" and "10 times the contrast" say what it is replaced with.
panel "sensitivity": y is how far replacing one example moves the sum of clipped per-example
gradients, in units of the clipping norm (log2 scale); series "largest found" and "proven upper
bound".
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnexp.analysis.statistics import t_interval
from gnexp.checks.finding import (
    FAILS,
    HOLDS,
    UNDECIDED,
    Finding,
    Measured,
    Point,
    vacuous,
    verdict_below,
)
from gnexp.checks.statistic_sets import NO_STATISTIC, takes_no_statistic
from gnexp.checks.subject import NormError, Subject
from gnexp.measure import isolation as instrument
from gnexp.measure.dp_accounting import INSTALL, noise_multiplier
from gnexp.measure.per_example import find_mixing_layer

EXACT = 1e-9  # relative, of float64 numbers
MODEL = "resnet8"
PIXELS = 16  # images are averaged down to this size, for time
OUTPUT_BATCH = 8
OUTPUT_BATCHES = (2, 4, 8, 16)
GRADIENT_BATCHES = (2, 4, 8, 16)
CLIP = 1.0
# A usual setting of DP-SGD, as an example.
EPSILON, DELTA, EXAMPLES, BATCH, EPOCHS = 8.0, 1e-5, 50_000, 64, 10
STEPS = EPOCHS * EXAMPLES // BATCH

# In units of the normalized images' standard deviation.
EXTREMES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: torch.full_like(x, 100.0),
    lambda x: 10 * x,
    lambda x: torch.full_like(x, -100.0),
    lambda x: -10 * x,
    lambda x: x,
)
EXTREMES_WORDS = "a constant of +-100, another image at +-10 times its contrast, or as it is"


@dataclass(frozen=True)
class Influence:
    """The measured influence of one example. mixes: on its batch; `where` says how that shows.

    remembers: into later batches. state: buffers that a forward pass in training writes.
    """

    mixes: bool
    where: str
    remembers: bool
    state: list[str]

    def bound(self, batch: int) -> float:
        """Return the proven upper bound of the clipped sum's sensitivity, over the clip."""
        return instrument.sensitivity_bound(batch, 1.0, self.mixes)


def measure(subject: Subject) -> Measured:
    """Measure claim 9."""
    result = Measured()
    net = _network(subject)
    unmoved = [_layer(subject), _jacobian(subject), *_outputs(subject, net, result)]
    reach = _reach(subject, net, unmoved)
    if takes_no_statistic(subject):
        unmoved = [vacuous(finding, NO_STATISTIC) for finding in unmoved]
    found = {size: _found(subject, net, size) for size in GRADIENT_BATCHES}
    result.findings += [*unmoved, _bound(reach, found)]
    result.findings += _sensitivity(subject, found, reach, result)
    result.findings += [_noise(reach, found)]
    return result


def _few(subject: Subject) -> int:
    """Return a smaller number of draws for slow measurements."""
    return max(2, subject.draws // 12)


def _unmoved(
    statement: str, text: str, what: str, values: list[float], unit: str = "", n: int | None = None
) -> Finding:
    """Return the row of changes that must all be 0."""
    worst, mean = _largest(values), sum(values) / len(values)
    measured = f"mean {mean:.3g}, largest {worst:.3g}" if len(values) > 1 else f"{worst:.3g}"
    return Finding(
        statement,
        text,
        what,
        f"0{unit}",
        measured + unit,
        verdict_below(worst, EXACT),
        value=worst,
        tolerance=f"{EXACT:g}{unit}" + (", of the largest" if len(values) > 1 else ""),
        n=n,
    )


def _largest(values: list[float]) -> float:
    """Return the largest value, nan if any is."""
    return torch.tensor(values, dtype=torch.float64).max().item()


def _layer(subject: Subject) -> Finding:
    """Replace one example of a batch that a single layer sees."""
    x_NCHW = subject.features("isolation", OUTPUT_BATCH)
    others_NCHW = subject.features("isolation replaced", subject.draws)
    subject.apply(subject.layer(), x_NCHW)
    layer, changes = subject.layer(), []
    before = instrument.training_output(layer, x_NCHW).flatten(1)
    for draw, other_CHW in enumerate(others_NCHW):
        replaced = draw % OUTPUT_BATCH
        x = instrument.with_replaced(x_NCHW, replaced, other_CHW)
        after = instrument.training_output(layer, x).flatten(1)
        changes.append(instrument.relative_change_of_others(before, after, replaced))
    return _unmoved(
        "layer",
        "replacing one example leaves the layer's output for all others as it is",
        f"one of {OUTPUT_BATCH} examples of 5x7 pixels replaced: RMS change of the other"
        f" {OUTPUT_BATCH - 1} outputs, over their RMS",
        changes,
        n=subject.draws,
    )


def _jacobian(subject: Subject) -> Finding:
    x_NCHW = subject.features("isolation jacobian", 4, 2, 3)
    subject.apply(subject.layer(), x_NCHW)
    return _unmoved(
        "jacobian",
        "an example's output has no derivative with respect to another example's input",
        "share of the Jacobian's Frobenius norm in dy_i / dx_j, i != j; 4 examples of 2x3 pixels",
        [instrument.cross_example_share(subject.layer(), x_NCHW)],
    )


def _network(subject: Subject) -> nn.Module:
    """Return the network in float64; raises NormError unless its outputs are finite."""
    net = subject.network(MODEL, classes=max(10, int(subject.y_N.max()) + 1)).double()
    try:
        x_NCHW, _ = _images(subject, "isolation check", OUTPUT_BATCH)
        logits = instrument.training_output(net, x_NCHW)
    except Exception as error:
        raise NormError(f"{subject.label} in {MODEL}: {error}") from error
    if not torch.isfinite(logits).all():
        raise NormError(f"{subject.label} in {MODEL} gives outputs that are not finite")
    return net


def _images(subject: Subject, purpose: str, count: int, *counters: int) -> tuple[Tensor, Tensor]:
    """Return `count` different images of the data, averaged down, and their labels."""
    g = subject.generator(purpose, count, *counters)
    chosen = torch.randperm(len(subject.x_NCHW), generator=g)[:count]
    x_NCHW = subject.x_NCHW[chosen].double()
    return F.avg_pool2d(x_NCHW, max(1, min(x_NCHW.shape[2:]) // PIXELS)), subject.y_N[chosen]


def _outputs(subject: Subject, net: nn.Module, result: Measured) -> list[Finding]:
    """Replace one image of a batch that a network sees: the others' logits and losses."""
    for size in OUTPUT_BATCHES:
        for series, contrast in (("another image", 1), ("10 times the contrast", 10)):
            over = t_interval(_changes(subject, net, size, _few(subject), contrast)[0])
            point = Point("cross-example", series, size, over.mean, over.lo, over.hi)
            result.points.append(point)
    relative, losses = _changes(subject, net, OUTPUT_BATCH, subject.draws, 1)
    what = f"one of {OUTPUT_BATCH} images replaced by another, {MODEL} at initialization: "
    return [
        _unmoved(
            "outputs",
            "in a network, replacing one example leaves the logits of all others as they are",
            what + "RMS change of the others' logits, over their RMS",
            relative,
            n=subject.draws,
        ),
        _unmoved(
            "losses",
            "in a network, replacing one example leaves the losses of all others as they are",
            what + "|change| of the others' losses",
            losses,
            " nats",
            n=subject.draws,
        ),
    ]


def _changes(
    subject: Subject, net: nn.Module, size: int, draws: int, contrast: float
) -> tuple[list[float], list[float]]:
    """Return the others' relative RMS logit change of every draw, and all |loss changes|."""
    relative, losses = [], []
    for draw in range(draws):
        x_NCHW, y_N = _images(subject, "isolation batch", size + 1, draw)
        x_NCHW, other_CHW, y_N, replaced = x_NCHW[:-1], x_NCHW[-1], y_N[:-1], draw % size
        before = instrument.training_output(net, x_NCHW)
        x_NCHW = instrument.with_replaced(x_NCHW, replaced, contrast * other_CHW)
        after = instrument.training_output(net, x_NCHW)
        relative.append(instrument.relative_change_of_others(before, after, replaced))
        losses += instrument.loss_changes_of_others(before, after, y_N, replaced)
    return relative, losses


def _reach(subject: Subject, net: nn.Module, unmoved: list[Finding]) -> Influence:
    """Decide from measurements whether examples mix, within a batch and across batches."""
    x_NCHW, earlier_NCHW = subject.features("isolation", 4), 3 * subject.features("earlier", 4) + 1
    first = find_mixing_layer(net, _images(subject, "isolation mixing", OUTPUT_BATCH)[0])
    moved = [finding.statement for finding in unmoved if finding.verdict != HOLDS]
    where = "examples do not mix"
    if first is not None or moved:
        where = f"examples mix, seen in the {f'output of {first}' if first else ', '.join(moved)}"
    layer = subject.layer()
    return Influence(
        mixes=first is not None or bool(moved),
        where=where,
        remembers=instrument.depends_on_the_past(layer, x_NCHW, earlier_NCHW),
        state=instrument.state_written(layer, x_NCHW),
    )


def _largest_found(found: dict[int, float]) -> str:
    at = max(found, key=lambda size: found[size])
    return f"largest found {_largest(list(found.values())):.3g} clip, at N = {at}"


def _bound(reach: Influence, found: dict[int, float]) -> Finding:
    note = "one term of the sum moves, by at most 2 clip"
    if reach.mixes:
        note = "every term of the sum may move by 2 clip, so clipping alone proves 2 N clip"
    if reach.remembers:
        note = "the output depends on earlier batches, which no bound on one step covers"
    return Finding(
        "bound",
        "replacing one example moves the sum of clipped per-example gradients by 2 clip at most,"
        " as a proven upper bound",
        f"the upper bound that clipping proves at N = {BATCH}, given whether examples mix; beside"
        f" it the largest move found in batches of {GRADIENT_BATCHES[0]} to {GRADIENT_BATCHES[-1]}",
        "at most 2 clip, proven",
        f"at most {reach.bound(BATCH):g} clip, proven; {_largest_found(found)}; {reach.where}",
        FAILS if reach.mixes or reach.remembers else HOLDS,
        value=reach.bound(BATCH),
        tolerance="2 clip; only a proof counts",
        note=note,
    )


def _sensitivity(
    subject: Subject, found: dict[int, float], reach: Influence, result: Measured
) -> list[Finding]:
    """Judge the largest moves of the sum of clipped gradients that were found, by batch size."""
    for size in found:
        result.points += [
            Point("sensitivity", "largest found", size, found[size]),
            Point("sensitivity", "proven upper bound", size, reach.bound(size)),
        ]
    worst = _largest(list(found.values()))
    decided = UNDECIDED if reach.mixes or reach.remembers else HOLDS
    used = _largest([found[size] / reach.bound(size) for size in found])
    count = len(found) * _few(subject)
    sizes = f"{', '.join(map(str, GRADIENT_BATCHES[:-1]))} and {GRADIENT_BATCHES[-1]}"
    what = f"{MODEL} at initialization, {count} replacements in batches of {sizes}: "
    return [
        Finding(
            "sensitivity",
            "no replacement that is found moves the sum of clipped gradients by more than 2 clip",
            what + "largest move of the sum, a lower bound of the sensitivity",
            "at most 2 clip",
            f"{_largest_found(found)}; proven: at most {reach.bound(GRADIENT_BATCHES[-1]):g} clip"
            f" at N = {GRADIENT_BATCHES[-1]}",
            decided if worst <= 2 + EXACT else FAILS,  # nan fails
            value=worst,
            tolerance="2 clip; a smaller move decides only where 2 clip is proven",
            n=count,
            note=f"replaced in turn by {EXTREMES_WORDS}; no noise is calibrated by a lower bound",
        ),
        Finding(
            "within_bound",
            "no replacement that is found moves the sum of clipped gradients beyond its proven"
            " upper bound",
            what + "largest move of the sum, over the upper bound proven at its N",
            "at most 1",
            f"{used:.3g} of the proven upper bound",
            verdict_below(used, 1 + EXACT),
            value=used,
            tolerance="1",
            n=count,
            note="a check of the upper bound: 2 N clip where examples mix, else 2 clip; how far the"
            " bound lies above the true sensitivity is not known",
        ),
    ]


def _found(subject: Subject, net: nn.Module, size: int) -> float:
    """Return the largest move of the clipped sum that was found in batches of `size`, over clip."""
    x_NCHW, y_N = _images(subject, "isolation gradients", size + _few(subject))
    replacements = [
        (EXTREMES[turn % len(EXTREMES)](x_CHW), y)
        for turn, (x_CHW, y) in enumerate(zip(x_NCHW[size:], y_N[size:]))
    ]
    moves = instrument.moves_of_clipped_sum(net, x_NCHW[:size], y_N[:size], replacements, CLIP)
    return _largest(moves) / CLIP


def _noise(reach: Influence, found: dict[int, float]) -> Finding:
    """State the noise of the example setting under the proven upper bound."""
    bound, value = reach.bound(BATCH), math.nan
    note = f"{reach.where}; sampling amplifies: examples that are not drawn have no influence"
    expected, measured = "multiplier x 2 clip", f"multiplier x {bound:g} clip"
    verdict = FAILS if reach.mixes else HOLDS
    if reach.mixes:
        note += "; clipping the batch's gradient as a whole costs N times the signal instead"
    if reach.state:
        note += f"; not covered: {' and '.join(reach.state)}, which hold the data without noise"
    if reach.remembers:
        measured, verdict = "no bound, so no noise is known to suffice", FAILS
        note = "the output depends on earlier batches: examples act on steps they are not drawn for"
    else:
        try:
            multiplier = noise_multiplier(EPSILON, DELTA, EXAMPLES, BATCH, STEPS)
        except ImportError:
            verdict, note = UNDECIDED, f"the multiplier needs an accountant: {INSTALL}"
        else:
            value = multiplier * bound
            expected = f"{multiplier * 2:.3g} clip = {multiplier:.3g} x 2 clip"
            measured = (
                f"noise = {value:.3g} clip = {multiplier:.3g} x {bound:g} clip, the proven upper"
                f" bound; {_largest_found(found)}"
            )
    return Finding(
        "noise",
        "the noise proven to suffice for a given (epsilon, delta) is less than where examples mix",
        f"standard deviation on the clipped sum that suffices for epsilon {EPSILON:g}, delta"
        f" {DELTA:g}: one example replaced, {BATCH} of {EXAMPLES:,} drawn without replacement,"
        f" {STEPS:,} steps, Renyi accountant of dp-accounting",
        expected,
        measured,
        verdict,
        value=value,
        tolerance="the bound is 2 clip",
        note=note,
    )
