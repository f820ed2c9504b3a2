"""`gnexp train` with models of torchvision and timm, and with the user's own."""

import builtins
import copy
import csv
import dataclasses
import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F

from gnexp.config.resolve import resolve
from gnexp.config.schema import ConvertConfig, DataConfig, ModelConfig, TrainConfig
from gnexp.runner.build import data as build
from gnexp.runner.build import model as networks
from gnexp.runner.build import step as build_step

DATA = ("data.train_limit=24", "data.test_limit=20", "gradients=0", "workers=1", "batch=8")
RESNET = ("model=torchvision", "model.name=resnet18")
IMAGES = build.images_of(DataConfig(train_limit=24, test_limit=20)).summary

NET = '''
import torch
from torch import nn

class Net(nn.Module):
    """Two convolutions with batch norms of the usual kind."""

    def __init__(self, width=8, dropout=0.0, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x))).mean(dim=(2, 3))
        return self.fc(self.drop(x))

def ten(width=8):
    return Net(width)

def nine():
    return Net(num_classes=9)

def broken(num_classes):
    raise RuntimeError("out of paint")

def nothing(num_classes):
    return "a string"

class Tokens(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 8, stride=8)
        self.norm, self.fc = nn.LayerNorm(8), nn.Linear(8, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))

class WithTokens(Tokens):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x):
        return super().forward(self.bn(x))

class OfItsOwn(nn.BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)

class Subclassed(Net):
    def __init__(self, num_classes):
        super().__init__(num_classes=num_classes)
        self.bn1 = OfItsOwn(8)

class Lazy(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn = nn.LazyConv2d(8, 3, stride=4), nn.LazyBatchNorm2d()
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean(dim=(2, 3)))

class LazyUnused(Lazy):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.extra = nn.LazyConv2d(8, 3)

class LazyBroken(Lazy):
    def forward(self, x):
        return super().forward(x[:, 5:])

def lazy_norm(channels):
    return nn.LazyBatchNorm2d()
'''


@pytest.fixture
def own(workdir):
    """A module `own_models` of the user's in the current directory, imported anew."""
    (workdir / "own_models.py").write_text(NET)
    sys.modules.pop("own_models", None)
    yield workdir / "own_models.py"
    sys.modules.pop("own_models", None)
    sys.path[:] = [entry for entry in sys.path if entry != str(workdir)]


def runs(study="results/main"):
    return sorted(p for p in Path(study).iterdir() if (p / "config.yaml").exists())


def numbers(folder):
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "time_s"} for row in csv.DictReader(file)]


def test_a_model_of_torchvision_trains_and_is_stored_with_its_groups(gnexp):
    answer = gnexp("train", *RESNET, "norm=gn", "groups=32", "epochs=1", *DATA)
    assert answer.code == 0, answer.err
    (folder,) = runs()
    assert folder.name.startswith("gn-g32-b8-torchvision-resnet18-")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["library"] == "torchvision"
    assert config["model"]["width"] is None
    result = json.loads((folder / "result.json").read_text())
    assert result["groups_per_layer"]["layer4.1.bn2"] == 32
    assert len(result["groups_per_layer"]) == 20
    before = (folder / "result.json").stat().st_mtime_ns
    again = gnexp("train", *RESNET, "norm=gn", "groups=32", "epochs=1", *DATA)
    assert again.code == 0
    assert "epoch 1" not in again.out + again.err
    assert runs() == [folder]
    assert (folder / "result.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("model", "norm", "pools"),
    [
        ("Net", "bn", "nhw"),
        ("WithTokens", "in", "chw"),  # whose layer norm of tokens stays
        ("WithTokens", "none", "c"),
    ],
)
def test_pools_are_those_of_the_norm_and_of_the_layers_that_the_model_keeps(
    own, model, norm, pools
):
    assert networks.pools(config(f"own_models.{model}", norm), IMAGES) == pools


def test_other_options_are_other_runs(gnexp, own):
    words = ("model._target_=own_models.Net", "epochs=1", *DATA)
    for option in ("model.options.width=8", "model.options={width:16}", "model.options={}"):
        assert gnexp("train", *words, option).code == 0
    assert len(runs()) == 3
    assert all(folder.name.startswith("gn-g8-b8-Net-") for folder in runs())
    parameters = {json.loads((f / "result.json").read_text())["parameters"] for f in runs()}
    assert len(parameters) == 2


