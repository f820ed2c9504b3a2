"""shapes10: procedural 32x32 RGB images of ten figures, the same bytes on every platform.

Only integer arithmetic and the raw stream of PCG64 are used: NumPy keeps that stream stable, but
not what Generator methods make of it, and libm's sin or exp differ between platforms.

Axes: N images, 3 colours, S = 32 pixels, F = 64 points (two per pixel, for smooth edges), L = 5
knots of the background, K random words. Lengths on the canvas are in points, so that an image is
64 wide; in a figure's own frame its outer radius is ONE.
"""

from collections.abc import Callable

import numpy as np

SHAPES10_CLASSES = (
    "disk",
    "ring",
    "square",
    "triangle",
    "cross",
    "star",
    "crescent",
    "horizontal stripes",
    "vertical stripes",
    "checkerboard",
)

_SIDE = 32
_FINE = 64
_KNOTS = 5
_CHUNK = 160  # images drawn at once, so that their planes fit in a core's cache
_CLUTTER = 4  # small bars and disks behind the figure
_BAR_OVER = 1  # thin bars in front of it
_SPLITS = {"train": 0, "test": 1}
ONE = 1024

_WORDS = 80  # 32-bit words per image for everything but background knots and noise
_KNOT_BYTES = 80  # 3 * 5 * 5 used
_NOISE_BYTES = 2 * 3 * _SIDE * _SIDE
_BYTES = 4 * _WORDS + _KNOT_BYTES + _NOISE_BYTES


