"""Batch renorm, ghost, synchronized and frozen batch norm: the formulas, and what they reduce to.

Shapes: N examples, C channels, H and W pixels.
"""

import os
import subprocess
import sys

import pytest
import torch
from reference_checks import (
    SHAPES,
    assert_follows_the_reference,
    assert_gradients_are_slopes,
    assert_near,
    assert_stacked_is_each_alone,
    assert_takes_bfloat16_in_any_layout,
    draw,
    layer_of,
)
from torch import nn

from gnexp.config.schema import DataConfig, TrainConfig
from gnexp.norms.all_reduce import all_sum, group_size
from gnexp.norms.batch_norms import BatchRenorm2d
from gnexp.norms.registry import build_norm
from gnexp.runner.build import data as build
from gnexp.runner.build import model

# Options under which each thing a norm can do happens on some of the shapes.
CASES = {
    "brn": ("brn", {}),
    "brn, limits widening": ("brn", {"total_examples": 100, "warmup": 0.001}),
    "brn, tight limits": ("brn", {"rmax": 1.1, "dmax": 0.1}),
    "gbn": ("gbn", {}),
    "gbn, ghosts of 4": ("gbn", {"ghost_batch": 4, "momentum": 0.3}),
    "gbn, ghosts of 1": ("gbn", {"ghost_batch": 1}),
    "syncbn": ("syncbn", {}),
    "bn_frozen": ("bn_frozen", {}),
}
over_cases = pytest.mark.parametrize(("name", "options"), CASES.values(), ids=CASES)
over_shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)
over_modes = pytest.mark.parametrize("training", [True, False])


@over_modes
@over_shapes
@over_cases
def test_passes_in_a_row_give_and_leave_what_the_reference_does(name, options, shape, training):
    assert_follows_the_reference(name, shape, training, **options)


@over_modes
@over_shapes
@over_cases
def test_gradients_are_the_slopes_of_the_reference(name, options, shape, training):
    assert_gradients_are_slopes(name, shape, training, **options)


@over_modes
@over_shapes
@over_cases
def test_three_replicas_in_one_layer_are_three_layers(name, options, shape, training):
    assert_stacked_is_each_alone(name, shape, training, **options)


@over_cases
def test_bfloat16_inputs_keep_their_layout_and_float32_statistics(name, options):
    assert_takes_bfloat16_in_any_layout(name, **options)


