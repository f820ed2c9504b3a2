"""Test accuracy and loss under other statistics than the running ones that training left behind.

The running statistics, by which a layer normalizes in evaluation mode, give way to those of the
training images, as training augments them ("population_augmented") or not ("population"), of the
test batch ("batch"), or to their own mixture with those of the test image itself ("example").

Shapes: N images, C channels, H, W pixels, K classes, M batches of B images each, m of one pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.data.device_images import DeviceDataset, augmented, normalize
from gnexp.data.seeding import generator
from gnexp.measure.batch_passes import batch_passes
from gnexp.measure.per_example import MOST_COMPANIONS, find_mixing_layer
from gnexp.measure.precise_bn import (
    Forward,
    NoPreciseStatistics,
    dry_pass,
    input_of,
    precise_statistics,
    running_layers,
)
from gnexp.measure.preserve_state import preserve_state
from gnexp.training.evaluate import Scores, evaluate, images_of_a_pass
from gnexp.training.precision import autocast

STATISTICS = ("population_augmented", "population", "batch", "example")
MOST_IMAGES = 2048  # training images that stand for all of them
MOST_BYTES = 2**30  # of activations in the one pass over the population
_TOGETHER_ON_CPU = 16  # images in a pass of several batches: more would not fit in its caches
_LIVE = 3  # activations held at once: a layer's input, its output and a residual branch's


@torch.no_grad()
def other_scores(
    model: nn.Module,
    images: DeviceDataset,
    batch: int,
    precision: str = "fp32",
    *,
    augment: str,
    seed: int,
    plain: Scores | None = None,
) -> dict[str, Scores | None]:
    """Score the test images with other statistics in the layers that have running ones.

    "population_augmented": of the images of `training_chunks`, augmented as `augment` says by draws
    of `seed`, layer by layer, the earlier layers using theirs already. "population": of the same
    images as they are. "batch", "example": see `batch_logits`, `example_statistics`.

    None marks what cannot be said: both "population" ones where `precise_statistics` raises
    NoPreciseStatistics, "example" where a layer is no stock BatchNorm2d, and all where a layer
    without running statistics mixes examples. If none does, all are `plain`, the usual scores.
    Leaves no trace in the model. A diverged model has nan losses.
    """
    if not running_layers(model):
        return dict.fromkeys(STATISTICS, _without_statistics(model, images, precision, plain))
    logits_NK = batch_logits(model, images, batch, precision).float()
    hits = (logits_NK.argmax(dim=1) == images.y_test).double().mean().item()
    loss = F.cross_entropy(logits_NK, images.y_test).item()
    precise = _precise_scores(model, images, precision, "none", seed)
    like_training, example = precise, None
    if augment != "none":
        like_training = _precise_scores(model, images, precision, augment, seed)
    if all(_is_stock(layer) for layer in running_layers(model).values()):
        with example_statistics(model, batch):
            example = evaluate(model, images, precision=precision)
    return {
        "population_augmented": like_training,
        "population": precise,
        "batch": Scores(hits, loss, logits_NK),
        "example": example,
    }


def _without_statistics(
    model: nn.Module, images: DeviceDataset, precision: str, plain: Scores | None
) -> Scores | None:
    """Return the usual scores, computed if not given; None where examples mix all the same."""
    some, dtype = images.x_test[: 1 + MOST_COMPANIONS], next(model.parameters()).dtype
    if find_mixing_layer(model, normalize(some, images.mean, images.std, dtype)) is not None:
        return None
    if plain is None:
        with preserve_state(model):
            plain = evaluate(model, images, precision=precision)
    return plain


def training_chunks(
    model: nn.Module,
    images: DeviceDataset,
    precision: str,
    most: int = MOST_IMAGES,
    *,
    augment: str = "none",
    seed: int = 0,
) -> tuple[Forward, Sequence[Tensor]]:
    """Return a forward pass from uint8 images, and the images that stand for all training images.

    They are 2,048, the same ones always, or all if fewer; or the first `most` of them. augment:
    crop and mirror each as training does, by draws of `seed`. In so many chunks that memory is
    bounded; see `precise_statistics`, which takes both.
    """
    count = len(images.x_train)
    index_N = torch.randperm(count, generator=generator(0, "population"))[:MOST_IMAGES][:most]
    x_NCHW = images.x_train[index_N.to(images.x_train.device)]
    x_NCHW = augmented(x_NCHW, augment, generator(seed, "population augmentation"))
    dtype = next(model.parameters()).dtype

    def forward(x_NCHW: Tensor) -> Tensor:
        with autocast(x_NCHW.device, precision):
            return model(normalize(x_NCHW, images.mean, images.std, dtype))

    _, bytes_of_one = dry_pass(model, forward, x_NCHW[:1])
    fits = _LIVE * bytes_of_one * len(x_NCHW) <= MOST_BYTES
    at_once = max(1, min(images_of_a_pass(x_NCHW), MOST_BYTES // max(1, _LIVE * bytes_of_one)))
    return forward, x_NCHW.split(len(x_NCHW) if fits else at_once)


def _precise_scores(
    model: nn.Module, images: DeviceDataset, precision: str, augment: str, seed: int
) -> Scores | None:
    forward, chunks = training_chunks(model, images, precision, augment=augment, seed=seed)
    try:
        with precise_statistics(model, chunks, forward):
            return evaluate(model, images, precision=precision)
    except NoPreciseStatistics:
        return None


@torch.no_grad()
def batch_logits(
    model: nn.Module,
    images: DeviceDataset,
    batch: int,
    precision: str = "fp32",
) -> Tensor:
    """Return logits (N, K) of the test images, each normalized with its batch's statistics.

    Batches of `batch` images in the fixed test order, the last one filled up from the start; each
    image is scored once. In float64. Leaves no trace in the model.
    """
    count, batches = len(images.x_test), -(-len(images.x_test) // batch)
    index_MB = torch.arange(batches * batch).remainder(count).view(batches, batch)
    on_cpu = images.x_test.device.type == "cpu"
    most = _TOGETHER_ON_CPU if on_cpu else images_of_a_pass(images.x_test)
    shared = most if 2 * batch <= most else 0
    with preserve_state(model):
        passes = batch_passes(model, images, precision, own_statistics=True, most=shared)
        return passes(index_MB).flatten(0, 1)[:count]


def _is_stock(layer: nn.Module) -> bool:
    own = "forward" in vars(layer) or type(layer).forward is not nn.BatchNorm2d.forward
    return isinstance(layer, nn.BatchNorm2d) and not own


@contextmanager
def example_statistics(model: nn.Module, batch: int) -> Iterator[None]:
    """Within the block each image moves the statistics it is normalized by towards its own.

    In a training batch an image made a = 1 / batch of the statistics; so it does here, the running
    ones standing for the rest of the batch:
    mean = a m + (1 - a) running_mean,
    var = a v + (1 - a) running_var + a (1 - a) (m - running_mean)^2,
    of the image's own mean m and biased variance v per channel. At batch 1 that is instance norm,
    what batch norm computed in training; for large batches it is the usual evaluation. In the
    spirit of EvalNorm, without its learned weights. The model is in evaluation mode; afterwards it
    is as it was. All layers with running statistics must be stock BatchNorm2d, of which alone is
    known what they do with them.
    """
    with preserve_state(model), ExitStack() as hooks:
        model.eval()
        for layer in running_layers(model).values():
            mixer = layer.register_forward_hook(_mixer(1 / batch), with_kwargs=True)
            hooks.enter_context(mixer)
        yield


def _mixer(a: float) -> Callable[..., Tensor]:
    """Return a forward hook that gives what batch norm gives with the moved statistics."""

    def hook(layer: nn.BatchNorm2d, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        x_NCHW = input_of(args, kwargs)
        # In the dtype of the statistics: under bf16 the input has three digits.
        var_NC11, mean_NC11 = torch.var_mean(
            x_NCHW.to(layer.running_mean.dtype), dim=(2, 3), correction=0, keepdim=True
        )
        mean, var = mean_NC11, var_NC11
        if a < 1:  # at 1 not even running statistics of nan count
            kept_mean, kept_var = (
                b[:, None, None] for b in (layer.running_mean, layer.running_var)
            )
            mean = a * mean + (1 - a) * kept_mean
            var = a * var + (1 - a) * kept_var + a * (1 - a) * (mean_NC11 - kept_mean).square()
        scale = (var + layer.eps).rsqrt()
        if layer.weight is not None:
            scale = scale * layer.weight[:, None, None]
        shift = -mean * scale
        if layer.bias is not None:
            shift = shift + layer.bias[:, None, None]
        return torch.addcmul(shift, x_NCHW.to(scale.dtype), scale).to(output.dtype)

    return hook
