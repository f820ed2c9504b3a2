"""One function that loads any data set by name, limited to balanced subsets and checksummed.

Axes: N images, S pixels along a side.
"""

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np

from gnexp.config.unknown import unknown
from gnexp.data.arrays import LEAST_SIDE, Dataset, DataSummary, digest, resize
from gnexp.data.downloads import PUBLISHED_TITLES, load_published
from gnexp.data.imagefolder import load_imagefolder
from gnexp.data.npz import load_npz, npz_file
from gnexp.data.subsets import balanced_subset, fixed_test_order, stratified_part
from gnexp.data.synthetic import SHAPES10_CLASSES, shapes10

__all__ = ["SOURCES", "DataSummary", "Dataset", "hold_out", "load_images"]
SOURCES = ("shapes10", *PUBLISHED_TITLES, "imagefolder", "npz")
_SHAPES10_LARGEST = {"train_limit": 50_000, "test_limit": 10_000}


def load_images(
    name: str,
    root: str | Path | None = None,
    train_limit: int | None = None,
    test_limit: int | None = None,
    size: int | None = None,
    title: str | None = None,
    download: bool = True,
) -> Dataset:
    """Return the data set `name`, one of SOURCES, with its test images in a fixed random order.

    root: the folder (npz: the file) to read; unused by shapes10; None lets torchvision's sets use
    gnexp's cache folder. train_limit, test_limit: a fixed subset with equally many images per
    class; shapes10 draws that many (5,120 and 1,000 if None). size: pixels to resize to. title:
    instead of the source's own. download: whether a set that is not in `root` may be fetched.
    Raises ValueError, with the key as a user types it, for values or files that do not fit.
    """
    if name not in SOURCES:
        raise ValueError(unknown(f"data={name} is unknown", name, SOURCES))
    limits = {"train_limit": train_limit, "test_limit": test_limit}
    for key, value in limits.items():
        if value is not None and value < 1:
            raise ValueError(f"data.{key}={value} must be at least 1, or null for all images")
    if size is not None and size < LEAST_SIDE:
        raise ValueError(f"data.size={size} is too small: use {LEAST_SIDE} or more pixels")
    path = None if root is None else Path(root).expanduser()
    if name == "shapes10":
        images, own_title = _shapes10(limits, size), "shapes10"
    elif name in PUBLISHED_TITLES:
        images = _limited(load_published(name, path, download), limits)
        own_title = PUBLISHED_TITLES[name]
    elif path is None:
        needed = "FILE.npz" if name == "npz" else "FOLDER, which has train/ and test/"
        raise ValueError(f"data={name} needs data.root={needed}")
    elif name == "npz":
        images, own_title = _limited(load_npz(path), limits), npz_file(path).stem
    else:
        images = load_imagefolder(path, train_limit, test_limit, size)
        own_title = path.resolve().name
    return _finish(images, size, own_title if title is None else title)


def hold_out(images: Dataset, validation: float | int) -> Dataset:
    """Return the set with part of its training images in the place of the test images.

    validation: the part, a fraction below 1 or a number of images, of every class as large a part
    as of all; it is the same whenever it is asked for. No test image is left. The checksum is that
    of the whole. Raises ValueError when a class would have no image on one of the sides.
    """
    x, y = images.x_train, images.y_train
    count = round(validation * len(y)) if validation < 1 else int(validation)
    try:
        out = stratified_part(y, count)
    except ValueError as error:
        raise ValueError(
            f"data.validation={validation} holds out {count} of {len(y)} training images: {error}"
        ) from error
    kept, out = np.setdiff1d(np.arange(len(y)), out), out[fixed_test_order(count)]
    return replace(images, x_train=x[kept], y_train=y[kept], x_test=x[out], y_test=y[out])


def _shapes10(limits: dict[str, int | None], size: int | None) -> Dataset:
    if size not in (None, 32):
        raise ValueError(f"data.size={size} does not fit shapes10, whose images are 32x32")
    least = len(SHAPES10_CLASSES)
    for key, largest in _SHAPES10_LARGEST.items():
        limit = limits[key]
        if limit is not None and not least <= limit <= largest:
            raise ValueError(f"data.{key}={limit} must be {least} to {largest} for shapes10")
    given = {f"{k.split('_')[0]}_size": v for k, v in limits.items() if v is not None}
    return Dataset(*_drawn(**given), SHAPES10_CLASSES)


@functools.lru_cache(maxsize=2)
def _drawn(**sizes: int) -> tuple[np.ndarray, ...]:
    return shapes10(**sizes)  # from a seed: no file can change them


def _limited(images: Dataset, limits: dict[str, int | None]) -> Dataset:
    train = balanced_subset(images.y_train, limits["train_limit"], "data.train_limit")
    test = balanced_subset(images.y_test, limits["test_limit"], "data.test_limit")
    parts = {"x_train": images.x_train[train], "y_train": images.y_train[train]}
    return replace(images, **parts, x_test=images.x_test[test], y_test=images.y_test[test])


def _finish(images: Dataset, size: int | None, title: str) -> Dataset:
    order = fixed_test_order(len(images.y_test))
    x_train, x_test, y_test = images.x_train, images.x_test[order], images.y_test[order]
    if size is not None:
        x_train, x_test = resize(x_train, size), resize(x_test, size)
    checksum = digest(x_train, images.y_train, x_test, y_test)
    arrays = {"x_train": x_train, "x_test": x_test, "y_test": y_test}
    return replace(images, **arrays, title=title, checksum=checksum)
