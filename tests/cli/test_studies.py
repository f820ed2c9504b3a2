"""A study is simply called again: it trains what is missing, and says how far it is."""

import os
from pathlib import Path

import pytest
import torch
from run_files import epochs, runs, seeds

from gnexp.cli.commands import train
from gnexp.report import study_report
from gnexp.runner import trainer
from gnexp.store import status as outlook
from gnexp.store.run import Run
from gnexp.store.study import load_study

QUICK = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
QUICK += ("epochs=2", "batch=10", "gradients=0", "workers=1")


MOODY = """
import os
from torch import nn


class Moody(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(4, channels)

    def forward(self, x):
        if self.training and x.shape[-1] == 32 and os.path.exists("in a bad mood"):
            raise RuntimeError("not in the mood")
        return super().forward(x)
"""


@pytest.fixture
def moody(workdir, own_module):
    """An own norm that fails while a file says so."""
    (workdir / "in a bad mood").touch()
    return f"norm._target_={own_module(MOODY)}.Moody"


def test_a_larger_grid_trains_only_what_is_new_and_counts_the_rest(gnexp, no_report):
    assert gnexp("train", "-m", *QUICK, "norm=bn,gn").code == 0
    before = {run: epochs(run) for run in runs()}
    answer = gnexp("train", "-m", *QUICK, "norm=bn,gn,ln", "lr=0.1,1e30")
    assert answer.code == 0
    assert answer.out.startswith("6 runs: 2 complete, 4 to train")
    assert {run: epochs(run) for run in before} == before
    again = gnexp("train", "-m", *QUICK, "norm=bn,gn,ln", "lr=0.1,1e30")
    diverged = sum(seed["status"] == "diverged" for run in runs() for seed in seeds(run).values())
    assert diverged >= 1
    assert again.out.startswith(f"6 runs: {6 - diverged} complete, {diverged} diverged |")
    assert again.out.count("diverged: ") == diverged
    assert "the loss was not finite in epoch 1" in again.out
    assert again.code == 0


def test_force_trains_again_what_is_asked_for_and_ends_with_the_same_numbers(gnexp):
    assert gnexp("train", *QUICK, "seeds=2").code == 0
    before = epochs(runs()[0])
    answer = gnexp("train", *QUICK, "seeds=[1]", "force=true")
    assert answer.code == 0
    assert [line[:6] for line in answer.out.splitlines() if "epoch 2" in line] == ["seed 1"]
    after = epochs(runs()[0])
    # Seed 1 was the second of two in a step, and is now alone: its digits may differ.
    assert [row for row in after if row["seed"] == "0"] == [r for r in before if r["seed"] == "0"]
    assert len(after) == len(before)
    answer = gnexp("train", *QUICK, "seeds=2", "force=true")
    assert epochs(runs()[0]) == before
    stored = (runs()[0] / "config.yaml").read_text()
    assert "force" not in stored


def test_what_failed_is_listed_and_tried_again_only_when_asked_to(gnexp, moody, no_report):
    words = ("train", "-m", *QUICK, moody, "lr=0.1,0.2")
    first = gnexp(*words)
    assert first.code == 1
    assert first.out.count("failed: Moody-") == 2
    Path("in a bad mood").unlink()
    again = gnexp(*words)
    assert again.code == 1
    assert again.out.startswith("2 runs: 2 failed |")
    assert "not in the mood" in again.out
    assert "tried again with retry=failed" in again.out
    retried = gnexp(*words, "retry=failed")
    assert retried.code == 0
    assert retried.out.startswith("2 runs: 2 to train |")
    assert "failed" not in retried.out
    assert not list(Path("results/main").glob("*/traceback*"))


def test_too_little_memory_is_listed_and_tried_again_only_when_asked_to(gnexp, monkeypatch):
    def greedy(*words):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.50 GiB. GPU 0 has")

    words = ("train", "-m", *QUICK, "norm=bn,gn")
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "train_epochs", greedy)
        answer = gnexp(*words)
    assert answer.code == 0
    assert answer.out.count("infeasible: ") == 2
    assert "1.5 GiB asked for (1,610,612,736 bytes)" in answer.out
    assert [seeds(run)["0"]["bytes_asked"] for run in runs()] == [3 * 2**29] * 2
    page = Path("results/main/report/index.html").read_text()
    assert "1.5 GiB asked for" in page
    again = gnexp(*words)
    assert again.out.startswith("2 runs: 2 infeasible |")
    retry_statuses = gnexp(*words, "retry=[infeasible,failed]")
    assert retry_statuses.out.startswith("2 runs: 2 to train |")
    assert "infeasible" not in retry_statuses.out
    assert {seed["status"] for run in runs() for seed in seeds(run).values()} == {"complete"}


def test_a_folder_of_another_config_is_never_trained_into(gnexp):
    assert gnexp("train", *QUICK).code == 0
    run = Run(runs()[0])
    run.write_result({**run.result(), "config": {**run.result()["config"], "weight_decay": 0.1}})
    answer = gnexp("train", *QUICK, "seeds=2")
    assert answer.code == 2
    assert "holds a run of another config" in answer.err


