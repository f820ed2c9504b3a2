"""Test accuracy and loss in evaluation mode.

Axes: N examples, C channels, H, W pixels, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.data.device_images import DeviceDataset, normalize
from gnexp.training.precision import autocast

CHUNK = 250  # test images of 32x32 pixels in one forward pass, fewer of larger ones


class Scores(NamedTuple):
    """Results on a test set: accuracy in [0, 1], loss in nats, logits (N, K) float32."""

    accuracy: float
    loss: float
    logits_NK: Tensor


@torch.no_grad()
def evaluate(model: nn.Module, images: DeviceDataset, *, precision: str = "fp32") -> Scores:
    """Score the model on the test images in evaluation mode; its mode is restored."""
    was_training = model.training
    model.eval()
    dtype = next(model.parameters()).dtype
    parts = []
    for x in images.x_test.split(images_of_a_pass(images.x_test)):
        with autocast(x.device, precision):
            parts.append(model(normalize(x, images.mean, images.std, dtype)))
    model.train(was_training)
    logits_NK = torch.cat(parts).float()
    hits = (logits_NK.argmax(dim=1) == images.y_test).double().mean()
    loss = F.cross_entropy(logits_NK, images.y_test)
    return Scores(hits.item(), loss.item(), logits_NK)


def images_of_a_pass(x_NCHW: Tensor) -> int:
    """Return how many of these images pass at once."""
    return max(1, CHUNK * 32 * 32 // max(32 * 32, x_NCHW.shape[-2] * x_NCHW.shape[-1]))
