#!/usr/bin/env python
"""Proves that a byte which changed in a file of a study is named, and no number is made of it.

    python scripts/changed_bytes.py [--changes 200] [--seed 0]

Trains two runs of two seeds, measures gradients, covariance, shift, batches and classes at shared
weights too, and then changes one byte at a random place of one file, each time of another kind, in
a fresh copy. `gnexp verify`, `status` and `report` must name the file (large files and those of the
report: `verify`); the same `train`, or else `measure`, again must bring every number back. To save
time no figures are drawn, and only `report` makes a report. The last line counts; exit code 1 when
a change was used in silence, or a number did not come back.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

STUDY = Path("results/main")
TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40", "epochs=2")
SHIFT = ("shift.corruptions=[fog,contrast]", "shift.severities=[1,5]")
TRAIN = ("train", "-m", *TINY, "batch=10", "norm=bn,gn", "seeds=2", "gradients=4", "device=cpu")
TRAIN += ("measure=[shift,batches]", *SHIFT, "workers=1")
MEASURE = ("measure", "what=[gradients,covariance,shift,batches,classes]", "gradients_at=[2,10]")
MEASURE += ("gradients=4", *SHIFT, "device=cpu", "workers=1")
LARGE = ("checkpoint.pt", "logits.npz")  # no table is made of them
BEGINNINGS = ("plan.json", "provenance.json")  # of a finished run nothing makes them again
SET_ASIDE = (".corrupt", "digests.json", "report/")  # what repair leaves, and what follows


def harness() -> Any:
    """Return the script that knows which parts of files are numbers, not times."""
    path = Path(__file__).with_name("kill_harness.py")
    spec = importlib.util.spec_from_file_location("kill_harness_of_bytes", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def call(words: Sequence[str]) -> tuple[int, str]:
    """Run gnexp in this process; return its exit code and what it said."""
    from gnexp.cli import app

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = app.main(list(words))
    return code, said.getvalue()


def kinds(study: Path) -> dict[str, list[Path]]:
    """Return the files of a study by kind: a run's by their names, those of the report together."""
    found: dict[str, list[Path]] = {}
    for path in sorted(p for p in study.rglob("*") if p.is_file()):
        kind = "report" if path.parent.name == "report" else path.name
        found.setdefault(kind, []).append(path)
    return found


def change(path: Path, rng: random.Random) -> str:
    """Let one byte of a file be another; return what it was and is."""
    data = bytearray(path.read_bytes())
    at = rng.randrange(len(data))
    before = data[at]
    digit = chr(before).isdigit() and path.suffix != ".pt"  # that still reads well
    data[at] = ord("0") + (before - 47) % 10 if digit else before ^ 1 << rng.randrange(8)
    path.write_bytes(data)
    return f"byte {at} of {len(data)}, {bytes([before])!r} -> {bytes([data[at]])!r}"


def silent(path: Path) -> list[str]:
    """Return the commands that read the study and do not name the file that was changed."""
    found = []
    code, said = call(["verify"])
    if code != 1 or str(path) not in said:
        found.append("verify")
    if path.parent.name != "report" and path.name not in LARGE:
        found += [word for word in ("status", "report") if str(path) not in call([word])[1]]
    return found


def not_restored(tools: Any, reference: dict[str, Any], path: Path) -> list[str]:
    """Train, and where that is not enough measure again; return what then differs."""
    wrong: list[str] = []
    for words in (["report"] if path.parent.name == "report" else TRAIN, MEASURE):
        code, _ = call(words)
        wrong = [f"{words[0]}: exit code {code}"] if code and path.name not in LARGE else []
        lines = tools.differences(reference, tools.contents(STUDY))
        wrong += [line for line in lines if not any(words in line for words in SET_ASIDE)]
        if path.name in BEGINNINGS:
            wrong = [line for line in wrong if path.name not in line]
        if path.name in LARGE:  # nothing needs their numbers now
            return [line for line in wrong if path.name not in line]
        if not wrong and call(["verify"])[0] == 0:
            return []
    return [*wrong, call(["verify"])[1].strip()]


def save_time() -> None:
    """Leave figures out of reports, and reports out of all commands but that."""
    from gnexp.cli.commands import measure, train
    from gnexp.report import study_report

    study_report.write_figures = lambda *args: ({}, [])
    train._report = lambda *args: []
    measure.make_report = lambda *args: ""


def main(changes: int, seed: int) -> int:
    """Change bytes and print a line for each that was not named or not repaired; exit code."""
    torch.set_num_threads(1)
    tools, rng = harness(), random.Random(seed)
    used = unrestored = 0
    tried: Counter[str] = Counter()
    save_time()
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = f"{temporary}/cache"
        os.chdir(temporary)
        for words in (TRAIN, MEASURE, ["report"]):
            code, said = call(words)
            assert code == 0, said
        assert call(["verify"])[0] == 0
        reference = tools.contents(STUDY)
        shutil.copytree("results", "whole")
        for number in range(changes):
            shutil.rmtree("results")
            shutil.copytree("whole", "results")
            by_kind = kinds(STUDY)
            kind = sorted(by_kind)[number % len(by_kind)]
            path = rng.choice(by_kind[kind])
            what = change(path, rng)
            tried[kind] += 1
            if path.name != ".made.json" and (words := silent(path)):  # it holds no number
                used += 1
                print(f"{number}: {path}, {what}: not named by {', '.join(words)}", flush=True)
            if wrong := not_restored(tools, reference, path):
                unrestored += 1
                print(f"{number}: {path}, {what}: {'; '.join(wrong)}", flush=True)
    print(f"{len(tried)} kinds of files: {', '.join(sorted(tried))}")
    print(f"{changes} bytes changed: {used} used in silence, {unrestored} not restored")
    return 1 if used or unrestored else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--changes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    typed = parser.parse_args()
    sys.exit(main(typed.changes, typed.seed))
