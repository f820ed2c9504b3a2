"""A few small passes through a norm: whether a network can use it, and what it pools over.

Shapes: N examples, C channels, H and W pixels.
"""

import torch
from torch import Tensor, nn

from gnexp.norms.copying import copied

SIDE = 8  # pixels: of the last maps of most networks here, and no layer needs fewer


def try_norm(layer: nn.Module, channels: int, examples: int = 2) -> None:
    """Pass normal float32 values through a new layer: in training and back, then in evaluation.

    The layer is used up: its buffers change. Raises ValueError, in words that follow the layer's
    name, unless the output has the shape, dtype and device of its (N, C, 8, 8) input, is finite,
    and has a finite gradient with respect to it.
    """
    shape = (examples, channels, SIDE, SIDE)
    draw = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(shape, generator=draw).requires_grad_()
    y_NCHW = _output(layer.train(), x_NCHW, "training")
    if not y_NCHW.requires_grad:
        raise ValueError("returns what has no gradient: it is computed outside of autograd")
    try:
        (slope,) = torch.autograd.grad(
            (y_NCHW * torch.randn(shape, generator=draw)).sum(), x_NCHW, allow_unused=True
        )
    except Exception as error:  # whatever the user's backward pass does
        raise ValueError(f"raised {error_text(error)} in a backward pass of {shape}") from error
    if slope is None:
        raise ValueError("returns what does not depend on its input: no gradient arrives there")
    if not torch.isfinite(slope).all():
        raise ValueError(f"has a gradient that is not finite, at normal values of {shape}")
    with torch.no_grad():
        _output(layer.eval(), x_NCHW.detach(), "evaluation")


@torch.no_grad()
def pooled_axes(layer: nn.Module, channels: int, examples: int = 2) -> str:
    """Return the axes, letters of "nchw", along which a new layer mixes values in training.

    An axis is among them when another value at its first or last index changes the output at some
    other index of that axis, by more than 1e-6 of the output's rms; so is "n" when another batch
    before changes the output. examples: at least 2. Parameters are moved off their start first,
    since a gamma of zero would hide everything. Draws of the layer are the same in every pass. The
    layer itself, and the global random state, are left as they were. Raises what the layer raises.
    """
    draw = torch.Generator().manual_seed(0)
    shape = (examples, channels, SIDE, SIDE)
    x_NCHW, other_NCHW = (torch.randn(shape, generator=draw) for _ in range(2))
    other_NCHW = 3 * other_NCHW + 1
    moved = copied(layer).train()
    for parameter in moved.parameters():
        parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))

    def output(*batches: Tensor) -> Tensor:
        """Return the output for the last batch, after those before it."""
        trial = copied(moved)
        for batch in batches:
            torch.default_generator.manual_seed(0)
            y_NCHW = trial(batch * 1)
        return y_NCHW.double()

    def differs(a: Tensor, b: Tensor) -> bool:
        return bool((a - b).abs().max() > 1e-6 * a.square().mean().sqrt())

    def mixes(axis: int) -> bool:
        for index in {0, shape[axis] - 1} if shape[axis] > 1 else ():
            changed = x_NCHW.clone()
            changed.select(axis, index).copy_(other_NCHW.select(axis, index))
            others = [i for i in range(shape[axis]) if i != index]
            if differs(
                *(y.index_select(axis, torch.tensor(others)) for y in (y_NCHW, output(changed)))
            ):
                return True
        return False

    with torch.random.fork_rng(devices=[]):
        y_NCHW = output(x_NCHW)
        found = {letter for axis, letter in enumerate("nchw") if mixes(axis)}
        if differs(output(x_NCHW, x_NCHW), output(other_NCHW, x_NCHW)):
            found.add("n")
    return "".join(letter for letter in "nchw" if letter in found)


def _output(layer: nn.Module, x_NCHW: Tensor, mode: str) -> Tensor:
    shape = tuple(x_NCHW.shape)
    try:
        # Of a copy, since a layer that overwrites its input would overwrite a leaf here.
        y_NCHW = layer(x_NCHW * 1)
    except Exception as error:  # whatever the user's forward pass does
        raise ValueError(
            f"raised {error_text(error)} in a forward pass of {shape} in {mode}"
        ) from error
    if not isinstance(y_NCHW, Tensor):
        raise ValueError(f"returns a {type(y_NCHW).__name__} in {mode}, not one tensor")
    if y_NCHW.shape != x_NCHW.shape:
        raise ValueError(f"returns the shape {tuple(y_NCHW.shape)} for {shape} in {mode}")
    for what in ("dtype", "device"):
        got, wanted = getattr(y_NCHW, what), getattr(x_NCHW, what)
        if got != wanted:
            raise ValueError(f"returns the {what} {got} for {wanted} in {mode}")
    if not torch.isfinite(y_NCHW).all():
        raise ValueError(f"returns values that are not finite for normal ones in {mode}")
    return y_NCHW


def error_text(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} ({lines[0]})" if lines else type(error).__name__
