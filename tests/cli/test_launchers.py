"""A grid trains on other engines than this process: Ray, Slurm's submitit, joblib."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest
from run_files import epochs, runs, seeds

from gnexp.cli import launchers
from gnexp.cli.argv import quoted
from gnexp.cli.launchers import needed_jobs
from gnexp.config.schema import TrainConfig
from gnexp.runner.prepared_run import PreparedRun
from gnexp.store.locks import lock_owner
from gnexp.store.run import Run

QUICK = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
QUICK += ("epochs=2", "batch=10", "gradients=0")
SUBMITIT = "hydra/launcher=submitit_local"


def family():
    """Return the processes that descend from this one."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(stat.parent.name)] = int(fields[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


# A norm that lives where the command was typed; when told to, it fails, or kills one run's process.
OWN = """
import os, signal
from torch import nn


class Own(nn.GroupNorm):
    def __init__(self, channels, eps=1e-5):
        super().__init__(4, channels, eps)

    def forward(self, x):
        training = self.training and x.shape[-1] == 32  # not when it is tried, on 8 x 8
        if training and self.eps == 0.5 and os.path.exists("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if training and self.eps == 0.25 and os.path.exists("raise"):
            raise RuntimeError("told to")
        return super().forward(x)
"""


@pytest.fixture
def own(own_module):
    """The argument that chooses a norm which only the current directory has."""
    return f"norm._target_={own_module(OWN)}.Own"


@pytest.fixture
def on_loopback(monkeypatch):
    """Ray, which listens on all interfaces unless it is told so before it is imported."""
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="gnexp[ray] is not installed")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    from ray._private.ray_constants import ENABLE_RAY_CLUSTER

    if ENABLE_RAY_CLUSTER:
        pytest.skip("Ray was imported before it could be kept on loopback")
    with tempfile.TemporaryDirectory() as folder:  # names of sockets must be short
        monkeypatch.setenv("RAY_TMPDIR", folder)
        yield Path(folder)


@pytest.fixture
def cluster(on_loopback):
    """A Ray cluster of two nodes of one core; the second can be taken away."""
    import ray
    from ray.cluster_utils import Cluster

    before = family()
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        made.second = made.add_node(**node)
        made.wait_for_nodes()
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        for _ in range(100):
            if not family() - before:
                break
            time.sleep(0.1)
        assert not family() - before, "a process of Ray was left"


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def take_away(cluster, taken):
    """Wait until a run that trains on the second node is in its third epoch; kill that node."""
    import ray

    raylet = cluster.second.all_processes["raylet"][0].process.pid
    for _ in range(1200):
        time.sleep(0.05)
        for folder in Path("results/main").glob("*-*"):
            at_work = lock_owner(Run(folder).lock_file(0))
            with contextlib.suppress(OSError):
                if at_work and parent(at_work.pid) == raylet and len(epochs(folder)) > 4:
                    taken["nodes"] = sum(node["Alive"] for node in ray.nodes())
                    cluster.remove_node(cluster.second, allow_graceful=False)
                    taken["run"] = folder.name
                    return


def test_ray_trains_every_seed_once_and_as_here_though_a_node_is_lost(
    gnexp, own, cluster, no_report
):
    words = [word for word in QUICK if not word.startswith(("epochs", "batch"))]
    words += [own, "epochs=15", "seeds=2", "batch=10,20"]
    ray = ("hydra/launcher=ray_cluster", f"hydra.launcher.ray.init.address={cluster.address}")
    taken = {}
    thread = threading.Thread(target=take_away, args=(cluster, taken))
    thread.start()
    answer = gnexp("train", "-m", *words, *ray)
    thread.join()
    assert answer.code == 0, answer
    assert taken["nodes"] == 2
    assert [f"[{n}/2] " in answer.out for n in (1, 2)] == [True] * 2
    again = json.loads((Path("results/main") / taken["run"] / "provenance.json").read_text())
    assert len(again["earlier"]) == 1, "the job was run again elsewhere"
    assert gnexp("train", "-m", *words, "workers=1", "study=here").code == 0
    assert len(runs()) == 2
    for there, here in zip(runs(), runs("results/here")):
        assert len(epochs(there)) == 2 * 15
        assert epochs(there) == epochs(here)
        assert seeds(there).keys() == {"0", "1"}
    assert not Path("results/main/.jobs").exists()


