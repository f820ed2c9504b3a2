"""The memory of a training update, counted tensor by tensor, and the largest batch that fits."""

import copy
import functools

import pytest
import torch
from no_trace import no_trace
from torch import nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from gnexp.measure import memory
from gnexp.measure.memory import largest_batch, training_bytes
from gnexp.models.resnet import build_model
from gnexp.norms.registry import NORMS, build_norm

FLOAT32, INT64 = 4, 8  # bytes
# Layers whose backward pass keeps their input and nothing else of its size.
ONE_KERNEL = ("bn", "gn", "ln", "in", "brn", "syncbn", "gn_ws", "none", "none_fixup")
SHAPE = (3, 16, 16)


def net(norm, model="resnet8", width=8):
    return build_model(model, functools.partial(build_norm, norm), 10, width)


def small_net(norm):
    layers = (nn.Conv2d(3, 4, 3, padding=1, bias=False), norm, nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("n", [1, 5])
@pytest.mark.parametrize(
    ("norm", "parameters", "buffers", "statistics"),
    [
        (lambda: nn.BatchNorm2d(4), 8, 2 * 4 * FLOAT32 + INT64, lambda n: 4),
        (lambda: nn.GroupNorm(2, 4), 8, 0, lambda n: 2 * n),
        (lambda: nn.GroupNorm(4, 4), 8, 0, lambda n: 4 * n),
        (nn.Identity, 0, 0, None),
    ],
)
def test_the_memory_of_a_small_network_is_the_sum_written_by_hand(
    norm, parameters, buffers, statistics, n
):
    weights = (4 * 3 * 9 + parameters + 4 * 2 + 2) * FLOAT32
    images, a_map = n * 3 * 64 * FLOAT32, n * 4 * 64 * FLOAT32
    # Convolution: its input. Norm: its input, a mean and a 1 / sigma per statistic. ReLU: its
    # output. Labels. At the worst moment the ReLU turns the gradient of its output into that of
    # its input, two maps more; beside them are the loss and the gradients of the linear layer.
    worst = images + a_map + n * INT64 + 2 * a_map + 11 * FLOAT32
    if statistics:
        worst += a_map + 2 * statistics(n) * FLOAT32
    fixed = 2 * weights + buffers  # with momentum
    found = training_bytes(small_net(norm()), (3, 8, 8), n)
    assert abs(found - fixed - worst) <= n * 4 * FLOAT32 + 16


@pytest.mark.parametrize("norm", ["bn", "gn", "online"])
def test_counting_without_values_is_counting_on_the_cpu(norm, monkeypatch):
    model = net(norm)
    without = training_bytes(model, SHAPE, 3)
    counted, devices = memory._counted, []

    def on_cpu(model, device, *rest):
        devices.append(device)
        if device == "meta":
            raise NotImplementedError
        return counted(model, device, *rest)

    monkeypatch.setattr(memory, "_counted", on_cpu)
    assert training_bytes(model, SHAPE, 3) == without
    assert devices == ["meta", "cpu"]


def peak_of_the_allocator(model, n):
    """The oracle: what PyTorch's allocator on the CPU was asked for, as its profiler saw it."""
    model = copy.deepcopy(model).train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        x, y = torch.zeros(n, *SHAPE), torch.zeros(n, dtype=torch.int64)
        F.cross_entropy(model(x), y).backward()
    events = profiler.profiler.kineto_results.events()
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize("norm", ["bn", "gn", "none"])
def test_the_count_is_what_the_allocator_is_asked_for_but_for_workspace_within_operations(norm):
    model, n = net(norm, width=16), 16
    held = (*model.parameters(), *model.parameters(), *model.buffers())  # and momentum
    moving = training_bytes(model, SHAPE, n) - sum(t.nbytes for t in held)
    assert 1 <= peak_of_the_allocator(model, n) / moving <= 1.3


@pytest.mark.parametrize("norm", ["bn", "gn", "gn_ws", "bn_frozen", "online"])
def test_memory_grows_with_the_batch_and_with_a_norm_of_one_kernel_as_with_none(norm):
    def growth(norm):
        small, large = (training_bytes(net(norm), SHAPE, n) for n in (8, 16))
        return large - small

    if norm in ONE_KERNEL:
        assert growth(norm) == pytest.approx(growth("none"), rel=0.12)
    elif norm == "bn_frozen":  # it multiplies by constants, so that no activation is kept
        assert growth(norm) < 0.8 * growth("none")
    else:  # written out, they keep what lies between
        assert growth("none") < growth(norm) < 4 * growth("none")


def test_float64_takes_twice_the_memory():
    model = net("gn")
    single = training_bytes(model, SHAPE, 8)
    assert training_bytes(model.double(), SHAPE, 8) == pytest.approx(2 * single, rel=1e-3)


@pytest.mark.parametrize(("norm", "megabytes"), [("bn", 1), ("none", 10)])
def test_the_largest_batch_fits_and_one_more_image_does_not(norm, megabytes, monkeypatch):
    tried = []

    def watched(model, shape, batch):
        tried.append(batch)
        return training_bytes(model, shape, batch)

    monkeypatch.setattr(memory, "training_bytes", watched)
    largest = largest_batch(lambda: net(norm), SHAPE, megabytes * 10**6)
    monkeypatch.undo()
    assert training_bytes(net(norm), SHAPE, largest) <= megabytes * 10**6
    assert training_bytes(net(norm), SHAPE, largest + 1) > megabytes * 10**6
    assert len(tried) <= 8


def test_the_largest_batch_is_found_where_memory_is_no_line(monkeypatch):
    for bound in (1, 99, 3000):
        monkeypatch.setattr(
            memory, "training_bytes", lambda m, s, n, bound=bound: 1 + (n > bound) * 10**9
        )
        assert largest_batch(lambda: None, SHAPE, 1000) == bound


def test_no_batch_fits_into_too_little_memory_and_none_is_larger_than_asked_for():
    assert largest_batch(lambda: net("gn"), SHAPE, 1000) == 0
    assert largest_batch(lambda: net("gn"), SHAPE, 10**12, most=7) == 7
    assert largest_batch(lambda: net("gn"), SHAPE, 10**12, most=1) == 1


@pytest.mark.parametrize("bound", [0, 37])
def test_a_batch_that_runs_out_of_memory_does_not_fit(bound, monkeypatch):
    def short_of_memory(model, shape, batch):
        if batch > bound:
            raise torch.cuda.OutOfMemoryError
        return 10 * batch

    monkeypatch.setattr(memory, "training_bytes", short_of_memory)
    assert largest_batch(lambda: None, SHAPE, 10**9) == bound


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_counting_leaves_no_trace(norm):
    model = net(norm).eval()
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    with no_trace(model):
        training_bytes(model, SHAPE, 2)


def test_what_the_model_refuses_is_raised():
    model = nn.Sequential(nn.Conv2d(3, 4, 16), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        training_bytes(model, SHAPE, 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("norm", NORMS)
def test_on_cuda_the_peak_is_measured_and_near_the_count(norm):
    model = net(norm, width=16)
    counted = training_bytes(model, (3, 32, 32), 64)
    measured = [training_bytes(model.cuda(), (3, 32, 32), 64) for _ in range(2)]
    assert measured[0] == measured[1]
    assert 0.8 * counted < measured[0] < 2 * counted + 2**28  # a convolution's workspace
