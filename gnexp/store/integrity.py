"""Name the files of a folder that were changed or lost since they were written, and their cure.

By their digests, see gnexp.store.digests; what files hold is read elsewhere.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path

from gnexp.store import digests
from gnexp.store.archive import zip_of
from gnexp.store.files import CorruptFile, bytes_of, is_file
from gnexp.store.run_files import FILES, FROM, STUDY_FILES

_AGAIN = {name: file.again for name, file in (FILES | STUDY_FILES).items()}
_AGAIN[digests.FILE] = (
    "the same 'gnexp train' keeps the digests in it that are still those of files"
)


def restored_by(path: Path) -> str:
    """Return what brings a file of a run, or of a study, back."""
    if outer := zip_of(path):
        return f"nothing in {outer.name} is repaired, export the study again"
    text = _AGAIN.get(path.name, "nothing brings it back")
    if FROM in text and not _is_whole(path.parent / "checkpoint.pt"):
        text = text.replace(FROM, f"{FROM}, which is not whole here")
    return text.format(study=path.parent.parent.name, what=path.stem)


def _is_whole(path: Path) -> bool:
    try:
        return digests.read_checked(path) is not None
    except CorruptFile:
        return False


def changed_files(
    folder: Path, names: Iterable[str] | None = None, read: Collection[str] = ()
) -> dict[str, str]:
    """Return {file: sentence} of changed or lost ones, of `names` or all; read: known as whole."""
    try:
        stored = digests.stored_digests(folder)
    except CorruptFile as error:
        return {digests.FILE: f"{error}, so that nobody can tell whether others were"}
    found = {}
    for name in sorted(stored if names is None else stored.keys() & set(names)):
        path = folder / name
        try:
            if name not in read:
                digests.read_checked(path)
            if name in _AGAIN and is_gone(path):
                found[name] = f"{path} is gone"
        except CorruptFile as error:
            found[name] = str(error)
    return found


def is_gone(path: Path) -> bool:
    """Return whether a file was written and is no longer there; raises CorruptFile."""
    accepted = digests.stored_digests(path.parent).get(path.name, [digests.ABSENT])
    return digests.ABSENT not in accepted and not is_file(path)


def without_digest(folder: Path) -> list[str]:
    """Return the files of a run, or a study, that have no digest; [] without readable digests."""
    try:
        stored = digests.stored_digests(folder)
    except CorruptFile:
        return []
    names = (*FILES, *STUDY_FILES)
    return [name for name in names if name not in stored and is_file(folder / name)]


def lost_rows(
    folder: Path, seeds: Iterable[int], rows: Callable[[str], list[Mapping[str, object]]]
) -> list[str]:
    """Return a sentence per table that lacks rows of its corrupt copy, which is kept beside it.

    seeds: of the run. rows: returns the rows that a table has now. Digits of the corrupt one may be
    wrong, so that its rows are only counted.
    """
    found = []
    try:
        stored = digests.stored_digests(folder)
    except CorruptFile:
        return []
    for aside in sorted(stored):
        table, mark, _ = aside.partition(".corrupt")
        if not mark or not table.endswith(".csv"):
            continue
        data = bytes_of(folder / aside) or b""
        had = Counter(line.split(b",")[0].decode("ascii", "replace") for line in data.splitlines())
        now = Counter(str(row["seed"]) for row in rows(table))
        count = sum(had[str(seed)] - now[str(seed)] for seed in seeds)
        if count > 0:  # in sum: the digit that changed may be a seed's
            again = restored_by(folder / table)
            found.append(f"{folder / table} lacks {count} rows that {aside} holds: {again}")
    return found
