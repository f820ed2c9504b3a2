"""Corrupt files are named, set aside and made good: nothing whole is lost, nothing is doubled."""

import csv
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gnexp.runner.checkpoint import load_states
from gnexp.runner.trainer import GroupTrainer
from gnexp.store.run import Run

WORDS = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
WORDS += ("epochs=2", "batch=10", "gradients=4", "norm=bn", "workers=1")
TWO = (*WORDS, "seeds=2")

# What a crash, a bad disk or an editor may leave of a file.
DAMAGE = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "other bytes": lambda data: b"\x00{" + data[: len(data) // 2],
    "zeros at the end": lambda data: data[:-60] + bytes(60),
    "one bit": lambda data: data[: len(data) // 2 - 7] + b"\xc3" + data[len(data) // 2 - 6 :],
}
FILES = ("config.yaml", "plan.json", "provenance.json", "status.json", "result.json")
FILES += ("metrics.csv", "gradients.csv", "logits.npz", "checkpoint.pt", "digests.json")


def only_run(study="results/main"):
    (folder,) = (p for p in Path(study).iterdir() if (p / "status.json").exists())
    return folder


def without_times(path, columns=("time_s",)):
    with open(path) as file:
        return [{k: v for k, v in row.items() if k not in columns} for row in csv.DictReader(file)]


def numbers(folder):
    """Everything that training gave, but for times."""
    result = json.loads((folder / "result.json").read_text())["seeds"]
    results = {s: {k: v for k, v in n.items() if k != "train_time_s"} for s, n in result.items()}
    with np.load(folder / "logits.npz", allow_pickle=False) as arrays:
        logits = {key: arrays[key].tobytes() for key in arrays.files}
    weights = {
        seed: {key: tensor.numpy().tobytes() for key, tensor in state["model"].items()}
        for seed, state in load_states(Run(folder)).items()
    }
    gradients = (folder / "gradients.csv").read_bytes()
    return without_times(folder / "metrics.csv"), gradients, results, logits, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Studies of a run of two seeds: complete, with one of them stopped, and with a second run."""
    from gnexp.cli import app

    here, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(here)
    finish = GroupTrainer._finish

    def stop(self, place, replica, last):
        if replica.seed == 1:
            raise KeyboardInterrupt
        finish(self, place, replica, last)

    try:
        assert app.main(["train", *TWO, "device=cpu", "out=whole"]) == 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GroupTrainer, "_finish", stop)
            assert app.main(["train", *TWO, "device=cpu", "out=stopped"]) == 130
        for rate in ("lr=0.1", "lr=0.2"):
            assert app.main(["train", *TWO, rate, "device=cpu", "out=two"]) == 0
    finally:
        os.chdir(before)
    return here


@pytest.fixture
def whole(trained, workdir):
    """A copy of the complete study as results/main, and its numbers."""
    shutil.copytree(trained / "whole", workdir / "results")
    return numbers(only_run())


@pytest.fixture
def two_runs(trained, workdir):
    """A copy of a study of two complete runs as results/main."""
    shutil.copytree(trained / "two", workdir / "results")


@pytest.fixture
def stopped(trained, workdir):
    """A copy of the unfinished study as results/main, and the numbers of the complete one."""
    shutil.copytree(trained / "stopped", workdir / "results")
    return numbers(only_run(trained / "whole/main"))


def corrupt_files(name, kind):
    path = only_run() / name
    path.write_bytes(DAMAGE[kind](path.read_bytes()))


CASES = [(name, "one bit") for name in FILES if name not in ("plan.json", "result.json")]
CASES += [
    ("plan.json", "cut"),
    ("result.json", "other bytes"),
    ("checkpoint.pt", "zeros at the end"),
]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_damaged_file_of_an_unfinished_run_changes_none_of_its_numbers(
    name, kind, gnexp, stopped
):
    data = (only_run() / name).read_bytes()
    corrupt_files(name, kind)
    answer = gnexp("train", *TWO)
    assert answer.code == 0, answer
    assert "Traceback" not in answer.out + answer.err
    found = numbers(only_run())
    if name == "checkpoint.pt":  # the weights of the seed that was complete are lost with it
        assert found[:4] == stopped[:4]
        assert found[4] == {1: stopped[4][1]}
    else:
        assert found == stopped
    kept = [path.name for path in only_run().glob(f"{name}.corrupt")]
    assert kept == [f"{name}.corrupt"], answer.out
    assert f"{name} was changed since it was written" in answer.out
    assert (only_run() / kept[0]).read_bytes() == DAMAGE[kind](data)


@pytest.mark.parametrize(
    ("name", "kind"), [("status.json", "cut"), ("result.json", "empty"), ("gradients.csv", "cut")]
)
def test_a_damaged_file_of_a_finished_run_is_made_good_by_the_same_command(
    name, kind, gnexp, whole
):
    corrupt_files(name, kind)
    answer = gnexp("train", *TWO)
    assert answer.code == 0, answer
    assert f"corrupt: {only_run() / name}" in answer.out
    assert numbers(only_run()) == whole
    assert "seed 0, epoch 1" not in answer.out, "nothing was trained again"


def test_deleted_files_of_a_finished_run_come_back_from_its_checkpoint(gnexp, whole):
    for name in ("metrics.csv", "result.json"):
        folder = only_run()
        (folder / name).unlink()
        assert gnexp("train", *TWO).code == 0
        assert numbers(only_run()) == whole


def test_lost_logits_of_finished_seeds_are_computed_again(gnexp, whole):
    corrupt_files("logits.npz", "cut")
    answer = gnexp("train", *WORDS, "seeds=3")
    assert answer.code == 0
    assert "logits.npz was changed since it was written" in answer.out
    with np.load(only_run() / "logits.npz") as arrays:
        assert {k: arrays[k].tobytes() for k in ("seed_0", "seed_1")} == whole[3]


def test_without_a_checkpoint_results_stay_and_what_is_gone_is_named(gnexp, whole):
    (only_run() / "checkpoint.pt").unlink()
    path = only_run() / "metrics.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "0,2,12x", *lines[3:]]) + "\n")
    answer = gnexp("train", *TWO)
    assert answer.code == 0
    assert f"{path} was changed since it was written: kept as metrics.csv.corrupt" in answer.out
    assert "seed 0 lacks 2 epochs" in answer.out
    assert json.loads((only_run() / "result.json").read_text())["seeds"].keys() == {"0", "1"}


def test_of_a_table_without_a_digest_the_lines_that_can_be_read_are_kept(gnexp, whole):
    for name in ("checkpoint.pt", "digests.json"):
        (only_run() / name).unlink()
    path = only_run() / "metrics.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], "0,2,12x", *lines[3:]]) + "\n")
    answer = gnexp("train", *TWO)
    assert answer.code == 0
    assert f"{path} is corrupt (line 3:" in answer.out
    assert "seed 0 lacks 1 epochs" in answer.out
    assert len(without_times(path)) == 3


@pytest.mark.parametrize(
    ("command", "name"),
    [("report", "metrics.csv"), ("status", "status.json"), ("measure", "result.json")],
)
def test_reading_a_study_goes_on_without_what_is_damaged_and_names_it(
    command, name, gnexp, two_runs, monkeypatch
):
    if command == "measure":  # tests of `report` draw figures of the same files
        monkeypatch.setattr("gnexp.cli.commands.measure.make_report", lambda *args: "")
    victim = next(p for p in Path("results/main").iterdir() if (p / name).exists())
    data = (victim / name).read_bytes()
    (victim / name).write_bytes(data[: len(data) // 2])
    words = ("gradients=8", "gradients_at=[1]", "workers=1") if command == "measure" else ()
    answer = gnexp(command, *words)
    assert answer.code == 0, answer
    assert f"corrupt: {victim / name} was changed since it was written" in answer.out
    assert "Traceback" not in answer.out + answer.err
    if command != "measure":
        assert (victim / name).read_bytes() == data[: len(data) // 2], "readers change nothing"


def test_a_study_in_which_nothing_can_be_read_is_refused_with_the_reason(gnexp, whole):
    for name in ("result.json", "config.yaml"):
        corrupt_files(name, "other bytes")
    answer = gnexp("report")
    assert answer.code == 2
    assert "result.json was changed since it was written" in answer.err
    assert gnexp("train", *TWO).code == 0
    assert numbers(only_run()) == whole
