"""Training on several devices: what each norm sees of an update, and what becomes of processes."""

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnexp.models.resnet import build_model
from gnexp.norms.registry import build_norm
from gnexp.store.run import Run
from gnexp.training.distributed.leader import channel_to, close_devices
from gnexp.training.distributed.step import ParallelStep, shares

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("gradients=0", "batch=2", "device=cpu")
needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")


@pytest.fixture(scope="module", autouse=True)
def no_process_is_left():
    yield
    close_devices()


@pytest.fixture
def channel():
    """The channel to one follower, a process of its own, which the tests of steps share."""
    return channel_to(2, torch.device("cpu"))


def network(norm, seed=0):
    """Return a float64 ResNet-8 whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return build_model("resnet8", lambda c: build_norm(norm, c), 10, 8).double()


def updates(replicas, count, images):
    """Return images (R, U, N, 3, 8, 8) and labels (R, U, N)."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(replicas, count, images, 3, 8, 8, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 10, (replicas, count, images), generator=draw)


OPTIONS = {"momentum": 0.9, "weight_decay": 5e-4}


def trained_plainly(model, x_UN, y_UN, batches, rate=0.1):
    """Train by PyTorch's own SGD; the batches, lists of examples, follow each other."""
    model = copy.deepcopy(model).train()
    sgd = torch.optim.SGD(model.parameters(), lr=rate, nesterov=True, **OPTIONS)
    for x_N, y_N in zip(x_UN, y_UN, strict=True):
        sgd.zero_grad()
        for batch in batches:
            loss = F.cross_entropy(model(x_N[batch]), y_N[batch], reduction="sum") / len(y_N)
            loss.backward()
        sgd.step()
    return model


def trained_on_two(channel, models, x, y, rate=0.1):
    """Train in batches of 2 on each of two devices; returns the step."""
    step = ParallelStep(channel, copy.deepcopy(models), 2, *OPTIONS.values())
    step.run(x, y, [[rate] * len(models)] * x.shape[1])
    return step


def largest_difference(model, other, buffers=True):
    states = model.state_dict(), other.state_dict()
    names = set(states[0]) if buffers else {name for name, _ in model.named_parameters()}
    names = [name for name in names if not name.endswith("num_batches_tracked")]
    assert names
    return max((states[0][n] - states[1][n]).abs().max().item() for n in names)


@pytest.mark.parametrize("norm", ["syncbn", "gn"])
def test_two_batches_of_two_are_one_of_four_to_synchronized_bn_and_to_gn(channel, norm):
    models = [network(norm, seed) for seed in (0, 1)]
    x, y = updates(2, 4, images=4)
    step = trained_on_two(channel, models, x, y)
    for replica, model in enumerate(models):
        if norm == "syncbn":  # the layer that PyTorch has, with the same weights
            plain = build_model("resnet8", nn.BatchNorm2d, 10, 8).double()
            plain.load_state_dict(model.state_dict())
            model = plain
        alone = trained_plainly(model, x[replica], y[replica], [[0, 1, 2, 3]])
        # float64: 4 updates of rounding
        assert largest_difference(step.model(replica), alone) < 1e-9


def test_a_layer_that_learns_slower_does_so_on_every_device(channel):
    model, (x, y) = network("none"), updates(1, 1, images=4)
    slow = copy.deepcopy(model)
    for layer in slow.modules():
        if not isinstance(layer, nn.Conv2d | nn.Linear):
            layer.rate_factor = 0.1
    full, tenth = (trained_on_two(channel, [m], x, y).model(0).state_dict() for m in (model, slow))
    before = model.state_dict()
    for name, weights in before.items():
        moved, expected = tenth[name] - weights, full[name] - weights
        expected = expected / 10 if "norm" in name else expected
        torch.testing.assert_close(moved, expected, rtol=0, atol=1e-12)  # float64
    follower = trained_on_two(channel, [slow], *updates(1, 3, images=4))
    alone = copy.deepcopy(slow).train()
    groups = [
        {"params": [p], "lr": 0.01 if "norm" in name else 0.1}
        for name, p in alone.named_parameters()
    ]
    sgd = torch.optim.SGD(groups, lr=0.1, nesterov=True, **OPTIONS)
    for x_N, y_N in zip(*(each[0] for each in updates(1, 3, images=4)), strict=True):
        sgd.zero_grad()
        F.cross_entropy(alone(x_N), y_N).backward()
        sgd.step()
    assert largest_difference(follower.model(0), alone) < 1e-9  # float64


