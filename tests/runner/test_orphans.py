"""Whatever ends a call of gnexp, SIGKILL too, no process that it started outlives it."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from gnexp.runner import process_pool

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("batch=2", "device=cpu", "gradients=0", "epochs=100000")
SECONDS = 10.0  # in which all must have gone, on a busy machine


def marked(mark):
    """Return the processes whose environment holds a mark, as those of a call do."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended, or is somebody else's
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            if state not in "ZX" and mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


@contextlib.contextmanager
def called(*command):
    """Start a command in a session of its own; yields its process and the mark of all it starts."""
    mark = f"mark-{uuid.uuid4().hex}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GNEXP_MARK": mark}
    process = subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=-3, stderr=-3, start_new_session=True
    )
    try:
        yield process, mark
    finally:
        for pid in marked(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def wait_until(condition, seconds=240.0):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.01)


def others(process, mark):
    return [pid for pid in marked(mark) if pid != process.pid]


def trains(process, mark):
    return len(list(Path().glob("results/*/*/metrics.csv"))) > 0


# How processes come to be: what is typed, and how many there are beside the first.
CALLS = {
    "devices": (("train", *TINY, "norm=gn", "devices=2"), 1),
    "workers": (("train", "-m", *TINY, "norm=bn,gn", "workers=2"), 3),  # and their keeper
    "joblib": (("train", "-m", *TINY, "norm=bn,gn", "hydra/launcher=joblib"), 2),
    "submitit": (("train", "-m", *TINY, "norm=bn,gn", "hydra/launcher=submitit_local"), 2),
}
NEEDS = {"joblib": "hydra_plugins.hydra_joblib_launcher", "submitit": "submitit"}


@pytest.mark.parametrize("kind", CALLS)
def test_no_process_outlives_a_call_that_is_killed_while_they_train(kind, workdir):
    pytest.importorskip(NEEDS.get(kind, "torch"))
    words, count = CALLS[kind]
    with called("-m", "gnexp", *words) as (process, mark):
        wait_until(lambda: trains(process, mark) or process.poll() is not None)
        assert len(others(process, mark)) >= count
        process.kill()
        process.wait()
        wait_until(lambda: not marked(mark), SECONDS)


def test_no_process_outlives_a_call_that_is_killed_when_they_have_just_begun(workdir):
    with called("-m", "gnexp", *CALLS["workers"][0]) as (process, mark):
        wait_until(lambda: others(process, mark) or process.poll() is not None)
        assert process.poll() is None
        process.kill()
        process.wait()
        wait_until(lambda: not marked(mark), SECONDS)


STUCK = """
import sys
from ctypes import PyDLL
from gnexp.runner.process_pool import run_tasks

def work(task, emit):
    print("begun", flush=True)
    open(f"begun-{task}", "w").close()
    PyDLL(None).sleep(600)  # in C, and no other thread of Python runs meanwhile

if __name__ == "__main__":
    list(run_tasks([1, 2], work, print, 2))
"""


def test_a_worker_that_is_stuck_in_c_code_ends_with_its_parent(workdir):
    Path("stuck.py").write_text(STUCK)
    with called("stuck.py") as (process, mark):
        wait_until(lambda: len(list(Path().glob("begun-*"))) == 2)
        process.kill()
        process.wait()
        wait_until(lambda: not marked(mark), SECONDS)


WATCHED = """
import os, subprocess, sys, time
code = "import os, sys, time; from gnexp.runner import process_pool; sys.platform = 'darwin';"
code += "process_pool.end_with(os.getppid()); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code])
time.sleep(600)
"""


def test_a_process_ends_with_its_parent_where_the_system_has_no_signal_for_it(workdir):
    with called("-c", WATCHED) as (process, mark):
        wait_until(lambda: others(process, mark))
        time.sleep(3 * process_pool.LOOK_S)
        assert others(process, mark)
        process.kill()
        process.wait()
        wait_until(lambda: not marked(mark), SECONDS)
