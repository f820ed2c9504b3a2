#!/usr/bin/env python
"""Proves that a study killed at any instant, and simply called again, ends as if it had not been.

    python scripts/kill_harness.py                  everything, more than an hour on two cores
    python scripts/kill_harness.py --instants 10 --every 20 --only seeds devices

For each configuration it makes a reference (twice: a reference must be repeatable), then kills
other calls of it with SIGKILL: at random instants of the reference's duration, the first process
alone, its process group or one of the others, and between every two of its operations on files.
The same command is called again, now and then killed once or twice more, and what it leaves is
compared with the reference, to the last bit but for times and the tracebacks of processes that were
killed. An orphan is a process with the call's working folder that is alive 5 s after the call is
gone. The last line says how many instants were tried; exit code 1 with any mismatch or orphan.

Every first process is a fork of this one, which has imported all that is slow to; those that it
starts are fresh ones.
"""

import argparse
import builtins
import contextlib
import csv
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

STUDY = Path("results/main")
ORPHAN_S = 5.0  # in which what a call started must have ended
TINY = ("model=resnet8", "model.width=8", "data.test_limit=40", "gradients=4", "device=cpu")
SMALL = (*TINY, "data.train_limit=60", "batch=10")
TUNING = ("tuning.lr=[0.1,0.3]", "tuning.extend=0", "tuning.untuned=null")
TUNING += ("tuning.validation=0.2",)
LONG = (*TINY, "data.train_limit=600", "checkpoint_minutes=0")  # several blocks in an epoch

NORM_MODULE = "kill_harness_norm"
NORM = '''\
import torch
from torch import nn


class Noisy(nn.Module):
    """Scales each example, and draws from the global generator in every training pass."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        x = x / (x.square().mean((1, 2, 3), keepdim=True) + 1e-5).sqrt()
        return x * self.weight[:, None, None] + self.bias[:, None, None]
'''


@dataclass(frozen=True)
class Setup:
    """A configuration to be killed: its command line, and how much of the instants it gets.

    RUN in the words stands for the run of a study `source`, which is there before if `trained`.
    """

    name: str
    what: str
    words: tuple[str, ...]
    share: int  # of the random instants
    between_writes: bool = True
    trained: bool = False


SETUPS = (
    Setup(
        "seeds",
        "one run, three seeds in a step",
        ("train", *SMALL, "epochs=3", "norm=bn", "seeds=3", "workers=1"),
        share=4,
    ),
    Setup(
        "rates",
        "two rates in a step, a run each, and a report",
        ("train", *SMALL, "epochs=2", "norm=gn", "lr=[0.1,0.3]", "workers=1"),
        share=3,
    ),
    Setup(
        "blocks",
        "checkpoints within epochs",
        ("train", *LONG, "epochs=2", "norm=bn", "batch=10", "seeds=2", "workers=1"),
        share=3,
    ),
    Setup(
        "draws",
        "checkpoints within epochs, a norm that draws random numbers and trains alone",
        (
            *("train", *LONG, "epochs=2", "batch=10", "seeds=2", "workers=1"),
            f"norm._target_={NORM_MODULE}.Noisy",
        ),
        share=3,
    ),
    Setup(
        "diverges",
        "two rates in a step, of which one diverges in its first epoch",
        ("train", *SMALL, "epochs=2", "norm=none", "lr_rule=none", "lr=[0.01,1e30]", "workers=1"),
        share=2,
    ),
    Setup(
        "workers",
        "a grid over two processes, and a report",
        ("train", "-m", *SMALL, "epochs=3", "norm=bn,gn", "seeds=2", "workers=2"),
        share=3,
        between_writes=False,  # they are made in other processes
    ),
    Setup(
        "tuned",
        "rates chosen on images held out, and a report",
        ("train", *SMALL, "epochs=2", "norm=gn", "lr=tuned", *TUNING, "workers=1"),
        share=3,
        between_writes=False,
    ),
    Setup(
        "devices",
        "one run on two devices",
        ("train", *TINY, "data.train_limit=60", "epochs=2", "norm=gn", "batch=5", "devices=2"),
        share=3,
        between_writes=False,
    ),
    Setup(
        "fine-tune",
        "a start from stored weights",
        ("train", *SMALL, "epochs=2", "norm=gn", "workers=1", "init_from=results/source/RUN"),
        share=2,
        between_writes=False,
        trained=True,
    ),
    Setup(
        "measure",
        "instruments on a stored run, and a report",
        ("measure", "study=source", "what=[gradients,shift]", "shift.images=8", "gradients=8")
        + ("gradients_at=[2,5]", "shift.severities=[1]", "device=cpu", "workers=1"),
        share=2,
        between_writes=False,
        trained=True,
    ),
    Setup(
        "report",
        "the report of a stored run",
        ("report", "study=source"),
        share=1,
        between_writes=False,
        trained=True,
    ),
)
SOURCE = ("train", *SMALL, "epochs=2", "norm=gn", "seeds=2", "workers=1", "study=source")


