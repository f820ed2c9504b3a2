"""Read the initial weights that `init_from=` names: a run of gnexp, or a file.

RUN: seed s starts from the weights with which seed s of that run ended. RUN/seed-K: every seed
starts from those of seed K. FILE: a state dict that `torch.save` wrote, for every seed alike.
"""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gnexp.config.schema import TUNING_SEEDS_FROM
from gnexp.runner.checkpoint import read_tensors
from gnexp.store.digests import read_checked
from gnexp.store.files import CorruptFile
from gnexp.store.run import Run

CHECKPOINT = "checkpoint.pt"
WRAPPERS = ("model", "state_dict")  # under which a training script saves weights beside others
PREFIXES = ("module.", "_orig_mod.")  # of what nn.DataParallel and torch.compile save
Weights = dict[str, Tensor]


class NotFound(ValueError):
    """No file or run exists where `init_from=` points."""


@dataclass(frozen=True)
class Source:
    """Weights to start from, by seed; those of None are for every seed. `name` is for people.

    checksum: of the weights, wherever they lie. Of weights by seed it is that of the first seed's,
    so that seeds which are trained later do not change it. trained: config and data of their run.
    """

    name: str
    checksum: str
    by_seed: dict[int | None, Weights]
    trained: dict[str, Any] = field(default_factory=dict)

    def seed(self, seed: int) -> int | None:
        """Return from whose weights a seed starts, None where all start from the same.

        Trials take the seeds that there are in turn. Raises ValueError, naming those, for another.
        """
        if None in self.by_seed:
            return None
        have = sorted(self.by_seed)
        if seed in have:
            return seed
        if seed >= TUNING_SEEDS_FROM:
            return have[(seed - TUNING_SEEDS_FROM) % len(have)]
        shown = ",".join(map(str, have))
        raise ValueError(
            f"init_from=.../{self.name} has finished seeds {shown}, and not seed {seed}; type"
            f" seeds=[{shown}], or start all from one by init_from=.../{self.name}/seed-{have[0]}"
        )

    def weights(self, seed: int) -> Weights:
        """Return what a seed starts from; see `seed`."""
        return self.by_seed[self.seed(seed)]


def read_source(path: str) -> Source:
    """Return the weights at a path; read once, as long as the file stays the same.

    Raises NotFound, a ValueError, when nothing is there, and ValueError for what holds no weights.
    """
    file, seed = _located(path)
    state = file.stat()
    return _read(file, seed, state.st_mtime_ns, state.st_size)


def is_there(path: str) -> bool:
    """Return whether there is something to read at a path."""
    try:
        _located(path)
    except NotFound:
        return False
    except ValueError:
        pass
    return True


def _located(path: str) -> tuple[Path, int | None]:
    place, seed = Path(path).expanduser(), None
    found = re.fullmatch(r"seed-(\d+)", place.name)
    if found and not place.exists():
        place, seed = place.parent, int(found[1])
    if not place.exists():
        raise NotFound(
            f"init_from={path} does not exist; type a run's folder, such as results/main/RUN, or a"
            " file of weights"
        )
    if not place.is_dir():
        return place, seed
    if (place / CHECKPOINT).is_file():
        return place / CHECKPOINT, seed
    if inner := sorted(each.parent.name for each in place.glob(f"*/{CHECKPOINT}")):
        raise ValueError(
            f"init_from={path} is a study, not a run; name one of its {len(inner)}, such as"
            f" init_from={os.path.join(path, inner[0])}"
        )
    raise ValueError(
        f"init_from={path} holds no {CHECKPOINT}: a run's folder has one from its first epoch on"
    )


@functools.lru_cache(maxsize=2)
def _read(path: Path, seed: int | None, mtime_ns: int, size: int) -> Source:
    try:
        loaded = read_tensors(read_checked(path))  # of a run: the bytes that were written
    except CorruptFile as error:
        raise ValueError(f"init_from={error}") from error
    except ValueError as error:
        reason = str(error).partition(". ")[0]  # what follows is PyTorch's advice on its own calls
        raise ValueError(
            f"init_from={path} cannot be read as tensors ({reason}); save weights with"
            " torch.save(model.state_dict(), FILE)"
        ) from error
    seeds = isinstance(loaded, Mapping) and loaded and all(str(key).isdigit() for key in loaded)
    if seeds and all(
        isinstance(s, Mapping) and isinstance(s.get("model"), Mapping) for s in loaded.values()
    ):
        return _of_run(path, {int(s): state for s, state in loaded.items()}, seed)
    if seed is not None:
        raise ValueError(f"init_from={path}/seed-{seed}: {path} is not a run of gnexp")
    weights = _state_dict(path, loaded)
    return Source(path.name, digest(weights), {None: weights})


def _of_run(path: Path, states: dict[int, Any], seed: int | None) -> Source:
    """Return what a run's checkpoint offers; only seeds that have ended have no momentum in it."""
    each = {s: state["model"] for s, state in states.items() if "momentum" not in state}
    if not each:
        raise ValueError(f"init_from={path}: no seed of that run has finished; train it first")
    of_run = path.name == CHECKPOINT  # and no copy of its checkpoint
    name, result = (path.parent.name, Run(path.parent).result()) if of_run else (path.name, {})
    trained = {"config": result.get("config", {}), "data": result.get("data", {})}
    if seed is None:
        first = digest(each[min(each)])
        checksum = hashlib.sha256(f"each {first}".encode()).hexdigest()[:16]
        return Source(name, checksum, each, trained)
    if seed not in each:
        have = ", ".join(f"seed-{s}" for s in sorted(each))
        raise ValueError(f"init_from={path.parent}/seed-{seed}: of that run have finished {have}")
    return Source(f"{name}/seed-{seed}", digest(each[seed]), {None: each[seed]}, trained)


def _state_dict(path: Path, loaded: Any) -> Weights:
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    named = isinstance(loaded, Mapping) and all(isinstance(key, str) for key in loaded)
    if not named or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ValueError(
            f"init_from={path} is not a state dict; save weights with"
            " torch.save(model.state_dict(), FILE)"
        )
    weights = dict(loaded)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def digest(weights: Weights) -> str:
    """Return a checksum of named tensors: of names, types, shapes and bytes, not of their order."""
    found = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def checksum_of(path: str, study: Path, known: str | None = None) -> str:
    """Return the checksum of the weights at a path, or, if they are gone, what it was.

    study: the folder among whose runs one may have started from there. known: what it should be.
    Raises ValueError when that differs, and as `read_source` does.
    """
    try:
        found = read_source(path).checksum
    except NotFound:
        if before := known or _remembered(path, study):
            return before
        raise
    if known not in (None, found):
        raise ValueError(
            f"init_from={path} holds other weights than init_checksum={known}: theirs is {found}"
        )
    return found


def _remembered(path: str, study: Path) -> str | None:
    """Return the checksum that a run of the study has of what once lay at a path."""
    wanted = os.path.abspath(os.path.expanduser(path))
    for folder in sorted(study.glob("*/")):
        try:
            config = Run(folder).config()
        except ValueError:  # corrupt: that is for repair
            continue
        was = config.get("init_from")
        if was and os.path.abspath(os.path.expanduser(was)) == wanted:
            return config.get("init_checksum")
    return None