def test_bn_sees_the_batch_of_its_own_device(channel):
    model = network("bn")
    x, y = updates(1, 4, images=4)
    found = trained_on_two(channel, [model], x, y).model(0)
    accumulated = trained_plainly(model, x[0], y[0], [[0, 2], [1, 3]])
    together = trained_plainly(model, x[0], y[0], [[0, 1, 2, 3]])
    assert largest_difference(found, accumulated, buffers=False) < 1e-9  # float64
    assert largest_difference(found, together, buffers=False) > 1e-3


def test_running_statistics_are_the_mean_over_devices(channel):
    model, rate = network("bn"), 1e-300  # so that no weight moves
    x, y = updates(1, 3, images=4)
    found = trained_on_two(channel, [model], x, y, rate).model(0)
    devices = [trained_plainly(model, x[0], y[0], [some], rate) for some in ([0, 2], [1, 3])]
    for name, value in found.named_buffers():
        expected = sum(d.get_buffer(name).double() for d in devices) / 2
        torch.testing.assert_close(value.double(), expected, rtol=1e-12, atol=1e-12)


def test_batches_beyond_one_for_each_device_follow_each_other(channel):
    x, y = updates(1, 2, images=8)  # batch n % 4: two for each device
    bn, syncbn = network("bn"), network("syncbn")
    found = trained_on_two(channel, [bn], x, y).model(0)
    batches = [[n, n + 4] for n in range(4)]
    assert largest_difference(found, trained_plainly(bn, x[0], y[0], batches), False) < 1e-9
    found = trained_on_two(channel, [syncbn], x, y).model(0)
    joint = [batches[0] + batches[2], batches[1] + batches[3]]  # the first of each device, ...
    assert largest_difference(found, trained_plainly(bn, x[0], y[0], joint)) < 1e-9


def test_sums_of_loss_and_hits_are_those_of_all_devices(channel):
    model = network("gn")
    x, y = updates(1, 2, images=4)
    step = trained_on_two(channel, [model], x, y, rate=1e-300)
    logits = model(x.flatten(0, 2))
    ((loss, hits),) = step.take_sums()
    assert loss == pytest.approx(F.cross_entropy(logits, y.flatten(), reduction="sum").item())
    assert hits == (logits.argmax(1) == y.flatten()).sum().item()
    assert step.take_sums() == [(0.0, 0)]


def test_a_training_goes_on_from_its_state_as_if_it_had_not_stopped(channel):
    model = network("bn")
    x, y = updates(1, 6, images=4)
    whole = trained_on_two(channel, [model], x[:, :3], y[:, :3])
    first = trained_on_two(channel, [model], x[:, :3], y[:, :3])
    whole.run(x[:, 3:], y[:, 3:], [[0.1]] * 3)  # sums of devices are added call by call
    again = ParallelStep(channel, [network("bn", seed=9)], 2, *OPTIONS.values())
    again.load(0, first.state(0))
    again.run(x[:, 3:], y[:, 3:], [[0.1]] * 3)
    assert largest_difference(whole.model(0), again.model(0)) == 0
    assert again.take_sums() == whole.take_sums()


def test_each_device_draws_random_numbers_of_its_own(channel):
    torch.manual_seed(5)
    features = 3 * 8 * 8
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(features, 10, bias=False))
    x, y = torch.ones(1, 1, 2, 3, 8, 8), torch.zeros(1, 1, 2, dtype=torch.int64)

    def used():
        torch.manual_seed(6)
        step = ParallelStep(channel, [copy.deepcopy(model)], 1, 0.0, 0.0)
        step.run(x, y, [[0.1]])
        return (step.model(0)[2].weight != model[2].weight).any(dim=0)

    # A feature stays as it was where both devices dropped it: 1 in 4, or 1 in 2 of equal draws.
    assert used().double().mean().item() == pytest.approx(0.75, abs=0.12)
    assert torch.equal(used(), used())


