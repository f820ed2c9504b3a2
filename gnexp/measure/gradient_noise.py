"""The noise of mini-batch gradients at fixed weights, from independent mini-batches.

Shape suffixes: N examples of a mini-batch, D draws of one pass, C channels, H, W pixels, P entries
of the flat gradient, T parameter tensors, B blocks of draws, R rows reported. K is the number of
draws.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import stdtrit
from torch import Tensor, nn

from gnexp.measure.parameters import reported_groups, trainable_parameters
from gnexp.measure.preserve_state import preserve_state
from gnexp.norms.base import ReplicatedNorm
from gnexp.training.stack import Stack, why_not_stackable

LEAST_DRAWS = 4  # two blocks of two: what is left without one block must still have a variance
Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def measure_gradients(
    model: nn.Module,
    batches: Iterable[Batch],
    k: int,
    batch: int,
    blocks: int = 32,
    loss: Loss = F.cross_entropy,
) -> list[dict[str, object]]:
    """Noise and signal of the mini-batch gradient, one row for "all", each kind, each layer.

    batches: yields (x_NCHW, y_N), at least `k` independent draws with N = `batch` on the model's
    device; exactly `k` >= LEAST_DRAWS are taken. loss(logits, y_N) is the mean over them. In train
    mode; afterwards the model and global random state are bit-identical to before. Where the model
    allows it, several draws pass at once through copies of it, see `draws_per_pass`. The numbers:
    see `_row`. Rows are mini-batches, not examples: under batch normalization a per-example
    gradient does not exist.
    """
    groups = reported_groups(model)
    parameters = trainable_parameters(model)
    with preserve_state(model), torch.enable_grad():
        model.train()
        gradients = _gradients(model, batches, k, loss)
        sizes = [p.numel() for p in parameters.values()]
        noise_TB, signal_TB, block_draws = _estimates(gradients, sizes, min(blocks, k))
    weights_T = torch.stack([p.detach().double().square().sum() for p in parameters.values()])
    # Both estimates, like a squared norm, add up over parameter tensors.
    names = list(parameters)
    rows_RT = np.array([[name in group for name in names] for group in map(set, groups.values())])
    noise_RB, signal_RB = rows_RT @ noise_TB.cpu().numpy(), rows_RT @ signal_TB.cpu().numpy()
    norm_R = np.sqrt(rows_RT @ weights_T.cpu().numpy())
    return [
        _row(name, k, batch, noise_RB[r], signal_RB[r], block_draws, float(norm_R[r]))
        for r, name in enumerate(groups)
    ]


def choose_draws(total_forward_passes: int) -> int:
    """Default number of draws per measured point: a tenth of the training, over three points.

    total_forward_passes: those of the whole training, at the same batch size as the draws, so that
    one draw costs one of them. Never below 64, never above 4096.
    """
    return max(64, min(4096, total_forward_passes // 30))


def draws_per_pass(k: int, x_NCHW: Tensor) -> int:
    """Return the number of mini-batches, of `k` like this one, that share a pass; 1: none.

    Draws go together while a pass of one leaves the device idle: up to 10 draws or 10 images of
    3x32x32 on a CPU, up to 16 draws or 512 such images on CUDA, smaller images in proportion. On
    a CPU larger passes were slower than draw by draw (resnet8 and tiny, one thread).
    """
    images, most = (512, 16) if x_NCHW.device.type == "cuda" else (10, 10)
    fitting = images * 3 * 32 * 32 // max(1, x_NCHW.numel())
    return max(1, min(fitting, most, k))


def block_jackknife(estimates: np.ndarray, block_draws: np.ndarray) -> tuple[float, float]:
    """95 % interval from an estimate and its values without each block: (lo, hi).

    estimates: (1 + B,), from all draws, then without block 0, 1, ...; block_draws: (B,) draws per
    block, which may differ. Student's t with B - 1 degrees of freedom.

    For a mean, estimate - estimate_without_j = (block mean - mean) / (h_j - 1) with h_j = K / draws
    in block j, and (block mean - mean)^2 / (h_j - 1) has exactly the variance of the mean as its
    expectation, whatever the block sizes. Hence the weights; equal blocks give the familiar
    (B - 1) / B * sum of squares.
    """
    h_B = block_draws.sum() / block_draws
    variance = np.mean((h_B - 1) * (estimates[0] - estimates[1:]) ** 2)
    half_width = stdtrit(len(block_draws) - 1, 0.975) * np.sqrt(variance)
    return float(estimates[0] - half_width), float(estimates[0] + half_width)


def _estimates(
    gradients: Iterable[Tensor], sizes: list[int], blocks: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """Return (noise, signal) per tensor of these sizes, each (T, 1 + B) float64: of all draws, then
    without a block; and the draws of each block, (B,).

    Sums of the gradients g_P are kept by block; no draw waits for the device.
    """
    block_draws = np.zeros(blocks, dtype=np.int64)
    for i, g_P in enumerate(gradients):
        if i == 0:
            first_P = g_P.to(torch.promote_types(g_P.dtype, torch.float32))
            d_BP = first_P.new_zeros(blocks, len(first_P))
            squares_BT = first_P.new_zeros(blocks, len(sizes), dtype=torch.float64)
        # The first gradient is taken off before anything is squared: sum |g|^2 - |sum g|^2 / K
        # would lose every digit of a noise far below the signal. Both estimates allow the shift.
        d_P = g_P - first_P
        d_BP[i % blocks] += d_P
        norms = torch._foreach_norm(d_P.split(sizes), dtype=torch.float64)
        squares_BT[i % blocks] += torch.stack(norms).square()
        block_draws[i % blocks] += 1
    first_P, total_P = first_P.double(), d_BP.sum(dim=0, dtype=torch.float64)
    total_T, draws, noise, signal = squares_BT.sum(dim=0), int(block_draws.sum()), [], []
    for block in (None, *range(blocks)):
        k, sum_P, squares_T = draws, total_P, total_T
        if block is not None:
            k -= int(block_draws[block])
            sum_P, squares_T = sum_P - d_BP[block], squares_T - squares_BT[block]
        noise_T = (squares_T - _squared_norms(sum_P, sizes) / k) / (k - 1)
        noise.append(noise_T)
        signal.append(_squared_norms(first_P + sum_P / k, sizes) - noise_T / k)
    return torch.stack(noise, dim=1), torch.stack(signal, dim=1), block_draws


def _gradients(model: nn.Module, batches: Iterable[Batch], k: int, loss: Loss) -> Iterator[Tensor]:
    """Yield the gradients (P,) of exactly `k` mini-batches, in their order."""
    draws = islice(batches, k)
    first = next(draws)
    nets: dict[int, nn.Module] = {1: model}
    together = draws_per_pass(k, first[0])
    # Before the loop, since on CUDA both trying and stacking wait for the device; and unchanged,
    # since new layers draw random numbers, which may be meant for the mini-batches to come.
    with preserve_state(model):
        if together > 1 and not _can_pass_together(model, first[0]):
            together = 1
        for size in {together, k % together} - {0, 1}:
            nets[size] = Stack([model] * size).train()
    every = chain([first], draws)
    while some := list(islice(every, together)):
        yield from _pass(nets[len(some)], model, some, loss)


def _can_pass_together(model: nn.Module, x_NCHW: Tensor) -> bool:
    """Return True when stacked copies of the model, one per draw, give the model's own results."""
    # A layer may read in train mode what earlier draws left in its buffers, as spectral norm does;
    # copies would then follow other draws than the model. Stock batch norm only writes them.
    with_buffers = [
        module for module in model.modules() if any(True for _ in module.buffers(False))
    ]
    if not all(map(_never_reads_what_it_wrote, with_buffers)):
        return False
    return why_not_stackable([model, model], x_NCHW.shape[1:]) is None


