"""Claim 9: information isolation. What one example does to the others, and the noise it costs.

Section "Training dynamics", 2. All in float64 and training mode. No verdict is statistical: an
example either reaches another or does not, and a change that is found refutes a bound, while the
bounds themselves are proven. Draws, `subject.draws` of them, serve to find a change.
The series "another image" and "10 times the contrast" say what an example is replaced with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnexp.analysis.statistics import t_interval
from gnexp.checks.finding import Finding, Found, Point, Statement, table, vacuous
from gnexp.checks.subject import NormError, Subject, relative_change
from gnexp.checks.verdicts import FAILS, HOLDS, UNDECIDED
from gnexp.measure import isolation as instrument
from gnexp.measure.dp_accounting import INSTALL, noise_multiplier
from gnexp.measure.per_example import find_mixing_layer

EXACT = 1e-9  # relative, of float64 numbers
MODEL = "resnet8"
PIXELS = 16  # images are averaged down to this size, for time
OUTPUT_BATCH = 8
OUTPUT_BATCHES = (2, 4, 8, 16)
GRADIENT_BATCHES = (2, 4, 8, 16)
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

OTHERS = {
    "measured": "mean {mean:.3g}, largest {value:.3g}",
    "tolerance": "{high:g}, of the largest",
    "high": EXACT,
}
MIXED = "every term of the sum may move by 2 clip, so clipping alone proves 2 N clip"
UNBOUNDED = "the output depends on earlier batches, which no bound on one step covers"
IN_NETWORK = f"one of {OUTPUT_BATCH} images replaced by another, {MODEL} at initialization:"
REPLACED = f"{MODEL} at initialization, {{n}} replacements in batches of {{sizes}}:"
ROWS = table(
    Statement(
        "layer",
        "replacing one example leaves the layer's output for all others as it is",
        f"one of {OUTPUT_BATCH} examples of 5x7 pixels replaced: RMS change of the other"
        f" {OUTPUT_BATCH - 1} outputs, over their RMS",
        **OTHERS,
    ),
    Statement(
        "jacobian",
        "an example's output has no derivative with respect to another example's input",
        "share of the Jacobian's Frobenius norm in dy_i / dx_j, i != j; 4 examples of 2x3 pixels",
        measured="{value:.3g}",
        high=EXACT,
    ),
    Statement(
        "outputs",
        "in a network, replacing one example leaves the logits of all others as they are",
        f"{IN_NETWORK} RMS change of the others' logits, over their RMS",
        **OTHERS,
    ),
    Statement(
        "losses",
        "in a network, replacing one example leaves the losses of all others as they are",
        f"{IN_NETWORK} |change| of the others' losses",
        expected="0 nats",
        measured="mean {mean:.3g}, largest {value:.3g} nats",
        tolerance="{high:g} nats, of the largest",
        high=EXACT,
    ),
    Statement(
        "bound",
        "replacing one example moves the sum of clipped per-example gradients by 2 clip at most,"
        " as a proven upper bound",
        f"the upper bound that clipping proves at N = {BATCH}, given whether examples mix; beside"
        " it the largest move found in batches of {least} to {most}",
        expected="at most 2 clip, proven",
        measured="at most {value:g} clip, proven; {found}; {where}",
        tolerance="2 clip; only a proof counts",
        note="one term of the sum moves, by at most 2 clip",
    ),
    Statement(
        "sensitivity",
        "no replacement that is found moves the sum of clipped gradients by more than 2 clip",
        f"{REPLACED} largest move of the sum, a lower bound of the sensitivity",
        expected="at most 2 clip",
        measured="{found}; proven: at most {bound:g} clip at N = {most}",
        tolerance="2 clip; a smaller move decides only where 2 clip is proven",
        note="replaced in turn by a constant of +-100, another image at +-10 times its contrast, or"
        " as it is; no noise is calibrated by a lower bound",
    ),
    Statement(
        "within_bound",
        "no replacement that is found moves the sum of clipped gradients beyond its proven upper"
        " bound",
        f"{REPLACED} largest move of the sum, over the upper bound proven at its N",
        expected="at most 1",
        measured="{value:.3g} of the proven upper bound",
        tolerance="1",
        note="a check of the upper bound: 2 N clip where examples mix, else 2 clip; how far the"
        " bound lies above the true sensitivity is not known",
        high=1 + EXACT,
    ),
    Statement(
        "noise",
        "the noise proven to suffice for a given (epsilon, delta) is less than where examples mix",
        f"standard deviation on the clipped sum that suffices for epsilon {EPSILON:g}, delta"
        f" {DELTA:g}: one example replaced, {BATCH} of {EXAMPLES:,} drawn without replacement,"
        f" {STEPS:,} steps, Renyi accountant of dp-accounting",
        expected="multiplier x 2 clip",
        measured="multiplier x {bound:g} clip",
        tolerance="the bound is 2 clip",
    ),
)


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
        """Return a proven upper bound, over the clip, on how far one replacement moves the sum.

        A clipped gradient moves by at most 2 clip. Where examples do not mix, one term depends on
        the replaced example; where they do, each of the `batch` terms may. How far above the true
        sensitivity that lies is not known.
        """
        return 2.0 * (batch if self.mixes else 1)


def measure(subject: Subject) -> Found:
    """Measure claim 9."""
    net = _network(subject)
    unmoved = [_layer(subject), _jacobian(subject), *_outputs(subject, net)]
    yield from _changes_by_batch(subject, net)
    reach = _reach(subject, net, unmoved)
    nothing = subject.takes_no_statistic
    for row in unmoved:
        yield vacuous(row) if nothing else row
    found = {size: _largest_move(subject, net, size) for size in GRADIENT_BATCHES}
    for size, move in found.items():
        yield Point("sensitivity", "largest found", size, move)
        yield Point("sensitivity", "proven upper bound", size, reach.bound(size))
    yield from _sensitivity(found, reach, len(found) * _few(subject))


def _few(subject: Subject) -> int:
    """Return a smaller number of draws for slow measurements."""
    return max(2, subject.draws // 12)


def _unmoved(key: str, values: list[float], n: int) -> Finding:
    """Return the row of changes that must all be 0; nan where one is."""
    return ROWS[key].found(float(np.max(values)), mean=sum(values) / len(values), n=n)


def _layer(subject: Subject) -> Finding:
    """Replace one example of a batch that a single layer sees."""
    x_NCHW = subject.features("isolation", OUTPUT_BATCH)
    others_NCHW = subject.features("isolation replaced", subject.draws)
    subject.apply(subject.layer(), x_NCHW)
    draws = ((draw % OUTPUT_BATCH, x_NCHW, other) for draw, other in enumerate(others_NCHW))
    return _unmoved("layer", _changes(subject.layer(), draws)[0], subject.draws)


def _jacobian(subject: Subject) -> Finding:
    x_NCHW = subject.features("isolation jacobian", 4, 2, 3)
    subject.apply(subject.layer(), x_NCHW)
    return ROWS["jacobian"].found(instrument.cross_example_share(subject.layer(), x_NCHW))


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


def _outputs(subject: Subject, net: nn.Module) -> Iterator[Finding]:
    """Replace one image of a batch that a network sees: the others' logits and losses."""
    changes = _changes(net, _draws(subject, OUTPUT_BATCH, subject.draws))
    for key, values in zip(("outputs", "losses"), changes):
        yield _unmoved(key, values, subject.draws)


