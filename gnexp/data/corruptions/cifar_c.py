"""The published CIFAR-10-C files, used as they are.

A folder with one NAME.npy per corruption, uint8 (50000, 32, 32, 3): the 10,000 test images in
CIFAR-10's own order at severity 1, then at severity 2, up to 5; and labels.npy, (50000,).
CIFAR-100-C is laid out alike, and works with CIFAR-100. Source: the authors' script
make_cifar_c.py in github.com/hendrycks/robustness, which wrote them.

Axes: N images, S = 32 pixels.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gnexp.data.corruptions.table import EXTRA, PUBLISHED, SEVERITIES, require_corruption
from gnexp.data.subsets import balanced_subset, fixed_test_order

RELEASED = PUBLISHED + EXTRA
_IMAGES = 10_000
_SHAPE = (len(SEVERITIES) * _IMAGES, 32, 32, 3)


@dataclass(frozen=True, eq=False)
class CifarC:
    """Files of the release: `images` maps a name to its memory-mapped uint8 (50000, 32, 32, 3);
    `labels` int64 (10000,), in the published order, which every severity repeats."""

    root: Path
    images: Mapping[str, np.ndarray]
    labels: np.ndarray

    def positions(self, y_test: np.ndarray, side: int) -> np.ndarray:
        """Return where a loaded test set's images lie in the published order, int64 (N,).

        y_test: the N labels in gnexp's order, of the whole test set or a balanced part of it, as
        data.test_limit takes it; side: of its images. Raises ValueError if these are not the labels
        there, so that the test images must be others or in another order, or not 32x32.
        """
        if side != _SHAPE[1]:
            raise ValueError(
                f"shift.root={self.root} holds images of 32x32, the data are {side}x{side}:"
                " leave data.size at 32"
            )
        count = len(y_test)
        if len(np.unique(self.labels)) <= count <= _IMAGES:
            subset = balanced_subset(self.labels, count, "data.test_limit")
            at = subset[fixed_test_order(count)]
            if np.array_equal(self.labels[at], y_test):
                return at
        raise ValueError(
            f"shift.root={self.root} does not fit the data: the {count:,} test labels are not"
            f" those of labels.npy, which holds CIFAR's test set in its published order, as"
            f" data=cifar10 reads it"
        )

    def rows(self, name: str, severity: int, positions: np.ndarray) -> np.ndarray:
        """Return uint8 (N, 3, 32, 32), the published images at these positions."""
        x_NSS3 = self.images[name][(severity - 1) * _IMAGES + positions]
        return np.ascontiguousarray(x_NSS3.transpose(0, 3, 1, 2))


def load_cifar_c(root: str | Path, names: Iterable[str]) -> CifarC:
    """Open the files of a CIFAR-10-C folder for the corruptions named, without reading the images.

    names: of RELEASED, or the pure ones, which the release lacks and which stay to be computed.
    Raises ValueError with one sentence for an unknown name, and for a file that is missing or not
    what it must be.
    """
    names, root = tuple(names), Path(root).expanduser()
    for name in names:
        require_corruption(name, released=True)
    if not root.is_dir():
        raise ValueError(f"root={root} is not a folder: it must hold CIFAR-10-C's NAME.npy files")
    images = {name: _array(root, name, _SHAPE, "uint8") for name in names if name in RELEASED}
    labels = _array(root, "labels", _SHAPE[:1], "integers").reshape(len(SEVERITIES), _IMAGES)
    for severity in SEVERITIES[1:]:
        if not np.array_equal(labels[0], labels[severity - 1]):
            raise ValueError(
                f"root={root}: labels.npy differs between severity 1 and {severity}: it must hold"
                " the same 10,000 labels five times"
            )
    return CifarC(root, images, labels[0].astype(np.int64))


def _array(root: Path, name: str, shape: tuple[int, ...], kind: str) -> np.ndarray:
    """Return NAME.npy, mapped into memory; kind: "uint8", or any "integers"."""
    path = root / f"{name}.npy"
    if not path.is_file():
        found = ", ".join(sorted(each.name for each in root.glob("*.npy"))) or "no .npy file"
        raise ValueError(f"root={root} lacks {path.name}: it holds {found}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(
            f"root={root}: {path.name} is cut short or is no .npy file of numbers: {error}"
        ) from error
    if not isinstance(array, np.ndarray):  # a zip archive under this name
        raise ValueError(f"root={root}: {path.name} is an archive: it must be one array")
    if array.shape != shape:
        raise ValueError(f"root={root}: {path.name} has shape {array.shape}: it must be {shape}")
    if array.dtype != np.uint8 and not (kind == "integers" and array.dtype.kind in "iu"):
        raise ValueError(f"root={root}: {path.name} has dtype {array.dtype}: it must be {kind}")
    return array
