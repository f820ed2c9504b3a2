"""Fair learning rates: chosen on images held out of the training set, judged on the test set."""

import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gnexp.analysis.lr_search import good_region
from gnexp.analysis.study_analysis import study_analysis
from gnexp.analysis.tables.build import tuning_tables
from gnexp.config.schema import DataConfig, ModelConfig, TrainConfig, TuningConfig
from gnexp.data.sources import hold_out, load_images
from gnexp.runner import lr_search
from gnexp.runner.build import data
from gnexp.store.lr_choices import best_rate, chosen_rate, recorded_choices
from gnexp.store.study import load_study
from gnexp.training.loop import TrainSettings

QUICK = ("model=resnet8", "model.width=8", "data.train_limit=100", "data.test_limit=40")
QUICK += ("epochs=1", "gradients=0", "workers=1")
TUNED = (
    *QUICK,
    "norm=gn",
    "groups=4",
    "batch=10",
    "lr=tuned",
    "tuning.extend=0",
    "seeds=2",
    "report.format=[png]",
)


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


REPORT = Path("results/main/report")


def results(study="results/main"):
    """Return the folders of a study's runs with what result.json holds."""
    files = sorted(Path(study).glob("*/result.json"))
    return [(path.parent, json.loads(path.read_text())) for path in files]


def runs(trial: bool):
    """Return sorted (rate, seeds) of the trials, or of the runs that are judged."""
    return sorted(
        (result["config"]["lr"], [int(seed) for seed in result["seeds"]])
        for _, result in results()
        if (result["config"]["data"]["validation"] is not None) == trial
    )


def accuracies():
    """Return {rate: last validation accuracies} of the trials, read with nothing of gnexp."""
    found: dict[float, list[float]] = {}
    for folder, result in results():
        if result["config"]["data"]["validation"] is not None:
            last = {row["seed"]: float(row["test_acc"]) for row in table(folder / "metrics.csv")}
            found[result["config"]["lr"]] = list(last.values())
    return found


def test_images_held_out_are_of_the_training_set_balanced_and_no_longer_trained_on():
    images = load_images("shapes10", train_limit=200, test_limit=50)
    part = hold_out(images, 0.2)
    whole = {image.tobytes() for image in images.x_train}
    kept, out = ({image.tobytes() for image in x} for x in (part.x_train, part.x_test))
    assert (len(kept), len(out)) == (160, 40)
    assert kept | out == whole
    assert not kept & out
    assert np.bincount(part.y_test).tolist() == [4] * 10
    labels = {image.tobytes(): y for image, y in zip(images.x_train, images.y_train)}
    assert [labels[image.tobytes()] for image in part.x_test] == part.y_test.tolist()
    assert (hold_out(images, 40).x_test == part.x_test).all()


def test_a_rare_class_keeps_images_on_both_sides_of_the_split():
    images = load_images("shapes10", train_limit=1000, test_limit=50)
    some = np.concatenate(
        [np.flatnonzero(images.y_train == c)[:n] for c, n in enumerate((90, 60, 2, 9))]
    )
    rare = dataclasses.replace(
        images, x_train=images.x_train[some], y_train=images.y_train[some], classes=("a",) * 4
    )
    part = hold_out(rare, 0.1)
    assert np.bincount(part.y_test).tolist() == [8, 6, 1, 1]
    assert np.bincount(part.y_train).tolist() == [82, 54, 1, 8]
    alone = dataclasses.replace(rare, x_train=rare.x_train[:151], y_train=rare.y_train[:151])
    with pytest.raises(ValueError, match="class 2 has one image, and each side needs one"):
        hold_out(alone, 0.1)


def test_a_trial_gives_the_same_numbers_whatever_the_test_images_are(gnexp, workdir):
    draw = np.random.default_rng(0)
    x, y = draw.integers(0, 256, (60, 16, 16, 3), np.uint8), np.arange(60) % 3
    for name in ("a", "b"):
        test = draw.integers(0, 256, (30, 16, 16, 3), np.uint8), draw.permutation(30) % 3
        np.savez(f"{name}.npz", x_train=x, y_train=y, x_test=test[0], y_test=test[1])
        words = ("data=npz", f"data.root={name}.npz", "data.validation=0.2", f"study={name}")
        assert gnexp("train", *QUICK[:2], *QUICK[4:], *words, "batch=6").code == 0
    rows = [
        [{k: v for k, v in row.items() if k != "time_s"} for row in table(path)]
        for name in ("a", "b")
        for path in Path(f"results/{name}").glob("*/metrics.csv")
    ]
    assert len(rows) == 2
    assert rows[0] == rows[1]


