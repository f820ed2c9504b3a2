"""Set running statistics anew before a training, where loaded weights hold those of other images.

Shapes: C channels.
"""

from collections.abc import Collection

import torch
from torch import nn

from gnexp.data.device_images import DeviceDataset
from gnexp.measure.bn_statistics import MOST_IMAGES, training_chunks
from gnexp.measure.precise_bn import precise_statistics, running_layers


def frozen_without_statistics(model: nn.Module, fresh: Collection[str]) -> list[str]:
    """Return the layers that never learn statistics, where theirs are among `fresh` tensors."""
    frozen = running_layers(model, frozen=True).keys() - running_layers(model).keys()
    return [layer for layer in sorted(frozen) if f"{layer}.running_mean" in fresh]


def reestimate(
    model: nn.Module, images: DeviceDataset, precision: str, most: int = MOST_IMAGES
) -> None:
    """Set the running statistics, frozen ones too, to those of the training images.

    Of the images that `training_chunks` takes, of at most `most` of them: unaugmented, all at
    once and layer by layer, each layer's input being what the earlier ones make of it in
    evaluation mode by their new statistics. Variances are biased. Nothing else of the model
    changes. Raises ValueError for a model without such a layer, and naming a layer whose
    statistics are not defined.
    Source: He et al. 2015, arXiv:1512.03385, who so set the statistics that they then freeze.
    """
    layers = running_layers(model, frozen=True)
    if not layers:
        raise ValueError(
            "init_statistics=reestimate needs a norm with running statistics, such as norm=bn; use"
            " init_statistics=keep"
        )
    forward, chunks = training_chunks(model, images, precision, most)
    with precise_statistics(model, chunks, forward, frozen=True) as found:
        pass  # afterwards the model is as it was
    with torch.no_grad():
        for name, (mean_C, var_C) in found.items():
            layers[name].running_mean.copy_(mean_C)
            layers[name].running_var.copy_(var_C)
