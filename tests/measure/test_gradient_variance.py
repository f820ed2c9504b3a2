"""Gradient variance: the measured noise and signal are those of the law the draws follow.

Shape suffixes: N examples, C channels, H, W pixels, K draws, P entries of the flat gradient.
"""

import copy
import math
from contextlib import suppress
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from no_trace import no_trace
from scipy.stats import t as student_t
from torch import nn

from gnexp.measure import gradient_noise
from gnexp.measure.gradient_noise import choose_draws, draws_per_pass, measure_gradients
from gnexp.measure.parameters import parameter_kinds, reported_groups
from gnexp.measure.per_example import find_mixing_layer, per_example_covariance
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS, build_norm

ISOLATING = [name for name, norm in NORMS.items() if "n" not in norm.pools]
OPTIONS = {name: {"num_groups": 2} for name in ("gn", "gn_ws", "evonorm_s0")}
READING = ("brn", "online")  # in a training pass what earlier ones left


class Net(nn.Module):
    """Two convolutions with a norm behind each, the second in a residual branch."""

    def __init__(self, norm, seed: int = 0):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm1 = norm(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm2 = norm(4)
        self.fc = nn.Linear(4, 3)
        rng = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.add_(0.4 * torch.randn(p.shape, generator=rng) - (p if p.ndim > 1 else 0))

    def forward(self, x_NCHW):
        h = F.relu(self.norm1(self.conv1(x_NCHW)))
        h = h + self.norm2(self.conv2(h))
        return self.fc(F.relu(h).mean(dim=(2, 3)))


class Quadratic(nn.Module):
    """Residual w - x: the loss 0.5 |w - x|^2 has the gradient w - x."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w.clone())

    def forward(self, x_NP):
        return self.w - x_NP


def half_square(residual_NP, y_N):
    return 0.5 * residual_NP.square().sum(dim=1).mean()


def net(name: str, dtype: torch.dtype = torch.float64) -> Net:
    return Net(lambda c: build_norm(name, c, **OPTIONS.get(name, {}))).to(dtype)


def resnet(name: str) -> nn.Module:
    norm = partial(build_norm, name, **OPTIONS.get(name, {}))
    model = build_model("resnet8", norm, num_classes=3, width=4)
    initialize(model, torch.Generator().manual_seed(0))
    return model.double()


def population(n: int, dtype: torch.dtype = torch.float64):
    rng = torch.Generator().manual_seed(1)
    x_NCHW = torch.randn(n, 3, 6, 6, generator=rng, dtype=torch.float64)
    # Unlike means and contrasts, so that a batch's statistics differ from each image's own.
    x_NCHW = x_NCHW * (0.5 + torch.rand(n, 3, 1, 1, generator=rng)) + torch.randn(
        n, 3, 1, 1, generator=rng, dtype=torch.float64
    )
    return x_NCHW.to(dtype), torch.randint(0, 3, (n,), generator=rng)


def drawn(x, y, batch: int, k: int, seed: int = 2):
    """k mini-batches, drawn with replacement."""
    rng = torch.Generator().manual_seed(seed)
    picks = [torch.randint(0, len(x), (batch,), generator=rng) for _ in range(k)]
    return [(x[i], y[i]) for i in picks]


def gaussian(k: int, batch: int, mean_P, root_PP, seed: int):
    """k mini-batches of examples ~ N(mean, root root^T)."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.randn(k, batch, len(mean_P), generator=rng, dtype=mean_P.dtype)
    return [(x, None) for x in mean_P + z @ root_PP.T]


def by_name(rows):
    return {row["parameters"]: row for row in rows}


def backward_gradients(model, batches):
    """(K, P) float64, by loop and .backward() on a copy; names and slices of its columns."""
    model = copy.deepcopy(model).train()
    rows = []
    for x, y in batches:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        rows.append(np.concatenate([p.grad.numpy().ravel() for p in model.parameters()]))
    ends = np.cumsum([p.numel() for p in model.parameters()])
    names = [name for name, _ in model.named_parameters()]
    return np.array(rows), {n: range(e - s, e) for n, e, s in zip(names, ends, np.diff([0, *ends]))}


def textbook(g_KP):
    """(noise, signal) by centring, without any running sum."""
    noise = np.var(g_KP, axis=0, ddof=1).sum()
    return noise, np.square(g_KP.mean(axis=0)).sum() - noise / len(g_KP)


ROOT = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [-0.5, 0.3, 1.2]], dtype=torch.float64)
MEAN = torch.tensor([0.2, -0.4, 0.3], dtype=torch.float64)
TRACE = float((ROOT @ ROOT.T).trace())