def test_every_rate_is_tried_and_the_best_is_trained_on_the_whole_set_with_other_seeds(gnexp):
    answer = gnexp("train", *TUNED, "tuning.lr=[0.05,0.4]", "tuning.untuned=0.2")
    assert answer.code == 0
    assert runs(trial=True) == [(0.05, [1000, 1001]), (0.4, [1000, 1001])]
    scores = accuracies()
    chosen = max(sorted(scores), key=lambda lr: np.mean(scores[lr]))
    assert runs(trial=False) == sorted([(0.2, [0, 1]), (chosen, [0, 1])])
    assert f"lr={chosen:g} of 2 rates, at the edge" in answer.out
    assert "| shapes10: 90 training and 10 validation images" in answer.out
    again = gnexp("train", *TUNED, "tuning.lr=[0.05,0.4]", "tuning.untuned=0.2")
    assert ": 4 complete |" in again.out
    assert "to train" not in again.out
    one = ("shift.corruptions=[contrast]", "shift.severities=[1]")
    answer = gnexp("measure", "what=[shift]", *one, "workers=1")
    assert answer.code == 0
    assert "measuring shift: 1 run\n" in answer.out, "trials and other rates are left out"
    (measured,) = Path("results/main").glob("gn-*/shift.csv")
    config = json.loads((measured.parent / "result.json").read_text())["config"]
    assert (config["lr"], config["data"]["validation"]) == (chosen, None)


def test_the_report_shows_the_chosen_rate_as_the_norms_accuracy_and_the_trials_apart(gnexp):
    grid = [word for word in TUNED if word not in ("norm=gn", "groups=4")]
    words = ("norm=bn,gn", "tuning.lr=[0.05,0.4]", "tuning.untuned=0.2")
    assert gnexp("train", "-m", *grid, *words).code == 0
    accuracy, choices = table(REPORT / "accuracy.csv"), table(REPORT / "chosen_rates.csv")
    assert [row["norm"] for row in accuracy] == [row["norm"] for row in choices] == ["bn", "gn"]
    assert "lr" not in accuracy[0]  # a rate of its own is what every cell was given
    assert all(row["n"] == "2" for row in accuracy)
    for choice in choices:
        means = {
            result["config"]["lr"]: np.mean([n["test_acc"] for n in result["seeds"].values()])
            for folder, result in results()
            if result["config"]["data"]["validation"] is None
            and folder.name.startswith(f"{choice['norm']}-")
        }
        gap = means[float(choice["lr"])] - means[0.2]
        assert float(choice["gap"]) == pytest.approx(gap, abs=1e-12)
    tuning_rows = table(REPORT / "tuning.csv")
    assert len(tuning_rows) == 4
    assert sum(row["chosen"] == "true" for row in tuning_rows) == 2


def test_results_at_other_rates_stay_in_the_report_until_the_chosen_rate_has_one(gnexp):
    words = [word for word in TUNED if not word.startswith(("lr=", "tuning.", "seeds=", "report."))]
    assert gnexp("train", *words, "lr=0.2", "seeds=2").code == 0
    for rate in ("0.05", "0.4"):  # what an optimizing sweeper leaves, or a call that was stopped
        assert gnexp("train", *words, f"lr={rate}", "data.validation=0.2", "seeds=[7,8]").code == 0
    answer = gnexp("report")
    assert "GN(4)" in answer.out
    assert "no seed is finished" not in answer.out
    (row,) = table(REPORT / "accuracy.csv")
    assert row["n"] == "2"


def test_two_ways_of_tuning_in_one_study_never_share_their_trials(gnexp):
    for part in ("0.1", "0.3"):
        words = ("tuning.lr=[0.05,0.4]", "tuning.untuned=null", f"tuning.validation={part}")
        assert gnexp("train", *TUNED, *words).code == 0
    (row,) = table(REPORT / "chosen_rates.csv")
    means = [
        np.mean([numbers["test_acc"] for numbers in result["seeds"].values()])
        for _, result in results()
        if result["config"]["data"]["validation"] == 0.3
    ]
    assert float(row["validation"]) == pytest.approx(max(means), abs=1e-12)


BUDGET = ("epochs=3", "tuning.epochs=2", "tuning.train_limit=60", "tuning.validation=20")


