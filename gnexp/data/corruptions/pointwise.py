"""Changes of each value by itself: noise, contrast, brightness, colour.

Images are float64 (N, 3, S, S) in [0, 1]; a result may leave that range. The pure ones, which the
published set lacks, are affine maps that a normalization computed per image could undo.
"""

import torch
from torch import Tensor

from gnexp.data.corruptions.draws import Draws


def gaussian_noise(x_N3SS: Tensor, draws: Draws, sigma: float) -> Tensor:
    """Add independent normal noise of standard deviation sigma to every value."""
    return x_N3SS + sigma * draws.normal(*x_N3SS.shape[1:])


def shot_noise(x_N3SS: Tensor, draws: Draws, photons: float) -> Tensor:
    """Count photons, on average `photons` of them where a value is 1: Poisson noise."""
    return draws.poisson(x_N3SS * photons) / photons


def impulse_noise(x_N3SS: Tensor, draws: Draws, share: float) -> Tensor:
    """Replace this share of all values, each colour by itself, by 0 or 1 in equal parts."""
    u_N3SS = draws.uniform(*x_N3SS.shape[1:])
    replaced = torch.where(u_N3SS < share / 2, 0.0, 1.0).to(x_N3SS.dtype)
    return torch.where(u_N3SS < share, replaced, x_N3SS)


def brightness(x_N3SS: Tensor, draws: Draws, added: float) -> Tensor:
    """Add to the value of HSV, the largest of the three colours, and keep hue and saturation.

    A value stops at 1. Black has no hue and becomes gray.
    """
    value = x_N3SS.amax(1, keepdim=True)
    brighter = (value + added).clamp(0, 1)
    return torch.where(value > 0, x_N3SS * brighter / value.clamp(min=1e-12), brighter)


def contrast(x_N3SS: Tensor, draws: Draws, gain: float) -> Tensor:
    """Shrink each colour towards its own mean over the image."""
    mean = x_N3SS.mean((2, 3), keepdim=True)
    return mean + gain * (x_N3SS - mean)


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