def preload() -> None:
    """Import what every training imports, before it is forked."""
    import filelock  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.stats  # noqa: F401

    import gnexp.cli.commands.train
    import gnexp.report.study_report  # noqa: F401

    torch.set_num_threads(1)  # a thread pool would not survive a fork


# --- one call of gnexp, in a process of its own


@dataclass(frozen=True)
class Call:
    """What became of a call: its exit code (-9 after SIGKILL), what it said, how long it took.

    killed: one of its processes was. writes: the names of its operations on files, as far as they
    were watched. orphans: the command lines of processes that outlived it.
    """

    code: int
    said: str
    seconds: float
    killed: bool
    writes: list[str]
    orphans: list[str]


def call(
    words: Sequence[str],
    folder: Path,
    *,
    after_s: float | None = None,
    target: str = "group",
    before_write: int | None = None,
    limit_s: float = 120.0,
) -> Call:
    """Run gnexp with these words in `folder`, and kill it where that is asked for.

    after_s: seconds after which the target is killed: its "group", the "first" process alone or a
    "member". before_write: it kills itself before its operation on files of this number, counted
    from 1. limit_s: a call that has not ended by then is killed and has the exit code 124.
    """
    said, writes = folder / "said.txt", folder / "writes.txt"
    for file in (said, writes):  # a process may be killed before it has opened them
        file.write_text("")
    with _started(words, folder, before_write) as pid:
        start, late, killed = time.monotonic(), False, False
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            seconds = time.monotonic() - start
            if late := seconds > limit_s:
                kill_group(pid)
                ended = os.waitpid(pid, 0)
                break
            if after_s is not None and seconds >= after_s and not killed:
                _kill(pid, target, folder)
                killed = True
            time.sleep(0.002)
        seconds = time.monotonic() - start
        left = orphans(folder)
    code = 124 if late else os.waitstatus_to_exitcode(ended[1])
    killed = killed or code == -signal.SIGKILL
    return Call(code, said.read_text(), seconds, killed, writes.read_text().splitlines(), left)


def _kill(pid: int, target: str, folder: Path) -> None:
    others = [each for each in members(folder) if each != pid]
    if target == "group":
        kill_group(pid)
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(random.choice(others) if target == "member" and others else pid, signal.SIGKILL)


def members(folder: Path) -> list[int]:
    """Return the living processes whose working folder this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and os.readlink(entry / "cwd") == str(folder.resolve()):
                found.append(int(entry.name))
    return found


def orphans(folder: Path) -> list[str]:
    """Return the command lines of processes that do not end; none of them is left alive."""
    end = time.monotonic() + ORPHAN_S
    while (left := members(folder)) and time.monotonic() < end:
        time.sleep(0.02)
    found = []
    for pid in left:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
            os.kill(pid, signal.SIGKILL)
    return found


@contextlib.contextmanager
def _started(
    words: Sequence[str],
    folder: Path,
    before_write: int | None = None,
) -> Iterator[int]:
    """Start a call and yield its process; however this is left, nothing of its group lives on."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _be_gnexp(words, folder, before_write)
    with contextlib.suppress(OSError):  # whoever of the two is first
        os.setpgid(pid, pid)
    try:
        yield pid
    finally:
        kill_group(pid)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        _wait_until_gone(pid)


