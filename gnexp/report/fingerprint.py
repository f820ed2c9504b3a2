"""Fingerprint of a report: checksums of its study and of the code that made it.

The same inputs give the same bytes, so a report whose inputs and files are unchanged need not be
made again: of a finished study that is most of the time a repeated command takes.
"""

import functools
import hashlib
from collections.abc import Collection, Iterable, Sequence
from importlib import metadata
from pathlib import Path

from gnexp.analysis.study_analysis import StudyAnalysis
from gnexp.report.figures import style
from gnexp.report.page.render import CHECK
from gnexp.store.files import CorruptFile, bytes_of, read_json, write_json
from gnexp.store.lr_choices import CHOICES
from gnexp.store.run_files import INPUTS

STAMP = ".made.json"
FORMATS = ("png", "svg")  # of the figures' files, where nothing else is asked for
_LIBRARIES = ("matplotlib", "numpy", "pandas", "scipy", "jinja2")


def formats_kept(asked: Sequence[str], folder: Path, figures: Collection[str]) -> list[str]:
    """Return the formats asked for, and those in which `folder` holds one of the figures already.

    What was asked for once is kept up to date. The order is that of style.FORMATS, so that a
    report does not depend on the order in which its formats were asked for.
    """
    kinds = (*style.FORMATS, *(kind for kind in asked if kind not in style.FORMATS))
    there = {path.name for path in folder.iterdir()}
    return [
        kind
        for kind in dict.fromkeys(kinds)
        if kind in asked or any(f"{name}.{kind}" in there for name in figures)
    ]


def is_fresh(folder: Path, inputs: str) -> bool:
    """Return whether the report in `folder` is that of these inputs, and every file still whole."""
    try:
        stamp = read_json(folder / STAMP)
    except CorruptFile:
        return False
    if not stamp or stamp.get("inputs") != inputs or not stamp.get("files"):
        return False
    return not changed_files(folder)


def changed_files(folder: Path) -> list[str]:
    """Return the names of the files of a report that are no longer those that were made."""
    try:
        made = read_json(folder / STAMP).get("files", {})
        return [name for name, was in made.items() if _digest(folder / name) != was]
    except (CorruptFile, AttributeError):
        return [STAMP]


def stamp(folder: Path, inputs: str, files: Iterable[Path]) -> None:
    """Write down of what inputs the files of this report were made."""
    digests = {path.name: _digest(path) for path in files}
    write_json(folder / STAMP, {"inputs": inputs, "files": digests})


def files_of(folder: Path) -> dict[str, Path]:
    """Return the files of a fresh report by name."""
    return {name: folder / name for name in read_json(folder / STAMP)["files"]}


def fingerprint(analysis: StudyAnalysis, formats: Sequence[str] = FORMATS) -> str:
    """Return a checksum of everything that a report is made of: files, options and code."""
    study, margin = analysis.study, f"margin={analysis.margin!r}"
    parts = [f"reference_batch={analysis.reference_batch}", margin, study.name, _makers()]
    parts += study.corrupt_files
    parts += [*formats, _digest(study.out / CHECK), _digest(study.folder / CHOICES)]
    for record in study.runs:
        # Whether a seed is running or interrupted is no file's affair.
        parts += [record.name, repr(sorted(record.statuses.items()))]
        parts += [_digest(record.folder / name) for name in INPUTS]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@functools.cache
def _makers() -> str:
    """Return a digest of the code that makes reports, and of its libraries' versions."""
    package = Path(__file__).parents[1]
    kinds, parts = ("py", "j2", "txt", "toml", "css", "js"), ("store", "analysis", "report")
    sources = sorted(p for part in parts for k in kinds for p in (package / part).rglob(f"*.{k}"))
    versions = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    text = "\n".join([*versions, *(_digest(path) for path in sources)])
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        data = bytes_of(path)
    except OSError:
        data = None
    return "absent" if data is None else hashlib.sha256(data).hexdigest()