def quadratic_row(w, k: int, batch: int, seed: int, **options):
    draws = gaussian(k, batch, MEAN, ROOT, seed)
    return measure_gradients(Quadratic(w), draws, k, batch, loss=half_square, **options)[0]


def test_both_estimates_are_right_on_average_and_95_percent_intervals_cover_the_truth():
    truth = {"noise": TRACE / 2, "signal": float(MEAN.square().sum())}
    # 70 draws in 32 blocks: six blocks of three, the others of two
    rows = [quadratic_row(torch.zeros(3).double(), 70, 2, seed) for seed in range(200)]
    assert rows[0]["relative_noise"] == rows[0]["noise"] / rows[0]["signal"]
    assert rows[0]["noise_scale"] == pytest.approx(2 * rows[0]["relative_noise"], rel=1e-12)
    for name, value in truth.items():
        estimates = np.array([row[name] for row in rows])
        assert abs(estimates.mean() - value) < 3 * estimates.std() / math.sqrt(len(rows))
        covered = np.mean([row[f"{name}_lo"] <= value <= row[f"{name}_hi"] for row in rows])
        assert 0.90 <= covered <= 0.99, name


def test_at_zero_true_gradient_the_signal_is_zero_on_average_and_sometimes_negative():
    rows = [quadratic_row(MEAN, 24, 2, seed, blocks=8) for seed in range(100)]
    signals = np.array([row["signal"] for row in rows])
    assert abs(signals.mean()) < 3 * signals.std() / math.sqrt(len(signals))
    assert 0.3 < np.mean(signals < 0) < 0.8
    below = [row for row in rows if row["signal"] < 0]
    assert all(row["relative_noise"] == row["noise_scale"] == math.inf for row in below)


def test_a_noise_a_hundred_million_times_below_the_signal_survives_float32():
    mean_P = torch.linspace(1.0, 2.0, 50)
    draws = gaussian(200, 1, mean_P, 1e-4 * torch.eye(50), seed=5)
    model = Quadratic(torch.zeros(50))
    row = measure_gradients(model, draws, 200, 1, loss=half_square)[0]
    noise, signal = textbook(np.stack([-x[0].double().numpy() for x, _ in draws]))
    assert noise < 1e-8 * signal
    assert row["noise"] == pytest.approx(noise, rel=1e-4)  # float32 gradients
    assert row["signal"] == pytest.approx(signal, rel=1e-6)  # float32 gradients


@pytest.mark.parametrize("k", [101, 20])  # blocks of 3 and 4, of a single draw
def test_streamed_blocks_equal_the_formulas_on_stacked_gradients(k):
    model, batches = net("bn").eval(), drawn(*population(24), batch=4, k=k)
    g_KP, columns = backward_gradients(model, batches)
    rows = by_name(measure_gradients(model, iter(batches), k, 4))
    groups = reported_groups(model)
    assert list(rows) == list(groups)
    blocks = min(32, k)
    sizes = np.array([len(range(b, k, blocks)) for b in range(blocks)])
    for name, members in groups.items():
        g = g_KP[:, [i for member in members for i in columns[member]]]
        left_out = [textbook(np.delete(g, range(b, k, blocks), axis=0)) for b in range(blocks)]
        for what, full, without in zip(("noise", "signal"), textbook(g), zip(*left_out)):
            assert rows[name][what] == pytest.approx(full, rel=1e-10)  # float64
            spread = np.mean((k / sizes - 1) * (full - np.array(without)) ** 2) ** 0.5
            half_width = student_t.ppf(0.975, blocks - 1) * spread
            assert rows[name][f"{what}_lo"] == pytest.approx(full - half_width, rel=1e-8)
            assert rows[name][f"{what}_hi"] == pytest.approx(full + half_width, rel=1e-8)


