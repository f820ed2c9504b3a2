"""shapes10: procedural 32x32 RGB images of ten figures, the same bytes on every platform.

Only integer arithmetic and the raw stream of PCG64 are used: NumPy keeps that stream stable, but
not what Generator methods make of it, and libm's sin or exp differ between platforms.

Axes: N images, 3 colours, S = 32 pixels, F = 64 points (two per pixel, for smooth edges), L = 5
knots of the background, K random words. Lengths on the canvas are in points, so that an image is
64 wide; in a figure's own frame its outer radius is ONE.
"""

from collections.abc import Callable

import numpy as np

ONE = 1024

_SIDE = 32
_FINE = 64
_KNOTS = 5
_CHUNK = 160  # images drawn at once, so that their planes fit in a core's cache
_SPLITS = {"train": 0, "test": 1}

# Ranges, both ends included, tuned together so that a small network neither fails nor saturates.
_GROUND = (30, 150)  # the background's colour, before texture
_TEXTURE = (15, 60)  # how far the texture departs from it, of 255
_LIGHTER = (40, 105)  # the figure is lighter than the ground by this,
_TINT = (-30, 30)  # and this in each channel
_RADIUS = (16, 27)
_TILT = (-64, 64)  # a quarter turn either way
_MARGIN = 21  # least distance of the figure's centre from the canvas edge
_CLUTTER = 3  # small bars and disks behind the figure; one long bar lies in front
_CLUTTER_CONTRAST = (30, 80)
_NOISE = (12, 50)

_WORDS = 96  # 32-bit words per image for everything but background knots and noise
_KNOT_BYTES = 80  # 3 * 5 * 5 used
_NOISE_BYTES = 2 * 3 * _SIDE * _SIDE
_BYTES = 4 * _WORDS + _KNOT_BYTES + _NOISE_BYTES