def test_trials_have_their_part_of_the_budget_and_the_chosen_rate_is_trained_at_the_whole(gnexp):
    words = [word for word in TUNED if word != "epochs=1"]
    typed = (*words, *BUDGET, "tuning.lr=[0.05,0.4]", "tuning.untuned=0.2")
    answer = gnexp("train", *typed)
    assert answer.code == 0
    assert "2 seeds of 2 epochs and 60 training images on 20 images held out" in answer.out
    for folder, result in results():
        trial = result["config"]["data"]["validation"] is not None
        rows = [row for row in table(folder / "metrics.csv") if row["seed"] in ("0", "1000")]
        seen = [int(row["examples_seen"]) for row in rows]
        assert seen == ([40, 80] if trial else [100, 200, 300])
        sizes = result["data"]["train"], result["data"]["test"]
        assert sizes == ((40, 20) if trial else (100, 40))
        # The schedule is that of the trial: the last update's rate is near 0 at its own end.
        assert float(rows[-1]["lr"]) < 0.35 * max(float(row["lr"]) for row in rows)
    (row,) = table(REPORT / "chosen_rates.csv")
    columns = ("trial_epochs", "trial_images", "run_epochs", "run_images", "n_test", "n_untuned")
    assert [row[column] for column in columns] == ["2", "40", "3", "100", "2", "2"]
    assert {row["trial_images"] for row in table(REPORT / "tuning.csv")} == {"40"}
    page = (REPORT / "index.html").read_text()
    assert "with a part of the budget (2 epochs of 40 images)" in page
    (accuracy,) = table(REPORT / "accuracy.csv")
    assert not {"epochs", "data.train_limit", "data.checksum"} & {*accuracy}
    assert "to train" not in gnexp("train", *typed).out


def test_trials_at_a_part_of_the_budget_serve_runs_of_every_budget(gnexp):
    common = [word for word in TUNED if word != "epochs=1"]
    common += ["tuning.lr=[0.05,0.4]", "tuning.untuned=null"]
    assert gnexp("train", "-m", *common, "epochs=2,3", "tuning.epochs=1").code == 0
    assert runs(trial=True) == [(0.05, [1000, 1001]), (0.4, [1000, 1001])]
    assert sorted(row["epochs"] for row in table(REPORT / "accuracy.csv")) == ["2", "3"]
    chosen = table(REPORT / "chosen_rates.csv")
    assert sorted(row["run_epochs"] for row in chosen) == ["2", "3"]
    assert [row["n_test"] for row in chosen] == ["2", "2"]


def test_one_se_is_written_down_with_the_choice_and_told_in_the_report(gnexp):
    """Of rates at which next to nothing is learned the best is hardly better than the smallest."""
    words = ("tuning.rule=one_se", "tuning.lr=[1e-9,2e-9]", "tuning.untuned=null")
    answer = gnexp("train", *TUNED, *words)
    assert answer.code == 0
    assert "then the smallest rate within one standard error of the best on the whole" in answer.out
    (choice,) = recorded_choices(Path("results/main"))
    scores = accuracies()
    assert (choice.rule, choice.rate) == ("one_se", chosen_rate("one_se", scores))
    (row,) = table(REPORT / "chosen_rates.csv")
    assert (row["rule"], float(row["lr"])) == ("one_se", choice.rate)
    page = (REPORT / "index.html").read_text()
    assert "as the smallest within one standard error of the best" in page


def test_a_best_rate_at_the_edge_adds_rates_beyond_it_until_it_is_none_or_no_more_may_be(gnexp):
    """At such small rates nothing is learned, so that the largest or smallest is always ahead."""
    words = [w for w in TUNED if not w.startswith("tuning.extend")]
    answer = gnexp("train", *words, "tuning.extend=2", "tuning.lr=[1e-9,1e-8]")
    assert answer.code == 0
    rates = sorted(accuracies())
    scores = accuracies()
    assert 2 < len(rates) <= 4
    assert np.allclose(np.diff(np.log10(rates)), 1)
    best = max(rates, key=lambda lr: (np.mean(scores[lr]), -lr))
    assert ("at the edge" in answer.out) == (best in (rates[0], rates[-1]))
    assert len(rates) == 4 or best not in (rates[0], rates[-1])