def _never_reads_what_it_wrote(module: nn.Module) -> bool:
    if isinstance(module, ReplicatedNorm):
        return not module.reads_state
    return type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _pass(net: nn.Module, model: nn.Module, draws: Sequence[Batch], loss: Loss) -> Iterator[Tensor]:
    """Return the gradients (P,) of D draws from one pass through `net`.

    net: for D = 1 the model itself, else a `Stack` of D copies, one for each draw.
    """
    if net is model:
        outputs = [model(x_NCHW) for x_NCHW, _ in draws]
    else:
        outputs = net(torch.stack([x_NCHW for x_NCHW, _ in draws], dim=1)).unbind(1)
    losses = [loss(output, y_N) for output, (_, y_N) in zip(outputs, draws, strict=True)]
    pairs = zip(net.parameters(), model.parameters(), strict=True)
    trainable = [ours for ours, theirs in pairs if theirs.requires_grad]
    gradients = torch.autograd.grad(losses, trainable, materialize_grads=True)
    # A stacked tensor holds the copies one after the other, be it (D * O, ...) or (D, O, ...).
    return map(torch.cat, zip(*(g.reshape(len(draws), -1) for g in gradients), strict=True))


def _squared_norms(v_P: Tensor, sizes: list[int]) -> Tensor:
    return torch.stack([part.square().sum() for part in v_P.split(sizes)])


def _row(
    name: str,
    k: int,
    batch: int,
    noise_B: np.ndarray,
    signal_B: np.ndarray,
    block_draws: np.ndarray,
    weight_norm: float,
) -> dict[str, object]:
    """Return the numbers of a group of parameters, of its K gradients g, in (loss/parameter)^2.

    noise   (sum |g|^2 - |sum g|^2 / K) / (K - 1): trace of the covariance of one mini-batch
            gradient, unbiased; it belongs to this batch size
    signal  |mean g|^2 - noise / K: squared norm of the expected gradient, unbiased, so it may
            come out negative; it is not clipped
    *_lo, *_hi  95 % intervals, see `block_jackknife`
    relative_noise  noise / signal; inf where signal <= 0, nan where both are zero
    noise_scale     batch * noise / signal, in examples; inf and nan likewise
    weight_norm     L2 norm of those parameters
    """
    noise, signal = float(noise_B[0]), float(signal_B[0])
    noise_lo, noise_hi = block_jackknife(noise_B, block_draws)
    signal_lo, signal_hi = block_jackknife(signal_B, block_draws)
    return {
        "parameters": name,
        "k": k,
        "noise": noise,
        "noise_lo": noise_lo,
        "noise_hi": noise_hi,
        "signal": signal,
        "signal_lo": signal_lo,
        "signal_hi": signal_hi,
        "relative_noise": _ratio(noise, signal),
        "noise_scale": batch * _ratio(noise, signal),
        "weight_norm": weight_norm,
    }


def _ratio(noise: float, signal: float) -> float:
    if signal <= 0:
        return float("nan") if noise == 0 == signal else float("inf")
    return noise / signal
