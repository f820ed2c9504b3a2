"""Training on several devices: what each norm sees of an update, and what becomes of processes."""

import copy
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from processes import called, marked, needs_proc, others, wait_until
from torch import distributed, nn
from torch.nn import functional as F

from gnexp.models.resnet import build_model
from gnexp.norms.registry import build_norm
from gnexp.store.run import Run
from gnexp.training.rank_step import RankStep, share
from gnexp.training.ranks import AT_WORK, Ranks, local_store

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40")
TINY += ("gradients=0", "batch=2", "device=cpu")
OPTIONS = {"momentum": 0.9, "weight_decay": 5e-4}


@pytest.fixture(scope="module")
def pool():
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, torch.set_num_threads, (1,)) as pool:
        yield pool


@pytest.fixture
def on_ranks(pool):
    """Call `work(ranks, *arguments)` on each of `count` ranks; returns what each gave."""

    def run(count, work, *arguments):
        store, port = local_store()
        others = [pool.submit(as_rank, r, count, port, work, arguments) for r in range(1, count)]
        return [joined(store, 0, count, work, arguments), *(other.result() for other in others)]

    return run


def as_rank(rank, count, port, work, arguments):
    store = distributed.TCPStore("127.0.0.1", port, timeout=AT_WORK)
    return joined(store, rank, count, work, arguments)


def joined(store, rank, count, work, arguments):
    ranks = Ranks(store, rank, count, local=True)
    with ranks.together("cpu"):
        given = work(ranks, *arguments)
    ranks._leave()
    return given


def network(norm, seed=0):
    """Return a float64 ResNet-8 whose weights depend on the seed alone."""
    torch.manual_seed(seed)
    return build_model("resnet8", lambda c: build_norm(norm, c), 10, 8).double()