@pytest.mark.parametrize("name", ["brn", "gbn", "syncbn"])
def test_a_single_value_per_channel_is_refused_in_training_alone(name):
    layer, x_NCHW = layer_of(name), draw(1, 16, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        layer.train()(x_NCHW)
    assert layer.eval()(x_NCHW).isfinite().all()


def stock(layer: nn.Module) -> nn.BatchNorm2d:
    """Return PyTorch's batch norm with the numbers of a layer."""
    bn = nn.BatchNorm2d(16).double().train(layer.training)
    bn.load_state_dict(
        {k: v for k, v in layer.state_dict().items() if k in bn.state_dict()}, strict=False
    )
    return bn


def assert_same_passes(a: nn.Module, b: nn.Module, x_NCHW: torch.Tensor, rtol=1e-12) -> None:
    """Hold two layers to one function: outputs, all gradients and the running statistics."""
    xs = [x_NCHW.clone().requires_grad_() for _ in range(2)]
    ys = [layer(x) for layer, x in zip((a, b), xs)]
    for y in ys:
        y.backward(draw(*x_NCHW.shape, seed=3))
    assert_near(ys[0], ys[1].detach(), "output", rtol)
    assert_near(xs[0].grad, xs[1].grad, "gradient of x", rtol)
    for key in ("weight", "bias"):
        assert_near(getattr(a, key).grad, getattr(b, key).grad, f"gradient of {key}", rtol)
    for key in ("running_mean", "running_var"):
        assert_near(getattr(a, key), getattr(b, key), key, rtol)


def test_batch_renorm_is_batch_norm_until_its_warmup_ends():
    layer = layer_of("brn", total_examples=1000, warmup=0.01)
    bn = stock(layer)
    for number in range(3):  # begins at 0, 4 and 8 examples of 10
        assert_same_passes(layer, bn, draw(4, 16, 3, 3, seed=number))
    x_NCHW = draw(4, 16, 3, 3, seed=9)  # at 12
    assert (layer(x_NCHW) - bn(x_NCHW)).abs().max() > 1e-3
    assert layer.examples_seen == 16


def test_batch_renorm_within_its_limits_normalizes_by_the_running_statistics():
    layer = layer_of("brn", rmax=1e6, dmax=1e6)
    x_NCHW = draw(4, 16, 3, 3)
    expected = layer.eval()(x_NCHW)
    assert_near(layer.train()(x_NCHW), expected.detach())


def test_batch_renorm_at_its_limits_moves_batch_norm_by_them():
    layer = build_norm("brn", 1, rmax=2.0, dmax=0.5).double()
    x_NCHW = 100 * draw(4, 1, 3, 3) + 1000  # far above mean 0 and variance 1
    bn = nn.BatchNorm2d(1).double()(x_NCHW)
    assert_near(layer(x_NCHW), (2.0 * bn + 0.5).detach())


@pytest.mark.parametrize(
    ("seen", "rmax", "dmax"),
    [
        (0, 1, 0),
        (30, 1, 0),
        (95, 1 + 2 * 65 / 220, 5 * 65 / 130),
        (140, 2, 5 * 110 / 130),
        (160, 1 + 2 * 130 / 220, 5),
        (250, 3, 5),
        (1000, 3, 5),
        (5000, 3, 5),
    ],
)
def test_the_limits_widen_linearly_with_the_part_of_training_that_has_passed(seen, rmax, dmax):
    layer = build_norm("brn", 4, total_examples=1000).double()
    layer.examples_seen.fill_(seen)
    assert [limit.item() for limit in layer.limits()] == pytest.approx([rmax, dmax])


def test_without_a_total_the_limits_are_in_full_from_the_start():
    assert [limit.item() for limit in build_norm("brn", 4).limits()] == [3, 5]


@pytest.mark.parametrize("examples", [1, 3, 8])
def test_a_batch_within_one_ghost_batch_is_normalized_by_batch_norm(examples):
    layer = layer_of("gbn")
    assert_same_passes(layer, stock(layer), draw(examples, 16, 3, 3))


def test_ghost_batches_of_4_are_two_batches_one_after_the_other():
    layer = layer_of("gbn", ghost_batch=4)
    bn, x_NCHW = stock(layer), draw(8, 16, 3, 3)
    y_NCHW = torch.cat([bn(x_NCHW[:4]), bn(x_NCHW[4:])])
    assert_near(layer(x_NCHW), y_NCHW.detach())
    assert_near(layer.running_mean, bn.running_mean)
    assert_near(layer.running_var, bn.running_var)
    assert layer.num_batches_tracked == 2


def test_an_example_meets_its_ghost_batch_and_no_other():
    layer, x_NCHW = layer_of("gbn", ghost_batch=4), draw(10, 16, 3, 3)
    y_NCHW = layer(x_NCHW)
    x_NCHW[4] += 1
    same = [torch.equal(a, b) for a, b in zip(y_NCHW, layer(x_NCHW))]
    assert same == [True] * 4 + [False] * 4 + [True] * 2


def test_synchronized_batch_norm_on_one_device_is_batch_norm_to_the_last_bit():
    layer = layer_of("syncbn")
    assert_same_passes(layer, stock(layer), draw(4, 16, 3, 3), rtol=0)


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


def test_frozen_batch_norm_is_that_of_torchvision():
    ops = pytest.importorskip("torchvision.ops")
    layer, x_NCHW = layer_of("bn_frozen"), draw(4, 16, 3, 3)
    other = ops.FrozenBatchNorm2d(16, eps=1e-5).double()
    other.load_state_dict(layer.state_dict())
    xs = [x_NCHW.clone().requires_grad_() for _ in range(2)]
    ys = [module(x) for module, x in zip((layer, other), xs)]
    for y in ys:
        y.backward(draw(4, 16, 3, 3, seed=3))
    assert_near(ys[0], ys[1].detach())
    assert_near(xs[0].grad, xs[1].grad)


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
    ("name", "options", "sentence"),
    [
        ("brn", {"rmax": 0.5}, "rmax=0.5 must be at least 1"),
        ("brn", {"dmax": -1}, "dmax=-1 must be 0 or more"),
        ("brn", {"warmup": 1.0}, "warmup=1.0 must be a part of training"),
        ("brn", {"warmup": 0.2}, "warmup=0.2 must be less than dmax_at=0.16"),
        ("brn", {"total_examples": 0}, "total_examples=0 must be at least 1"),
        ("brn", {"momentum": 0}, "momentum=0 must lie in (0, 1]"),
        ("gbn", {"ghost_batch": 0}, "ghost_batch=0 must be a whole number of examples from 1 up"),
        ("gbn", {"ghost_batch": 2.5}, "ghost_batch=2.5 must be a whole number"),
        ("gbn", {"eps": 0}, "eps=0 must be positive"),
        ("bn_frozen", {"eps": -1}, "eps=-1 must be positive"),
    ],
)
def test_a_wrong_option_is_refused_with_a_sentence(name, options, sentence):
    with pytest.raises(ValueError) as error:
        build_norm(name, 16, **options)
    assert sentence in str(error.value)


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