@pytest.mark.parametrize(
    ("rates", "edge", "more"),
    [([0.1, 0.2, 0.4], 0.4, 0.8), ([0.4, 0.1, 0.2], 0.1, 0.05), ([0.1, 1.0], 0.1, 0.01)],
)
def test_a_rate_beyond_the_edge_keeps_the_spacing_of_the_last_two(rates, edge, more):
    assert lr_search.extended(rates, edge) == [*rates, more]


def test_a_rate_at_which_a_trial_diverged_is_scored_at_chance_and_not_chosen(gnexp):
    words = [w for w in TUNED if w != "epochs=1"]
    answer = gnexp("train", *words, "tuning.lr=[0.2,1e30]", "tuning.untuned=null", "epochs=4")
    assert answer.code == 0
    study = load_study("results/main")
    (cell,) = study_analysis(study).tuned
    assert cell.trials[1e30].scored == [0.1, 0.1]
    assert cell.rate == 0.2
    assert runs(trial=False) == [(0.2, [0, 1])]


def test_an_interrupted_choice_goes_on_and_ends_with_the_numbers_it_would_have_had(
    gnexp, monkeypatch
):
    words = (*TUNED, "tuning.lr=[0.05,0.2]", "tuning.train_limit=60", "tuning.validation=20")
    words += ("stack=1",)
    assert gnexp("train", *words, "study=whole").code == 0
    from gnexp.runner import trainer

    real, left = trainer.GroupTrainer._finish, [2]

    def dying(self, *args):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(trainer.GroupTrainer, "_finish", dying)
        assert gnexp("train", *words, "study=cut").code == 130
    assert gnexp("train", *words, "study=cut").code == 0

    def numbers(study):
        return {
            (folder.name, seed): n["test_acc"]
            for folder, result in results(f"results/{study}")
            for seed, n in result["seeds"].items()
        }

    assert numbers("cut") == numbers("whole")


