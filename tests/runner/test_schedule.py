"""How trainings are laid out over steps and processes, and what happens when a step breaks."""

import json
import weakref
from pathlib import Path

import pytest
import torch

from gnexp.config.resolve import resolve
from gnexp.config.schema import TrainConfig
from gnexp.data.sources import DataSummary
from gnexp.runner import trainer
from gnexp.runner.prepared_run import PreparedRun
from gnexp.runner.schedule import Replica, ReplicaGroupSpec, layout, max_stack_size
from gnexp.store.run import Run

TINY = ("model=resnet8", "model.width=8", "data.train_limit=60", "data.test_limit=40", "batch=10")
QUICK = (*TINY, "gradients=0", "workers=1")


def replicas(seeds, on="cpu", **keys):
    config = resolve(TrainConfig(**{"norm": {"name": "gn"}, **keys}))
    data = DataSummary("", "", tuple("ab"), (3, 8, 8), train_size=60, test_size=40)
    run = PreparedRun(config, f"run-{sorted(keys.items())}", torch.device(on), data)
    return [Replica(run, seed) for seed in range(seeds)]


def sizes(steps):
    return [len(step.replicas) for step in steps]


def test_small_batches_share_a_step_and_large_ones_train_alone_on_a_cpu():
    assert [max_stack_size("cpu", batch) for batch in (1, 8, 16, 32, 64, 256)] == [
        10,
        10,
        5,
        2,
        1,
        1,
    ]
    assert sizes(layout(replicas(5, batch=2), {}, set(), 1)) == [5]
    assert sizes(layout(replicas(5, batch=64), {}, set(), 1)) == [1] * 5
    assert sizes(layout(replicas(12, batch=1), {}, set(), 1)) == [6, 6]


def test_the_number_that_share_a_step_can_be_typed():
    assert sorted(sizes(layout(replicas(5, batch=2, stack=2), {}, set(), 1))) == [1, 2, 2]
    assert sizes(layout(replicas(2, batch=64, stack=5), {}, set(), 1)) == [2]


def test_the_size_of_an_update_counts_where_its_batches_share_a_pass():
    assert sizes(layout(replicas(5, batch=2, update_batch=64), {}, set(), 1)) == [1] * 5


@pytest.mark.parametrize(("seeds", "expected"), [(1, [1]), (2, [1, 1]), (3, [2, 1]), (5, [3, 2])])
def test_one_run_is_divided_between_two_processes(seeds, expected):
    assert sizes(layout(replicas(seeds, batch=2), {}, set(), 2)) == expected


def test_a_grid_keeps_its_cells_whole_where_every_process_has_one():
    grid = replicas(5, batch=2) + replicas(5, batch=4)
    assert sizes(layout(grid, {}, set(), 2)) == [5, 5]


def test_the_longest_step_comes_first():
    grid = replicas(5, batch=8) + replicas(5, batch=1) + replicas(5, batch=2)
    batches = [step.replicas[0].config.batch for step in layout(grid, {}, set(), 2)]
    assert batches == [1, 2, 8]


def test_rates_share_a_step_and_architectures_do_not_on_a_cpu():
    rates = replicas(2, batch=2, lr=0.1) + replicas(2, batch=2, lr=0.2)
    (step,) = layout(rates, {}, set(), 1)
    assert [r.config.lr for r in step.replicas] == [0.1, 0.1, 0.2, 0.2]
    norms = replicas(2, batch=2) + replicas(2, batch=2, norm={"name": "bn"})
    assert sizes(layout(norms, {}, set(), 1)) == [2, 2]


def test_on_a_gpu_norms_share_a_graph_and_batch_sizes_do_not():
    norms = replicas(5, "cuda", batch=2) + replicas(5, "cuda", batch=2, norm={"name": "bn"})
    assert sizes(layout(norms, {}, set(), 1)) == [10]
    batches = replicas(5, "cuda", batch=2) + replicas(5, "cuda", batch=4)
    assert sizes(layout(batches, {}, set(), 1)) == [5, 5]


def test_runs_that_cannot_share_a_step_train_seed_by_seed():
    some = replicas(3, batch=2)
    assert sizes(layout(some, {}, {some[0].run.name}, 1)) == [1, 1, 1]


def test_what_was_interrupted_goes_on_in_its_old_company_at_its_old_place():
    some = replicas(5, batch=2)
    known = ReplicaGroupSpec(("ended", some[0].name, some[1].name), (0.1, 0.1, 0.1), threads=1)
    spec = {r.name: known for r in some[:2]}
    steps = layout(some, spec, set(), 1)
    old = next(step for step in steps if step.places != tuple(range(step.size)))
    assert (old.size, old.places, old.replicas) == (3, (1, 2), tuple(some[:2]))
    assert sizes(steps) == [2, 3] or sizes(steps) == [3, 2]


