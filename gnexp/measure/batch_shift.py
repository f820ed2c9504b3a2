"""Evaluation with other test batches: other sizes and other compositions.

An image's answer may depend on the images it is evaluated with: through statistics of the test
batch, or not at all. Here the same test images are evaluated in batches of several sizes and
compositions.

Shapes: N test images, K classes, M batches of B images, C channels, H, W pixels.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.config.unknown import unknown
from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.data.seeding import generator
from gnexp.measure.bn_statistics import batches_together
from gnexp.measure.precise_bn import running_layers
from gnexp.measure.preserve_state import preserve_state
from gnexp.training.evaluate import images_of_a_pass
from gnexp.training.precision import autocast, matrix_precision

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

    statistics: "running", evaluation mode as it is; "batch", layers with running statistics (see
    `running_layers`) in training mode instead, so that they normalize by the test batch; nothing is
    updated. composition, by `compose`: "iid", "skewed", "one_class" at every size, each image
    counted once; "label_shift" and "label_shift_extreme" under "batch" at every size, under
    "running" at the usual one alone. n: answers that count; accuracy in [0, 1], loss in nats, both
    weighted as the composition says. The usual evaluation, as reported for a run, is "running" in
    the test order, 250 images at a time (fewer of more than 32x32 pixels).

    expected: the accuracy if only the size of a batch mattered, not whom an image meets in it: that
    of the same images, with the same weights, in "iid" batches of this size under these statistics
    (under label shift: the class accuracies on the drawn images, reweighted by the priors, with no
    sampling error between the two). For "iid" itself: that of the usual evaluation.
    logit_change: the largest change of a logit of a counted answer against the usual evaluation,
    over the rms of its logits. Where examples do not mix it is rounding, below 1e-5 in float32: a
    convolution may round differently at another batch size.

    seed: of the draws. limit: only the first so many test images, which lie in a fixed random
    order. A model without running statistics has the same numbers under both. Rows of statistics
    "batch" at a size at which a layer has a single value per channel, which PyTorch refuses to
    normalize, are left out. Leaves no trace in the model. Raises ValueError for sizes or a limit
    below 1.
    """
    for key, values in (("sizes", sizes), ("limit", [] if limit is None else [limit])):
        if any(value < 1 for value in values):
            raise ValueError(f"{key}={min(values)} must be at least 1")
    y_N = images.y_test[:limit].cpu()
    sizes = sorted(set(sizes))
    with preserve_state(model), torch.no_grad(), matrix_precision(precision):
        model.eval()
        evaluated = _Answers(y_N, seed, _passes(model, images, precision))
        at_once = images_of_a_pass(images.x_test)
        usual_NK = evaluated.in_order(at_once)
        rows = list(evaluated.rows("running", sizes, [at_once], usual_NK))
        if layers := list(running_layers(model).values()):
            passes = _passes_of_batch_statistics(model, layers, images, precision)
            evaluated = _Answers(y_N, seed, passes)
        return rows + list(evaluated.rows("batch", sizes, sizes, usual_NK))


