"""Evaluation with other test batches: other sizes and other compositions.

An image's answer may depend on the images it is evaluated with: through statistics of the test
batch, or not at all. Here the same test images are evaluated in batches of several sizes and
compositions.

Shapes: N test images, K classes, M batches of B images, C channels, H, W pixels.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.data.device_images import DeviceDataset
from gnexp.data.seeding import generator
from gnexp.measure.batch_passes import Passes, batch_passes
from gnexp.measure.precise_bn import running_layers
from gnexp.measure.preserve_state import preserve_state
from gnexp.training.evaluate import images_of_a_pass
from gnexp.training.precision import matrix_precision

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
PASS = 64  # images in a pass that holds several batches; larger ones fall out of a CPU's cache
COMPOSITIONS = ("iid", "skewed", "one_class", "label_shift", "label_shift_extreme")
RATIO = 100  # of the last class's prior to the first's in "label_shift_extreme"


class Batches(NamedTuple):
    """The images of each batch, and the weight of each.

    index_MB: of the images, int64. weight_MB: float64, of the answer that an image gets in that
    place, relative to the others; 0 marks an image that only fills its batch.
    """

    index_MB: Tensor
    weight_MB: Tensor


def measure_batches(
    model: nn.Module,
    images: DeviceDataset,
    sizes: Sequence[int] = SIZES,
    *,
    seed: int = 0,
    limit: int | None = None,
    precision: str = "fp32",
) -> list[dict]:
    """Return rows {statistics, composition, at_batch, n, accuracy, loss, expected, logit_change}.

    statistics: "running", evaluation mode as it is; "batch", each batch's own, see `batch_passes`;
    the same numbers for a model without running statistics. composition, by `compose`: "iid",
    "skewed", "one_class" at every size, each image counted once; "label_shift" and
    "label_shift_extreme" under "batch" at every size, under "running" at the usual one alone. The
    usual evaluation is "running" in the test order, 250 images of 32x32 at a time. For the numbers
    see `_rows`.

    seed: of the draws. limit: only the first so many test images, which lie in a fixed random
    order. Sizes at which a layer has a single value per channel, which PyTorch refuses, are left
    out of "batch". Leaves no trace in the model.
    """
    y_N, sizes = images.y_test[:limit].cpu(), sorted(set(sizes))
    with preserve_state(model), torch.no_grad(), matrix_precision(precision):
        model.eval()
        passes = batch_passes(model, images, precision)
        at_once = images_of_a_pass(images.x_test)
        parts_N = torch.arange(len(y_N)).split(at_once)
        usual_NK = torch.cat([passes(part_N[None])[0].cpu() for part_N in parts_N])
        once, shifts = [*product(COMPOSITIONS[:3], sizes)], COMPOSITIONS[3:]
        answers, plan = _answers(y_N, seed, passes), [*once, *product(shifts, [at_once])]
        rows = list(_rows("running", plan, y_N, answers, usual_NK))
        if running_layers(model):
            passes = batch_passes(model, images, precision, own_statistics=True, most=PASS)
            answers = _answers(y_N, seed, passes)
        plan = [*once, *product(shifts, sizes)]
        return rows + list(_rows("batch", plan, y_N, answers, usual_NK))


def compose(composition: str, y_N: Tensor, size: int, seed: int) -> Batches:
    """Return batches of `size` images with labels y_N (on the CPU), from (seed, composition).

    "iid": a fixed random order. "one_class": each batch holds a single class. "skewed": size // 2
    images of each batch are of one class, the rest as in iid; which half of a class goes where is
    drawn. In these three every image counts once; places that are left over are filled with
    images, again from the start, that do not count, so a batch larger than what it is filled from
    holds images several times.

    "label_shift": classes are drawn with priors proportional to 1, 2, ..., K in the order of their
    labels, "label_shift_extreme": with priors that grow geometrically to RATIO times the first;
    both as evenly as whole images allow, then shuffled into batches. All places, N rounded up to
    whole batches, count: a class as much as its prior, in equal parts. Images of a class come in a
    random order, again from the start where there are too few. Classes without images are left out.
    """
    order_N = torch.randperm(len(y_N), generator=generator(seed, "batch shifts"))
    members = [order_N[y_N[order_N] == label] for label in y_N.unique()]
    if composition == "iid":
        return _filled([order_N], size)
    if composition == "one_class":
        return _filled(members, size)
    if composition == "skewed":
        return _skewed(order_N, members, size)
    step = torch.arange(len(members), dtype=torch.float64)
    priors_K = {
        "label_shift": step + 1,
        "label_shift_extreme": RATIO ** (step / max(1, len(members) - 1)),
    }[composition]
    places = -(-len(y_N) // size) * size
    shuffled = torch.randperm(places, generator=generator(seed, "batch shift draws", size))
    return _label_shift(members, priors_K / priors_K.sum(), shuffled.view(-1, size))


def _filled(pools: Sequence[Tensor], size: int, shares: Sequence[int] | None = None) -> Batches:
    """Return batches that are filled from one pool each: the first `shares` of a pool count (all if
    None), then come others, or the same again from the start, that do not."""
    index, weight = [], []
    for pool, share in zip(pools, shares or map(len, pools), strict=True):
        place_MB = torch.arange(-(-share // size) * size).view(-1, size)
        index.append(pool[place_MB % len(pool)])
        weight.append((place_MB < share).double())
    return Batches(torch.cat(index), torch.cat(weight))


def _skewed(order_N: Tensor, members: Sequence[Tensor], size: int) -> Batches:
    half = size // 2
    if not half:
        return _filled([order_N], size)
    # Rounded up, so that there are batches enough for all others to find a place in.
    shares = [-(-len(own) * half // size) for own in members]
    leading = _filled(members, half, shares)
    rest = torch.ones(len(order_N), dtype=torch.bool)
    rest[torch.cat([own[:share] for own, share in zip(members, shares, strict=True)])] = False
    pool = order_N[rest[order_N]]
    place_MB = torch.arange(len(leading.index_MB) * (size - half)).view(-1, size - half)
    companions = pool if len(pool) else order_N
    others = companions[place_MB % len(companions)], (place_MB < len(pool)).double()
    return Batches(*(torch.cat(pair, dim=1) for pair in zip(leading, others)))


def _label_shift(members: Sequence[Tensor], priors_K: Tensor, place_MB: Tensor) -> Batches:
    """Return batches whose places, numbered at random, are dealt to the classes by their priors."""
    at_T = (torch.arange(place_MB.numel(), dtype=torch.float64) + 0.5) / place_MB.numel()
    class_T = torch.bucketize(at_T, priors_K.cumsum(dim=0)).clamp(max=len(members) - 1)
    counts = class_T.bincount(minlength=len(members))
    index_T = torch.cat(
        [own[torch.arange(count) % len(own)] for own, count in zip(members, counts, strict=True)]
    )
    return Batches(index_T[place_MB], (priors_K[class_T] / counts[class_T])[place_MB])


class Answers(NamedTuple):
    """The answers that count: their images, weights and logits."""

    index_T: Tensor
    weight_T: Tensor
    logits_TK: Tensor


def _answers(y_N: Tensor, seed: int, passes: Passes) -> Callable[[str, int], Answers | None]:
    """Return what gives the answers of a composition at a size, evaluated once.

    None where a layer refuses batches of this size.
    """

    @functools.cache
    def answers(composition: str, size: int) -> Answers | None:
        index_MB, weight_MB = compose(composition, y_N, size, seed)
        counted = index_MB[weight_MB > 0], weight_MB[weight_MB > 0]
        if size == 1 and composition != "iid":  # one image has one batch
            return Answers(*counted, _by_image(answers("iid", 1))[counted[0]])
        try:
            return Answers(*counted, passes(index_MB).cpu()[weight_MB > 0])
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            return None

    return answers


def _by_image(iid: Answers) -> Tensor:
    """Return the logits (N, K) in the order of the images, each of which counts once."""
    return torch.empty_like(iid.logits_TK).index_copy_(0, iid.index_T, iid.logits_TK)


def _rows(
    statistics: str,
    plan: Iterable[tuple[str, int]],
    y_N: Tensor,
    answers: Callable[[str, int], Answers | None],
    usual_NK: Tensor,
) -> Iterator[dict]:
    """Yield the row of each (composition, size) of the plan under one kind of statistics.

    n: answers that count; accuracy in [0, 1], loss in nats, both weighted as the composition says.
    expected: the accuracy if only the size of a batch mattered, not the other images in it: that
    of the same images, with the same weights, in "iid" batches of this size (under label shift: the
    class accuracies on the drawn images, reweighted by the priors, with no sampling error between
    the two). For "iid" itself: that of the usual evaluation. logit_change: the largest change of a
    logit of a counted answer against the usual evaluation, over the rms of its logits. Where
    examples do not mix it is rounding, below 1e-5 in float32: a convolution may round differently
    at another batch size.
    """
    for composition, size in plan:
        iid = answers("iid", size)
        if iid is None:
            continue
        index_T, weight_T, logits_TK = answers(composition, size)
        y_T = y_N[index_T]
        expected_NK = usual_NK if composition == "iid" else _by_image(iid)
        hit_N = expected_NK.argmax(dim=1) == y_N
        loss_T = F.cross_entropy(logits_TK, y_T, reduction="none")
        change = (logits_TK - usual_NK[index_T]).abs().amax() / usual_NK.square().mean().sqrt()
        yield {
            "statistics": statistics,
            "composition": composition,
            "at_batch": size,
            "n": len(index_T),
            "accuracy": _mean(logits_TK.argmax(dim=1) == y_T, weight_T),
            "loss": _mean(loss_T, weight_T),
            "expected": _mean(hit_N[index_T], weight_T),
            "logit_change": change.item(),
        }


def _mean(value_T: Tensor, weight_T: Tensor) -> float:
    return ((value_T * weight_T).sum() / weight_T.sum()).item()
