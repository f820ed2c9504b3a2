"""Images from root/train/CLASS/* and root/test/CLASS/*, decoded once into a checksummed cache.

Shapes: N images, S pixels along a side.
"""

import hashlib
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from gnexp.data.arrays import LEAST_SIDE, Arrays, digest, fit_square, to_rgb
from gnexp.data.balanced import balanced_subset
from gnexp.data.published import cache_folder

_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".tif", ".tiff"),
}
_CACHE_FORMAT = 1  # raise it when the same files would decode to other pixels


def load_imagefolder(
    root: Path, train_limit: int | None, test_limit: int | None, size: int | None
) -> Arrays:
    """Return the images below `root`, classes and files in the order of their names.

    size: pixels to resize to (shorter side, bilinear, then a central crop); None requires equal
    square images. Only the images within the limits are decoded, or read from the cache.
    Hidden files and files that are no images by their suffix are passed over.
    Raises ValueError naming the folder or file that is missing, unreadable, or does not fit.
    """
    classes, files, labels = _list_files(root)
    for part, limit in (("train", train_limit), ("test", test_limit)):
        kept = balanced_subset(labels[part], limit, f"data.{part}_limit")
        files[part] = [files[part][i] for i in kept]
        labels[part] = labels[part][kept]
    paths = files["train"] + files["test"]
    cache = cache_folder() / "imagefolder" / f"{_cache_key(root, paths, size)}.npz"
    x_N3SS = _read_cache(cache)
    if x_N3SS is None:
        x_N3SS = to_rgb(_decode(paths, size), f"data.root={root}")
        _write_cache(cache, x_N3SS)
    count = len(files["train"])
    return Arrays(x_N3SS[:count], labels["train"], x_N3SS[count:], labels["test"], classes)


def _list_files(
    root: Path,
) -> tuple[tuple[str, ...], dict[str, list[Path]], dict[str, np.ndarray]]:
    """Return the classes, and for "train" and "test" the image files and their labels."""
    if not root.exists():
        raise ValueError(f"data.root={root} does not exist: name a folder with train/ and test/")
    if not root.is_dir():
        raise ValueError(f"data.root={root} is not a folder: name one with train/ and test/")
    classes: dict[str, list[str]] = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise ValueError(
                f"data.root={root} has no folder {part}/: images lie in {part}/CLASS/ there"
            )
        classes[part] = [entry.name for entry in _visible(root / part) if entry.is_dir()]
    names = classes["train"]
    if len(names) < 2:
        raise ValueError(
            f"data.root={root}: train/ must have at least 2 class folders, and has {len(names)}"
        )
    if differing := sorted(set(names) ^ set(classes["test"])):
        where = "train" if differing[0] in names else "test"
        raise ValueError(
            f"data.root={root}: train/ and test/ must have the same classes, but "
            f"{differing[0]} is in {where}/ only"
        )
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for part in files:
        for label, name in enumerate(names):
            found = [
                Path(entry)
                for entry in _visible(root / part / name)
                if Path(entry).suffix.lower() in _SUFFIXES and entry.is_file()
            ]
            if not found:
                raise ValueError(f"data.root={root}: {part}/{name} holds no images")
            files[part] += found
            labels[part] += [label] * len(found)
    return tuple(names), files, {part: np.asarray(labels[part], np.int64) for part in labels}


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _decode(paths: list[Path], size: int | None) -> np.ndarray:
    """Return (N, S, S, 3) uint8."""
    first = _decode_one(paths[0], size)
    x_NSS3 = np.empty((len(paths), *first.shape), np.uint8)
    for i, path in enumerate(paths):
        image = _decode_one(path, size)
        if image.shape != first.shape:
            raise ValueError(
                f"{path} is {_pixels(image)} and {paths[0]} is {_pixels(first)}: "
                "give one size to resize to, such as data.size=32"
            )
        x_NSS3[i] = image
    return x_NSS3


def _decode_one(path: Path, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as file:
            mode = file.mode
            image = None if mode == "F" or mode.startswith("I") else file.convert("RGB")
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: delete or replace it") from error
    if image is None:  # Pillow would clip 16 bits to 255 instead of scaling them
        raise ValueError(f"{path} has more than 8 bits per channel (mode {mode}): convert it")
    if size is not None:
        image = fit_square(image, size)
    pixels = np.asarray(image)
    if pixels.shape[0] != pixels.shape[1] or pixels.shape[0] < LEAST_SIDE:
        raise ValueError(
            f"{path} is {_pixels(pixels)}: images must be square and at least "
            f"{LEAST_SIDE}x{LEAST_SIDE}, or be resized with a key such as data.size=32"
        )
    return pixels


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _cache_key(root: Path, paths: list[Path], size: int | None) -> str:
    """Return hex digits that change with the folder's place and any file's name, size or mtime."""
    resolved = root.resolve()
    listing = []
    for path in paths:
        stat = path.stat()
        listing.append((str(path.relative_to(root)), stat.st_size, stat.st_mtime_ns))
    text = json.dumps([_CACHE_FORMAT, str(resolved), size, listing])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_cache(path: Path) -> np.ndarray | None:
    """Return the decoded images, or None when there are none or they fail their checksum."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            x_N3SS, checksum = file["x"], str(file["checksum"])
        if digest(x_N3SS) == checksum:
            return x_N3SS
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    warnings.warn(f"{path} is damaged: decoding the images again", stacklevel=2)
    return None


def _write_cache(path: Path, x_N3SS: np.ndarray) -> None:
    """Write whole and rename: a reader in another process sees all of the file or none of it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, x=x_N3SS, checksum=np.array(digest(x_N3SS)))
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"cannot keep the decoded images at {path}: {error}", stacklevel=2)
