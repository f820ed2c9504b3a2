"""The files of a study that one zip of it holds, with their digests; weights and logits stay."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from gnexp.store import digests
from gnexp.store.archive import WEIGHTS
from gnexp.store.digests import ABSENT, digest_of, read_checked, stored_digests
from gnexp.store.files import CorruptFile, bytes_of
from gnexp.store.run_files import FILES, STUDY_FILES
from gnexp.store.study import Study, runs_of


@dataclass
class Export:
    """Members of the zip, {path below the study: bytes}, and the paths left out."""

    files: dict[str, bytes] = field(default_factory=dict)
    weights: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


def export_of(study: Study) -> Export:
    """Return what `gnexp export` writes of a study's folder, also while the study is trained."""
    export = Export()
    names = [run.name for run in runs_of(study.folder)]
    for name in ("", *names):
        folder = study.folder / name
        below = f"{name}/" if name else ""
        kept = [path for path in _files(folder) if _is_kept(path.name)]
        export.files |= {f"{below}{n}": data for n, data in _consistent(folder, kept).items()}
        for child in sorted(folder.iterdir()):
            if child in kept or child.name in (*names, digests.FILE) or child.name[0] == ".":
                continue
            is_weights = child.is_file() and re.search(WEIGHTS, child.name)
            (export.weights if is_weights else export.others).append(f"{below}{child.name}")
    return export


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.iterdir()) if path.is_file())


def _is_kept(name: str) -> bool:
    if re.search(WEIGHTS, name) or name == digests.FILE:
        return False
    return name.partition(".corrupt")[0] in FILES | STUDY_FILES or bool(
        re.match(r"traceback-\d+\.txt", name)
    )


def _consistent(folder: Path, kept: list[Path]) -> dict[str, bytes]:
    """Return files, and digests.json with what it says of them.

    A file that was changed since it was written keeps the digest that it had, and a file that is
    gone too, so that a reader of the zip notices as a reader of the folder does.
    """
    try:
        stored = stored_digests(folder)
    except CorruptFile:
        whole = {path.name: data for path in kept if (data := bytes_of(path)) is not None}
        return whole | {digests.FILE: (folder / digests.FILE).read_bytes()}
    found: dict[str, bytes] = {}
    entries = {
        name: accepted
        for name, accepted in stored.items()
        if not re.search(WEIGHTS, name) and ABSENT not in accepted
    }
    for path in kept:
        try:
            data = read_checked(path)
            if data is not None and path.name in stored:
                entries[path.name] = [digest_of(path.name, data)]
        except CorruptFile:
            data = bytes_of(path)
        if data is not None:
            found[path.name] = data
    return found | ({digests.FILE: digests.encoded(entries)} if stored else {})