def test_a_report_is_drawn_again_only_when_something_changed(gnexp, monkeypatch):
    words = ("train", "-m", *QUICK, "norm=bn,gn")
    assert gnexp(*words).code == 0
    drawn, draw = [], study_report.write_figures

    def counted(*arguments):
        made = draw(*arguments)
        drawn.extend(made[0])
        return made

    monkeypatch.setattr(study_report, "write_figures", counted)
    figure = Path("results/main/report/accuracy_vs_batch.png")
    before = figure.read_bytes()
    assert gnexp(*words).code == 0
    assert gnexp("report").code == 0
    assert drawn == []
    figure.write_bytes(before[:500])
    assert gnexp("report").code == 0
    assert "accuracy_vs_batch" in drawn
    assert figure.read_bytes() == before
    drawn.clear()
    assert gnexp(*words, "seeds=2").code == 0
    assert "accuracy_vs_batch" in drawn


class Stop(BaseException):
    """What no `except Exception` catches, as a kill would not."""


@pytest.mark.parametrize(
    ("norm", "instants"),
    # The second reads in training what earlier passes left; test_engine.py has every norm.
    [("bn", (2, 4)), ("online", (1,))],
)
def test_a_run_stopped_within_an_epoch_goes_on_from_there(gnexp, monkeypatch, norm, instants):
    words = [w for w in QUICK if not w.startswith(("data.train_limit", "batch"))]
    words += ["data.train_limit=640", "batch=32", f"norm={norm}", "seeds=2", "stack=2"]
    words += ["checkpoint_minutes=0"]
    assert gnexp("train", *words, "study=whole").code == 0
    (whole,) = runs("results/whole")
    for at in instants:
        stored, saved = trainer.save_states, []

        def stop(run, states, stored=stored, saved=saved, at=at):
            stored(run, states)
            saved.append(states[0].get("updates", 0))
            if len(saved) == at:
                raise Stop

        study = f"stopped{at}"
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "save_states", stop)
            with pytest.raises(Stop):
                gnexp("train", *words, f"study={study}")
        # 20 updates an epoch in blocks of 8; after the last the epoch's own checkpoint follows.
        assert saved == [8, 16, 0, 8][:at]
        assert gnexp("train", *words, f"study={study}").code == 0
        (stopped,) = runs(f"results/{study}")
        assert epochs(whole) == epochs(stopped)
        assert (whole / "logits.npz").stat().st_size == (stopped / "logits.npz").stat().st_size


def test_a_run_planned_but_not_begun_gets_the_company_it_was_planned_with(gnexp, monkeypatch):
    words = ("train", *QUICK, "seeds=4")
    assert gnexp(*words, "stack=2", "study=whole").code == 0

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "_execute", stop)
        assert gnexp(*words, "stack=2", "study=stopped").code == 130
    assert gnexp(*words, "study=stopped").code == 0  # all four would share a step
    (whole,), (stopped,) = runs("results/whole"), runs("results/stopped")
    assert epochs(whole) == epochs(stopped)
    assert {seed["stack"] for seed in seeds(stopped).values()} == {2}


def test_status_says_what_is_complete_running_interrupted_failed_and_missing(
    gnexp, moody, monkeypatch, no_report
):
    assert gnexp("train", *QUICK, moody).code == 1
    assert gnexp("train", *QUICK, "norm=gn", "seeds=3").code == 0

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.GroupTrainer, "_finish", stop)
        assert gnexp("train", *QUICK, "norm=ln", "seeds=2").code == 130
        patch.setattr(train, "_execute", stop)
        assert gnexp("train", "-m", *QUICK, "norm=gn,ln,in", "seeds=3").code == 130
    (ln,) = Path("results/main").glob("ln-*")
    with Run(ln).lock(1):
        answer = gnexp("status")
    lines = {line.split("-")[0]: line for line in answer.out.splitlines()}
    assert answer.code == 0
    assert "1 failed (seed 0: RuntimeError: not in the mood)" in lines["Moody"]
    assert lines["gn"].endswith("3 complete")
    assert f"1 running (process {os.getpid()} on " in lines["ln"]
    assert "1 interrupted (after epoch 2 of 2)" in lines["ln"]
    assert "1 missing" in lines["ln"]
    assert lines["in"].endswith("3 missing")
    total = "4 runs; seeds: 3 complete, 1 failed, 1 running, 1 interrupted, 4 missing"
    assert total in answer.out
    assert "left, with 1 at work" in answer.out
    assert "retry=failed" in answer.out
    assert "no process trains it" in gnexp("status").out


def test_the_time_left_is_that_of_the_remaining_epochs_shared_by_those_at_work(tmp_path):
    def run(name, batch, seeds, epochs, status="running"):
        stored = Run.create(tmp_path / "main" / name)
        config = {"norm": {"name": "gn"}, "batch": batch, "update_batch": batch}
        stored.write_config({**config, "epochs": 10, "seeds": seeds})
        row = {"examples_seen": 0, "lr": 0.1, "train_loss": 1.0, "train_acc": 0.5}
        row |= {"test_loss": 1.0, "test_acc": 0.5, "time_s": 30.0}
        for seed in seeds[:1]:
            for epoch in range(1, epochs + 1):
                row |= {"seed": seed, "epoch": epoch, "examples_seen": 640 * epoch}
                stored.add_rows("metrics.csv", [row])
            stored.set_status(seed, status)

    run("a", 2, [0], 4)
    study = load_study(tmp_path / "main")
    states = {record.name: outlook.seed_states(record) for record in study.runs}
    assert outlook.time_left_s(study, states) == pytest.approx(6 * 30)
    run("b", 2, [0, 1], 0, "failed")  # not begun: as dear as the other, twice ten epochs
    study = load_study(tmp_path / "main")
    states = {record.name: outlook.seed_states(record) for record in study.runs}
    assert outlook.time_left_s(study, states) == pytest.approx((6 + 10) * 30), "not what failed"
