#!/usr/bin/env python
"""Kills calls of every kind, calls them again, and looks for mismatches and for orphans.

    python scripts/kills.py                     100 kills, about half an hour on two busy cores
    python scripts/kills.py --kills 20 --only devices grid

A call is killed with SIGKILL at a random instant of the time that it takes undisturbed: its first
process alone, its whole process group, or one of its processes. An orphan is a process with the
call's working folder that is alive 5 s after the call is gone. The same command is called again,
and what it leaves is compared with a call that nobody killed, to the last bit but for times and
the tracebacks of members that were killed. The last line counts; exit code 1 with any mismatch or
orphan.

Every first process is a fork of this one, which has imported all that is slow to; those that it
starts are fresh ones.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import kill_harness as harness
import torch

SECONDS = 5.0  # in which what a call started must have ended
LIMIT_S = 300.0
SMALL = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
SMALL += ("gradients=4", "device=cpu", "epochs=2")
TEN = (*SMALL, "batch=10")
ONE = ("train", *TEN, "norm=gn", "seeds=2", "workers=1", "study=source")
TUNING = ("tuning.lr=[0.1,0.3]", "tuning.extend=0", "tuning.untuned=null", "tuning.validation=0.2")


@dataclass(frozen=True)
class Kind:
    """A kind of call: what is typed after gnexp, before it if need be, and its share of kills."""

    words: tuple[str, ...]
    share: int
    before: tuple[str, ...] = ()


KINDS = {
    "train": Kind(("train", *TEN, "norm=bn", "seeds=3", "workers=1"), 22),
    "grid": Kind(("train", "-m", *TEN, "norm=bn,gn", "seeds=2", "workers=2"), 18),
    "tuned": Kind(("train", *TEN, "norm=gn", "lr=tuned", *TUNING, "workers=1"), 14),
    "devices": Kind(("train", *SMALL, "norm=gn", "batch=5", "devices=2"), 18),
    "fine-tune": Kind(("train", *TEN, "norm=gn", "init_from=INIT", "workers=1"), 10, ONE),
    "measure": Kind(
        ("measure", "study=source", "what=[gradients,shift]", "shift.images=8", "gradients=8")
        + ("gradients_at=[2,5]", "shift.severities=[1]", "device=cpu", "workers=1"),
        10,
        ONE,
    ),
    "report": Kind(("report", "study=source"), 8, ONE),
}


def start(words: Sequence[str], folder: Path) -> int:
    """Start a call in a process group of its own; returns its process."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        harness._be_gnexp(words, folder, None, _as_a_program)
    with contextlib.suppress(OSError):  # whoever of the two is first
        os.setpgid(pid, pid)
    return pid


def _as_a_program() -> None:
    """Let what this process starts import what it would after `python -m gnexp`, not this file."""
    import gnexp.__main__

    sys.modules["__main__"] = gnexp.__main__


def members(folder: Path) -> list[int]:
    """Return the living processes whose working folder this is."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and os.readlink(entry / "cwd") == str(folder):
                found.append(int(entry.name))
    return sorted(found)


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a process that ends within these seconds, else None."""
    end = time.monotonic() + seconds
    while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if time.monotonic() > end:
            return None
        time.sleep(0.002)
    return os.waitstatus_to_exitcode(ended[1])


def orphans(folder: Path) -> list[str]:
    """Return the command lines of processes that do not end; none of them is left alive."""
    end = time.monotonic() + SECONDS
    while (left := members(folder)) and time.monotonic() < end:
        time.sleep(0.02)
    found = []
    for pid in left:
        with contextlib.suppress(OSError):
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip())
            os.kill(pid, signal.SIGKILL)
    return found


def whole(words: Sequence[str], folder: Path) -> tuple[float, list[str]]:
    """Call and wait for the end; returns its seconds, and what is wrong with how it ended."""
    begun = time.monotonic()
    pid = start(words, folder)
    code = wait(pid, LIMIT_S)
    seconds = time.monotonic() - begun
    if code is None:
        harness.kill_group(pid)
        os.waitpid(pid, 0)
    said = (folder / "said.txt").read_text().splitlines()
    wrong = [f"exit code {code}: {' | '.join(said[-3:])}"] if code != 0 else []
    wrong += [line for line in said if line.startswith(("corrupt:", "repaired:", "Traceback"))]
    return seconds, wrong + [f"orphan: {line}" for line in orphans(folder)]