def test_a_failed_trial_leaves_the_rate_unchosen_and_is_listed(gnexp, monkeypatch):
    from gnexp.runner import trainer

    def broken(self):
        raise RuntimeError("no luck")

    monkeypatch.setattr(trainer.GroupTrainer, "run", broken)
    answer = gnexp("train", *TUNED)
    assert answer.code == 1
    assert "no rate chosen" in answer.out
    assert "no luck" in answer.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["lr=fair"], "lr=fair must be a positive number, such as lr=0.1, or lr=tuned"),
        (["tuning.lr=[0.1]"], "tuning.lr=[0.1] must be a list of two or more rates"),
        (["tuning.seeds=1"], "tuning.seeds=1 must be at least 2 seeds"),
        (["seeds=[3,1001]"], "tuning.seeds and seeds= share a seed"),
        (["tuning.validation=null"], "tuning.validation=null must be a fraction below 1"),
        (["tuning.validation=3"], "tuning.validation=3 holds out 3 of 100 training images"),
        (["tuning.epochs=2"], "tuning.epochs=2 must be at most epochs=1: a trial has the run's"),
        (["tuning.train_limit=101"], "tuning.train_limit=101 must be at most data.train_limit=100"),
        (["tuning.train_limit=4"], "tuning.train_limit=4 must be 10 to 50000 for shapes10"),
        (["tuning.epochs=1", "updates=3"], "tuning.epochs=1 excludes updates=3"),
        (
            ["data.train_limit=null", "tuning.train_limit=6000"],
            "tuning.train_limit=6000 must be at most 5120, the training images of the run",
        ),
        (["tuning.rule=first"], "tuning.rule=first is not one of best, one_se"),
        (["data.validation=0.1"], "leave data.validation= out"),
        (["privacy=dpsgd"], "lr=tuned excludes privacy=dpsgd"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_a_sentence(gnexp, words, sentence):
    keys = {word.partition("=")[0] for word in words}
    answer = gnexp("train", *[w for w in TUNED if w.partition("=")[0] not in keys], *words)
    assert answer.code == 2
    assert sentence in answer.err
    assert not Path("results").exists()


def test_the_smallest_of_equally_good_rates_is_chosen():
    assert best_rate({0.2: [0.5], 0.1: [0.4, 0.6], 0.4: [0.3]}) == 0.1


def test_one_se_chooses_the_smallest_rate_within_one_standard_error_of_the_best_mean():
    """Deviations of .01 * sqrt(2) at every rate: the error of a mean of two is .01 by hand."""
    means = {0.05: 0.77, 0.1: 0.7902, 0.2: 0.795, 0.4: 0.8, 0.8: 0.79}
    scores = {rate: [mean - 0.01, mean + 0.01] for rate, mean in means.items()}
    assert chosen_rate("best", scores) == 0.4
    assert chosen_rate("one_se", scores) == 0.1
    nearer = {**scores, 0.1: [0.7798 - 0.01, 0.7798 + 0.01]}
    assert chosen_rate("one_se", nearer) == 0.2


def test_the_standard_error_is_pooled_over_the_rates_and_knows_nothing_of_those_that_diverged():
    """The best rate's own seeds agree to the digit; those of the others do not."""
    scores = {0.1: [0.76, 0.80], 0.2: [0.80, 0.80], 0.4: [0.1, 0.9]}
    # sd = sqrt((0.04^2 / 2 + 0) / 2) = 0.02, over sqrt(2): 0.0141, less than the 0.02 between them
    assert chosen_rate("one_se", scores, {0.4}) == 0.2
    assert chosen_rate("one_se", scores) == 0.1
    wider = {**scores, 0.1: [0.75, 0.81]}  # 0.0212
    assert chosen_rate("one_se", wider, {0.4}) == 0.1
    assert chosen_rate("one_se", {0.1: [0.1, 0.1], 0.2: [0.1, 0.1]}, {0.1, 0.2}) == 0.1


def test_a_rate_that_diverged_is_chosen_only_where_every_rate_did():
    scores = {0.1: [0.08, 0.09], 0.2: [0.1, 0.9], 0.4: [0.1, 0.1]}
    assert best_rate(scores, {0.2, 0.4}) == 0.1
    assert best_rate(scores, {0.1, 0.2, 0.4}) == 0.2


def test_the_good_region_ends_where_accuracy_has_fallen_by_two_points():
    """A tent in log2(rate), 1 point per octave, from its top at 0.1: two octaves on each side."""
    tent = {0.1 * 2.0**k: 0.5 - 0.01 * abs(k) for k in (-3, -1, 0, 4)}
    region = good_region(tent, 0.1)
    assert region["good_lo"] == pytest.approx(0.1 / 4, rel=1e-9)
    assert region["good_hi"] == pytest.approx(0.1 * 4, rel=1e-9)
    assert region["good_octaves"] == pytest.approx(4, rel=1e-9)
    assert region["good_open"] == ""
    flat = good_region({0.1: 0.5, 0.2: 0.5, 0.8: 0.1}, 0.1)
    assert (flat["good_lo"], flat["good_open"]) == (0.1, "lo")


@pytest.mark.parametrize(
    ("means", "rates", "octaves"),
    [
        ({0.1: 0.5, 0.2: 0.5, 0.8: 0.1}, "<= 0.1 to 0.21", ">= 1.1"),
        ({0.1: 0.5, 0.4: 0.5}, "<= 0.1 to >= 0.4", ">= 2.0"),
        ({0.05: 0.4, 0.1: 0.5, 0.2: 0.4}, "0.087 to 0.11", "0.4"),
    ],
)
def test_a_good_region_that_ends_where_the_grid_does_is_shown_as_a_lower_bound(
    means, rates, octaves
):
    row = good_region(means, 0.1)
    shown = {column.header: column.text for column in tuning_tables([], [])[0].shown}
    assert (shown["Good rates"](row), shown["Octaves"](row)) == (rates, octaves)


def test_a_fixed_number_of_updates_gives_every_batch_size_as_many(gnexp):
    words = (word for word in QUICK if not word.startswith("epochs="))
    assert gnexp("train", "-m", *words, "updates=7", "batch=5,10,40", "norm=gn").code == 0
    for folder, result in results():
        rows = table(folder / "metrics.csv")
        assert int(rows[-1]["examples_seen"]) == 7 * result["config"]["batch"]
        assert result["config"]["updates"] == 7
    cells = table(REPORT / "accuracy.csv")
    assert "epochs" not in cells[0]  # which follow from the updates, and split no series


def test_the_last_of_a_fixed_number_of_updates_ends_the_schedule():
    train_settings = TrainSettings(batch=8, update_batch=8, epochs=3, updates=20)
    assert [train_settings.examples_seen(epoch, 70) for epoch in (0, 1, 2, 3)] == [0, 64, 128, 160]
    config = TrainConfig(
        norm={"name": "gn", "eps": 1e-5},
        model=ModelConfig("resnet8", 8),
        data=DataConfig(train_limit=70, test_limit=20),
        batch=8,
        updates=20,
        tuning=TuningConfig(),
    )
    assert data.resolved(config).epochs == 3