def shapes10(
    train_size: int = 5120, test_size: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x_train (N, 3, 32, 32) uint8, y_train (N,) int64, x_test, y_test.

    Every ten consecutive images hold each class once. Training and test images come from separate
    streams, and a smaller set is the beginning of a larger one with the same seed.
    Raises ValueError for a negative size or seed.
    """
    for name, value in (("train_size", train_size), ("test_size", test_size), ("seed", seed)):
        if value < 0:
            raise ValueError(f"{name}={value} is negative: use 0 or more")
    return (*_draw_split("train", train_size, seed), *_draw_split("test", test_size, seed))


def _draw_split(split: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.PCG64([seed, _SPLITS[split]])
    x_N3SS = np.empty((size, 3, _SIDE, _SIDE), np.uint8)
    y_N = np.empty(size, np.int64)
    for start in range(0, size, _CHUNK):
        # Always whole chunks: an image must not depend on how many follow it.
        x, y = _draw_chunk(stream)
        count = min(_CHUNK, size - start)
        x_N3SS[start : start + count] = x[:count]
        y_N[start : start + count] = y[:count]
    return x_N3SS, y_N


def _draw_chunk(stream: np.random.PCG64) -> tuple[np.ndarray, np.ndarray]:
    shuffle = stream.random_raw(_CHUNK).reshape(-1, len(SHAPES10_CLASSES))
    y_N = np.argsort(shuffle, axis=1, kind="stable").reshape(-1)
    raw = stream.random_raw(_CHUNK * _BYTES // 8).astype("<u8", copy=False)
    raw_NB = raw.view(np.uint8).reshape(_CHUNK, _BYTES)
    words_NK, knots, noise = np.split(raw_NB, [4 * _WORDS, 4 * _WORDS + _KNOT_BYTES], axis=1)
    draws = Draws(np.ascontiguousarray(words_NK).view("<u4"))

    ground_N3 = np.stack([draws.between(*P['ground']) for _ in range(3)], axis=1)
    texture_N3SS = _texture(knots, draws.between(*P["texture"]))
    x_N3SS = ground_N3[:, :, None, None] + texture_N3SS
    for _ in range(P["clutter"]):
        _paint(x_N3SS, _small_blot(draws), _contrasting(draws, ground_N3, *P["clutter_contrast"]))
    ink_N3 = ground_N3+draws.between(*P["light"])[:,None]+np.stack([draws.between(-30,30) for _ in range(3)],axis=1)
    # The figure is shaded by the background's texture, mirrored so that its edge stays visible.
    shaded_N3SS = ink_N3[:, :, None, None] + texture_N3SS[:, :, ::-1, ::-1]
    _paint(x_N3SS, _figures(draws, y_N), shaded_N3SS)
    for _ in range(P["bar"]):
        _paint(x_N3SS, _thin_bar(draws), _contrasting(draws, ground_N3, *P["clutter_contrast"]))
    x_N3SS += _noise(noise, draws.between(*P["noise"]))
    return np.clip(x_N3SS, 0, 255).astype(np.uint8), y_N

P = dict(texture=(10, 60), clutter_contrast=(30, 80), contrast=(30, 110), noise=(10, 40),
         radius=(18, 28), margin=24, clutter=2, bar=0, ground=(30,150), light=(40,110))


class Draws:
    """Uniform integers from an image's own words, used up column by column."""

    def __init__(self, words_NK: np.ndarray) -> None:
        self._words_NK = words_NK.astype(np.uint64)
        self._next = 0

    def between(self, low: int, high: int) -> np.ndarray:
        """Return (N,) int32 in [low, high], both included."""
        word_N = self._words_NK[:, self._next]
        self._next += 1
        span = np.uint64(high - low + 1)
        return ((word_N * span) >> np.uint64(32)).astype(np.int32) + np.int32(low)


def _texture(knots_NB: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
    """Return smooth clutter (N, 3, S, S) int32 around 0: random knots, bilinear between them."""
    count = 3 * _KNOTS * _KNOTS
    knots_N3LL = knots_NB[:, :count].reshape(-1, 3, _KNOTS, _KNOTS).astype(np.int32) - 128
    position = 2 * np.arange(_SIDE) + 1  # of a pixel's centre, in sixteenths of a knot's distance
    weight_SL = np.zeros((_SIDE, _KNOTS), np.int32)
    weight_SL[np.arange(_SIDE), position // 16] = 16 - position % 16
    weight_SL[np.arange(_SIDE), position // 16 + 1] = position % 16
    smooth_N3SS = weight_SL @ knots_N3LL @ weight_SL.T  # times 256
    return (smooth_N3SS * strength_N[:, None, None, None]) >> 15


def _contrasting(draws: Draws, ground_N3: np.ndarray, least: int, most: int) -> np.ndarray:
    """Return a colour (N, 3) that differs from the ground by least..most in one channel or more."""
    step_N3 = np.stack([draws.between(-most, most) for _ in range(3)], axis=1)
    leading_N = draws.between(0, 2)
    size_N = draws.between(least, most)
    rows = np.arange(len(step_N3))
    # The leading channel steps towards the middle: clipping must not swallow the difference.
    step_N3[rows, leading_N] = np.where(ground_N3[rows, leading_N] < 128, size_N, -size_N)
    return ground_N3 + step_N3


def _paint(x_N3SS: np.ndarray, cover_NSS: np.ndarray, colour: np.ndarray) -> None:
    """Blend a colour, (N, 3) or (N, 3, S, S), into x where cover (0..4 quarters) says so."""
    if colour.ndim == 2:
        colour = colour[:, :, None, None]
    x_N3SS += ((colour - x_N3SS) * cover_NSS[:, None]) >> 2


def _noise(bytes_NB: np.ndarray, strength_N: np.ndarray) -> np.ndarray:
    """Return triangular noise (N, 3, S, S) int32, strength = its largest value."""
    pairs = bytes_NB.reshape(-1, 2, 3, _SIDE, _SIDE).astype(np.int32)
    return ((pairs[:, 0] - pairs[:, 1]) * strength_N[:, None, None, None]) >> 8


def _frame(
    draws: Draws, points: int, radius_N: np.ndarray, tilt: int, margin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates u, v (N, points, points) int32 of the canvas in a figure's own frame.

    The angle is 2 atan(tilt / 64) for a tilt in -tilt..tilt, whose sine and cosine are rational.
    """
    tilt_N = draws.between(-tilt, tilt).astype(np.int64)
    squash_N = draws.between(205, 256)  # one axis is up to a fifth shorter than the other
    centre_y_N, centre_x_N = (draws.between(margin, _FINE - margin) for _ in range(2))
    long_N = 64 * 64 + tilt_N * tilt_N
    cos_N = (ONE * 64) * (64 * 64 - tilt_N * tilt_N) // (long_N * radius_N)
    sin_N = (ONE * 64) * (2 * 64 * tilt_N) // (long_N * radius_N)
    cos_N11, sin_N11 = (each.astype(np.int32)[:, None, None] for each in (cos_N, sin_N))
    centre = (2 * np.arange(points, dtype=np.int32) + 1) * (_FINE // points)  # in half points
    dy_NF1 = (centre[None] - 2 * centre_y_N[:, None])[:, :, None]
    dx_N1F = (centre[None] - 2 * centre_x_N[:, None])[:, None, :]
    u_NFF = (cos_N11 * dx_N1F + sin_N11 * dy_NF1) >> 7
    v_NFF = (cos_N11 * dy_NF1 - sin_N11 * dx_N1F) >> 7
    return u_NFF, (v_NFF << 8) // squash_N[:, None, None]


def _figures(draws: Draws, y_N: np.ndarray) -> np.ndarray:
    """Return the quarters (N, S, S) int32 of each pixel that lie in the figure of its class."""
    radius_N = draws.between(*P["radius"])
    turned = _frame(draws, _FINE, radius_N, tilt=64, margin=P["margin"])
    upright = _frame(draws, _FINE, radius_N, tilt=6, margin=P["margin"])  # 11 degrees either way
    inside_NFF = np.empty((len(y_N), _FINE, _FINE), bool)
    for label, name in enumerate(SHAPES10_CLASSES):
        rows = np.flatnonzero(y_N == label)
        u, v = upright if name.endswith("stripes") else turned
        inside_NFF[rows] = _FIGURES[name](u[rows], v[rows])
    quarters = inside_NFF.reshape(len(y_N), _SIDE, 2, _SIDE, 2)
    return quarters.sum(axis=(2, 4), dtype=np.int32)


def _small_blot(draws: Draws) -> np.ndarray:
    """Return the cover (N, S, S), 0 or 4, of a small disk or bar anywhere."""
    u, v = _frame(draws, _SIDE, draws.between(5, 11), tilt=64, margin=0)
    is_disk = (draws.between(0, 1) == 0)[:, None, None]
    bar = (np.abs(u) < ONE) & (np.abs(v) < ONE // 3)
    return np.where(is_disk, u * u + v * v < ONE * ONE // 2, bar).astype(np.int32) << 2


def _thin_bar(draws: Draws) -> np.ndarray:
    """Return the cover (N, S, S), 0 or 4, of a bar some two pixels thick across the canvas."""
    u, v = _frame(draws, _SIDE, draws.between(12, 24), tilt=64, margin=8)
    return ((np.abs(u) < 2 * ONE) & (np.abs(v) < ONE // 9)).astype(np.int32) << 2


def _parts(thousandths: int) -> int:
    return ONE * thousandths // 1000


def _disk(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v < ONE * ONE


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _disk(u, v) & (u * u + v * v > _parts(560) ** 2)


def _box(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) < _parts(850)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    slant = 887 * np.abs(u) - 512 * v  # 1024 times the cosine and sine of 30 degrees
    return (v < _parts(550)) & (slant < 1024 * _parts(550))


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = np.abs(u), np.abs(v)
    return (np.minimum(a, b) < _parts(300)) & (np.maximum(a, b) < ONE)


def _star(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A pentagram is what lies behind at least four of its five lines.
    normals = ((0, 1024), (974, 316), (602, -828), (-602, -828), (-974, 316))
    behind = [nu * u + nv * v < 1024 * _parts(360) for nu, nv in normals]
    return np.sum(behind, axis=0, dtype=np.int8) >= 4


def _crescent(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    bite = u - _parts(500)
    return _disk(u, v) & (bite * bite + v * v > _parts(780) ** 2)


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v) & ((v + _parts(850)) // _parts(340) % 2 == 0)


def _checkerboard(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cells = (u + 4 * _parts(425)) // _parts(425) + (v + 4 * _parts(425)) // _parts(425)
    return _box(u, v) & (cells % 2 == 0)


_FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": _disk,
    "ring": _ring,
    "square": _box,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": _crescent,
    "horizontal stripes": _stripes,
    "vertical stripes": lambda u, v: _stripes(v, u),
    "checkerboard": _checkerboard,
}
