"""A cell whose norm is undefined at its batch and image size is a result; the others train."""

import json
import sys
from pathlib import Path

import pytest
import torch
from image_folders import image_folder

from gnexp.runner.benchmark import measurement
from gnexp.runner.benchmark.timer import Peers

# ResNet-18's four stages halve 8x8 maps to 1x1: one value per channel and image.
SMALL = ("epochs=1", "gradients=0", "workers=1", "data=imagefolder", "data.root=tiny")
RESNET = ("model=resnet18", "model.width=8", *SMALL)
OWN = """
import torch
from torch import nn

class BetweenImages(nn.Module):
    '''Standardizes over the batch: one image alone gives 0 / 0.'''
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
    def forward(self, x):
        centred = x - x.mean(0)
        return centred / centred.square().mean(0).sqrt() * self.weight[:, None, None]

class Never(nn.Module):
    def __init__(self, channels):
        super().__init__()
    def forward(self, x):
        raise RuntimeError("never works")

class Head(nn.Module):
    '''Its head compares images.'''
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.head = nn.Sequential(nn.Linear(8, 8), Over(), nn.Linear(8, num_classes))
    def forward(self, x):
        return self.head(self.norm(self.stem(x)).relu().mean((2, 3)))

class Over(nn.Module):
    def forward(self, x):
        if len(x) < 2 and self.training:
            raise ValueError("contrasts images, and has one")
        return x - x.mean(0)
"""


@pytest.fixture
def tiny(workdir):
    image_folder(Path("tiny"), side=8)
    Path("undefined.py").write_text(OWN)
    sys.modules.pop("undefined", None)


def statuses():
    """Return {(norm, batch): its status of seed 0}."""
    found = {}
    for path in Path("results/main").glob("*/result.json"):
        result = json.loads(path.read_text())
        config = result["config"]
        found[config["norm"]["name"], config["batch"]] = result["seeds"]["0"]["status"]
    return found


def test_of_a_grid_the_cell_that_is_undefined_is_infeasible_and_the_rest_trains(gnexp, tiny):
    answer = gnexp("train", "-m", "norm=bn,in,ln", "batch=1,2", *RESNET)
    assert answer.code == 0, answer.err + answer.out
    undefined = {key for key, status in statuses().items() if status == "infeasible"}
    assert undefined == {("bn", 1), ("in", 1), ("in", 2)}
    assert {s for key, s in statuses().items() if key not in undefined} == {"complete"}
    told = [line for line in answer.out.splitlines() if line.startswith("infeasible: ")]
    assert len(told) == 3
    assert "norm=bn batch=1: layer stage4.0.norm1 has one value per statistic" in told[0]
    row = next(line.split() for line in answer.out.splitlines() if line.startswith("IN "))
    assert row == ["IN", "infeasible", "infeasible"]
    status = gnexp("status")
    assert "3 infeasible" in status.out
    assert "one value per statistic" in status.out


def test_the_same_call_again_trains_nothing_and_retry_asks_anew(gnexp, tiny):
    words = ("train", "norm=bn", "batch=1", *RESNET)
    first = gnexp(*words)
    file = next(Path("results/main").glob("*/result.json"))
    before = file.stat().st_mtime_ns
    again = gnexp(*words)
    assert (first.code, again.code) == (0, 0)
    assert again.out == first.out
    assert file.stat().st_mtime_ns == before
    assert gnexp(*words, "retry=infeasible").code == 0
    assert file.stat().st_mtime_ns != before
    assert statuses() == {("bn", 1): "infeasible"}


def test_no_norm_of_the_table_fails_where_it_is_undefined(gnexp, tiny):
    answer = gnexp("train", "-m", "norm=gbn,online,syncbn", "batch=1", *RESNET)
    assert answer.code == 0, answer.err + answer.out
    assert set(statuses().values()) == {"infeasible"}
    assert len(statuses()) == 3


def test_a_norm_of_ones_own_may_be_undefined_for_one_image(gnexp, tiny):
    words = ("-m", "norm._target_=undefined.BetweenImages", "batch=1,2", "model=resnet8", *SMALL)
    answer = gnexp("train", *words, "model.width=8", "lr=1e-4")
    assert answer.code == 0, answer.err + answer.out
    assert statuses()["custom", 1] == "infeasible"
    assert statuses()["custom", 2] != "infeasible"
    assert "values that are not finite" in answer.out


def test_a_model_may_be_undefined_for_one_image_under_every_norm(gnexp, tiny):
    answer = gnexp("train", "-m", "model._target_=undefined.Head", "norm=gn", "batch=1,2", *SMALL)
    assert answer.code == 0, answer.err + answer.out
    assert statuses() == {("gn", 1): "infeasible", ("gn", 2): "complete"}
    assert "a forward pass of one image raised" in answer.out


def test_a_library_model_too_has_infeasible_cells_beside_others(gnexp, tiny):
    words = ("model=torchvision", "model.name=resnet18", *SMALL)
    answer = gnexp("train", "-m", "norm=in,ln", "batch=2", *words)
    assert answer.code == 0, answer.err + answer.out
    assert statuses() == {("in", 2): "infeasible", ("ln", 2): "complete"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("norm=gn", "groups=3,4", "batch=2"), "groups=3 does not divide"),
        (("norm._target_=undefined.Never", "batch=1,2"), "never works"),
        (("norm=bn", "batch=2,9"), "batch=9 is larger than the training set"),
    ],
)
def test_what_no_batch_could_make_possible_still_refuses_the_grid(gnexp, tiny, words, sentence):
    answer = gnexp("train", "-m", *words, *RESNET)
    assert answer.code == 2
    assert sentence in answer.err
    assert not Path("results").exists()


def test_a_rate_that_no_trial_could_give_is_said_to_be_so(gnexp, tiny):
    tuned = ("lr=tuned", "tuning.lr=[0.1,0.2]", "tuning.validation=2", "tuning.extend=0")
    answer = gnexp("train", "norm=in", "batch=1", *tuned, *RESNET)
    assert answer.code == 0, answer.err + answer.out
    assert "no rate chosen, since no trial gave an accuracy" in answer.out


def test_a_bench_times_the_cells_that_are_defined(gnexp, tiny, monkeypatch):
    # Its measurements share this process: starting one for each would take most of a minute.
    alone = lambda work, tasks: [work(*tasks, Peers())]  # noqa: E731
    monkeypatch.setattr(measurement, "measure_together", alone)
    monkeypatch.setitem(measurement.PRODUCT_SIZE, "cpu", 256)
    words = ("norms=[in,ln]", "batches=[2]", "model=resnet18", "model.width=8", "workers=1")
    short = ("seconds=0.01", "repeats=1", "seeds=1", "data=imagefolder", "data.root=tiny")
    answer = gnexp("bench", *words, *short)
    torch.set_num_threads(1)
    assert answer.code == 0, answer.err + answer.out
    assert "infeasible: norm=in batch=2: layer stage4.0.norm1" in answer.out
    text = Path("results/bench/bench.md").read_text()
    assert "- infeasible: norm=in batch=2" in text
