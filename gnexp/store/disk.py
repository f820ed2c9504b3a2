"""Recognize a disk that refuses to be written to, among the exceptions of a training."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_OF_A_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}
_OF_A_DISK |= {errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.EMLINK}
# PyTorch and numpy raise other exceptions for a write that failed.
_OF_A_WRITER = ("PytorchStreamWriter failed", "file write failed", "requested and 0 written")


def disk_failure(error: BaseException, folder: Path) -> str:
    """Return a sentence if the error, or one behind it, is of the disk of `folder`, else ""."""
    for each in _chain(error):
        of_files = isinstance(each, OSError)
        if of_files and (each.errno in _OF_A_DISK or _lies_in(each.filename, folder)):
            return _sentence(folder, each.strerror or str(each))
        if any(words in str(each) for words in _OF_A_WRITER):
            return _sentence(folder, str(each).splitlines()[0])
    return ""


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _lies_in(filename: object, folder: Path) -> bool:
    if not isinstance(filename, str | bytes | os.PathLike):
        return False
    return Path(os.path.abspath(os.fsdecode(filename))).is_relative_to(os.path.abspath(folder))


def _sentence(folder: Path, reason: str) -> str:
    return (
        f"{folder} cannot be written to: {reason}{_disk_of(folder)}; what is stored is kept, and"
        " the same command goes on once it can"
    )


def _disk_of(folder: Path) -> str:
    """Return " (disk at PLACE, 12 KB free)", "" if unknown."""
    try:
        there = Path(os.path.abspath(folder))
        while not there.exists():
            there = there.parent
        free = shutil.disk_usage(there).free
        while not there.is_mount():
            there = there.parent
    except OSError:
        return ""
    return f" (disk at {there}, {free // 1000:,} KB free)"
