"""Noise. Images are float64 (N, 3, S, S) in [0, 1]; a result may leave that range."""

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
