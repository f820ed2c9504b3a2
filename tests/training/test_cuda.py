"""The same experiment on a GPU; skipped where there is none."""

import copy
import json
from pathlib import Path

import pytest
import torch
from replicas import distance, started
from torch import nn
from torch.nn import functional as F

from gnexp.data.device_images import DeviceDataset
from gnexp.data.seeding import generator
from gnexp.data.sources import load_images
from gnexp.models.resnet import build_model, initialize
from gnexp.norms.registry import NORMS
from gnexp.training.cuda_graph import GraphStep, fastest
from gnexp.training.loop import TrainSettings, train_epochs
from gnexp.training.precision import matrix_precision
from gnexp.training.stacked_step import StackedStep

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

FLOAT32 = 1e-4  # relative, of a whole gradient: other kernels sum in another order
FLOAT64 = 1e-10  # relative, after 20 updates
UPDATES = 20
LRS = (0.1, 0.1, 0.3)
QUICK = ("model=resnet8", "data.train_limit=200", "data.test_limit=40", "epochs=2", "gradients=0")


def net(norm, seed=0, device="cpu", dtype=torch.float32):
    return started(norm, seed, dtype=dtype, num_classes=10).to(device)


def data(replicas, updates, n, dtype=torch.float32):
    draws = torch.Generator().manual_seed(0)
    x = torch.randn(replicas, updates, n, 3, 32, 32, generator=draws).to("cuda", dtype)
    return x, torch.randint(0, 10, (replicas, updates, n), generator=draws).cuda()


def step_of(models, batch, **more):
    return StackedStep(models, batch, momentum=0.9, weight_decay=5e-4, **more)


def branches(norm, batch, count=3, dtype=torch.float32, **more):
    return GraphStep([step_of([net(norm, r, "cuda", dtype)], batch, **more) for r in range(count)])


def states(step, x, y, lrs=LRS):
    """Train by the linear rule, twice as many calls as one, and return every replica's state."""
    rates = [[lr * x.shape[2] / 128 for lr in lrs]] * (x.shape[1] // 2)
    for part in (slice(0, len(rates)), slice(len(rates), None)):
        step.run(x[:, part], y[:, part], rates)
    return [copy.deepcopy(step.model(r).state_dict()) for r in range(len(lrs))]


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_gradient_on_a_gpu_is_that_of_the_cpu(norm):
    x = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    y = torch.arange(8)
    gradients = []
    for device in ("cpu", "cuda"):
        model = net(norm).train().to(device)
        with matrix_precision("fp32"):  # PyTorch's own default for convolutions is TF32
            F.cross_entropy(model(x.to(device)), y.to(device)).backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in model.parameters()]))
    cpu, cuda = gradients
    assert (cuda - cpu).norm() <= FLOAT32 * cpu.norm()


@pytest.mark.parametrize(("batch", "update_batch"), [(1, 1), (4, 4), (2, 8)])
@pytest.mark.parametrize("norm", NORMS)
def test_a_captured_update_is_the_eager_one_with_buffers_as_if_never_warmed_up(
    norm, batch, update_batch
):
    x, y = data(3, UPDATES, update_batch, torch.float64)
    captured = states(branches(norm, batch, dtype=torch.float64), x, y)
    stack = step_of([net(norm, r, "cuda", torch.float64) for r in range(3)], batch, lrs=LRS)
    stacked = states(stack, x, y)
    for r in range(3):
        alone = step_of([net(norm, r, "cuda", torch.float64)], batch, one_pass=False)
        (eager,) = states(alone, x[r : r + 1], y[r : r + 1], LRS[r : r + 1])
        assert distance(captured[r], eager) < FLOAT64
        assert distance(stacked[r], eager) < FLOAT64


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_captured_update_learns_in_every_precision_and_layout(precision, channels_last):
    x, y = data(2, 2, 16)
    step = branches("bn", 16, 2, precision=precision, channels_last=channels_last)
    losses = []
    for _ in range(15):
        step.run(x, y, [[0.02, 0.02]] * 2)
        losses.append(step.take_sums()[0][0])
    assert losses[-1] < 0.8 * losses[0]


def test_replaying_an_epoch_never_waits_for_the_gpu():
    x, y = data(2, 4, 2)
    step = branches("bn", 2, 2)
    step.run(x, y, [[0.1, 0.1]] * 4)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            step._at.zero_()
            step._replay()
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_the_fastest_layout_is_found_and_leaves_no_trace_of_the_trial():
    x, y = data(3, UPDATES, 4, torch.float64)

    def candidate(channels_last):
        return lambda: branches("bn", 4, dtype=torch.float64, channels_last=channels_last)

    chosen = fastest([candidate(False), candidate(True)], x, y, updates=10**6)
    assert chosen.take_sums() == [(0.0, 0)] * 3
    tried, fresh = states(chosen, x, y), states(branches("bn", 4, dtype=torch.float64), x, y)
    for ours, theirs in zip(tried, fresh, strict=True):
        assert distance(ours, theirs) < FLOAT64


