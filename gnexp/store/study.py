"""A study as it is read: its runs, their statuses, and their corrupt files."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.store.archive import SUFFIX
from gnexp.store.files import CorruptFile, names_in
from gnexp.store.integrity import changed_files, lost_rows, without_digest
from gnexp.store.run import NOT_STUDIES, Run
from gnexp.store.run_files import SMALL, TABLES

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Record:
    """The contents of one run's folder, for reading.

    Corrupt files and corrupt lines of tables count as absent; `corrupt_files` names them. A file
    that was changed since it was written is corrupt as a whole.
    """

    name: str
    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    provenance: dict[str, Any]
    statuses: dict[int, dict[str, Any]]  # a finished seed's status comes from result.json
    corrupt_documents: list[str] = field(default_factory=list)

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the whole rows of a table."""
        return self._tables[name][0]

    @cached_property
    def _tables(self) -> dict[str, tuple[list[dict[str, Any]], str]]:
        return {name: Run(self.folder).whole_rows(name) for name in TABLES}

    @cached_property
    def corrupt_files(self) -> list[str]:
        """One sentence for each file but large ones that is not whole, as written, or there."""
        tables = [sentence for _, sentence in self._tables.values() if sentence]
        names = [*SMALL, *(f"traceback-{seed}.txt" for seed in self.statuses)]
        read = (*TABLES, "result.json", "status.json", "provenance.json")
        found = [*self.corrupt_documents, *tables]
        found += changed_files(self.folder, names, read).values()
        return list(dict.fromkeys([*found, *lost_rows(self.folder, self.statuses, self.rows)]))

    @cached_property
    def metrics(self) -> "pd.DataFrame":
        import pandas as pd

        columns = TABLES["metrics.csv"].columns
        return pd.DataFrame(self.rows("metrics.csv"), columns=list(columns)).astype(columns)

    def numbers(self, seed: int) -> dict[str, Any]:
        """Return result.json's numbers of one seed; {} while it is unfinished."""
        return self.result.get("seeds", {}).get(str(seed), {})


@dataclass
class Study:
    """The runs of a folder, or of a zip, sorted by name.

    unreadable: a sentence for each run that had to be left out. unread: zips of the same study that
    are not read, since its folder holds runs.
    """

    name: str
    folder: Path  # or the zip
    runs: list[Record]
    unreadable: list[str] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)

    @property
    def is_zip(self) -> bool:
        return self.folder.suffix == SUFFIX

    @property
    def report_folder(self) -> Path:
        return folder_of(self.folder) / "report"

    @property
    def out(self) -> Path:
        """The folder of the studies, where `gnexp check` writes too."""
        return folder_of(self.folder).parent

    @property
    def corrupt_files(self) -> list[str]:
        """One sentence for each file of the study that is not whole, not as written, or gone."""
        found = [*self.unreadable, *changed_files(self.folder).values()]
        return [*found, *(text for record in self.runs for text in record.corrupt_files)]

    @property
    def unknown(self) -> int:
        """The number of files without a digest, in which a change cannot be detected."""
        folders = [self.folder, *(record.folder for record in self.runs)]
        return sum(len(without_digest(folder)) for folder in folders)


def study_path(out: Path | str, name: str) -> Path:
    """Return the folder of a study by name, or the zip that the name is a path of."""
    return Path(name).expanduser() if name.endswith(SUFFIX) else Path(out) / name


def folder_of(path: Path) -> Path:
    """Return the folder for what is made of a study; of a zip the one beside or around it."""
    if path.suffix != SUFFIX:
        return path
    return path.parent if path.absolute().parent.name == path.stem else path.with_suffix("")


def zips_of(folder: Path) -> list[Path]:
    """Return the zips that stand for a study's folder: within the folder, and beside it."""
    name = folder.name + SUFFIX
    return [path for path in (folder / name, folder.parent / name) if path.is_file()]


