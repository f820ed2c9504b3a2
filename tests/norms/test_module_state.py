"""Models that hold what their last pass computed are copied, trained and measured as others."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from gnexp.models.conversion.convert import convert
from gnexp.norms.module_state import copied, put_state
from gnexp.store.run import Run

KEEPING = """
from torch import nn
from torch.nn.utils import spectral_norm

class Plain(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, num_classes)
        self.make()

    def make(self):
        pass

    def keep(self, x):
        pass

    def forward(self, x):
        x = self.bn(self.conv(x)).relu().mean(dim=(2, 3))
        self.keep(x)
        return self.fc(x)

class Keeps(Plain):
    def keep(self, x):
        self.seen = {"last": [x, (x * 2,)]}

class Spectral(Plain):
    def make(self):
        self.conv = spectral_norm(self.conv)
"""


@pytest.fixture
def keeping(workdir):
    (workdir / "keeping.py").write_text(KEEPING)
    sys.modules.pop("keeping", None)
    yield
    sys.modules.pop("keeping", None)


def result(workdir, study):
    (path,) = (workdir / "results" / study).glob("*/result.json")
    return json.loads(path.read_text())["seeds"]["0"], path.parent


def train(gnexp, model, *words):
    small = ("data.train_limit=24", "data.test_limit=20", "gradients=4", "batch=4", "epochs=1")
    target = f"model._target_=keeping.{model}"
    answer = gnexp("train", target, *small, "workers=1", f"study={model}", *words)
    assert answer.code == 0, answer.out + answer.err
    assert "could not be measured" not in answer.out + answer.err


def test_keeping_the_features_of_the_last_pass_changes_no_number(gnexp, keeping, workdir):
    for name in ("Plain", "Keeps"):
        train(gnexp, name, "norm=bn")
    (plain, first), (keeps, second) = (result(workdir, name) for name in ("Plain", "Keeps"))
    for key in plain.keys() - {"train_time_s"}:
        assert keeps[key] == plain[key], key
    tables = [Run(folder).rows("gradients.csv") for folder in (first, second)]
    assert len(tables[0]) == len(tables[1]) > 0
    for ours, theirs in zip(*tables, strict=True):  # in float32, maybe several draws a pass
        assert ours["parameters"] == theirs["parameters"]
        scale = theirs["noise_hi"] + theirs["signal_hi"]
        for key in ("noise", "signal"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5 * scale)


def test_the_hook_form_of_spectral_norm_is_trained_and_measured(gnexp, keeping, workdir):
    train(gnexp, "Spectral", "norm=bn")
    numbers, folder = result(workdir, "Spectral")
    assert numbers["status"] == "complete"
    assert "unmeasured" not in numbers
    assert all(numbers[f"test_acc_{name}"] is not None for name in ("batch", "population"))
    assert (folder / "gradients.csv").exists()


def pruned(layer):
    return prune.l1_unstructured(layer, "weight", amount=0.3)


@pytest.mark.parametrize(
    "wrap", [spectral_norm, weight_norm, pruned, parametrizations.weight_norm, lambda layer: layer]
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_a_copy_gives_the_same_outputs_and_gradients_and_shares_nothing(wrap):
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4)).train()
    x_NCHW = torch.randn(2, 3, 6, 6)
    kept = model[1].kept = model(x_NCHW)
    kept.sum().backward()  # from here on it holds computed tensors
    copy = copied(model).eval()
    assert copy[1].kept.grad_fn is None
    assert model[1].kept is kept
    assert kept.grad_fn is not None
    model.eval()
    found = []
    for each in (model, copy):
        each.zero_grad()
        y = each(x_NCHW)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in each.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
        assert not torch.equal(model(x_NCHW), copy(x_NCHW))


def test_a_model_that_has_been_used_is_converted():
    model = nn.Sequential(spectral_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    model[0].seen = model(torch.randn(2, 3, 6, 6))
    done = convert(model, "gn", example=torch.randn(2, 3, 6, 6))
    assert isinstance(done.model[1], nn.GroupNorm)
    assert isinstance(model[1], nn.BatchNorm2d)


def test_a_state_dict_without_versions_is_taken_by_a_module_that_asks_for_its_version():
    class Asks(nn.Module):
        _version = 2

        def __init__(self):
            super().__init__()
            self.bn = nn.BatchNorm2d(4)

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
            if local_metadata.get("version") != 2:
                raise ValueError("unknown version")
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)

    model, other = Asks(), Asks()
    stored = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    put_state(other, stored)
    assert all(torch.equal(other.state_dict()[name], stored[name]) for name in stored)
    stored.pop("bn.weight")
    with pytest.raises(RuntimeError, match=r"bn\.weight"):
        put_state(other, stored)
