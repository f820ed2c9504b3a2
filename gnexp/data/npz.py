"""Images from one .npz file: x_train, y_train, x_test, y_test, or MedMNIST's four arrays."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from gnexp.data.arrays import Dataset, to_rgb

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MEDMNIST_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(root: Path) -> Dataset:
    """Return the arrays of the .npz file `root`, or of the only one in the folder `root`.

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); labels integers (N,) or (N, 1). The
    labels met in training become 0, 1, ... in ascending order and stay the names of the classes.
    Pickled objects are never loaded. Raises ValueError for anything else, naming the file.
    """
    path = npz_file(root)
    where, arrays = f"data.root={path}", _read(path)
    parts = {}
    for images, labels in (list(arrays)[:2], list(arrays)[2:]):
        x = parts[images] = to_rgb(arrays[images], f"{where}: {images}")
        y = parts[labels] = _labels(arrays[labels], f"{where}: {labels}")
        if len(x) != len(y):
            raise ValueError(f"{where}: {images} has {len(x)} images but {labels} {len(y)} labels")
        if not len(x):
            raise ValueError(f"{where}: {images} holds no images")
    _, train_labels, _, test_labels = parts
    x_train, y_train, x_test, y_test = parts.values()
    known = np.unique(y_train)
    if len(unseen := np.setdiff1d(y_test, known)):
        some = ", ".join(map(str, unseen[:5])) + (", ..." if len(unseen) > 5 else "")
        raise ValueError(f"{where}: {test_labels} has labels that {train_labels} lacks: {some}")
    if len(known) < 2:
        raise ValueError(f"{where}: {train_labels} has one class only: two are needed")
    y_train, y_test = (np.searchsorted(known, y).astype(np.int64) for y in (y_train, y_test))
    return Dataset(x_train, y_train, x_test, y_test, tuple(map(str, known)))


def npz_file(root: Path) -> Path:
    """Return `root`, or the only .npz file in it if it is a folder; ValueError if there is none."""
    if root.is_dir():
        files = sorted(root.glob("*.npz"))
        if len(files) != 1:
            raise ValueError(
                f"data.root={root} is a folder with {len(files)} .npz files: name the file itself"
            )
        return files[0]
    if not root.exists():
        raise ValueError(f"data.root={root} does not exist: data=npz needs a .npz file")
    return root


def _read(path: Path) -> dict[str, np.ndarray]:
    """Return the four arrays by their keys: training images, labels, test images, labels."""
    # numpy would take a .npy file, or anything pickled, for what it is: only a zip will do.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data.root={path} is not a .npz file, or is truncated")
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = _MEDMNIST_KEYS if set(_MEDMNIST_KEYS) <= set(file.files) else _KEYS
            if missing := [key for key in keys if key not in file.files]:
                raise ValueError(
                    f"data.root={path} lacks {', '.join(missing)}: it holds "
                    f"{', '.join(file.files) or 'nothing'}, and {', '.join(_KEYS)} are needed"
                )
            return {key: _member(file, key, path) for key in keys}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"data.root={path} is corrupt or truncated ({error})") from error


def _member(file: np.lib.npyio.NpzFile, key: str, path: Path) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:  # numpy's word for a pickled or cut array
        raise ValueError(f"data.root={path}: {key} cannot be read ({error})") from error


def _labels(y: np.ndarray, what: str) -> np.ndarray:
    if y.dtype.kind not in "iu":
        raise ValueError(f"{what} has dtype {y.dtype}: labels must be integers")
    if y.ndim != 1 and not (y.ndim == 2 and y.shape[1] == 1):
        raise ValueError(f"{what} has shape {y.shape}: labels must be (N,) or (N, 1)")
    y_N = y.reshape(-1).astype(np.int64)
    if (y_N < 0).any():
        raise ValueError(f"{what} has a negative label, {y_N.min()}: labels start at 0")
    return y_N