def test_a_ray_cluster_that_is_not_there_is_one_sentence(gnexp, on_loopback):
    words = ("train", *QUICK, "hydra/launcher=ray_cluster")
    (on_loopback / "ray").mkdir()
    (on_loopback / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")  # of one that is gone
    for answer in (gnexp(*words), gnexp(*words, "hydra.launcher.ray.init.address=127.0.0.1:1")):
        assert answer.code == 2
        (sentence,) = answer.err.splitlines()
        assert "hydra/launcher=ray_cluster cannot start: no answer from 127.0.0.1:1" in sentence
        assert "ray start --head" in sentence


def test_submitit_trains_a_preset_with_odd_names_as_here_and_again_starts_no_job(
    gnexp, workdir, monkeypatch
):
    pytest.importorskip("submitit", reason="gnexp[slurm] is not installed")
    presets = workdir / "my presets" / "experiment"
    presets.mkdir(parents=True)
    (presets / "two.yaml").write_text(
        "# @package _global_\nstudy: two\nseeds: 2\n"
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:\n      norm: bn,ln\n"
    )
    name = "it's an odd name, \u00fc & = 1"
    words = ("train", *QUICK, "--config-dir", "my presets", "experiment=two", "lr=[0.1,0.2]")
    there = (*words, f"out={quoted(name)}", SUBMITIT, "hydra.sweeper.max_batch_size=1")
    answer = gnexp(*there)
    assert answer.code == 0, answer
    assert answer.out.startswith("4 runs: 4 to train |")
    assert "2 jobs through hydra/launcher=submitit_local" in answer.out
    assert [f"[{n}/4] " in answer.out for n in (1, 2, 3, 4)] == [True] * 4
    assert answer.out.splitlines()[-1].startswith("report: ")
    assert sorted(p.name for p in workdir.iterdir()) == [name, "my presets"]
    assert gnexp(*words, "workers=1").code == 0
    assert [folder.name[:2] for folder in runs(f"{name}/two")] == ["bn", "bn", "ln", "ln"]
    assert [epochs(f) for f in runs(f"{name}/two")] == [epochs(f) for f in runs("results/two")]
    monkeypatch.setattr(launchers, "_launch", lambda *_: pytest.fail("a job was started"))
    again = gnexp(*there)
    assert again.code == 0, again
    assert again.out.startswith("4 runs: 4 complete |")


def test_a_lost_job_ends_no_other_and_alone_is_started_again(
    gnexp, own, workdir, no_report, monkeypatch
):
    pytest.importorskip("submitit", reason="gnexp[slurm] is not installed")
    (workdir / "kill").touch()
    (workdir / "raise").touch()
    words = ("train", "-m", *QUICK, own, "norm.eps=0.5,0.25", SUBMITIT)
    answer = gnexp(*words)
    assert answer.code == 1, answer
    assert "job 1 ended early: " in answer.out
    assert answer.out.count("no result came back") == 1
    assert "RuntimeError: told to" in answer.out
    monkeypatch.setattr(launchers, "_launch", lambda *_: None)
    assert gnexp(*words).out.startswith("2 runs: 1 failed, 1 to train |")
    assert gnexp(*words, "retry=failed").out.startswith("2 runs: 2 to train |")


def test_joblib_trains_a_grid(gnexp, no_report):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="it is not installed")
    from joblib.externals.loky import get_reusable_executor

    joblib = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    try:
        assert gnexp("train", "-m", *QUICK, "norm=bn,gn", *joblib).code == 0
    finally:
        get_reusable_executor().shutdown(kill_workers=True)  # they would wait for more
    assert [folder.name[:2] for folder in runs()] == ["bn", "gn"]
    assert all(seeds(folder)["0"]["status"] == "complete" for folder in runs())


