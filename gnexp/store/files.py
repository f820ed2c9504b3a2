"""Files that are always whole: a reader sees the old version or the new one, never a part.

JSON and CSV with fixed order and exact floats, so that equal contents are equal bytes.
A file that cannot be read raises CorruptFile (a ValueError) naming it.
"""

import csv
import io
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gnexp.store import archive
from gnexp.store.locks import require_locks

Row = dict[str, Any]
Columns = Mapping[str, type]
Read = Callable[[Path], bytes | None]
DEEPEST = 32  # values within values; gnexp's own files have a handful
LARGEST_YAML = 2**20  # bytes; a config has a thousand
TOO_DEEP = f"more than {DEEPEST} values within one another"


class CorruptFile(ValueError):
    """A file of the store cannot be read; the text is a sentence that names it."""


def write_whole(path: Path, data: bytes | str) -> None:
    """Replace `path` by `data` (text as UTF-8) in one rename; on an error nothing changes.

    The temporary file is synced first, so that a power cut cannot leave a renamed but empty file.
    Raises LockLost if another process has taken over a claim under which this one writes.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        require_locks()
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        require_locks()  # a file that vanished was tidied up by whoever took over
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, see `json_text`."""
    write_whole(path, json_text(value))


def json_text(value: Any) -> str:
    """Return `value` as JSON; a number that is not finite becomes null, as the standard asks."""
    return json.dumps(to_json_types(value, finite=True), indent=1, allow_nan=False) + "\n"


def bytes_of(path: Path) -> bytes | None:
    """Return a file's bytes, None when there is no such file; it may lie in a study's zip."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return archive.bytes_within(path)


def is_file(path: Path) -> bool:
    """Return whether there is such a file, in a folder or in a study's zip."""
    return path.is_file() or archive.bytes_within(path) is not None


def names_in(folder: Path) -> list[str]:
    """Return the sorted names in a folder or zip, [] for neither; ValueError for a bad zip."""
    if folder.is_dir():
        return sorted(child.name for child in folder.iterdir())
    if folder.is_file() and folder.suffix == archive.SUFFIX:
        return sorted({name.partition("/")[0] for name in archive.contents(folder)})
    return []


def read_json(path: Path, read: Read = bytes_of) -> dict[str, Any]:
    """Return the JSON object in `path`; {} when there is no such file."""
    data = read(path)
    if data is None:
        return {}
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise corrupt_file(path, error) from error
    if not isinstance(value, dict):
        raise corrupt_file(path, "not a JSON object")
    if _is_too_deep(value):
        raise corrupt_file(path, TOO_DEEP)
    return value


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(DEEPEST):
        inner = (v.values() if isinstance(v, dict) else v for v in level)
        level = [w for v in inner for w in v if isinstance(w, (dict, list))]
    return bool(level)


def read_yaml(path: Path, read: Read = bytes_of) -> dict[str, Any]:
    """Return the YAML mapping in `path`; {} when there is no such file.

    Anchors are refused: a few lines of them can stand for more values than any memory holds.
    """
    import yaml

    data, loader = read(path), getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    if data is None:
        return {}
    if len(data) > LARGEST_YAML:
        raise corrupt_file(path, f"larger than {LARGEST_YAML} bytes")
    try:
        # Before the value is built: a great depth would end the process.
        why = _refused(yaml.parse(data, loader))
        value = None if why else yaml.load(data, loader)
    except (yaml.YAMLError, ValueError) as error:  # such as a date that is none
        raise corrupt_file(path, error) from error
    if why or not isinstance(value, dict):
        raise corrupt_file(path, why or "not a mapping")
    return value


def _refused(events: Iterable[Any]) -> str:
    depth = 0
    for event in events:
        if getattr(event, "anchor", None) is not None:
            return f"it has the anchor {event.anchor}, and gnexp writes none"
        kind = type(event).__name__
        depth += kind.endswith(("SequenceStartEvent", "MappingStartEvent"))
        depth -= kind.endswith(("SequenceEndEvent", "MappingEndEvent"))
        if depth > DEEPEST:
            return TOO_DEEP
    return ""


def table_text(columns: Columns, key: Sequence[str], rows: Iterable[Row]) -> str:
    """Return rows as CSV, sorted by `key`; floats read back as exactly the same number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    for row in sorted(rows, key=lambda row: tuple(row[c] for c in key)):
        writer.writerow([repr(row[c]) if isinstance(row[c], float) else row[c] for c in columns])
    return buffer.getvalue()


def read_whole_rows(
    path: Path, columns: Columns, read: Read = bytes_of
) -> tuple[list[Row], list[str]]:
    """Return the rows of a CSV that are whole, and what is wrong with each of the other lines."""
    data = read(path)
    if data is None:
        return [], []
    # Line ends may be those that git gives to text files.
    lines = data.replace(b"\r\n", b"\n").decode("utf-8", "replace").split("\n")
    cut = len(lines) if lines[-1] else None
    header, *body = lines if cut else lines[:-1] or [""]
    if header != ",".join(columns):
        # Without its header a table may be of another version: nothing in it can be trusted.
        return [], ["its header is not " + ",".join(columns)]
    rows, bad = [], []
    for number, line in enumerate(body, start=2):
        try:
            (values,) = csv.reader([line], strict=True)
            pairs = zip(columns.items(), values, strict=True)
            row = {c: kind(value) for (c, kind), value in pairs}
            if number == cut:  # its last number may lack digits
                raise ValueError("it ends in the middle")
            rows.append(row)
        except (ValueError, csv.Error) as error:
            bad.append(f"line {number}: {error}")
    return rows, bad


def typed_row(row: Mapping[str, Any], columns: Columns, name: str) -> Row:
    """Return `row` in the columns' order and types; ValueError if its keys are not the columns."""
    if set(row) != set(columns):
        wrong = ", ".join(sorted(set(row) ^ set(columns)))
        raise ValueError(f"a row of {name} lacks or does not know: {wrong}")
    return {
        c: math.nan if kind is float and row[c] is None else kind(row[c])
        for c, kind in columns.items()
    }


def to_json_types(value: Any, finite: bool = False) -> Any:
    """Return `value` in Python's own types; finite: turn nan and infinities into None."""
    if isinstance(value, Mapping):
        return {str(k): to_json_types(v, finite) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json_types(v, finite) for v in value]
    if isinstance(value, float):
        return None if finite and not math.isfinite(value) else float(value)
    if isinstance(value, (str, bool, int, type(None))):
        return value
    return to_json_types(value.item(), finite) if hasattr(value, "item") else str(value)


def corrupt_file(path: Path, why: object) -> CorruptFile:
    """Return the error for a file that cannot be read."""
    return CorruptFile(f"{path} is corrupt ({why})")