def test_three_devices_share_an_update_and_round_no_constant():
    three = channel_to(3, torch.device("cpu"))
    torch.manual_seed(5)
    model, x = network("bn_frozen"), updates(1, 3, images=3)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    step = ParallelStep(three, [copy.deepcopy(model)], 1, *OPTIONS.values())
    step.run(*x, [[0.1]] * 3)
    alone = trained_plainly(model, x[0][0], x[1][0], [[0, 1, 2]])
    assert largest_difference(step.model(0), alone) < 1e-9  # float64
    for name, buffer in step.model(0).named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name

    dropping = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10, bias=False))
    step = ParallelStep(three, [copy.deepcopy(dropping)], 1, 0.0, 0.0)
    step.run(torch.ones(1, 1, 3, 3, 8, 8), torch.zeros(1, 1, 3, dtype=torch.int64), [[0.1]])
    used = (step.model(0)[2].weight != dropping[2].weight).any(dim=0).double().mean().item()
    assert used == pytest.approx(1 - 1 / 8, abs=0.07), "3 in 4 if two draw the same"


def test_an_update_that_cannot_be_dealt_in_whole_batches_is_refused():
    with pytest.raises(ValueError, match="an update of 6 images is no multiple of 2 x 2"):
        shares(torch.zeros(1, 1, 6), batch=2, devices=2)


def results(study):
    """Return (metrics without times, final weights) of the only run of a study."""
    (folder,) = Path(study).glob("*-b2-*")
    run = Run(folder)
    rows = [{k: v for k, v in row.items() if k != "time_s"} for row in run.metrics()]
    states = torch.load(folder / "checkpoint.pt", weights_only=True)
    return rows, {seed: state["model"] for seed, state in states.items()}, run.result()


def test_two_devices_train_gn_as_one_does_in_updates_of_as_many_images(gnexp, workdir):
    gn = ("train", *TINY, "epochs=1", "norm=gn")  # rounding grows with updates
    answer = gnexp(*gn, "devices=2", "seeds=2")
    assert answer.code == 0
    assert "2 devices (cpu processes)" in answer.out
    assert "batch 2 on each of 2 devices in updates of 4" in answer.out
    assert gnexp(*gn, "update_batch=4", "seeds=2", "study=one").code == 0
    rows, weights, result = results("results/main")
    other_rows, other_weights, other = results("results/one")
    assert [row["test_loss"] for row in rows] == pytest.approx(
        [row["test_loss"] for row in other_rows], rel=1e-4
    )
    assert [row["train_loss"] for row in rows] == pytest.approx(
        [row["train_loss"] for row in other_rows], rel=1e-4
    )
    for seed, state in weights.items():
        for name, tensor in state.items():  # float32, 15 updates
            torch.testing.assert_close(tensor, other_weights[seed][name], rtol=0, atol=1e-4)
    assert result["config"]["devices"] == result["seeds"]["0"]["devices"] == 2
    assert "devices" not in other["seeds"]["0"]
    assert gnexp(*gn, "devices=2", "seeds=3").code == 0, "one more seed"
    assert len(results("results/main")[2]["seeds"]) == 3


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def test_torchrun_trains_the_same_and_only_its_leader_speaks(gnexp, workdir):
    words = ("train", *TINY, "epochs=2", "norm=bn")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "gnexp", *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 2:") == 1
    assert gnexp(*words, "devices=2", "study=own").code == 0
    (one, other) = results("results/main"), results("results/own")
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for name, tensor in one[1]["0"].items():
        assert torch.equal(tensor, other[1]["0"][name])
    assert list(Path("results/main").iterdir()) == [folder_of("main")]


def folder_of(study):
    (folder,) = Path("results", study).glob("*-b2-*")
    return folder


def started(*words):
    return subprocess.Popen(
        [sys.executable, "-m", "gnexp", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=60):
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds
        time.sleep(0.02)


@contextlib.contextmanager
def in_training(*words):
    """Start a training on two devices; yields it and its follower once it has stored a state."""
    process = started(*words)
    try:
        wait_until(
            lambda: process.poll() is not None or [*Path().glob("results/*/*/checkpoint.pt")]
        )
        (follower,) = children(process.pid)
        yield process, follower
    finally:
        process.kill()
        process.communicate()


@needs_proc
def test_a_killed_leader_leaves_no_process_and_the_next_call_ends_with_the_same(gnexp, workdir):
    long = [word for word in TINY if "train_limit" not in word] + ["data.train_limit=520"]
    words = ("train", *long, "norm=bn", "devices=2", "epochs=2", "checkpoint_minutes=0")
    with in_training(*words) as (process, follower):
        os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: not alive(follower), seconds=10)
    stored = torch.load(folder_of("main") / "checkpoint.pt", weights_only=True)["0"]
    assert stored["epoch"] < 2, "it was killed too late"
    assert gnexp(*words).code == 0
    assert gnexp(*words, "study=whole").code == 0
    one, other = results("results/main"), results("results/whole")
    assert one[0] == other[0]
    for name, tensor in one[1]["0"].items():
        assert torch.equal(tensor, other[1]["0"][name])