class Noisy(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None] + torch.rand_like(x)


def test_random_numbers_differ_from_replay_to_replay_and_follow_the_seed():
    x, y = data(1, 1, 4)

    def losses(seed):
        model = build_model("resnet8", Noisy, 10, 8)
        initialize(model, generator(0, "test"))
        step = GraphStep([step_of([model.cuda()], 4)])
        step.run(x, y, [[0.0]])
        step.take_sums()
        torch.cuda.manual_seed(seed)
        found = []
        for _ in range(3):
            step.run(x, y, [[0.0]])
            found.append(step.take_sums()[0][0])
        return found

    assert len(set(losses(0))) == 3
    assert losses(0) == pytest.approx(losses(0), rel=1e-5)
    assert losses(0) != pytest.approx(losses(1), rel=1e-5)


def results(study="main"):
    return [json.loads(p.read_text()) for p in Path(f"results/{study}").glob("*/result.json")]


def test_a_run_on_a_gpu_is_stored_and_measured(gnexp):
    words = [w for w in QUICK if not w.startswith("gradients")]
    answer = gnexp("train", *words, "batch=10", "gradients=8", "gradients_at=[1,5]", "device=cuda")
    assert answer.code == 0, answer.err
    assert "test accuracy" in answer.out


def test_a_grid_shares_one_graph_per_batch_size_and_says_so(gnexp):
    answer = gnexp("train", "-m", *QUICK, "norm=bn,gn", "batch=4,10", "seeds=2", "device=cuda")
    assert answer.code == 0, answer.err
    seeds = [seed for result in results() for seed in result["seeds"].values()]
    assert len(seeds) == 8
    assert {(s["execution"], s["stack"]) for s in seeds} == {("cudagraph", 4)}


def test_an_interrupted_run_goes_on_from_its_checkpoint(gnexp, monkeypatch):
    from gnexp.store.run import Run

    class Stop(BaseException):
        pass

    stored = Run.write_checkpoint

    def stop(self, data):
        stored(self, data)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_checkpoint", stop)
        with pytest.raises(Stop):
            gnexp("train", *QUICK, "batch=10", "seeds=2", "device=cuda")
    answer = gnexp("train", *QUICK, "batch=10", "seeds=2", "device=cuda")
    assert answer.code == 0, answer.err
    assert "epoch 1:" not in answer.out
    assert len(results()[0]["seeds"]) == 2


HOST_NORM = """
import torch
from torch import nn


class Host(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None] / (1 + float(x.detach().abs().mean()))
"""


def test_a_norm_that_asks_the_host_falls_back_to_eager_with_the_reason(gnexp, workdir):
    (workdir / "host_norm.py").write_text(HOST_NORM)
    words = (*QUICK, "batch=10", "norm._target_=host_norm.Host", "device=cuda")
    answer = gnexp("train", *words)
    assert answer.code == 0, answer.out + answer.err
    (result,) = results()
    assert result["seeds"]["0"]["execution"] == "eager"
    assert "fell back to eager" in result["seeds"]["0"]["note"]
    # The device still works for what comes after.
    assert gnexp("train", *QUICK, "batch=10", "device=cuda", "study=after").code == 0
    assert results("after")[0]["seeds"]["0"]["execution"] == "cudagraph"


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_replicas_in_a_graph_use_the_memory_of_as_many_alone(norm):
    def peak(count):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        x, y = data(count, 1, 32)
        step = branches(norm, 32, count)
        torch.cuda.reset_peak_memory_stats()
        step.run(x, y, [[0.1] * count])
        return torch.cuda.max_memory_allocated() - before

    peak(1)  # workspaces of the libraries are taken once
    assert peak(4) <= 1.2 * 4 * peak(1)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_training_on_a_gpu_learns_what_it_learns_on_the_cpu(precision):
    images = load_images("shapes10", train_limit=1280, test_limit=500)
    train_settings = TrainSettings(batch=16, update_batch=16, epochs=3, precision=precision)
    final = {}
    for device in ("cpu", "cuda"):
        if device == "cpu" and precision == "tf32":
            continue
        step = step_of([net("gn").to(device)], 16, precision=precision)
        step = GraphStep([step]) if device == "cuda" else step
        *_, (last,) = train_epochs(
            step, DeviceDataset(images, device), train_settings, (0,), (0.2,)
        )
        final[device] = last
    assert final["cuda"].train_loss < 2.25, "better than guessing, ln 10 = 2.30"
    if "cpu" in final:
        assert abs(final["cuda"].train_loss - final["cpu"].train_loss) < 0.15
