"""Batch renorm, ghost, synchronized and frozen batch norm: the formulas, and what they reduce to.

Shapes: N examples, C channels, H and W pixels.
"""

import os
import subprocess
import sys

import pytest
import torch
from reference_checks import assert_near, draw, layer_of
from torch import nn

from gnexp.config.schema import DataConfig, TrainConfig
from gnexp.norms.all_reduce import all_sum, group_size
from gnexp.norms.batch_norms import BatchRenorm2d
from gnexp.norms.registry import build_norm
from gnexp.runner.build import data as build
from gnexp.runner.build import model


def stock(layer: nn.Module) -> nn.BatchNorm2d:
    """Return PyTorch's batch norm with the numbers of a layer."""
    bn = nn.BatchNorm2d(16).double().train(layer.training)
    bn.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k in bn.state_dict()}, strict=False
    )
    return bn


def test_outside_of_synchronized_a_sum_is_the_tensor_itself():
    x = draw(3)
    assert all_sum(x) is x
    assert group_size() == 1


RANK = """
import sys
import torch
from torch import distributed as dist
from gnexp.norms.registry import build_norm
from gnexp.norms.all_reduce import group_size, synchronized

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
results = []
for first in (2, 1, 3):  # examples of 4 on the first process: equal, fewer, more
    data = torch.load(sys.argv[3])
    layer = build_norm("syncbn", 16).double()
    layer.load_state_dict(data["state"])
    mine = slice(0, first) if rank == 0 else slice(first, 4)
    x = data["x"][mine].clone().requires_grad_()
    with synchronized():
        assert group_size() == 2
        y = layer(x)
    y.backward(data["dy"][mine])  # outside: the backward pass needs no context
    for name in ("weight", "bias"):
        dist.all_reduce(getattr(layer, name).grad)
    if rank == 0:  # alone, while the other process is elsewhere
        layer(x), layer.eval()(x)
    results.append({"y": y.detach(), "x": x.grad, "weight": layer.weight.grad,
                    "bias": layer.bias.grad, "mean": layer.running_mean.clone(),
                    "var": layer.running_var.clone(), "first": first})
torch.save(results, sys.argv[4])
dist.barrier()
dist.destroy_process_group()
"""


def test_two_processes_normalize_by_the_statistics_of_both(tmp_path):
    layer, x_NCHW, dy_NCHW = layer_of("syncbn"), draw(4, 16, 3, 3), draw(4, 16, 3, 3, seed=3)
    bn = stock(layer)
    torch.save({"state": layer.state_dict(), "x": x_NCHW, "dy": dy_NCHW}, tmp_path / "data.pt")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), tmp_path / "store"]
            + [tmp_path / "data.pt", tmp_path / f"{rank}.pt"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=60) for process in ranks] == [0, 0]
    finally:
        for process in ranks:
            process.kill()
    x_NCHW.requires_grad_()
    y_NCHW = bn(x_NCHW)
    y_NCHW.backward(dy_NCHW)
    for a, b in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in range(2)), strict=True):
        assert len(a["y"]) == a["first"]
        assert_near(torch.cat([a["y"], b["y"]]), y_NCHW.detach(), "output")
        assert_near(torch.cat([a["x"], b["x"]]), x_NCHW.grad, "gradient of x")
        for part in (a, b):
            assert_near(part["weight"], bn.weight.grad, "gradient of weight")
            assert_near(part["bias"], bn.bias.grad, "gradient of bias")
        # The second process took part in one pass alone.
        assert_near(b["mean"], bn.running_mean, "running mean")
        assert_near(b["var"], bn.running_var, "running variance")


def test_frozen_batch_norm_loads_batch_norm_and_never_changes():
    bn = nn.BatchNorm2d(16).double()
    bn(draw(4, 16, 3, 3))
    layer = build_norm("bn_frozen", 16).double()
    layer.load_state_dict(bn.state_dict())
    assert not list(layer.parameters())
    x_NCHW = draw(4, 16, 3, 3, seed=1)
    expected = bn.eval()(x_NCHW).detach()
    for training in (True, False):
        assert_near(layer.train(training)(x_NCHW), expected)
    for key, tensor in layer.state_dict().items():
        assert torch.equal(tensor, bn.state_dict()[key])


@pytest.mark.parametrize(
    ("keys", "examples"),
    [
        ({"epochs": 2}, 48),
        ({"updates": 5}, 40),
        ({"epochs": 3, "update_batch": 16}, 48),
        ({"epochs": 2, "devices": 3}, 16),
    ],
)
def test_batch_renorm_is_told_how_many_examples_a_device_will_see(keys, examples):
    # Of 28 images an epoch takes those of whole updates: 24, or 16 in updates of 16.
    data = DataConfig(train_limit=28, test_limit=10)
    config = build.resolved(TrainConfig(norm={"name": "brn"}, data=data, batch=8, **keys))
    assert model.norm_factory(config, train_size=28)(16).total_examples == examples
    layers = model.seeded_model(config, build.images_of(data).summary, seed=0).modules()
    totals = {layer.total_examples for layer in layers if isinstance(layer, BatchRenorm2d)}
    assert totals == {examples}


def test_where_nothing_is_trained_batch_renorm_has_its_limits_in_full():
    config = build.resolved(TrainConfig(norm={"name": "brn"}))
    assert model.norm_factory(config)(16).total_examples is None


@pytest.mark.parametrize(("batch", "averaged"), [(2, 2), (8, 4), (64, 4)])
def test_under_momentum_rule_examples_a_ghost_batch_weighs_by_its_examples(batch, averaged):
    norm = {"name": "gbn", "ghost_batch": 4, "momentum": 0.1, "momentum_rule": "examples"}
    config = build.resolved(TrainConfig(norm=norm, batch=batch))
    expected = 1 - 0.9 ** (averaged / 128)
    assert model.norm_factory(config)(16).momentum == pytest.approx(expected, rel=1e-12)
