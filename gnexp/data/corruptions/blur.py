"""Blurs, and the filters they are made of.

Images are float64 (N, C, S, S) in [0, 1]. Lengths are in pixels, whatever S is. A separable filter
is a matrix (S, S) that acts on rows and columns alike, written down by applying SciPy's own filter
to the identity.
"""

from functools import lru_cache
from math import ceil

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from gnexp.data.corruptions.draws import Draws


def separable(x_NCSS: Tensor, filter_SS: np.ndarray) -> Tensor:
    """Return the images with the same one-dimensional filter applied along columns and rows."""
    matrix = torch.from_numpy(filter_SS).to(x_NCSS)
    return matrix @ x_NCSS @ matrix.T


@lru_cache(maxsize=64)
def gaussian_filter(side: int, sigma: float, mode: str, truncate: float) -> np.ndarray:
    """Return the matrix (side, side) of a Gaussian filter; `mode` is SciPy's name of the border."""
    if sigma == 0:
        return np.eye(side)
    return ndimage.gaussian_filter1d(np.eye(side), sigma, axis=0, mode=mode, truncate=truncate)


@lru_cache(maxsize=256)
def zoom_filter(side: int, zoom: float) -> np.ndarray:
    """Return the matrix (side, side) that enlarges the middle 1/zoom linearly, borders cut off."""
    kept = ceil(side / zoom)
    enlarged = ndimage.zoom(np.eye(kept), (zoom, 1), order=1)
    matrix = np.zeros((side, side))
    top, cut = (side - kept) // 2, (len(enlarged) - side) // 2
    matrix[:, top : top + kept] = enlarged[cut : cut + side]
    return matrix


def defocus_kernel(radius: float, alias_blur: float) -> np.ndarray:
    """Return the disk (2 m + 1, 2 m + 1) of all pixels within radius, blurred by a Gaussian of
    3 taps and standard deviation alias_blur; its sum is 1."""
    reach = int(radius) + 1
    at = np.arange(-reach, reach + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / (2 * alias_blur**2))
    taps /= taps.sum()
    for axis in (0, 1):
        disk = ndimage.convolve1d(disk, taps, axis=axis, mode="constant")
    return disk / disk.sum()


def defocus_blur(x_NCSS: Tensor, draws: Draws, radius: float, alias_blur: float) -> Tensor:
    """Spread every pixel over a disk; the border mirrors the image about its outermost pixel."""
    kernel = defocus_kernel(radius, alias_blur)
    reach, side = len(kernel) // 2, x_NCSS.shape[-1]
    padded = F.pad(x_NCSS, (reach,) * 4, mode="reflect")
    total = torch.zeros_like(x_NCSS)
    for (row, column), weight in np.ndenumerate(kernel):  # faster than a convolution in float64
        total += weight * padded[..., row : row + side, column : column + side]
    return total


def glass_blur(x_NCSS: Tensor, draws: Draws, sigma: float, reach: int, rounds: int) -> Tensor:
    """Blur, let each pixel take the colour of a random neighbour `rounds` times, and blur again.

    The neighbour lies 0 to `reach` pixels up and to the left, as in the release. Its code means to
    swap two pixels, but swaps NumPy views, which only copies: the images it made are these.
    """
    side = x_NCSS.shape[-1]
    blur = gaussian_filter(side, sigma, "nearest", 4.0)
    x = (separable(x_NCSS, blur) * 255 + 1e-6).floor() / 255  # the release cuts to whole levels
    moved = torch.arange(side, device=x.device)
    moved = (moved > reach) & (moved <= side - reach)
    inside_SS = moved[:, None] & moved
    at_S = torch.arange(side, device=x.device)
    for _ in range(rounds):
        up, left = ((draws.uniform(side, side) * 2 * reach).long() - reach for _ in range(2))
        rows = at_S[:, None] + torch.where(inside_SS, up, 0)
        columns = at_S + torch.where(inside_SS, left, 0)
        index_N1P = (rows * side + columns).flatten(1)[:, None]
        x = x.flatten(2).take_along_dim(index_N1P, 2).reshape(x_NCSS.shape)
    return separable(x, blur)


def streak(x_NCSS: Tensor, degrees_N: Tensor, radius: float, sigma: float) -> Tensor:
    """Return images smeared in one direction each: half a Gaussian of 2 radius + 1 taps, placed on
    whole pixels, beyond the border the outermost pixel.

    Source: MotionBlurImage of ImageMagick, as restated in github.com/KarpelesLab/mblur.
    """
    side, device = x_NCSS.shape[-1], x_NCSS.device
    taps = np.arange(2 * ceil(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    angle_N1 = torch.deg2rad(degrees_N.cpu())[:, None]  # on the CPU: sines differ between devices
    steps_K = torch.from_numpy(taps).double()
    down_NK, right_NK = (
        (steps_K * wave - 0.5).ceil().long().to(device) for wave in (angle_N1.sin(), angle_N1.cos())
    )
    at_S = torch.arange(side, device=device)
    flat = x_NCSS.flatten(2)
    total = torch.zeros_like(flat)
    for tap, weight in enumerate(weights / weights.sum()):
        rows_NS = (at_S + down_NK[:, tap, None]).clamp(0, side - 1)
        columns_NS = (at_S + right_NK[:, tap, None]).clamp(0, side - 1)
        index_NP = (rows_NS[:, :, None] * side + columns_NS[:, None, :]).flatten(1)
        total += weight * flat.take_along_dim(index_NP[:, None], 2)
    return total.reshape(x_NCSS.shape)


def motion_blur(x_NCSS: Tensor, draws: Draws, radius: float, sigma: float) -> Tensor:
    """Smear each image in a direction of its own within 45 degrees of the horizontal."""
    return streak(x_NCSS, 90 * draws.uniform() - 45, radius, sigma)


def zoom_blur(x_NCSS: Tensor, draws: Draws, largest: float) -> Tensor:
    """Average the image and its enlargements by 1, 1.01, 1.02 ... below `largest`."""
    zooms = np.arange(1, largest, 0.01)
    total = x_NCSS.clone()
    for zoom in zooms:
        total += separable(x_NCSS, zoom_filter(x_NCSS.shape[-1], float(zoom)))
    return total / (len(zooms) + 1)
