"""Trained networks under two changes of their images, contrast and style, for claim 5.

A layer is invariant to one affine map of each of its sets; a network sees an image through a
padded convolution that mixes colours, so that the map of an image is another one for each set, or
none. Measured: small networks of three convolutions, trained on shapes10, whatever images the other
claims use; several seeds, each judged in evaluation mode on test images of its own.

Shapes: N images, C channels, H and W pixels, K classes; R networks.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.analysis.statistics import Interval, ratio_interval, t_interval
from gnexp.checks.finding import Finding, inside
from gnexp.checks.first_updates import sharing_a_step
from gnexp.checks.subject import WIDTHS, NormError, Subject, rms
from gnexp.data.seeding import derived_seed, generator
from gnexp.data.synthetic import shapes10
from gnexp.models.blocks import conv, norm_relu
from gnexp.models.initialization import start
from gnexp.training.lr_schedule import learning_rate
from gnexp.training.stacked_step import StackedStep

PIXELS = 16  # images are averaged down to this size, for time
TRAIN_IMAGES, TEST_IMAGES = 1536, 500  # the latter of each network
EPOCHS, BATCH, CLASSES = 3, 16, 10
LR, MOMENTUM, WEIGHT_DECAY, WARMUP = 0.05, 0.9, 5e-4, 0.1
DRAWS_PER_SEED = 10
MARGIN = 0.05  # of the accuracy above chance, within which it counts as kept
GAIN = 0.3  # of the contrast that is left
MOST_SCALE, MOST_SHIFT = 2.0, 1.0  # of a style
TINY = 1e-300

Change = Callable[[Subject, Tensor, int], Tensor]


def lower_contrast(subject: Subject, x_NCHW: Tensor, seed: int) -> Tensor:
    """Return m + GAIN (x - m), m the mean of all values of an image: one affine map of each."""
    mean = x_NCHW.mean((1, 2, 3), keepdim=True)
    return mean + GAIN * (x_NCHW - mean)


def another_style(subject: Subject, x_NCHW: Tensor, seed: int) -> Tensor:
    """Return a_c x + b_c, own for each image and channel: a log-uniform in [1/2, 2], b in [-1, 1].

    What Huang & Belongie 2017, arXiv:1703.06868, call an image's style: channels' mean and spread.
    """
    g = subject.generator("trained style", seed)
    a_NC11, b_NC11 = 2 * torch.rand(2, *x_NCHW.shape[:2], 1, 1, generator=g) - 1
    return MOST_SCALE**a_NC11 * x_NCHW + MOST_SHIFT * b_NC11


CHANGES: dict[str, tuple[Change, str, str]] = {
    "trained_contrast": (
        lower_contrast,
        "a trained network keeps its accuracy as contrast is lowered about each image's own mean,"
        " one affine map of the image",
        f"contrast lowered to {100 * GAIN:g} % about the mean of all values of an image",
    ),
    "trained_style": (
        another_style,
        "a trained network keeps its accuracy in another style, an affine map of its own for each"
        " image and colour",
        f"a x + b for each image and colour, a in [1/{MOST_SCALE:g}, {MOST_SCALE:g}], b in"
        f" [-{MOST_SHIFT:g}, {MOST_SHIFT:g}] of normalized images",
    ),
}


def trained_findings(subject: Subject) -> list[Finding]:
    """Train networks and measure what contrast and style change; a row for each of CHANGES."""
    seeds = max(2, subject.draws // DRAWS_PER_SEED)
    x_NCHW, y_N, tests = _shapes10(seeds)
    nets = _trained(subject, x_NCHW, y_N, seeds)
    rows = []
    for statement, (change, text, what) in CHANGES.items():
        found = [
            _outcome(net, x, change(subject, x, seed), y)
            for seed, (net, (x, y)) in enumerate(zip(nets, tests))
        ]
        how = (
            f"{what}; accuracy lost by {seeds} networks of three convolutions, trained for {EPOCHS}"
            f" epochs of {len(y_N):,} images of shapes10, {TEST_IMAGES} test images of its own each"
        )
        rows.append(_finding(statement, text, how, found))
    return rows


def _shapes10(seeds: int) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
    """Return normalized training images (N, 3, PIXELS, PIXELS), labels, and each network's test."""
    drawn = shapes10(TRAIN_IMAGES, seeds * TEST_IMAGES)
    x, y, x_test, y_test = (torch.from_numpy(values) for values in drawn)
    x, x_test = (F.avg_pool2d(each / 255, each.shape[-1] // PIXELS) for each in (x, x_test))
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    parts = ((x_test - mean) / std).split(TEST_IMAGES), y_test.split(TEST_IMAGES)
    return (x - mean) / std, y, list(zip(*parts))


def small_network(norm: Callable[[int], nn.Module], classes: int, width: int) -> nn.Module:
    """Return three convolutions, each with a norm and a ReLU, pooling and a linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in (
        (3, width, 1),
        (width, 2 * width, 2),
        (2 * width, 4 * width, 2),
    ):
        layers += [conv(inputs, outputs, 3, stride), *norm_relu(norm, outputs)]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, classes)]
    return nn.Sequential(*layers, *pooled)


def _network(subject: Subject, seed: int) -> nn.Module:
    for width in WIDTHS:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(seed, "build"))
            try:
                net = small_network(subject.build, CLASSES, width)
                break
            except Exception as error:
                if width == WIDTHS[-1]:
                    raise NormError(f"{subject.label} in a small network: {error}") from error
    # Fixup is for residual branches, of which there are none here.
    start(net, generator(seed, "initialization"), **{**subject.start, "initialization": "he"})
    return net.train()


def _trained(subject: Subject, x_NCHW: Tensor, y_N: Tensor, seeds: int) -> list[nn.Module]:
    """Return networks in evaluation mode, trained by the protocol, but shorter."""
    nets, trained = [_network(subject, seed) for seed in range(seeds)], []
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            for part in sharing_a_step(nets, tuple(x_NCHW.shape[1:])):
                step = StackedStep([nets[r] for r in part], BATCH, MOMENTUM, WEIGHT_DECAY)
                _train(subject, step, part, x_NCHW, y_N)
                trained += [step.model(place).eval() for place in range(len(part))]
    except Exception as error:
        raise NormError(f"training raised {type(error).__name__}: {error}") from error
    return trained


def _train(subject: Subject, step: StackedStep, part: range, x_NCHW: Tensor, y_N: Tensor) -> None:
    total = EPOCHS * len(x_NCHW)
    for epoch in range(EPOCHS):
        orders = [
            torch.randperm(len(x_NCHW), generator=subject.generator("trained", seed, epoch))
            for seed in part
        ]
        for first in range(0, len(x_NCHW), BATCH):
            chosen = [order[first : first + BATCH] for order in orders]
            x = torch.cat([x_NCHW[index] for index in chosen], dim=1).contiguous()
            y_NR = torch.stack([y_N[index] for index in chosen], dim=1)
            seen = epoch * len(x_NCHW) + first
            rate = learning_rate(seen, total, LR, WARMUP, "cosine")
            step.update(x, y_NR, [rate] * len(part))


@torch.no_grad()
def _outcome(
    net: nn.Module, x_NCHW: Tensor, changed_NCHW: Tensor, y_N: Tensor
) -> tuple[float, float, float]:
    """Return accuracy before and after, and the change of the logits over their spread."""
    before_NK, after_NK = net(x_NCHW), net(changed_NCHW)
    accuracies = [(z.argmax(1) == y_N).double().mean().item() for z in (before_NK, after_NK)]
    spread = rms(before_NK - before_NK.mean(dim=0))
    return *accuracies, rms(after_NK - before_NK) / max(spread, TINY)


def _finding(
    statement: str, text: str, what: str, found: list[tuple[float, float, float]]
) -> Finding:
    lost = t_interval([before - after for before, after, _ in found])
    share = ratio_interval([(before - after, before - 1 / CLASSES) for before, after, _ in found])
    moved = t_interval([change for *_, change in found])
    clean = t_interval([before for before, *_ in found])
    return Finding(
        statement,
        text,
        what,
        "not claimed; 0 if invariant",
        f"{_percent(share, '%')} of the accuracy above chance lost, {_percent(lost, 'points')} of"
        f" {100 * clean.mean:.1f} %; logits move by {moved.mean:.2g} ({moved.lo:.2g} to"
        f" {moved.hi:.2g}) of their spread",
        inside(share.lo, share.hi, -MARGIN, MARGIN),
        *(share.mean, share.lo, share.hi),
        tolerance=f"the whole 95 % interval within {100 * MARGIN:g} % of the accuracy above chance",
        n=len(found),
        note="" if math.isfinite(share.lo) else "clean accuracy is not decidedly above chance",
    )


def _percent(interval: Interval, unit: str) -> str:
    lo, hi = interval.lo, interval.hi
    bounds = f" ({100 * lo:.1f} to {100 * hi:.1f})" if math.isfinite(lo) else " (no interval)"
    return f"{100 * interval.mean:.1f} {unit}{bounds}"
