"""Whatever ends a call of gnexp, SIGKILL too, no process that it started outlives it."""

import time
from pathlib import Path

import pytest
from processes import called, marked, needs_proc, others, wait_until

from gnexp.runner import process_pool

pytestmark = needs_proc

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("batch=2", "device=cpu", "gradients=0", "epochs=100000")
SECONDS = 10.0  # in which all must have gone, on a busy machine


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
