"""Claim 5: a x + b has the standardized output of x, by the values that share one a and one b.

Section "Fundamental properties", 3. A set of variance s gives, for a x + b with a > 0, its
standardized output times sqrt((s + eps) / (s + eps / a^2)): a relative departure of about
eps / (2 s) |1 - 1/a^2|. The departures here are the largest, over the sets that the norm uses, of
rms(change of the output) / rms(output).

Panels. "a": x = a (log), y = departure (log) at s / eps = 100; series: the scopes, in each of
which every other set is scaled by a and all are shifted, and "eps_predicts". "matrix": x = index
of the scope, y = departure in training mode (log), series: the scopes.

Shapes: N examples, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn

from gnexp.checks.claims.core import eps_of
from gnexp.checks.finding import FAILS, HOLDS, Finding, Measured, Point, conditional, verdict_below
from gnexp.checks.statistic_sets import (
    StatisticSets,
    random_per_set,
    sets_claimed,
    sets_used,
    variance_of,
    with_equal_sets,
)
from gnexp.checks.subject import NormError, Subject, affine, clone, rms
from gnexp.checks.trained_networks import trained_findings

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
BRIGHTER = (1.0, 1000.0)  # at the second, eps leaves a millionth of the departure


def measure(subject: Subject) -> Measured:
    """Measure claim 5."""
    result = Measured()
    # Layers may draw random numbers; those of the check come from the subject's generators.
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(subject.seed)
        sets = sets_used(subject) or sets_claimed(subject)
        for index, scope in enumerate(_scopes(subject)):
            finding = _unchanged(subject, sets, scope)
            result.findings.append(finding)
            result.points.append(Point("matrix", _short(scope), index, max(finding.value, FLOOR)))
        result.findings += [_sign_flip(subject, sets), _vanishing(subject, sets)]
        result.findings += [_eps_predicts(subject, sets), *_network(subject)]
        result.points += _curves(subject, sets)
    result.findings += trained_findings(subject)
    return result


def _scopes(subject: Subject) -> list[StatisticSets]:
    """Return the sets within which a and b are the same; the first are those of the claim."""
    others = ("channel", "example", "batch_channel", "batch")
    return [sets_claimed(subject), *(StatisticSets(scope) for scope in others)]


def _short(scope: StatisticSets) -> str:
    # Without the number of groups: a text or a series is the same for all norms.
    return "each example and group" if scope.scope == "group" else str(scope)


def _groups(scope: StatisticSets) -> str:
    return f"; G = {scope.groups}" if scope.scope == "group" else ""


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
    return sets.unrows(variance_of(sets, x_NCHW), x_NCHW)


def _in_mode(subject: Subject, x_NCHW: Tensor, training: bool) -> nn.Module:
    """Return a new layer; for evaluation it has seen x in training, as stored statistics need."""
    layer = subject.layer()
    if not training:
        subject.apply(layer, x_NCHW)
    return layer.train(training)


def _transformed(
    subject: Subject, sets: StatisticSets, scope: StatisticSets, sign: int, training: bool
) -> tuple[float, float]:
    """Return the largest departure of sign * y(sign * a x + b) from y(x) over random a, b, and the
    largest one that eps allows. a is log-uniform in [1/2, 2] and b uniform in [-2, 2]."""
    x_NCHW, eps = subject.features("invariance", EXAMPLES), eps_of(subject)
    layer = _in_mode(subject, x_NCHW, training)
    y_NCHW = subject.apply(clone(layer), x_NCHW)
    s_NCHW = _variance(sets, x_NCHW)
    measured = predicted = 0.0
    for draw in range(DRAWS):
        g = subject.generator("invariance a b", draw)
        a_NCHW = 2 ** random_per_set(scope, x_NCHW, -1, 1, g)
        b_NCHW = random_per_set(scope, x_NCHW, -2, 2, g)
        after = sign * subject.apply(clone(layer), sign * a_NCHW * x_NCHW + b_NCHW)
        measured = max(measured, departure(sets, y_NCHW, after))
        predicted = max(predicted, eps_predicts(a_NCHW, s_NCHW, eps).max().item())
    return measured, ALLOWED * predicted + ROUNDING


def _by_mode(subject: Subject, training_ok: bool, evaluation_ok: bool) -> str:
    if training_ok == evaluation_ok:
        return HOLDS if training_ok else FAILS
    if not training_ok:
        return conditional("in evaluation mode")
    if _linear_in_evaluation(subject):
        return conditional("training: evaluation uses stored statistics")
    return conditional("in training mode")


def _linear_in_evaluation(subject: Subject) -> bool:
    """Return whether y(x) + y(-x) = 2 y(0) and y(2 x) - y(0) = 2 (y(x) - y(0)): a fixed map."""
    x_NCHW = subject.features("invariance", EXAMPLES)
    layer = _in_mode(subject, x_NCHW, training=False)
    zero, y, minus, double = (
        subject.apply(clone(layer), k * x_NCHW) for k in (0.0, 1.0, -1.0, 2.0)
    )
    return max(rms(y + minus - 2 * zero), rms(double - 2 * y + zero)) < ROUNDING * rms(y)


def _in_both_modes(
    subject: Subject,
    sets: StatisticSets,
    scope: StatisticSets,
    sign: int,
    statement: str,
    text: str,
    expected: str,
) -> Finding:
    training, allowed = _transformed(subject, sets, scope, sign, training=True)
    evaluation, _ = _transformed(subject, sets, scope, sign, training=False)
    interval = "[1/2, 2]" if sign > 0 else "[-2, -1/2]"
    return Finding(
        statement,
        text,
        f"largest relative departure, a in {interval}, b in [-2, 2], {DRAWS} draws, 4 examples",
        expected,
        f"{training:.2g} in training, {evaluation:.2g} in evaluation{_groups(scope)}",
        _by_mode(subject, training <= allowed, evaluation <= allowed),
        value=training,
        tolerance=f"{allowed:.2g}: {ALLOWED} times what eps predicts, in both modes",
    )


def _unchanged(subject: Subject, sets: StatisticSets, scope: StatisticSets) -> Finding:
    text = f"a x + b, a > 0, has the standardized output of x: one a and b for {_short(scope)}"
    claimed = "0, but for eps" if scope.scope == "group" else "not claimed; 0 if invariant"
    return _in_both_modes(subject, sets, scope, 1, f"unchanged_{scope.scope}", text, claimed)


def _sign_flip(subject: Subject, sets: StatisticSets) -> Finding:
    scope = sets_claimed(subject)
    text = f"a < 0 flips the sign of the standardized output: one a and b for {_short(scope)}"
    expected = "0 from the negative output, but for eps"
    return _in_both_modes(subject, sets, scope, -1, "sign_flip", text, expected)


def _vanishing(subject: Subject, sets: StatisticSets) -> Finding:
    """Let a go to 0: the output must go to beta, whatever b is."""
    scope = sets_claimed(subject)
    final, training = _distances_from_beta(subject, sets, scope, training=True)
    _, evaluation = _distances_from_beta(subject, sets, scope, training=False)
    return Finding(
        "vanishing",
        f"as a goes to 0 the output goes to beta: one a and b for {_short(scope)}",
        "largest |output - beta| over the one that eps predicts, a / sqrt(eps) = 0.1, 0.01, 0.001",
        "1",
        f"{training:.3g} in training, {evaluation:.3g} in evaluation;"
        f" |output - beta| = {final:.2g} at the smallest a{_groups(scope)}",
        _by_mode(subject, training <= ALLOWED, evaluation <= ALLOWED),
        value=training,
        tolerance=f"at most {ALLOWED}, in both modes",
    )


def _distances_from_beta(
    subject: Subject, sets: StatisticSets, scope: StatisticSets, training: bool
) -> tuple[float, float]:
    """Return the largest |output - beta| at the smallest a, and over all a its largest ratio to
    a |x - mean| / sqrt(a^2 s + eps)."""
    x_NCHW, eps = subject.features("invariance", EXAMPLES), eps_of(subject)
    layer = _in_mode(subject, x_NCHW, training)
    beta = affine(layer)[1]
    offset = torch.zeros(1, 1, 1, dtype=torch.float64)
    if beta is not None and beta.numel() in (1, subject.channels):
        beta.copy_(subject.normal("invariance beta", *beta.shape))
        offset = beta.reshape(-1, 1, 1)
    rows = sets.rows(x_NCHW)
    centred_NCHW = sets.unrows(rows - rows.mean(dim=1, keepdim=True), x_NCHW)
    b_NCHW = random_per_set(scope, x_NCHW, -2, 2, subject.generator("invariance b"))
    distance, worst = 0.0, 0.0
    for fraction in VANISHING:
        a = fraction * eps**0.5
        predicted = a * centred_NCHW / (a**2 * _variance(sets, x_NCHW) + eps).sqrt()
        y_NCHW = subject.apply(clone(layer), a * x_NCHW + b_NCHW)
        distance = (y_NCHW - offset).abs().max().item()
        worst = max(worst, distance / predicted.abs().max().item())
    return distance, worst


def _eps_predicts(subject: Subject, sets: StatisticSets) -> Finding:
    eps = eps_of(subject)
    x_NCHW = with_equal_sets(subject.features("invariance", EXAMPLES), SMALL_S * eps)
    y_NCHW = subject.apply(subject.layer(), x_NCHW)
    b_NCHW = random_per_set(sets, x_NCHW, -1, 1, subject.generator("invariance b"))
    s_NCHW, ratios = _variance(sets, x_NCHW), []
    for a in (1 / 4, 1 / 2, 2.0, 4.0):
        after = subject.apply(subject.layer(), a * x_NCHW + b_NCHW)
        predicted = eps_predicts(torch.full_like(x_NCHW, a), s_NCHW, eps).max().item()
        ratios.append(departure(sets, y_NCHW, after) / predicted)
    worst = max(ratios, key=lambda ratio: abs(ratio - 1))
    return Finding(
        "eps_predicts",
        "the departure is the one that eps predicts, about eps / (2 s) |1 - 1/a^2|",
        f"departure over sqrt((s + eps) / (s + eps / a^2)) - 1 at s / eps = {SMALL_S:g},"
        " a from 1/4 to 4, one b for each set of values that share a statistic",
        "1",
        f"{min(ratios):.4g} to {max(ratios):.4g}, off by at most {abs(worst - 1):.2g}; {sets}",
        verdict_below(abs(worst - 1), RATIO_TOLERANCE),
        value=worst,
        tolerance=f"1 +- {RATIO_TOLERANCE:g}",
    )


def _curves(subject: Subject, sets: StatisticSets) -> list[Point]:
    """Return the departure over a, of every scope, where s / eps is small."""
    eps, points = eps_of(subject), []
    x_NCHW = with_equal_sets(subject.features("invariance", EXAMPLES), SMALL_S * eps)
    y_NCHW = subject.apply(subject.layer(), x_NCHW)
    s_NCHW, sd = _variance(sets, x_NCHW), (SMALL_S * eps) ** 0.5
    for a in CURVE:
        predicted = eps_predicts(torch.full_like(x_NCHW, a), s_NCHW, eps).max().item()
        points.append(Point("a", "eps predicts", a, max(predicted, FLOOR)))
        for scope in _scopes(subject):
            count = len(scope.rows(x_NCHW))
            scale_S1 = torch.ones(count, 1, dtype=torch.float64)
            scale_S1[::2] = a
            shift = random_per_set(scope, x_NCHW, -sd, sd, subject.generator("invariance b"))
            after = subject.apply(subject.layer(), scope.unrows(scale_S1, x_NCHW) * x_NCHW + shift)
            y = max(departure(sets, y_NCHW, after), FLOOR)
            points.append(Point("a", _short(scope), a, y))
    return points


def _logits(subject: Subject, net: nn.Module, x_NCHW: Tensor) -> Tensor:
    logits_NK = clone(net)(x_NCHW)
    if not torch.isfinite(logits_NK).all():
        raise NormError(f"{subject.label} in resnet8 gave logits that are not finite")
    return logits_NK


def _change(subject: Subject, net: nn.Module, x_NCHW: Tensor, changed_NCHW: Tensor) -> float:
    """Return the change of the logits over their spread between images: a network's logits may
    be nearly the same for all images, and then a small part of them is a large part of the answer.
    """
    before_NK, after_NK = (_logits(subject, net, images) for images in (x_NCHW, changed_NCHW))
    return rms(after_NK - before_NK) / max(rms(before_NK - before_NK.mean(dim=0)), TINY)


def _first_good(ratios: dict[str, float]) -> str:
    """Return the verdict of the first condition ("" for none) with a change within tolerance."""
    good = [condition for condition, ratio in ratios.items() if ratio <= 1]
    return FAILS if not good else conditional(good[0]) if good[0] else HOLDS


def _network(subject: Subject) -> list[Finding]:
    """Scale and shift the images of a whole network, in training mode."""
    net, x_NCHW = subject.network("resnet8").double(), subject.x_NCHW[:EXAMPLES].double()
    return [_network_scale(subject, net, x_NCHW), _network_shift(subject, net, x_NCHW)]


def _network_scale(subject: Subject, net: nn.Module, x_NCHW: Tensor) -> Finding:
    own = torch.tensor([0.5, 2.0, 0.5, 2.0], dtype=torch.float64).view(-1, 1, 1, 1)
    ways = {"": own, "all images of the batch have one a": torch.full_like(own, 2.0)}
    changes, allowed, ratios = {}, {}, {}
    for way, a_N111 in ways.items():
        for bright in BRIGHTER:
            image = bright * x_NCHW
            # The first norm alone sees the scale. Its sets are at least as wide as a channel's.
            s_NCHW = _variance(StatisticSets("channel"), net.conv1(image))
            predicted = rms(eps_predicts(a_N111, s_NCHW, eps_of(subject)))
            allowed[way, bright] = GAIN * predicted + ROUNDING
            changes[way, bright] = _change(subject, net, image, a_N111 * image)
        ratios[way] = max(changes[way, bright] / allowed[way, bright] for bright in BRIGHTER)
    alike = changes[list(ways)[1], 1.0]
    return Finding(
        "network_scale",
        "scaling each image by its own a > 0 leaves the logits of a network without biases alone",
        "change of resnet8's logits over their spread between 4 images, a = 1/2 and 2, training",
        "not claimed; 0, but for eps, if invariant",
        f"{changes['', 1.0]:.2g}; {changes['', BRIGHTER[1]]:.2g} for images 1000 times brighter",
        _first_good(ratios),
        value=changes["", 1.0],
        tolerance=f"{allowed['', 1.0]:.2g} and {allowed['', BRIGHTER[1]]:.2g}:"
        f" {GAIN} times what eps predicts for the first norm",
        note=f"with one a = 2 for all images: {alike:.2g}. The first norm alone sees the scale;"
        f" the factor {GAIN} is for what the layers after it make of its departure",
    )


def _network_shift(subject: Subject, net: nn.Module, x_NCHW: Tensor) -> Finding:
    own = torch.tensor([0.5, -0.5, 1.0, -1.0], dtype=torch.float64).view(-1, 1, 1, 1)
    unpadded, circular = "the first convolution is not padded with zeros", clone(net)
    circular.conv1.padding_mode = "circular"
    ways = {
        "": (net, own),
        unpadded: (circular, own),
        f"{unpadded} and all images have one b": (circular, own[:1]),
    }
    changes = {way: _change(subject, n, x_NCHW, x_NCHW + b) for way, (n, b) in ways.items()}
    zeros, round_, alike = changes.values()
    return Finding(
        "network_shift",
        "shifting each image by its own b leaves the logits of a network without biases alone",
        "change of resnet8's logits over their spread between 4 images, b = +-0.5, +-1, training",
        "not claimed; 0 if invariant",
        f"{zeros:.2g}; {round_:.2g} with circular padding",
        _first_good({way: change / ROUNDING for way, change in changes.items()}),
        value=zeros,
        tolerance=f"{ROUNDING:g}",
        note=f"with circular padding and one b = 1/2 for all images: {alike:.2g}. The convolution"
        " turns one shift of the image into another one for each of its channels",
    )