def kill_group(pid: int) -> None:
    """Kill the processes of a group, as far as there are any."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _wait_until_gone(group: int, limit_s: float = 10.0) -> None:
    """Wait until whoever reaps orphans has done so: a zombie still looks alive to others."""
    end = time.monotonic() + limit_s
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.002)


def _be_gnexp(
    words: Sequence[str],
    folder: Path,
    before_write: int | None,
) -> None:
    """Be a call of gnexp: runs in the forked process and never returns."""
    code = 70
    try:
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        os.chdir(folder)
        said = os.open("said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = (
            open(stream, "w", buffering=1, closefd=False)  # noqa: SIM115, until the end
            for stream in (1, 2)
        )
        Writes(Path.cwd() / STUDY.parent, Path("writes.txt"), before_write).watch()
        import gnexp.__main__
        from gnexp.cli import app

        # What this process starts imports what it would after `python -m gnexp`, not this file.
        sys.modules["__main__"] = gnexp.__main__
        code = app.main(list(words))
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


class Writes:
    """The operations of this process that change files below a folder, counted and written down.

    Before the one that is to be fatal the process kills itself. After an operation is the same as
    before the next: nothing is stored in between. A write counts twice: before it, and half done.
    """

    def __init__(self, folder: Path, log: Path, fatal: int | None) -> None:
        self.folder, self.fatal, self.count = str(folder), fatal, 0
        self.opened: set[tuple[int, int]] = set()
        self.log = open(log, "w", buffering=1)  # noqa: SIM115, until the end

    def watch(self) -> None:
        """Put a counter into everything that changes files."""
        for name in ("replace", "rename", "link", "unlink", "remove", "mkdir", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        self._os_open, self._os_write, self._os_fsync = os.open, os.write, os.fsync
        self._builtin_open = builtins.open
        os.open, os.write, os.fsync = self._open_descriptor, self._write_descriptor, self._sync
        builtins.open = io.open = self._open
        # filelock swaps two names by a system call of its own.
        if claims := sys.modules.get("filelock._soft"):
            claims.exchange_names = self._counted("exchange", claims.exchange_names)

    def _next(self, what: str, half: Callable[[], object] | None = None) -> None:
        self.count += 1
        self.log.write(f"{what}\n")
        if self.count == self.fatal:
            if half:
                half()
            os.kill(os.getpid(), signal.SIGKILL)

    def _inside(self, path: Any) -> bool:
        if isinstance(path, int):
            return False
        whole = os.path.abspath(os.fsdecode(path))
        return whole == self.folder or whole.startswith(self.folder + os.sep)

    def _name(self, path: Any) -> str:
        return os.path.relpath(os.fsdecode(path), self.folder)

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *args: Any, **kwargs: Any) -> Any:
            if self._inside(path):
                self._next(f"{name} {self._name(path)}")
            return function(path, *args, **kwargs)

        return counted

    def _open_descriptor(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if not (flags & (os.O_WRONLY | os.O_RDWR) and self._inside(path)):
            return self._os_open(path, flags, *args, **kwargs)
        self._next(f"create {self._name(path)}")
        descriptor = self._os_open(path, flags, *args, **kwargs)
        self.opened.add(_identity(descriptor))
        return descriptor

    def _write_descriptor(self, descriptor: int, data: Any) -> int:
        if _identity(descriptor) in self.opened:
            half = memoryview(data)[: len(data) // 2]
            self._next("write")
            self._next("half a write", lambda: self._os_write(descriptor, half))
        return self._os_write(descriptor, data)

    def _sync(self, descriptor: int) -> None:
        self._next("sync")
        self._os_fsync(descriptor)

    def _open(self, path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not (set(mode) & set("wax+") and self._inside(path)):
            return self._builtin_open(path, mode, *args, **kwargs)
        self._next(f"open {self._name(path)}")
        return _Watched(self._builtin_open(path, mode, *args, **kwargs), self._next)


def _identity(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_dev, found.st_ino


class _Watched:
    """An open file that tells of what is written to it."""

    def __init__(self, file: Any, tell: Callable[..., None]) -> None:
        self._file, self._tell = file, tell

    def write(self, data: Any) -> int:
        def half() -> None:
            self._file.write(data[: len(data) // 2])
            self._file.flush()

        self._tell("write")
        self._tell("half a write", half)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> "_Watched":
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()


# --- what a study holds


def contents(study: Path) -> dict[str, Any]:
    """Return, by file, what a study holds that training decides: all but times and provenance."""
    found: dict[str, Any] = {}
    for path in sorted(study.rglob("*")) if study.is_dir() else ():
        name = str(path.relative_to(study))
        if path.name.startswith(LEFTOVERS) or path.suffix == ".tmp":
            found[f"left behind: {name}"] = True
        elif path.is_file():
            found |= {f"{name}{part}": value for part, value in _parts(path)}
    return found


def _parts(path: Path) -> list[tuple[str, Any]]:
    try:
        if path.name == "metrics.csv":
            with open(path, newline="") as file:
                rows = list(csv.reader(file))
            at = rows[0].index("time_s")
            return [("", [row[:at] + row[at + 1 :] for row in rows])]
        if path.name == "result.json":
            return [("", _without_times(json.loads(path.read_text())))]
        if path.name == "status.json":
            return [("", _without_times(json.loads(path.read_text())))]
        if path.name == "digests.json":
            digests = json.loads(path.read_text())
            del digests["digests.json"]
            files = {name: path.with_name(name) for name in digests}
            gone = [k for k, f in files.items() if "absent" in digests[k] and not f.is_file()]
            there = {k: f.read_bytes() for k, f in files.items() if k not in gone}
            same = {k: hashlib.sha256(data).hexdigest() in digests[k] for k, data in there.items()}
            return [(f": {name}", is_same) for name, is_same in same.items()]
        if path.name == "logits.npz":
            with np.load(path, allow_pickle=False) as arrays:
                return [(f": {key}", _bits(arrays[key])) for key in arrays.files]
        if path.name == "checkpoint.pt":
            loaded = torch.load(path, map_location="cpu", weights_only=True)
            return [(f": seed {seed}", _without_times(state)) for seed, state in loaded.items()]
    except Exception as error:
        return [("", f"cannot be read: {error}")]
    timed = path.parent.name == "report" and path.name not in _REPORTED
    return [("", True if timed or path.name == "provenance.json" else path.read_bytes())]


LEFTOVERS = (".lock", ".writing")  # claims; temporary files end with .tmp
_TIMES = ("time_s", "train_time_s", "since")
_REPORTED = ("accuracy.csv", "gradient_variance.csv")  # the others hold times, or commands


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in _TIMES}
    if isinstance(value, list):
        return [_without_times(v) for v in value]
    return _bits(value.numpy()) if isinstance(value, torch.Tensor) else value


def _bits(array: np.ndarray) -> tuple[str, tuple[int, ...], bytes]:
    return str(array.dtype), array.shape, array.tobytes()


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return a line for everything in which two studies differ, none if they are equal."""
    lines = [f"missing: {name}" for name in expected.keys() - found.keys()]
    lines += [f"too much: {name}" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        if expected[name] != found[name]:
            lines.append(f"differs: {name}{_first_difference(expected[name], found[name])}")
    return sorted(lines)


def _first_difference(expected: Any, found: Any) -> str:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(found.keys() - expected.keys())]:
            if key not in expected or key not in found or expected[key] != found[key]:
                return f" / {key}{_first_difference(expected.get(key), found.get(key))}"
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found, strict=True))
        at = next(index for index, (one, other) in pairs if one != other)
        return f" [{at}]{_first_difference(expected[at], found[at])}"
    return f": {str(expected)[:200]} became {str(found)[:200]}"