@pytest.fixture
def stacked(monkeypatch):
    """Collects how many copies each stack that a measurement makes holds."""
    sizes = []

    class Recorded(gradient_noise.Stack):
        def __init__(self, models):
            sizes.append(len(models))
            super().__init__(models)

    monkeypatch.setattr(gradient_noise, "Stack", Recorded)
    return sizes


@pytest.mark.parametrize(
    ("batch", "k", "blocks", "sizes"),
    [
        (1, 21, 4, {10}),  # the last draw alone, and several draws of a pass in one block
        (40, 16, 32, {7, 2}),
        (300, 4, 4, set()),
    ],
)
@pytest.mark.parametrize(
    ("build", "name"),
    [*((resnet, name) for name in ("bn", *READING)), (net, "gn")],
)
def test_draws_that_share_a_pass_give_the_numbers_of_one_at_a_time(
    name, build, batch, k, blocks, sizes, stacked
):
    sizes = sizes if name not in READING else set()
    model, batches = build(name), drawn(*population(24), batch, k)
    g_KP, columns = backward_gradients(model, batches)
    rows = by_name(measure_gradients(model, iter(batches), k, batch, blocks))
    assert set(stacked) == sizes
    for group, members in reported_groups(model).items():
        noise, signal = textbook(g_KP[:, [i for member in members for i in columns[member]]])
        assert rows[group]["noise"] == pytest.approx(noise, rel=1e-9)  # float64
        # A signal is a difference, known to the digits of its terms.
        assert rows[group]["signal"] == pytest.approx(signal, rel=1e-9, abs=1e-9 * noise / k)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.Dropout(0.3),  # random
        lambda: nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1)),  # reads its buffers
    ],
)
def test_draws_that_depend_on_chance_or_on_those_before_pass_one_at_a_time(layer, stacked):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model, batches = model.double(), drawn(*population(24), batch=2, k=12)
    torch.manual_seed(3)
    noise, signal = textbook(backward_gradients(model, batches)[0])
    torch.manual_seed(3)
    row = measure_gradients(model, batches, 12, 2)[0]
    assert stacked == []
    assert row["noise"] == pytest.approx(noise, rel=1e-9)  # float64
    assert row["signal"] == pytest.approx(signal, rel=1e-9)  # float64


def test_freezing_a_parameter_takes_its_rows_and_changes_no_other():
    model, batches = resnet("bn"), drawn(*population(24), batch=2, k=12)
    before = by_name(measure_gradients(model, batches, 12, 2))
    model.norm1.requires_grad_(False)
    after = by_name(measure_gradients(model, batches, 12, 2))
    assert "norm1" not in after
    for name in ("conv1", "conv", "fc"):
        assert after[name]["noise"] == pytest.approx(before[name]["noise"], rel=1e-9)  # float64


def test_a_parameter_that_the_loss_never_meets_has_rows_of_zeros():
    model = net("gn")
    model.spare = nn.Linear(2, 2).double()
    rows = by_name(measure_gradients(model, drawn(*population(24), 2, 12), 12, 2))
    assert rows["spare"]["noise"] == rows["spare"]["signal"] == 0.0
    assert rows["fc"]["noise"] > 0


