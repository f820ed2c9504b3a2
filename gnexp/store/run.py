"""The run store: one folder per run, every file written whole.

STUDY/RUN/ holds the files of `run_files`, a traceback of each failed seed, and the digests of all.
A reader sees either the old or the new version of a file, never a part of one, whenever the writer
is killed, and never bytes that are not those that were written.
"""

import contextlib
import functools
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gnexp.store import digests
from gnexp.store.digests import read_checked
from gnexp.store.files import (
    CorruptFile,
    corrupt_file,
    is_file,
    json_text,
    read_json,
    read_whole_rows,
    read_yaml,
    table_text,
    to_json_types,
    typed_row,
)
from gnexp.store.locks import Lock, require_locks, writing_under
from gnexp.store.run_files import TABLES

if TYPE_CHECKING:
    import numpy as np

Row = dict[str, Any]
STATUSES = ("running", "complete", "diverged", "infeasible", "failed")
NOT_STUDIES = ("check", "reference", "report")
_MARKS_OF_A_RUN = ("config.yaml", "status.json", "metrics.csv", "result.json")


def _writes(method: Any) -> Any:
    """Let a method of Run be the only one, over all processes, that changes the run's files."""

    @functools.wraps(method)
    def exclusively(self: "Run", *args: Any, **kwargs: Any) -> Any:
        with self.writing():
            return method(self, *args, **kwargs)

    return exclusively


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process writes to a folder, and keep it so; tidy up after killed ones."""
    held = Lock(folder / ".writing")
    held.take(wait=True)
    try:
        with writing_under(held):
            for leftover in folder.glob(".*.tmp"):
                require_locks()
                leftover.unlink(missing_ok=True)
            yield
    finally:
        held.drop()


class Run:
    """One run's folder: a config and what each of its seeds gave.

    Tables are lists of rows (dicts of plain numbers, see `run_files`); adding a row whose key is
    there already replaces it, so a resumed epoch is written twice without harm.
    A file that cannot be read raises CorruptFile (a ValueError) naming it.
    """

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)
        self._within = False

    @classmethod
    def create(cls, folder: Path | str) -> "Run":
        """Make the folder (parents too) if it is not there, and return its Run."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        return cls(folder)

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        """Return True when the folder holds at least one of a run's files."""
        return any(is_file(self.folder / name) for name in _MARKS_OF_A_RUN)

    @contextlib.contextmanager
    def lock(self, seed: int | None = None) -> Iterator[Lock | None]:
        """Yield the claim to train a seed (None: to measure), None if another process has it."""
        held = Lock(self.lock_file(seed))
        if not held.take():
            yield None
            return
        try:
            with writing_under(held):
                yield held
        finally:
            held.drop()

    def lock_file(self, seed: int | None = None) -> Path:
        """Return the file that marks who works on a seed, or measures the run."""
        return self.folder / (".lock" if seed is None else f".lock-{int(seed)}")

    def settle(self) -> None:
        """Tidy up after killed processes: claims, half-written files, statuses, tracebacks."""
        stored = digests.stored_digests(self.folder).values()
        if any(self.folder.glob(".*.tmp")) or any(len(accepted) > 1 for accepted in stored):
            with self.writing():  # which removes the temporary files
                self._files.settle()
        # With what filelock sets beside a claim for the moment in which it passes to another.
        for path in [*self.folder.glob(".lock*"), *self.folder.glob(".writing*")]:
            Lock(path).clear()
        statuses = self.statuses()
        for seed, numbers in self._seeds_of("result.json").items():
            status = numbers["status"]
            if statuses.get(seed, {}).get("status") != status:
                self.set_status(seed, status, numbers.get("why", ""))
            self.drop_traceback(seed)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Wait until no other process changes a file of the run, and keep it so; may be nested.

        Seeds of one run may train in several processes: what is read here is still true when it
        is written back.
        """
        if self._within:
            yield
            return
        self._within = True
        try:
            with exclusive(self.folder):
                yield
                if "_files" in vars(self):
                    self._files.close()
        finally:
            self._within = False
            vars(self).pop("_files", None)

    @functools.cached_property
    def _files(self) -> digests.Writer:
        """The writer of the run's files, within `writing`."""
        return digests.Writer(self.folder)

    @_writes
    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the resolved config; its `seeds` are joined with those of the calls before."""
        import yaml

        if isinstance(config.get("seeds"), list):
            known = self.config().get("seeds") or []
            config = {**config, "seeds": sorted({*known, *config["seeds"]})}
        layout: Any = {"sort_keys": False, "default_flow_style": None, "width": 100}
        self._files.write("config.yaml", yaml.safe_dump(to_json_types(config), **layout))

    def config(self) -> dict[str, Any]:
        """Return the resolved config; {} when it has not been written."""
        return read_yaml(self.folder / "config.yaml", read_checked)

    @_writes
    def add_plan(self, entries: Mapping[int, Mapping[str, Any]]) -> None:
        """Record the planned replica group of each seed that has no entry yet."""
        self._write_json("plan.json", {"seeds": {**entries, **self.plan()}})

    @_writes
    def drop_plan(self, seed: int) -> None:
        """Remove the planned replica group of a seed."""
        others = {s: entry for s, entry in self.plan().items() if s != seed}
        self._write_json("plan.json", {"seeds": others})

    def plan(self) -> dict[int, dict[str, Any]]:
        """Return {seed: what `add_plan` got}."""
        return self._seeds_of("plan.json")

    @_writes
    def write_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Write what produced the numbers: commit, versions, device, determinism, command.

        That of earlier calls, which trained other seeds, is kept under "earlier". The processes of
        one call start at the same time with the same command, and leave one entry.
        """
        before = self.provenance()
        earlier = before.pop("earlier", [])
        if before and all(before.get(k) == provenance.get(k) for k in ("started", "command")):
            return
        kept = {"earlier": [*earlier, before]} if before else {}
        self._write_json("provenance.json", {**provenance, **kept})

    def provenance(self) -> dict[str, Any]:
        """Return what `write_provenance` got; {} when it has not been written."""
        return self._read_json("provenance.json")

    @_writes
    def set_status(self, seed: int, status: str, why: str = "", **more: Any) -> None:
        """Record one seed's status (one of STATUSES) and the reason, for people.

        more: "since", when it began to run; "again", true when what failed was not the training.
        """
        if status not in STATUSES:
            raise ValueError(f"status={status!r} of seed {seed} is none of {', '.join(STATUSES)}")
        entry = {"status": status, "why": why, **more}
        self._write_json("status.json", {"seeds": {**self.statuses(), int(seed): entry}})

    def statuses(self) -> dict[int, dict[str, Any]]:
        """Return {seed: {"status", "why", ...}}, see `set_status`."""
        return self._seeds_of("status.json")

    @_writes
    def add_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of a table, such as "metrics.csv", replacing those of the same key."""
        key = TABLES[name].key
        table = {tuple(row[c] for c in key): row for row in self.rows(name)}
        for row in rows:
            typed = typed_row(row, TABLES[name].columns, name)
            table[tuple(typed[c] for c in key)] = typed
        self.replace_rows(name, table.values())

    @_writes
    def replace_rows(self, name: str, rows: Iterable[Row]) -> None:
        """Let a table hold these rows and no others."""
        self._files.write(name, table_text(TABLES[name].columns, [*TABLES[name].key], rows))

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a table, sorted by its key."""
        rows, bad = read_whole_rows(self.folder / name, TABLES[name].columns, read_checked)
        if bad:
            raise corrupt_file(self.folder / name, bad[0])
        return rows

    def whole_rows(self, name: str) -> tuple[list[Row], str]:
        """Return a table's whole rows, none if it was changed, and a sentence on others."""
        path = self.folder / name
        try:
            rows, bad = read_whole_rows(path, TABLES[name].columns, read_checked)
        except CorruptFile as error:
            return [], str(error)
        return rows, str(corrupt_file(path, bad[0])) if bad else ""

    @_writes
    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write result.json: numbers of finished seeds under "seeds", null if not finite."""
        self._write_json("result.json", {**result, "seeds": result.get("seeds", {})})

    @_writes
    def add_result(self, seed: int, numbers: Mapping[str, Any], **head: Any) -> None:
        """Add (or replace) one finished seed; `head` are result.json's other keys to set."""
        result = self.result()
        seeds = {**result.get("seeds", {}), str(int(seed)): dict(numbers)}
        self.write_result({**result, **head, "seeds": seeds})

    def result(self) -> dict[str, Any]:
        """Return result.json, seeds keyed by text as in the file; {} when there is none."""
        return self._read_json("result.json")

    def finished_seeds(self) -> list[int]:
        """Return the seeds that result.json lists, sorted."""
        return sorted(self._seeds_of("result.json"))

    @_writes
    def drop_seed(self, seed: int) -> None:
        """Forget one seed's result, rows and logits, before it is trained afresh."""
        result = self.result()
        # The result goes first: a seed listed there must never have fewer rows than it had.
        if result.get("seeds", {}).pop(str(int(seed)), None) is not None:
            self.write_result(result)
        for name in TABLES:
            rows = self.rows(name)
            kept = [row for row in rows if row["seed"] != seed]
            if len(kept) < len(rows):
                self.replace_rows(name, kept)
        logits = self.logits()
        if logits.pop(int(seed), None) is not None:
            self._write_logits(logits)
        self.drop_traceback(seed)

    @_writes
    def set_aside(self, name: str) -> str:
        """Rename a file that cannot be read, so that nothing of it is lost; return its new name."""
        aside = digests.set_aside_name(self.folder, name)
        self._files.rename(name, aside)
        return aside

    @_writes
    def repair_digests(self) -> str:
        """Make digests.json readable again; return a sentence about what it was, "" if whole."""
        return digests.repair(self.folder)

    @_writes
    def remove(self, name: str) -> None:
        """Remove a file, or drop the digest of one that is gone."""
        self._files.remove(name)

    @_writes
    def write_traceback(self, seed: int, text: str) -> None:
        """Keep the traceback of what made a seed fail."""
        self._files.write(f"traceback-{int(seed)}.txt", text)

    def drop_traceback(self, seed: int) -> None:
        """Remove the traceback of a failure that is over."""
        name = f"traceback-{int(seed)}.txt"
        if (self.folder / name).is_file():
            self.remove(name)

    @_writes
    def write_checkpoint(self, data: bytes) -> None:
        """Replace checkpoint.pt; the bytes are the caller's affair."""
        self._files.write("checkpoint.pt", data)

    def checkpoint(self) -> bytes | None:
        """Return the bytes of checkpoint.pt, None when there is none."""
        return read_checked(self.folder / "checkpoint.pt")

    @_writes
    def add_logits(self, seed: int, logits_NC: "np.ndarray") -> None:
        """Add one seed's test logits, (test images, classes), stored as float16."""
        import numpy as np

        with np.errstate(over="ignore"):  # beyond 65,504 a float16 is infinite
            halves = np.asarray(logits_NC, dtype=np.float16)
        self._write_logits({**self.logits(), int(seed): halves})

    def logits(self) -> dict[int, "np.ndarray"]:
        """Return {seed: float16 (test images, classes)}; {} when there are none."""
        import zipfile
        import zlib

        import numpy as np

        path = self.folder / "logits.npz"
        data = read_checked(path)
        if data is None:
            return {}
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {int(key.removeprefix("seed_")): arrays[key] for key in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise corrupt_file(path, error) from error

    def _write_logits(self, logits: Mapping[int, "np.ndarray"]) -> None:
        import numpy as np

        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{f"seed_{seed}": logits[seed] for seed in sorted(logits)})
        self._files.write("logits.npz", buffer.getvalue())

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        seeds = sorted(value.get("seeds", {}).items(), key=lambda item: int(item[0]))
        ordered = {"seeds": {str(seed): entry for seed, entry in seeds}} if "seeds" in value else {}
        self._files.write(name, json_text({**value, **ordered}))

    def _read_json(self, name: str) -> dict[str, Any]:
        value = read_json(self.folder / name, read_checked)
        _by_seed(value.get("seeds", {}), self.folder / name)
        return value

    def _seeds_of(self, name: str) -> dict[int, dict[str, Any]]:
        path = self.folder / name
        return _by_seed(read_json(path, read_checked).get("seeds", {}), path)


def _by_seed(seeds: Any, path: Path) -> dict[int, dict[str, Any]]:
    try:
        return {int(seed): dict(value) for seed, value in seeds.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise corrupt_file(path, error) from error