def only_zip(folder: Path) -> Path | None:
    """Return the zip that stands for a study's folder without runs, None where there is none."""
    zips = zips_of(folder)
    return zips[0] if zips and not runs_of(folder) else None


def load_study(folder: Path | str) -> Study:
    """Read a study's folder, or zip, finished or not; what is no run is ignored.

    A folder without runs is read from the zip within it or beside it. Corrupt files count as
    absent, see `Study.corrupt_files`. Raises ValueError when there is no such study (listing those
    there are, nearest first), when it holds no run that can be read, and for a zip that is refused.
    """
    folder = Path(folder)
    unread = zips_of(folder) if folder.suffix != SUFFIX else []
    if unread and not runs_of(folder):
        if len(unread) > 1:
            raise ValueError(
                f"study={folder.name} is in two files, {unread[0]} and {unread[1]}: name one of"
                f" them, as study={unread[1]}"
            )
        folder, unread = unread[0], []
    if not (folder.is_file() if folder.suffix == SUFFIX else folder.is_dir()):
        raise ValueError(_no_such_study(folder))
    name = folder.stem if folder.suffix == SUFFIX else folder.name
    records = [record_of(run) for run in runs_of(folder)]
    readable = [record for record in records if record.config]
    unreadable = [t for r in records if not r.config for t in r.corrupt_documents]
    if not readable:
        raise ValueError(
            f"study={name}: {'; '.join(unreadable)}"
            if unreadable
            else f"{folder} holds no run of a study"
            if folder.suffix == SUFFIX
            else f"study={name} holds no run yet: start one with 'gnexp train study={name}'"
        )
    return Study(name, folder, readable, unreadable, unread)


def runs_of(folder: Path) -> list[Run]:
    """Return a study's runs, by name, unreadable ones too; raises ValueError for a bad zip."""
    runs = [Run(folder / name) for name in names_in(folder) if name not in NOT_STUDIES]
    return [run for run in runs if not run.folder.is_file() and run.exists()]


def studies(out: Path | str) -> list[str]:
    """Return the names of the studies under `out` (folders that hold a run, and zips), sorted."""
    out = Path(out)
    names = {name.removesuffix(SUFFIX) for name in names_in(out) if not name.startswith(".")}
    return sorted(
        name
        for name in names.difference(NOT_STUDIES)
        if zips_of(out / name) or ((out / name).is_dir() and runs_of(out / name))
    )


def record_of(run: Run) -> Record:
    """Return the content of a run's folder; corrupt files count as absent."""
    corrupt_documents = []

    def read(document: Callable[[], dict[Any, Any]]) -> dict[Any, Any]:
        try:
            return document()
        except CorruptFile as error:
            corrupt_documents.append(str(error))
            return {}

    result = read(run.result)
    # YAML is slow to parse: it is read only for runs that have finished no seed.
    config = result.get("config") or read(run.config)
    statuses = read(run.statuses)
    for seed, numbers in result.get("seeds", {}).items():
        why = statuses.get(int(seed), {}).get("why", "")
        statuses[int(seed)] = {"status": numbers["status"], "why": why}
    wanted = config.get("seeds") or []
    for seed in range(wanted) if isinstance(wanted, int) else wanted:
        statuses.setdefault(int(seed), {"status": "missing", "why": "not started"})
    ordered = {seed: statuses[seed] for seed in sorted(statuses)}
    provenance = read(run.provenance)
    return Record(run.name, run.folder, config, result, provenance, ordered, corrupt_documents)


def _no_such_study(folder: Path) -> str:
    names = studies(folder.parent)
    if not names:
        return f"study={folder.name} does not exist, and {folder.parent} holds no study yet"

    def distance(name: str) -> float:
        return -difflib.SequenceMatcher(None, folder.name, name).ratio()

    nearest = ", ".join(sorted(names, key=distance))
    return f"study={folder.name} does not exist in {folder.parent}; there is: {nearest}"