def config(target="own_models.Net", norm="gn", **keys):
    data = DataConfig(train_limit=24, test_limit=20)
    model = ModelConfig("custom", None, None, target, keys.pop("options", None))
    return resolve(TrainConfig(norm={"name": norm}, model=model, data=data, **keys))


def seeded(config, seed):
    return networks.seeded_model(config, IMAGES, seed)


def test_convolutions_start_as_the_protocol_says_and_norms_at_one_and_zero():
    pytest.importorskip("timm")
    model = ModelConfig("resnet10t", None, "timm")
    data = DataConfig(train_limit=24, test_limit=20)
    plan = resolve(TrainConfig(norm={"name": "gn"}, model=model, data=data))
    built = seeded(plan, 0)
    convolution = built.layer4[0].conv2
    expected = (2 / (convolution.out_channels * 9)) ** 0.5
    assert convolution.weight.std().item() == pytest.approx(expected, rel=0.01)
    norms = [module for module in built.modules() if isinstance(module, nn.GroupNorm)]
    assert len(norms) == len(networks.groups_per_layer(plan, IMAGES)) > 5
    assert all(torch.equal(norm.weight, torch.ones_like(norm.weight)) for norm in norms)
    assert not any(getattr(module, "inplace", False) for module in built.modules())


@pytest.mark.parametrize("norm", ["gn", "bn"])
def test_an_update_of_several_batches_is_their_sequential_accumulation(own, norm):
    plan = config(norm=norm, batch=2, update_batch=4, lr=0.1)
    images = build.device_images(plan.data, torch.device("cpu"))
    model = seeded(plan, 0).double().train()
    alone = copy.deepcopy(model)
    step, note = build_step.training_step([plan], [model], images)
    assert note == ""
    assert step.one_pass == (norm != "bn")  # running statistics follow the batches in order
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, 3, 4, 3, 32, 32, generator=draw, dtype=torch.float64)
    y = torch.randint(10, (1, 3, 4), generator=draw)
    step.run(x, y, [[0.1]] * 3)
    sgd = torch.optim.SGD(
        alone.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=plan.weight_decay
    )
    for update in range(3):
        sgd.zero_grad()
        for first in range(2):  # example n is of batch n % 2
            logits = alone(x[0, update, first::2])
            (F.cross_entropy(logits, y[0, update, first::2]) / 2).backward()
        sgd.step()
    trained = step.state(0)["model"]
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(trained[name], tensor, rtol=1e-9, atol=1e-12), name


