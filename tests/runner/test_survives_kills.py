"""Killed at any instant and called again, a study ends with the numbers it would have had.

The longer form, which kills between every two operations on files: scripts/kill_harness.py.
"""

import contextlib
import csv
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from gnexp.runner import execute, plan
from gnexp.store import locks
from gnexp.store.locks import Lock, LockLost, LockOwner, lock_owner
from gnexp.store.run import Run, exclusive

HARNESS = Path(__file__).parents[2] / "scripts" / "kill_harness.py"
TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("batch=10", "gradients=4")


def test_a_shorter_form_of_the_harness_finds_no_mismatch():
    words = ["--instants", "3", "--every", "450", "--only", "seeds"]
    done = subprocess.run(
        [sys.executable, str(HARNESS), *words], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    tried = int(last.split("tried: ")[1].split(",")[0])
    assert tried >= 3 + 1
    assert last == f"instants tried: {tried}, resumed: {tried}, mismatches: 0, orphans: 0"


@pytest.fixture(scope="module")
def harness():
    spec = importlib.util.spec_from_file_location("kill_harness", HARNESS)
    module = importlib.util.module_from_spec(spec)
    sys.modules["kill_harness"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["kill_harness"]


def test_the_harness_tells_a_row_that_differs_is_lost_or_is_doubled(gnexp, harness, workdir):
    assert gnexp("train", *TINY, "epochs=1", "device=cpu").code == 0
    before = harness.contents(Path("results/main"))
    assert harness.differences(before, harness.contents(Path("results/main"))) == []
    (path,) = Path("results/main").glob("*/metrics.csv")
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    changed = lines[1].replace("0.", "0.1", 1)
    for text in (whole + lines[1], lines[0], lines[0] + changed):
        path.write_text(text)
        assert harness.differences(before, harness.contents(Path("results/main")))
    path.write_text(whole)
    (path.parent / ".result.json.7.tmp").touch()
    assert "left behind" in harness.differences(before, harness.contents(Path("results/main")))[0]


def started(workdir, *words):
    """Start gnexp in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "gnexp", *words],
        cwd=workdir,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # As in the tests' own process: the digits are those of a number of threads.
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def metrics(study):
    tables = {}
    for path in sorted(study.glob("*/metrics.csv")):
        with open(path) as file:
            rows = list(csv.DictReader(file))
        tables[path.parent.name] = [{k: v for k, v in r.items() if k != "time_s"} for r in rows]
    return tables


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc to find workers")
def test_a_killed_worker_takes_nobody_along_and_the_next_call_completes(gnexp, workdir):
    grid = ("train", "-m", *TINY, "epochs=4", "norm=bn,gn,ln", "device=cpu")
    process = started(workdir, *grid, "workers=2")
    try:
        study = workdir / "results/main"
        while not (worker := _worker_of(process, study)):
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.02)
        os.kill(worker, signal.SIGKILL)
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 1
        assert out.count("failed: ") == 1
        assert "its process ended by SIGKILL" in out
        statuses = Counter(Run(run).statuses()[0]["status"] for run in study.glob("*-b10-*"))
        assert statuses == {"complete": 2, "failed": 1}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    answer = gnexp(*grid, "workers=2")
    assert answer.code == 0
    assert answer.out.startswith("3 runs: 2 complete, 1 to train"), "no retry= is needed"
    assert gnexp(*grid, "study=whole", "workers=1").code == 0
    assert metrics(study) == metrics(workdir / "results/whole")


def _worker_of(process, study):
    """Return a worker that has stored an epoch, None if there is none yet."""
    for path in study.glob("*/metrics.csv"):
        by = lock_owner(path.parent / ".lock-0")
        if by and by.pid in children(process.pid):
            return by.pid
    return None


def test_two_calls_at_once_share_a_study_and_train_nothing_twice(gnexp, workdir):
    grid = ("train", "-m", *TINY, "epochs=8", "norm=bn,gn", "seeds=2", "workers=1")
    grid = tuple(word for word in grid if word != "gradients=4")
    grid += ("gradients=0", "device=cpu")
    calls = [started(workdir, *grid) for _ in range(2)]
    try:
        outs = [call.communicate(timeout=240)[0] for call in calls]
    finally:
        for call in calls:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(call.pid, signal.SIGKILL)
    assert [call.returncode for call in calls] == [0, 0], outs
    study = workdir / "results/main"
    # Every call that trains a run leaves its mark in the run's provenance.
    trained_by = [len(Run(run).provenance().get("earlier", [])) for run in study.glob("*-b10-*")]
    assert trained_by == [0, 0]
    assert not list(study.glob("*/.lock*"))
    assert (study / "report" / "index.html").is_file()
    assert gnexp(*grid, "study=alone").code == 0
    assert metrics(study) == metrics(workdir / "results/alone")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start at once")
def test_calls_that_start_at_once_agree_on_the_folder_they_make(workdir):
    wrong = []
    for _ in range(30):
        start, pids = time.monotonic() + 0.005, []
        for call in range(2):
            pids.append(os.fork())
            if pids[-1] == 0:
                code = 1
                try:
                    while time.monotonic() < start + 0.0001 * call:
                        pass
                    plan.output_folder("deep/results", "main")
                    Run.create("deep/results/main/run")
                    code = 0
                finally:
                    os._exit(code)
        wrong += [pid for pid in pids if os.waitpid(pid, 0)[1]]
        shutil.rmtree("deep")
    assert wrong == []


def claimed_by(path, host, pid, duration):
    """Write a claim as another machine's gnexp would."""
    lines = ["filelock/2", f"pid={pid}", f"host={host}", "mode=lease", f"token={'0' * 32}"]
    path.write_text("\n".join([*lines, f"duration={duration!r}", ""]))


@pytest.fixture
def short_lease(monkeypatch):
    monkeypatch.setattr(locks, "LEASE_S", 0.5)


def test_a_claim_that_another_machine_renews_is_respected(tmp_path, short_lease):
    path = tmp_path / ".lock-0"
    claimed_by(path, "elsewhere", 7, locks.LEASE_S)
    mine = Lock(path)
    for _ in range(10):
        assert not mine.take()
        assert lock_owner(path) == LockOwner("elsewhere", 7)
        time.sleep(0.1)
        os.utime(path)


def test_a_claim_that_another_machine_no_longer_renews_is_taken_over(tmp_path, short_lease):
    path = tmp_path / ".lock-0"
    claimed_by(path, "elsewhere", 7, locks.LEASE_S)
    mine, start = Lock(path), time.monotonic()
    while not mine.take():
        assert time.monotonic() - start < 10
        time.sleep(0.05)
    assert time.monotonic() - start > locks.LEASE_S
    assert lock_owner(path).pid == os.getpid()
    mine.drop()
    assert lock_owner(path) is None


def test_a_claim_whose_process_was_killed_before_it_named_itself_is_taken_over(tmp_path):
    path = tmp_path / ".lock-0"
    path.touch()
    mine, start = Lock(path), time.monotonic()
    while not mine.take():
        assert time.monotonic() - start < 10
    mine.drop()
    (tmp_path / ".writing").touch()
    with exclusive(tmp_path):
        assert time.monotonic() - start < 20


def test_whoever_was_stopped_while_another_took_over_knows_it_at_once(tmp_path):
    path = tmp_path / ".lock-0"
    mine = Lock(path)
    assert mine.take()
    assert not mine.lost
    path.unlink()
    claimed_by(path, "elsewhere", 7, locks.LEASE_S)
    assert mine.lost
    path.unlink()  # the other one is done
    assert mine.lost


def test_a_clock_that_is_wrong_elsewhere_ends_no_claim(tmp_path, short_lease):
    path = tmp_path / ".lock-0"
    claimed_by(path, "elsewhere", 7, locks.LEASE_S)
    os.utime(path, (1, 1))  # as if renewed in 1970
    assert not Lock(path).take()


def test_a_call_waits_for_a_training_elsewhere_and_takes_it_over_when_it_is_silent(
    gnexp, short_lease, monkeypatch
):
    monkeypatch.setattr(execute, "LOOK_S", 0.1)
    assert gnexp("train", *TINY, "epochs=1", "study=whole").code == 0
    (whole,) = Path("results/whole").glob("*-b10-*")
    run = Run.create(Path("results/main") / whole.name)
    claimed_by(run.lock_file(0), "elsewhere", 7, locks.LEASE_S)
    answer = gnexp("train", *TINY, "epochs=1")
    assert answer.code == 0
    assert "waiting for a training that process 7 on elsewhere is at work on" in answer.out
    assert metrics(Path("results/main")) == metrics(Path("results/whole"))


# Stops itself while it writes a file for the N-th time: half of the file's bytes are there.
STOPS = """
import os, signal, sys
from gnexp import cli
from gnexp.runner import execute
from gnexp.store import files, locks
locks.LEASE_S, execute.LOOK_S = 0.5, 0.1
name, left, sync = sys.argv[1], int(sys.argv[2]), os.fsync

def stop(descriptor):
    global left
    file = os.readlink(f"/proc/self/fd/{descriptor}")
    left -= f"/.{name}." in file
    if left == 0:
        left = -1
        os.kill(os.getpid(), signal.SIGSTOP)
    sync(descriptor)

os.fsync = stop
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_whoever_wakes_up_after_another_took_over_says_so_and_writes_nothing(
    gnexp, workdir, short_lease, monkeypatch
):
    monkeypatch.setattr(execute, "LOOK_S", 0.1)
    words = ("train", *TINY, "epochs=2", "device=cpu")
    program = [sys.executable, "-c", STOPS, "checkpoint.pt", "2", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    stopped = subprocess.Popen(program, stdout=-1, stderr=-2, text=True, env=environment)
    try:
        while state_of(stopped.pid) != "T":
            assert stopped.poll() is None, stopped.stdout.read()
            time.sleep(0.05)
        answer = gnexp(*words)
        assert answer.code == 0
        assert "waiting for a training" in answer.out
        (run,) = Path("results/main").glob("*-b10-*")
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        os.kill(stopped.pid, signal.SIGCONT)
        out, _ = stopped.communicate(timeout=120)
    finally:
        stopped.kill()
        stopped.wait()
    assert out.count("another process took over results/main/") == 1, out
    assert "failed" not in out
    assert stopped.returncode == 0
    assert before == {path.name: path.read_bytes() for path in run.iterdir()}
    assert not [name for name in before if name.startswith(".")]
    assert Run(run).statuses()[0]["status"] == "complete"


def state_of(pid):
    """Return the state of a process, as one letter: T is stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_file_is_not_replaced_once_a_claim_is_lost(tmp_path):
    run = Run.create(tmp_path / "run")
    with run.lock(0):
        run.set_status(0, "running")
        run.lock_file(0).unlink()
        claimed_by(run.lock_file(0), "elsewhere", 7, locks.LEASE_S)
        with pytest.raises(LockLost, match="another process took over"):
            run.set_status(0, "failed")
    assert run.statuses()[0]["status"] == "running"
    assert lock_owner(run.lock_file(0)) == LockOwner("elsewhere", 7), "the other one's claim stays"
    run.lock_file(0).unlink()
    run.set_status(0, "complete")  # without the claim anybody may
    assert not list(run.folder.glob(".*"))
