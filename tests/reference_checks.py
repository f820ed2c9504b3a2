"""What any norm of the table is held to: its float64 reference, pass after pass, alone or stacked.

Shapes: N examples, R replicas, C channels, H and W pixels.
"""

import numpy as np
import torch
from torch import nn

from gnexp.norms.reference import table
from gnexp.norms.registry import NORMS, build_norm

RTOL = 1e-10  # float64


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(*shape, generator=g, dtype=torch.float64) + 2


def randomized(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter and buffer but the counters a value of its own; float64."""
    with torch.no_grad():
        for i, (name, tensor) in enumerate(layer.double().state_dict().items()):
            if tensor.is_floating_point() and tensor.ndim:
                drawn = draw(*tensor.shape, seed=100 * seed + i + 1)
                tensor.copy_(drawn.abs() + 0.5 if "running_var" in name else drawn / 3)
    return layer


def layer_of(name: str, channels: int = 16, seed: int = 0, **options: object) -> nn.Module:
    return randomized(build_norm(name, channels, **options), seed)


def numbers(layer: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy().copy() for name, tensor in layer.state_dict().items()}


def assert_near(got, expected, what: str = "", rtol: float = RTOL) -> None:
    expected = np.asarray(expected)
    scale = max(1.0, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(
        torch.as_tensor(got).detach(), expected, rtol=rtol, atol=rtol * scale, err_msg=what
    )


def assert_follows_the_reference(name, shape, training=True, passes=3, **options) -> None:
    """Hold the outputs and the buffers of some passes in a row to those of the reference."""
    layer = layer_of(name, shape[1], **options).train(training)
    state, options = numbers(layer), {**NORMS[name].options, **options}
    for number in range(passes):
        x_NCHW = draw(*shape, seed=50 + number)
        y_NCHW, state = table.reference(name, x_NCHW.numpy(), state, options, training)
        assert_near(layer(x_NCHW), y_NCHW, f"output of pass {number}")
        assert set(state) == set(layer.state_dict())
        for key, tensor in layer.state_dict().items():
            assert_near(tensor, state[key], f"{key} after pass {number}")


def assert_gradients_are_slopes(name, shape, training=True, directions=3, **options) -> None:
    """Hold the gradients of x and of each parameter to the slope, along random directions."""
    layer = layer_of(name, shape[1], **options).train(training)
    before, options = numbers(layer), {**NORMS[name].options, **options}
    x_NCHW, dy_NCHW = draw(*shape).requires_grad_(), draw(*shape, seed=3)
    layer(x_NCHW).backward(dy_NCHW)
    gradients = {"x": x_NCHW.grad, **{k: p.grad for k, p in layer.named_parameters()}}
    assert len(gradients) == 1 + len(NORMS[name].parameters)
    for key, gradient in gradients.items():
        for seed in range(directions):
            direction = draw(*gradient.shape, seed=200 + seed) - 2
            dx = direction.numpy() if key == "x" else np.zeros(shape)
            dstate = {} if key == "x" else {key: direction.numpy()}
            x = x_NCHW.detach().numpy()
            slope_NCHW = table.slope(name, x, before, options, dx, dstate, training)
            terms = dy_NCHW.numpy() * slope_NCHW
            scale = max(1.0, np.abs(terms).sum())  # of terms that cancel
            difference = abs((gradient * direction).sum().item() - terms.sum())
            assert difference < 1e-10 * scale, f"{key}: off by {difference}"  # float64


def assert_stacked_is_each_alone(name, shape, training=True, passes=2, **options) -> None:
    """Hold three replicas in one layer to three layers: outputs, gradients and buffers."""
    alone = [layer_of(name, shape[1], seed=r + 1, **options).train(training) for r in range(3)]
    kind, stack = NORMS[name].stacked
    assert type(alone[0]) is kind
    joined = stack(alone)
    assert joined.training == training
    for number in range(passes):
        xs = [draw(*shape, seed=10 * number + r).requires_grad_() for r in range(3)]
        dys = [draw(*shape, seed=10 * number + r + 5) for r in range(3)]
        x_NCHW = torch.cat([x.detach() for x in xs], dim=1).requires_grad_()
        y_NCHW = joined(x_NCHW)
        y_NCHW.backward(torch.cat(dys, dim=1))
        ys = [layer(x) for layer, x in zip(alone, xs)]
        for y, dy in zip(ys, dys):
            y.backward(dy)
        assert_near(y_NCHW, torch.cat(ys, dim=1).detach(), "output", 1e-12)
        assert_near(x_NCHW.grad, torch.cat([x.grad for x in xs], dim=1), "gradient of x", 1e-12)
    for key, parameter in joined.named_parameters():
        expected = torch.cat([layer.get_parameter(key).grad for layer in alone])
        assert_near(parameter.grad, expected, f"gradient of {key}", 1e-12)
    for key, buffer in joined.named_buffers():
        parts = [layer.get_buffer(key) for layer in alone]
        assert_near(buffer, torch.cat(parts) if buffer.ndim else parts[0], key, 1e-12)


def assert_takes_bfloat16_in_any_layout(name: str, **options: object) -> None:
    """Hold bfloat16 inputs, in both layouts, to what float32 computes and remembers of them."""
    x_NCHW = draw(10, 16, 4, 4).bfloat16()
    exact = build_norm(name, 16, **options)
    expected = exact(x_NCHW.float())
    for layout in (torch.contiguous_format, torch.channels_last):
        layer = build_norm(name, 16, **options)
        x = x_NCHW.clone(memory_format=layout).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = layer(x)
        y.backward(torch.ones_like(y))
        assert y.dtype == x.grad.dtype == torch.bfloat16
        assert y.is_contiguous(memory_format=layout)
        torch.testing.assert_close(y.float(), expected, rtol=2**-7, atol=2**-7)  # bfloat16
        for key, buffer in layer.named_buffers():
            if "control" not in key:  # which backward passes move
                torch.testing.assert_close(buffer, exact.get_buffer(key), rtol=1e-5, atol=1e-6)
