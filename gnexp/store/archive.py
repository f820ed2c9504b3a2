"""A study as one zip, read in place: results/main.zip/RUN/result.json is a path like any other.

The zip holds one folder, the study's. Nothing is unpacked to disk. A zip may come from a stranger:
the whole zip is checked before a byte of it is used. Weights and logits in it are not read.
"""

import functools
import re
import stat
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

SUFFIX = ".zip"
MOST_TIMES = 100  # the size of the zip; tables and JSON pack to a tenth
MOST_BYTES = 2**30
WEIGHTS = r"\.(pt|npz)\b"  # in names of files that no table is made of


def pack(files: Mapping[str, bytes]) -> bytes:
    """Return a zip of these files; the same files give the same bytes."""
    import io
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, data in sorted(files.items()):
            info = zipfile.ZipInfo(name)  # of 1 January 1980
            info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return buffer.getvalue()


def contents(path: Path) -> dict[str, bytes]:
    """Return {name below the study's folder: bytes} of a zip; ValueError says why it is refused."""
    return _read(path, *version(path))[1]


def version(path: Path) -> tuple[int, int, int]:
    """Return numbers that change when a file is replaced."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def zip_of(path: Path) -> Path | None:
    """Return the zip that a path is, or leads into."""
    outer = (each for each in (path, *path.parents) if each.suffix == SUFFIX)
    return next((each for each in outer if each.is_file()), None)


def bytes_within(path: Path) -> bytes | None:
    """Return the bytes of a file in a zip; None where there is no such file, or no zip."""
    outer = zip_of(path)
    if outer is None:
        return None
    return contents(outer).get(path.relative_to(outer).as_posix())


@functools.lru_cache(maxsize=2)  # as many as are compared
def _read(path: Path, *version: int) -> tuple[str, dict[str, bytes]]:
    if version[-1] > MOST_BYTES:
        raise ValueError(f"{path} is not read: it is larger than {MOST_BYTES} bytes")
    return unpack(path, path.read_bytes())


def unpack(path: Path, data: bytes) -> tuple[str, dict[str, bytes]]:
    """Return the name of the one folder in a zip, and its files; see `contents`."""
    import io
    import zipfile

    files = {}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            found = archive.infolist()
            tops = {info.filename.partition("/")[0] for info in found}
            why = _why_refused(found, len(data), tops)
            for info in found if not why else []:
                if not info.is_dir() and not re.search(WEIGHTS, info.filename):
                    files[info.filename.partition("/")[2]] = archive.read(info)
    except Exception as error:  # zipfile has no list of what it raises for bytes that are no zip
        raise ValueError(f"{path} is no whole zip ({error})") from error
    if why:
        raise ValueError(f"{path} is not read: {why}")
    # zipfile takes a directory that is cut short for a whole one.
    count = int.from_bytes(data[data.rindex(b"PK\5\6") :][10:12], "little")
    if count not in (len(found), 0xFFFF):
        raise ValueError(f"{path} is no whole zip ({len(found)} of its {count} members are there)")
    return tops.pop(), files


def _why_refused(found: list, zip_bytes: int, tops: set[str]) -> str:
    import zipfile

    for info in found:
        name = info.orig_filename  # before zipfile made it harmless
        shown = f"its member {name!a}"
        if re.match(r"/|[A-Za-z]:", name) or re.search(r"[\\\0]|//|(^|/)\.\.?(/|$)", name):
            return f"{shown} could lie outside the study"
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            return f"{shown} is a link or another special file"
        if info.flag_bits & 1:
            return f"{shown} is encrypted"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return f"{shown} is packed in another way than deflate"
    for name, count in Counter(info.filename.rstrip("/").casefold() for info in found).items():
        if count > 1:
            return f"it holds {count} members named {name!a}"
    size = sum(info.file_size for info in found)
    if size > min(MOST_TIMES * zip_bytes, MOST_BYTES):
        return (
            f"its {zip_bytes} bytes unpack to {size}, and at most {MOST_TIMES} times its size and"
            f" {MOST_BYTES} bytes are allowed"
        )
    if len(tops) != 1 or any("/" not in info.filename for info in found):
        return "it must hold one folder, the study's, as 'gnexp export' makes it"
    return ""