def updates(replicas, count, images):
    """Return images (R, U, N, 3, 8, 8) and labels (R, U, N)."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(replicas, count, images, 3, 8, 8, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 10, (replicas, count, images), generator=draw)


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
    return model.state_dict()


def trained(ranks, models, x, y, rate=0.1, batch=2):
    """Train on each rank; returns the weights of all replicas, and the sums."""
    step = RankStep(ranks, models, batch, *OPTIONS.values())
    step.run(x, y, [[rate] * len(models)] * x.shape[1])
    return [step.state(r)["model"] for r in range(len(models))], step.take_sums()


def assert_close(state, other, names=None, atol=1e-9):
    """Compare weights and buffers; float64: a few updates of rounding."""
    for name in names or [name for name in state if not name.endswith("num_batches_tracked")]:
        torch.testing.assert_close(
            state[name].double(), other[name].double(), rtol=0, atol=atol, msg=name
        )


@pytest.mark.parametrize("norm", ["syncbn", "gn"])
def test_two_batches_of_two_are_one_of_four_to_synchronized_bn_and_to_gn(on_ranks, norm):
    models = [network(norm, seed) for seed in (0, 1)]
    x, y = updates(2, 4, images=4)
    (states, sums), other = on_ranks(2, trained, models, x, y)
    for replica, model in enumerate(models):
        if norm == "syncbn":  # the layer that PyTorch has, with the same weights
            plain = build_model("resnet8", nn.BatchNorm2d, 10, 8).double()
            plain.load_state_dict(model.state_dict())
            model = plain
        assert_close(
            states[replica], trained_plainly(model, x[replica], y[replica], [[0, 1, 2, 3]])
        )
        assert_close(states[replica], other[0][replica], atol=0)
    assert sums == other[1]


ONE, TWO = [[0, 2], [1, 3]], [[n, n + 4] for n in range(4)]  # batch n % 2, n % 4
SEEN = {
    "bn, two batches each": (8, TWO),
    "syncbn, two batches each": (8, [TWO[0] + TWO[2], TWO[1] + TWO[3]]),  # the first of each, ...
}


@pytest.mark.parametrize("case", SEEN)
def test_bn_sees_the_batch_of_its_own_rank_and_syncbn_those_of_all(on_ranks, case):
    images, batches = SEEN[case]
    model, (x, y) = network(case.partition(",")[0]), updates(1, 3, images)
    (((state,), _), _) = on_ranks(2, trained, [model], x, y)
    names = [name for name, _ in model.named_parameters()]
    assert_close(state, trained_plainly(model, x[0], y[0], batches), names)
    together = trained_plainly(network("bn"), x[0], y[0], [[*range(images)]])
    assert max((state[name] - together[name]).abs().max() for name in names) > 1e-3


def test_running_statistics_are_the_mean_over_ranks_and_sums_are_of_all_images(on_ranks):
    model, rate = network("bn"), 1e-300  # so that no weight moves
    x, y = updates(1, 3, images=4)
    (((state,), ((loss, hits),)), _) = on_ranks(2, trained, [model], x, y, rate)
    ranks = [trained_plainly(model, x[0], y[0], [some], rate) for some in ONE]
    mean = {name: (ranks[0][name] + ranks[1][name]).double() / 2 for name in state}
    assert_close(state, mean, atol=1e-12)
    logits = [model(x[0, update, some]) for update in range(3) for some in ONE]
    labels = torch.cat([y[0, update, some] for update in range(3) for some in ONE])
    assert loss == pytest.approx(F.cross_entropy(torch.cat(logits), labels, reduction="sum").item())
    assert hits == (torch.cat(logits).argmax(1) == labels).sum().item()


def stopped_and_resumed(ranks, x, y):
    """Return states and sums of a step that goes on, and of a new one from its state."""
    found = []
    first = RankStep(ranks, [network("bn")], 2, *OPTIONS.values())
    first.run(x[:, :3], y[:, :3], [[0.1]] * 3)
    again = RankStep(ranks, [network("bn", seed=9)], 2, *OPTIONS.values())
    again.load(0, first.state(0))
    for step in (first, again):
        step.run(x[:, 3:], y[:, 3:], [[0.1]] * 3)
        found.append((step.state(0)["model"], step.take_sums(), step.take_sums()))
    return found


def test_a_training_goes_on_from_its_state_as_if_it_had_not_stopped(on_ranks):
    one, other = on_ranks(2, stopped_and_resumed, *updates(1, 6, images=4))[0]
    assert_close(one[0], other[0], atol=0)
    assert one[1:] == other[1:]
    assert one[2] == [(0.0, 0)]


def features_used(ranks):
    """Return which features, of 192, the ranks did not all drop; the same stream twice."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, 10, bias=False))
    x, y = torch.ones(1, 1, ranks.count, 3, 8, 8), torch.zeros(1, 1, ranks.count).long()
    found = []
    for _ in range(2):
        torch.manual_seed(6)
        step = RankStep(ranks, [copy.deepcopy(model)], 1, 0.0, 0.0)
        step.run(x, y, [[0.1]])
        found.append((step.model(0)[2].weight != model[2].weight).any(dim=0))
    return found


def test_each_rank_draws_random_numbers_of_its_own(on_ranks):
    used, again = on_ranks(3, features_used)[0]
    assert torch.equal(used, again)
    # A feature stays as it was where all ranks dropped it.
    assert used.double().mean().item() == pytest.approx(1 - 0.5**3, abs=0.1)


def test_three_ranks_share_an_update_and_round_no_constant(on_ranks):
    torch.manual_seed(5)
    model, (x, y) = network("bn_frozen"), updates(1, 3, images=3)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    state = on_ranks(3, trained, [model], x, y, 0.1, 1)[0][0][0]
    assert_close(state, trained_plainly(model, x[0], y[0], [[0, 1, 2]]))
    assert_close(state, model.state_dict(), [name for name, _ in model.named_buffers()], atol=0)


def failing(ranks):
    """Fail on rank 0, in a frame that holds the group, while rank 1 waits in it."""
    group = distributed.group.WORLD
    if ranks.rank == 0:
        raise ArithmeticError("no such luck")
    distributed.all_reduce(torch.ones(1), group=group)


def test_a_rank_that_fails_lets_the_others_go_at_once_and_says_why(pool):
    store, port = local_store()
    other = pool.submit(as_rank, 1, 2, port, failing, ())
    with pytest.raises(ArithmeticError) as _still_held:
        joined(store, 0, 2, failing, ())
    with pytest.raises(RuntimeError, match=r"^device 0: ArithmeticError: no such luck$"):
        other.result(timeout=30)


