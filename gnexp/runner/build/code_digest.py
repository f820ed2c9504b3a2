"""Digests of the user's own code, which are part of a run's identity."""

import hashlib
import inspect
import sys

from gnexp.config.schema import CUSTOM, TrainConfig
from gnexp.norms.user_code import import_target, source_files


def code_digests(config: TrainConfig) -> dict[str, str]:
    """Return {"norm": ..., "model": ...}: a digest of the source file of those that are own."""
    targets = {"model": config.model._target_}
    if config.norm.get("name") == CUSTOM:
        targets = {"norm": config.norm["_target_"], **targets}
    found = {
        part: _source_digest(target, f"{part}._target_")
        for part, target in targets.items()
        if target is not None
    }
    return {part: digest for part, digest in found.items() if digest}


def code_checksum(config: TrainConfig) -> str | None:
    """Return a digest of the source files of the user's norm and model, None without either."""
    return checksum_of(code_digests(config))


def checksum_of(digests: dict[str, str]) -> str | None:
    """Return `code_digests` as one text, None without any."""
    return "-".join(digests.values()) or None


def _source_digest(path: str, key: str) -> str | None:
    target = import_target(path, key)
    try:
        home = inspect.getmodule(inspect.unwrap(target))
    except TypeError:
        home = None
    if home is None or not (inspect.isroutine(target) or inspect.isclass(target)):
        home = sys.modules[path.rpartition(".")[0]]  # of a functools.partial: where it is made
    found = [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in source_files(home)]
    if len(found) > 1:
        return hashlib.sha256(" ".join(found).encode()).hexdigest()[:16]
    return found[0] if found else None
