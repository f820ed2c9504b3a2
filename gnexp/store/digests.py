"""The digest of every file of a folder, in its digests.json: bytes that changed are noticed.

{file name: SHA-256}, and in the last line the digest of the lines above. A writer puts the new
digest beside the old one before it replaces a file, and drops the old one afterwards: a process
that is killed in between has changed nothing. "absent" stands for a file that may be missing.
"""

import functools
import hashlib
import itertools
import json
import os
import re
from pathlib import Path
from typing import Any

from gnexp.store import archive, files
from gnexp.store.files import CorruptFile
from gnexp.store.locks import require_locks

FILE = "digests.json"
ABSENT = "absent"

Digests = dict[str, list[str]]


def digest_of(name: str, data: bytes) -> str:
    """Return the SHA-256 of a file's bytes; of text without the carriage returns that git adds."""
    if not re.search(archive.WEIGHTS, name):
        data = data.replace(b"\r\n", b"\n")
    return hashlib.sha256(data).hexdigest()


def stored_digests(folder: Path) -> Digests:
    """Return the digests that files may have; raises CorruptFile if digests.json was changed."""
    path = folder / FILE
    try:
        version = archive.version(archive.zip_of(path) or path) if files.is_file(path) else ()
    except OSError:
        return {}
    return dict(_parsed(path, *version)) if version else {}


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, *version: int) -> Digests:
    data = (files.bytes_of(path) or b"").replace(b"\r\n", b"\n")
    try:
        stored = json.loads(data)
        del stored[FILE]
        entries = {k: [v] if isinstance(v, str) else list(map(str, v)) for k, v in stored.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise changed(path) from error
    if encoded(entries) != data:
        raise changed(path)
    return entries


def encoded(entries: Digests) -> bytes:
    """Return digests.json with these digests."""
    shown = {name: v[0] if len(v) == 1 else v for name, v in sorted(entries.items())}
    lines = "{\n" + "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in shown.items())
    own = hashlib.sha256(lines.encode()).hexdigest()
    return f'{lines} "{FILE}": "{own}"}}\n'.encode()


def changed(path: Path) -> CorruptFile:
    """Return the error for a file whose bytes are not those that were written."""
    return CorruptFile(f"{path} was changed since it was written")


def read_checked(path: Path) -> bytes | None:
    """Return a file's bytes, None where there is no such file.

    Raises CorruptFile when they are not those that were written. A file without a digest, or
    beside a corrupt digests.json, is read as it is; the readers of the folder announce that.
    """
    before: Any = None
    while (data := files.bytes_of(path)) is not None:
        try:
            accepted = stored_digests(path.parent).get(path.name)
        except CorruptFile:
            return data
        found = digest_of(path.name, data)
        if accepted is None or found in accepted:
            return data
        if before == (found, accepted):  # seen twice, so that no writer came between two looks
            raise changed(path)
        before = found, accepted
    return None


def repair(folder: Path) -> str:
    """Set a corrupt digests.json aside, keep what is true in it; return a sentence, "" if whole."""
    try:
        stored_digests(folder)
        return ""
    except CorruptFile as error:
        data = (folder / FILE).read_bytes()
        aside = set_aside_name(folder, FILE)
        require_locks()
        os.replace(folder / FILE, folder / aside)
        found = {name: digest_of(name, (folder / name).read_bytes()) for name in listed(folder)}
        kept = {name: [digest] for name, digest in found.items() if digest.encode() in data}
        files.write_whole(folder / FILE, encoded(kept))
        lost = ", ".join(name for name in found if name not in kept)
        unknown = f"; unknown is now whether {lost} was changed" if lost else ""
        return f"{error}: kept as {aside}{unknown}"


def listed(folder: Path) -> list[str]:
    """Return the names of the files in a folder that have, or could have, a digest."""
    found = (path for path in folder.iterdir() if path.is_file())
    names = (path.name for path in found if not path.name.startswith((".", FILE)))
    return sorted(name for name in names if "tfevents" not in name)  # which loggers derive


def set_aside_name(folder: Path, name: str) -> str:
    """Return the name under which a corrupt file is kept."""
    others = (f"{name}.corrupt-{number}" for number in itertools.count(2))
    names = itertools.chain([f"{name}.corrupt"], others)
    return next(name for name in names if not (folder / name).exists())


class Writer:
    """Changes files and their digests; raises CorruptFile if digests.json was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stored = stored_digests(folder)
        self._done: dict[str, str] = {}  # {name: the one digest that it has now}

    def write(self, name: str, data: bytes | str) -> None:
        """Replace a file whole, see `files.write_whole`."""
        data = data.encode() if isinstance(data, str) else data
        digest = digest_of(name, data)
        self._announce({name: digest})
        files.write_whole(self.folder / name, data)
        self._done[name] = digest

    def rename(self, name: str, new: str) -> None:
        """Rename a file, whatever its bytes are."""
        digest = digest_of(new, (self.folder / name).read_bytes())
        self._announce({name: ABSENT, new: digest})
        require_locks()
        os.replace(self.folder / name, self.folder / new)
        self._done |= {name: ABSENT, new: digest}

    def remove(self, name: str) -> None:
        """Remove a file, or forget one that is gone."""
        self._announce({name: ABSENT})
        require_locks()
        (self.folder / name).unlink(missing_ok=True)
        self._done[name] = ABSENT

    def record(self, name: str) -> None:
        """Give a file that has no digest the one that it has now."""
        self._done.setdefault(name, digest_of(name, (self.folder / name).read_bytes()))

    def close(self) -> None:
        """Drop the digests that files had before."""
        self._store(self._settled())

    def settle(self) -> None:
        """Drop the digests that files had before a writer that was killed."""
        for name, accepted in self._stored.items():
            if len(accepted) > 1 and (now := self._now(name)) in accepted:
                self._done.setdefault(name, now)

    def _settled(self) -> Digests:
        entries = {**self._stored, **{name: [digest] for name, digest in self._done.items()}}
        return {name: accepted for name, accepted in entries.items() if accepted != [ABSENT]}

    def _announce(self, new: dict[str, str]) -> None:
        entries = self._settled()
        for name, digest in new.items():
            entries[name] = list(dict.fromkeys([*(entries.get(name) or [self._now(name)]), digest]))
        self._store(entries)

    def _now(self, name: str) -> str:
        data = files.bytes_of(self.folder / name)
        return ABSENT if data is None else digest_of(name, data)

    def _store(self, entries: Digests) -> None:
        if entries != self._stored:
            files.write_whole(self.folder / FILE, encoded(entries))
            self._stored, self._done = entries, {}