# Who meets whom


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
    Raises ValueError for another composition.
    """
    if composition not in COMPOSITIONS:
        sentence = f"composition={composition} is unknown"
        raise ValueError(unknown(sentence, composition, COMPOSITIONS))
    order_N = torch.randperm(len(y_N), generator=generator(seed, "batch shifts"))
    members = [order_N[y_N[order_N] == label] for label in y_N.unique()]
    if composition == "iid":
        return _in_order([order_N], size)
    if composition == "one_class":
        return _in_order(members, size)
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


def _in_order(pools: Iterable[Tensor], size: int) -> Batches:
    """Return batches that are filled from one pool each and count every image once."""
    index, weight = [], []
    for pool in pools:
        place_MB = torch.arange(-(-len(pool) // size) * size).view(-1, size)
        index.append(pool[place_MB % len(pool)])
        weight.append((place_MB < len(pool)).double())
    return Batches(torch.cat(index), torch.cat(weight))


def _skewed(order_N: Tensor, members: Sequence[Tensor], size: int) -> Batches:
    half = size // 2
    if not half:
        return _in_order([order_N], size)
    # Rounded up, so that there are batches enough for all others to find a place in.
    shares = [-(-len(own) * half // size) for own in members]
    leading = _leading(members, shares, half)
    rest = torch.ones(len(order_N), dtype=torch.bool)
    rest[torch.cat([own[:share] for own, share in zip(members, shares, strict=True)])] = False
    pool = order_N[rest[order_N]]
    place_MB = torch.arange(len(leading.index_MB) * (size - half)).view(-1, size - half)
    companions = pool if len(pool) else order_N
    index_MB = companions[place_MB % len(companions)]
    weight_MB = (place_MB < len(pool)).double()
    return Batches(
        torch.cat([leading.index_MB, index_MB], dim=1),
        torch.cat([leading.weight_MB, weight_MB], dim=1),
    )


def _leading(members: Sequence[Tensor], shares: Sequence[int], half: int) -> Batches:
    """Return the halves of one class: the first `shares` of each class count, the others fill."""
    index, weight = [], []
    for own, share in zip(members, shares, strict=True):
        place_MB = torch.arange(-(-share // half) * half).view(-1, half)
        index.append(own[place_MB % len(own)])
        weight.append((place_MB < share).double())
    return Batches(torch.cat(index), torch.cat(weight))


def _label_shift(members: Sequence[Tensor], priors_K: Tensor, place_MB: Tensor) -> Batches:
    """Return batches whose places, numbered at random, are dealt to the classes by their priors."""
    at_T = (torch.arange(place_MB.numel(), dtype=torch.float64) + 0.5) / place_MB.numel()
    class_T = torch.bucketize(at_T, priors_K.cumsum(dim=0)).clamp(max=len(members) - 1)
    counts = class_T.bincount(minlength=len(members))
    index_T = torch.cat(
        [own[torch.arange(count) % len(own)] for own, count in zip(members, counts, strict=True)]
    )
    return Batches(index_T[place_MB], (priors_K[class_T] / counts[class_T])[place_MB])


# Their answers

Passes = Callable[[Tensor], Tensor]  # index_MB -> logits (M, B, K)


def _passes(
    model: nn.Module, images: DeviceDataset, precision: str, stacked: nn.Module | None = None
) -> Passes:
    """Return what evaluates batches of test images, one after the other or, stacked, several."""
    dtype, device = next(model.parameters()).dtype, images.x_test.device

    def passes(index_MB: Tensor) -> Tensor:
        parts = []
        together = max(1, PASS // index_MB.shape[1]) if stacked else 1
        for index_mB in index_MB.to(device).split(together):
            order_Bm = index_mB.T  # image n of a pass belongs to batch n % m
            if stacked:
                stacked.net.set_chunks(len(index_mB))
            x_NCHW = normalize(images.x_test[order_Bm.flatten()], images.mean, images.std, dtype)
            with autocast(device, precision):
                logits_NK = (stacked or model)(x_NCHW)
            parts.append(logits_NK.unflatten(0, order_Bm.shape).transpose(0, 1))
        return torch.cat(parts).double().cpu()

    return passes


def _passes_of_batch_statistics(
    model: nn.Module, layers: Sequence[nn.Module], images: DeviceDataset, precision: str
) -> Passes:
    """Return what evaluates batches by their own statistics; the model's mode is changed."""
    stacked = batches_together(model, images.x_test.shape[1:])
    for layer in layers:
        layer.train()
    if stacked:
        return _passes(model, images, precision, stacked)
    one_by_one = _passes(model, images, precision)
    buffers = [(layer, *item) for layer in layers for item in layer._buffers.items()]
    kept = [(layer, name, b, b.clone()) for layer, name, b in buffers if b is not None]

    def passes(index_MB: Tensor) -> Tensor:
        parts = []
        for index_1B in index_MB.split(1):
            parts.append(one_by_one(index_1B))
            # A layer may use its running statistics in training mode too; it shall find the same.
            for layer, name, buffer, value in kept:
                layer._buffers[name] = buffer.copy_(value)
        return torch.cat(parts)

    return passes


class _Answers:
    """The logits that batches of test images get, each composition evaluated once."""

    def __init__(self, y_N: Tensor, seed: int, passes: Passes) -> None:
        self.y_N, self.seed, self.passes = y_N, seed, passes
        self._known: dict[tuple[str, int], tuple[Batches, Tensor] | None] = {}
        self._by_image: dict[int, Tensor | None] = {}

    def in_order(self, size: int) -> Tensor:
        """Return logits (N, K) in batches in the test order, the last one smaller."""
        parts_N = torch.arange(len(self.y_N)).split(size)
        return torch.cat([self.passes(part_N[None])[0] for part_N in parts_N])

    def rows(
        self,
        statistics: str,
        sizes: Sequence[int],
        shifted_sizes: Sequence[int],
        usual_NK: Tensor,
    ) -> Iterator[dict]:
        """Yield the rows of one kind of statistics."""
        usual_hit_N = usual_NK.argmax(dim=1) == self.y_N
        plan = [(c, size) for c in COMPOSITIONS[:3] for size in sizes]
        plan += [(c, size) for c in COMPOSITIONS[3:] for size in shifted_sizes]
        for composition, size in plan:
            iid_NK = self.iid(size)
            if iid_NK is None:
                continue
            batches, logits_MBK = self.of(composition, size)
            counted_MB = batches.weight_MB > 0
            index_T, weight_T = batches.index_MB[counted_MB], batches.weight_MB[counted_MB]
            logits_TK = logits_MBK[counted_MB]
            y_T = self.y_N[index_T]
            hit_N = usual_hit_N if composition == "iid" else iid_NK.argmax(dim=1) == self.y_N
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

    def iid(self, size: int) -> Tensor | None:
        """Return logits (N, K) in iid batches; None where a layer refuses batches of this size."""
        if size not in self._by_image:
            try:
                batches, logits_MBK = self.of("iid", size)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                self._by_image[size] = None
            else:
                counted_MB = batches.weight_MB > 0
                logits_NK = torch.empty(len(self.y_N), logits_MBK.shape[2], dtype=torch.float64)
                logits_NK[batches.index_MB[counted_MB]] = logits_MBK[counted_MB]
                self._by_image[size] = logits_NK
        return self._by_image[size]

    def of(self, composition: str, size: int) -> tuple[Batches, Tensor]:
        """Return the batches of a composition and their logits (M, B, K)."""
        if (composition, size) not in self._known:
            batches = compose(composition, self.y_N, size, self.seed)
            if size == 1 and composition != "iid":  # one image has one batch
                logits_MBK = self.iid(1)[batches.index_MB]
            else:
                logits_MBK = self.passes(batches.index_MB)
            self._known[composition, size] = batches, logits_MBK
        return self._known[composition, size]


def _mean(value_T: Tensor, weight_T: Tensor) -> float:
    return ((value_T * weight_T).sum() / weight_T.sum()).item()