def stage(study: Path, seeds: int) -> str:
    """Return whether training has not begun, is going on or is over, from what a study holds."""
    stored = [json.loads(path.read_text()) for path in study.glob("*/status.json")]
    if not stored:
        return "before"
    results = [json.loads(path.read_text()) for path in study.glob("*/result.json")]
    return "after" if sum(len(each["seeds"]) for each in results) >= seeds else "within"


# --- references, instants and their table


@dataclass(frozen=True)
class Reference:
    """What a training that nobody kills leaves, how long it takes, and what it writes."""

    holds: dict[str, Any]
    seconds: float
    writes: list[str]
    seeds: int


def reference(setup: Setup, folder: Path, limit_s: float = 300.0) -> Reference:
    """Train a configuration twice without a kill; raises SystemExit where the two differ."""
    calls, held = [], []
    if setup.trained:
        place, words = _place(folder / "source", SOURCE)
        call(words, place, limit_s=limit_s)
    for name in ("one", "two"):
        place, words = _place(folder / name, setup.words)
        calls.append(call(words, place, limit_s=limit_s))
        held.append(_held(place))
        if calls[-1].code:
            raise SystemExit(f"{setup.name}: exit code {calls[-1].code}:\n{calls[-1].said}")
    if wrong := differences(*held):
        raise SystemExit("\n".join([f"{setup.name}: two references differ:", *wrong]))
    results = [json.loads(p.read_text()) for p in (folder / "one" / STUDY).glob("*/result.json")]
    seeds = sum(len(each["seeds"]) for each in results)
    return Reference(held[0], max(c.seconds for c in calls), calls[0].writes, seeds)