def runs(study="main"):
    return sorted(p for p in Path(f"results/{study}").iterdir() if (p / "config.yaml").exists())


def rows(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    return [line.rpartition(",")[0] for line in lines]  # without the times


class Stop(BaseException):
    """What no `except Exception` catches, as a kill would not."""


def test_runs_that_share_a_step_and_stop_at_different_epochs_end_as_if_they_had_not(
    gnexp, monkeypatch
):
    # Two rates, so two run folders; the process ends between their checkpoints or after both.
    words = (*QUICK, "epochs=3", "lr=[0.1,0.3]", "seeds=2", "norm=bn")
    assert gnexp("train", *words, "study=whole").code == 0
    stored = Run.write_checkpoint
    for at in (2, 3):
        study, calls = f"stopped-{at}", []

        def stop(self, data, at=at, calls=calls):
            stored(self, data)
            calls.append(self.name)
            if len(calls) == at:
                raise Stop

        with monkeypatch.context() as patch:
            patch.setattr(Run, "write_checkpoint", stop)
            with pytest.raises(Stop):
                gnexp("train", *words, f"study={study}")
        assert gnexp("train", *words, f"study={study}").code == 0
        for whole, stopped in zip(runs("whole"), runs(study), strict=True):
            assert rows(whole) == rows(stopped)


def test_a_rate_gets_its_own_numbers_in_a_step_of_several(gnexp):
    assert gnexp("train", *QUICK, "epochs=1", "lr=[0.1,0.3]", "seeds=2").code == 0
    by_rate = {json.loads((run / "result.json").read_text())["config"]["lr"]: run for run in runs()}
    last = {lr: float(rows(run)[-1].split(",")[3]) for lr, run in by_rate.items()}
    assert last[0.3] == pytest.approx(3 * last[0.1])
    results = [json.loads((run / "result.json").read_text())["seeds"] for run in by_rate.values()]
    assert {seed["stack"] for result in results for seed in result.values()} == {4}


def broken_for(bad, error):
    """Replace train_epochs by one that raises when `bad` says so of its seeds."""
    whole = trainer.train_epochs

    def train_epochs(step, images, train_settings, seeds, *more):
        if bad(list(seeds)):
            raise error
        return whole(step, images, train_settings, seeds, *more)

    return train_epochs


def test_a_training_that_fails_takes_none_of_its_company_with_it(gnexp, monkeypatch):
    broken = broken_for(lambda seeds: 2 in seeds, RuntimeError("not in the mood"))
    monkeypatch.setattr(trainer, "train_epochs", broken)
    answer = gnexp("train", *QUICK, "epochs=1", "seeds=4")
    assert answer.code == 1
    (run,) = runs()
    statuses = json.loads((run / "status.json").read_text())["seeds"]
    assert [statuses[s]["status"] for s in "0123"] == ["complete", "complete", "failed", "complete"]
    assert "not in the mood" in (run / "traceback-2.txt").read_text()
    assert "not in the mood; trying halves" in answer.out


def test_too_little_memory_for_a_stack_makes_it_smaller(gnexp, monkeypatch):
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    whole, failed = trainer.train_epochs, []

    def train_epochs(step, images, train_settings, seeds, *more):
        if len(seeds) > 2:
            failed.append(weakref.ref(step))
            raise error
        assert [ref() for ref in failed] == [None], "it holds the memory that a half needs"
        return whole(step, images, train_settings, seeds, *more)

    monkeypatch.setattr(trainer, "train_epochs", train_epochs)
    assert gnexp("train", *QUICK, "epochs=1", "seeds=4").code == 0
    seeds = json.loads((runs()[0] / "result.json").read_text())["seeds"]
    assert {(v["status"], v["stack"]) for v in seeds.values()} == {("complete", 2)}


DRAWING_NORM = """
import torch
from torch import nn


class Drawing(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return x * self.weight[:, None, None] * (1 + 0.01 * torch.rand_like(x))
"""


def test_a_norm_that_cannot_be_stacked_trains_one_by_one_and_says_why(gnexp, workdir):
    (workdir / "drawing_norm.py").write_text(DRAWING_NORM)
    answer = gnexp("train", *QUICK, "epochs=1", "seeds=2", "norm._target_=drawing_norm.Drawing")
    assert answer.code == 0, answer.err
    assert "Drawing: its seeds train one after the other, since torch.func refuses it" in answer.out
    seeds = json.loads((runs()[0] / "result.json").read_text())["seeds"]
    assert {v["stack"] for v in seeds.values()} == {1}