def shapes10(
    train_size: int = 5120, test_size: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return x_train (N, 3, 32, 32) uint8, y_train (N,) int64, x_test, y_test.

    Every ten consecutive images hold each class once. Training and test images come from separate
    streams, and a smaller set is the beginning of a larger one with the same seed.
    """
    return (*_draw_split("train", train_size, seed), *_draw_split("test", test_size, seed))


def _draw_split(split: str, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    stream = np.random.PCG64([_SPLITS[split], seed])
    x_N3SS = np.empty((size, 3, _SIDE, _SIDE), np.uint8)
    y_N = np.empty(size, np.int64)
    for start in range(0, size, _CHUNK):
        # Always whole chunks: an image must not depend on how many follow it.
        x, y = _draw_chunk(stream)
        x_N3SS[start : start + _CHUNK] = x[: size - start]
        y_N[start : start + _CHUNK] = y[: size - start]
    return x_N3SS, y_N


def _draw_chunk(stream: np.random.PCG64) -> tuple[np.ndarray, np.ndarray]:
    shuffle = stream.random_raw(_CHUNK).reshape(-1, len(SHAPES10_CLASSES))
    y_N = np.argsort(shuffle, axis=1, kind="stable").reshape(-1)
    raw = stream.random_raw(_CHUNK * _BYTES // 8).astype("<u8", copy=False)
    raw_NB = raw.view(np.uint8).reshape(_CHUNK, _BYTES)
    words_NK, knots, noise = np.split(raw_NB, [4 * _WORDS, 4 * _WORDS + _KNOT_BYTES], axis=1)
    draws = Draws(np.ascontiguousarray(words_NK).view("<u4"))

    ground_N3 = draws.colour(*_GROUND)
    texture_N3SS = _texture(knots, draws.between(*_TEXTURE))
    x_N3SS = ground_N3[:, :, None, None] + texture_N3SS
    for _ in range(_CLUTTER):
        _paint(x_N3SS, _small_blot(draws), _clutter_colour(draws, ground_N3))
    ink_N3 = ground_N3 + draws.between(*_LIGHTER)[:, None] + draws.colour(*_TINT)
    # The figure is shaded by the background's texture, mirrored so that its edge stays visible.
    shaded_N3SS = ink_N3[:, :, None, None] + texture_N3SS[:, :, ::-1, ::-1]
    _paint(x_N3SS, _figures(draws, y_N), shaded_N3SS)
    _paint(x_N3SS, _long_bar(draws), _clutter_colour(draws, ground_N3))
    x_N3SS += _noise(noise, draws.between(*_NOISE))
    return np.clip(x_N3SS, 0, 255).astype(np.uint8), y_N


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

    def colour(self, low: int, high: int) -> np.ndarray:
        """Return (N, 3) int32, each channel in [low, high]."""
        return np.stack([self.between(low, high) for _ in range(3)], axis=1)


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


def _clutter_colour(draws: Draws, ground_N3: np.ndarray) -> np.ndarray:
    """Return a colour (N, 3) int32 that differs visibly from the ground in at least one channel."""
    least, most = _CLUTTER_CONTRAST
    step_N3 = draws.colour(-most, most)
    rows, leading_N = np.arange(len(step_N3)), draws.between(0, 2)
    size_N = draws.between(least, most)
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
    draws: Draws, points: int, radius_N: np.ndarray, tilt_N: np.ndarray, margin: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return coordinates u, v (N, points, points) int32 of the canvas in a figure's own frame.

    The frame is turned by 2 atan(tilt / 64), an angle whose sine and cosine are rational.
    """
    tilt_N = tilt_N.astype(np.int64)
    squash_N = draws.between(205, 256)  # one axis is up to a fifth shorter than the other
    centre_y_N, centre_x_N = (draws.between(margin, _FINE - margin) for _ in range(2))
    scale_N = (64 * 64 + tilt_N * tilt_N) * radius_N
    cos_N = 64 * ONE * (64 * 64 - tilt_N * tilt_N) // scale_N
    sin_N = 64 * ONE * (2 * 64 * tilt_N) // scale_N
    cos_N11, sin_N11 = (each.astype(np.int32)[:, None, None] for each in (cos_N, sin_N))
    place = (2 * np.arange(points, dtype=np.int32) + 1) * (_FINE // points)  # in half points
    dy_NF1 = (place - 2 * centre_y_N[:, None])[:, :, None]
    dx_N1F = (place - 2 * centre_x_N[:, None])[:, None, :]
    u_NFF = (cos_N11 * dx_N1F + sin_N11 * dy_NF1) >> 7
    # The squash divides v; divided here, on one axis at a time, it costs next to nothing.
    v_x_N1F = (sin_N11 * dx_N1F * 256) // squash_N[:, None, None]
    v_y_NF1 = (cos_N11 * dy_NF1 * 256) // squash_N[:, None, None]
    return u_NFF, (v_y_NF1 - v_x_N1F) >> 7


def _figures(draws: Draws, y_N: np.ndarray) -> np.ndarray:
    """Return the quarters (N, S, S) int32 of each pixel that lie in the figure of its class."""
    tilt_N = draws.between(*_TILT)
    striped = [label for label, name in enumerate(SHAPES10_CLASSES) if name.endswith("stripes")]
    # Stripes lean by 11 degrees at most: a turn would make horizontal ones vertical.
    tilt_N = np.where(np.isin(y_N, striped), tilt_N * 6 >> 6, tilt_N)
    u_NFF, v_NFF = _frame(draws, _FINE, draws.between(*_RADIUS), tilt_N, _MARGIN)
    inside_NFF = np.empty(u_NFF.shape, bool)
    for label, name in enumerate(SHAPES10_CLASSES):
        rows = np.flatnonzero(y_N == label)
        inside_NFF[rows] = _FIGURES[name](u_NFF[rows], v_NFF[rows])
    quarters = inside_NFF.view(np.uint8)
    quarters = quarters[:, 0::2] + quarters[:, 1::2]
    return (quarters[:, :, 0::2] + quarters[:, :, 1::2]).astype(np.int32)


def _small_blot(draws: Draws) -> np.ndarray:
    """Return the cover (N, S, S), 0 or 4, of a small disk or bar anywhere."""
    u, v = _frame(draws, _SIDE, draws.between(5, 11), draws.between(*_TILT), margin=0)
    is_disk = (draws.between(0, 1) == 0)[:, None, None]
    bar = (np.abs(u) < ONE) & (np.abs(v) < ONE // 3)
    return np.where(is_disk, u * u + v * v < ONE * ONE // 2, bar).astype(np.int32) << 2


def _long_bar(draws: Draws) -> np.ndarray:
    """Return the cover (N, S, S), 0 or 4, of a bar a pixel or two thick across the canvas."""
    u, v = _frame(draws, _SIDE, draws.between(12, 24), draws.between(*_TILT), margin=8)
    return ((np.abs(u) < 2 * ONE) & (np.abs(v) < ONE // 9)).astype(np.int32) << 2


def _parts(thousandths: int) -> int:
    return ONE * thousandths // 1000


def _disk(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return u * u + v * v < ONE * ONE


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


def _stripes(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v) & ((v + _parts(850)) // _parts(340) % 2 == 0)


def _checkerboard(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    cells = (u + 4 * _parts(425)) // _parts(425) + (v + 4 * _parts(425)) // _parts(425)
    return _box(u, v) & (cells % 2 == 0)


# In the order of the labels: which points of its own frame lie in a figure.
_FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disk": _disk,
    "ring": lambda u, v: _disk(u, v) & (u * u + v * v > _parts(560) ** 2),
    "square": _box,
    "triangle": _triangle,
    "cross": _cross,
    "star": _star,
    "crescent": lambda u, v: _disk(u, v) & ((u - ONE // 2) ** 2 + v * v > _parts(780) ** 2),
    "horizontal stripes": _stripes,
    "vertical stripes": lambda u, v: _stripes(v, u),
    "checkerboard": _checkerboard,
}
SHAPES10_CLASSES = tuple(_FIGURES)
