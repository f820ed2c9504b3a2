"""Unknown layers, known by a few small passes: whether they normalize, and as which known layer.

Shapes: N examples, C channels, H and W pixels.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gnexp.norms.copying import copied

ALIKE = 1e-2  # of the rms: outputs that differ by less are the same but for an eps
EXACT = 1e-3  # of the rms: an output that differs by less is what a formula gives
PASSES = 3  # in training, before evaluation shows whether statistics were kept
TENSORS = ("weight", "bias", "running_mean", "running_var")

Rule = tuple[str, str]  # family and axes, as in norm_sources.Source


def normalizes(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a layer divides by a statistic of what it is given.

    That is, the scale of its input does not change its output in training, and one value changes
    the output elsewhere; or the scale of what passed in training changes its output in evaluation.
    shape: of an input, and of the output too. A layer that raises is taken for none, and so is a
    block with weights that mix its input, such as an attention that normalizes its queries.
    """
    if any(sum(n > 1 for n in p.shape) > 1 and p.shape != shape[1:] for p in module.parameters()):
        return False
    x = _normal(shape)
    moved = _moved(module)
    try:
        y, louder = (_output(moved, s * x, training=True) for s in (1.0, 2.0))
        if _near(louder, y, ALIKE):
            one = x.clone()
            one.view(-1)[0] += 3.0
            elsewhere = (_output(moved, one, training=True) - y).flatten()[1:].abs()
            return bool(elsewhere.max() > 1e-6 * y.square().mean().sqrt())
        if not any(b.is_floating_point() for b in module.buffers()):
            return False
        quiet, loud = (
            _output(moved, x, training=False, before=PASSES * [s * x]) for s in (1.0, 4.0)
        )
        return not _near(loud, quiet, ALIKE)
    except Exception:  # whatever a layer does with what it was not built for
        return False


def known_rule(module: nn.Module, shape: tuple[int, ...]) -> Rule | None:
    """Return the family and axes of the known layer that computes the same in both modes.

    Outputs are compared at random gains, offsets and running statistics, where the layer has them,
    one number per channel, as TENSORS.
    """
    x, moved = _normal(shape), _moved(module)
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


def _moved(module: nn.Module) -> nn.Module:
    """Return a float32 copy whose gains are not 0 and whose running statistics are not 0 and 1."""
    moved = copied(module).float().cpu()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        for key in TENSORS:
            tensor = getattr(moved, key, None)
            if isinstance(tensor, Tensor) and tensor.ndim == 1 and tensor.is_floating_point():
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=draw))
    return moved


def _output(module: nn.Module, x: Tensor, training: bool, before: Sequence[Tensor] = ()) -> Tensor:
    """Return what a copy of the layer gives, after training passes of other batches."""
    trial: Callable[[Tensor], Tensor] = copied(module).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        for other in before:
            trial(other.clone())
        y = trial.train(training)(x.clone())
    if y.shape != x.shape:
        raise ValueError("the shape changes")
    return y.float()


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Return whether a is b to a part of the rms of b, which must not be 0 everywhere."""
    rms = b.square().mean().sqrt()
    return bool(rms > 0 and (a - b).square().mean().sqrt() <= tolerance * rms)