def _changes_by_batch(subject: Subject, net: nn.Module) -> Iterator[Point]:
    for size in OUTPUT_BATCHES:
        for series, contrast in (("another image", 1), ("10 times the contrast", 10)):
            over = t_interval(_changes(net, _draws(subject, size, _few(subject), contrast))[0])
            yield Point("cross-example", series, size, over.mean, over.lo, over.hi)


def _draws(subject: Subject, size: int, draws: int, contrast: float = 1) -> Iterator[tuple]:
    """Yield (place to be replaced, images, the other image, labels)."""
    for draw in range(draws):
        x_NCHW, y_N = _images(subject, "isolation batch", size + 1, draw)
        yield draw % size, x_NCHW[:-1], contrast * x_NCHW[-1], y_N[:-1]


def _changes(model: nn.Module, draws: Iterator[tuple]) -> tuple[list[float], list[float]]:
    """Return the others' relative RMS output change of every draw, and all |loss changes|."""
    relative, losses = [], []
    for replaced, x_NCHW, other_CHW, *labels in draws:
        others_N = torch.arange(len(x_NCHW)) != replaced
        pair = x_NCHW, instrument.with_replaced(x_NCHW, replaced, other_CHW)
        before, after = (instrument.training_output(model, x)[others_N] for x in pair)
        relative.append(relative_change(after, before))
        for y_N in labels:
            y_N = y_N[others_N]
            old, new = (F.cross_entropy(z, y_N, reduction="none") for z in (before, after))
            losses += (new - old).abs().tolist()
    return relative, losses


