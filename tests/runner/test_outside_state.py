"""What a model keeps outside of its state dict: stored with the checkpoint, or said to be lost."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gnexp.runner import trainer
from gnexp.training.attributes import changing

FEW = ("data.train_limit=24", "data.test_limit=20", "gradients=0", "workers=1", "batch=8")

CODE = '''
import collections
import random
import numpy as np
import torch
from torch import nn

class Net(nn.Module):
    """What `factor` returns multiplies the features, and depends on the passes before."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        self.steps, self.mean, self.past = 0, None, []
        self.recent, self.features = collections.deque(maxlen=2), None

    def factor(self, x):
        return 1.0

    def forward(self, x):
        self.features = self.bn(self.conv(x)).relu().mean(dim=(2, 3))
        return self.fc(self.features * self.factor(x))

class Counted(Net):
    def factor(self, x):
        self.steps += self.training
        return 1 + self.steps / 10

class Averaged(Net):
    def factor(self, x):
        now = x.detach().square().mean()
        self.mean = now if self.mean is None else 0.5 * self.mean + 0.5 * now
        return self.mean

class Listed(Net):
    def factor(self, x):
        self.past.append({"step": len(self.past)})
        return 1 + self.past[-1]["step"] / 10

class Queued(Net):
    def factor(self, x):
        self.recent.append(len(self.recent) + (self.recent[-1] if self.recent else 0))
        return 1 + sum(self.recent) / 10

class Drawing(Net):
    def factor(self, x):
        return 1 + random.random()

class DrawingArrays(Net):
    def factor(self, x):
        return 1 + np.random.rand()

class OfTheClass(Net):
    passes = 0

    def factor(self, x):
        OfTheClass.passes += 1
        return 1 + OfTheClass.passes / 10

class WarmingNorm(nn.BatchNorm2d):
    """Batch norm whose gain grows over the first passes."""

    def __init__(self, num_channels):
        super().__init__(num_channels)
        self.passes = 0

    def forward(self, x):
        self.passes += self.training
        return super().forward(x) * min(1.0, 0.1 + self.passes / 50)
'''


@pytest.fixture
def own(workdir):
    """A module `stateful` of the user's in the current directory, imported anew."""
    (workdir / "stateful.py").write_text(CODE)
    sys.modules.pop("stateful", None)
    sys.path.insert(0, str(workdir))
    yield __import__("stateful")
    sys.modules.pop("stateful", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(workdir)]


def metrics(study):
    (folder,) = (p for p in Path("results", study).iterdir() if (p / "config.yaml").exists())
    with open(folder / "metrics.csv") as file:
        rows = [{k: v for k, v in row.items() if k != "time_s"} for row in csv.DictReader(file)]
    return rows, folder


@pytest.mark.parametrize(
    "words",
    [
        ("model._target_=stateful.Counted", "seeds=2"),
        ("model._target_=stateful.Averaged",),
        ("model._target_=stateful.Listed", "norm=ln", "update_batch=16"),
        ("norm._target_=stateful.WarmingNorm", "model=resnet8", "model.width=8"),
    ],
    ids=["counter", "average", "list", "norm"],
)
def test_an_interrupted_run_goes_on_with_what_plain_attributes_held(gnexp, own, monkeypatch, words):
    words = (*words, "epochs=2", *FEW)
    assert gnexp("train", *words, "study=whole").code == 0
    store = trainer.GroupTrainer._checkpoint

    def interrupt(self, epoch, *rest):
        store(self, epoch, *rest)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.GroupTrainer, "_checkpoint", interrupt)
        assert gnexp("train", *words).code != 0
    answer = gnexp("train", *words)
    assert answer.code == 0, answer.err
    assert metrics("main")[0] == metrics("whole")[0]
    assert "no checkpoint" not in answer.out


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ("Queued", "recent changes in training, and no checkpoint holds it"),
        ("Drawing", "the random state of Python changes in training"),
        ("DrawingArrays", "the random state of NumPy changes in training"),
        ("OfTheClass", "the class OfTheClass.passes changes in training"),
    ],
)
def test_what_no_checkpoint_can_hold_is_said_and_recorded(gnexp, own, model, named):
    answer = gnexp("train", f"model._target_=stateful.{model}", "norm=gn", "epochs=1", *FEW)
    assert answer.code == 0, answer.err
    assert named in answer.out + answer.err
    result = json.loads((metrics("main")[1] / "result.json").read_text())
    assert named in result["seeds"]["0"]["note"]


def test_features_of_the_last_pass_are_no_state(own):
    assert changing(own.Net(10), (3, 32, 32)) == ([], [])
    assert changing(own.Counted(10), (3, 32, 32)) == (["steps"], [])


def test_looking_leaves_the_model_and_the_random_states_as_they_were(own):
    model = own.Averaged(10)
    state = torch.get_rng_state()
    assert changing(model, (3, 32, 32)) == (["mean"], [])
    assert model.mean is None
    assert torch.equal(torch.get_rng_state(), state)
    nested = nn.Sequential(own.Counted(10))
    assert changing(nested, (3, 32, 32))[0] == ["0.steps"]
