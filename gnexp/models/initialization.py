"""Draw the random initial weights of a network.

Without standardization the signal of a residual network grows with every block, and so does what an
update changes. Fixup starts each branch at zero and scales it so that the change does not depend on
the depth.
"""

from collections.abc import Collection

import torch
from torch import nn

from gnexp.models.blocks import ResidualBlock, outside
from gnexp.models.resnet import initialize, zero_last_gamma
from gnexp.models.weight_standardization import standardize

SCALAR_RATE = 0.1  # of Fixup's biases and multipliers, over the rate of the weights


def start(
    model: nn.Module,
    generator: torch.Generator | None,
    *,
    norms: Collection[str] = (),
    initialization: str = "he",
    weight_standardization: bool = False,
    zero_gamma: bool = False,
) -> None:
    """Draw the weights of a newly built network anew, see `initialize`, and do what is asked for.

    generator: None draws nothing. norms: the names of layers that stay as they were built.
    initialization: "he", or "fixup"; see there. Raises ValueError for what the network cannot take.
    """
    if initialization == "fixup" and weight_standardization:
        raise ValueError(
            "initialization=fixup excludes weight_standardization=true: it scales filters, which"
            " standardizing takes back"
        )
    if initialization == "fixup" and zero_gamma:
        raise ValueError(
            "initialization=fixup excludes zero_gamma=true: with both, the end of each branch is"
            " zero twice, and nothing in it would ever learn"
        )
    if generator is not None:
        initialize(model, generator, norms)
    if weight_standardization and not standardize(
        model, [name for name, _ in outside(model, norms)]
    ):
        raise ValueError(
            "weight_standardization=true needs a model with convolutions;"
            " use weight_standardization=false"
        )
    if initialization == "fixup":
        fixup(model)
    if zero_gamma:
        zero_last_gamma(model)


def fixup(model: nn.Module) -> None:
    """Rescale a freshly initialized residual network so that it trains without a norm.

    Of L residual branches of m convolutions each, the first m - 1 are multiplied by
    L^(-1 / (2m - 2)), the last is set to zero, and so is the classifier `fc`. The scalar biases and
    multipliers of the source are per channel here: beta and gamma of the layers that stand where
    norms would. They train at a tenth of the rate, as in the authors' code, which by its name slows
    the classifier's bias too; here that one has the full rate, as under every norm.
    Raises ValueError, before anything is changed, without a residual block.
    Source: Zhang et al. 2019, arXiv:1901.09321; cifar/cifar_train.py of hongyi-zhang/Fixup.
    """
    branches = [
        [layer for layer in block.children() if isinstance(layer, nn.Conv2d)]
        for block in model.modules()
        if isinstance(block, ResidualBlock)
    ]
    if not branches:
        raise ValueError(
            "initialization=fixup needs a model with residual blocks; use initialization=he"
        )
    with torch.no_grad():
        for *first, last in branches:
            for layer in first:
                layer.weight.mul_(len(branches) ** (-1 / (2 * len(first))))
            last.weight.zero_()
        classifier = model.get_submodule("fc")
        classifier.weight.zero_()
        classifier.bias.zero_()
    for layer in model.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rate_factor = SCALAR_RATE  # of its own parameters, if it has any
