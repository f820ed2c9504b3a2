"""Images from root/train/CLASS/* and root/test/CLASS/*, decoded once into a checksummed cache.

Shapes: N images, S pixels along a side.
"""

import hashlib
import json
import os
import tempfile
import unicodedata
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from gnexp.data.arrays import LEAST_SIDE, Dataset, digest, fit_square, to_rgb
from gnexp.data.downloads import cache_folder
from gnexp.data.subsets import balanced_subset

_SUFFIXES = {
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
    *(".ppm", ".pgm", ".pbm", ".tif", ".tiff"),
}
_CACHE_FORMAT = 2  # raise it when the same files would give other contents
_ORIENTATION = 0x0112  # of EXIF; 1 is upright
LONGEST = 100  # times its shorter side, to which an image is resized: the rest is cropped away


def load_imagefolder(
    root: Path, train_limit: int | None, test_limit: int | None, size: int | None
) -> Dataset:
    """Return the images below `root`, classes and files in the order of their names.

    size: pixels to resize to (shorter side, bilinear, then a central crop); None requires equal
    square images. Only the images within the limits are decoded, or read from the cache.
    Hidden files are passed over; other files that are no images by their suffix, sub-folders, and
    EXIF rotations, which are not applied, are passed over and counted in `passed_over`.
    Raises ValueError naming the folder or file that is missing, unreadable, or does not fit.
    """
    try:
        classes = _classes(root)
        files = {part: _files(root, part, classes) for part in ("train", "test")}
        others = _others(root, files)
    except OSError as error:  # a folder that may not be read, a link to itself
        where = error.filename or root
        raise ValueError(
            f"data.root={root}: {where} cannot be read ({error.strerror or error}); repair it or"
            " remove it"
        ) from error
    label_of, labels = {name: label for label, name in enumerate(classes)}, {}
    for part, limit in (("train", train_limit), ("test", test_limit)):
        y_N = np.asarray([label_of[path.parent.name] for path in files[part]], np.int64)
        kept = balanced_subset(y_N, limit, f"data.{part}_limit")
        files[part], labels[part] = [files[part][i] for i in kept], y_N[kept]
    paths, count = files["train"] + files["test"], len(files["train"])
    cache = cache_folder() / "imagefolder" / f"{_cache_key(root, paths, size)}.npz"
    x_N3SS, turned = _read_cache(cache)
    if x_N3SS is None:
        x_NSS3, turned = _decode(paths, size)
        x_N3SS = to_rgb(x_NSS3, f"data.root={root}")
        _write_cache(cache, x_N3SS, turned)
    if turned:
        others.append(f"the EXIF rotation of {_counted(turned, 'image')}, not applied")
    parts = x_N3SS[:count], labels["train"], x_N3SS[count:], labels["test"]
    return Dataset(*parts, tuple(classes), passed_over="; ".join(others))


def _classes(root: Path) -> list[str]:
    """Return the names of the class folders, which train/ and test/ must have alike."""
    if not root.is_dir():
        why = "is not a folder" if root.exists() else "does not exist"
        raise ValueError(f"data.root={root} {why}: name a folder with train/ and test/")
    found: dict[str, list[str]] = {}
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise ValueError(
                f"data.root={root} has no folder {part}/: images lie in {part}/CLASS/ there"
            )
        found[part] = [entry.name for entry in _visible(root / part) if entry.is_dir()]
    names = found["train"]
    if len(names) < 2:
        raise ValueError(
            f"data.root={root}: train/ must have at least 2 class folders, and has {len(names)}"
        )
    for name in names:
        if any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
            raise ValueError(
                f"data.root={root}: the class folder {name!a} has a line break, another control"
                " character or bytes that are not UTF-8 in its name: rename it in train/ and test/"
            )
    if differing := sorted(set(names) ^ set(found["test"])):
        where = "train" if differing[0] in names else "test"
        raise ValueError(
            f"data.root={root}: train/ and test/ must have the same classes, but "
            f"{differing[0]} is in {where}/ only"
        )
    return names


def _files(root: Path, part: str, classes: Sequence[str]) -> list[Path]:
    """Return the image files of "train" or "test", class after class."""
    files: list[Path] = []
    for name in classes:
        entries = (Path(entry) for entry in _visible(root / part / name) if entry.is_file())
        found = [path for path in entries if path.suffix.lower() in _SUFFIXES]
        if not found:
            raise ValueError(f"data.root={root}: {part}/{name} holds no images")
        files += found
    return files


