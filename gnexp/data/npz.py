"""Images from one .npz file: x_train, y_train, x_test, y_test, or MedMNIST's four arrays."""

import zipfile
import zlib
from pathlib import Path

import numpy as np

from gnexp.data.arrays import Arrays, to_rgb

_KEYS = ("x_train", "y_train", "x_test", "y_test")
_MEDMNIST_KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def load_npz(root: Path) -> Arrays:
    """Return the arrays of the .npz file `root`, or of the only one in the folder `root`.

    Images are uint8 (N, H, W), (N, H, W, C) or (N, C, H, W); labels integers (N,) or (N, 1). The
    labels met in training become 0, 1, ... in ascending order and stay the names of the classes.
    Pickled objects are never loaded. Raises ValueError for anything else, naming the file.
    """
    path = npz_file(root)
    arrays, keys = _read(path)
    parts: list[np.ndarray] = []
    for images, labels in (keys[:2], keys[2:]):
        x = to_rgb(arrays[images], f"data.root={path}: {images}")
        y = _labels(arrays[labels], f"data.root={path}: {labels}")
        if len(x) != len(y):
            raise ValueError(
                f"data.root={path}: {images} has {len(x)} images but {labels} {len(y)} labels"
            )
        if not len(x):
            raise ValueError(f"data.root={path}: {images} holds no images")
        parts += [x, y]
    x_train, y_train, x_test, y_test = parts
    known = np.unique(y_train)
    unseen = np.setdiff1d(y_test, known)
    if len(unseen):
        raise ValueError(
            f"data.root={path}: {keys[3]} has labels that {keys[1]} lacks: {_some(unseen)}"
        )
    if len(known) < 2:
        raise ValueError(f"data.root={path}: {keys[1]} has one class only: two are needed")
    return Arrays(
        x_train,
        np.searchsorted(known, y_train).astype(np.int64),
        x_test,
        np.searchsorted(known, y_test).astype(np.int64),
        tuple(str(label) for label in known),
    )


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


def _read(path: Path) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    # numpy would take a .npy file, or anything pickled, for what it is: only a zip will do.
    if not zipfile.is_zipfile(path):
        raise ValueError(f"data.root={path} is not a .npz file, or is truncated")
    try:
        with np.load(path, allow_pickle=False) as file:
            keys = _MEDMNIST_KEYS if set(_MEDMNIST_KEYS) <= set(file.files) else _KEYS
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise ValueError(
                    f"data.root={path} lacks {', '.join(missing)}: it holds "
                    f"{', '.join(file.files) or 'nothing'}, and {', '.join(_KEYS)} are needed"
                )
            return {key: _member(file, key, path) for key in keys}, keys
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


def _some(values: np.ndarray) -> str:
    return ", ".join(map(str, values[:5])) + (", ..." if len(values) > 5 else "")