def _place(folder: Path, words: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """Make a working folder with the norm of its own, and a trained study if there is one beside.

    Return it with the words, in which RUN is named.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / f"{NORM_MODULE}.py").write_text(NORM)
    for run in (folder.parent / "source" / "results" / "source").glob("gn-*"):
        shutil.copytree(folder.parent / "source" / "results", folder / "results")
        words = tuple(word.replace("RUN", run.name) for word in words)
    return folder, words


def _held(place: Path) -> dict[str, Any]:
    """Return what all studies of a folder hold, but tracebacks of processes that were killed."""
    parts = contents(place / STUDY.parent)
    return {name: part for name, part in parts.items() if "/traceback-" not in name}


@dataclass
class Instant:
    """One instant tried: where it hit, how many calls were killed, and what is not as it was."""

    at: str
    stage: str
    killed: int
    resumed: bool
    wrong: list[str] = field(default_factory=list)


def try_instant(
    setup: Setup,
    known: Reference,
    folder: Path,
    rng: random.Random,
    *,
    after_s: float | None = None,
    before_write: int | None = None,
) -> Instant:
    """Kill a call, call it again, now and then kill that too, and compare the end."""
    (place, words), wrong, killed = _place(folder, setup.words), [], 0
    kills: list[dict[str, Any]] = [{"after_s": after_s, "before_write": before_write}]
    while len(kills) < 3 and rng.random() < 0.3:
        if setup.between_writes and rng.random() < 0.5:
            kills.append({"before_write": rng.randint(1, len(known.writes))})
        else:
            kills.append({"after_s": rng.uniform(0, known.seconds)})
    texts, hit = [], ""
    for kill in kills:
        target = rng.choice(["first", "first", "group", "member"])
        one = call(words, place, limit_s=_limit_s(known), target=target, **kill)
        killed += one.killed
        where = f"{target} at {after_s:.3f} s" if before_write is None else f"write {before_write}"
        if one.killed and "before_write" in kill and kill["before_write"]:
            where += f" ({one.writes[-1]})"
        texts.append(where)
        hit = hit or stage(place / STUDY, known.seeds)
        wrong += _complaints(one, killed_is_fine=True)
    last = call(words, place, limit_s=_limit_s(known))
    wrong += _complaints(last, killed_is_fine=False)
    wrong += differences(known.holds, _held(place))
    if not wrong:
        shutil.rmtree(place)
    return Instant(", then ".join(texts), hit, killed, last.code == 0, wrong)


def _limit_s(known: Reference) -> float:
    return 20 + 5 * known.seconds


def _complaints(one: Call, killed_is_fine: bool) -> list[str]:
    """Return what is wrong with how a call ended and with what it said."""
    wrong = []
    if one.code and not (one.killed and killed_is_fine):
        tail = " | ".join(one.said.strip().splitlines()[-3:])
        ended = "did not end" if one.code == 124 else f"ended with exit code {one.code}"
        wrong.append(f"a call {ended}: {tail}")
    lines = one.said.splitlines()
    # A kill leaves nothing half: a file that has to be repaired is a fault too.
    wrong += [line for line in lines if line.startswith(("corrupt:", "repaired:", "Traceback"))]
    return wrong + [f"orphan: {line}" for line in one.orphans]


@dataclass
class Tally:
    """What the instants of one configuration and kind gave."""

    name: str
    instants: list[Instant] = field(default_factory=list)
    seconds: float = 0.0

    def row(self) -> list[str]:
        """Return the cells of the table's row."""
        stages = Counter(instant.stage for instant in self.instants)
        return [
            self.name,
            str(len(self.instants)),
            *(str(stages[key]) for key in ("before", "within", "after")),
            str(sum(instant.killed for instant in self.instants)),
            str(sum(instant.resumed for instant in self.instants)),
            str(sum(bool(instant.wrong) for instant in self.instants)),
            f"{self.seconds:.0f} s",
        ]


HEAD = ["configuration", "instants", "before", "within", "after training", "kills", "resumed"]
HEAD += ["mismatches", "time"]


def table(tallies: list[Tally]) -> str:
    """Return the table of all that was tried, and its sum in the last line."""
    rows = [HEAD, *(tally.row() for tally in tallies)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEAD))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:]))])
        for row in rows
    ]
    everything = [instant for tally in tallies for instant in tally.instants]
    resumed = sum(instant.resumed for instant in everything)
    wrong = sum(bool(instant.wrong) for instant in everything)
    orphaned = sum(line.startswith("orphan: ") for each in everything for line in each.wrong)
    last = f"instants tried: {len(everything)}, resumed: {resumed}, mismatches: {wrong}"
    last += f", orphans: {orphaned}"
    return "\n".join([*lines, last])


