"""A data set in memory, and image arrays of any layout to one: uint8 (N, 3, S, S).

Axes: N images, C = 1 or 3 colours, H, W, S pixels.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

LEAST_SIDE = 8


@dataclass(frozen=True)
class DataSummary:
    """A data set without its arrays: small enough to travel to another process.

    shape: (3, S, S) of an image; the other fields as in `Dataset`.
    """

    title: str
    checksum: str
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    train_size: int
    test_size: int
    passed_over: str = ""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory: uint8 (N, 3, S, S) images and int64 (N,) labels that index `classes`.

    `title` and `passed_over` (what of the source is not used) are for people. `checksum` (hex
    digits) covers the four arrays, their order included. A source leaves title and checksum to
    `load_images`.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    classes: tuple[str, ...]
    title: str = ""
    checksum: str = ""
    passed_over: str = ""

    @property
    def summary(self) -> DataSummary:
        """Everything but the arrays."""
        sizes = len(self.x_train), len(self.x_test)
        about = self.title, self.checksum, self.classes, tuple(self.x_train.shape[1:])
        return DataSummary(*about, *sizes, self.passed_over)


def to_rgb(x: np.ndarray, what: str) -> np.ndarray:
    """Return (N, 3, S, S) uint8 from (N, H, W), (N, H, W, C) or (N, C, H, W) uint8.

    Gray becomes three equal channels; 28x28 is padded with zeros to 32x32. `what` names the array
    in the ValueError for another shape or dtype, sides that differ, or fewer than 8 pixels.
    """
    if x.dtype != np.uint8:
        raise ValueError(f"{what} has dtype {x.dtype}: images must be uint8, 0 to 255")
    if x.ndim == 3:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    if x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(
            f"{what} has shape {x.shape}: images must be (N, H, W), (N, H, W, C) or (N, C, H, W) "
            "with 1 or 3 channels"
        )
    height, width = x.shape[2:]
    if height != width or height < LEAST_SIDE:
        raise ValueError(
            f"{what} holds images of {height}x{width} pixels: they must be square, "
            f"{LEAST_SIDE}x{LEAST_SIDE} or larger"
        )
    if height == 28:
        x = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
    return np.ascontiguousarray(np.broadcast_to(x, (len(x), 3, *x.shape[2:])))


def fit_square(image: Image.Image, size: int) -> Image.Image:
    """Return `image` with its shorter side resized to `size` (bilinear), cropped in the centre."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def resize(x_N3SS: np.ndarray, size: int) -> np.ndarray:
    """Return (N, 3, size, size) uint8, each image resized with the filter of `fit_square`."""
    if x_N3SS.shape[2] == size:
        return x_N3SS
    resized = np.empty((len(x_N3SS), 3, size, size), np.uint8)
    for i, image in enumerate(x_N3SS):
        square = fit_square(Image.fromarray(image.transpose(1, 2, 0)), size)
        resized[i] = np.asarray(square).transpose(2, 0, 1)
    return resized


def digest(*arrays: np.ndarray) -> str:
    """Return the sha256 of the arrays' shapes, dtypes and elements in order, as hex digits."""
    state = hashlib.sha256()
    for array in arrays:
        little_endian = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        state.update(f"{array.shape} {array.dtype.kind}{array.dtype.itemsize};".encode())
        state.update(memoryview(little_endian).cast("B") if array.size else b"")
    return state.hexdigest()
