"""Claim 5: a x + b has the standardized output of x, by the values that share one a and one b.

Section "Fundamental properties", 3. A set of variance s gives, for a x + b with a > 0, its
standardized output times sqrt((s + eps) / (s + eps / a^2)): a relative departure of about
eps / (2 s) |1 - 1/a^2|. The departures here are the largest, over the sets that the norm uses, of
rms(change of the output) / rms(output).

Shapes: N examples, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn

from gnexp.checks.finding import Finding, Found, Point, Statement, table
from gnexp.checks.statistic_sets import CHANNEL, SCOPES, StatisticSets, with_equal_sets
from gnexp.checks.subject import NormError, Subject, affine, rms
from gnexp.checks.trained_networks import trained_findings
from gnexp.checks.verdicts import FAILS, HOLDS, conditional
from gnexp.norms.module_state import copied

EXAMPLES = 4
DRAWS = 8  # of a and b: where one set holds everything, one a may be too near 1 to tell
ALLOWED = 2  # times what eps predicts, for norms whose sets are not quite those that were found
ROUNDING = 1e-10  # of float64 numbers of size 1 after sums over up to 10,000 of them
SMALL_S = 100.0  # variance over eps at which eps shows far above rounding
RATIO_TOLERANCE = 0.01
VANISHING = (1e-1, 1e-2, 1e-3)  # a over sqrt(eps)
CURVE = tuple(2.0**power for power in range(-6, 7))
FLOOR = 1e-16  # for log axes
TINY = 1e-300  # an output of zeros that stays so has not departed
# By which a network may magnify the departure of its first norm: 0.3 to 5 in resnet8.
GAIN = 30
BRIGHTER = 1000.0  # where eps leaves a millionth of the departure

UNCHANGED = Statement(
    "unchanged_{scope}",
    "a x + b, a > 0, has the standardized output of x: one a and b for {within}",
    f"largest relative departure, a in {{interval}}, b in [-2, 2], {DRAWS} draws, 4 examples",
    expected="not claimed; 0 if invariant",
    measured="{value:.2g} in training, {evaluation:.2g} in evaluation{groups}",
    tolerance=f"{{high:.2g}}: {ALLOWED} times what eps predicts, in both modes",
)
ROWS = table(
    Statement(
        "sign_flip",
        "a < 0 flips the sign of the standardized output: one a and b for {within}",
        UNCHANGED.what,
        "0 from the negative output, but for eps",
        UNCHANGED.measured,
        UNCHANGED.tolerance,
    ),
    Statement(
        "vanishing",
        "as a goes to 0 the output goes to beta: one a and b for {within}",
        "largest |output - beta| over the one that eps predicts, a / sqrt(eps) = 0.1, 0.01, 0.001",
        expected="1",
        measured="{value:.3g} in training, {evaluation:.3g} in evaluation;"
        " |output - beta| = {final:.2g} at the smallest a{groups}",
        tolerance="at most {high}, in both modes",
        high=ALLOWED,
    ),
    Statement(
        "eps_predicts",
        "the departure is the one that eps predicts, about eps / (2 s) |1 - 1/a^2|",
        f"departure over sqrt((s + eps) / (s + eps / a^2)) - 1 at s / eps = {SMALL_S:g},"
        " a from 1/4 to 4, one b for each set of values that share a statistic",
        expected="1",
        measured="{least:.4g} to {most:.4g}, off by at most {off:.2g}; {sets}",
        tolerance=f"1 +- {RATIO_TOLERANCE:g}",
        low=1 - RATIO_TOLERANCE,
        high=1 + RATIO_TOLERANCE,
    ),
    Statement(
        "network_scale",
        "scaling each image by its own a > 0 leaves the logits of a network without biases alone",
        "change of resnet8's logits over their spread between 4 images, a = 1/2 and 2, training",
        expected="not claimed; 0, but for eps, if invariant",
        measured="{value:.2g}; {bright:.2g} for images 1000 times brighter",
        tolerance=f"{{allowed:.2g}} and {{allowed_bright:.2g}}: {GAIN} times what eps predicts for"
        " the first norm",
        note="with one a = 2 for all images: {alike:.2g}. The first norm alone sees the scale;"
        f" the factor {GAIN} is for what the layers after it make of its departure",
    ),
    Statement(
        "network_shift",
        "shifting each image by its own b leaves the logits of a network without biases alone",
        "change of resnet8's logits over their spread between 4 images, b = +-0.5, +-1, training",
        expected="not claimed; 0 if invariant",
        measured="{value:.2g}; {circular:.2g} with circular padding",
        high=ROUNDING,
        note="with circular padding and one b = 1/2 for all images: {alike:.2g}. The convolution"
        " turns one shift of the image into another one for each of its channels",
    ),
)


def measure(subject: Subject) -> Found:
    """Measure claim 5."""
    with torch.no_grad():
        for index, scope in enumerate(_scopes(subject)):
            row = _in_both_modes(subject, scope)
            yield row
            yield Point("matrix", SCOPES[scope.scope], index, max(row.value, FLOOR))
        yield _in_both_modes(subject, subject.sets_claimed, sign=-1)
        yield _vanishing(subject)
        yield from _small_variances(subject)
        net, x_NCHW = subject.network("resnet8").double(), subject.x_NCHW[:EXAMPLES].double()
        yield from _network_scale(subject, net, x_NCHW)
        yield from _network_shift(subject, net, x_NCHW)
    yield from trained_findings(subject)


def _scopes(subject: Subject) -> list[StatisticSets]:
    """Return the sets within which a and b are the same; the first are those of the claim."""
    return [subject.sets_claimed, *(StatisticSets(scope) for scope in SCOPES if scope != "group")]


def _texts(scope: StatisticSets) -> dict[str, str]:
    # The number of groups is no part of a statement's text, which is the same for all norms.
    groups = f"; G = {scope.groups}" if scope.scope == "group" else ""
    return {"scope": scope.scope, "within": SCOPES[scope.scope], "groups": groups}


def departure(sets: StatisticSets, before_NCHW: Tensor, after_NCHW: Tensor) -> float:
    """Return the largest over the sets of rms(after - before) / rms(before)."""
    before, after = sets.rows(before_NCHW), sets.rows(after_NCHW)
    change = (after - before).square().mean(dim=1)
    return (change / before.square().mean(dim=1).clamp_min(TINY)).sqrt().max().item()


def eps_predicts(a_NCHW: Tensor, variance_NCHW: Tensor, eps: float) -> Tensor:
    """Return the relative departure |sqrt((s + eps) / (s + eps / a^2)) - 1| of each value."""
    s = variance_NCHW
    return (((s + eps) / (s + eps / a_NCHW.square())).sqrt() - 1).abs()


def _variance(sets: StatisticSets, x_NCHW: Tensor) -> Tensor:
    return sets.unrows(sets.variance(x_NCHW), x_NCHW)


def _in_mode(subject: Subject, x_NCHW: Tensor, training: bool) -> nn.Module:
    """Return a new layer; for evaluation it has seen x in training, as stored statistics need."""
    layer = subject.layer()
    if not training:
        subject.apply(layer, x_NCHW)
    return layer.train(training)


def _by_mode(subject: Subject, training_ok: bool, evaluation_ok: bool) -> str:
    if training_ok == evaluation_ok:
        return HOLDS if training_ok else FAILS
    if not training_ok:
        return conditional("in evaluation mode")
    # A fixed map has y(x) + y(-x) = 2 y(0) and y(2 x) - y(0) = 2 (y(x) - y(0)).
    x_NCHW = subject.features("invariance", EXAMPLES)
    layer = _in_mode(subject, x_NCHW, training=False)
    zero, y, minus, double = (
        subject.apply(copied(layer), k * x_NCHW) for k in (0.0, 1.0, -1.0, 2.0)
    )
    if max(rms(y + minus - 2 * zero), rms(double - 2 * y + zero)) < ROUNDING * rms(y):
        return conditional("training: evaluation uses stored statistics")
    return conditional("in training mode")


def _in_both_modes(subject: Subject, scope: StatisticSets, sign: int = 1) -> Finding:
    """Return the row of the largest departure of sign * y(sign * a x + b) from y(x), over random
    a, log-uniform in [1/2, 2], and b, uniform in [-2, 2]; it may be twice what eps allows."""
    x_NCHW, sets = subject.features("invariance", EXAMPLES), subject.sets
    s_NCHW, predicted, off = _variance(sets, x_NCHW), 0.0, {True: 0.0, False: 0.0}
    for training in off:
        layer = _in_mode(subject, x_NCHW, training)
        y_NCHW = subject.apply(copied(layer), x_NCHW)
        for draw in range(DRAWS):
            g = subject.generator("invariance a b", draw)
            a_NCHW = 2 ** scope.random(x_NCHW, -1, 1, g)
            b_NCHW = scope.random(x_NCHW, -2, 2, g)
            after = sign * subject.apply(copied(layer), sign * a_NCHW * x_NCHW + b_NCHW)
            off[training] = max(off[training], departure(sets, y_NCHW, after))
            predicted = max(predicted, eps_predicts(a_NCHW, s_NCHW, subject.eps).max().item())
    allowed = ALLOWED * predicted + ROUNDING
    how = {"evaluation": off[False], "high": allowed, **_texts(scope)}
    how["verdict"] = _by_mode(subject, off[True] <= allowed, off[False] <= allowed)
    if sign < 0:
        return ROWS["sign_flip"].found(off[True], interval="[-2, -1/2]", **how)
    if scope.scope == "group":
        how["expected"] = "0, but for eps"
    return UNCHANGED.found(off[True], interval="[1/2, 2]", **how)


def _vanishing(subject: Subject) -> Finding:
    """Let a go to 0: the output must go to beta, whatever b is."""
    (final, training), (_, evaluation) = (_from_beta(subject, mode) for mode in (True, False))
    verdict = _by_mode(subject, training <= ALLOWED, evaluation <= ALLOWED)
    how = {"evaluation": evaluation, "final": final, "verdict": verdict}
    return ROWS["vanishing"].found(training, **how, **_texts(subject.sets_claimed))


def _from_beta(subject: Subject, training: bool) -> tuple[float, float]:
    """Return the largest |output - beta| at the smallest a, and over all a its largest ratio to
    a |x - mean| / sqrt(a^2 s + eps)."""
    x_NCHW, eps, sets = subject.features("invariance", EXAMPLES), subject.eps, subject.sets
    layer = _in_mode(subject, x_NCHW, training)
    beta = affine(layer)[1]
    offset = torch.zeros(1, 1, 1, dtype=torch.float64)
    if beta is not None and beta.numel() in (1, subject.channels):
        beta.copy_(subject.normal("invariance beta", *beta.shape))
        offset = beta.reshape(-1, 1, 1)
    centred_NCHW = sets.unrows(sets.centred(x_NCHW), x_NCHW)
    b_NCHW = subject.sets_claimed.random(x_NCHW, -2, 2, subject.generator("invariance b"))
    distance, worst = 0.0, 0.0
    for fraction in VANISHING:
        a = fraction * eps**0.5
        predicted = a * centred_NCHW / (a**2 * _variance(sets, x_NCHW) + eps).sqrt()
        y_NCHW = subject.apply(copied(layer), a * x_NCHW + b_NCHW)
        distance = (y_NCHW - offset).abs().max().item()
        worst = max(worst, distance / predicted.abs().max().item())
    return distance, worst


def _small_variances(subject: Subject) -> Found:
    """Measure the departure where s / eps is small: the one that eps predicts, and every scope's
    over a."""
    eps, sets = subject.eps, subject.sets
    x_NCHW = with_equal_sets(subject.features("invariance", EXAMPLES), SMALL_S * eps)
    s_NCHW, sd, y_NCHW = _variance(sets, x_NCHW), (SMALL_S * eps) ** 0.5, subject.output(x_NCHW)

    def off(a: float | Tensor, b: float, scope: StatisticSets) -> float:
        shift = scope.random(x_NCHW, -b, b, subject.generator("invariance b"))
        return departure(sets, y_NCHW, subject.output(a * x_NCHW + shift))

    def predicted(a: float) -> float:
        return eps_predicts(torch.full_like(x_NCHW, a), s_NCHW, eps).max().item()

    ratios = [off(a, 1, sets) / predicted(a) for a in (1 / 4, 1 / 2, 2.0, 4.0)]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    how = {"least": min(ratios), "most": max(ratios), "off": abs(worst - 1), "sets": sets}
    yield ROWS["eps_predicts"].found(worst, **how)
    for a in CURVE:
        yield Point("a", "eps predicts", a, max(predicted(a), FLOOR))
        for scope in _scopes(subject):
            scale_S1 = torch.ones(len(scope.rows(x_NCHW)), 1, dtype=torch.float64)
            scale_S1[::2] = a
            y = off(scope.unrows(scale_S1, x_NCHW), sd, scope)
            yield Point("a", SCOPES[scope.scope], a, max(y, FLOOR))


def _change(subject: Subject, net: nn.Module, x_NCHW: Tensor, changed_NCHW: Tensor) -> float:
    """Return the change of the logits over their spread between images: a network's logits may
    be nearly the same for all images, and then a small part of them is a large part of the answer.
    """
    before_NK, after_NK = (copied(net)(images) for images in (x_NCHW, changed_NCHW))
    if not (torch.isfinite(before_NK).all() and torch.isfinite(after_NK).all()):
        raise NormError(f"{subject.label} in resnet8 gave logits that are not finite")
    return rms(after_NK - before_NK) / max(rms(before_NK - before_NK.mean(dim=0)), TINY)


def _first_good(ratios: dict[str, float]) -> str:
    """Return the verdict of the first condition ("" for none) with a change within tolerance."""
    good = [condition for condition, ratio in ratios.items() if ratio <= 1]
    return FAILS if not good else conditional(good[0]) if good[0] else HOLDS


def _network_scale(subject: Subject, net: nn.Module, x_NCHW: Tensor) -> Found:
    """Scale the images of a whole network, in training mode."""
    own = torch.tensor([0.5, 2.0, 0.5, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    changes, allowed, ratios = [], [], {}
    for way, a_N111 in (("", own), ("all images of the batch have one a", 0 * own + 2)):
        for image in (x_NCHW, BRIGHTER * x_NCHW):
            # The first norm alone sees the scale. Its sets are at least as wide as a channel's.
            s_NCHW = _variance(CHANNEL, net.conv1(image))
            predicted = rms(eps_predicts(a_N111, s_NCHW, subject.eps))
            allowed.append(GAIN * predicted + ROUNDING)
            changes.append(_change(subject, net, image, a_N111 * image))
        ratios[way] = max(changes[i] / allowed[i] for i in (-2, -1))
    how = {"allowed": allowed[0], "allowed_bright": allowed[1], "bright": changes[1]}
    how |= {"alike": changes[2], "verdict": _first_good(ratios)}
    yield ROWS["network_scale"].found(changes[0], **how)


def _network_shift(subject: Subject, net: nn.Module, x_NCHW: Tensor) -> Found:
    """Shift the images of a whole network, in training mode."""
    own = torch.tensor([0.5, -0.5, 1.0, -1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    unpadded, circular = "the first convolution is not padded with zeros", copied(net)
    circular.conv1.padding_mode = "circular"
    ways = {
        "": (net, own),
        unpadded: (circular, own),
        f"{unpadded} and all images have one b": (circular, own[:1]),
    }
    changes = {way: _change(subject, n, x_NCHW, x_NCHW + b) for way, (n, b) in ways.items()}
    zeros, round_, alike = changes.values()
    verdict = _first_good({way: change / ROUNDING for way, change in changes.items()})
    yield ROWS["network_shift"].found(zeros, circular=round_, alike=alike, verdict=verdict)