def _others(root: Path, files: dict[str, list[Path]]) -> list[str]:
    """Return what lies where images do and is none, counted, in words."""
    taken = {path for part in files.values() for path in part}
    kinds: Counter[str] = Counter()
    folders = within = 0
    for path in (Path(e) for folder in {p.parent for p in taken} for e in _visible(folder)):
        if path.is_dir():
            folders += 1
            if not path.is_symlink():  # it may lead anywhere, or back here
                within += sum(len(found) for _, _, found in os.walk(path))
        elif path not in taken:
            kinds[_kind(path)] += 1
    beside = (Path(entry) for part in files for entry in _visible(root / part))
    kinds.update(_kind(path) for path in beside if not path.is_dir())  # folders are the classes
    lines = []
    if kinds:
        each = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        lines.append(f"{_counted(kinds.total(), 'file')} ({each})")
    if folders:
        of_classes = _counted(folders, "sub-folder")
        lines.append(f"{of_classes} of classes with {_counted(within, 'file')}")
    return lines


def _kind(path: Path) -> str:
    return ascii(path.suffix.lower())[1:-1] or "without a suffix"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)


def _decode(paths: list[Path], size: int | None) -> tuple[np.ndarray, int]:
    """Return (N, S, S, 3) uint8, and how many of the images EXIF would turn or mirror."""
    x_NSS3, turned = np.empty(0, np.uint8), 0
    for i, path in enumerate(paths):
        image, is_turned = _decode_one(path, size)
        if i == 0:
            x_NSS3 = np.empty((len(paths), *image.shape), np.uint8)
        if image.shape != x_NSS3.shape[1:]:
            raise ValueError(
                f"{path} is {_pixels(image)} and {paths[0]} is {_pixels(x_NSS3[0])}: "
                "give one size to resize to, such as data.size=32"
            )
        x_NSS3[i], turned = image, turned + is_turned
    return x_NSS3, turned


def _decode_one(path: Path, size: int | None) -> tuple[np.ndarray, bool]:
    try:
        with Image.open(path) as file:
            mode = file.mode
            image = None if mode == "F" or mode.startswith("I") else file.convert("RGB")
            turned = image is not None and _is_turned(file)
    except (OSError, SyntaxError, ValueError, zlib.error, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: delete or replace it") from error
    if image is None:  # Pillow would clip 16 bits to 255 instead of scaling them
        raise ValueError(f"{path} has more than 8 bits per channel (mode {mode}): convert it")
    if size is not None:
        if max(image.size) > LONGEST * min(image.size):
            raise ValueError(
                f"{path} is {image.width}x{image.height}, more than {LONGEST} times as long as"
                " wide, and its middle would be all that is seen: crop or delete it"
            )
        image = fit_square(image, size)
    pixels = np.asarray(image)
    if pixels.shape[0] != pixels.shape[1] or pixels.shape[0] < LEAST_SIDE:
        raise ValueError(
            f"{path} is {_pixels(pixels)}: images must be square and at least "
            f"{LEAST_SIDE}x{LEAST_SIDE}, or be resized with a key such as data.size=32"
        )
    return pixels, turned


def _is_turned(image: Image.Image) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # whatever a broken EXIF block raises: the pixels are whole
        return False


def _pixels(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"


def _cache_key(root: Path, paths: list[Path], size: int | None) -> str:
    """Return hex digits that change with the folder's place and any file's name, size or times.

    The time of the last change of the inode is one of them: `mv` and `cp -p` keep the other.
    """
    resolved = root.resolve()
    listing = []
    for path in paths:
        stat = path.stat()
        times = stat.st_mtime_ns, stat.st_ctime_ns
        listing.append((str(path.relative_to(root)), stat.st_size, *times))
    text = json.dumps([_CACHE_FORMAT, str(resolved), size, listing])
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _read_cache(path: Path) -> tuple[np.ndarray | None, int]:
    """Return the decoded images, None without any or with a false checksum, and how many turn."""
    if not path.exists():
        return None, 0
    try:
        with np.load(path, allow_pickle=False) as file:
            x_N3SS, checksum, turned = file["x"], str(file["checksum"]), int(file["turned"])
        if digest(x_N3SS) == checksum:
            return x_N3SS, turned
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        pass
    warnings.warn(f"{path} is corrupt: decoding the images again", stacklevel=2)
    return None, 0


def _write_cache(path: Path, x_N3SS: np.ndarray, turned: int) -> None:
    """Write whole and rename: a reader in another process sees all of the file or none of it."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, x=x_N3SS, checksum=np.array(digest(x_N3SS)), turned=np.array(turned))
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        warnings.warn(f"cannot keep the decoded images at {path}: {error}", stacklevel=2)
