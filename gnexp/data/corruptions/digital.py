"""Elastic warps, pixels and JPEG. Images are float64 (N, 3, S, S) in [0, 1]."""

from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch import Tensor

from gnexp.data.corruptions.blur import gaussian_filter, separable
from gnexp.data.corruptions.draws import Draws


def elastic_transform(
    x_N3SS: Tensor, draws: Draws, strength: float, smoothness: float, tilt: float
) -> Tensor:
    """Warp by a random affine map, then by a random smooth displacement; both bilinear.

    All three are shares of the side S: three points are moved by up to `tilt` each way; and uniform
    noise, smoothed with a Gaussian of standard deviation `smoothness`, is multiplied by `strength`.
    """
    side, count = x_N3SS.shape[-1], len(x_N3SS)
    at = torch.arange(side, dtype=torch.float64, device=x_N3SS.device)
    matrix_N23 = _affine(draws, side, tilt * side)
    column_row_1 = torch.stack(torch.broadcast_tensors(at, at[:, None], torch.ones_like(at)))
    from_column, from_row = (
        (matrix_N23 @ column_row_1.flatten(1)).unflatten(2, (side, side)).unbind(1)
    )
    warped = _bilinear(x_N3SS, from_row, from_column, _mirror_about_pixel)
    smooth = gaussian_filter(side, smoothness * side, "reflect", 3.0)
    noise_N2SS = 2 * draws.uniform(2, side, side) - 1
    right, down = (strength * side * separable(noise_N2SS, smooth)).unbind(1)
    return _bilinear(
        warped, at[:, None] + down, (at + right).expand(count, -1, -1), _mirror_about_edge
    )


def _affine(draws: Draws, side: int, reach: float) -> Tensor:
    """Return (N, 2, 3): where (column, row, 1) of the warped image comes from."""
    centre, arm = float(side // 2), float(side // 3)
    points_32 = torch.tensor([[arm, arm], [arm, -arm], [-arm, -arm]], dtype=torch.float64) + centre
    moved_N32 = points_32 + reach * (2 * draws.uniform(3, 2).cpu() - 1)
    ones = torch.ones_like(moved_N32[:, :, :1])
    solved = torch.linalg.solve(torch.cat([moved_N32, ones], dim=2), points_32)
    return solved.transpose(1, 2).to(draws.device)


def _mirror_about_pixel(index: Tensor, side: int) -> Tensor:
    """Fold indices so that the outermost pixel is not repeated: 2 1 | 0 1 2."""
    index = index.remainder(2 * side - 2)
    return torch.minimum(index, 2 * side - 2 - index)


def _mirror_about_edge(index: Tensor, side: int) -> Tensor:
    """Fold indices so that the outermost pixel is repeated: 1 0 | 0 1 2."""
    index = index.remainder(2 * side)
    return torch.minimum(index, 2 * side - 1 - index)


def _bilinear(
    x_NCSS: Tensor, row_NSS: Tensor, column_NSS: Tensor, fold: Callable[[Tensor, int], Tensor]
) -> Tensor:
    side, flat = x_NCSS.shape[-1], x_NCSS.flatten(2)
    top, left = row_NSS.floor(), column_NSS.floor()
    total = torch.zeros_like(x_NCSS)
    for down in (0, 1):
        for right in (0, 1):
            index = fold(top.long() + down, side) * side + fold(left.long() + right, side)
            values = flat.gather(2, index.flatten(1)[:, None].expand_as(flat)).view_as(x_NCSS)
            weight = (1 - (row_NSS - top - down).abs()) * (1 - (column_NSS - left - right).abs())
            total += weight[:, None] * values
    return total


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
