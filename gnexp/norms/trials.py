"""A few small passes through a layer: whether a network can use it, what it pools over, what it is.

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.norms.module_state import copied

SIDE = 8  # pixels: of the last maps of most networks here, and no layer needs fewer
ALIKE = 1e-2  # of the rms: outputs that differ by less are the same but for an eps
EXACT = 1e-3  # of the rms: an output that differs by less is what a formula gives
PASSES = 3  # in training, before evaluation shows whether statistics were kept
TENSORS = ("weight", "bias", "running_mean", "running_var")

Rule = tuple[str, str]  # family and axes, as of models.conversion.norm_kinds.Source


def try_norm(layer: nn.Module, channels: int, examples: int = 2) -> None:
    """Pass normal float32 values through a new layer: in training and back, then in evaluation.

    The layer is used up: its buffers change. Raises ValueError, in words that follow the layer's
    name, unless the output has the shape, dtype and device of its (N, C, 8, 8) input, is finite,
    and has a finite gradient with respect to it.
    """
    shape = (examples, channels, SIDE, SIDE)
    draw = torch.Generator().manual_seed(0)
    x_NCHW = torch.randn(shape, generator=draw).requires_grad_()
    y_NCHW = _usable_output(layer.train(), x_NCHW, "training")
    if not y_NCHW.requires_grad:
        raise ValueError("returns what has no gradient: it is computed outside of autograd")
    loss = (y_NCHW * torch.randn(shape, generator=draw)).sum()
    try:
        (slope,) = torch.autograd.grad(loss, x_NCHW, allow_unused=True)
    except Exception as error:  # whatever the user's backward pass does
        raise ValueError(f"raised {error_text(error)} in a backward pass of {shape}") from error
    if slope is None:
        raise ValueError("returns what does not depend on its input: no gradient arrives there")
    if not torch.isfinite(slope).all():
        raise ValueError(f"has a gradient that is not finite, at normal values of {shape}")
    with torch.no_grad():
        _usable_output(layer.eval(), x_NCHW.detach(), "evaluation")


def _usable_output(layer: nn.Module, x_NCHW: Tensor, mode: str) -> Tensor:
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


def pooled_axes(layer: nn.Module, channels: int, examples: int = 2) -> str:
    """Return the axes, letters of "nchw", along which a new layer mixes values in training.

    An axis is among them when another value at its first or last index changes the output at some
    other index of that axis, by more than 1e-6 of the output's rms; so is "n" when another batch
    before changes the output. examples: at least 2. The layer itself, and the global random state,
    are left as they were. Raises what the layer raises.
    """
    draw = torch.Generator().manual_seed(0)
    shape = (examples, channels, SIDE, SIDE)
    x_NCHW, other_NCHW = (torch.randn(shape, generator=draw) for _ in range(2))
    other_NCHW = 3 * other_NCHW + 1
    moved = _moved(layer)
    y_NCHW = _output(moved, x_NCHW)

    def mixes(axis: int) -> bool:
        for index in {0, shape[axis] - 1} if shape[axis] > 1 else ():
            changed = x_NCHW.clone()
            changed.select(axis, index).copy_(other_NCHW.select(axis, index))
            others = torch.tensor([i for i in range(shape[axis]) if i != index])
            pair = y_NCHW, _output(moved, changed)
            if _differ(*(y.index_select(axis, others) for y in pair)):
                return True
        return False

    found = {letter for axis, letter in enumerate("nchw") if mixes(axis)}
    if _differ(
        _output(moved, x_NCHW, before=[x_NCHW]), _output(moved, x_NCHW, before=[other_NCHW])
    ):
        found.add("n")
    return "".join(letter for letter in "nchw" if letter in found)


def _differ(a: Tensor, b: Tensor) -> bool:
    a, b = a.double(), b.double()
    return bool((a - b).abs().max() > 1e-6 * a.square().mean().sqrt())


def normalizes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a layer divides by a statistic of what it is given.

    That is, the scale of its input does not change its output in training, and one value changes
    the output elsewhere; or the scale of what passed in training changes its output in evaluation.
    shape: of an input, and of the output too. A layer that raises is taken for none, and so is a
    block with weights that mix its input, such as an attention that normalizes its queries.
    """
    if any(sum(n > 1 for n in p.shape) > 1 and p.shape != shape[1:] for p in module.parameters()):
        return False
    x, moved = _normal(shape), _moved(module, TENSORS)
    try:
        y, louder = (_output(moved, s * x) for s in (1.0, 2.0))
        if _near(louder, y, ALIKE):
            one = x.clone()
            one.view(-1)[0] += 3.0
            elsewhere = (_output(moved, one) - y).flatten()[1:].abs()
            return bool(elsewhere.max() > 1e-6 * y.square().mean().sqrt())
        if not any(b.is_floating_point() for b in module.buffers()):
            return False
        quiet, loud = (_output(moved, x, False, PASSES * [s * x]) for s in (1.0, 4.0))
        return not _near(loud, quiet, ALIKE)
    except Exception:  # whatever a layer does with what it was not built for
        return False


