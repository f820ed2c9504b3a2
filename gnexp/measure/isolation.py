"""The influence of one example: on the other outputs of its batch, and on the gradient.

Shapes: N examples, C channels, H and W pixels, K numbers per example, P parameters.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gnexp.measure.parameters import trainable_parameters
from gnexp.measure.preserve_state import preserve_state


def cross_example_share(layer: nn.Module, x_NCHW: Tensor) -> float:
    """Return which share of the Jacobian's Frobenius norm lies in dy_i / dx_j with i != j.

    One backward pass per output value: small maps only. Without a cross-example entry it is 0.
    """
    n = len(x_NCHW)
    with preserve_state(layer), torch.enable_grad():
        jacobian = torch.autograd.functional.jacobian(layer, x_NCHW)
    squares_NN = jacobian.reshape(n, -1, n, x_NCHW[0].numel()).square().sum(dim=(1, 3))
    cross = squares_NN.masked_fill(torch.eye(n, dtype=torch.bool), 0).sum().item()
    return (cross / squares_NN.sum().item()) ** 0.5 if cross != 0 else 0.0


def training_output(model: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Return the output in train mode; model and global random state are left as they were."""
    with preserve_state(model), torch.no_grad():
        model.train()
        return model(x_NCHW)


def with_replaced(batch: Tensor, replaced: int, other: Tensor) -> Tensor:
    """Return a copy of the batch with one example, or label, replaced."""
    batch = batch.clone()
    batch[replaced] = other
    return batch


def state_written(layer: nn.Module, x_NCHW: Tensor) -> list[str]:
    """Return the names of the floating-point buffers that a forward pass in train mode changes."""
    with preserve_state(layer), torch.no_grad():
        layer.train()
        before = {name: b.clone() for name, b in layer.named_buffers() if b.is_floating_point()}
        layer(x_NCHW)
        now = dict(layer.named_buffers())
        return [name for name, b in before.items() if not torch.equal(b, now[name])]


def depends_on_the_past(layer: nn.Module, x_NCHW: Tensor, earlier_NCHW: Tensor) -> bool:
    """Return whether the output in train mode differs after another batch has gone through.

    Then examples act on steps for which they are not drawn, through what the layer has kept.
    """
    fresh = training_output(layer, x_NCHW)
    with preserve_state(layer), torch.no_grad():
        state = torch.random.get_rng_state()  # so that a layer that draws, draws the same
        layer.train()
        layer(earlier_NCHW)
        torch.random.set_rng_state(state)
        return not torch.equal(layer(x_NCHW), fresh)


def per_example_gradients(model: nn.Module, x_NCHW: Tensor, y_N: Tensor) -> Tensor:
    """Return (N, P): the gradient of each example's own cross-entropy, of one forward pass.

    In train mode. Where examples share statistics the gradient of example i passes through the
    others too, and so depends on all of them. Parameters in the order of `named_parameters`; the
    model is left as it was. N backward passes.
    """
    parameters = list(trainable_parameters(model).values())
    rows = []
    with preserve_state(model), torch.enable_grad():
        model.train()
        losses_N = F.cross_entropy(model(x_NCHW), y_N, reduction="none")
        for loss in losses_N:
            gradients = torch.autograd.grad(
                loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def clipped_sum(g_NP: Tensor, clip: float) -> Tensor:
    """Return (P,): the sum of the rows, each scaled down to the norm `clip` where it exceeds it."""
    norms_N = g_NP.norm(dim=1, keepdim=True)
    return (g_NP * (clip / norms_N).clamp(max=1.0)).sum(dim=0)


def moves_of_clipped_sum(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    replacements: Sequence[tuple[Tensor, Tensor]],
    clip: float,
) -> list[float]:
    """Return how far each replacement, (image, label), of one example moves the clipped sum.

    The examples of the batch take turns in being replaced. Norms, in units of the gradient.
    """
    before_P = clipped_sum(per_example_gradients(model, x_NCHW, y_N), clip)
    moves = []
    for turn, (other_CHW, other_y) in enumerate(replacements):
        replaced = turn % len(x_NCHW)
        x, y = with_replaced(x_NCHW, replaced, other_CHW), with_replaced(y_N, replaced, other_y)
        after_P = clipped_sum(per_example_gradients(model, x, y), clip)
        moves.append((after_P - before_P).norm().item())
    return moves
