"""Corrupted images: the 15 kinds of CIFAR-10-C at five severities, and three pure ones.

Parameters are those of the authors' CIFAR script (github.com/hendrycks/robustness,
ImageNet-C/create_c/make_cifar_c.py), for the benchmark of Hendrycks & Dietterich 2019,
arXiv:1903.12261; the algorithms are restated here. What differs from the released images: other
random draws; results are rounded to the nearest level, where the release cuts the fraction off;
frost is drawn, not photographed; and of what Pillow does, a version's own details.

The release is for 32x32. At other sizes, lengths that it states in pixels stay so (defocus, glass,
motion and snow: milder in a larger image); zoom, pixelate, elastic_transform, fog and frost are in
shares of the image, so they scale with it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gnexp.config.unknown import unknown
from gnexp.data.corruptions import blur, digital, pointwise, weather
from gnexp.data.corruptions.draws import Draws

SEVERITIES = (1, 2, 3, 4, 5)
_VALUES_AT_ONCE = 1 << 20  # so that a chunk's planes stay near the processor


class Corruption(NamedTuple):
    """`change(x, draws, *parameters)` on float64 (N, 3, S, S) in [0, 1], and the parameters of
    severity 1 to 5."""

    change: Callable[..., Tensor]
    parameters: tuple[tuple[float, ...], ...]


# The function, which names the corruption, and its parameters at severity 1 to 5.
_PUBLISHED: dict[Callable[..., Tensor], tuple] = {
    pointwise.gaussian_noise: (0.04, 0.06, 0.08, 0.09, 0.10),
    pointwise.shot_noise: (500, 250, 100, 75, 50),
    pointwise.impulse_noise: (0.01, 0.02, 0.03, 0.05, 0.07),
    blur.defocus_blur: ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    blur.glass_blur: ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    blur.motion_blur: ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    blur.zoom_blur: (1.06, 1.11, 1.16, 1.21, 1.26),
    weather.snow: (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    weather.frost: ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    weather.fog: ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    pointwise.brightness: (0.05, 0.1, 0.15, 0.2, 0.3),
    pointwise.contrast: (0.75, 0.5, 0.4, 0.3, 0.15),
    digital.elastic_transform: (
        *((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06)),
        *((0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    digital.pixelate: (0.95, 0.9, 0.85, 0.75, 0.65),
    digital.jpeg_compression: (80, 65, 58, 50, 40),
}
_PURE: dict[Callable[..., Tensor], tuple] = {
    pointwise.pure_contrast: (0.75, 0.5, 0.4, 0.3, 0.15),
    pointwise.pure_brightness: (0.05, 0.1, 0.15, 0.2, 0.3),
    pointwise.colour_cast: (0.1, 0.2, 0.3, 0.4, 0.5),
}
CORRUPTIONS = {
    change.__name__: Corruption(
        change, tuple(p if isinstance(p, tuple) else (p,) for p in parameters)
    )
    for change, parameters in (_PUBLISHED | _PURE).items()
}
PUBLISHED = tuple(change.__name__ for change in _PUBLISHED)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # in the released files only


def corrupt(x_N3SS: Tensor, name: str, severity: int, seed: int, *, first: int = 0) -> Tensor:
    """Return uint8 (N, 3, S, S) on x's device: the images corrupted, severity 1 to 5.

    An image's corruption depends on (seed, name, severity, index) alone, where x_N3SS[i] has the
    index first + i: a part of a set, with `first` saying where it begins, gives that part of the
    whole. The same bytes on every call, and for every split into parts.
    x_N3SS: uint8, S >= 8. Raises ValueError for an unknown name or severity.
    """
    require_corruption(name)
    require_severity(severity)
    size = max(1, _VALUES_AT_ONCE // x_N3SS[:1].numel()) if len(x_N3SS) else 1
    parts = [
        _corrupt_chunk(x_N3SS[i : i + size], name, severity, seed, first + i)
        for i in range(0, len(x_N3SS), size)
    ]
    return torch.cat(parts) if parts else x_N3SS.clone()


def require_corruption(name: str, released: bool = False) -> None:
    """Raise ValueError, naming the nearest valid one, if `name` is not a corruption.

    released: whether the files of CIFAR-10-C are there, which hold the EXTRA ones too.
    """
    if name in EXTRA and not released:
        raise ValueError(
            f"corruptions={name} comes only from the files of CIFAR-10-C, without which it must be"
            f" one of {', '.join(CORRUPTIONS)}"
        )
    valid = (*CORRUPTIONS, *EXTRA) if released else tuple(CORRUPTIONS)
    if name not in valid:
        raise ValueError(unknown(f"corruptions={name} is unknown", name, valid))


def require_severity(severity: int) -> None:
    """Raise ValueError if `severity` is not a whole number from 1 to 5."""
    if not isinstance(severity, int) or isinstance(severity, bool) or severity not in SEVERITIES:
        raise ValueError(f"severity={severity} must be a whole number from 1 to 5")


def _corrupt_chunk(x_N3SS: Tensor, name: str, severity: int, seed: int, first: int) -> Tensor:
    entry, indices = CORRUPTIONS[name], range(first, first + len(x_N3SS))
    draws = Draws(seed, f"corruption {name}", severity, indices, x_N3SS.device)
    changed = entry.change(x_N3SS.double() / 255, draws, *entry.parameters[severity - 1])
    # float64 sums may differ in their last digits with the size of a chunk; without the small
    # number, a value that lies exactly between two levels would go either way.
    return (changed * 255 + (0.5 + 1e-6)).floor().clamp(0, 255).byte()
