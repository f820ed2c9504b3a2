"""`gnexp train` from the command line to the files, in small."""

import contextlib
import functools
import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from run_files import epochs, only_run, runs, seeds, table

from gnexp.cli import main
from gnexp.cli.hydra_app import compose
from gnexp.config.identity import restore
from gnexp.config.resolve import resolve
from gnexp.config.schema import TrainConfig
from gnexp.norms import trials
from gnexp.norms.registry import NORMS
from gnexp.runner import measure_stored, trainer
from gnexp.runner.build import data, model
from gnexp.runner.plan import plan
from gnexp.store.run import Run
from gnexp.store.run_files import TABLES

TINY = (
    "model=resnet8",
    "model.width=8",
    "data.train_limit=60",
    "data.test_limit=40",
    "epochs=2",
    "batch=10",
    "gradients=4",
)


def numbers(folder):
    """What training gave, without the times it took."""
    return epochs(folder), table(folder / "gradients.csv")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of one run, and what was printed while it trained, for tests that only read."""
    with contextlib.chdir(tmp_path_factory.mktemp("trained")), io.StringIO() as printed:
        with contextlib.redirect_stdout(printed):
            assert main(["train", *TINY, "device=cpu", "groups=4"]) == 0
        return only_run().absolute(), printed.getvalue()


def test_a_run_leaves_the_files_that_are_promised(trained):
    folder, _ = trained
    assert {p.name for p in folder.iterdir() if not p.name.startswith(".")} == {
        *("config.yaml", "provenance.json", "status.json", "metrics.csv", "gradients.csv"),
        *("plan.json", "result.json", "checkpoint.pt", "logits.npz", "classes.csv"),
        "digests.json",
    }
    metrics = table(folder / "metrics.csv")
    assert list(metrics[0]) == list(TABLES["metrics.csv"].columns)
    assert [row["examples_seen"] for row in metrics] == ["60", "120"]
    gradients = table(folder / "gradients.csv")
    assert list(gradients[0]) == list(TABLES["gradients.csv"].columns)
    assert {row["epoch"] for row in gradients} == {"0", "1", "2"}
    assert {"all", "gamma", "beta", "conv", "linear"} <= {row["parameters"] for row in gradients}
    result = json.loads((folder / "result.json").read_text())
    assert result["seeds"]["0"]["test_acc"] == float(metrics[-1]["test_acc"])
    assert result["groups_per_layer"]["norm1"] == 4
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["groups"], config["update_batch"]) == (4, 10)
    logits = np.load(folder / "logits.npz", allow_pickle=False)["seed_0"]
    assert (logits.shape, logits.dtype) == ((40, 10), np.float16)
    labels = data.images_of(restore(config).data).y_test
    assert (logits.argmax(1) == labels).mean() == result["seeds"]["0"]["test_acc"]


def test_what_is_printed_says_what_runs_and_what_came_out(trained):
    folder, printed = trained
    first, *lines, last = printed.strip().splitlines()
    # 8, 16 and 32 channels: the stem, two 3 x 3 convolutions a block, gammas and betas, and fc.
    stem, norms = 3 * 9 * 8, 2 * (3 * 8 + 2 * 16 + 2 * 32)
    blocks = 9 * (8 * 8 + 8 * 8 + 8 * 16 + 16 * 16 + 16 * 32 + 32 * 32)
    expected = stem + norms + blocks + 32 * 10 + 10
    assert f", {expected:,} parameters | " in first
    assert json.loads((folder / "result.json").read_text())["parameters"] == expected
    for word in ("cpu", "shapes10: 60 training", "resnet8", "4 groups", "parameters", "12 updates"):
        assert word in first
    assert [line.split(":")[0] for line in lines] == ["seed 0, epoch 1", "seed 0, epoch 2"]
    assert "95 % CI" in last
    assert folder.name in last


def test_the_same_command_again_trains_nothing_and_more_seeds_only_the_new_ones(gnexp):
    first = gnexp("train", *TINY)
    before = {p.name: p.stat().st_mtime_ns for p in only_run().iterdir()}
    again = gnexp("train", *TINY)
    assert again.code == 0
    assert {p.name: p.stat().st_mtime_ns for p in only_run().iterdir()} == before
    assert again.out.strip() == first.out.strip().splitlines()[-1]
    kept = epochs(only_run())
    out = gnexp("train", *TINY, "seeds=3").out
    assert "seed 0, epoch" not in out
    assert "seed 2, epoch 2" in out
    after = epochs(only_run())
    assert [r for r in after if r["seed"] == "0"] == kept
    assert len(after) == 6
    provenance = json.loads((only_run() / "provenance.json").read_text())
    assert "seeds=3" in provenance["command"]
    assert [("seeds=3" in call["command"]) for call in provenance["earlier"]] == [False]


def test_a_seed_gets_the_same_numbers_among_others_and_starts_alone_as_among_them(gnexp):
    # Of three in a step, seed 1 is once the second and once the first.
    for study, typed in (("first", "3"), ("second", "[1,7,9]"), ("alone", "[1]")):
        gnexp("train", *TINY, f"seeds={typed}", f"study={study}", "workers=1")
    rows = {
        study: [[r for r in kind if r["seed"] == "1"] for kind in numbers(only_run(study))]
        for study in ("results/first", "results/second", "results/alone")
    }
    first, second, alone = rows.values()
    assert first == second
    # float32 kernels for one model and for several round differently, and training is chaotic.
    loss, loss_alone = (float(each[0][0]["train_loss"]) for each in (first, alone))
    assert loss == pytest.approx(loss_alone, rel=1e-4)
    start = [[r for r in each[1] if r["epoch"] == "0"] for each in (first, alone)]
    assert start[0] == start[1], "measured before the first update"


def test_measuring_gradients_does_not_change_training(gnexp):
    words = [w for w in TINY if not w.startswith("gradients")]
    for draws in (0, 4):
        gnexp("train", *words, "norm=bn", f"gradients={draws}", f"study=bn{draws}")
    assert epochs(only_run("results/bn0")) == epochs(only_run("results/bn4"))


def test_a_diverged_seed_is_a_result_and_no_error(gnexp):
    answer = gnexp("train", *TINY, "norm=none", "lr=1e30", "lr_rule=none")
    assert answer.code == 0
    assert "diverged" in answer.out
    status = json.loads((only_run() / "status.json").read_text())["seeds"]["0"]
    assert status["status"] == "diverged"
    assert "not finite in epoch 1" in status["why"]
    assert gnexp("train", *TINY, "norm=none", "lr=1e30", "lr_rule=none").code == 0


OWN_NORM = """
import torch
from torch import nn


