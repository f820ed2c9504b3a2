"""CIFAR-10, CIFAR-100, SVHN and Fashion-MNIST: from a folder that holds the files, or downloaded.

torchvision is imported only where it is needed: it takes seconds to load. It unpickles CIFAR's
batches only after their md5 sums agree with the published ones.
"""

import gzip
import math
import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gnexp.data.arrays import Dataset, to_rgb

PUBLISHED_TITLES = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "svhn": "SVHN",
    "fashion_mnist": "Fashion-MNIST",
}
_IDX_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
_IDX_FILES += ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION_CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat")
_FASHION_CLASSES += ("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def cache_folder() -> Path:
    """Return gnexp's folder below $XDG_CACHE_HOME or ~/.cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gnexp"


def load_published(name: str, root: Path | None, download: bool) -> Dataset:
    """Return the data set `name`, a key of PUBLISHED_TITLES.

    root: a folder that holds the files (in torchvision's layout, or directly), or is to hold them;
    None is the cache folder. Raises ValueError where the files are absent or corrupt and cannot be
    downloaded.
    """
    if root is not None and root.exists() and not root.is_dir():
        raise ValueError(f"data.root={root} is a file: {name} needs the folder that holds it")
    load = {"svhn": _load_svhn, "fashion_mnist": _load_fashion_mnist}.get(name, _load_cifar)
    return load(name, cache_folder() if root is None else root, download)


def _load_cifar(name: str, root: Path, download: bool) -> Dataset:
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    source: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    needed = [file for file, _ in source.train_list + source.test_list]
    parent = root
    for folder in (root, root / source.base_folder):
        if all((folder / file).is_file() for file in [*needed, source.meta["filename"]]):
            # The batches' folder may have any name: torchvision joins root and base_folder.
            source = type(source.__name__, (source,), {"base_folder": folder.name})
            parent = folder.absolute().parent
            break
    else:
        archive = root / source.filename
        if archive.is_file() and not check_integrity(str(archive), source.tgz_md5):
            raise _corrupt(root, source.filename, "its md5 sum differs")
        files = f"{source.filename} or {source.base_folder}"
        allowed = download or archive.is_file()  # which is only unpacked
        _fetch(name, root, files, partial(source, root, download=True), allowed)
    try:
        train, test = (source(parent, train=part) for part in (True, False))
    except RuntimeError as error:
        raise _corrupt(root, f"a batch of {name}", "its md5 sum differs") from error
    return _dataset(name, train.classes, (train.data, train.targets), (test.data, test.targets))


def _load_svhn(name: str, root: Path, download: bool) -> Dataset:
    from torchvision.datasets import SVHN

    files = {split: SVHN.split_list[split][1] for split in ("train", "test")}
    if not all((root / file).is_file() for file in files.values()):
        _fetch(
            *(name, root, " and ".join(files.values())),
            lambda: [SVHN(str(root), split, download=True) for split in files],
            download,
        )
    parts = []
    for split, file in files.items():
        try:
            part = SVHN(str(root), split)
        except (RuntimeError, OSError, ValueError) as error:
            raise _corrupt(root, file, error) from error
        parts.append((part.data, part.labels))
    return _dataset(name, "0123456789", *parts)


def _load_fashion_mnist(name: str, root: Path, download: bool) -> Dataset:
    folders = (root, root / "FashionMNIST" / "raw", root / "raw")
    found = [folder for folder in folders if all(_idx_file(folder, file) for file in _IDX_FILES)]
    if not found:
        from torchvision.datasets import FashionMNIST

        files = f"{_IDX_FILES[0]}.gz and the three beside it"
        _fetch(name, root, files, lambda: FashionMNIST(str(root), download=True), download)
        found = [folders[1]]
    x_train, y_train, x_test, y_test = (_read_idx(found[0], file, root) for file in _IDX_FILES)
    for x, y, file in ((x_train, y_train, _IDX_FILES[0]), (x_test, y_test, _IDX_FILES[2])):
        if len(x) != len(y) or y.max(initial=0) >= len(_FASHION_CLASSES):
            raise _corrupt(root, file, "its labels do not fit")
    return _dataset(name, _FASHION_CLASSES, (x_train, y_train), (x_test, y_test))


def _dataset(
    name: str, classes: Sequence[str], *parts: tuple[np.ndarray, Sequence[int]]
) -> Dataset:
    """Return the data set of the images and labels of "train" and "test"."""
    pairs = [(to_rgb(x, name), np.asarray(y, np.int64)) for x, y in parts]
    return Dataset(*pairs[0], *pairs[1], classes=tuple(classes))


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def _read_idx(folder: Path, name: str, root: Path) -> np.ndarray:
    """Return the uint8 array of an idx file: 2 zero bytes, type 8, ndim, sizes, elements."""
    path = _idx_file(folder, name)
    assert path is not None
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise _corrupt(root, path.name, error) from error
    ndim = 3 if "idx3" in name else 1
    start = 4 + 4 * ndim
    if content[:4] == bytes((0, 0, 8, ndim)) and len(content) >= start:
        shape = [int(size) for size in np.frombuffer(content[4:start], ">u4")]
        if len(content) == start + math.prod(shape):
            return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    raise _corrupt(root, path.name, "not a whole idx file of bytes")


def _fetch(
    name: str, root: Path, files: str, construct: Callable[[], object], download: bool
) -> None:
    """Let torchvision download and unpack."""
    if not download:
        raise ValueError(
            f"data.root={root} does not hold {name}: place {files} there, or use data=shapes10"
        )
    try:
        root.mkdir(parents=True, exist_ok=True)
        construct()
    except (OSError, RuntimeError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"could not download {name} ({reason}); place {files} in {root}, or use data=shapes10"
        ) from error


def _corrupt(root: Path, file: str, reason: object) -> ValueError:
    return ValueError(
        f"data.root={root}: {file} there is corrupt or incomplete ({reason}): fetch it again"
    )
