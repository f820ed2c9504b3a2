"""What every run says of its last weights, and what `gnexp measure` adds without training again."""

import base64
import contextlib
import json
import shutil

import numpy as np
import pytest
import torch

from gnexp.analysis.cells import cells
from gnexp.cli import app
from gnexp.config.identity import restore
from gnexp.config.schema import DataConfig
from gnexp.data.device_images import DeviceDataset
from gnexp.runner import instruments, trainer
from gnexp.runner.build import data
from gnexp.runner.instruments import right_images
from gnexp.store.run import Run
from gnexp.store.study import load_study
from gnexp.training.evaluate import Scores

SMALL = ("model=resnet8", "model.width=8", "data.train_limit=120", "data.test_limit=60")
SMALL += ("epochs=1", "gradients=0", "batch=4", "lr=0.5")
OTHERS = ("population_augmented", "population", "batch", "example")
SHIFT = ("shift.corruptions=[fog,pure_contrast]", "shift.severities=[1,5]", "shift.images=20")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of one run under batch norm, of two seeds."""
    here = tmp_path_factory.mktemp("trained")
    with contextlib.chdir(here):
        assert app.main(["train", "norm=bn", "seeds=2", *SMALL, "device=cpu"]) == 0
    return here / "results"


@pytest.fixture
def run(trained, workdir) -> Run:
    """That run, copied to results/main."""
    shutil.copytree(trained, workdir / "results")
    return only_run(workdir)


def only_run(workdir) -> Run:
    (folder,) = [p.parent for p in (workdir / "results" / "main").glob("*/result.json")]
    return Run(folder)


def numbers(workdir, seed=0):
    return only_run(workdir).result()["seeds"][str(seed)]


def test_every_result_says_what_other_statistics_would_have_given(run, workdir):
    found = numbers(workdir)
    losses = [found[f"test_loss{end}"] for end in ("", *(f"_{name}" for name in OTHERS))]
    assert all(np.isfinite(losses))
    assert len(set(losses)) == 5  # five different evaluations
    assert all(0 <= found[f"test_acc_{name}"] <= 1 for name in OTHERS)
    assert 0 <= found["ece"] <= 1


def test_without_running_statistics_all_evaluations_are_one(gnexp, workdir):
    assert gnexp("train", "norm=gn", *SMALL).code == 0
    found = numbers(workdir)
    for name in OTHERS:
        assert found[f"test_acc_{name}"] == found["test_acc"]
        assert found[f"test_loss_{name}"] == pytest.approx(found["test_loss"], rel=1e-6)  # float32


def test_without_augmentation_both_kinds_of_population_statistics_agree(gnexp, workdir):
    assert gnexp("train", "norm=bn", "data.augment=none", *SMALL).code == 0
    found = numbers(workdir)
    assert found["test_loss_population_augmented"] == found["test_loss_population"]
    assert found["test_loss_population"] != found["test_loss"]


def test_every_result_says_which_test_images_are_right_and_the_accuracy_of_each_class(run, workdir):
    (cell,) = cells(load_study(run.folder.parent).runs)
    found = cell.correct
    assert set(found) == {0, 1}
    images = data.images_of(restore(run.result()["config"]).data)
    for seed, right in found.items():
        assert (right.dtype, right.shape) == (bool, (60,))
        assert right.mean() == numbers(workdir, seed)["test_acc"]
        rows = [row for row in run.rows("classes.csv") if row["seed"] == seed]
        assert len(rows) == 10
        for row in rows:
            its = right[images.y_test == images.classes.index(row["class"])]
            assert (its.mean(), len(its)) == (pytest.approx(row["accuracy"], abs=1e-12), row["n"])
    assert not np.array_equal(found[0], found[1])
    assert 0 < run.result()["classes"]["chance_gap"] <= 1
    run.add_result(1, {k: v for k, v in numbers(workdir, 1).items() if k != "correct"})
    (cell,) = cells(load_study(run.folder.parent).runs)
    assert set(cell.correct) == {0}, "a seed without a record of its images is left out"


def test_images_that_do_not_give_the_reported_accuracy_are_not_recorded():
    shapes = data.images_of(DataConfig(train_limit=20, test_limit=20))
    images = DeviceDataset(shapes)
    logits_NK = torch.nn.functional.one_hot(images.y_test, 10).float()
    logits_NK[:5] = logits_NK[:5].roll(1, dims=1)
    scores = Scores(0.75, 1.0, logits_NK)
    packed = base64.b64decode(right_images(scores, images, 0.75)["correct"])
    assert np.unpackbits(np.frombuffer(packed, np.uint8))[:20].tolist() == [0] * 5 + [1] * 15
    assert right_images(scores, images, 0.7) == {}


def test_what_a_result_lacks_is_measured_later_with_the_same_digits(gnexp, run):
    before = run.result()
    kept = {"test_acc", "test_loss", "status", "train_loss", "train_acc", "epochs", "examples_seen"}
    seeds = {s: {k: v for k, v in n.items() if k in kept} for s, n in before["seeds"].items()}
    run.write_result({k: v for k, v in before.items() if k != "classes"} | {"seeds": seeds})
    (run.folder / "classes.csv").unlink()
    checkpoint = (run.folder / "checkpoint.pt").read_bytes()
    answer = gnexp("measure", "what=[decomposition,classes]", "workers=1")
    assert answer.code == 0, answer.out
    after = run.result()
    assert after["classes"] == before["classes"]
    for seed, found in after["seeds"].items():
        for key in (f"test_{what}_{name}" for what in ("acc", "loss") for name in OTHERS):
            assert found[key] == before["seeds"][seed][key]
        assert found["ece"] == before["seeds"][seed]["ece"]
    assert (run.folder / "checkpoint.pt").read_bytes() == checkpoint


def test_corruptions_are_added_to_a_study_without_training_and_only_once(gnexp, run):
    metrics = (run.folder / "metrics.csv").read_bytes()
    answer = gnexp("measure", "what=[shift,batches]", *SHIFT, "workers=1")
    assert answer.code == 0, answer.out
    rows = run.rows("shift.csv")
    points = {("clean", 0), *((c, s) for c in ("fog", "pure_contrast") for s in (1, 5))}
    assert {(row["seed"], row["corruption"], row["severity"]) for row in rows} == {
        (seed, *point) for seed in (0, 1) for point in points
    }
    assert {row["n"] for row in rows} == {20}
    assert {row["seed"] for row in run.rows("batches.csv")} == {0, 1}
    assert (run.folder / "metrics.csv").read_bytes() == metrics
    again = gnexp("measure", "what=[shift,batches]", *SHIFT, "workers=1")
    assert again.code == 0
    assert ": measured" not in again.out
    assert run.rows("shift.csv") == rows


def test_corruptions_can_be_measured_at_the_end_of_training(gnexp, workdir):
    assert gnexp("train", "norm=gn", "measure=[shift]", *SHIFT, *SMALL).code == 0
    at_once = only_run(workdir).rows("shift.csv")
    assert len(at_once) == 5
    (only_run(workdir).folder / "shift.csv").unlink()
    assert gnexp("measure", "what=[shift]", *SHIFT, "workers=1").code == 0
    assert only_run(workdir).rows("shift.csv") == at_once


def test_a_run_without_a_checkpoint_is_named_and_the_others_are_measured(gnexp, run):
    # Asking for instruments does not change the name of a run.
    words = ("norm=bn", "seeds=2", "measure=[shift]", *SHIFT, *SMALL)
    assert "1 epoch" not in gnexp("train", *words).out
    assert gnexp("train", "norm=ln", *SMALL).code == 0
    (other,) = run.folder.parent.glob("ln-*")
    (run.folder / "checkpoint.pt").unlink()
    answer = gnexp("measure", "what=[shift]", *SHIFT, "workers=1")
    assert answer.code == 1
    gone = f"failed: {run.name}: there is no checkpoint of seed 0, so its weights are gone"
    assert gone in answer.out
    assert len(Run(other).rows("shift.csv")) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["shift.corruptions=[foggy]"], "foggy is unknown; did you mean fog?"),
        (
            ["shift.corruptions=fog"],
            "shift.corruptions=fog must be a list of names, each",
        ),
        (["shift.severities=[0]"], "shift.severities=[0] must be a list of whole numbers from 1"),
        (["shift.images=0"], "shift.images=0 must be a whole number of at least 1"),
        (["shift.root=nowhere"], "nowhere"),
    ],
)
def test_bad_keys_of_a_shift_get_one_sentence_before_anything_is_done(words, sentence, gnexp):
    for typed in (("train", "norm=gn", "measure=[shift]", *SMALL), ("measure", "what=[shift]")):
        answer = gnexp(*typed, *words)
        assert answer.code == 2
        assert sentence in answer.err
        assert len(answer.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "measure=[shifts]"], "measure=['shifts'] must be a list of shift, batches"),
        (["measure", "what=[]"], "what=[] measures nothing: name instruments, such as what=[shift"),
        (
            ["measure", "what=[cost]", "cost.model=[a]"],
            "cost.model=[a] must be one word, not a list",
        ),
        (["measure", "what=[shifts]"], "what=shifts is unknown; did you mean shift? Valid: grad"),
    ],
)
def test_an_unknown_instrument_is_named_with_the_nearest(words, sentence, gnexp):
    answer = gnexp(*words)
    assert answer.code == 2
    assert sentence in answer.err


def test_numbers_of_a_diverged_seed_are_left_out(gnexp, workdir):
    words = [word for word in SMALL if not word.startswith("lr")]
    assert gnexp("train", "norm=none", "lr=1e30", *words).code == 0
    found = numbers(workdir)
    assert found["status"] == "diverged"
    assert "test_acc_population" not in found
    assert "correct" not in found
    assert only_run(workdir).rows("classes.csv") == []
    assert json.loads((only_run(workdir).folder / "result.json").read_text())


def test_a_test_set_of_one_class_gives_a_result_and_says_that_it_has_no_chance_gap(gnexp, workdir):
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 3
    one_class = {"x_test": x[:20], "y_test": np.ones(20, dtype=int)}
    np.savez("one.npz", x_train=x[20:], y_train=y[20:], **one_class)
    small = [word for word in SMALL if not word.startswith("data.")]
    answer = gnexp("train", "data=npz", "data.root=one.npz", "norm=bn", *small)
    assert answer.code == 0, answer.out + answer.err
    assert "no chance gap: 1 class has test images" in answer.out + answer.err
    run, found = only_run(workdir), numbers(workdir)
    assert found["status"] == "complete"
    assert 0 <= found["test_acc"] <= 1
    assert run.result()["classes"] == {
        "note": "no chance gap: 1 class has test images; a gap needs at least 2"
    }
    assert [row["n"] for row in run.rows("classes.csv")] == [0, 20, 0]


def broken(*arguments, **named):
    raise RuntimeError("the instrument is broken\nat its second line")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("other_scores", "decomposition"),
        ("measure_batches", "batches"),
    ],
)
def test_an_instrument_that_fails_at_the_end_costs_its_own_numbers_alone_and_is_measured_later(
    gnexp, workdir, monkeypatch, name, what
):
    words = ("norm=gn", "measure=[shift,batches]", *SHIFT, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(instruments, name, broken)
        answer = gnexp("train", *words)
    assert answer.code == 0, answer.out + answer.err
    assert f"{what} could not be measured: RuntimeError: the instrument is broken" in (
        answer.out + answer.err
    )
    run, found = only_run(workdir), numbers(workdir)
    assert found["unmeasured"] == {what: "RuntimeError: the instrument is broken"}
    assert 0 <= found["test_acc"] <= 1
    assert (found["test_acc_population"] is None) == (what == "decomposition")
    for table in ("classes", "shift", "batches"):
        assert bool(run.rows(f"{table}.csv")) == (table != what)
    keys = SHIFT[2:] if what == "batches" else ()
    again = gnexp("measure", f"what=[{what}]", *keys, "workers=1")
    assert again.code == 0, again.out + again.err
    assert "unmeasured" not in numbers(workdir)
    assert numbers(workdir)["test_acc_population"] == found["test_acc"]
    assert all(run.rows(f"{table}.csv") for table in ("classes", "shift", "batches"))


def test_gradients_that_fail_at_the_end_cost_no_result_even_when_a_kill_follows(
    gnexp, workdir, monkeypatch
):
    real = trainer.own_gradients

    def at_the_start(config, model, images, seed, epoch):
        return real(config, model, images, seed, epoch) if epoch < config.epochs else broken()

    words = ("norm=gn", "gradients=4", *(word for word in SMALL if word != "gradients=0"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "own_gradients", at_the_start)
        with monkeypatch.context() as killed:

            def kill(*arguments):
                raise KeyboardInterrupt

            killed.setattr(trainer.GroupTrainer, "_finish", kill)
            assert gnexp("train", *words).code == 130
        answer = gnexp("train", *words)
    assert answer.code == 0, answer.out + answer.err
    assert numbers(workdir)["unmeasured"] == {"gradients": "RuntimeError: the instrument is broken"}
    assert {row["epoch"] for row in only_run(workdir).rows("gradients.csv")} == {0}