class MyNorm(nn.Module):
    def __init__(self, channels, power=2.0):
        super().__init__()
        self.power = power
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.rand(channels))

    def forward(self, x):
        scale = x.abs().pow(self.power).mean((1, 2, 3), keepdim=True).pow(1 / self.power)
        return x / (scale + 1e-5) * self.weight[:, None, None] + self.bias[:, None, None]


class Moody(MyNorm):
    def forward(self, x):
        if self.training and x.shape[-1] == 32:  # not yet when it is tried, on 8 x 8
            raise RuntimeError("not in the mood")
        return super().forward(x)
"""


@pytest.fixture
def own_norm(own_module):
    return own_module(OWN_NORM)


def test_an_own_norm_trains_like_any_other_with_the_keys_typed_for_it_and_repeatably(
    gnexp, own_norm
):
    for study in ("main", "two"):
        words = (f"norm._target_={own_norm}.MyNorm", "norm.power=3", f"study={study}")
        answer = gnexp("train", *TINY, *words)
        assert answer.code == 0, answer.err
    assert "MyNorm, batch 10" in answer.out
    config = yaml.safe_load((only_run() / "config.yaml").read_text())
    assert config["norm"] == {"name": "custom", "_target_": f"{own_norm}.MyNorm", "power": 3}
    assert Run(only_run()).result()["pools"] == "chw"
    assert numbers(only_run()) == numbers(only_run("results/two")), "its weights are drawn alike"


def test_an_own_norm_whose_trial_fails_has_unknown_pools(own_norm, monkeypatch):
    own = {"name": "custom", "_target_": f"{own_norm}.Moody"}
    config = resolve(TrainConfig(norm=own, batch=2))
    images = data.images_of(config.data).summary
    assert model.pools(config, images) == "chw"
    monkeypatch.setattr(trials, "SIDE", 32)  # where the layer raises
    assert model.pools(config, images) is None


def test_an_edited_norm_is_another_run(own_module):
    names = set()
    for source in (OWN_NORM, OWN_NORM + "\n# changed\n"):
        data.forget()
        configs, _, _ = compose("train", [*TINY, f"norm._target_={own_module(source)}.MyNorm"])
        names |= {run.name for run in plan(configs)}
    assert len(names) == 2


def test_jobs_that_mean_the_same_are_one_run(workdir):
    configs, grid, _ = compose("train", ["-m", *TINY, "norm=bn,gn", "groups=2,4"])
    assert (len(configs), len(plan(configs)), grid) == (4, 3, True)
    configs, _, _ = compose("train", ["-m", *TINY, "seeds=[0],[2],[1]"])
    (run,) = plan(configs)
    assert run.config.seeds == [0, 2, 1]


def test_a_grid_over_processes_gives_the_numbers_of_one_process_and_a_report(gnexp):
    grid = ("train", "-m", *TINY, "norm=bn,gn")
    one = gnexp(*grid, "workers=1", "study=one")
    two = gnexp(*grid, "workers=2", "study=two")
    assert (one.code, two.code) == (0, 0), two.err
    names = [folder.name for folder in runs("results/one")]
    assert len(names) == 2
    for name in names:
        assert numbers(Path("results/one") / name) == numbers(Path("results/two") / name)
    assert Path("results/two/report/index.html").is_file()
    assert "report: results/two/report/index.html" in two.out
    again = gnexp(*grid, "workers=2", "study=two")
    assert again.out.startswith("2 runs: 2 complete")


def test_a_failing_run_keeps_its_traceback_and_does_not_stop_the_others(gnexp, own_norm):
    words = [w for w in TINY if not w.startswith("gradients")]
    grid = f"norm._target_={own_norm}.Moody,{own_norm}.MyNorm"
    answer = gnexp("train", "-m", *words, "gradients=0", grid, "workers=1")
    assert answer.code == 1
    assert "not in the mood" in answer.out
    assert "Traceback" not in answer.out + answer.err
    moody, mine = runs()
    assert "not in the mood" in (moody / "traceback-0.txt").read_text()
    status = json.loads((moody / "status.json").read_text())["seeds"]["0"]
    assert status == {"status": "failed", "why": "RuntimeError: not in the mood"}
    assert seeds(mine)["0"]["status"] == "complete"
    assert Path("results/main/report/index.html").is_file()


@pytest.fixture
def few_draws(monkeypatch):
    """Shared weights are measured with 4,096 images per point; tests need not wait for that."""
    monkeypatch.setattr(measure_stored, "IMAGES_PER_POINT", 40)
    monkeypatch.setattr(measure_stored, "LEAST_DRAWS", 4)


def test_shared_weights_are_measured_once_at_every_batch_size_asked_for(
    gnexp, few_draws, no_report
):
    words = [w for w in TINY if w != "batch=10"]
    words += ["-m", "norm=bn,gn", "batch=5,10", "workers=1", "gradients_at=[1,2,5]"]
    answer = gnexp("train", *words, "covariance=true")
    assert answer.code == 0, answer.err
    for norm in ("bn", "gn-g8"):
        large = next(Path("results/main").glob(f"{norm}-b10-*"))
        small = next(Path("results/main").glob(f"{norm}-b5-*"))
        at = {(r["epoch"], r["at_batch"]) for r in table(large / "gradients.csv")}
        assert {(e, b) for e in ("0", "2") for b in ("1", "2", "5")} <= at
        assert {r["at_batch"] for r in table(small / "gradients.csv")} == {"5"}
        assert (large / "covariance.csv").exists() == (norm != "bn")
    assert list(table(large / "covariance.csv")[0]) == list(TABLES["covariance.csv"].columns)
    before = (large / "gradients.csv").stat().st_mtime_ns
    (large / "checkpoint.pt").unlink()
    answer = gnexp("train", *words)
    assert answer.code == 0, answer.out
    assert (large / "gradients.csv").stat().st_mtime_ns == before


def test_stored_runs_are_measured_later_without_training(gnexp, trained, no_report):
    shutil.copytree(trained[0], Path("results/main") / trained[0].name)
    before = table(only_run() / "metrics.csv")
    answer = gnexp("measure", "gradients=8", "gradients_at=[2,4]", "what=[gradients,covariance]")
    assert answer.code == 0, answer.err
    rows = table(only_run() / "gradients.csv")
    assert {(r["at_batch"], r["k"]) for r in rows} == {("10", "4"), ("2", "8"), ("4", "8")}
    assert (only_run() / "covariance.csv").exists()
    assert table(only_run() / "metrics.csv") == before


def test_training_on_shapes10_never_imports_torchvision(gnexp, workdir):
    code = (
        "import sys; from gnexp.cli import main;"
        f" code = main(['train', *{TINY!r}]);"
        " sys.exit(code or 3 * ('torchvision' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=workdir)
    assert done.returncode == 0, done.stderr


def gone(group, within_s):
    """Whether no process of the group is left, at the latest after so many seconds."""
    for _ in range(10 * within_s):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_ctrl_c_ends_a_grid_with_130_and_leaves_no_process(workdir):
    words = ["-m", *TINY, "norm=bn,gn", "workers=2"]
    words = [w.replace("epochs=2", "epochs=100000") for w in words]
    process = subprocess.Popen(
        [sys.executable, "-m", "gnexp", "train", *words],
        cwd=workdir,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Whoever starts the tests in the background has Ctrl-C ignored, which is inherited.
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        assert "2 runs: 2 to train" in process.stdout.readline()
        while len(list(workdir.glob("results/main/*/metrics.csv"))) < 2:
            assert process.poll() is None
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGINT)  # it is for the parent, and so harms no worker
            time.sleep(0.1)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert err.splitlines()[-1].startswith("gnexp: stopped; the same command goes on")
        assert "Traceback" not in err
        assert gone(process.pid, within_s=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def test_hydra_still_shows_its_help_with_every_norm(gnexp, workdir):
    shown = gnexp("train", "--help").out.splitlines()
    choices = next(line for line in shown if line.startswith("norm: "))
    assert choices.removeprefix("norm: ").split(", ") == sorted([*NORMS, "custom"])


@pytest.mark.parametrize(
    "words", ["-cjob", "--version", "--info searchpath"], ids=lambda words: words
)
def test_a_question_is_answered_however_it_is_typed_and_changes_no_logging(words, gnexp, workdir):
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    answer = gnexp("train", *words.split())
    assert answer.code == 0
    assert len(answer.out) > 10
    assert (root.level, list(root.handlers)) == before
    assert list(workdir.iterdir()) == []


def test_jobs_know_their_number_typed_keys_replace_axes_and_options_are_of_all_norms(workdir):
    words = ["-m", "data.title='number ${hydra:job.num}'", "norm=bn,gn"]
    configs, _, _ = compose("train", words)
    assert [config.data.title for config in configs] == ["number 0", "number 1"]
    configs, _, _ = compose("train", ["experiment=smoke", "norm=ln"])
    assert [(c.norm["name"], c.batch) for c in configs] == [("ln", 1), ("ln", 4), ("ln", 32)]
    configs, _, _ = compose("train", ["-m", "norm=bn,brn", "norm.momentum=0.2"])
    assert [config.norm["momentum"] for config in configs] == [0.2, 0.2]


def test_a_norm_that_draws_while_it_trains_is_repeatable(gnexp, own_module):
    source = OWN_NORM + "\n\nclass Noisy(MyNorm):\n    def forward(self, x):\n"
    source += "        return super().forward(x + 0.1 * torch.randn_like(x) * self.training)\n"
    for study in ("one", "two"):
        gnexp("train", *TINY, f"norm._target_={own_module(source)}.Noisy", f"study={study}")
    assert epochs(only_run("results/one")) == epochs(only_run("results/two"))


def test_a_published_copy_without_checkpoints_goes_on_and_gives_the_same_numbers(
    gnexp, monkeypatch
):
    """A round was interrupted, its folder copied without weights and logits, and finished there."""
    words = (*TINY, "precision=bf16", "workers=1")
    for study in ("whole", "cut"):
        assert gnexp("train", *words, f"study={study}").code == 0
    assert gnexp("train", *words, "study=whole", "seeds=3").code == 0

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer.GroupTrainer, "_finish", killed)
        assert gnexp("train", *words, "study=cut", "seeds=3").code == 130
    interrupted = numbers(only_run("results/cut"))[0]
    assert {row["seed"] for row in interrupted} == {"0", "1", "2"}
    left_out = shutil.ignore_patterns("checkpoint.pt", "logits.npz", "*.lock*", ".lock*", "report")
    shutil.copytree("results/cut", "elsewhere/cut", ignore=left_out)
    kept = Run(only_run("elsewhere/cut")).result()["seeds"]["0"]
    answer = gnexp("train", *words, "study=cut", "out=elsewhere", "seeds=3")
    assert answer.code == 0
    assert Run(only_run("elsewhere/cut")).result()["seeds"]["0"] == kept
    assert numbers(only_run("elsewhere/cut")) == numbers(only_run("results/whole"))
