"""Snow, frost and fog. Images are float64 (N, 3, S, S) in [0, 1]."""

from math import pi

import torch
from torch import Tensor

from gnexp.data.corruptions.blur import separable, streak, zoom_filter
from gnexp.data.corruptions.draws import Draws

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_ICE = (0.70, 0.88, 1.0)  # the colour of frost, by eye


def plasma(draws: Draws, side: int, decay: float) -> Tensor:
    """Return random clouds (N, side, side) that span [0, 1] on the map they are cut from.

    Diamond-square on a torus whose side is the next power of two: a coarse grid is halved again and
    again, each new point the mean of its four neighbours plus uniform noise, whose amplitude falls
    by decay^2 from grid to grid. The coarsest clouds are as large as the image, at any size.
    """
    whole = 1 << (side - 1).bit_length()
    noise_NSS = 2 * draws.uniform(whole, whole) - 1  # each point of the map has its own draw
    map_NSS = torch.zeros_like(noise_NSS)
    step, amplitude = whole, 1.0
    while step > 1:
        half = step // 2
        even, odd = slice(0, None, step), slice(half, None, step)
        corners = map_NSS[:, even, even]
        across = corners + corners.roll(-1, 2)
        centres = (across + across.roll(-1, 1)) / 4 + amplitude * noise_NSS[:, odd, odd]
        down = corners + corners.roll(-1, 1)
        sides = (across + centres + centres.roll(1, 1)) / 4 + amplitude * noise_NSS[:, even, odd]
        uprights = (down + centres + centres.roll(1, 2)) / 4 + amplitude * noise_NSS[:, odd, even]
        map_NSS[:, odd, odd], map_NSS[:, even, odd] = centres, sides
        map_NSS[:, odd, even] = uprights
        step, amplitude = half, amplitude / decay**2
    low = map_NSS.amin((1, 2), keepdim=True)
    high = map_NSS.amax((1, 2), keepdim=True)
    return ((map_NSS - low) / (high - low))[:, :side, :side]


def fog(x_N3SS: Tensor, draws: Draws, density: float, decay: float) -> Tensor:
    """Add clouds, then scale so that the brightest value an image may reach stays what it was."""
    most = x_N3SS.amax((1, 2, 3), keepdim=True)
    clouds = plasma(draws, x_N3SS.shape[-1], decay)[:, None]
    return (x_N3SS + density * clouds) * most / (most + density)


def frost_texture(draws: Draws, side: int) -> Tensor:
    """Return drawn frost (N, 3, side, side) in [0, 1]: needles of ice along three directions 60
    degrees apart, dense where clouds are bright, on a veil. It stands in for photographs.

    Lengths are shares of the image. Mean about 0.5, as a frosted window is.
    """
    veil, bend, cover = (plasma(draws, side, decay).cpu() for decay in (1.5, 2.0, 1.3))
    turn_N11 = pi * draws.uniform(1, 1).cpu()
    at = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    needles = torch.zeros_like(veil)
    for third in range(3):
        angle = turn_N11 + third * pi / 3
        along = at[:, None] * angle.cos() + at * angle.sin()
        ridge = (pi * (5 * along + 2.5 * bend + third / 3)).cos().abs() ** 6
        needles = torch.maximum(needles, ridge * cover.roll(third * side // 3, 2))
    ice = (0.55 * veil + 0.9 * needles).clamp(0, 1)
    colour = torch.tensor(_ICE, dtype=torch.float64)[:, None, None]
    return (ice[:, None] ** colour.reciprocal()).to(draws.device)


def frost(x_N3SS: Tensor, draws: Draws, image_share: float, frost_share: float) -> Tensor:
    """Add frost_share of a frost texture to image_share of the image.

    The release cuts its textures from photographs, which we have not: severities are weighted as
    published, but the numbers are not comparable with published ones.
    """
    return image_share * x_N3SS + frost_share * frost_texture(draws, x_N3SS.shape[-1])


def snow(
    x_N3SS: Tensor,
    draws: Draws,
    mean: float,
    deviation: float,
    zoom: float,
    threshold: float,
    radius: float,
    sigma: float,
    image_share: float,
) -> Tensor:
    """Whiten the image and let flakes fall: normal noise, enlarged, kept above a threshold, smeared
    within 45 degrees of the vertical, and laid on twice, the second time upside down."""
    side = x_N3SS.shape[-1]
    flakes = mean + deviation * draws.normal(1, side, side)
    flakes = separable(flakes, zoom_filter(side, zoom))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    flakes = (flakes * 255 + 1e-6).floor() / 255  # the release cuts to whole levels
    flakes = streak(flakes, 90 * draws.uniform() - 135, radius, sigma)
    luma = sum(weight * x_N3SS[:, c : c + 1] for c, weight in enumerate(_LUMA))
    pale = torch.maximum(x_N3SS, 1.5 * luma + 0.5)
    return image_share * x_N3SS + (1 - image_share) * pale + flakes + flakes.rot90(2, (2, 3))