def test_mini_batches_drawn_from_the_global_generator_are_those_of_a_plain_loop():
    def random_batches(seen):
        for _ in range(12):
            seen.append(torch.randn(2, 3, 8, 8))
            yield seen[-1], torch.randint(0, 3, (2,))

    model, looped, measured = resnet("gn").float(), [], []
    torch.manual_seed(6)
    list(random_batches(looped))
    torch.manual_seed(6)
    measure_gradients(model, random_batches(measured), 12, 2)
    assert torch.equal(torch.stack(looped), torch.stack(measured))


@pytest.mark.parametrize(
    ("k", "shape", "draws"),
    [
        (64, (1, 3, 32, 32), 10),
        (4, (1, 3, 32, 32), 4),
        (64, (8, 3, 16, 16), 5),
        (64, (1, 3, 224, 224), 1),
    ],
)
def test_on_a_cpu_draws_share_a_pass_while_they_are_small(k, shape, draws):
    assert draws_per_pass(k, torch.empty(shape)) == draws


def test_noise_times_batch_is_the_per_example_trace_when_examples_do_not_mix():
    model = net("gn", torch.float32)
    x_NCHW, y_N = population(24, torch.float32)
    trace = {row["parameters"]: row["trace"] for row in per_example_covariance(model, x_NCHW, y_N)}
    for batch in (1, 8):
        batches = drawn(x_NCHW, y_N, batch, k=256, seed=10 + batch)
        rows = by_name(measure_gradients(model, batches, 256, batch))
        assert list(rows) == list(trace)
        for parameters in ("all", *parameter_kinds(model)):
            row = rows[parameters]
            # Twice the 95 % interval: twenty comparisons are made, none may fail by chance.
            half_width = row["noise_hi"] - row["noise_lo"]
            assert abs(row["noise"] - trace[parameters] / batch) < half_width, (batch, parameters)
            assert half_width < 0.8 * row["noise"]  # or the comparison would mean nothing


@pytest.mark.parametrize(("name", "chunk"), [*((name, 5) for name in ISOLATING), ("gn", 64)])
def test_the_per_example_trace_is_that_of_one_backward_pass_per_example(name, chunk):
    model = net(name)
    x_NCHW, y_N = population(12)
    g_NP, columns = backward_gradients(
        model, [(x_NCHW[i : i + 1], y_N[i : i + 1]) for i in range(12)]
    )
    rows = per_example_covariance(model, x_NCHW, y_N, chunk=chunk)
    groups = reported_groups(model)
    assert [row["parameters"] for row in rows] == list(groups)
    for row in rows:
        g = g_NP[:, [i for member in groups[row["parameters"]] for i in columns[member]]]
        assert row["n"] == 12
        assert row["trace"] == pytest.approx(np.var(g, axis=0).sum(), rel=1e-10)  # float64