def random_kills(
    setup: Setup, known: Reference, folder: Path, rng: random.Random, count: int
) -> Tally:
    """Kill at random instants, uniformly over the time that the reference took."""
    tries = [{"after_s": rng.uniform(0, known.seconds)} for _ in range(count)]
    return _tally(f"{setup.name}, at random", setup, known, folder, rng, tries)


def write_kills(
    setup: Setup, known: Reference, folder: Path, rng: random.Random, every: int
) -> Tally:
    """Kill between every two operations on files, or `every` so many."""
    first = rng.randint(1, every)
    tries = [{"before_write": n} for n in range(first, len(known.writes) + 1, every)]
    return _tally(f"{setup.name}, between writes", setup, known, folder, rng, tries)


def _tally(
    name: str,
    setup: Setup,
    known: Reference,
    folder: Path,
    rng: random.Random,
    tries: list[dict[str, Any]],
) -> Tally:
    tally, start = Tally(name), time.monotonic()
    for number, kill in enumerate(tries):
        place = folder / setup.name / f"{len(tally.instants)}-{'-'.join(kill)}"
        instant = try_instant(setup, known, place, rng, **kill)
        tally.instants.append(instant)
        for line in instant.wrong:
            print(f"MISMATCH {name}, killed at {instant.at}: {line}", flush=True)
        if sys.stderr.isatty():
            print(f"\r{name}: {number + 1}/{len(tries)} ", end="", file=sys.stderr, flush=True)
    tally.seconds = time.monotonic() - start
    return tally


def main(argv: list[str] | None = None) -> int:
    """Try all configurations and return the exit code: 1 with any mismatch."""
    names = [setup.name for setup in SETUPS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--instants", type=int, default=56, help="random ones, in all (56)")
    parser.add_argument(
        "--every", type=int, default=1, help="kill between every so many writes (1); 0 for none"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random instants (0)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME")
    typed = parser.parse_args(argv)
    preload()
    os.environ["OMP_NUM_THREADS"] = "1"  # for what a call starts
    random.seed(typed.seed)
    rng, tallies = random.Random(typed.seed), []
    setups = [setup for setup in SETUPS if setup.name in typed.only]
    shares = sum(setup.share for setup in setups)
    folder = Path(tempfile.mkdtemp(prefix="gnexp-kills-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    for setup in setups:
        known = reference(setup, folder / setup.name)
        print(
            f"{setup.name}: {setup.what}: {known.seconds:.1f} s, {known.seeds} seeds,"
            f" {len(known.writes)} operations on files",
            flush=True,
        )
        count = -(-typed.instants * setup.share // shares)  # rounded up
        tallies.append(random_kills(setup, known, folder, rng, count))
        if setup.between_writes and typed.every:
            tallies.append(write_kills(setup, known, folder, rng, typed.every))
    print(table(tallies))
    if any(instant.wrong for tally in tallies for instant in tally.instants):
        print(f"what is left of the mismatches: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
