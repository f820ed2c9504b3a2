"""Runs that this user trained with code of her own: listed in a file of hers, outside every study.

A study names the code that its models are made of. A stranger's must not be able to have it called,
so that a study says nothing about trust: $XDG_STATE_HOME/gnexp/trained.jsonl does.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gnexp.store.files import to_json_types


def state_file() -> Path:
    """Return the file; it need not exist. Raises RuntimeError for a user without a home."""
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "gnexp" / "trained.jsonl"


def trust(runs: Mapping[Path, Any]) -> None:
    """Add runs, as {folder: what names their code}; OSError or RuntimeError if not writable."""
    new = {_line(folder, code) for folder, code in runs.items()} - _lines()
    if not new:
        return
    path = state_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # In one append, since other processes may do so too; a line cut by a kill ends before the next.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, "".join(f"\n{line}" for line in sorted(new)).encode())
    finally:
        os.close(file)


def is_trusted(folder: Path, code: Any) -> bool:
    """Return whether this user trained this run, in this folder, with this code."""
    return _line(folder, code) in _lines()


def _lines() -> set[str]:
    with contextlib.suppress(OSError, RuntimeError):
        return {*state_file().read_text(errors="replace").splitlines()}
    return set()


def _line(folder: Path, code: Any) -> str:
    named = json.dumps(to_json_types(code, finite=True), sort_keys=True)
    digest = hashlib.sha256(named.encode()).hexdigest()
    return json.dumps({"run": os.path.realpath(folder), "code": digest})
