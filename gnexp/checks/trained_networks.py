"""Trained networks under two changes of their images, contrast and style, for claim 5.

A layer is invariant to one affine map of each of its sets; a network sees an image through a
padded convolution that mixes colours, so that the map of an image is another one for each set, or
none. Measured: small networks of three convolutions, trained on shapes10, whatever images the other
claims use; several seeds, each judged in evaluation mode on test images of its own.

Shapes: N images, C channels, H and W pixels, K classes.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.analysis.statistics import Interval, ratio_interval, t_interval
from gnexp.checks.finding import Finding, Statement
from gnexp.checks.stacked_training import train
from gnexp.checks.subject import Subject, rms
from gnexp.data.synthetic import shapes10
from gnexp.models.blocks import conv, norm_relu
from gnexp.training.lr_schedule import learning_rate

PIXELS = 16  # images are averaged down to this size, for time
TRAIN_IMAGES, TEST_IMAGES = 1536, 500  # the latter of each network
EPOCHS, BATCH, CLASSES = 3, 16, 10
LR, WARMUP = 0.05, 0.1
DRAWS_PER_SEED = 10
MARGIN = 0.05  # of the accuracy above chance, within which it counts as kept
GAIN = 0.3  # of the contrast that is left
MOST_SCALE, MOST_SHIFT = 2.0, 1.0  # of a style
TINY = 1e-300

TRAINED = Statement(
    "trained_{change}",
    "a trained network keeps its accuracy {claim}",
    "{how}; accuracy lost by {n} networks of three convolutions, trained for"
    f" {EPOCHS} epochs of {{images:,}} images of shapes10, {{tests}} test images of its own each",
    expected="not claimed; 0 if invariant",
    measured="{share} of the accuracy above chance lost, {lost} of {clean:.1f} %; logits move by"
    " {moved.mean:.2g} ({moved.lo:.2g} to {moved.hi:.2g}) of their spread",
    tolerance=f"the whole 95 % interval within {100 * MARGIN:g} % of the accuracy above chance",
    low=-MARGIN,
    high=MARGIN,
)
CHANGES = {
    "contrast": {
        "claim": "as contrast is lowered about each image's own mean, one affine map of the image",
        "how": f"contrast lowered to {100 * GAIN:g} % about the mean of all values of an image",
    },
    "style": {
        "claim": "in another style, an affine map of its own for each image and colour",
        "how": f"a x + b for each image and colour, a in [1/{MOST_SCALE:g}, {MOST_SCALE:g}], b in"
        f" [-{MOST_SHIFT:g}, {MOST_SHIFT:g}] of normalized images",
    },
}


def trained_findings(subject: Subject) -> Iterator[Finding]:
    """Train networks and measure what contrast and style change; a row for each of CHANGES."""
    seeds = range(max(2, subject.draws // DRAWS_PER_SEED))
    x_NCHW, y_N, tests = _shapes10(len(seeds))
    how = {"classes": CLASSES, "initialization": "he"}  # fixup is for residual branches
    nets = [subject.network("a small network", small_network, seed=seed, **how) for seed in seeds]

    def updates(seed: int) -> Iterator[tuple[Tensor, float]]:
        total = EPOCHS * len(x_NCHW)
        for epoch in range(EPOCHS):
            g = subject.generator("trained", seed, epoch)
            order = torch.randperm(len(x_NCHW), generator=g)
            for first in range(0, len(x_NCHW), BATCH):
                seen = epoch * len(x_NCHW) + first
                rate = learning_rate(seen, total, LR, WARMUP, "cosine")
                yield order[first : first + BATCH], rate

    nets, _ = train(nets, x_NCHW, y_N, BATCH, updates)
    for name in CHANGES:
        found = [
            _outcome(net.eval(), x, changed(name, subject, x, seed), y)
            for seed, (net, (x, y)) in enumerate(zip(nets, tests))
        ]
        yield _finding(name, found)


def changed(change: str, subject: Subject, x_NCHW: Tensor, seed: int) -> Tensor:
    """Return images in lower contrast, or in the style that this seed draws.

    Contrast: m + GAIN (x - m), m the mean of all values of an image: one affine map of each. Style:
    a_c x + b_c, own for each image and channel: a log-uniform in [1/2, 2], b in [-1, 1]; what Huang
    & Belongie 2017, arXiv:1703.06868, call an image's style: channels' mean and spread.
    """
    if change == "contrast":
        mean = x_NCHW.mean((1, 2, 3), keepdim=True)
        return mean + GAIN * (x_NCHW - mean)
    g = subject.generator("trained style", seed)
    a_NC11, b_NC11 = 2 * torch.rand(2, *x_NCHW.shape[:2], 1, 1, generator=g) - 1
    return MOST_SCALE**a_NC11 * x_NCHW + MOST_SHIFT * b_NC11


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


@torch.no_grad()
def _outcome(
    net: nn.Module, x_NCHW: Tensor, changed_NCHW: Tensor, y_N: Tensor
) -> tuple[float, float, float]:
    """Return accuracy before and after, and the change of the logits over their spread."""
    before_NK, after_NK = net(x_NCHW), net(changed_NCHW)
    accuracies = [(z.argmax(1) == y_N).double().mean().item() for z in (before_NK, after_NK)]
    spread = rms(before_NK - before_NK.mean(dim=0))
    return *accuracies, rms(after_NK - before_NK) / max(spread, TINY)


def _finding(change: str, found: list[tuple[float, float, float]]) -> Finding:
    before, after, moves = zip(*found)
    lost = [b - a for b, a in zip(before, after)]
    share = ratio_interval([(each, b - 1 / CLASSES) for each, b in zip(lost, before)])
    return TRAINED.found(
        share,
        **{"change": change, "images": TRAIN_IMAGES, "tests": TEST_IMAGES},
        **{"share": _percent(share, "%"), "lost": _percent(t_interval(lost), "points")},
        **{"clean": 100 * t_interval(before).mean, "moved": t_interval(moves), **CHANGES[change]},
        note="" if math.isfinite(share.lo) else "clean accuracy is not decidedly above chance",
    )


def _percent(interval: Interval, unit: str) -> str:
    lo, hi = interval.lo, interval.hi
    bounds = f" ({100 * lo:.1f} to {100 * hi:.1f})" if math.isfinite(lo) else " (no interval)"
    return f"{100 * interval.mean:.1f} {unit}{bounds}"
