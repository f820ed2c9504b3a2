"""The memory of one training update, and the largest batch that fits.

Counted, for a model on a CPU: every tensor that the forward and the backward pass make is followed
from its birth to its death, on PyTorch's "meta" device, where tensors have sizes but no values.
That is the same on every machine, and knows nothing of what an allocator rounds up, of a
convolution's workspace or of the CUDA context. Measured, for a model on CUDA: the peak of
PyTorch's allocator, workspaces included.

An update as in training here: SGD with momentum, in place; gradients are dropped before the forward
pass, so they come to life while what the backward pass needs dies. No copies of the images beside
the batch itself.

Shapes: N images, K classes.
"""

import weakref
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gnexp.norms.module_state import copied

_BY_LINE = 7  # batches that are tried along a line before halving


def training_bytes(model: nn.Module, input_shape: Sequence[int], batch: int) -> int:
    """Return the memory in bytes of one training update by `batch` inputs of (C, H, W).

    batch: inputs in one forward pass. In the model's dtype. Counted where the model is on a CPU,
    measured where it is on CUDA; see the head of this file. The model is left as it is. Raises what
    the model itself raises at that batch (PyTorch's BN refuses to train with a single value per
    channel).
    """
    if next(model.parameters()).is_cuda:
        return _measured(model, input_shape, batch)
    with torch.random.fork_rng(devices=[]):
        try:
            return _counted(model, "meta", input_shape, batch)
        except (NotImplementedError, RuntimeError):  # it decides by values, or meta lacks something
            return _counted(model, "cpu", input_shape, batch)


def _counted(model: nn.Module, device: str, input_shape: Sequence[int], batch: int) -> int:
    trial, live = copied(model).to(device).train(), _LiveBytes()
    trial.zero_grad()
    x, y = _data(trial, input_shape, batch)
    for tensor in (*trial.parameters(), *trial.buffers(), x, y):
        live.add(tensor)
    with torch.enable_grad(), live:
        F.cross_entropy(trial(x), y).backward()
    return live.peak + sum(p.nbytes for p in trial.parameters() if p.requires_grad)  # momentum


def _data(model: nn.Module, input_shape: Sequence[int], batch: int) -> tuple[Tensor, Tensor]:
    one = next(model.parameters())
    x = torch.zeros(batch, *input_shape, dtype=one.dtype, device=one.device)
    return x, torch.zeros(batch, dtype=torch.int64, device=one.device)


class _LiveBytes(TorchDispatchMode):
    """Within the block, counts the bytes of the storages that tensors hold: now and at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, weakref.ref] = {}  # by address, which only the living have
        self.now = self.peak = 0

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages:
            return

        def forget(_: object) -> None:
            del self.storages[key]
            self.now -= size

        self.storages[key] = weakref.ref(storage, forget)
        self.now += size
        self.peak = max(self.peak, self.now)

    def __torch_dispatch__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.add(value)
        return result


def _measured(model: nn.Module, input_shape: Sequence[int], batch: int) -> int:
    """Return the peak of PyTorch's allocator above what lived before, on the model's CUDA device.

    The first update is for what CUDA's libraries allocate once and keep.
    """
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device]), torch.enable_grad():
        _update(model, input_shape, batch)
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _update(model, input_shape, batch)
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before


def _update(model: nn.Module, input_shape: Sequence[int], batch: int) -> None:
    trial = copied(model).train()
    trial.zero_grad()
    velocities = [torch.zeros_like(p) for p in trial.parameters() if p.requires_grad]
    x, y = _data(trial, input_shape, batch)
    F.cross_entropy(trial(x), y).backward()
    del velocities  # until here they were to take their place


def largest_batch(
    build_model: Callable[[], nn.Module],
    input_shape: Sequence[int],
    memory_bytes: int,
    most: int = 4096,
) -> int:
    """Return the largest batch, up to `most`, whose update fits into `memory_bytes`; 0 if none.

    Memory is nearly a line in the batch: guesses follow it until a batch fits and the next does
    not. Raises what the model raises at a batch that is tried.
    """
    model = build_model()

    def needed(batch: int) -> float:
        try:
            return training_bytes(model, input_shape, batch)
        except torch.cuda.OutOfMemoryError:
            return float("inf")

    known = {1: needed(1)}
    if known[1] > memory_bytes:
        return 0
    fits, fails, guess = 1, most + 1, 2
    while fails - fits > 1:
        guess = min(max(guess, fits + 1), fails - 1)
        known[guess] = needed(guess)
        fits, fails = (guess, fails) if known[guess] <= memory_bytes else (fits, guess)
        finite = sorted(item for item in known.items() if item[1] < float("inf"))
        if len(known) > _BY_LINE or len(finite) < 2:
            guess = (fits + fails) // 2
        else:
            guess = _along_line(*finite[-2:], memory_bytes)
    return fits


def _along_line(low: tuple[int, float], high: tuple[int, float], memory_bytes: int) -> int:
    """Return the batch at which the line through two points (batch, bytes) fills the memory."""
    slope = (high[1] - low[1]) / (high[0] - low[0])
    return high[0] + int((memory_bytes - high[1]) // slope) if slope > 0 else 2 * high[0]
