"""DP-SGD: what an update is, what it costs, and for which norms it exists."""

import copy
import csv
import importlib
import itertools
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.nn import functional as F

from gnexp.analysis.cells import cells, series
from gnexp.config.identity import as_dict, restore, run_name
from gnexp.config.resolve import resolve
from gnexp.config.schema import PrivacyConfig, TrainConfig
from gnexp.config.validation import problems
from gnexp.data.device_images import DeviceDataset
from gnexp.data.seeding import secret_normal, secret_uniform
from gnexp.data.sources import Dataset
from gnexp.data.update_blocks import poisson_updates, update_blocks
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import build_norm
from gnexp.report import study_report
from gnexp.runner import trainer
from gnexp.store.study import load_study

pytest.importorskip("opacus")
from gnexp.training import dp_budget
from gnexp.training.dp_budget import Budget
from gnexp.training.dp_sgd import PrivateStep, why_no_private_gradient

EXACT = {"rtol": 0, "atol": 1e-12}  # float64
PRIVATE_NORMS = ("gn", "ln", "in", "none")
EXPECTED = 5  # images of an update


def model(norm="gn", width=8):
    built = build_model("resnet8", lambda channels: build_norm(norm, channels), 10, width)
    initialize(built, torch.Generator().manual_seed(1))
    return built.double()


def batch(count, seed=0):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 8, 8, generator=source, dtype=torch.float64)
    return x, torch.randint(0, 10, (count,), generator=source)


def step_of(
    trained, *, clip=1.0, noise=0.0, passes=64, momentum=0.0, decay=0.0, seed=0, mapped=False
):
    return PrivateStep(
        trained,
        passes,
        EXPECTED,
        momentum,
        decay,
        clip=clip,
        noise_multiplier=noise,
        seed=seed,
        mapped=mapped,
    )


def flat(trained):
    return torch.cat([p.detach().flatten() for p in trained.parameters()]).clone()


def moved(step, x, y, rate=1.0):
    """How far an update moves the weights, all parameters in one vector."""
    before = flat(step.model(0))
    step.run(x[None, None], y[None, None], [[rate]])
    return flat(step.model(0)) - before


def gradient(trained, x, y):
    """The gradient of the sum of losses, by plain autograd."""
    trained.train().zero_grad()
    F.cross_entropy(trained(x), y, reduction="sum").backward()
    return torch.cat([p.grad.flatten() for p in trained.parameters()])


def test_a_layer_that_learns_slower_does_so_privately_too():
    x, y = batch(5)
    trained = model("none")
    for layer in trained.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rate_factor = 0.1
    slow = torch.tensor(
        ["norm" in n for n, p in trained.named_parameters() for _ in range(p.numel())]
    )
    slope = gradient(model("none"), x, y) / EXPECTED
    step = step_of(trained, clip=1e9, momentum=0.9)
    change = moved(step, x, y)  # Nesterov's from rest: 1 + 0.9 gradients
    torch.testing.assert_close(change, -1.9 * slope * (1 - 0.9 * slow.double()), **EXACT)
    momenta = torch.cat([velocity.flatten() for velocity in step.state(0)["momentum"]])
    torch.testing.assert_close(momenta, slope, **EXACT)  # in the order of the parameters


@pytest.mark.parametrize("norm", PRIVATE_NORMS)
def test_every_image_moves_the_weights_by_its_clipped_gradient_and_no_more(norm):
    x, y = batch(6)  # images, where 5 are expected
    alone = [gradient(model(norm), x[n : n + 1], y[n : n + 1]) for n in range(6)]
    clip = float(torch.stack([g.norm() for g in alone]).median())
    # Opacus divides by |g| + 1e-6.
    clipped = sum(g * min(1.0, clip / (float(g.norm()) + 1e-6)) for g in alone)
    all_of_them = moved(step_of(model(norm), clip=clip), x, y) * EXPECTED
    torch.testing.assert_close(all_of_them, -clipped, **EXACT)