def interrupted(ranks):
    """Fail on rank 1, and then stop rank 0."""
    if ranks.rank == 1:
        ranks.store.wait(["connected"])
        raise ArithmeticError("no such luck")
    ranks.store.set("connected", "")
    ranks.store.wait([f"fault/{ranks.training}"])
    raise KeyboardInterrupt


def test_ctrl_c_is_not_taken_for_what_failed_elsewhere(on_ranks):
    with pytest.raises(KeyboardInterrupt):
        on_ranks(2, interrupted)


def test_an_update_that_cannot_be_dealt_in_whole_batches_is_refused():
    with pytest.raises(ValueError, match="an update of 6 images is no multiple of 2 x 2"):
        share(torch.zeros(1, 1, 6), batch=2, rank=0, count=2)


def folder_of(study):
    (folder,) = Path("results", study).glob("*-b2-*")
    return folder


def results(study):
    """Return (metrics without times, final weights, result) of the only run of a study."""
    run = Run(folder_of(study))
    rows = [{k: v for k, v in row.items() if k != "time_s"} for row in run.rows("metrics.csv")]
    states = torch.load(run.folder / "checkpoint.pt", weights_only=True)
    return rows, {seed: state["model"] for seed, state in states.items()}, run.result()


def assert_same(study, other):
    """Compare two studies of one run, digit by digit."""
    one, other = results(study), results(other)
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    for seed, state in one[1].items():
        assert_close(state, other[1][seed], [*state], atol=0)


def test_two_devices_train_gn_as_one_does_in_updates_of_as_many_images(gnexp, workdir):
    gn = ("train", *TINY, "epochs=1", "norm=gn")  # rounding grows with updates
    answer = gnexp(*gn, "devices=2", "seeds=2")
    assert answer.code == 0
    assert "2 devices (cpu processes)" in answer.out
    assert "batch 2 on each of 2 devices in updates of 4" in answer.out
    assert gnexp(*gn, "update_batch=4", "seeds=2", "study=one").code == 0
    rows, weights, result = results("main")
    other_rows, other_weights, other = results("one")
    for loss in ("train_loss", "test_loss"):
        assert [row[loss] for row in rows] == pytest.approx(
            [row[loss] for row in other_rows], rel=1e-4
        )
    for seed, state in weights.items():
        assert_close(state, other_weights[seed], atol=1e-4)  # float32, 15 updates
    assert result["config"]["devices"] == result["seeds"]["0"]["devices"] == 2
    assert "devices" not in other["seeds"]["0"]
    assert gnexp(*gn, "devices=2", "seeds=3").code == 0, "one more seed"
    assert len(results("main")[2]["seeds"]) == 3


def environment(**values):
    return {**os.environ, "OMP_NUM_THREADS": "1", **values}


def test_torchrun_trains_the_same_and_only_rank_0_speaks(gnexp, workdir):
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
    assert_same("main", "own")
    assert list(Path("results/main").iterdir()) == [folder_of("main")]


def stored_at():
    """Return when the only run's checkpoint was last written."""
    return [path.stat().st_mtime_ns for path in Path().glob("results/*/*/checkpoint.pt")]