def kill(words: Sequence[str], folder: Path, after_s: float, rng: random.Random) -> tuple[str, int]:
    """Start a call and kill it, or of it; returns which, and how many processes there were."""
    pid = start(words, folder)
    code = wait(pid, after_s)
    if code is not None:
        return "ended before", 0
    there = members(folder)
    target = rng.choice(["first", "first", "group", "member"])
    others = [each for each in there if each != pid]
    if target == "group":
        harness.kill_group(pid)
    elif target == "member" and others:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(others), signal.SIGKILL)
    else:
        os.kill(pid, signal.SIGKILL)
    if wait(pid, LIMIT_S) is None:
        harness.kill_group(pid)
        os.waitpid(pid, 0)
        return "did not end", len(there)
    return target if target != "member" or others else "first", len(there)


@dataclass
class Tally:
    """What the kills of one kind gave."""

    kills: int = 0
    processes: int = 0  # that there were at these instants
    resumed: int = 0
    mismatches: int = 0
    orphans: int = 0


def prepared(folder: Path, kind: Kind, source: Path | None) -> tuple[Path, tuple[str, ...]]:
    """Return a new working folder, with a trained study if the kind needs one, and its words."""
    folder.mkdir(parents=True)
    words = kind.words
    if source:
        shutil.copytree(source / "results", folder / "results")
        (run,) = (source / "results" / "source").glob("gn-*")
        words = tuple(w.replace("INIT", f"results/source/{run.name}") for w in words)
    return folder.resolve(), words


def held(folder: Path) -> dict[str, object]:
    """Return what all studies of a folder hold, but tracebacks of members that were killed."""
    parts = harness.contents(folder / "results")
    return {name: part for name, part in parts.items() if "/traceback-" not in name}


def try_kind(name: str, count: int, folder: Path, rng: random.Random) -> Tally:
    """Kill calls of a kind until `count` kills have hit."""
    kind, tally, source = KINDS[name], Tally(), None
    if kind.before:
        (source := (folder / "source").resolve()).mkdir(parents=True)
        if wrong := whole(kind.before, source)[1]:
            raise SystemExit(f"{name}: {wrong}")
    known = []
    for number in (1, 2):
        place, words = prepared(folder / f"reference-{number}", kind, source)
        seconds, wrong = whole(words, place)
        known.append(held(place))
        if wrong:
            raise SystemExit(f"{name}, undisturbed: {wrong}")
    if wrong := harness.differences(*known):
        raise SystemExit(f"{name}: two references differ: {wrong}")
    print(f"{name}: {seconds:.1f} s, {len(known[0])} parts of files", flush=True)
    while tally.kills < count:
        place, words = prepared(folder / f"{tally.kills}-{rng.random():.6f}", kind, source)
        at, found = rng.uniform(0, 1.05 * seconds), []
        target, there = kill(words, place, at, rng)
        found += [f"orphan: {line}" for line in orphans(place)]
        tally.kills += target != "ended before"
        tally.processes += there
        if tally.kills < count and rng.random() < 0.2:  # once more, before it is let go on
            tally.kills += kill(words, place, rng.uniform(0, seconds), rng)[0] != "ended before"
            found += [f"orphan: {line}" for line in orphans(place)]
        more = whole(words, place)[1]
        tally.resumed += not more
        found += [*more, *harness.differences(known[0], held(place))]
        tally.orphans += sum(line.startswith("orphan: ") for line in found)
        tally.mismatches += any(not line.startswith("orphan: ") for line in found)
        for line in found:
            print(f"WRONG {name}, {target} killed at {at:.3f} s: {line}", flush=True)
        if not found:
            shutil.rmtree(place)
    return tally


def main(argv: list[str] | None = None) -> int:
    """Try all kinds and return the exit code: 1 with any mismatch or orphan."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="in all (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the random instants (0)")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    typed = parser.parse_args(argv)
    harness.preload()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    rng, folder = random.Random(typed.seed), Path(tempfile.mkdtemp(prefix="gnexp-kills-"))
    os.environ["XDG_STATE_HOME"] = str(folder / "state")
    shares = sum(KINDS[name].share for name in typed.only)
    begun, left, tallies = time.monotonic(), typed.kills, []
    for name in typed.only:
        count = -(-left * KINDS[name].share // shares)  # what is left by what is left
        left, shares = left - count, shares - KINDS[name].share
        tallies.append(try_kind(name, count, folder / name, rng))
        print(f"{name}: {tallies[-1]}", flush=True)
    kills, orphaned = (sum(getattr(t, key) for t in tallies) for key in ("kills", "orphans"))
    mismatches = sum(t.mismatches for t in tallies)
    print(
        f"kills: {kills}, calls that went on: {sum(t.resumed for t in tallies)},"
        f" mismatches: {mismatches}, orphans: {orphaned}, {time.monotonic() - begun:.0f} s"
    )
    if mismatches or orphaned:
        print(f"what is left of them: {folder}", file=sys.stderr)
        return 1
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