def test_seeds_of_a_foreign_model_share_a_step_unless_it_draws(own):
    cpu = torch.device("cpu")
    assert build_step.why_seeds_train_apart(config(groups=4), IMAGES, cpu) is None
    drawing = config(options={"dropout": 0.5})
    assert build_step.why_seeds_train_apart(drawing, IMAGES, cpu) == "it draws random numbers"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model=torchvision", "model.name=resnet81"), "did you mean resnet18?"),
        (("model=torchvision",), "model.name must be given with model=torchvision"),
        (("model=custom",), "model=custom needs the import path"),
        ((*RESNET, "model.width=32"), "model.width=32 is for the models of gnexp"),
        ((*RESNET, "zero_gamma=true"), "zero_gamma=true needs a model of gnexp"),
        ((*RESNET, "model.options=[3]"), "must be a mapping"),
        ((*RESNET, "model.options.num_classes=3"), "num_classes= cannot be typed: the data decide"),
        ((*RESNET, "model.options={weights:DEFAULT}"), "type init_from=FILE"),
        ((*RESNET, "model.options.depth=3"), "unexpected keyword argument 'depth'"),
        ((*RESNET, "groups=48"), "layer bn1: groups=48 does not divide 64 channels; valid: 1, 2"),
        (("model=torchvision", "model.name=vgg11"), "has no normalization layer that norm= could"),
        (("model.options.width=3",), "needs model=torchvision, model=timm or model._target_="),
        (("model._target_=own_models.Nett",), "model._target_=own_models.Nett: own_models has no"),
        (("model._target_=own_models.broken",), "raised RuntimeError (out of paint)"),
        (("model._target_=own_models.Tokens",), "convert.only=tokens includes it"),
        (("model._target_=own_models.LazyUnused",), "a lazy layer that no image reaches (extra.we"),
        (("model._target_=own_models.LazyBroken",), "does not take images of 32x32 pixels"),
        (("norm._target_=own_models.lazy_norm",), "returns a lazy layer (weight): build it with"),
        (("model._target_=own_models.Subclassed",), "a forward of its own; convert.leave=bn1 leav"),
        ((*RESNET, "convert.leave=bn3"), "convert.leave=bn3 is not the name of a module of the mo"),
        ((*RESNET, "convert.leave=3"), "convert.leave=3 must be a list of layers' names, p"),
        (("model._target_=own_models.nothing",), "must build an nn.Module, not str"),
        (("model._target_=own_models.nine",), "returns a tensor (2, 9) for 2 images"),
        (("model=tiny", "model._target_=own_models.Net"), "exclude each other"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(gnexp, own, words, sentence):
    batch = () if any(word.startswith("batch=") for word in words) else ("batch=8",)
    answer = gnexp("train", *words, *batch, "data.train_limit=24", "data.test_limit=20")
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not re.search(r"(?<!convert\.)\b(only|leave)=", answer.err)  # of `gnexp.convert`
    assert not Path("results").exists()


@pytest.mark.parametrize("norm", ["bn", "gn_ws"])
def test_a_model_of_lazy_layers_trains_as_one_that_was_built_with_its_channels(gnexp, own, norm):
    own.write_text(
        NET
        + """
class Eager(Lazy):
    def __init__(self, num_classes):
        nn.Module.__init__(self)
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=4), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
"""
    )
    for name in ("Lazy", "Eager"):
        words = (f"model._target_=own_models.{name}", f"norm={norm}", "seeds=2", f"study={name}")
        answer = gnexp("train", *words, "epochs=1", *DATA)
        assert answer.code == 0, answer.err
    (lazy,), (eager,) = runs("results/Lazy"), runs("results/Eager")
    assert numbers(lazy) == numbers(eager)


def test_what_cannot_be_replaced_may_be_left_and_is_another_run(gnexp, own):
    words = ("model._target_=own_models.Subclassed", "norm=gn", "epochs=1", *DATA)
    answer = gnexp("train", *words, "convert.leave=*n1", "convert.only=BatchNorm2d")
    assert answer.code == 0, answer.err
    (folder,) = runs()
    kept = "bn1: OfItsOwn left, since it is named in convert.leave="
    assert kept in json.loads((folder / "result.json").read_text())["conversion"]
    stored = yaml.safe_load((folder / "config.yaml").read_text())["convert"]
    assert {k for k, v in stored.items() if v is not None} == {"leave", "only"}


def test_a_model_without_the_keyword_for_classes_trains_when_it_fits(gnexp, own):
    answer = gnexp("train", "model._target_=own_models.ten", "epochs=1", *DATA)
    assert answer.code == 0, answer.err


def test_timm_is_asked_for_only_when_it_is_needed(gnexp, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **named):
        if name.split(".")[0] == "timm":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    answer = gnexp("train", "model=timm", "model.name=resnet10t", *DATA)
    assert answer.code == 2
    assert "pip install timm" in answer.err


def test_bench_keeps_to_models_of_the_table(gnexp):
    answer = gnexp("bench", *RESNET)
    assert answer.code == 2
    assert "gnexp bench times the models of gnexp" in answer.err


def test_the_batches_of_an_update_follow_each_other_where_a_model_draws(own):
    plan = config(batch=2, update_batch=4, options={"dropout": 0.5})
    images = build.device_images(plan.data, torch.device("cpu"))
    step, _ = build_step.training_step([plan], [seeded(plan, 0)], images)
    assert not step.one_pass


def test_a_model_of_timm_trains(gnexp):
    pytest.importorskip("timm")
    words = ("model=timm", "model.name=resnet10t", "norm=ln", "epochs=1", *DATA)
    answer = gnexp("train", *words, "model.options={zero_init_last:true}")
    assert answer.code == 0, answer.err
    assert runs()[0].name.startswith("ln-b8-timm-resnet10t-")


def test_a_left_layer_that_mixes_examples_is_seen_to(own):
    plan = dataclasses.replace(
        config("own_models.Subclassed", "in"), convert=ConvertConfig(leave=["bn1"])
    )
    assert networks.pools(plan, IMAGES) == "nhw"