def test_ctrl_c_ends_the_jobs_and_the_same_command_goes_on(workdir):
    pytest.importorskip("submitit", reason="gnexp[slurm] is not installed")
    words = [w for w in QUICK if not w.startswith("epochs")]
    command = [sys.executable, "-m", "gnexp", "train", "-m", *words, "norm=bn,gn", SUBMITIT]
    with open(workdir / "out.txt", "w") as kept:
        process = subprocess.Popen(
            [*command, "epochs=100000"],
            stdout=kept,
            stderr=kept,
            start_new_session=True,
            # Whoever starts the tests in the background has Ctrl-C ignored, which is inherited.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )
    try:
        while len(list(workdir.glob("results/main/*/metrics.csv"))) < 2:
            assert process.poll() is None, (workdir / "out.txt").read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
        for _ in range(50):
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                break
            time.sleep(0.1)
        else:
            pytest.fail("a job went on")
        said = (workdir / "out.txt").read_text()
        assert "Traceback" not in said
        assert "the same command goes on" in said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("launcher", "module", "sentence"),
    [
        ("ray_cluster", "ray", "needs Ray: pip install 'gnexp[ray]'"),
        ("submitit_slurm", "submitit", "needs submitit: pip install 'gnexp[slurm]'"),
    ],
)
def test_a_launcher_that_is_not_installed_says_how_to_get_it(
    launcher, module, sentence, gnexp, workdir, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)
    answer = gnexp("train", "-m", *QUICK, "norm=bn,gn", f"hydra/launcher={launcher}")
    assert answer.code == 2
    assert answer.err == f"gnexp: hydra/launcher={launcher} {sentence}\n"
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("hydra/launcher=rai", "hydra/launcher=rai is unknown; did you mean ray?"),
        ("hydra/launcher=basic,joblib", "a grid takes one launcher, such as"),
        ("hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs= needs a launcher beside it, such as"),
        (f"{SUBMITIT} hydra.launcher.gpus=1", "hydra.launcher.gpus is not an option of"),
        (f"{SUBMITIT} seeds=0", "seeds=0 must be how many"),
        ("hydra/launcher=submitit_slurm", "hydra/launcher=submitit_slurm cannot start: "),
    ],
)
def test_a_mistake_about_a_launcher_is_one_sentence(typed, sentence, gnexp, monkeypatch):
    if "submitit" in typed:
        pytest.importorskip("submitit", reason="gnexp[slurm] is not installed")
    monkeypatch.setenv("PATH", "")  # where sbatch is not
    answer = gnexp("train", "-m", *QUICK, "norm=bn,gn", *typed.split())
    assert answer.code == 2
    assert len(answer.err.splitlines()) == 1, answer.err
    assert sentence in answer.err
    assert not list(Path().glob("results/*/*/metrics.csv"))


def test_each_missing_seed_is_of_the_first_job_that_has_it_and_a_tuned_run_of_any():
    some, more = TrainConfig(seeds=[0, 1]), TrainConfig(seeds=[1, 2])
    tuned = TrainConfig(lr="tuned", seeds=1)
    jobs = [[some], [some, more], [tuned]]
    run = PreparedRun(some, "a", None, None, jobs=(0, 1, 2))
    assert needed_jobs(jobs, {run: [0, 1]}) == [0]
    assert needed_jobs(jobs, {run: [2]}) == [1]
    assert needed_jobs(jobs, {run: [0, 2]}) == [0, 1]
    assert needed_jobs(jobs, {PreparedRun(tuned, "b", None, None, jobs=(3,)): [1000, 1001]}) == [2]
