"""A sweeper that optimizes sees accuracy on images held out, and never that on test images."""

import csv
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is missing")

QUICK = ("model=resnet8", "model.width=8", "data.train_limit=100", "data.test_limit=40")
QUICK += ("epochs=1", "gradients=0", "workers=1", "groups=4")
OPTUNA = ("-m", *QUICK, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3")
OPTUNA += ("hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1", "lr=interval(0.01,0.5)")


def last_accuracies(study="results/main"):
    """Return {rate: mean last accuracy over seeds}, from the files alone."""
    found = {}
    for folder in Path(study).glob("gn-*"):
        with open(folder / "metrics.csv") as file:
            last = {row["seed"]: float(row["test_acc"]) for row in csv.DictReader(file)}
        config = yaml.safe_load((folder / "config.yaml").read_text())
        found[config["lr"]] = sum(last.values()) / len(last)
    return found


def test_optuna_maximizes_the_mean_validation_accuracy_of_a_runs_seeds(gnexp):
    answer = gnexp("train", *OPTUNA, "data.validation=0.3", "seeds=2")
    assert answer.code == 0
    found = last_accuracies()
    assert len(found) == 3
    best = yaml.safe_load(Path("results/main/optimization_results.yaml").read_text())
    assert best["best_value"] == pytest.approx(max(found.values()), abs=1e-12)
    assert found[best["best_params"]["lr"]] == max(found.values())
    assert "70 training and 30 validation images" in answer.out
    assert "validation accuracy" in answer.out
    assert Path("results/main/report/index.html").is_file()
    assert "new study created" not in answer.err


def test_a_diverged_job_is_worth_chance_and_keys_are_set_together_in_it(gnexp, no_report):
    words = [word for word in OPTUNA if not word.startswith("lr=")]
    words += ["lr=choice(1e30)", "data.validation=0.3", "together={batch:5}"]
    assert gnexp("train", *words).code == 0
    best = yaml.safe_load(Path("results/main/optimization_results.yaml").read_text())
    assert best["best_value"] == 0.1
    (folder,) = Path("results/main").glob("gn-*")
    assert yaml.safe_load((folder / "config.yaml").read_text())["batch"] == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "must not be test accuracy: hold images out of the training set"),
        (
            ["data.validation=0.3", "hydra.sweeper.direction=minimize"],
            "hydra.sweeper.direction=minimize looks for the lowest accuracy",
        ),
        (["data.validation=0.3", "hydra/launcher=joblib"], "leave hydra/launcher=joblib out"),
        (["data.validation=0.3", "batch=0"], "batch=0 must be a whole number of at least 1"),
        (["data.validation=0.3", "together={lr:tuned}"], "chooses one rate per job"),
    ],
)
def test_what_would_optimize_the_wrong_thing_is_refused_before_it_starts(gnexp, words, sentence):
    answer = gnexp("train", *OPTUNA, *words)
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not Path("results").exists()


def test_an_unknown_sweeper_gets_the_nearest_name_and_a_missing_one_how_to_get_it(
    gnexp, monkeypatch
):
    assert "did you mean optuna?" in gnexp("train", "-m", *QUICK, "hydra/sweeper=optun").err
    monkeypatch.setitem(sys.modules, "hydra_plugins.hydra_optuna_sweeper", None)
    answer = gnexp("train", *OPTUNA)
    assert answer.code == 2
    assert "pip install 'gnexp[optuna]'" in answer.err