def known_rule(module: nn.Module, shape: tuple[int, ...]) -> Rule | None:
    """Return the family and axes of the known layer that computes the same in both modes.

    Outputs are compared at random gains, offsets and running statistics, where the layer has them,
    one number per channel, as TENSORS.
    """
    x, moved = _normal(shape), _moved(module, TENSORS)
    try:
        outputs = [_output(moved, x, training) for training in (True, False)]
    except Exception:  # as above
        return None
    for rule, formulas in _formulas(moved, x):
        if all(_near(y, wanted, EXACT) for y, wanted in zip(outputs, formulas, strict=True)):
            return rule
    return None


@torch.no_grad()
def _formulas(module: nn.Module, x: Tensor) -> list[tuple[Rule, Sequence[Tensor]]]:
    """Return each rule that may be meant, with its outputs in training and in evaluation."""
    held = [getattr(module, key, None) for key in TENSORS]
    sizes = {tuple(t.shape) for t in held if isinstance(t, Tensor)}
    if len(sizes) > 1 or any(len(size) != 1 for size in sizes):
        return []
    weight, bias, mean, var = held
    eps = getattr(module, "eps", 1e-5)
    eps = eps if isinstance(eps, float) else 1e-5
    found: list[tuple[Rule, Sequence[Tensor]]] = []
    if sizes <= {(x.shape[1],)}:
        axes = "2d" if x.ndim == 4 else "first"
        own = F.batch_norm(x, None, None, weight, bias, True, 0.0, eps)
        if mean is not None and var is not None:
            stored = F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
            found += [(("batch", axes), (stored, stored)), (("batch", axes), (own, stored))]
        groups = getattr(module, "num_groups", 1)
        for count, family in ((groups, "group"), (1, "group"), (x.shape[1], "instance")):
            if isinstance(count, int) and count > 0 and x.shape[1] % count == 0:
                found.append(((family, "first"), 2 * [F.group_norm(x, count, weight, bias, eps)]))
    for axis, axes in ((1, "2d"), (-1, "last")):
        size = (x.shape[axis],)
        if sizes <= {size} and (axes == "last" or x.ndim == 4):
            last = x.movedim(axis, -1)
            layer = F.layer_norm(last, size, weight, bias, eps)
            rms = F.rms_norm(last, size, weight, eps) + (0 if bias is None else bias)
            found += [(("layer", axes), 2 * [y.movedim(-1, axis)]) for y in (layer, rms)]
    return found


def _normal(shape: tuple[int, ...]) -> Tensor:
    """Return values whose mean is not 0, and whose variance is far above an eps."""
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1


def _moved(module: nn.Module, drawn: Sequence[str] = ()) -> nn.Module:
    """Return a float32 copy whose parameters are off their start: a gamma of 0 hides everything.

    drawn: the names of tensors that get values of their own, such as running statistics.
    """
    moved = copied(module).float().cpu()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        for key in drawn:
            tensor = getattr(moved, key, None)
            if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
    return moved


def _output(
    module: nn.Module, x: Tensor, training: bool = True, before: Sequence[Tensor] = ()
) -> Tensor:
    """Return what a copy gives, after training passes of other batches; its draws are alike.

    Raises ValueError when that has not the shape of the input.
    """
    trial = copied(module).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for other in before:
            torch.default_generator.manual_seed(0)
            trial(other.clone())
        torch.default_generator.manual_seed(0)
        y = trial.train(training)(x.clone())
    if y.shape != x.shape:
        raise ValueError("the shape changes")
    return y.float()


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return whether a is b to a part of the rms of b, which must not be 0 everywhere."""
    rms = b.square().mean().sqrt()
    return bool(rms > 0 and (a - b).square().mean().sqrt() <= tolerance * rms)


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def error_text(error: Exception) -> str:
    """Return an exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__} ({lines[0]})" if lines else type(error).__name__