@needs_proc
def test_no_process_outlives_a_killed_rank_and_the_next_call_goes_on(gnexp, workdir):
    long = [word for word in TINY if "train_limit" not in word] + ["data.train_limit=520"]
    words = ("train", *long, "norm=bn", "devices=2", "epochs=2", "checkpoint_minutes=0")
    for killed in (1, 0):
        before, streams = stored_at(), {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        with called("-m", "gnexp", *words, **streams) as (process, mark):
            wait_until(lambda b=before, p=process: p.poll() is not None or stored_at() != b)
            (other,) = others(process, mark)
            os.kill((process.pid, other)[killed], signal.SIGKILL)
            out, _ = process.communicate(timeout=30)
            wait_until(lambda m=mark: not marked(m), seconds=10)
        stored = torch.load(folder_of("main") / "checkpoint.pt", weights_only=True)["0"]
        assert stored["epoch"] < 2, "it was killed too late"
        if killed == 1:
            assert process.returncode == 1
            assert "device 1: its process ended by SIGKILL" in out
            assert Run(folder_of("main")).statuses()[0]["status"] == "failed"
    assert gnexp(*words).code == 0, "without retry="
    assert gnexp(*words, "study=whole").code == 0
    assert_same("main", "whole")


RAISING = """
import os
from glob import glob

import torch

class Norm(torch.nn.BatchNorm2d):
    def forward(self, x):
        trained = glob("results/*/*/checkpoint.pt") and not os.path.exists("calm")
        if os.environ.get("RANK") == "1" and trained:
            {0}
        return super().forward(x)
"""


def test_what_goes_wrong_on_another_device_is_the_reason_of_the_failure(gnexp, workdir):
    Path("unlucky.py").write_text(RAISING.format("raise ArithmeticError('no such luck')"))
    answer = gnexp("train", *TINY, "norm._target_=unlucky.Norm", "devices=2", "epochs=2")
    assert answer.code == 1
    assert "device 1: ArithmeticError: no such luck" in answer.out
    (status,) = Run(folder_of("main")).statuses().values()
    assert (status["status"], "again" in status) == ("failed", False)


FULL = "open('calm', 'w').close(); raise torch.OutOfMemoryError('tried to allocate 3.00 GiB')"


def test_too_little_memory_on_rank_1_makes_all_ranks_halve(gnexp, workdir):
    Path("large.py").write_text(RAISING.format(FULL))
    words = ("train", *TINY, "norm._target_=large.Norm", "devices=2", "seeds=2", "epochs=2")
    answer = gnexp(*words)
    assert answer.code == 0
    assert "device 1: OutOfMemoryError: tried to allocate 3.00 GiB; trying halves" in answer.out
    assert {seed["stack"] for seed in results("main")[2]["seeds"].values()} == {1}
    assert gnexp(*words, "stack=1", "study=apart").code == 0
    for seed, state in results("main")[1].items():  # whose first epoch was made in a stack of two
        assert_close(state, results("apart")[1][seed], atol=1e-4)  # float32, 30 updates


def test_a_rank_that_does_not_see_the_disk_is_said_in_a_sentence(workdir):
    words = [sys.executable, "-m", "gnexp", "train", *TINY, "norm=gn", "epochs=1"]
    _, port = local_store()  # of which the number is free once it is gone
    del _
    launched = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    elsewhere = workdir.parent / "elsewhere"
    elsewhere.mkdir()
    first, second = (
        subprocess.Popen(
            words, cwd=folder, env=environment(**launched, RANK=rank), text=True, stdout=-1
        )
        for rank, folder in (("0", workdir), ("1", elsewhere))
    )
    out, _ = first.communicate(timeout=120)
    assert first.returncode == 1
    folder = folder_of("main")
    sentence = f"{folder}: device 1: {folder} is not there: run folders and images must lie on a"
    assert sentence.partition(": ")[2] in out
    assert second.communicate(timeout=30)[0] == ""
    assert not [*elsewhere.iterdir()]
    assert Run(folder).statuses()[0]["again"]


MISTAKES = {
    ("devices=0",): "devices=0 must be a whole number of at least 1, such as devices=2",
    ("devices=2", "update_batch=6"): "update_batch=6 must be a multiple of 4, which is batch=2 on"
    " each of devices=2, such as update_batch=8",
    ("devices=2", "workers=2"): "workers=2 excludes devices=2: each training has all devices;"
    " leave workers= out",
    ("devices=2", "privacy=dpsgd"): "devices=2 excludes privacy=dpsgd; use devices=1",
}


@pytest.mark.parametrize("words", MISTAKES, ids=" ".join)
def test_what_several_devices_cannot_do_is_said_in_a_sentence(gnexp, words):
    answer = gnexp("train", *TINY, "norm=gn", *words)
    assert answer.code == 2
    assert answer.err.splitlines() == [f"gnexp: {MISTAKES[words]}"]
    assert not Path("results").exists()


def test_another_number_than_the_launched_one_is_refused(monkeypatch):
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