def _reach(subject: Subject, net: nn.Module, unmoved: list[Finding]) -> Influence:
    """Decide from measurements whether examples mix, within a batch and across batches."""
    x_NCHW, earlier_NCHW = subject.features("isolation", 4), 3 * subject.features("earlier", 4) + 1
    first = find_mixing_layer(net, _images(subject, "isolation mixing", OUTPUT_BATCH)[0])
    moved = [finding.statement for finding in unmoved if finding.verdict != HOLDS]
    mixes = first is not None or bool(moved)
    seen = f"output of {first}" if first else ", ".join(moved)
    layer = subject.layer()
    return Influence(
        mixes,
        f"examples mix, seen in the {seen}" if mixes else "examples do not mix",
        instrument.depends_on_the_past(layer, x_NCHW, earlier_NCHW),
        instrument.state_written(layer, x_NCHW),
    )


def _largest_move(subject: Subject, net: nn.Module, size: int) -> float:
    """Return the largest move of the clipped sum that was found in batches of `size`, over clip."""
    x_NCHW, y_N = _images(subject, "isolation gradients", size + _few(subject))
    replacements = [
        (EXTREMES[turn % len(EXTREMES)](x_CHW), y)
        for turn, (x_CHW, y) in enumerate(zip(x_NCHW[size:], y_N[size:]))
    ]
    moves = instrument.moves_of_clipped_sum(net, x_NCHW[:size], y_N[:size], replacements, 1.0)
    return float(np.max(moves))


def _sensitivity(found: dict[int, float], reach: Influence, count: int) -> Iterator[Finding]:
    """Judge the proven bound and the largest moves of the sum of clipped gradients, found at each
    batch size in `count` replacements in all."""
    *others, most = GRADIENT_BATCHES
    at = max(found, key=lambda size: found[size])
    largest = float(np.max([*found.values()]))
    texts = {
        "found": f"largest found {largest:.3g} clip, at N = {at}",
        "where": reach.where,
        "sizes": f"{', '.join(map(str, others))} and {most}",
        "least": GRADIENT_BATCHES[0],
        "most": most,
    }
    open_ended = reach.mixes or reach.remembers
    why = {"note": UNBOUNDED if reach.remembers else MIXED} if open_ended else {}
    proven = FAILS if open_ended else HOLDS
    yield ROWS["bound"].found(reach.bound(BATCH), **texts, **why, verdict=proven)
    decided = UNDECIDED if open_ended else HOLDS
    how = {"verdict": decided if largest <= 2 + EXACT else FAILS, "n": count}  # nan fails
    yield ROWS["sensitivity"].found(largest, **texts, **how, bound=reach.bound(most))
    used = np.max([found[size] / reach.bound(size) for size in found])
    yield ROWS["within_bound"].found(float(used), **texts, n=count)
    yield _noise(reach, texts["found"])


def _noise(reach: Influence, found: str) -> Finding:
    """State the noise of the example setting under the proven upper bound."""
    row, bound = ROWS["noise"], reach.bound(BATCH)
    if reach.remembers:
        return row.found(
            measured="no bound, so no noise is known to suffice",
            verdict=FAILS,
            note="the output depends on earlier batches: examples act on steps they are not drawn"
            " for",
        )
    try:
        multiplier = noise_multiplier(EPSILON, DELTA, EXAMPLES, BATCH, STEPS)
    except ImportError:
        note = f"the multiplier needs an accountant: {INSTALL}"
        return row.found(bound=bound, verdict=UNDECIDED, note=note)
    note = f"{reach.where}; sampling amplifies: examples that are not drawn have no influence"
    if reach.mixes:
        note += "; clipping the batch's gradient as a whole costs N times the signal instead"
    if reach.state:
        note += f"; not covered: {' and '.join(reach.state)}, which hold the data without noise"
    return row.found(
        multiplier * bound,
        expected=f"{multiplier * 2:.3g} clip = {multiplier:.3g} x 2 clip",
        measured=f"noise = {multiplier * bound:.3g} clip = {multiplier:.3g} x {bound:g} clip, the"
        f" proven upper bound; {found}",
        verdict=FAILS if reach.mixes else HOLDS,
        note=note,
    )
