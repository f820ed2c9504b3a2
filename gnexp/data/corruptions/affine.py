"""Affine changes of an image's values: what a normalization that is computed per image could undo.

Images are float64 (N, 3, S, S) in [0, 1]. These are not in the published set.
"""

from torch import Tensor

from gnexp.data.corruptions.draws import Draws


def pure_contrast(x_N3SS: Tensor, draws: Draws, gain: float) -> Tensor:
    """Return m + gain (x - m), m the mean over all values of an image: one affine map for all.

    With gain <= 1 nothing is clipped; rounding to whole levels adds noise of 1/255/sqrt(12).
    """
    mean = x_N3SS.mean((1, 2, 3), keepdim=True)
    return mean + gain * (x_N3SS - mean)


def pure_brightness(x_N3SS: Tensor, draws: Draws, added: float) -> Tensor:
    """Return x + added; a value above 1 - added is clipped to 1 and is no longer pure.

    That is 2.5, 5, 8, 11 and 20 % of the values of CIFAR-10 at severity 1 to 5.
    """
    return x_N3SS + added


def colour_cast(x_N3SS: Tensor, draws: Draws, strength: float) -> Tensor:
    """Return gain x + shift with a gain and a shift of its own for each image and colour.

    1 - gain is uniform in strength/2 to strength, and the shift in 0 to 1 - gain: a glass of a
    random colour before the picture. Nothing is ever clipped.
    """
    lost_N3, tint_N3 = draws.uniform(2, 3).unbind(1)
    lost_N311 = (strength * (1 + lost_N3) / 2)[:, :, None, None]
    return (1 - lost_N311) * x_N3SS + lost_N311 * tint_N3[:, :, None, None]