@pytest.mark.parametrize("norm", PRIVATE_NORMS)
def test_passes_of_any_size_and_gradients_by_torch_func_give_the_same_update(norm):
    x, y = batch(7)
    whole = moved(step_of(model(norm), clip=0.5, noise=0.7), x, y)
    for how in ({"passes": 1}, {"passes": 2}, {"mapped": True}):
        torch.testing.assert_close(
            moved(step_of(model(norm), clip=0.5, noise=0.7, **how), x, y), whole, **EXACT
        )


class InPlace(nn.Module):
    """A residual block that overwrites, as torchvision's do, and a layer that is frozen."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm, self.relu = nn.GroupNorm(2, 8), nn.ReLU(inplace=True)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.drop, self.fc = nn.Dropout(0.5), nn.Linear(8, num_classes)
        self.stem.bias.requires_grad_(False)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)), inplace=True)
        out = self.conv(x)
        out += x
        return self.fc(self.drop(self.relu(out).mean(dim=(2, 3))))


def test_a_model_that_works_in_place_trains_as_its_clipped_gradients_say():
    trained = InPlace().double()
    x, y = batch(6)
    assert "inplace" in why_no_private_gradient(trained, x[:3], y[:3])
    assert why_no_private_gradient(trained, x[:3], y[:3], mapped=True) is None
    trained.drop.p = 0.0
    alone = []
    for n in range(6):
        trained.train().zero_grad()
        F.cross_entropy(trained(x[n : n + 1]), y[n : n + 1]).backward()
        got = [torch.zeros_like(p) if p.grad is None else p.grad for p in trained.parameters()]
        alone.append(torch.cat([g.flatten() for g in got]))
    clip = 0.8 * float(alone[0].norm())
    clipped = sum(g * min(1.0, clip / (float(g.norm()) + 1e-6)) for g in alone)
    for passes in (2, 64):
        model = step_of(copy.deepcopy(trained), clip=clip, mapped=True, passes=passes)
        torch.testing.assert_close(moved(model, x, y) * EXPECTED, -clipped, **EXACT)


def test_models_of_torchvision_train_privately_though_they_work_in_place(gnexp):
    words = ["model=torchvision", "model.name=mobilenet_v3_small", "groups_fallback=gcd"]
    words += ["groups=4"]
    words += [word for word in QUICK if not word.startswith(("model", "norm", "data."))]
    answer = gnexp("train", *words, "data.train_limit=20", "data.test_limit=10")
    assert answer.code == 0, answer.err
    (result,) = Path("results").glob("*/*/result.json")
    (numbers,) = json.loads(result.read_text())["seeds"].values()
    assert numbers["per_example_gradients"] == "torch.func"


@pytest.mark.parametrize("seed", [0, None])
def test_noise_has_the_standard_deviation_that_is_accounted_for(seed):
    clip, multiplier, updates = 0.5, 3.0, 4
    step = step_of(model(), clip=clip, noise=multiplier, seed=seed)
    nothing = batch(0)  # an update without images is noise alone
    drawn = torch.stack([moved(step, *nothing) for _ in range(updates)]) * EXPECTED / clip
    count = drawn.numel()  # 76,000: standard errors are multiplier / sqrt(count) and, below, less
    assert abs(drawn.mean()) < 4 * multiplier / math.sqrt(count)
    assert drawn.std() == pytest.approx(multiplier, rel=4 / math.sqrt(2 * count))
    within = (drawn.abs() < multiplier).double().mean()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=4 * 0.5 / math.sqrt(count))
    correlations = torch.corrcoef(drawn) - torch.eye(updates, dtype=torch.float64)
    assert correlations.abs().max() < 5 * math.sqrt(updates / count)


def test_noise_is_of_its_seed_or_of_none_and_clips_alike():
    x, y = batch(6)
    secret = [step_of(model(), noise=1.0, seed=None) for _ in range(2)]
    assert not torch.allclose(*(moved(step, x, y) for step in secret))
    first, other, again = (step_of(model(), noise=1.0, seed=seed) for seed in (0, 1, 0))
    noise, others, same = (moved(step, x, y) for step in (first, other, again))
    assert not torch.equal(noise, others)
    torch.testing.assert_close(noise, same, **EXACT)
    quiet = [moved(step_of(model(), clip=0.3, seed=seed), x, y) for seed in (None, 0)]
    torch.testing.assert_close(*quiet, **EXACT)


def test_secret_numbers_are_uniform_and_never_an_end_of_the_interval(monkeypatch):
    drawn = secret_uniform(100_000)
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-6
    assert stats.kstest(secret_normal(drawn.float()).numpy(), "norm").pvalue > 1e-6
    for byte in (b"\x00", b"\xff"):  # the least and the largest that there can be
        monkeypatch.setattr("os.urandom", lambda count, byte=byte: byte * count)
        assert 0 < secret_uniform(1).item() < 1
        assert math.isfinite(secret_normal(torch.zeros(1, dtype=torch.float64)).item())


def test_momentum_and_weight_decay_come_after_the_noise():
    plain = step_of(model(), noise=1.0)
    whole = step_of(model(), noise=1.0, momentum=0.9, decay=0.1)
    weights = flat(whole.model(0))
    velocity = torch.zeros_like(weights)
    nothing = batch(0)
    for _ in range(3):
        decayed = -moved(plain, *nothing) + 0.1 * weights
        velocity = 0.9 * velocity + decayed
        weights = weights - 0.2 * (decayed + 0.9 * velocity)  # Nesterov
        moved(whole, *nothing, rate=0.2)
        torch.testing.assert_close(flat(whole.model(0)), weights, **EXACT)


def small_images(count=400):
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    pixels[:, 0, 4, 4] = np.arange(count) % 256  # tells images apart
    labels = np.arange(count)  # so do labels: which image it is
    data = Dataset(
        pixels, labels, pixels[:10], labels[:10], tuple(map(str, range(count))), "t", "c"
    )
    return DeviceDataset(data, mean=[0.5] * 3, std=[0.25] * 3)


@pytest.mark.parametrize("secret", [False, True])
def test_every_image_is_drawn_independently_at_the_rate_that_is_accounted_for(secret):
    images, size, expected = small_images(), 400, 40
    drawn = [
        y[0, 0]
        for epoch in range(1, 41)
        for _, y in poisson_updates(images, 0, epoch, expected, "none", secret=secret)
    ]
    assert len(drawn) == 40 * (size // expected)
    counts = torch.tensor([len(y) for y in drawn], dtype=torch.float64)
    rate = expected / size
    assert counts.mean() == pytest.approx(expected, abs=4 * math.sqrt(36 / len(drawn)))
    assert counts.var() == pytest.approx(size * rate * (1 - rate), rel=4 * math.sqrt(2 / 400))
    per_image = torch.bincount(torch.cat(drawn), minlength=size).double()
    assert per_image.mean() == pytest.approx(len(drawn) * rate, rel=0.05)
    assert per_image.var() == pytest.approx(len(drawn) * rate * (1 - rate), rel=0.3)
    pairs = sum(len(np.intersect1d(a, b)) for a, b in itertools.pairwise(drawn))
    assert pairs / (len(drawn) - 1) == pytest.approx(size * rate**2, rel=0.1)


def test_a_drawn_image_looks_as_it_does_in_normal_training():
    images = small_images()
    blocks = update_blocks(images, [3], 2, 10, 40, "crop_flip")
    known = {int(y): x for xs, ys in blocks for x, y in zip(xs[0].flatten(0, 1), ys.flatten())}
    for x, y in poisson_updates(images, 3, 2, 40, "crop_flip"):
        for image, label in zip(x[0, 0], y[0, 0].tolist()):
            torch.testing.assert_close(image, known[label], rtol=0, atol=0)


def test_secret_samples_are_others_at_each_call():
    images = small_images()
    drawn = [
        [y.flatten().tolist() for _, y in poisson_updates(images, 0, 1, 40, "none", secret=secret)]
        for secret in (True, True, False, False)
    ]
    assert drawn[0] != drawn[1]
    assert drawn[2] == drawn[3]


def test_an_epoch_that_is_entered_later_goes_on_with_the_same_draws():
    images = small_images()
    whole = [y for _, y in poisson_updates(images, 0, 1, 40, "crop_flip")]
    rest = [y for _, y in poisson_updates(images, 0, 1, 40, "crop_flip", first=4)]
    assert all(torch.equal(a, b) for a, b in zip(whole[4:], rest, strict=True))


def test_epsilon_is_kept_and_is_what_the_accountants_say():
    from opacus.accountants import RDPAccountant

    for epsilon in (0.05, 8.0):
        plan = Budget(epsilon, 1e-4, 0.05, 100)
        spent = plan.spent(100)
        assert 0.99 * epsilon < spent <= epsilon
        assert 0 == plan.spent(0) < plan.spent(50) < spent
        accountant = RDPAccountant()
        for _ in range(100):
            accountant.step(noise_multiplier=plan.noise_multiplier(), sample_rate=0.05)
        theirs = accountant.get_epsilon(1e-4)
        # Opacus' own orders are fewer, and end at 63, which matters to the smallest budget alone.
        assert spent == pytest.approx(theirs, rel=1e-9) if epsilon > 0.5 else spent <= theirs


def test_epsilon_is_a_bound_on_what_a_tight_accountant_of_others_finds():
    accounting = pytest.importorskip("dp_accounting")
    plan = Budget(2.0, 1e-4, 0.05, 100)
    gaussian = accounting.GaussianDpEvent(plan.noise_multiplier())
    event = accounting.PoissonSampledDpEvent(0.05, gaussian)
    relation = accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    tight = accounting.pld.PLDAccountant(relation).compose(event, 100).get_epsilon(1e-4)
    renyi = accounting.rdp.RdpAccountant(neighboring_relation=relation).compose(event, 100)
    assert tight < plan.spent(100)
    assert plan.spent(100) == pytest.approx(renyi.get_epsilon(1e-4), rel=0.02)


# The command.

QUICK = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
QUICK += ("epochs=2", "batch=5", "update_batch=20", "workers=1", "privacy=dpsgd")


@pytest.fixture
def gnexp(gnexp, monkeypatch):
    """The command with an accountant that is quick: it looks at fewer orders."""
    monkeypatch.setattr(dp_budget, "ORDERS", (*range(2, 13), 16, 32, 64))
    return gnexp


def runs(study="results/main"):
    return sorted(p for p in Path(study).iterdir() if (p / "config.yaml").exists())


def rows(folder):
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "time_s"} for row in csv.DictReader(file)]


def numbers(folder):
    return json.loads((folder / "result.json").read_text())["seeds"]


def test_a_private_run_says_what_it_spent_and_measures_nothing_beyond_it(gnexp, no_figures):
    answer = gnexp("train", *QUICK, "privacy.clip=0.5", "seeds=2")
    assert answer.code == 0, answer.err
    first, second, third, fourth = answer.out.splitlines()[2:6]
    assert first.startswith("DP-SGD: noise multiplier")
    assert "noise and sampling follow from the seed: who knows it can undo both" in second
    assert "one image added to or removed from the 60 that are trained on" in third
    assert "train_acc are not covered" in fourth
    closing = answer.out.strip().splitlines()[-1]
    (folder,) = runs()
    seed = numbers(folder)["0"]
    spent = f"epsilon {seed['epsilon_spent']:.4g} spent by each seed at delta 1.11e-02"
    assert f"{spent}, against anyone who does not know the seed" in closing
    assert 7.99 < seed["epsilon_spent"] <= 8
    plan = Budget(8.0, 0.0111, 20 / 60, 6)  # 60 ** -1.1 is 0.01107
    assert seed["noise_multiplier"] == plan.noise_multiplier()
    assert (seed["delta"], seed["sampling_rate"], seed["clip"]) == (0.0111, 20 / 60, 0.5)
    assert seed["accountant"] == "rdp"
    assert seed["neighbours"].startswith("one image added to or removed from the 60 that are")
    assert seed["noise"].startswith("seeded: noise and sampling follow from the seed")
    config = json.loads((folder / "result.json").read_text())["config"]
    assert (config["privacy"]["delta"], config["privacy"]["noise"]) == (0.0111, "seeded")
    assert config["data"]["mean"] == [0.5] * 3, "not that of the training images"
    assert rows(folder)[1] != rows(folder)[3]
    assert "-eps8-" in folder.name
    answer = gnexp("measure", "gradients_at=[2,4]", "what=[gradients,covariance]", "workers=1")
    assert answer.code == 0
    assert "left out, its training images are outside the privacy budget" in answer.out
    assert not list(folder.glob("gradients.csv")) + list(folder.glob("covariance.csv"))


class Stop(BaseException):
    """What no `except Exception` catches, as a kill would not."""


@pytest.fixture
def stopped(gnexp, monkeypatch):
    """Train until `stops` says so of a state: before it is stored, or after."""

    def run(words, stops, before=False):
        stored = trainer.save_states

        def save(run, states):
            stop = stops(states[0])
            if not (stop and before):
                stored(run, states)
            if stop:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(trainer, "save_states", save)
            with pytest.raises(Stop):
                gnexp("train", *words)

    return run


def test_a_private_run_that_was_stopped_ends_with_the_numbers_it_would_have_had(gnexp, stopped):
    words = (*QUICK, "checkpoint_minutes=0")
    assert gnexp("train", *words, "study=whole").code == 0
    stopped((*words, "study=stopped"), lambda state: "updates" not in state)  # an epoch's end
    stopped((*words, "study=stopped"), lambda state: state.get("updates") == 1)  # in the next
    (whole,), (again,) = runs("results/whole"), runs("results/stopped")
    state = torch.load(again / "checkpoint.pt", weights_only=True)["0"]
    assert (state["epoch"], state["updates"]) == (1, 1)
    assert gnexp("train", *words, "study=stopped").code == 0
    assert rows(whole) == rows(again)
    states = [torch.load(f / "checkpoint.pt", weights_only=True)["0"] for f in (whole, again)]
    for name, weights in states[0]["model"].items():
        assert torch.equal(weights, states[1]["model"][name]), name
    assert numbers(whole)["0"]["epsilon_spent"] == numbers(again)["0"]["epsilon_spent"]


SECRET = (*QUICK, "privacy.noise=secret", "checkpoint_minutes=0")


def test_secret_runs_of_one_seed_differ_and_store_nothing_to_repeat_them(gnexp, stopped):
    """Stopped within an epoch, one folder gives two ends: what it holds does not decide them."""
    stopped((*SECRET, "study=first"), lambda state: state.get("updates"))
    (folder,) = runs("results/first")
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["0"]
    assert (state["updates"], state["sums"][2:]) == (1, [20, 20]), "not how many were drawn"
    shutil.copytree("results/first", "results/second")
    for study in ("first", "second"):
        answer = gnexp("train", *SECRET, f"study={study}")
        assert answer.code == 0, answer.err
        told = "noise and sampling were drawn anew from epoch 1, update 2 on: privacy.noise=secret"
        assert told in answer.out + answer.err
        (seed,) = numbers(runs(f"results/{study}")[0]).values()
        assert told in seed["note"]
        assert seed["noise"].startswith("secret: noise and sampling are from the system's entropy")
    folders = [runs(f"results/{study}")[0] for study in ("first", "second")]
    weights = [torch.load(f / "checkpoint.pt", weights_only=True)["0"]["model"] for f in folders]
    assert not torch.equal(weights[0]["fc.weight"], weights[1]["fc.weight"])
    # Six updates made these weights, whatever else was made and lost before.
    from opacus.accountants import RDPAccountant

    accountant = RDPAccountant()
    accountant.history = [(seed["noise_multiplier"], 20 / 60, 6)]
    bound = accountant.get_epsilon(0.0111, alphas=list(dp_budget.ORDERS))
    assert seed["epsilon_spent"] == pytest.approx(bound, rel=1e-9)
    assert seed["epsilon_spent"] <= 8


def test_what_a_secret_run_has_shown_is_stored_and_so_never_drawn_again(gnexp, stopped):
    """Else epsilon would count an epoch once whose accuracy was seen twice."""
    seen = {}
    for noise in ("seeded", "secret"):
        words = (*QUICK, f"privacy.noise={noise}", f"study={noise}")
        stopped(words, lambda state: not state.get("updates"), before=True)
        (folder,) = runs(f"results/{noise}")
        seen[noise] = len(rows(folder)) if (folder / "metrics.csv").exists() else 0
    assert seen == {"seeded": 1, "secret": 0}
    assert gnexp("train", *QUICK, "privacy.noise=secret", "study=secret").code == 0
    assert len(rows(runs("results/secret")[0])) == 2


def test_delta_is_part_of_the_name_and_follows_from_the_images_that_are_trained_on(gnexp):
    quick = [word for word in QUICK if not word.startswith(("data.train", "epochs"))]
    for count, more in ((60, ()), (60, ("privacy.delta=0.0111",)), (80, ())):
        assert gnexp("train", *quick, "epochs=1", f"data.train_limit={count}", *more).code == 0
    stored = [json.loads((f / "result.json").read_text())["config"]["privacy"] for f in runs()]
    # Typed, the delta of 60 images is the same run.
    assert sorted(each["delta"] for each in stored) == [float(f"{80**-1.1:.3g}"), 0.0111]


def test_a_norm_that_mixes_examples_is_refused_with_the_reason(gnexp):
    answer = gnexp("train", "-m", *QUICK, "norm=bn,gn")
    assert answer.code == 2
    (sentence,) = answer.err.strip().splitlines()
    assert "norm=bn excludes privacy=dpsgd" in sentence
    assert "output of norm1 for one example depends on the others" in sentence
    assert "use a norm" in sentence
    assert not Path("results").exists()


class Friendly(nn.GroupNorm):
    def __init__(self, channels):
        super().__init__(2, channels)


class Mixing(Friendly):
    def forward(self, x):
        return super().forward(x) + x.mean(dim=0)


class Counting(Friendly):
    def __init__(self, channels):
        super().__init__(channels)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += len(x)
        return super().forward(x)


class Noisy(Friendly):
    def forward(self, x):
        return super().forward(x) * (1 + 0.1 * torch.randn(x.shape[1:]))


class Borrowing(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.inner = nn.GroupNorm(2, channels)

    def forward(self, x):  # uses the inner layer's weight behind its back
        return self.inner(x) * self.inner.weight[:, None, None]


@pytest.mark.parametrize("mapped", [False, True], ids=["hooks", "func"])
def test_an_own_norm_is_refused_when_its_gradients_are_missed_and_only_then(mapped):
    missed = None if mapped else "gradients of"
    reasons = {Friendly: None, Counting: "buffer", Noisy: "", Borrowing: missed}
    for norm, reason in reasons.items():
        told = why_no_private_gradient(build_model("resnet8", norm, 10, 8), *batch(3), mapped)
        assert (told is None) == (reason is None), (norm, told)
        assert (reason or "") in (told or ""), norm


def test_an_own_norm_that_mixes_is_refused_whatever_its_name(gnexp):
    answer = gnexp("train", *QUICK, f"norm._target_={__name__}.Mixing")
    assert answer.code == 2
    (sentence,) = answer.err.strip().splitlines()
    assert "norm=Mixing excludes privacy=dpsgd" in sentence
    assert "depends on the others in its batch" in sentence


def test_without_opacus_one_sentence_says_how_to_get_it(gnexp, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ImportError):
        importlib.import_module("opacus")
    answer = gnexp("train", *QUICK)
    assert answer.code == 2
    (sentence,) = answer.err.strip().splitlines()
    assert "pip install 'gnexp[dp]'" in sentence
    assert gnexp("train", *[w for w in QUICK if w != "privacy=dpsgd"], "gradients=0").code == 0


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("privacy=dpsdg", "did you mean dpsgd"),
        ("privacy.epsilon=1e-7", "cannot be kept"),
        ("privacy.delta=0.017", "=0.017 must be below 1 / 60 training images = 0.0167"),
    ],
)
def test_a_mistake_gets_one_sentence(gnexp, typed, told):
    words = [w for w in QUICK if w.partition("=")[0] != typed.partition("=")[0]]
    delta = ["privacy.delta=1e-5"] if "e-7" in typed else []
    answer = gnexp("train", *words, *delta, typed)
    assert answer.code == 2
    (sentence,) = answer.err.strip().splitlines()
    assert told in sentence
    assert not Path("results").exists()


def config_of(keys=None, **privacy):
    return TrainConfig(
        norm={"name": "gn", "eps": 1e-5},
        privacy=PrivacyConfig(**privacy) if privacy else PrivacyConfig(),
        **(keys or {}),
    )


DPSGD = {"name": "dpsgd", "epsilon": 8.0, "clip": 1.0, "noise": "seeded"}


NOT_PRIVATE = {"name": "none", "clip": None, "noise": None}
NONSENSE = [
    ({"name": "dp"}, "privacy.name=dp is not one of none, dpsgd"),
    *(
        ({"epsilon": epsilon}, f"privacy.epsilon={epsilon} must be a positive number")
        for epsilon in (-1.0, math.nan)
    ),
    ({"delta": 0.0}, "privacy.delta=0.0 must be above 0 and below 1"),
    ({"clip": 0.0}, "privacy.clip=0.0 must be a positive number"),
    ({"noise": "random"}, "privacy.noise=random is not one of seeded, secret"),
    (NOT_PRIVATE, "epsilon=8.0 needs privacy=dpsgd: without it training"),
]
NOT_DONE = [
    ({"gradients": 16}, "gradients=16 excludes privacy=dpsgd"),
    ({"covariance": True}, "outside the privacy budget"),
    ({"precision": "bf16"}, "use precision=fp32"),
    ({"execution": "compile"}, "use execution=auto"),
]


@pytest.mark.parametrize(
    ("keys", "privacy", "told"),
    [({}, p, told) for p, told in NONSENSE] + [(k, {}, told) for k, told in NOT_DONE],
)
def test_a_budget_that_makes_no_sense_or_cannot_be_kept_gets_one_sentence(keys, privacy, told):
    assert problems(config_of(**DPSGD)) == problems(config_of(keys)) == []
    (sentence,) = problems(config_of(keys, **{**DPSGD, **privacy}))
    assert told in sentence


def test_every_budget_has_a_name_of_its_own_and_is_restored_as_it_was_stored():
    others = ({}, {"epsilon": 1.0}, {"delta": 1e-5}, {"clip": 0.5})
    configs = [resolve(config_of())]
    configs += [resolve(config_of(**{**DPSGD, **other})) for other in others]
    assert len({run_name(config, "images") for config in configs}) == 5
    assert [restore(as_dict(config)) for config in configs] == configs


@pytest.fixture
def no_figures(monkeypatch):
    """Reports without their figures, which take longest."""
    monkeypatch.setattr(study_report, "write_figures", lambda *_: ({}, []))


def test_a_grid_over_epsilon_gives_a_cell_to_each(gnexp, no_figures):
    plain = [word for word in QUICK if word != "privacy=dpsgd"]
    assert gnexp("train", *plain, "gradients=0").code == 0
    answer = gnexp("train", "-m", *QUICK, "norm=gn,ln", "privacy.epsilon=1,8")
    assert answer.code == 0, answer.err
    found = cells(load_study("results/main").runs)
    assert [(c.key["norm"], c.key["epsilon"]) for c in found] == [
        *[("gn", "none"), ("gn", 1), ("gn", 8)],
        *[("ln", 1), ("ln", 8)],
    ]
    labels = {line.label for line in series(found)}
    assert {"GN(8), epsilon=1", "GN(8), epsilon=8", "GN(8), not private"} < labels
    with open("results/main/report/accuracy.csv") as file:
        assert {row["epsilon"] for row in csv.DictReader(file)} == {"none", "1", "8"}
    with open("results/main/report/runs.csv") as file:
        spent = [(r["epsilon"], r["epsilon_spent"]) for r in csv.DictReader(file)]
    assert [bool(value) for epsilon, value in spent] == [e != "none" for e, _ in spent]
    assert all(float(value) <= float(epsilon) for epsilon, value in spent if value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_an_update_is_the_same_and_noise_repeats():
    x, y = batch(7)
    cpu = moved(step_of(model(), clip=0.5), x, y)
    cuda = moved(step_of(model().cuda(), clip=0.5, passes=3), x.cuda(), y.cuda())
    torch.testing.assert_close(cuda.cpu(), cpu, rtol=0, atol=1e-9)  # float64, other kernels
    noisy = [moved(step_of(model().cuda(), noise=1.0), x.cuda(), y.cuda()) for _ in range(2)]
    torch.testing.assert_close(*noisy, rtol=0, atol=1e-9)
