"""Measure the machine: matrix products per second, operations of a model, memory."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from gnexp.runner.benchmark.timer import Window
from gnexp.training.precision import matrix_precision

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}  # rows and columns of a large matrix
AT_ONCE = {"cpu": 1, "cuda": 10}  # products between two looks at the clock, which wait for them
WARM_UP = 2


def product_size(device: torch.device) -> int:
    """Return the rows and columns of the matrices that are multiplied."""
    return PRODUCT_SIZE[device.type]


def multiply(device: torch.device, precision: str, window: Window) -> float:
    """Return the FLOP/s of products of large square matrices, 2 n^3 operations each.

    float32, with TF32 for precision "tf32"; bfloat16 matrices for "bf16".
    """
    n = product_size(device)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with matrix_precision(precision):
        for _ in range(WARM_UP):
            torch.mm(a, b, out=out)
        window.open()
        enough = False
        while not enough:
            for _ in range(AT_ONCE[device.type]):
                torch.mm(a, b, out=out)
            window.synchronize()  # or thousands of them would queue up
            enough = window.tick(AT_ONCE[device.type])
    return window.timing.examples_per_s * 2 * n**3


def flop_per_example(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the operations of convolutions and linear layers for one image, forward and backward.

    shape: (C, H, W). A multiplication and an addition are two; norms and activations are not
    counted, nor is the gradient by the image, which training does not need.
    """
    with FlopCounterMode(display=False) as counter:
        model.train()(torch.randn(1, *shape)).sum().backward()
    return counter.get_total_flops()


def peak_memory_bytes(pids: Iterable[int]) -> int | None:
    """Return the sum of the largest resident sizes these processes have had since they started.

    What they share (libraries, pages not yet written to) counts in each. None where the system
    has no /proc.
    """
    return _sum_of("VmHWM", pids)


def resident_bytes() -> int | None:
    """Return the resident size of this process at this moment, None where there is no /proc."""
    return _sum_of("VmRSS", [os.getpid()])


def _sum_of(field: str, pids: Iterable[int]) -> int | None:
    total = 0
    for pid in pids:
        path = Path(f"/proc/{pid}/status")
        if not path.is_file():
            return None
        for line in path.read_text().splitlines():
            if line.startswith(f"{field}:"):
                total += 1024 * int(line.split()[1])
    return total


class DeviceMemory:
    """Counts the memory of a CUDA device from here on; on a CPU there is nothing to count."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.empty_cache()
            self._before = self._held()
            torch.cuda.reset_peak_memory_stats(device)

    def _held(self) -> tuple[int, int]:
        return torch.cuda.memory_reserved(self._device), torch.cuda.memory_allocated(self._device)

    def settle(self) -> None:
        """Forget the peak so far: what is no longer in use goes back, the start does not count."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)

    def peaks(self) -> tuple[int, int] | None:
        """Return (reserved, allocated) bytes at the peak, beyond those before the start."""
        if self._device.type != "cuda":
            return None
        reserved = torch.cuda.max_memory_reserved(self._device) - self._before[0]
        return reserved, torch.cuda.max_memory_allocated(self._device) - self._before[1]