@needs_proc
def test_a_killed_follower_is_a_failed_run_with_its_reason_and_is_tried_again(gnexp, workdir):
    words = ("train", *TINY, "norm=gn", "devices=2", "epochs=16")
    with in_training(*words) as (process, follower):
        os.kill(follower, signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "device 1: its process ended by SIGKILL" in out
    assert Run(folder_of("main")).statuses()[0]["status"] == "failed"
    assert gnexp(*words).code == 0, "without retry="


BROKEN = """
import os
import torch

class Norm(torch.nn.BatchNorm2d):
    def forward(self, x):
        if os.environ.get("RANK") == "1":
            raise ArithmeticError("no such luck")
        return super().forward(x)
"""


def test_what_goes_wrong_on_another_device_is_the_reason_of_the_failure(gnexp, workdir):
    Path("unlucky.py").write_text(BROKEN)
    answer = gnexp("train", *TINY, "norm._target_=unlucky.Norm", "devices=2")
    assert answer.code == 1
    assert "device 1: ArithmeticError: no such luck" in answer.out
    (status,) = Run(folder_of("main")).statuses().values()
    assert (status["status"], "again" in status) == ("failed", False)


INNER = """
import torch

def norm(channels):
    class Layer(torch.nn.BatchNorm2d):
        pass
    return Layer(channels)
"""


def test_a_model_that_cannot_be_sent_to_the_other_devices_is_refused_before_it_trains(gnexp):
    Path("inner_class.py").write_text(INNER)
    answer = gnexp("train", *TINY, "norm._target_=inner_class.norm", "devices=2")
    assert answer.code == 2
    assert answer.err.startswith("gnexp: devices=2: the model cannot be sent to other processes")
    assert answer.err.endswith("or use devices=1\n")


MISTAKES = {
    ("devices=0",): "devices=0 must be a whole number of at least 1, such as devices=2",
    ("devices=2", "update_batch=6"): "update_batch=6 must be a multiple of 4, which is batch=2 on"
    " each of devices=2, such as update_batch=8",
    ("devices=2", "workers=2"): "workers=2 excludes devices=2: each training has all devices;"
    " leave workers= out",
    ("devices=2", "execution=compile"): "execution=compile excludes devices=2, whose updates are"
    " made one by one; use execution=auto",
    ("devices=2", "privacy=dpsgd"): "devices=2 excludes privacy=dpsgd; use devices=1",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_what_several_devices_cannot_do_is_said_in_a_sentence(gnexp, words):
    answer = gnexp("train", *TINY, "norm=gn", *words)
    assert answer.code == 2
    assert answer.err.splitlines() == [f"gnexp: {MISTAKES[words]}"]
    assert not Path("results").exists()


def test_another_number_than_the_launched_one_is_refused(gnexp, monkeypatch):
    from gnexp.config.schema import TrainConfig
    from gnexp.config.validation import problems

    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    (sentence,) = problems(TrainConfig(norm={"name": "gn"}, devices=3))
    assert sentence == (
        "devices=3 contradicts the 2 processes that were launched (WORLD_SIZE); leave it out, or"
        " type devices=2"
    )
    assert problems(TrainConfig(norm={"name": "gn"}, devices=2)) == []


def test_more_devices_than_gpus_are_refused(monkeypatch):
    from gnexp.runner.preflight import gpu_problems

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpu_problems("auto", 2) == gpu_problems("cpu", 4) == []
    assert gpu_problems("cuda", 4) == [
        "devices=4 needs 4 GPUs here, and PyTorch sees 2; use devices=2 or device=cpu"
    ]
    assert gpu_problems("cuda:1", 2) == [
        "device=cuda:1 is a single GPU, not devices=2; use device=cuda"
    ]


def test_a_run_on_one_device_keeps_its_name(gnexp):
    words = ("train", *TINY, "norm=gn", "epochs=1")
    assert gnexp(*words).code == 0
    assert gnexp(*words, "devices=1").code == 0
    config = json.loads((folder_of("main") / "result.json").read_text())["config"]
    assert config["devices"] == 1
