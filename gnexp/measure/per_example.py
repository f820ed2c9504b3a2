"""The covariance of per-example gradients, for norms under which an example has a gradient.

A second road to the noise of mini-batch gradients: where examples do not mix, a mini-batch of B
drawn with replacement has the noise trace / B. Nothing is accumulated here the way
`gnexp.measure.gradient_noise` does it.

Shape suffixes: N examples, C channels, H, W pixels, M examples of a chunk.
"""

from contextlib import ExitStack

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from gnexp.measure.parameters import reported_groups, trainable_parameters
from gnexp.measure.preserve_state import preserve_state

MOST_COMPANIONS = 7  # beside the one example that is watched for a trace of them
# Of an output's largest value: above float32 rounding, far below what a shared statistic does.
MIXING_TOLERANCE = 1e-4


def per_example_covariance(
    model: nn.Module,
    x_NCHW: Tensor,
    y_N: Tensor,
    chunk: int = 32,
) -> list[dict[str, object]]:
    """Trace of the covariance of the N examples' gradients, rows for "all", kinds and layers.

    trace: sum |g - mean g|^2 / N in (loss/parameter)^2, the population's covariance: that of
    drawing one of these N examples with replacement. Train mode, as in training; the model and the
    global random state are left bit-identical. Memory: `chunk` gradients. Where the model mixes
    examples a per-example gradient does not exist: ask `find_mixing_layer` first.
    """
    with preserve_state(model), torch.enable_grad():
        model.train()
        trace = _traces(model, x_NCHW, y_N, chunk)
    return [
        {"parameters": name, "n": len(x_NCHW), "trace": sum(trace[p] for p in members)}
        for name, members in reported_groups(model).items()
    ]


def find_mixing_layer(model: nn.Module, x_NCHW: Tensor) -> str | None:
    """First module whose output for an example depends on the rest of the batch; None if none.

    Measured in train mode, not looked up by type, so it holds for a user's own norm: the first
    example passes twice, among different companions. Every module is watched, since a zero weight
    further on may hide the dependence from the model's output.
    """
    companions = x_NCHW[1 : 1 + MOST_COMPANIONS] if len(x_NCHW) > 1 else x_NCHW[:1]
    ours = _outputs_of_first_example(model, torch.cat([x_NCHW[:1], companions]))
    others = _outputs_of_first_example(model, torch.cat([x_NCHW[:1], 3 * companions + 1]))
    for (name, a), (_, b) in zip(ours, others, strict=True):
        # A diverged network's nan is no sign of mixing.
        tolerance = MIXING_TOLERANCE * float(a.abs().nan_to_num().amax())
        if not torch.allclose(a, b, rtol=0, atol=tolerance, equal_nan=True):
            return name
    return None


def _outputs_of_first_example(model: nn.Module, x_NCHW: Tensor) -> list[tuple[str, Tensor]]:
    """(module, its output for example 0), in the order in which modules finish."""
    outputs: list[tuple[str, Tensor]] = []
    names = {module: name or "model" for name, module in model.named_modules()}

    def watch(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.ndim and len(output) == len(x_NCHW):
            outputs.append((names[module], output[0].clone()))

    # The random state is put back in between, so dropout masks do not pass for mixing.
    with preserve_state(model), torch.no_grad(), ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(watch))
        model.train()(x_NCHW)
    return outputs


def _traces(model: nn.Module, x_NCHW: Tensor, y_N: Tensor, chunk: int) -> dict[str, float]:
    """Parameter name -> trace, by merging the mean and scatter of one chunk after another."""
    weights = {name: p.detach() for name, p in trainable_parameters(model).items()}

    def loss_of_one(weights: dict[str, Tensor], x_CHW: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, weights, x_CHW[None]), y[None])

    gradients = vmap(grad(loss_of_one), in_dims=(None, 0, 0), randomness="different")
    mean = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    scatter = {name: w.new_zeros((), dtype=torch.float64) for name, w in weights.items()}
    seen = 0
    for x_MCHW, y_M in zip(x_NCHW.split(chunk), y_N.split(chunk), strict=True):
        g, m = gradients(weights, x_MCHW, y_M), len(y_M)
        for name, g_M in g.items():
            chunk_mean = g_M.mean(dim=0, dtype=torch.float64)
            step = chunk_mean - mean[name]
            # Scatter within the chunk, and between its mean and that of the chunks before.
            # Centred in the gradient's dtype (copies of a chunk in float64 cost more than the
            # gradients themselves), squared and summed in float64.
            centred_M = g_M - chunk_mean.to(g_M.dtype)
            scatter[name] += torch.linalg.vector_norm(centred_M, dtype=torch.float64).square()
            scatter[name] += step.square().sum() * seen * m / (seen + m)
            mean[name] += step * m / (seen + m)
        seen += m
    return {name: s.item() / seen for name, s in scatter.items()}