class Sloppy(nn.Module):
    """A user's norm with bad manners: random, counts its calls in a buffer it rebinds."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x_NCHW):
        self.calls = self.calls + 1
        return self.gamma * F.dropout(x_NCHW, 0.2, self.training)


def interrupted(batches):
    yield from batches
    raise RuntimeError("the disk is full")


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, Sloppy])
def test_measuring_leaves_no_trace_even_when_the_data_fail_midway(norm):
    model = Net(norm)
    x_NCHW, y_N = population(24, torch.float32)
    F.cross_entropy(model(x_NCHW), y_N).backward()
    model.fc.bias.grad = None
    model.conv1.weight.requires_grad_(False)
    model.eval().norm1.train()
    batches = drawn(x_NCHW, y_N, batch=2, k=8)
    with no_trace(model):
        measure_gradients(model, batches, 8, 2)
    with no_trace(model), pytest.raises(RuntimeError, match="disk is full"):
        measure_gradients(model, interrupted(batches[:5]), 8, 2)
    with no_trace(model), suppress(RuntimeError):  # torch.func refuses running statistics
        per_example_covariance(model, x_NCHW, y_N)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_draws_never_wait_for_the_device_and_agree_with_the_cpu():
    model = net("bn")
    batches = drawn(*population(24), batch=2, k=64)
    expected = measure_gradients(model, batches, 64, 2)
    model, batches = model.cuda(), [(x.cuda(), y.cuda()) for x, y in batches]
    random = torch.cuda.get_rng_state()

    def watched():
        for i, (x, y) in enumerate(batches):
            # Not after the last draw: the estimates are fetched then.
            torch.cuda.set_sync_debug_mode("error" if 0 < i < 63 else "default")
            yield x, y

    try:
        measured = measure_gradients(model, watched(), 64, 2)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(random, torch.cuda.get_rng_state())
    for a, b in zip(expected, measured):
        assert a["noise"] == pytest.approx(b["noise"], rel=1e-8)  # float64


class OwnBatchNorm(nn.Module):
    """Mixes examples, and no type or buffer gives it away."""

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x_NCHW):
        return self.gamma * (x_NCHW - x_NCHW.mean(dim=(0, 2, 3), keepdim=True))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, OwnBatchNorm])
def test_a_norm_that_mixes_examples_is_found_by_what_it_does_even_behind_zero_weights(norm):
    model = Net(norm)
    nn.init.zeros_(model.fc.weight)
    assert find_mixing_layer(model, population(8, torch.float32)[0]) == "norm1"


def test_zero_gamma_gives_rows_of_exact_zeros_for_what_lies_behind_it():
    model = net("gn", torch.float32)
    nn.init.zeros_(model.norm2.weight)
    x_NCHW, y_N = population(24, torch.float32)
    row = by_name(measure_gradients(model, drawn(x_NCHW, y_N, 2, 16), 16, 2))["conv2"]
    for key in ("noise", "noise_lo", "noise_hi", "signal", "signal_lo", "signal_hi"):
        assert row[key] == 0.0, key
    assert math.isnan(row["relative_noise"])
    assert math.isnan(row["noise_scale"])
    assert row["weight_norm"] == pytest.approx(model.conv2.weight.norm().item(), rel=1e-6)
    assert by_name(per_example_covariance(model, x_NCHW, y_N))["conv2"]["trace"] == 0.0


def test_rows_come_as_all_then_kinds_then_layers():
    batches = iter(drawn(*population(8), batch=2, k=5))
    names = [row["parameters"] for row in measure_gradients(net("gn"), batches, 4, 2)]
    assert len(list(batches)) == 1, "exactly k are taken"
    assert names[:5] == ["all", "gamma", "beta", "conv", "linear"]
    assert names[5:] == ["conv1", "norm1", "conv2", "norm2", "fc"]
    assert parameter_kinds(net("gn"))["gamma"] == ["norm1.weight", "norm2.weight"]
    assert parameter_kinds(net("gn"))["linear"] == ["fc.weight", "fc.bias"]
    assert "beta" not in parameter_kinds(Net(Sloppy))  # it has none
    assert parameter_kinds(Net(Sloppy))["gamma"] == ["norm1.gamma", "norm2.gamma"]


def test_a_layer_with_the_name_of_another_row_has_a_row_of_its_own_and_hides_none():
    names = ("conv", "gamma", "all", "(model)", "layer:gamma", "usual")
    model = nn.ModuleDict({name: nn.BatchNorm2d(2) for name in names})
    model.register_parameter("own", nn.Parameter(torch.ones(2, 2)))
    groups = reported_groups(model)
    own = [f"layer:{name}" for name in names[:-1]]
    assert [*groups] == ["all", "gamma", "beta", "(model)", *own, "usual"]
    assert groups["layer:layer:gamma"] == ["layer:gamma.weight", "layer:gamma.bias"]
    assert (len(groups["all"]), len(groups["gamma"]), groups["(model)"]) == (13, 6, ["own"])


def test_the_default_number_of_draws_is_a_thirtieth_of_the_training_within_bounds():
    assert choose_draws(30_000) == 1000
    assert choose_draws(10) == 64
    assert choose_draws(10**7) == 4096
