"""Elastic warps, pixels and JPEG. Images are float64 (N, 3, S, S) in [0, 1]."""

from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from gnexp.data.corruptions.blur import gaussian_filter, separable
from gnexp.data.corruptions.draws import Draws


def elastic_transform(
    x_N3SS: Tensor, draws: Draws, strength: float, smoothness: float, tilt: float
) -> Tensor:
    """Warp by a random affine map, then by a random smooth displacement; both bilinear.

    All three are shares of the side S: three points are moved by up to `tilt` each way; and uniform
    noise, smoothed with a Gaussian of standard deviation `smoothness`, is multiplied by `strength`.
    """
    side = x_N3SS.shape[-1]
    at = torch.arange(side, dtype=torch.float64, device=x_N3SS.device)
    matrix_N23 = _affine(draws, side, tilt * side)
    column_row_1 = torch.stack(torch.broadcast_tensors(at, at[:, None], torch.ones_like(at)))
    source_N2SS = (matrix_N23 @ column_row_1.flatten(1)).unflatten(2, (side, side))
    warped = _bilinear(x_N3SS, source_N2SS, about_pixel=True)
    smooth = gaussian_filter(side, smoothness * side, "reflect", 3.0)
    noise_N2SS = 2 * draws.uniform(2, side, side) - 1
    moved_N2SS = column_row_1[:2] + strength * side * separable(noise_N2SS, smooth)
    return _bilinear(warped, moved_N2SS, about_pixel=False)


def _affine(draws: Draws, side: int, reach: float) -> Tensor:
    """Return (N, 2, 3): where (column, row, 1) of the warped image comes from."""
    centre, arm = float(side // 2), float(side // 3)
    points_32 = torch.tensor([[arm, arm], [arm, -arm], [-arm, -arm]], dtype=torch.float64) + centre
    moved_N32 = points_32 + reach * (2 * draws.uniform(3, 2).cpu() - 1)
    ones = torch.ones_like(moved_N32[:, :, :1])
    solved = torch.linalg.solve(torch.cat([moved_N32, ones], dim=2), points_32)
    return solved.transpose(1, 2).to(draws.device)


def _bilinear(x_N3SS: Tensor, source_N2SS: Tensor, about_pixel: bool) -> Tensor:
    """Return the images read at (column, row), bilinear; beyond the border they are mirrored.

    about_pixel: about the outermost pixel, 2 1 | 0 1 2; else about its edge, 1 0 | 0 1 2.
    """
    side = x_N3SS.shape[-1]
    scaled = source_N2SS / (side - 1) if about_pixel else (source_N2SS + 0.5) / side
    grid_NSS2 = (2 * scaled - 1).permute(0, 2, 3, 1)
    return F.grid_sample(x_N3SS, grid_NSS2, "bilinear", "reflection", align_corners=about_pixel)


def pixelate(x_N3SS: Tensor, draws: Draws, scale: float) -> Tensor:
    """Resize to int(scale S) pixels a side and back, with Pillow's box filter."""
    side = x_N3SS.shape[-1]
    small = int(scale * side)

    def coarse(image: Image.Image) -> Image.Image:
        box = Image.Resampling.BOX
        return image.resize((small, small), box).resize((side, side), box)

    return _by_pillow(x_N3SS, coarse)


def jpeg_compression(x_N3SS: Tensor, draws: Draws, quality: int) -> Tensor:
    """Save as JPEG of this quality with Pillow and read it back; its bytes are libjpeg's."""

    def stored(image: Image.Image) -> Image.Image:
        file = BytesIO()
        image.save(file, "JPEG", quality=quality)
        return Image.open(file)

    return _by_pillow(x_N3SS, stored)


def _by_pillow(x_N3SS: Tensor, change: Callable[[Image.Image], Image.Image]) -> Tensor:
    x_NSS3 = (x_N3SS * 255).round().byte().permute(0, 2, 3, 1).cpu().contiguous()
    changed = [bytearray(change(Image.fromarray(x.numpy())).tobytes()) for x in x_NSS3]
    parts = [torch.frombuffer(raw, dtype=torch.uint8) for raw in changed]
    x_NSS3 = torch.stack(parts).view_as(x_NSS3).to(x_N3SS.device)
    return x_NSS3.permute(0, 3, 1, 2).to(x_N3SS.dtype) / 255
